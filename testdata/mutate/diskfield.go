package main

import "domfs/backend"

// Partition tables: the UEFI specification's chapter 5 for GPT, little-endian as an MBR is.
var (
	mbrParts = []part{{"status", 0, 1}, {"type", 4, 1}, {"first sector", 8, 4}, {"sectors", 12, 4}}
	gptParts = []part{
		{"signature", 0, 8}, {"revision", 8, 4}, {"header size", 12, 4}, {"checksum", 16, 4}, {"own sector", 24, 8}, {"other's sector", 32, 8},
		{"first usable", 40, 8}, {"last usable", 48, 8}, {"sector of entries", 72, 8}, {"number of entries", 80, 4}, {"size of an entry", 84, 4}, {"checksum of entries", 88, 4},
	}
	gptEntryParts = []part{{"type", 0, 8}, {"first sector", 32, 8}, {"last sector", 40, 8}, {"attributes", 48, 8}, {"name", 56, 2}}
)

// tableFields finds partition tables in the sectors that were read.
func tableFields(t *tracer, f *finder) error {
	const sector, entryBytes = 512, 128
	for n, o := range t.owners {
		if o.area != "table" {
			continue
		}
		b, err := get(t.Device, n*t.unit, sector)
		if err != nil {
			return err
		}
		off := n * t.unit
		switch {
		case string(b[:8]) == "EFI PART":
			f.parts("GPT header", gptParts, off, sector, false)
		case le.Uint16(b[510:]) == 0xaa55:
			f.add("MBR", "signature", off+510, 2, false)
			for at := 446; at < 510; at += 16 {
				f.parts("MBR entry", mbrParts, off+int64(at), 16, false)
			}
		default:
			for at := 0; at < sector; at += entryBytes {
				if le.Uint64(b[at:]) != 0 {
					f.parts("GPT entry", gptEntryParts, off+int64(at), entryBytes, false)
				}
			}
		}
	}
	return nil
}

// The structures of qcow2, big-endian: QEMU's docs/interop/qcow2.txt.
var (
	qcow2Parts = []part{
		{"magic", 0, 4}, {"version", 4, 4}, {"backing file name's place", 8, 8}, {"backing file name's size", 16, 4}, {"cluster bits", 20, 4},
		{"disk size", 24, 8}, {"encryption", 32, 4}, {"L1 size", 36, 4}, {"L1 place", 40, 8}, {"refcount table's place", 48, 8}, {"refcount table's clusters", 56, 4},
		{"snapshots", 60, 4}, {"snapshots' place", 64, 8},
	}
	qcow2V3Parts = []part{
		{"incompatible features", 72, 8}, {"compatible features", 80, 8}, {"autoclear features", 88, 8}, {"refcount order", 96, 4},
		{"header length", 100, 4}, {"compression type", 104, 1},
	}
	qcow2ExtensionParts = []part{{"type", 0, 4}, {"length", 4, 4}}
	qcow2SnapshotParts  = []part{
		{"L1 place", 0, 8}, {"L1 size", 8, 4}, {"identity's length", 12, 2}, {"name's length", 14, 2}, {"state's size", 32, 4}, {"extra data's size", 36, 4},
		{"large state's size", 40, 8}, {"disk size", 48, 8},
	}
)

const (
	qcow2Offset   = 0x00fffffffffffe00 // of an L1 or L2 entry
	maxQcow2Table = 1 << 16            // entries of a seed's tables
)

// qcow2Fields finds a file's header, tables and snapshots.
func qcow2Fields(d backend.Device, f *finder) error {
	head, err := get(d, 0, 512)
	if err != nil {
		return err
	}
	f.parts("header", qcow2Parts, 0, len(head), true)
	at := int64(72)
	if be.Uint32(head[4:]) >= 3 {
		f.parts("header", qcow2V3Parts, 0, len(head), true)
		at = int64(be.Uint32(head[100:]))
	}
	for at+8 <= int64(len(head)) {
		f.parts("header extension", qcow2ExtensionParts, at, 8, true)
		if be.Uint32(head[at:]) == 0 {
			break
		}
		at += 8 + (int64(be.Uint32(head[at+4:]))+7)/8*8
	}
	cluster := int64(1) << be.Uint32(head[20:])
	extended := be.Uint32(head[4:]) >= 3 && be.Uint64(head[72:])&0x10 != 0
	q := &qcow2Finder{f, d, cluster, extended, map[int64]bool{}}
	if err := q.table("L1", int64(be.Uint64(head[40:])), int64(be.Uint32(head[36:]))); err != nil {
		return err
	}
	at = int64(be.Uint64(head[64:]))
	for range be.Uint32(head[60:]) {
		b, err := get(d, at, 56)
		if err != nil {
			return err
		}
		extra := int64(be.Uint32(b[36:]))
		f.parts("snapshot", qcow2SnapshotParts, at, 40+int(extra), true)
		if err := q.table("L1 of a snapshot", int64(be.Uint64(b)), int64(be.Uint32(b[8:]))); err != nil {
			return err
		}
		at += (40 + extra + int64(be.Uint16(b[12:])) + int64(be.Uint16(b[14:])) + 7) / 8 * 8
	}
	return nil
}

type qcow2Finder struct {
	*finder
	d        backend.Device
	cluster  int64
	extended bool
	seen     map[int64]bool // L2 tables
}

// table adds an L1 table and the L2 tables that it leads to. Entries that are empty have a name of their own, as they are
// most of all.
func (q *qcow2Finder) table(name string, off, entries int64) error {
	return q.entries(name, off, min(entries, maxQcow2Table), 8, func(entry uint64) error {
		l2 := int64(entry & qcow2Offset)
		if l2 == 0 || q.seen[l2] {
			return nil
		}
		q.seen[l2] = true
		step := int64(8)
		if q.extended {
			step = 16
		}
		return q.entries("L2", l2, q.cluster/step, step, func(uint64) error { return nil })
	})
}

// entries adds those of a table, each of step bytes, and calls next for each.
func (q *qcow2Finder) entries(name string, off, count, step int64, next func(entry uint64) error) error {
	b, err := get(q.d, off, int(count*step))
	if err != nil {
		return err
	}
	for i := range count {
		entry := be.Uint64(b[i*step:])
		field := "entry"
		switch {
		case entry == 0:
			field = "empty entry"
		case entry>>62&1 != 0:
			field = "compressed entry"
		}
		q.add(name, field, off+i*step, 8, true)
		if step == 16 {
			q.add(name, "bitmap of an "+field, off+i*step+8, 8, true)
		}
		if err := next(entry); err != nil {
			return err
		}
	}
	return nil
}

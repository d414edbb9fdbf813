package part

import (
	"fmt"

	"domfs/backend"
)

const (
	mbrTable      = 446 // offset of the four entries in a sector
	mbrEntrySize  = 16
	mbrEntries    = 4
	mbrDiskID     = 440
	mbrProtective = 0xEE

	firstLogical = 5
	// stubSectors is what Linux shows of an extended partition.
	stubSectors = 2
	// maxEmptyLinks is how many records without a partition Linux follows in a row.
	maxEmptyLinks = 100
	// maxLinks bounds the records in all: a partition each, and as many empty ones.
	maxLinks = 2 * maxNumber
)

// mbrEntry is one of the four entries of an MBR or of an extended boot record.
type mbrEntry struct {
	boot    byte
	kind    byte
	start   int64 // sectors
	sectors int64 // 0: empty
}

func (e mbrEntry) extended() bool {
	return e.sectors > 0 && (e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85)
}

func signed(sector []byte) bool { return sector[510] == 0x55 && sector[511] == 0xAA }

func parseEntries(sector []byte) (out [mbrEntries]mbrEntry) {
	for i := range out {
		b := sector[mbrTable+i*mbrEntrySize:]
		out[i] = mbrEntry{boot: b[0], kind: b[4], start: int64(le.Uint32(b[8:])), sectors: int64(le.Uint32(b[12:]))}
	}
	return out
}

// isProtective tells whether an MBR only stands for a GPT.
func isProtective(mbr []byte) bool {
	for _, e := range parseEntries(mbr) {
		if e.kind == mbrProtective {
			return true
		}
	}
	return false
}

// mbrTableReader collects the partitions of one MBR.
type mbrTableReader struct {
	d        backend.Device
	diskID   uint32
	primary  []backend.Part
	logical  []backend.Part
	seen     map[int64]bool // sectors of the extended boot records that were read
	nextFree int
}

// mbrParts reads the primary partitions, and follows each extended one.
func mbrParts(d backend.Device, mbr []byte) ([]backend.Part, error) {
	t := mbrTableReader{d: d, diskID: le.Uint32(mbr[mbrDiskID:]), seen: map[int64]bool{}, nextFree: firstLogical}
	entries := parseEntries(mbr)
	for i, e := range entries {
		if e.boot != 0 && e.boot != 0x80 {
			return nil, fmt.Errorf("the boot flag of entry %d in the first sector is %#02x, it can only be 0 or 0x80: "+
				"this is no partition table: %w", i+1, e.boot, backend.ErrCorrupt)
		}
	}
	for i, e := range entries {
		if e.sectors == 0 {
			continue
		}
		number := i + 1
		if !e.extended() {
			t.primary = append(t.primary, t.part(number, e, e.start, e.sectors))
			continue
		}
		t.primary = append(t.primary, t.part(number, e, e.start, min(e.sectors, stubSectors)))
		if err := t.follow(e.start, e.sectors); err != nil {
			return nil, fmt.Errorf("logical partitions of partition %d: %w", number, err)
		}
	}
	return append(t.primary, t.logical...), nil
}

func (t *mbrTableReader) part(number int, e mbrEntry, start, sectors int64) backend.Part {
	p := newPart(t.d, number, start*sector512, sectors*sector512)
	p.Type = fmt.Sprintf("%#x", e.kind)
	if t.diskID != 0 {
		p.UUID = fmt.Sprintf("%08x-%02x", t.diskID, number)
	}
	return p
}

// follow collects the logical partitions of the extended partition at first. Each record
// is a sector like an MBR: partitions relative to itself, and a link to the next record, relative to
// the extended partition.
func (t *mbrTableReader) follow(first, size int64) error {
	at, span := first, size
	for empty := 1; empty <= maxEmptyLinks; empty++ {
		if t.seen[at] || len(t.seen) == maxLinks || (at+1)*sector512 > t.d.Size() {
			return nil
		}
		t.seen[at] = true
		b, err := readFull(t.d, at*sector512, sector512)
		if err != nil {
			return fmt.Errorf("read the extended boot record in sector %d: %w", at, err)
		}
		if !signed(b) {
			return nil
		}
		entries := parseEntries(b)
		for i, e := range entries {
			if e.sectors == 0 || e.extended() {
				continue
			}
			// The first two entries are what a record has. The others can be rubbish, and
			// count only if they make sense.
			start := at + e.start
			if i >= 2 && (e.start+e.sectors > span || start < first || start+e.sectors > first+size) {
				continue
			}
			if t.nextFree > maxNumber {
				return nil
			}
			t.logical = append(t.logical, t.part(t.nextFree, e, start, e.sectors))
			t.nextFree++
			empty = 0
		}
		next := -1
		for i, e := range entries {
			if e.extended() {
				next = i
				break
			}
		}
		if next < 0 {
			return nil
		}
		at, span = first+entries[next].start, entries[next].sectors
	}
	return nil
}

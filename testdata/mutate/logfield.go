package main

import "domfs/backend"

// The structures of the journal, big-endian, and of fast commits, little-endian: the kernel's
// Documentation/filesystems/ext4/journal.rst, and struct ext4_fc_tl and what may follow it.
var (
	logSuperParts = []part{
		{"magic", 0, 4}, {"type", 4, 4}, {"block size", 0xc, 4}, {"blocks", 0x10, 4}, {"first block", 0x14, 4}, {"sequence", 0x18, 4}, {"start", 0x1c, 4},
		{"error", 0x20, 4}, {"compatible features", 0x24, 4}, {"incompatible features", 0x28, 4}, {"read-only features", 0x2c, 4},
		{"checksum type", 0x50, 1}, {"fast commit blocks", 0x54, 4}, {"head", 0x58, 4},
	}
	logHeadParts = []part{{"magic", 0, 4}, {"type", 4, 4}, {"sequence", 8, 4}}
	commitParts  = []part{{"checksum type", 0xc, 1}, {"checksum size", 0xd, 1}, {"checksum", 0x10, 4}, {"time", 0x30, 8}}
	tagParts     = []part{{"block", 0, 4}, {"checksum", 4, 2}, {"flags", 6, 2}, {"block, high", 8, 4}}
	tag3Parts    = []part{{"block", 0, 4}, {"flags", 4, 4}, {"block, high", 8, 4}, {"checksum", 12, 4}}

	quickTagParts = []part{{"tag", 0, 2}, {"length", 2, 2}}
	quickParts    = map[uint16]struct {
		name  string
		parts []part
	}{
		1: {"add range", []part{{"inode", 4, 4}, {"first block", 8, 4}, {"length of extent", 12, 2}, {"place, high", 14, 2}, {"place", 16, 4}}},
		2: {"remove range", []part{{"inode", 4, 4}, {"first block", 8, 4}, {"blocks", 12, 4}}},
		3: {"create", []part{{"parent", 4, 4}, {"inode", 8, 4}}},
		4: {"link", []part{{"parent", 4, 4}, {"inode", 8, 4}}},
		5: {"unlink", []part{{"parent", 4, 4}, {"inode", 8, 4}}},
		6: {"inode", []part{{"inode", 4, 4}}},
		7: {"pad", nil},
		8: {"tail", []part{{"transaction", 4, 4}, {"checksum", 8, 4}}},
		9: {"head", []part{{"features", 4, 4}, {"transaction", 8, 4}}},
	}
)

const quickTail = 8

// tagLayout is how the tags of a journal's descriptors look.
type tagLayout struct {
	parts   []part
	bytes   int
	flagsAt int // the byte that has them, the last of the number
	wide    bool
}

func (g *geometry) tagLayout(d backend.Device) (tagLayout, error) {
	head, err := get(d, g.journal[0]*g.block, 1024)
	if err != nil {
		return tagLayout{}, err
	}
	features := be.Uint32(head[0x28:])
	l := tagLayout{parts: tagParts, bytes: 8, flagsAt: 7, wide: features&2 != 0}
	switch v2, v3 := features&8 != 0, features&0x10 != 0; {
	case v3:
		return tagLayout{tag3Parts, 16, 7, l.wide}, nil
	case v2:
		l.bytes += 2
	}
	if l.wide {
		l.bytes += 4
	}
	return l, nil
}

// tags calls f with the place of each tag in a descriptor.
func (l *tagLayout) tags(b []byte, f func(at int)) {
	const lastTag, sameUUID = 8, 2
	for at := 12; at+l.bytes <= len(b); {
		f(at)
		flags := b[at+l.flagsAt]
		if flags&lastTag != 0 {
			return
		}
		if at += l.bytes; flags&sameUUID == 0 {
			at += 16
		}
	}
}

const (
	logDescriptor = 1
	logCommit     = 2
	logSuperV1    = 3
	logSuperV2    = 4
	logRevoke     = 5
)

// findHomes finds out which block each of the journal's is a copy of.
func (g *geometry) findHomes(d backend.Device) error {
	g.homes = map[int64]int64{}
	if len(g.journal) == 0 {
		return nil
	}
	l, err := g.tagLayout(d)
	if err != nil {
		return err
	}
	ring := g.journal[1 : len(g.journal)-g.quick]
	for i, n := range ring {
		b, err := get(d, n*g.block, int(g.block))
		if err != nil {
			return err
		}
		if be.Uint32(b) != jbdMagic || be.Uint32(b[4:]) != logDescriptor {
			continue
		}
		next := i
		l.tags(b, func(at int) {
			next++
			g.homes[ring[next%len(ring)]] = int64(be.Uint32(b[at:]))
		})
	}
	return nil
}

// logFields adds a block of the journal's own.
func (g *geometry) logFields(t *tracer, f *finder, b []byte, off int64) error {
	l, err := g.tagLayout(t.Device)
	if err != nil {
		return err
	}
	switch be.Uint32(b[4:]) {
	case logSuperV1, logSuperV2:
		f.parts("journal superblock", logSuperParts, off, len(b), true)
	case logCommit:
		f.parts("journal commit", logHeadParts, off, len(b), true)
		f.parts("journal commit", commitParts, off, len(b), true)
	case logRevoke:
		f.parts("journal revoke", logHeadParts, off, len(b), true)
		f.add("journal revoke", "length", off+12, 4, true)
		step := 4
		if l.wide {
			step = 8
		}
		for at := 16; at+step <= min(len(b), int(be.Uint32(b[12:]))); at += step {
			f.add("journal revoke", "block", off+int64(at), step, true)
		}
	case logDescriptor:
		f.parts("journal descriptor", logHeadParts, off, len(b), true)
		last := 0
		l.tags(b, func(at int) { last = at })
		l.tags(b, func(at int) {
			name := "journal tag"
			if at == last {
				name += ", last"
			}
			f.parts(name, l.parts, off+int64(at), l.bytes, true)
		})
	}
	return nil
}

// quickFields adds the tags of fast commits.
func (g *geometry) quickFields(t *tracer, f *finder) error {
	for _, n := range g.journal[len(g.journal)-g.quick:] {
		b, err := get(t.Device, n*g.block, int(g.block))
		if err != nil {
			return err
		}
		for at := 0; at+4 <= len(b); {
			kind, length := le.Uint16(b[at:]), int(le.Uint16(b[at+2:]))
			known, ok := quickParts[kind]
			if !ok || at+4+length > len(b) {
				return nil
			}
			name, off := "fast commit, "+known.name, n*g.block+int64(at)
			f.parts(name, quickTagParts, off, 4, false)
			f.parts(name, known.parts, off, 4+length, false)
			if kind == 6 && length >= 4+128 {
				f.inode(b[at+8:at+4+length], off+8, " in a fast commit")
			}
			at += 4 + length
		}
	}
	return nil
}

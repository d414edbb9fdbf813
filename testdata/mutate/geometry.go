package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"domfs/backend"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// geometry is where an ext filesystem has what, as it was made. The structures are those of the
// kernel's Documentation/filesystems/ext4; what of a seed is wrong here shows as a seed that is refused.
type geometry struct {
	block          int64 // bytes
	first          int64 // first data block
	inodesPerGroup int64
	inodeBytes     int64
	descBytes      int64
	groups         int64
	metaBG         bool
	checksums      bool // metadata_csum; without it nothing is made to fit
	seed           uint32
	tables         []int64         // the block that each group's inode table begins at
	journal        []int64         // the journal's blocks, in order
	quick          int             // the last of them that are for fast commits
	homes          map[int64]int64 // where what a block of the journal holds belongs
}

const (
	superAt   = 1024 // bytes
	superLen  = 1024
	extMagic  = 0xef53
	jbdMagic  = 0xc03b3998
	quickArea = "fast commits"
	logArea   = "journal control"
)

// get reads bytes of a seed.
func get(d backend.Device, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	if m, err := d.ReadAt(b, off); m < n {
		return nil, fmt.Errorf("%d bytes at %d: %w", n, off, err)
	}
	return b, nil
}

func readGeometry(d backend.Device) (*geometry, error) {
	sb, err := get(d, superAt, superLen)
	if err != nil {
		return nil, err
	}
	if le.Uint16(sb[0x38:]) != extMagic {
		return nil, fmt.Errorf("no ext filesystem")
	}
	compat, incompat, roCompat := le.Uint32(sb[0x5c:]), le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	g := &geometry{
		block: 1024 << le.Uint32(sb[0x18:]), first: int64(le.Uint32(sb[0x14:])), inodesPerGroup: int64(le.Uint32(sb[0x28:])),
		inodeBytes: 128, descBytes: 32, metaBG: incompat&0x10 != 0, checksums: roCompat&0x400 != 0,
	}
	if le.Uint32(sb[0x4c:]) > 0 {
		g.inodeBytes = int64(le.Uint16(sb[0x58:]))
	}
	if incompat&0x80 != 0 {
		g.descBytes = int64(le.Uint16(sb[0xfe:]))
	}
	g.groups = int64(le.Uint32(sb[0x0:])) / g.inodesPerGroup
	g.seed = crc(^uint32(0), sb[0x68:0x78])
	if incompat&0x2000 != 0 {
		g.seed = le.Uint32(sb[0x270:])
	}
	for i := range g.groups {
		b, err := get(d, g.descriptor(i, sb), int(g.descBytes))
		if err != nil {
			return nil, err
		}
		g.tables = append(g.tables, int64(le.Uint32(b[8:])))
	}
	if journal := le.Uint32(sb[0xe0:]); compat&0x4 != 0 && journal != 0 {
		return g, g.readJournal(d, int64(journal))
	}
	return g, nil
}

// descriptor is where a group's descriptor lies.
func (g *geometry) descriptor(group int64, sb []byte) int64 {
	per := g.block / g.descBytes
	if !g.metaBG || group/per < int64(le.Uint32(sb[0x104:])) {
		return (superAt/g.block+1)*g.block + group*g.descBytes
	}
	// The first group of those that share a block of descriptors has it, behind its superblock if it has
	// one: group 0, 1 and powers of 3, 5 and 7.
	lead := group / per * per
	at := g.first + lead*int64(le.Uint32(sb[0x20:]))
	if lead <= 1 || isPower(lead, 3) || isPower(lead, 5) || isPower(lead, 7) {
		at++
	}
	return at*g.block + group%per*g.descBytes
}

func isPower(n, base int64) bool {
	for n%base == 0 && n > 1 {
		n /= base
	}
	return n == 1
}

// inode is where an inode lies.
func (g *geometry) inode(ino int64) int64 {
	return g.tables[(ino-1)/g.inodesPerGroup]*g.block + (ino-1)%g.inodesPerGroup*g.inodeBytes
}

func (g *geometry) readJournal(d backend.Device, ino int64) error {
	in, err := get(d, g.inode(ino), 128)
	if err != nil {
		return err
	}
	if le.Uint32(in[0x20:])&0x80000 != 0 {
		err = g.extents(d, in[0x28:0x28+60], 0)
	} else {
		err = g.indirect(d, in[0x28:0x28+60], int(int64(le.Uint32(in[0x4:]))/g.block))
	}
	if err != nil || len(g.journal) == 0 {
		return err
	}
	head, err := get(d, g.journal[0]*g.block, 1024)
	if err != nil {
		return err
	}
	if quick := be.Uint32(head[0x54:]); be.Uint32(head[0x28:])&0x20 != 0 {
		if quick == 0 {
			quick = 256
		}
		g.quick = min(int(quick)-1, len(g.journal)) // the first of them is not used
	}
	return nil
}

// extents adds the blocks of a node of the journal's extents.
func (g *geometry) extents(d backend.Device, node []byte, level int) error {
	if level > 5 {
		return fmt.Errorf("the journal's extents are too deep")
	}
	for i := range int(le.Uint16(node[2:])) {
		e := node[12+12*i:]
		if le.Uint16(node[6:]) == 0 {
			for b := range int64(le.Uint16(e[4:])) {
				g.journal = append(g.journal, int64(le.Uint32(e[8:]))+b)
			}
			continue
		}
		child, err := get(d, int64(le.Uint32(e[4:]))*g.block, int(g.block))
		if err != nil {
			return err
		}
		if err := g.extents(d, child, level+1); err != nil {
			return err
		}
	}
	return nil
}

// indirect adds the journal's first blocks, as far as one level of indirection and the
// next reach: a seed's journal is small.
func (g *geometry) indirect(d backend.Device, array []byte, blocks int) error {
	var walk func(b []byte, level int) error
	walk = func(b []byte, level int) error {
		for ; len(b) >= 4 && len(g.journal) < blocks; b = b[4:] {
			n := int64(le.Uint32(b))
			if level == 0 {
				g.journal = append(g.journal, n)
				continue
			}
			child, err := get(d, n*g.block, int(g.block))
			if err != nil {
				return err
			}
			if err := walk(child, level-1); err != nil {
				return err
			}
		}
		return nil
	}
	for _, part := range []struct{ from, to, level int }{{0, 12, 0}, {12, 13, 1}, {13, 14, 2}} {
		if err := walk(array[4*part.from:4*part.to], part.level); err != nil {
			return err
		}
	}
	return nil
}

// label names the units that are known beforehand: the superblock, and what of the journal is which.
func (g *geometry) label(t *tracer) error {
	sb, err := get(t.Device, superAt, superLen)
	if err != nil {
		return err
	}
	for group, table := range g.tables {
		t.label[g.descriptor(int64(group), sb)/t.unit] = "group descriptors"
		for off := int64(0); off < g.inodesPerGroup*g.inodeBytes; off += t.unit {
			t.label[table+off/t.unit] = "inodes"
		}
	}
	t.label[superAt/t.unit] = "superblock"
	for i, block := range g.journal {
		name := "journal"
		b, err := get(t.Device, block*g.block, 4)
		switch {
		case err != nil:
			return err
		case i >= len(g.journal)-g.quick:
			name = quickArea
		case be.Uint32(b) == jbdMagic:
			name = logArea
		}
		t.label[block] = name
	}
	return nil
}

// crc is CRC-32C without the inversions at its ends.
func crc(sum uint32, p []byte) uint32 { return ^crc32.Update(^sum, castagnoli, p) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func u32(v int64) []byte { return le.AppendUint32(nil, uint32(v)) }

// without is p with zeros in some places.
func without(p []byte, places ...span) []byte {
	p = slices.Clone(p)
	for _, s := range places {
		clear(p[s.from:s.to])
	}
	return p
}

type span struct{ from, to int }

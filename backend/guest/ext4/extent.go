package ext4

import (
	"encoding/binary"
	"fmt"
	"sort"
)

// The extent tree: Documentation/filesystems/ext4/ifork.rst.
const (
	extentMagic     = 0xf30a
	extentBytes     = 12 // of a node's header, of an extent and of an index alike
	maxExtentDepth  = 5
	maxExtentLength = 32768 // blocks; more is an unwritten extent of that many less
)

// extentNode is a node of an extent tree that was found right.
type extentNode []byte

func (n extentNode) count() int { return int(binary.LittleEndian.Uint16(n[2:])) }
func (n extentNode) depth() int { return int(binary.LittleEndian.Uint16(n[6:])) }

// room is how many entries it has room for.
func (n extentNode) room() int { return int(binary.LittleEndian.Uint16(n[4:])) }

// checkSum compares the checksum of a node in a block, which follows the room for its entries.
func (n extentNode) checkSum(seed uint32) error {
	tail := extentBytes * (1 + n.room())
	if tail+4 > len(n) {
		return corrupt("no room for a checksum")
	}
	if stored, sum := binary.LittleEndian.Uint32(n[tail:]), crc32c(seed, n[:tail]); stored != sum {
		return corrupt("checksum is 0x%08x, computed 0x%08x", stored, sum)
	}
	return nil
}

func (n extentNode) entry(i int) []byte { return n[extentBytes*(i+1):][:extentBytes] }

// first is the file's block that an entry begins with.
func (n extentNode) first(i int) uint64 {
	return uint64(binary.LittleEndian.Uint32(n[extentBytes*(i+1):]))
}

// child is the block of the node below an index.
func (n extentNode) child(i int) uint64 {
	e := n.entry(i)
	return uint64(binary.LittleEndian.Uint32(e[4:])) | uint64(binary.LittleEndian.Uint16(e[8:]))<<32
}

func (n extentNode) run(i int) run {
	e := n.entry(i)
	le := binary.LittleEndian
	r := run{
		logical: uint64(le.Uint32(e[0:])),
		blocks:  uint64(le.Uint16(e[4:])),
		phys:    uint64(le.Uint16(e[6:]))<<32 | uint64(le.Uint32(e[8:])),
		state:   runWritten,
	}
	if r.blocks > maxExtentLength {
		r.blocks -= maxExtentLength
		r.state = runUnwritten
	}
	return r
}

// find is the last entry that begins at or before a block, -1 if all begin after it.
func (n extentNode) find(block uint64) int {
	return sort.Search(n.count(), func(i int) bool { return n.first(i) > block }) - 1
}

func (fs *FS) mapExtent(in *inode, block uint64) (run, error) {
	node := extentNode(in.block[:])
	depth := node.depth()
	// The tree below covers the blocks from lo to hi.
	lo, hi := uint64(0), uint64(maxLogical)
	if depth > maxExtentDepth {
		return run{}, corrupt("inode %d: the extent tree is %d deep, more than %d", in.ino, depth, maxExtentDepth)
	}
	if err := fs.checkExtents(node, depth, lo, hi); err != nil {
		return run{}, fmt.Errorf("inode %d: extents: %w", in.ino, err)
	}
	for ; depth > 0; depth-- {
		i := node.find(block)
		if i < 0 {
			return run{logical: block, blocks: node.first(0) - block}, nil
		}
		lo = node.first(i)
		if i+1 < node.count() {
			hi = node.first(i + 1)
		}
		child, err := fs.extentBlock(in, node.child(i), depth-1, lo, hi)
		if err != nil {
			return run{}, err
		}
		node = child
	}
	i := node.find(block)
	if i >= 0 {
		if r := node.run(i); r.has(block) {
			return r, nil
		}
	}
	next := hi
	if i+1 < node.count() {
		next = node.first(i + 1)
	}
	return run{logical: block, blocks: next - block}, nil
}

// extentBlock reads a node that lies in a block of its own.
func (fs *FS) extentBlock(in *inode, block uint64, depth int, lo, hi uint64) (extentNode, error) {
	b, err := fs.blocks(block, 1)
	if err != nil {
		return nil, fmt.Errorf("inode %d: extent %w", in.ino, err)
	}
	as := checked{kind: "extents", ino: in.ino, depth: depth, lo: lo, hi: hi}
	if b.rightAs(as) {
		return b.data, nil
	}
	if err := fs.checkExtents(b.data, depth, lo, hi); err != nil {
		return nil, fmt.Errorf("inode %d: extent block %d: %w", in.ino, block, err)
	}
	if fs.sb.roCompat&roCompatMetadataChecksum != 0 {
		if err := extentNode(b.data).checkSum(in.seed); err != nil {
			return nil, fmt.Errorf("inode %d: extent block %d: %w", in.ino, block, err)
		}
	}
	b.setRight(as)
	return b.data, nil
}

// checkExtents finds a node right whose tree covers the blocks from lo to hi: its
// entries ascend, do not overlap, stay in these bounds and point into the filesystem. So no node can be
// part of a tree twice, and a walk of all of a tree ends.
func (fs *FS) checkExtents(n extentNode, depth int, lo, hi uint64) error {
	le := binary.LittleEndian
	if magic := le.Uint16(n); magic != extentMagic {
		return corrupt("magic is 0x%x, not 0x%x", magic, extentMagic)
	}
	count, room := n.count(), n.room()
	switch {
	case n.depth() != depth:
		return corrupt("depth is %d, not %d", n.depth(), depth)
	case room > len(n)/extentBytes-1 || count > room:
		return corrupt("%d entries of at most %d in %d bytes", count, room, len(n))
	case depth > 0 && count == 0:
		return corrupt("an index without entries")
	}
	for i := range count {
		r := run{logical: n.first(i), blocks: 1, phys: 0}
		if depth == 0 {
			r = n.run(i)
		} else {
			r.phys = n.child(i)
		}
		switch {
		case r.blocks == 0:
			return corrupt("entry %d is empty", i)
		case r.logical < lo || r.end() > hi:
			return corrupt("entry %d, of the file's blocks %d to %d, is out of order or of bounds", i, r.logical, r.end()-1)
		case !fs.sb.validRun(r.phys, r.blocks):
			return corrupt("entry %d points to block %d+%d of %d", i, r.phys, r.blocks, fs.sb.blocks)
		}
		lo = r.end()
	}
	return nil
}

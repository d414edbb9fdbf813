package ext4

import (
	"encoding/binary"
	"fmt"
)

func (n extentNode) setCount(v int) { binary.LittleEndian.PutUint16(n[2:], uint16(v)) }
func (n extentNode) setDepth(v int) { binary.LittleEndian.PutUint16(n[6:], uint16(v)) }
func (n extentNode) full() bool     { return n.count() >= n.room() }

func (n extentNode) init(room, depth int) {
	le := binary.LittleEndian
	clear(n)
	le.PutUint16(n, extentMagic)
	le.PutUint16(n[4:], uint16(room))
	le.PutUint16(n[6:], uint16(depth))
}

// setFirst sets the file's block that an entry begins with.
func (n extentNode) setFirst(i int, block uint64) {
	binary.LittleEndian.PutUint32(n.entry(i), uint32(block))
}

// setIndex sets an entry of an inner node.
func (n extentNode) setIndex(i int, first, child uint64) {
	e, le := n.entry(i), binary.LittleEndian
	le.PutUint32(e, uint32(first))
	le.PutUint32(e[4:], uint32(child))
	le.PutUint32(e[8:], uint32(child>>32)&0xffff)
}

// setRun sets an extent.
func (n extentNode) setRun(i int, r run) {
	e, le := n.entry(i), binary.LittleEndian
	blocks := r.blocks
	if r.state == runUnwritten {
		blocks += maxExtentLength
	}
	le.PutUint32(e, uint32(r.logical))
	le.PutUint16(e[4:], uint16(blocks))
	le.PutUint16(e[6:], uint16(r.phys>>32))
	le.PutUint32(e[8:], uint32(r.phys))
}

// insert makes room for an entry before the i-th.
func (n extentNode) insert(i int) {
	count := n.count()
	copy(n[extentBytes*(i+2):extentBytes*(count+2)], n[extentBytes*(i+1):extentBytes*(count+1)])
	n.setCount(count + 1)
}

// remove removes an entry.
func (n extentNode) remove(i int) {
	count := n.count()
	copy(n[extentBytes*(i+1):extentBytes*count], n[extentBytes*(i+2):extentBytes*(count+1)])
	clear(n[extentBytes*count : extentBytes*(count+1)])
	n.setCount(count - 1)
}

// mergeable tells whether the kernel makes one extent of two.
func mergeable(a, b run) bool {
	if a.state != b.state || a.end() != b.logical || a.phys+a.blocks != b.phys {
		return false
	}
	if a.state == runUnwritten {
		return a.blocks+b.blocks < maxExtentLength
	}
	return a.blocks+b.blocks <= maxExtentLength
}

// extentRoom is the number of entries of a node in a block.
func (s *super) extentRoom() int { return (s.blockBytes() - extentBytes) / extentBytes }

const extentRootRoom = (blockArray - extentBytes) / extentBytes

// node returns a node that lies in a block, to be changed or not.
func (in *editedInode) node(block uint64, depth int, lo, hi uint64, change bool) (extentNode, error) {
	e := in.e
	if err := e.work(e.fs.sb.blockBytes()); err != nil {
		return nil, err
	}
	known := e.fs.over.edited[block] != nil
	b, err := e.view(block)
	if change && err == nil {
		b, err = e.edit(block, kindExtents)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: extent %w", in.ino, err)
	}
	if err = e.fs.checkExtents(b, depth, lo, hi); err == nil && extentNode(b).room() == 0 {
		err = corrupt("no room for an entry")
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: extent block %d: %w", in.ino, block, err)
	}
	if e.fs.sb.roCompat&roCompatMetadataChecksum != 0 && !known {
		if err := extentNode(b).checkSum(in.generationSeed()); err != nil {
			return nil, fmt.Errorf("inode %d: extent block %d: %w", in.ino, block, err)
		}
	}
	return b, nil
}

// sealNode sets the checksum of a node.
func (in *editedInode) sealNode(block uint64, n extentNode) {
	if block == 0 {
		in.seal()
		return
	}
	tail := extentBytes * (1 + n.room())
	if in.e.fs.sb.roCompat&roCompatMetadataChecksum != 0 && tail+4 <= len(n) {
		binary.LittleEndian.PutUint32(n[tail:], crc32c(in.generationSeed(), n[:tail]))
	}
}

// extentRoot is the root of the tree, which must be one.
func (in *editedInode) extentRoot() (extentNode, error) {
	if !in.hasExtents() {
		return nil, unsupported("inode %d has no extents", in.ino)
	}
	root := extentNode(in.root())
	depth := root.depth()
	if depth > maxExtentDepth {
		return nil, corrupt("inode %d: the extent tree is %d deep, more than %d", in.ino, depth, maxExtentDepth)
	}
	err := in.e.fs.checkExtents(root, depth, 0, maxLogical)
	if err == nil && root.room() == 0 {
		err = corrupt("no room for an entry")
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: extents: %w", in.ino, err)
	}
	return root, nil
}

// mergeRight joins an extent with those after it.
func (n extentNode) mergeRight(i int) (done bool) {
	for i+1 < n.count() && mergeable(n.run(i), n.run(i+1)) {
		x := n.run(i)
		x.blocks += n.run(i + 1).blocks
		n.setRun(i, x)
		n.remove(i + 1)
		done = true
	}
	return done
}

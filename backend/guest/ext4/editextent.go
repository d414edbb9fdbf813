package ext4

import (
	"encoding/binary"
	"fmt"
)

// The changes of an extent tree are the kernel's, node by node: how many nodes a tree
// has is seen in st_blocks.

// extentLevel is a node on the way from an inode to an extent.
type extentLevel struct {
	block uint64     // 0: the root, in the inode
	node  extentNode // to be changed
	at    int        // the entry taken; -1 in a leaf without entries
}

func (n extentNode) setCount(v int) { binary.LittleEndian.PutUint16(n[2:], uint16(v)) }
func (n extentNode) setDepth(v int) { binary.LittleEndian.PutUint16(n[6:], uint16(v)) }
func (n extentNode) room() int      { return int(binary.LittleEndian.Uint16(n[4:])) }
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
	if e.fs.sb.roCompat&roCompatMetadataChecksum != 0 {
		le := binary.LittleEndian
		tail := extentBytes * (1 + extentNode(b).room())
		if tail+4 > len(b) {
			return nil, corrupt("inode %d: extent block %d: no room for a checksum", in.ino, block)
		}
		if stored, sum := le.Uint32(b[tail:]), crc32c(in.generationSeed(), b[:tail]); !known && stored != sum {
			return nil, corrupt("inode %d: extent block %d: checksum is 0x%08x, computed 0x%08x", in.ino, block, stored, sum)
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

// find goes down to the leaf for a block of the file, and to the last extent in it that
// begins at or before the block, or to its first.
func (in *editedInode) find(block uint64) ([]extentLevel, error) {
	if err := in.e.step(); err != nil {
		return nil, err
	}
	root, err := in.extentRoot()
	if err != nil {
		return nil, err
	}
	lo, hi := uint64(0), uint64(maxLogical)
	path := []extentLevel{{node: root}}
	for {
		l := &path[len(path)-1]
		depth := l.node.depth()
		l.at = max(l.node.find(block), 0)
		if depth == 0 {
			if l.node.count() == 0 {
				l.at = -1
			}
			return path, nil
		}
		lo = l.node.first(l.at)
		if l.at+1 < l.node.count() {
			hi = l.node.first(l.at + 1)
		}
		child := l.node.child(l.at)
		node, err := in.node(child, depth-1, lo, hi, true)
		if err != nil {
			return nil, err
		}
		path = append(path, extentLevel{block: child, node: node})
	}
}

// lookup is the part of a run from a block on that has at most so many blocks: a hole, or
// a part of one extent.
func (in *editedInode) lookup(block, blocks uint64) (run, error) {
	path, err := in.find(block)
	if err != nil {
		return run{}, err
	}
	leaf := path[len(path)-1]
	next := uint64(maxLogical)
	if leaf.at >= 0 {
		r := leaf.node.run(leaf.at)
		switch {
		case r.has(block):
			skip := block - r.logical
			return run{logical: block, blocks: min(blocks, r.blocks-skip), phys: r.phys + skip, state: r.state}, nil
		case r.logical > block:
			next = r.logical
		default:
			next = in.nextFirst(path)
		}
	}
	return run{logical: block, blocks: min(blocks, next-block)}, nil
}

// nextFirst is where the entry after that of a path begins.
func (in *editedInode) nextFirst(path []extentLevel) uint64 {
	for i := len(path) - 1; i >= 0; i-- {
		if l := path[i]; l.at+1 < l.node.count() {
			return l.node.first(l.at + 1)
		}
	}
	return maxLogical
}

// correctIndexes makes the indexes above a leaf's first entry begin where it begins.
func (in *editedInode) correctIndexes(path []extentLevel) {
	depth := len(path) - 1
	if path[depth].at != 0 || path[depth].node.count() == 0 {
		return
	}
	first := path[depth].node.first(0)
	for i := depth - 1; i >= 0; i-- {
		path[i].node.setFirst(path[i].at, first)
		in.sealNode(path[i].block, path[i].node)
		if path[i].at != 0 {
			break
		}
	}
}

// insertRun adds an extent where there is a hole. merge also joins it with its
// neighbours.
func (in *editedInode) insertRun(r run, merge bool) error {
	path, err := in.find(r.logical)
	if err != nil {
		return err
	}
	leaf := &path[len(path)-1]
	if leaf.at >= 0 && merge {
		i := leaf.at
		x := leaf.node.run(i)
		if i+1 < leaf.node.count() && x.end() < r.logical {
			i++
		} else if i > 0 && r.end() < x.logical {
			i--
		}
		x = leaf.node.run(i)
		if mergeable(x, r) {
			x.blocks += r.blocks
			leaf.node.setRun(i, x)
			leaf.at = i
			return in.merged(path)
		}
		if mergeable(r, x) {
			x.logical, x.phys, x.blocks = r.logical, r.phys, x.blocks+r.blocks
			leaf.node.setRun(i, x)
			leaf.at = i
			return in.merged(path)
		}
	}
	if leaf.node.full() {
		if path, err = in.makeRoom(path, r); err != nil {
			return err
		}
		leaf = &path[len(path)-1]
	}
	if leaf.at < 0 {
		leaf.at = 0
	} else if r.logical > leaf.node.first(leaf.at) {
		leaf.at++
	}
	leaf.node.insert(leaf.at)
	leaf.node.setRun(leaf.at, r)
	in.correctIndexes(path)
	in.sealNode(leaf.block, leaf.node)
	if merge {
		return in.merged(path)
	}
	return nil
}

// merged joins the extent that a path leads to with its neighbours.
func (in *editedInode) merged(path []extentLevel) error {
	leaf := &path[len(path)-1]
	in.mergeAt(leaf.node, leaf.at)
	leaf.at = min(leaf.at, leaf.node.count()-1)
	in.correctIndexes(path)
	in.sealNode(leaf.block, leaf.node)
	return in.mergeUp()
}

func (in *editedInode) mergeAt(n extentNode, i int) {
	done := false
	if i > 0 {
		done = n.mergeRight(i - 1)
	}
	if !done {
		n.mergeRight(i)
	}
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

// mergeUp puts the extents of a single leaf into the inode, if they find room there.
func (in *editedInode) mergeUp() error {
	root := extentNode(in.root())
	if root.depth() != 1 || root.count() != 1 {
		return nil
	}
	block := root.child(0)
	leaf, err := in.node(block, 0, root.first(0), maxLogical, false)
	if err != nil {
		return err
	}
	if leaf.count() > extentRootRoom {
		return nil
	}
	count := leaf.count()
	root.init(extentRootRoom, 0)
	copy(root[extentBytes:], leaf[extentBytes:][:count*extentBytes])
	root.setCount(count)
	in.seal()
	return in.releaseNode(block)
}

// makeRoom returns the path to a leaf that has room for an extent.
func (in *editedInode) makeRoom(path []extentLevel, r run) ([]extentLevel, error) {
	leaf := path[len(path)-1]
	if r.logical > leaf.node.first(leaf.node.count()-1) {
		if next := in.nextLeaf(path); next < maxLogical {
			other, err := in.find(next)
			if err != nil {
				return nil, err
			}
			if !other[len(other)-1].node.full() {
				return other, nil
			}
		}
	}
	for range 2 * (maxExtentDepth + 1) {
		depth := len(path) - 1
		at := depth
		for at > 0 && path[at].node.full() {
			at--
		}
		if !path[at].node.full() {
			if err := in.split(path, r, at); err != nil {
				return nil, err
			}
		} else if err := in.grow(); err != nil {
			return nil, err
		}
		var err error
		if path, err = in.find(r.logical); err != nil {
			return nil, err
		}
		if !path[len(path)-1].node.full() {
			return path, nil
		}
	}
	return nil, corrupt("inode %d: the extent tree does not grow", in.ino)
}

// nextLeaf is where the leaf after that of a path begins.
func (in *editedInode) nextLeaf(path []extentLevel) uint64 {
	return in.nextFirst(path[:len(path)-1])
}

// split moves what follows a path's entries into new nodes, below the node at a level
// that has room for one more entry.
func (in *editedInode) split(path []extentLevel, r run, at int) error {
	depth := len(path) - 1
	leaf := path[depth]
	border := r.logical
	if leaf.at+1 < leaf.node.room() {
		// An extent after the one taken: the leaf is full.
		border = leaf.node.first(leaf.at + 1)
	}
	blocks := make([]uint64, depth-at)
	for i := range blocks {
		var err error
		if blocks[i], err = in.newNode(in.goal(path, r.logical)); err != nil {
			return err
		}
	}
	var below uint64
	for i := depth; i > at; i-- {
		block := blocks[i-at-1]
		b, err := in.e.fresh(block, kindExtents)
		if err != nil {
			return err
		}
		node, old := extentNode(b), path[i]
		node.init(in.e.fs.sb.extentRoom(), depth-i)
		n := 0
		if i < depth {
			node.setIndex(0, border, below)
			n = 1
		}
		moved := old.node.count() - old.at - 1
		copy(node[extentBytes*(n+1):], old.node[extentBytes*(old.at+2):extentBytes*(old.node.count()+1)])
		node.setCount(n + moved)
		old.node.setCount(old.node.count() - moved)
		in.sealNode(block, node)
		in.sealNode(old.block, old.node)
		below = block
	}
	l := path[at]
	i := l.at
	if border > l.node.first(i) {
		i++
	}
	l.node.insert(i)
	l.node.setIndex(i, border, below)
	in.sealNode(l.block, l.node)
	return nil
}

// newNode takes a block for a node.
func (in *editedInode) newNode(goal uint64) (uint64, error) {
	block, err := in.e.newBlock(goal)
	if err != nil {
		return 0, err
	}
	if in.e.counted {
		in.addSectors(in.e.fs.sb.clusterSectors(block, 1))
	}
	return block, nil
}

// goal is where the kernel would like a new block to be that a path was found for: where it
// lies decides whether extents can be merged, and so how many blocks their tree takes.
func (in *editedInode) goal(path []extentLevel, block uint64) uint64 {
	leaf := path[len(path)-1]
	if leaf.at >= 0 {
		r := leaf.node.run(leaf.at)
		return r.phys + block - r.logical // before it, if the block is
	}
	if leaf.block != 0 {
		return leaf.block
	}
	return in.groupGoal()
}

// groupGoal is the beginning of the inode's group.
func (in *editedInode) groupGoal() uint64 {
	return in.e.fs.sb.groupStart(uint64(in.ino-1) / uint64(in.e.fs.sb.inodesPerGroup))
}

// grow puts a node between the root and what is below it.
func (in *editedInode) grow() error {
	root := extentNode(in.root())
	if root.depth() >= maxExtentDepth {
		return corrupt("inode %d: the extent tree would become deeper than %d", in.ino, maxExtentDepth)
	}
	goal := in.groupGoal()
	if root.depth() > 0 {
		goal = root.child(0) - 1
	}
	block, err := in.newNode(goal)
	if err != nil {
		return err
	}
	b, err := in.e.fresh(block, kindExtents)
	if err != nil {
		return err
	}
	node := extentNode(b)
	count, depth := root.count(), root.depth()
	node.init(in.e.fs.sb.extentRoom(), depth)
	copy(node[extentBytes:], root[extentBytes:][:count*extentBytes])
	node.setCount(count)
	in.sealNode(block, node)
	first := node.first(0)
	root.init(extentRootRoom, depth+1)
	root.setCount(1)
	root.setIndex(0, first, block)
	in.seal()
	return nil
}

// splitAt makes a block of the file the first of an extent.
func (in *editedInode) splitAt(block uint64) error {
	path, err := in.find(block)
	if err != nil {
		return err
	}
	leaf := path[len(path)-1]
	if leaf.at < 0 {
		return nil
	}
	r := leaf.node.run(leaf.at)
	if !r.has(block) || r.logical == block {
		return nil
	}
	rest := run{logical: block, blocks: r.end() - block, phys: r.phys + block - r.logical, state: r.state}
	r.blocks = block - r.logical
	leaf.node.setRun(leaf.at, r)
	in.sealNode(leaf.block, leaf.node)
	return in.insertRun(rest, false)
}

// replaceRun makes blocks of the file that lie in one extent an extent of its own, with other
// blocks or another state.
func (in *editedInode) replaceRun(r run) error {
	if err := in.splitAt(r.logical); err != nil {
		return err
	}
	if err := in.splitAt(r.end()); err != nil {
		return err
	}
	path, err := in.find(r.logical)
	if err != nil {
		return err
	}
	leaf := path[len(path)-1]
	if leaf.at < 0 || leaf.node.first(leaf.at) != r.logical {
		return corrupt("inode %d: the file's block %d is in no extent", in.ino, r.logical)
	}
	r.blocks = leaf.node.run(leaf.at).blocks
	leaf.node.setRun(leaf.at, r)
	in.sealNode(leaf.block, leaf.node)
	return nil
}

// mergeBefore joins the extents that begin before a block of the file with what follows them.
func (in *editedInode) mergeBefore(end uint64) error {
	end = min(end, maxLogical)
	for block := uint64(0); block < end; {
		path, err := in.find(block)
		if err != nil {
			return err
		}
		leaf := path[len(path)-1]
		for i := 0; i < leaf.node.count() && (i == 0 || leaf.node.first(i) < end); i++ {
			leaf.node.mergeRight(i)
		}
		in.sealNode(leaf.block, leaf.node)
		block = in.nextLeaf(path)
		if err := in.mergeUp(); err != nil {
			return err
		}
	}
	return nil
}

// releaseNode frees the block of a node.
func (in *editedInode) releaseNode(block uint64) error {
	if _, known := in.e.kinds[block]; known {
		in.e.kinds[block] = kindFree
	}
	return in.release(block, 1)
}

// clusterSectors is the size of the clusters that blocks lie in, in units of 512 bytes.
func (s *super) clusterSectors(block, blocks uint64) int64 {
	clusters := (block+blocks-1)>>s.clusterBits - block>>s.clusterBits + 1
	return int64(clusters << (s.clusterBits + s.blockBits - 9))
}

// release frees blocks that a file held, with all of their clusters.
func (in *editedInode) release(block, blocks uint64) error {
	if in.e.counted {
		in.addSectors(-in.e.fs.sb.clusterSectors(block, blocks))
	}
	return in.e.mark(block, blocks, false)
}

// walkExtents calls run with each extent and node with each node that lies in a block, as
// long as they return no error.
func (in *editedInode) walkExtents(each func(r run) error, node func(block uint64) error) error {
	root, err := in.extentRoot()
	if err != nil {
		return err
	}
	return in.walkNode(root, 0, maxLogical, each, node)
}

func (in *editedInode) walkNode(n extentNode, lo, hi uint64, each func(r run) error, node func(block uint64) error) error {
	depth := n.depth()
	for i := range n.count() {
		if depth == 0 {
			if err := each(n.run(i)); err != nil {
				return err
			}
			continue
		}
		lo, end := n.first(i), hi
		if i+1 < n.count() {
			end = n.first(i + 1)
		}
		child, err := in.node(n.child(i), depth-1, lo, end, false)
		if err != nil {
			return err
		}
		if err := node(n.child(i)); err != nil {
			return err
		}
		if err := in.walkNode(child, lo, end, each, node); err != nil {
			return err
		}
	}
	return nil
}

// removeRange frees the file's blocks from first to end, and the nodes that become
// empty.
func (in *editedInode) removeRange(first, end uint64) error {
	root, err := in.extentRoot()
	if err != nil {
		return err
	}
	if end < maxLogical {
		if err := in.splitAt(end); err != nil {
			return err
		}
	}
	if err := in.removeIn(root, 0, maxLogical, first, end); err != nil {
		return err
	}
	if root.count() == 0 {
		root.setDepth(0)
		binary.LittleEndian.PutUint16(root[4:], extentRootRoom)
	}
	in.seal()
	return nil
}

// removeIn is removeRange of what is below a node, which is sealed by the caller.
func (in *editedInode) removeIn(n extentNode, lo, hi, first, end uint64) error {
	depth := n.depth()
	for i := n.count() - 1; i >= 0; i-- {
		if depth == 0 {
			r := n.run(i)
			from, to := max(r.logical, first), min(r.end(), end)
			if from >= to {
				continue
			}
			if err := in.releaseRun(r, from, to); err != nil {
				return err
			}
			if r.blocks = from - r.logical; r.blocks == 0 {
				n.remove(i)
			} else {
				n.setRun(i, r)
			}
			continue
		}
		from, to := n.first(i), hi
		if i+1 < n.count() {
			to = n.first(i + 1)
		}
		if from >= end || to <= first {
			continue
		}
		block := n.child(i)
		child, err := in.node(block, depth-1, from, to, true)
		if err != nil {
			return err
		}
		if err := in.removeIn(child, from, to, first, end); err != nil {
			return err
		}
		in.sealNode(block, child)
		if child.count() == 0 {
			n.remove(i)
			if err := in.releaseNode(block); err != nil {
				return err
			}
		} else if child.first(0) > from {
			n.setFirst(i, child.first(0))
		}
	}
	return nil
}

// releaseRun frees a part of an extent, up to its end. Of the cluster that the rest of
// the extent, or what lies before it, may be in, nothing is freed: with clusters of several blocks, this is
// for the end of a file only.
func (in *editedInode) releaseRun(r run, from, to uint64) error {
	cluster := uint64(1)<<in.e.fs.sb.clusterBits - 1
	phys := r.phys + from - r.logical
	blocks := to - from
	if in.e.counted && cluster != 0 {
		return in.releaseClusters(from, phys, blocks)
	}
	return in.release(phys, blocks)
}

// releaseClusters frees the clusters that begin with or after a block of the file.
func (in *editedInode) releaseClusters(logical, phys, blocks uint64) error {
	size := uint64(1) << in.e.fs.sb.clusterBits
	skip := (size - logical&(size-1)) & (size - 1)
	if skip != 0 {
		held, err := in.lookup(logical&^(size-1), logical&(size-1))
		if err != nil {
			return err
		}
		if held.state == runHole && held.blocks == logical&(size-1) {
			skip = 0
		}
	}
	if skip >= blocks {
		return nil
	}
	phys, blocks = phys+skip, blocks-skip
	return in.release(phys, blocks)
}

package ext4

import "encoding/binary"

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

package ext4

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

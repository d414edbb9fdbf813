package ext4

// The changes of an extent tree are the kernel's, node by node: how many nodes a tree
// has is seen in st_blocks.

// extentLevel is a node on the way from an inode to an extent.
type extentLevel struct {
	block uint64     // 0: the root, in the inode
	node  extentNode // to be changed
	at    int        // the entry taken; -1 in a leaf without entries
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

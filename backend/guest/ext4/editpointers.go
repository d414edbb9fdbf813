package ext4

import (
	"encoding/binary"
	"fmt"
)

// physical is the block that a file's block is; 0 if there is none.
func (in *editedInode) physical(block uint64) (uint64, error) {
	if in.hasExtents() {
		r, err := in.lookup(block, 1)
		if err != nil || r.state == runHole {
			return 0, err
		}
		return r.phys, nil
	}
	list, rest, levels, ok := in.e.fs.sb.pointerPath(in.root(), block)
	if !ok {
		return 0, corrupt("inode %d has no block %d", in.ino, block)
	}
	for ; ; levels-- {
		p := uint64(binary.LittleEndian.Uint32(list[4*(rest>>(levels*(in.e.fs.sb.blockBits-2))):]))
		if p == 0 {
			return 0, nil
		}
		if !in.e.fs.sb.validRun(p, 1) {
			return 0, corrupt("inode %d: block %d of %d, for the file's block %d", in.ino, p, in.e.fs.sb.blocks, block)
		}
		if levels == 0 {
			return p, nil
		}
		if err := in.e.step(); err != nil {
			return 0, err
		}
		b, err := in.e.view(p)
		if err != nil {
			return 0, fmt.Errorf("inode %d: indirect %w", in.ino, err)
		}
		list = b
		rest &= 1<<(levels*(in.e.fs.sb.blockBits-2)) - 1
	}
}

// truncatePointers frees the file's blocks from first on, and the blocks of pointers that
// are empty then.
func (in *editedInode) truncatePointers(first uint64) error {
	root := in.root()
	for i := min(first, directBlocks); i < directBlocks; i++ {
		if err := in.freePointer(root[4*i:], 0); err != nil {
			return err
		}
	}
	begin := uint64(directBlocks)
	for level := uint(1); level <= indirectLevels; level++ {
		span := uint64(1) << (level * (in.e.fs.sb.blockBits - 2))
		p := root[4*(directBlocks+level-1):][:4]
		var err error
		switch {
		case first <= begin:
			err = in.freePointer(p, level)
		case first < begin+span:
			err = in.cutPointers(p, level, first-begin)
		}
		if err != nil {
			return err
		}
		begin += span
	}
	in.seal()
	return nil
}

// pointerBlock returns a block of pointers.
func (in *editedInode) pointerBlock(block uint64, change bool) ([]byte, error) {
	if err := in.e.work(in.e.fs.sb.blockBytes()); err != nil {
		return nil, err
	}
	if !in.e.fs.sb.validRun(block, 1) {
		return nil, corrupt("inode %d: indirect block %d of %d", in.ino, block, in.e.fs.sb.blocks)
	}
	var b []byte
	var err error
	if change {
		b, err = in.e.edit(block, kindPointers)
	} else {
		b, err = in.e.view(block)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: indirect %w", in.ino, err)
	}
	return b, nil
}

// freePointer frees what a pointer leads to, of which so many levels are blocks of
// pointers, and clears it.
func (in *editedInode) freePointer(p []byte, level uint) error {
	block := uint64(binary.LittleEndian.Uint32(p))
	if block == 0 {
		return nil
	}
	if err := in.freeTree(block, level); err != nil {
		return err
	}
	clear(p[:4])
	return nil
}

func (in *editedInode) freeTree(block uint64, level uint) error {
	if level > 0 {
		b, err := in.pointerBlock(block, false)
		if err != nil {
			return err
		}
		le := binary.LittleEndian
		for i := 0; i < len(b); i += 4 {
			below := uint64(le.Uint32(b[i:]))
			if below == 0 {
				continue
			}
			if level > 1 {
				if err := in.freeTree(below, level-1); err != nil {
					return err
				}
				continue
			}
			// A run at once.
			n := uint64(1)
			for i+4 < len(b) && uint64(le.Uint32(b[i+4:])) == below+n {
				n, i = n+1, i+4
			}
			if err := in.release(below, n); err != nil {
				return err
			}
		}
	}
	return in.release(block, 1)
}

// cutPointers frees what a pointer leads to from the first-th block on, and all of it if
// nothing is left then.
func (in *editedInode) cutPointers(p []byte, level uint, first uint64) error {
	le := binary.LittleEndian
	block := uint64(le.Uint32(p))
	if block == 0 {
		return nil
	}
	b, err := in.pointerBlock(block, true)
	if err != nil {
		return err
	}
	bits := (level - 1) * (in.e.fs.sb.blockBits - 2)
	i, rest := first>>bits, first&(1<<bits-1)
	if rest != 0 {
		if err := in.cutPointers(b[4*i:], level-1, rest); err != nil {
			return err
		}
		i++
	}
	for ; i < uint64(len(b)/4); i++ {
		if err := in.freePointer(b[4*i:], level-1); err != nil {
			return err
		}
	}
	for _, v := range b {
		if v != 0 {
			return nil
		}
	}
	clear(p[:4])
	in.e.kinds[block] = kindFree
	return in.release(block, 1)
}

package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"domfs/backend"
)

// editableDir refuses what is no directory, and one whose names cannot be told.
func (in *editedInode) editableDir() error {
	switch {
	case in.typ() != backend.TypeDir:
		return corrupt("inode %d is no directory", in.ino)
	case in.flags()&inodeEncrypt != 0:
		return unsupported("inode %d is an encrypted directory, to which fast commits are not replayed", in.ino)
	}
	return nil
}

func (in *editedInode) indexed() bool {
	return in.e.fs.sb.compat&compatDirIndex != 0 && in.flags()&inodeIndex != 0
}

// want is what a name stands for in a directory.
func (in *editedInode) want(name string) *wanted {
	if in.e.fs.sb.folds(in.flags()) {
		return folded(name)
	}
	return exactly(name)
}

// dirBlock returns a block of a directory, to be changed: nil where there is a hole.
// index is for one of an htree's own.
func (in *editedInode) dirBlock(block uint64, index bool) ([]byte, error) {
	e := in.e
	if err := e.work(e.fs.sb.blockBytes()); err != nil {
		return nil, err
	}
	if block >= in.size()>>e.fs.sb.blockBits {
		return nil, corrupt("inode %d: the directory has no block %d", in.ino, block)
	}
	phys, err := in.physical(block)
	if err != nil || phys == 0 {
		return nil, err
	}
	known := e.kinds[phys] == kindDirectory
	b, err := e.edit(phys, kindDirectory)
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory %w", in.ino, err)
	}
	if known || e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return b, nil
	}
	parsed := &inode{ino: in.ino, seed: in.generationSeed()}
	if index {
		err = e.fs.checkIndex(parsed, b)
	} else {
		err = e.fs.checkLeaf(parsed, b)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory block %d (the directory's block %d): %w", in.ino, phys, block, err)
	}
	return b, nil
}

// lookupName finds a name; ok is false if there is none.
func (in *editedInode) lookupName(name string) (place dirPlace, ok bool, err error) {
	w := in.want(name)
	if lists, inline, err := in.inlineLists(); err != nil {
		return dirPlace{}, false, err
	} else if inline {
		for _, l := range lists {
			if place, ok, err = in.lookupIn(l, w); err != nil || ok {
				break
			}
		}
		return place, ok, err
	}
	if in.indexed() && name != "." && name != ".." {
		place, ok, err = in.lookupHashed(w)
		if !errors.Is(err, errOddIndex) {
			return place, ok, err
		}
	}
	for block := range in.size() >> in.e.fs.sb.blockBits {
		b, err := in.dirBlock(block, in.indexed() && block == 0)
		if err != nil {
			return dirPlace{}, false, err
		}
		if b == nil {
			continue
		}
		if place, ok, err = in.lookupIn(in.leafList(b), w); err != nil || ok {
			return place, ok, err
		}
	}
	return dirPlace{}, false, nil
}

// appendBlock makes a directory a block longer, of zeros.
func (in *editedInode) appendBlock() (uint64, []byte, error) {
	e := in.e
	block := in.size() >> e.fs.sb.blockBits
	if block >= 1<<31 {
		return 0, nil, corrupt("inode %d: the directory has %d blocks", in.ino, block)
	}
	if phys, err := in.physical(block); err != nil {
		return 0, nil, err
	} else if phys != 0 {
		return 0, nil, corrupt("inode %d: the directory's block %d, after its end, is there already", in.ino, block)
	}
	phys, err := in.nextBlock(block)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case in.hasExtents():
		err = in.insertRun(run{logical: block, blocks: 1, phys: phys, state: runWritten}, true)
	case block < directBlocks:
		binary.LittleEndian.PutUint32(in.root()[4*block:], uint32(phys))
	default:
		err = unsupported("inode %d: a directory with indirect blocks, which fast commits are not replayed to, has to grow", in.ino)
	}
	if err != nil {
		return 0, nil, err
	}
	b, err := e.fresh(phys, kindDirectory)
	if err != nil {
		return 0, nil, err
	}
	in.setSize((block + 1) << e.fs.sb.blockBits)
	in.seal()
	return block, b, nil
}

// nextBlock takes the block for a directory's next one: in the cluster that it has already, if
// that is not full.
func (in *editedInode) nextBlock(block uint64) (uint64, error) {
	within := block & (1<<in.e.fs.sb.clusterBits - 1)
	if within != 0 {
		if before, err := in.physical(block - 1); err != nil || before != 0 {
			return before + 1, err
		}
	}
	goal := in.groupGoal()
	if in.hasExtents() {
		path, err := in.find(block)
		if err != nil {
			return 0, err
		}
		goal = in.goal(path, block)
	}
	phys, err := in.e.newBlock(goal - within)
	return phys + within, err
}

// addName adds an entry as the kernel does.
func (in *editedInode) addName(n newName) error {
	if err := in.editableDir(); err != nil {
		return err
	}
	n.want = in.want(n.name)
	if done, err := in.addInline(n); done || err != nil {
		return err
	}
	if in.indexed() {
		err := in.addHashed(n)
		if !errors.Is(err, errOddIndex) {
			return err
		}
		if in.e.fs.sb.roCompat&roCompatMetadataChecksum != 0 {
			return corrupt("inode %d: the directory's index is not right", in.ino)
		}
		in.put32(inodeFlagsAt, in.flags()&^inodeIndex)
		in.seal()
		return in.addLinear(n, false)
	}
	return in.addLinear(n, in.e.fs.sb.compat&compatDirIndex != 0)
}

// addLinear adds an entry to a directory that is not indexed. With index, one of a
// single block that is full becomes so.
func (in *editedInode) addLinear(n newName, index bool) error {
	blocks := in.size() >> in.e.fs.sb.blockBits
	for block := range blocks {
		b, err := in.dirBlock(block, false)
		if err != nil {
			return err
		}
		if b == nil {
			return unsupported("inode %d: the directory's block %d is a hole, to which fast commits are not replayed", in.ino, block)
		}
		if done, err := in.addTo(in.leafList(b), n); done || err != nil {
			return err
		}
		if blocks == 1 && index {
			return in.makeIndex(b, n)
		}
	}
	_, b, err := in.appendBlock()
	if err != nil {
		return err
	}
	in.emptyLeaf(b)
	return in.addSurely(b, n)
}

// initDir makes a new directory empty: its first block, or what is in the inode.
func (in *editedInode) initDir(parent uint32) error {
	if err := in.editableDir(); err != nil {
		return err
	}
	if done, err := in.initInlineDir(parent); done || err != nil {
		return err
	}
	size := in.size()
	in.setSize(0)
	_, b, err := in.appendBlock()
	if err != nil {
		in.setSize(size)
		in.seal()
		return err
	}
	in.stretch(b, in.putDots(b, parent))
	in.sealLeaf(b)
	in.setLinks(2)
	in.seal()
	return nil
}

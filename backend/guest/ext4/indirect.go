package ext4

import (
	"encoding/binary"
	"fmt"
)

// The map of ext2 and ext3: twelve direct blocks, then one block each of pointers, of
// pointers to such blocks, and once more.
const (
	directBlocks   = 12
	indirectLevels = 3
)

// pointerPath is where the way to a file's block begins in the map of ext2 and ext3: a
// list of pointers in the inode, the block relative to the first that the list maps, and how many levels of
// blocks of pointers follow.
func (s *super) pointerPath(root []byte, block uint64) (list []byte, rest uint64, levels uint, ok bool) {
	if block < directBlocks {
		return root[:4*directBlocks], block, 0, true
	}
	rest = block - directBlocks
	for levels = 1; levels <= indirectLevels; levels++ {
		span := uint64(1) << (levels * (s.blockBits - 2))
		if rest < span {
			return root[4*(directBlocks+levels-1):][:4], rest, levels, true
		}
		rest -= span
	}
	return nil, 0, 0, false
}

func (fs *FS) mapIndirect(in *inode, block uint64) (run, error) {
	list, rest, levels, ok := fs.sb.pointerPath(in.block[:], block)
	switch {
	case !ok:
		return run{logical: block, blocks: maxLogical - block}, nil
	case levels == 0:
		return fs.pointerRun(in, list, block, int(rest))
	}
	return fs.mapIndirectLevel(in, uint64(binary.LittleEndian.Uint32(list)), levels, block, rest)
}

// mapIndirectLevel goes down from the block of pointers at node. rest is the file's
// block relative to the first one that node maps.
func (fs *FS) mapIndirectLevel(in *inode, node uint64, level uint, block, rest uint64) (run, error) {
	perBlockBits := fs.sb.blockBits - 2
	for ; ; level-- {
		span := uint64(1) << (level * perBlockBits) // of node
		if node == 0 {
			return run{logical: block, blocks: span - rest}, nil
		}
		if !fs.sb.validRun(node, 1) {
			return run{}, corrupt("inode %d: indirect block %d of %d, for the file's block %d", in.ino, node, fs.sb.blocks, block)
		}
		b, err := fs.blocks(node, 1)
		if err != nil {
			return run{}, fmt.Errorf("inode %d: indirect %w", in.ino, err)
		}
		if level == 1 {
			return fs.pointerRun(in, b.data, block, int(rest))
		}
		below := span >> perBlockBits
		node = uint64(binary.LittleEndian.Uint32(b.data[4*(rest/below):]))
		rest %= below
	}
}

// pointerRun is the run that begins with the i-th pointer of a list, which is that of
// the file's block.
func (fs *FS) pointerRun(in *inode, list []byte, block uint64, i int) (run, error) {
	le := binary.LittleEndian
	count := len(list) / 4
	r := run{logical: block, blocks: 1, phys: uint64(le.Uint32(list[4*i:])), state: runWritten}
	if r.phys == 0 {
		r.state = runHole
	}
	for j := i + 1; j < count; j++ {
		p := uint64(le.Uint32(list[4*j:]))
		if r.state == runHole && p != 0 || r.state == runWritten && p != r.phys+r.blocks {
			break
		}
		r.blocks++
	}
	if r.state == runWritten && !fs.sb.validRun(r.phys, r.blocks) {
		return run{}, corrupt("inode %d: the file's block %d is block %d+%d of %d", in.ino, block, r.phys, r.blocks, fs.sb.blocks)
	}
	return r, nil
}

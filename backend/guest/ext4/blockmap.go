package ext4

import "math"

// runState is what a run of a file's blocks holds.
type runState uint8

const (
	runHole      runState = iota // no blocks: zeros
	runUnwritten                 // blocks that were never written: zeros
	runWritten
)

// maxLogical is the number of blocks that a file can have.
const maxLogical = 1 << 32

// run is a run of a file's blocks that lie together.
type run struct {
	logical uint64 // the file's first block
	blocks  uint64 // at least 1
	phys    uint64 // the filesystem's first block, if it is not a hole
	state   runState
}

func (r run) end() uint64 { return r.logical + r.blocks }

// has tells whether the file's block is in the run.
func (r run) has(block uint64) bool { return block >= r.logical && block < r.end() }

// mapRun returns the run that a file's block is in, or the part of it from that block on.
func (fs *FS) mapRun(in *inode, block uint64) (run, error) {
	switch {
	case block >= maxLogical, in.inline:
		return run{logical: block, blocks: math.MaxInt64}, nil
	case in.flags&inodeExtents != 0:
		return fs.mapExtent(in, block)
	}
	return fs.mapIndirect(in, block)
}

package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"domfs/backend"
)

const (
	// maxEditedBytes bounds what recovery changes in memory, with what it keeps to take changes back. A block bitmap of 4 KiB is for
	// 128 MiB, so that this is for deleted files of 2 TiB.
	maxEditedBytes = 64 << 20

	// maxEditSteps bounds the nodes of trees, the blocks of directories and the bitmaps that
	// recovery looks at, by their KiB: a journal that the kernel wrote takes some dozens per tag.
	maxEditSteps = 1 << 22

	// maxExcludedRuns bounds the runs of blocks that fast commits say are in use: 16 bytes each.
	maxExcludedRuns = 1 << 20
)

// errTooMuch ends a recovery that goes beyond its bounds.
var errTooMuch = errors.New("recovery takes more memory or time than is given to it")

// errNoRoom is for a change that the filesystem has no block for.
var errNoRoom = errors.New("the filesystem is full")

// editor changes blocks in memory while a filesystem is opened, as the kernel changes
// them on the device after the journal was replayed. What it changed is in the overlay, and is
// read by view alone until finish.
type editor struct {
	fs      *FS
	now     time.Time // what times are set to
	steps   int
	groups  map[uint64]*editedGroup
	kinds   map[uint64]blockKind
	undo    map[uint64][]byte // what overlay.edited had of the blocks in kinds, to go back to
	exclude blockSet          // what no new block may lie in; see newBlock
	full    bool              // no block is free that may be taken
	counted bool              // freeing a block changes the file's i_blocks
	warned  bool              // of an orphan that is none
	cleaned int               // orphans
}

func newEditor(fs *FS) *editor {
	if fs.over.edited == nil {
		fs.over.edited = map[uint64][]byte{}
	}
	return &editor{fs: fs, now: fs.recoveryTime(), groups: map[uint64]*editedGroup{}, kinds: map[uint64]blockKind{}, undo: map[uint64][]byte{}}
}

// finish makes the changes those of the filesystem.
func (e *editor) finish() {
	for n, g := range e.groups {
		e.sealGroup(n, g)
	}
	e.fs.over.seal()
	e.fs.cache.clear()
}

// discard takes all changes back.
func (e *editor) discard() {
	for block := range e.kinds {
		if b := e.undo[block]; b != nil {
			e.fs.over.edited[block] = b
		} else {
			delete(e.fs.over.edited, block)
		}
	}
	e.fs.over.seal()
	e.fs.cache.clear()
}

// step counts a piece of work.
func (e *editor) step() error { return e.work(0) }

// work counts a look at so many bytes.
func (e *editor) work(bytes int) error {
	if e.steps += 1 + bytes/1024; e.steps > maxEditSteps {
		return fmt.Errorf("%w: more than %d steps", errTooMuch, maxEditSteps)
	}
	return e.fs.openInterrupted()
}

// view returns a block as it is now, not to be changed.
func (e *editor) view(block uint64) ([]byte, error) {
	if b := e.fs.over.edited[block]; b != nil {
		return b, nil
	}
	b, err := e.fs.blocks(block, 1)
	if err != nil {
		return nil, err
	}
	return b.data, nil
}

// blockKind is what an edited block is. None is two things: what is changed as a bitmap does
// not change as a directory.
type blockKind uint8

const (
	kindFree blockKind = iota
	kindSuper
	kindDescriptors
	kindBitmap
	kindInodes
	kindExtents
	kindPointers
	kindDirectory
	kindAttributes
	kindOrphans
	kindContent
)

var blockKindNames = [...]string{"a free block", "the superblock", "group descriptors", "a bitmap", "inodes", "extents", "indirect pointers",
	"a directory's", "attributes", "the orphan file's", "a file's"}

func (e *editor) claim(block uint64, kind blockKind) error {
	if old := e.kinds[block]; old != kindFree && old != kind {
		return corrupt("block %d is %s, and also %s", block, blockKindNames[old], blockKindNames[kind])
	}
	if _, known := e.kinds[block]; !known {
		if len(e.fs.over.edited)+len(e.undo) >= maxEditedBytes>>e.fs.sb.blockBits {
			return fmt.Errorf("%w: more than %d MiB of blocks change", errTooMuch, maxEditedBytes>>20)
		}
		if err := e.fs.reserveEdited(); err != nil {
			return err
		}
		if b := e.fs.over.edited[block]; b != nil {
			e.undo[block] = bytes.Clone(b)
		}
	}
	e.kinds[block] = kind
	return nil
}

// edit returns a block to be changed. The slice stays the block's until the end.
func (e *editor) edit(block uint64, kind blockKind) ([]byte, error) {
	if err := e.claim(block, kind); err != nil {
		return nil, err
	}
	if b := e.fs.over.edited[block]; b != nil {
		return b, nil
	}
	b, err := e.view(block)
	if err != nil {
		return nil, err
	}
	b = append([]byte(nil), b...)
	e.fs.over.edited[block] = b
	return b, nil
}

// fresh returns a block of zeros to be changed.
func (e *editor) fresh(block uint64, kind blockKind) ([]byte, error) {
	if err := e.claim(block, kind); err != nil {
		return nil, err
	}
	b := make([]byte, e.fs.sb.blockBytes())
	e.fs.over.edited[block] = b
	return b, nil
}

// super changes the superblock, and sets its checksum.
func (e *editor) super(change func(b []byte)) error {
	block, err := e.edit(e.fs.sb.superBlock(), kindSuper)
	if err != nil {
		return err
	}
	b := block[superOffset-e.fs.sb.superBlock()<<e.fs.sb.blockBits:][:superBytes]
	change(b)
	if e.fs.sb.roCompat&roCompatMetadataChecksum != 0 {
		binary.LittleEndian.PutUint32(b[0x3fc:], crc32c(^uint32(0), b[:0x3fc]))
	}
	return nil
}

// superView is the superblock as it is now.
func (e *editor) superView() ([]byte, error) {
	block, err := e.view(e.fs.sb.superBlock())
	if err != nil {
		return nil, err
	}
	return block[superOffset-e.fs.sb.superBlock()<<e.fs.sb.blockBits:][:superBytes], nil
}

// unsupported is for what recovery meets and does not know.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), backend.ErrUnsupported)
}

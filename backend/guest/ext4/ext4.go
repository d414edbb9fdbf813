package ext4

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"domfs/backend"
)

// Driver opens the filesystems of the ext family.
type Driver struct{}

var (
	_ backend.Filesystem          = Driver{}
	_ backend.FS                  = (*FS)(nil)
	_ backend.InterruptibleOpener = Driver{}
	_ backend.File                = (*file)(nil)
	_ backend.Locator             = (*file)(nil)
	_ backend.Sparse              = (*file)(nil)
)

// New returns the driver.
func New() Driver { return Driver{} }

// Types are blkid's names of what the driver opens.
func (Driver) Types() []string { return []string{"ext2", "ext3", "ext4"} }

// FS is one open filesystem.
type FS struct {
	dev      backend.Device
	sb       *super
	cache    *cache
	over     overlay
	runs     seenRuns
	warnings []string
	opening  <-chan struct{} // closed when Open is to end early; nil after it
	closed   atomic.Bool

	lastWrite   time.Time         // the latest that the journal tells of
	fastCommits [fcKinds]int      // tags that were replayed, by their kind
	fcDeleted   map[uint32]uint32 // inodes that they deleted, and the next orphan that each had; until orphans are cleaned up

	statMu sync.Mutex
	stat   *backend.FSStat // guarded by statMu; nil until it was computed
}

// Open reads the superblock, or a copy of it where the first one is damaged:
// ErrUnsupported names the features that are not read, ErrCorrupt is for a superblock that is wrong and has
// no copy. A filesystem that was in use is recovered, in memory.
// ErrBusy says that the filesystems that are open take all of the memory that recovery has.
func (dr Driver) Open(d backend.Device) (backend.FS, error) { return dr.OpenUntil(nil, d) }

// OpenUntil implements backend.InterruptibleOpener.
func (Driver) OpenUntil(done <-chan struct{}, d backend.Device) (backend.FS, error) {
	sb, damage, err := readSuper(d)
	if err != nil {
		return nil, err
	}
	fs := &FS{dev: d, sb: sb, cache: newCache(cacheBytes), opening: done}
	if err := fs.open(damage); err != nil {
		fs.Close()
		return nil, err
	}
	fs.opening = nil
	return fs, nil
}

// open is the rest of Open; damage is what is wrong with the superblock.
func (fs *FS) open(damage string) error {
	d, sb := fs.dev, fs.sb
	if damage != "" {
		fs.warn("%s", damage)
	}
	if sb.incompat&incompatRecover != 0 {
		if err := fs.recoverJournal(); err != nil {
			return err
		}
		sb = fs.sb
	} else if err := fs.cleanOrphans(); err != nil {
		return err
	} else if sb.state&stateClean == 0 {
		fs.warn("the filesystem was not unmounted cleanly and has no journal to replay: it may be inconsistent until the guest runs e2fsck")
	}
	if sb.state&stateErrors != 0 {
		fs.warn("the guest's kernel found errors in the filesystem: the guest should run e2fsck")
	}
	if size, need := d.Size(), int64(sb.blocks)<<sb.blockBits; size < need {
		fs.warn("the filesystem has %d bytes but its device only %d: what lies past the end cannot be read", need, size)
	}
	if err := fs.checkRoot(); err != nil {
		return err
	}
	if w := fs.groupWarning(); w != "" {
		fs.warn("%s", w)
	}
	return nil
}

// checkRoot refuses a filesystem whose root is no directory, as the kernel does. What else
// is wrong shows when the root is read.
func (fs *FS) checkRoot() error {
	var in inode
	err := fs.readInode(rootIno, &in)
	switch {
	case errors.Is(err, backend.ErrStale):
		return corrupt("ext4: inode %d, the root directory, is not in use", rootIno)
	case err == nil && in.fileType() != backend.TypeDir:
		return corrupt("ext4: inode %d is no directory, and should be the root", rootIno)
	}
	return nil
}

// Root is the inode number of the root directory.
func (fs *FS) Root() uint64 { return rootIno }

// Warnings are about a damaged superblock or group descriptors, a journal that was not
// replayed, errors that the guest has found, and a device that is too short.
func (fs *FS) Warnings() []string { return append([]string(nil), fs.warnings...) }

// openInterrupted fails when an Open under way is to end.
func (fs *FS) openInterrupted() error {
	select {
	case <-fs.opening:
		return fmt.Errorf("opening the filesystem: %w", context.Canceled)
	default:
		return nil
	}
}

// Close drops the cache and what was recovered. No call may be under way, nor follow but Close.
func (fs *FS) Close() error {
	fs.closed.Store(true)
	fs.dropOverlay()
	fs.cache.clear()
	return nil
}

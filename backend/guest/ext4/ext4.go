package ext4

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"domfs/backend"
)

// Driver opens the filesystems of the ext family.
type Driver struct{}

var (
	_ backend.Filesystem = Driver{}
	_ backend.FS         = (*FS)(nil)
	_ backend.File       = (*file)(nil)
	_ backend.Locator    = (*file)(nil)
	_ backend.Sparse     = (*file)(nil)
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

	statMu sync.Mutex
	stat   *backend.FSStat // guarded by statMu; nil until it was computed
}

// Open reads the superblock: ErrUnsupported names the features that are not read,
// ErrCorrupt is for a superblock that is wrong.
func (Driver) Open(d backend.Device) (backend.FS, error) {
	b := make([]byte, superBytes)
	if n, err := d.ReadAt(b, superOffset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, corrupt("ext4: a device of %d bytes has no superblock", d.Size())
		}
		return nil, fmt.Errorf("ext4: superblock: %w", err)
	}
	sb, err := parseSuper(b)
	if err != nil {
		return nil, err
	}
	fs := &FS{dev: d, sb: sb, cache: newCache(cacheBytes)}
	if sb.incompat&incompatRecover != 0 {
		fs.warnings = append(fs.warnings, "the journal was not replayed: the filesystem was in use, and changes that are only in its "+
			"journal so far are not seen; files may be missing, old or half-changed")
	} else if sb.state&stateClean == 0 {
		fs.warnings = append(fs.warnings, "the filesystem was not unmounted cleanly and has no journal to replay: it may be inconsistent until the guest runs e2fsck")
	}
	if sb.state&stateErrors != 0 {
		fs.warnings = append(fs.warnings, "the guest's kernel found errors in the filesystem: the guest should run e2fsck")
	}
	if size, need := d.Size(), int64(sb.blocks)<<sb.blockBits; size < need {
		fs.warnings = append(fs.warnings, fmt.Sprintf("the filesystem has %d bytes but its device only %d: what lies past the end cannot be read", need, size))
	}
	return fs, nil
}

// Root is the inode number of the root directory.
func (fs *FS) Root() uint64 { return rootIno }

// Warnings are about a journal that was not replayed, errors that the guest has found,
// and a device that is too short.
func (fs *FS) Warnings() []string { return append([]string(nil), fs.warnings...) }

// Close drops the cache.
func (fs *FS) Close() error {
	fs.cache.clear()
	return nil
}

package phy

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"domfs/backend"
	"domfs/backend/blockdev"
	"domfs/backend/proc"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	storeName  = "phy"
	driverName = "phy"
)

var _ backend.Store = (*Store)(nil)

// Store is the block devices of a host. It is safe for concurrent use.
type Store struct {
	formats []backend.Format
	sysfs   string
	procfs  string

	mu     sync.Mutex
	claims map[uint64]claim // by device number; guarded by mu

	images blockdev.Images
}

// New makes the store. Its devices are raw or hold an image in one of formats. It has nothing to
// log: what is wrong with a device is its volume's Err.
func New(formats []backend.Format, _ *zap.Logger) *Store {
	return &Store{formats: formats, sysfs: blockdev.Sysfs, procfs: proc.Root, claims: map[uint64]claim{}}
}

// Name is "phy".
func (s *Store) Name() string { return storeName }

// Pools lists none: nobody takes space from a device.
func (s *Store) Pools(context.Context) ([]backend.Pool, error) { return nil, nil }

// Volumes finds the block devices among disks, and everything else below /dev. Raw
// devices are not opened to learn their size.
func (s *Store) Volumes(ctx context.Context, disks []backend.Disk) ([]backend.Volume, error) {
	volumes := make([]backend.Volume, len(disks))
	var users blockdev.Users
	for i, d := range disks {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for block devices: %w", err)
		}
		v, rdev, ok := s.volume(d)
		if !ok {
			continue
		}
		if v.Err == nil || rdev != 0 {
			if users == nil {
				users = blockdev.ReadUsers(s.procfs)
			}
			v.Holder = s.holder(users, v.ID, rdev)
		}
		volumes[i] = v
	}
	return volumes, nil
}

// volume is the device behind one disk with its number; false if it is not this store's.
func (s *Store) volume(d backend.Disk) (v backend.Volume, rdev uint64, ok bool) {
	if d.Script != "" || d.BackendDomain != "" || !strings.HasPrefix(d.Source, "/") {
		return v, 0, false
	}
	path := filepath.Clean(d.Source)
	inDev := strings.HasPrefix(path, "/dev/")
	var st unix.Stat_t
	err := ignoringEINTR(func() error { return unix.Stat(path, &st) })
	isBlock := err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK
	isFile := err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG // an image in /dev/shm
	if !inDev && !isBlock || isFile {
		return v, 0, false
	}
	v = backend.Volume{Store: storeName, ID: path, Driver: driverName, Format: d.Format}
	if v.Format == "" {
		v.Format = backend.FormatRaw
	}
	switch {
	case err != nil:
		v.Err = failed("find", path, err)
		return v, 0, true
	case !isBlock:
		v.Err = backend.Because(backend.ErrInvalid, "%s is no block device: correct the domain's configuration", path)
		return v, 0, true
	}
	rdev = uint64(st.Rdev)
	if v.SizeBytes, err = blockdev.Size(s.sysfs, rdev); err != nil {
		v.Err = failed("find the size of", path, err)
	} else {
		v.Generation = blockdev.Generation(s.sysfs, rdev, v.SizeBytes)
	}
	format, err := backend.FindFormat(s.formats, v.Format)
	switch {
	case err != nil:
		v.Err = fmt.Errorf("%s: %w", path, err)
	case format != nil && v.Err == nil:
		v.SizeBytes, v.Err = s.images.SizeBytes(path, rdev, v.Generation, format, openOptions)
	}
	return v, rdev, true
}

// Open opens a device past the host's page cache.
func (s *Store) Open(_ context.Context, v backend.Volume) (backend.Device, error) {
	if v.Store != storeName {
		return nil, backend.Because(backend.ErrInvalid, "open %s: it belongs to the store %q", v.ID, v.Store)
	}
	format, err := backend.FindFormat(s.formats, v.Format)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.ID, err)
	}
	d, err := blockdev.Open(v.ID, openOptions)
	if err != nil {
		return nil, err
	}
	return blockdev.OpenImage(d, v.ID, format)
}

// openOptions are those of a device that guests write to.
var openOptions = blockdev.Options{Direct: true, Hints: hints}

// ignoringEINTR repeats a call that a signal interrupted.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

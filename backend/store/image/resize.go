package image

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"domfs/backend"
	"domfs/backend/fault"

	"golang.org/x/sys/unix"
)

// sectorBytes is what sizes are rounded up to: block devices, which guests see, have
// no half sectors.
const sectorBytes = 512

// RoundSize implements backend.Resizer: up to 512 bytes.
func (s *Store) RoundSize(_ backend.Volume, sizeBytes int64) int64 {
	const largest = math.MaxInt64 &^ (sectorBytes - 1)
	if sizeBytes > largest {
		return largest
	}
	return max(sizeBytes+sectorBytes-1, 0) &^ (sectorBytes - 1)
}

// Resize implements backend.Resizer. The new part is a hole and takes no space. An image
// that is being copied for a snapshot is ErrBusy.
func (s *Store) Resize(ctx context.Context, v backend.Volume, sizeBytes int64) (int64, error) {
	if v.Store != storeName {
		return 0, fmt.Errorf("resize %s: it belongs to the store %q: %w", v.ID, v.Store, backend.ErrInvalid)
	}
	if v.Format != formatRaw && v.Format != "" {
		return 0, fmt.Errorf("resize %s: only raw images can be resized, and this is %s: %w", v.ID, v.Format, backend.ErrUnsupported)
	}
	if _, ok := memberAt(v.ID); ok {
		return 0, fmt.Errorf("resize %s: a snapshot never changes: %w", v.ID, backend.ErrReadOnly)
	}
	if sizeBytes <= 0 {
		return 0, fmt.Errorf("resize %s to %d bytes: it must have some: %w", v.ID, sizeBytes, backend.ErrInvalid)
	}
	target := s.RoundSize(v, sizeBytes)
	f, st, err := openImage(v.ID)
	if errors.Is(err, errBlockDevice) {
		err = fmt.Errorf("resize %s: it became a block device: %w", v.ID, backend.ErrStale)
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if st.Size == sizeBytes || st.Size == target {
		return st.Size, nil
	}
	if target < st.Size {
		return 0, fmt.Errorf("resize %s to %d bytes: it has %d, and what lies beyond would be lost: %w", v.ID, target, st.Size, backend.ErrPermission)
	}
	s.mu.Lock()
	guarded := s.guarded[idOf(st)] > 0
	s.mu.Unlock()
	if guarded {
		return 0, fmt.Errorf("resize %s: it is being copied for a snapshot: wait until that is filled: %w", v.ID, backend.ErrBusy)
	}
	if err := growFile(v.ID, idOf(st), target); err != nil {
		return 0, err
	}
	return target, nil
}

// growFile makes the image at path, whose identity is id, size bytes long, durably.
func growFile(path string, id fileID, size int64) error {
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("resize %s: another process has a lease on it, perhaps to copy it: wait until it is done: %w", path, backend.ErrBusy)
	}
	if err != nil {
		return failed("resize", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	st, err := statFile(f, path)
	if err != nil {
		return err
	}
	if idOf(st) != id || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("resize %s: it was replaced meanwhile: try again: %w", path, backend.ErrStale)
	}
	if st.Size > size {
		return fmt.Errorf("resize %s to %d bytes: it just grew to %d, and what lies beyond would be lost: %w", path, size, st.Size, backend.ErrPermission)
	}
	fault.Point("image.resize.begin")
	err = control(f, func(fd int) error { return unix.Ftruncate(fd, size) })
	if errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("resize %s to %d bytes: a file on its filesystem can have %s: %w", path, size, largestFile(f), backend.ErrInvalid)
	}
	if err != nil {
		return failed("resize", path, err)
	}
	fault.Point("image.resize.truncated")
	if err := f.Sync(); err != nil {
		return failed("resize", path, err)
	}
	fault.Point("image.resize.durable")
	return nil
}

// largestFile says how large a file on f's filesystem can be. Block numbers in a file of
// ext4 have 32 bits.
func largestFile(f *os.File) string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && limit.Cur < math.MaxInt64 {
		return fmt.Sprintf("%d bytes at most, by this process's limit (ulimit -f)", limit.Cur)
	}
	var st unix.Statfs_t
	err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	if err == nil && st.Type == unix.EXT4_SUPER_MAGIC && st.Bsize > 0 {
		return fmt.Sprintf("%d bytes at most", product(math.MaxUint32, uint64(st.Bsize)))
	}
	return "fewer bytes"
}

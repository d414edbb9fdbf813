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
		return 0, backend.Because(backend.ErrInvalid, "resize %s: it belongs to the store %q", v.ID, v.Store)
	}
	format, err := backend.FindFormat(s.formats, v.Format)
	if err != nil {
		return 0, fmt.Errorf("resize %s: %w", v.ID, err)
	}
	if _, ok := memberAt(v.ID); ok {
		return 0, backend.Because(backend.ErrReadOnly, "resize %s: a snapshot never changes", v.ID)
	}
	if sizeBytes <= 0 {
		return 0, backend.Because(backend.ErrInvalid, "resize %s to %d bytes: it must have some", v.ID, sizeBytes)
	}
	target := s.RoundSize(v, sizeBytes)
	f, st, err := openImage(v.ID)
	if errors.Is(err, errBlockDevice) {
		err = backend.Because(backend.ErrStale, "resize %s: it became a block device", v.ID)
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if format != nil {
		return s.resizeFormat(ctx, v, f, st, format, sizeBytes)
	}
	if st.Size == sizeBytes || st.Size == target {
		return st.Size, nil
	}
	if target < st.Size {
		return 0, tooSmall(v.ID, target, st.Size)
	}
	if err := s.refuseGuarded(v.ID, idOf(st)); err != nil {
		return 0, err
	}
	if err := growFile(v.ID, idOf(st), target); err != nil {
		return 0, err
	}
	return target, nil
}

func tooSmall(path string, target, now int64) error {
	return backend.Because(backend.ErrPermission, "resize %s to %d bytes: it has %d, and what lies beyond would be lost", path, target, now)
}

// refuseGuarded refuses to change an image that this store copies.
func (s *Store) refuseGuarded(path string, id fileID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guarded[id] > 0 {
		return backend.Because(backend.ErrBusy, "resize %s: it is being copied for a snapshot: wait until that is filled", path)
	}
	return nil
}

// openToGrow opens the image at path, whose identity is id, for writing.
func openToGrow(path string, id fileID) (*os.File, error) {
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, backend.Because(backend.ErrBusy, "resize %s: another process has a lease on it, perhaps to copy it: wait until it is done", path)
	}
	if err != nil {
		return nil, failed("resize", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	st, err := statFile(f, path)
	if err == nil && (idOf(st) != id || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		err = backend.Because(backend.ErrStale, "resize %s: it was replaced meanwhile: try again", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// growFile makes the image at path, whose identity is id, size bytes long, durably.
func growFile(path string, id fileID, size int64) error {
	f, err := openToGrow(path, id)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := statFile(f, path)
	if err != nil {
		return err
	}
	if st.Size > size {
		return backend.Because(backend.ErrPermission, "resize %s to %d bytes: it just grew to %d, and what lies beyond would be lost", path, size, st.Size)
	}
	fault.Point("image.resize.begin")
	err = control(f, func(fd int) error { return unix.Ftruncate(fd, size) })
	if errors.Is(err, unix.EFBIG) {
		return backend.Because(backend.ErrNoSpace, "resize %s to %d bytes: a file on its filesystem can have %s", path, size, largestFile(f))
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

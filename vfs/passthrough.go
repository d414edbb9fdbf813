package vfs

import (
	"fmt"
	"sync"

	"domfs/backend"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// backing is the host file that the kernel reads for a node by itself (FUSE_PASSTHROUGH).
// The kernel wants one mode for all that have a node open at a time.
type backing struct {
	mu     sync.Mutex
	id     int32  // 0: the node is open without passthrough, or not at all
	dev    uint64 // identity of the file
	ino    uint64
	opened int // handles, of either mode
}

// passThrough lets the kernel read a whole image file by itself, where it can: Linux 6.9 or
// later, as root, a regular file behind the whole volume. It falls back silently.
func (f *fileSystem) passThrough(n *node, v *control.Volume, h *handle, out *fuse.OpenOut) (bool, error) {
	b := &n.backing
	b.mu.Lock()
	defer b.mu.Unlock()
	h.data.backing = n
	b.opened++
	if b.opened > 1 && b.id == 0 {
		return false, nil
	}
	loc, st, ok := wholeFile(v)
	if b.id != 0 {
		if !ok || st.Dev != b.dev || st.Ino != b.ino {
			return false, fmt.Errorf("disk %s is open elsewhere as the image that was there before: close that first: %w", n.at.vdev, backend.ErrBusy)
		}
	} else {
		if !ok || f.noPass.Load() {
			return false, nil
		}
		id, errno := f.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(loc.FD)})
		if errno != 0 {
			if errno == unix.EPERM || errno == unix.ENOTTY || errno == unix.EOPNOTSUPP {
				f.noPass.Store(true)
			}
			f.log.Debug("no passthrough: the kernel or our rights do not allow it", zap.Error(errno))
			return false, nil
		}
		b.id, b.dev, b.ino = id, st.Dev, st.Ino
	}
	out.BackingID = b.id
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
	return true, nil
}

func (f *fileSystem) releaseBacking(d *dataHandle) {
	if d.backing == nil {
		return
	}
	b := &d.backing.backing
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened--
	if b.opened == 0 && b.id != 0 {
		f.server.UnregisterBackingFd(b.id)
		b.id = 0
	}
}

// wholeFile finds the regular file with exactly a volume's bytes. For an image in a format there is none, though
// all that it has so far may lie in one file: in a raw one behind it.
func wholeFile(v *control.Volume) (backend.Location, unix.Stat_t, bool) {
	var st unix.Stat_t
	d := v.Device()
	l, ok := d.(backend.Locator)
	if !ok || !v.IsRaw() || v.CanOverflow() { // what the kernel reads by itself is asked of nobody again
		return backend.Location{}, st, false
	}
	loc, ok := l.Locate(0, d.Size())
	if !ok || loc.Offset != 0 || loc.Length != d.Size() {
		return loc, st, false
	}
	if err := unix.Fstat(int(loc.FD), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != d.Size() {
		return loc, st, false
	}
	return loc, st, true
}

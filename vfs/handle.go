package vfs

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"domfs/backend"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file or directory: exactly one of text, data, events, dir and guestDir.
type handle struct {
	mu     sync.Mutex // text and dir
	text   *textHandle
	data   *dataHandle
	events *eventStream
	dir    *dirHandle

	setID string // of the snapshot that it keeps from being removed; a guest's directory does not
	// node is what the kernel calls the node, of data and of a guest's directory.
	node     uint64
	guestDir bool // a guest's directory, of which only setID and node are known
}

func (f *fileSystem) addHandle(h *handle) uint64 {
	f.handleMu.Lock()
	defer f.handleMu.Unlock()
	id := f.nextHandle
	f.nextHandle++
	f.handles[id] = h
	return id
}

func (f *fileSystem) handle(id uint64) *handle {
	f.handleMu.RLock()
	defer f.handleMu.RUnlock()
	return f.handles[id]
}

func (f *fileSystem) dropHandle(id uint64) {
	f.handleMu.Lock()
	h := f.handles[id]
	delete(f.handles, id)
	f.handleMu.Unlock()
	if h == nil {
		return
	}
	if h.data != nil {
		f.releaseBacking(h.data)
		h.data.release()
	}
	if h.events != nil {
		h.events.close()
		f.streams.Add(-1)
	}
	if !h.guestDir {
		f.openSets.remove(h.setID, h)
	}
}

// releaseAll closes what is open still when the mount has ended: the kernel drops the messages of
// files that were closed just before.
func (f *fileSystem) releaseAll() {
	f.handleMu.RLock()
	ids := make([]uint64, 0, len(f.handles))
	for id := range f.handles {
		ids = append(ids, id)
	}
	f.handleMu.RUnlock()
	for _, id := range ids {
		f.dropHandle(id)
	}
}

func (h *handle) read(c *call, off int64, buf []byte) (fuse.ReadResult, error) {
	switch {
	case h.text != nil:
		return h.readText(c, off, buf)
	case h.events != nil:
		return h.events.read(c, buf)
	case h.data != nil:
		return h.data.read(c, off, buf)
	}
	return nil, backend.ErrIsDirectory
}

// dataHandle is an open file of a guest, or a volume's raw.
type dataHandle struct {
	vol     *control.Volume
	data    backend.File
	close   func() error
	slot    *slot  // of a guest's file
	owner   string // of raw: the domain to whose last_error failures go
	backing *node  // whose passthrough this handle uses

	// follows tells that vol is to be opened anew when it has changed, for where the bytes lie has changed
	// too: a live disk that is not raw. vol and data are then guarded by mu.
	follows bool
	mu      sync.Mutex
}

// view is what can be read now, until done is called.
func (d *dataHandle) view(c *call) (data backend.File, done func(), err error) {
	if !d.follows {
		return d.data, func() {}, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.vol.Acquire() {
		v, err := c.fs.host.Volume(c.ctx, d.vol.Ref())
		if err != nil {
			return nil, nil, err
		}
		d.vol.Release()
		d.vol, d.data = v, v.Device()
		if !v.Acquire() {
			return nil, nil, c.fs.host.Failed(d.owner, "read", fmt.Errorf("%s changes faster than it can be opened: %w", v, backend.ErrBusy))
		}
	}
	return d.data, d.vol.Release, nil
}

func (d *dataHandle) release() {
	if d.close != nil {
		d.close()
	}
	d.vol.Release()
}

// read answers by splicing where the bytes lie in one run of a host file.
func (d *dataHandle) read(c *call, off int64, buf []byte) (fuse.ReadResult, error) {
	data, done, err := d.view(c)
	if err != nil {
		return nil, err
	}
	defer done()
	if off >= data.Size() || len(buf) == 0 {
		return fuse.ReadResultData(nil), nil
	}
	if d.slot != nil && !d.slot.frozen() {
		// What the filesystem knows of a disk that has changed since is not true any more.
		if !d.vol.Acquire() {
			return nil, fmt.Errorf("the disk has changed, or its domain runs: %w", backend.ErrStale)
		}
		defer d.vol.Release()
	}
	if err := d.usable(); err != nil {
		return nil, err
	}
	want := min(int64(len(buf)), data.Size()-off)
	if l, ok := data.(backend.Locator); ok && want >= spliceMin && d.splices() {
		if loc, ok := l.Locate(off, want); ok && loc.Length >= want && reaches(loc, want) {
			return fuse.ReadResultFd(loc.FD, loc.Offset, int(want)), nil
		}
	}
	n, err := data.ReadAt(buf[:want], off)
	if err := d.usable(); err != nil {
		return nil, err
	}
	if n == int(want) {
		return fuse.ReadResultData(buf[:n]), nil
	}
	// A short answer would be taken for the file's end, or be filled up with zeros.
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%d bytes at %d end after %d: the disk was truncated: %w", want, off, n, backend.ErrIO)
	}
	if d.slot != nil {
		return nil, c.fs.damaged(d.slot, "read", err)
	}
	if !d.follows {
		d.vol.Doubt()
	}
	return nil, c.fs.host.Failed(d.owner, "read", err)
}

// usable says why what was read must not be told: its snapshot has become invalid. A live disk never does.
func (d *dataHandle) usable() error {
	if d.follows {
		return nil
	}
	return d.vol.Usable()
}

// splices tells whether the kernel may take the bytes from the host's file by itself. What has been sent
// cannot be taken back: of a snapshot that may become invalid meanwhile all is copied, and sent only once it is
// known to be true.
func (d *dataHandle) splices() bool { return !d.follows && !d.vol.CanOverflow() }

// reaches tells whether a host file still holds all that is to be spliced from it: one that was
// truncated would give a short answer.
func reaches(loc backend.Location, want int64) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(loc.FD), &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size-want >= loc.Offset
}

// spliceMin is the size in bytes below which copying is cheaper than splicing.
const spliceMin = 16 << 10

func (d *dataHandle) seek(c *call, off int64, whence uint32) (int64, error) {
	data, done, err := d.view(c)
	if err != nil {
		return 0, err
	}
	defer done()
	var n int64
	switch whence {
	case unix.SEEK_DATA:
		n, err = backend.NextData(data, off)
	case unix.SEEK_HOLE:
		n, err = backend.NextHole(data, off)
	default:
		return 0, backend.ErrInvalid
	}
	if err := d.usable(); err != nil {
		return 0, err
	}
	return n, err
}

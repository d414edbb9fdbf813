package vfs

import (
	"fmt"
	"strings"
	"syscall"

	"domfs/backend"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxValue is how long a value that is written may be, in bytes.
const maxValue = 4096

// textHandle is an open value file. What it shows is as of open, or of a write through the
// same handle.
type textHandle struct {
	n       *node
	content []byte
	written bool // the one write that a handle may do was done
	stale   bool // read anew at the next read
}

func (t *textHandle) size() int { return len(t.content) }

func (h *handle) readText(c *call, off int64, buf []byte) (fuse.ReadResult, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.text
	if t.stale {
		text, err := t.n.text(c)
		if err != nil {
			return nil, err
		}
		t.content, t.stale = text, false
	}
	if off >= int64(len(t.content)) {
		return fuse.ReadResultData(nil), nil
	}
	return fuse.ReadResultData(buf[:copy(buf, t.content[off:])]), nil
}

// Write sets a value: all of it, in the first write, at offset 0. Its result is the change's own.
func (f *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f.ops.Add(1)
	h := f.handle(in.Fh)
	if h == nil || h.text == nil {
		return 0, fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.text
	c := f.newCall(cancel)
	var err error
	switch {
	case t.n.e.set == nil:
		err = backend.ErrReadOnly
	case in.Offset != 0 || t.written:
		err = fmt.Errorf("the whole value must be in the first write, at offset 0: %w", backend.ErrInvalid)
	case len(data) > maxValue:
		err = fmt.Errorf("a value of %d bytes is longer than %d: %w", len(data), maxValue, backend.ErrInvalid)
	default:
		t.written = true
		// Failures of the change itself are recorded where it is made.
		if err := t.n.e.set(c, t.n.at, strings.TrimSuffix(string(data), "\n")); err != nil {
			return 0, f.status("write", err)
		}
		t.stale = true
		return uint32(len(data)), fuse.OK
	}
	return 0, f.status("write", f.host.Failed(c.owner(t.n.at), "write", fmt.Errorf("%s: %w", t.n.e.name, err)))
}

// SetAttr accepts, and ignores, the truncation to 0 by which a shell's redirection begins.
func (f *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.ops.Add(1)
	size, truncates := in.GetSize()
	if isGuest(in.NodeId) {
		return fuse.EROFS
	}
	n := f.nodes.byNodeID(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	other := in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0
	if other || !truncates {
		return fuse.EROFS
	}
	c := f.newCall(cancel)
	if err := n.settable(c); err != nil {
		return f.status("truncate", err)
	}
	if size != 0 {
		return f.status("truncate", f.host.Failed(c.owner(n.at), "truncate",
			fmt.Errorf("%s: cannot be truncated to %d, only to 0: write the value instead: %w", n.e.name, size, backend.ErrInvalid)))
	}
	if err := f.virtualAttr(c, n, &out.Attr); err != nil {
		return f.status("truncate", err)
	}
	return fuse.OK
}

package vfs

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"domfs/backend"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func (n *node) attrTimeout() time.Duration {
	if n.e.fleeting || n.e.root { // GETATTR tells a root's own
		return 0
	}
	if n.e.isDir() || n.e.link != nil || n.e.raw && n.at.setID != "" {
		return cachedFor
	}
	return 0 // value files: st_size is the length of a value that can change
}

func (f *fileSystem) virtualLookup(c *call, n *node, name string, out *fuse.EntryOut) error {
	if n.e.root {
		return f.rootLookup(c, n, name, out)
	}
	child, err := n.resolve(c, name)
	if err != nil {
		return err
	}
	return f.virtualEntry(c, n, child, out)
}

// virtualEntry fills in what the kernel is told of a child, and counts its lookup.
func (f *fileSystem) virtualEntry(c *call, parent, child *node, out *fuse.EntryOut) error {
	if child.e.files {
		return f.guestRootEntry(c, child.at, c.owner(child.at), out)
	}
	c.noWait = true
	defer func() { c.noWait = false }()
	var attr fuse.Attr
	if err := f.virtualAttr(c, child, &attr); err != nil {
		return err
	}
	found := f.nodes.lookup(parent, child)
	out.NodeId = found.id
	out.Attr = attr
	out.SetEntryTimeout(cachedFor)
	if found.e.fleeting {
		out.SetEntryTimeout(0)
	}
	out.SetAttrTimeout(found.attrTimeout())
	return nil
}

func (f *fileSystem) virtualAttr(c *call, n *node, out *fuse.Attr) error {
	out.Ino = n.ino
	out.Mode = fileMode(n.e.fileType(), n.perm(c))
	out.Nlink = 1
	out.Owner = fuse.Owner{Uid: f.uid, Gid: f.gid}
	if n.e.mode == gateMode {
		out.Gid = f.gateGID
	}
	out.Blksize = 4096
	switch {
	case n.e.raw:
		if err := f.rawAttr(c, n, out); err != nil {
			return err
		}
	case n.e.show != nil:
		// A value that cannot be told has no length here; open says why.
		if text, err := n.text(c); err == nil {
			out.Size = uint64(len(text))
		}
	case n.e.link != nil:
		target, err := n.e.link(c, n.at)
		if err != nil {
			return err
		}
		out.Size = uint64(len(target))
	case n.e.placeholder():
		// A directory that stands for an object is gone when the object is.
		_, _, err := n.e.find(c, n.parent.at, n.currentName(c))
		if err != nil && !errors.Is(err, errWouldWait) {
			return err
		}
	}
	t := c.changed(n)
	out.SetTimes(&t, &t, &t)
	return nil
}

// perm are the permission bits: what cannot be set at this place is shown as read-only.
func (n *node) perm(c *call) uint32 {
	perm := n.e.perm()
	if n.e.fixed != nil && errors.Is(n.e.fixed(c, n.at), backend.ErrReadOnly) {
		perm &^= 0o222
	}
	return perm
}

// settable says why a value cannot be set here (ErrReadOnly), if it cannot.
func (n *node) settable(c *call) error {
	switch {
	case n.e.set == nil:
		return backend.ErrReadOnly
	case n.e.fixed == nil:
		return nil
	}
	err := n.e.fixed(c, n.at)
	if errors.Is(err, backend.ErrReadOnly) {
		return c.fs.host.Failed(c.owner(n.at), "open", err)
	}
	return err
}

// currentName is the name of a node's object now: a snapshot may have been renamed.
func (n *node) currentName(c *call) string {
	if n.at.setID != "" && n.at.vdev == "" && n.at.path == "" {
		if s, err := c.set(n.at); err == nil {
			return s.Name
		}
	}
	return n.name
}

// text is a value file's content.
func (n *node) text(c *call) ([]byte, error) {
	s, err := n.e.show(c, n.at)
	if err != nil {
		return nil, err
	}
	if s == "" {
		return nil, nil
	}
	return append([]byte(s), '\n'), nil
}

func (f *fileSystem) rawAttr(c *call, n *node, out *fuse.Attr) error {
	size, err := c.sizeBytes(n.at)
	if err != nil {
		if c.isLost(n.at) {
			return err // who reads it would take a size of 0 for its end
		}
		return nil // open says why
	}
	out.Size = uint64(size)
	out.Blocks = (out.Size + 511) / 512
	if v, err := c.volume(n.at); err == nil {
		out.Blocks = uint64(backend.Allocated(v.Device())+511) / 512
		v.Release()
	}
	return nil
}

// dirHandle is a virtual directory that is open: its listing, as of its last rewind.
type dirHandle struct {
	n    *node
	kids []*node
}

func (f *fileSystem) virtualReadDir(c *call, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) error {
	h := f.handle(in.Fh)
	if h == nil || h.dir == nil {
		return backend.ErrInvalid
	}
	if h.dir.n.e.root {
		return f.rootReadDir(c, h.dir.n, in, out, plus)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.dir
	if in.Offset == 0 || d.kids == nil {
		kids, err := d.n.list(c)
		if err != nil {
			return err
		}
		d.kids = kids
	}
	for i := in.Offset; i < uint64(len(d.kids)+2); i++ {
		e := fuse.DirEntry{Off: i + 1, Mode: uint32(backend.TypeDir)}
		var child *node
		switch i {
		case 0:
			e.Name, e.Ino = ".", d.n.ino
		case 1:
			e.Name, e.Ino = "..", d.n.parent.ino
		default:
			child = d.kids[i-2]
			e.Name, e.Ino, e.Mode = child.name, child.ino, uint32(child.e.fileType())
			if child.e.files {
				e.Ino = f.guestRootIno(c, child.at)
			}
		}
		if !plus {
			if !out.AddDirEntry(e) {
				return nil
			}
			continue
		}
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return nil
		}
		if child != nil {
			// Without attributes the kernel asks again, and gets the error then.
			if err := f.virtualEntry(c, d.n, child, entry); err != nil {
				*entry = fuse.EntryOut{}
			}
		}
	}
	return nil
}

func (f *fileSystem) virtualOpen(c *call, n *node, in *fuse.OpenIn, out *fuse.OpenOut) error {
	switch {
	case n.e.raw:
		return f.openRaw(c, n, in, out)
	case n.e.events:
		if f.streams.Add(1) > maxStreams {
			f.streams.Add(-1)
			return fmt.Errorf("events: more than %d readers: %w", maxStreams, backend.ErrBusy)
		}
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE | fuse.FOPEN_STREAM | fuse.FOPEN_NOFLUSH
		out.Fh = f.addHandle(&handle{events: newEventStream(f.host, in.Flags&syscall.O_NONBLOCK != 0)})
		return nil
	case n.e.show == nil:
		return backend.ErrIsDirectory
	}
	h := &handle{text: &textHandle{n: n}}
	if in.Flags&syscall.O_ACCMODE != syscall.O_WRONLY {
		text, err := n.text(c)
		if err != nil {
			return err
		}
		h.text.content = text
	}
	out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	out.Fh = f.addHandle(h)
	return nil
}

func (f *fileSystem) openRaw(c *call, n *node, in *fuse.OpenIn, out *fuse.OpenOut) error {
	if _, err := c.sizeBytes(n.at); err != nil {
		return err
	}
	v, err := c.volume(n.at)
	if err != nil {
		return err
	}
	h := &handle{data: &dataHandle{vol: v, data: v.Device(), owner: c.owner(n.at), follows: !v.Frozen() && !v.IsRaw()}}
	if err := f.openSets.add(n.at.setID, h, in.Pid); err != nil {
		v.Release()
		return err
	}
	h.setID, h.node = n.at.setID, n.id
	through, err := f.passThrough(n, v, h, out)
	if err != nil {
		f.releaseBacking(h.data)
		f.openSets.remove(h.setID, h)
		v.Release()
		return f.host.Failed(c.owner(n.at), "open", err)
	}
	switch {
	case through:
	case v.Frozen():
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	default:
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO // a live disk's bytes are never kept
	}
	out.OpenFlags |= fuse.FOPEN_NOFLUSH
	out.Fh = f.addHandle(h)
	return f.stillUsable(v, out.Fh)
}

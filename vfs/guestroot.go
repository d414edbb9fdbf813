package vfs

import (
	"fmt"

	"domfs/backend"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// root/ is a node of the tree, so that a listing of what holds it reads no disk; what is in it are nodes of
// the guest. Its attributes are those of the guest's root directory once somebody asks for them.

// mountedOn is what the guest mounts on a directory of the slot; nil if nothing, and in files/.
func (s *slot) mountedOn(ino uint64) *control.Mount {
	if s.tree == nil {
		return nil
	}
	return s.mount.At(ino)
}

// mountIno is st_ino of the directory that a mount shows.
func mountIno(m *control.Mount) uint64 { return mix(m.Ino + rootSeedOf(m.Ref)) }

// mountSlot opens a mount's filesystem, and counts a lookup of its directory, which attr describes.
func (f *fileSystem) mountSlot(c *call, tree *guestRoot, m *control.Mount, owner string) (s *slot, attr backend.Attr, err error) {
	if m.Err != nil {
		return nil, attr, m.Err
	}
	if f.draining(m.Ref.SetID) {
		return nil, attr, fmt.Errorf("the snapshot is being removed: %w", backend.ErrNotExist)
	}
	v, err := f.host.Volume(c.ctx, m.Ref)
	if err != nil {
		return nil, attr, err
	}
	defer v.Release()
	guest, err := v.FS(c.ctx)
	if err != nil {
		return nil, attr, err
	}
	attr, err = guest.Attr(m.Ino)
	if invalid := v.Usable(); invalid != nil {
		return nil, attr, invalid
	}
	if err != nil {
		return nil, attr, err
	}
	s, err = f.slots.get(v, owner, guest, tree, m)
	return s, attr, err
}

// mountEntry is the lookup of a directory that something is mounted on.
func (f *fileSystem) mountEntry(c *call, tree *guestRoot, m *control.Mount, owner string, out *fuse.EntryOut) error {
	s, attr, err := f.mountSlot(c, tree, m, owner)
	if err != nil {
		return err
	}
	if err := f.guestEntry(s, &attr, out); err != nil {
		f.slots.forgetOne(s)
		return err
	}
	return nil
}

// forgetOne takes back a lookup that get counted.
func (t *slotTable) forgetOne(s *slot) { t.forget(guestBit|s.index<<slotShift, 1) }

// rootSlot is the slot of a guest's root filesystem, with one lookup counted; nil where the guest has none
// that is found.
func (f *fileSystem) rootSlot(c *call, at place) (*slot, error) {
	if err := c.mayOpen(at); err != nil {
		return nil, err
	}
	tree := &guestRoot{at: at.ref()}
	var err error
	if tree.Root, err = f.host.Root(c.ctx, tree.at); err != nil || tree.Top == nil {
		return nil, err
	}
	s, _, err := f.mountSlot(c, tree, tree.Top, c.owner(at))
	return s, err
}

// throughRoot calls do with the guest node of a root/; found is false where the node is none, or the guest has none.
func (f *fileSystem) throughRoot(c *call, nodeID uint64, do func(guest uint64) error) (found bool, err error) {
	n := f.nodes.byNodeID(nodeID)
	if n == nil || !n.e.root {
		return false, nil
	}
	return f.throughRootOf(c, n, do)
}

func (f *fileSystem) throughRootOf(c *call, n *node, do func(guest uint64) error) (found bool, err error) {
	s, err := f.rootSlot(c, n.at)
	if s == nil {
		return err != nil, err
	}
	defer f.slots.forgetOne(s)
	id, err := s.nodeID(s.rootIno)
	if err != nil {
		return true, err
	}
	return true, do(id)
}

func (f *fileSystem) rootLookup(c *call, n *node, name string, out *fuse.EntryOut) error {
	found, err := f.throughRootOf(c, n, func(guest uint64) error { return f.guestLookup(c, guest, name, out) })
	if !found {
		return gone("file", name)
	}
	if err == nil && out.EntryTimeout() > cachedFor {
		// What is in root/ is looked up again, for it may have become more: a disk that can be read now.
		out.SetEntryTimeout(cachedFor)
	}
	return err
}

// rootAttr fills in what the guest says of its root directory. Where that cannot be told, the directory is
// one like others; opening it says why.
func (f *fileSystem) rootAttr(c *call, n *node, out *fuse.Attr) {
	ino := out.Ino
	f.throughRootOf(c, n, func(guest uint64) error {
		var attr fuse.AttrOut
		if err := f.guestAttr(c, guest, &attr); err != nil {
			return err
		}
		*out = attr.Attr
		out.Ino = ino
		return nil
	})
}

func (f *fileSystem) rootReadDir(c *call, n *node, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) error {
	rest := *in
	for ; rest.Offset < 2; rest.Offset++ {
		e := fuse.DirEntry{Name: ".", Ino: n.ino, Off: 1, Mode: uint32(backend.TypeDir)}
		if rest.Offset == 1 {
			e.Name, e.Ino, e.Off = "..", n.parent.ino, 2
		}
		if plus && out.AddDirLookupEntry(e) == nil || !plus && !out.AddDirEntry(e) {
			return nil
		}
	}
	_, err := f.throughRootOf(c, n, func(guest uint64) error { return f.guestReadDir(c, guest, &rest, out, plus) })
	return err
}

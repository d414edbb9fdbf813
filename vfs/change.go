package vfs

import (
	"fmt"
	"syscall"

	"domfs/backend"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mkdir makes what the directory says: in snapshots/<domain> a snapshot, in the disks of a domain a new one.
func (f *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	f.ops.Add(1)
	n := f.nodes.byNodeID(in.NodeId)
	if n == nil || n.e.mkdir == nil {
		return fuse.EROFS
	}
	c := f.newCall(cancel)
	if err := n.e.mkdir(c, n.at, name); err != nil {
		return f.status("mkdir", err)
	}
	// What the change made is in a new inventory; the caller's interrupt no longer matters.
	return f.status("mkdir", f.virtualLookup(f.newCall(nil), n, name, out))
}

// Rmdir removes it. Its contents never block that; an open file of a snapshot does.
func (f *fileSystem) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	f.ops.Add(1)
	n := f.nodes.byNodeID(h.NodeId)
	if n == nil || n.e.rmdir == nil {
		return fuse.EROFS
	}
	return f.status("rmdir", n.e.rmdir(f.newCall(cancel), n.at, name))
}

// Rename renames within one directory. Anything else is EPERM and not EXDEV, at which mv would
// begin to copy.
func (f *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	f.ops.Add(1)
	from := f.nodes.byNodeID(in.NodeId)
	if from == nil || from.e.rename == nil {
		return fuse.EROFS
	}
	c := f.newCall(cancel)
	refuse := func(err error) fuse.Status {
		return f.status("rename", f.host.Failed(c.owner(from.at), "rename", fmt.Errorf("snapshot %s: %w", oldName, err)))
	}
	if in.Flags&^unix.RENAME_NOREPLACE != 0 {
		return refuse(fmt.Errorf("snapshots cannot be exchanged: %w", backend.ErrInvalid))
	}
	if in.Newdir != in.NodeId {
		return refuse(fmt.Errorf("a snapshot can only be renamed within its domain's directory: %w", backend.ErrPermission))
	}
	return f.status("rename", from.e.rename(c, from.at, oldName, newName))
}

// The rest would change what is not ours to change.

func (f *fileSystem) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EROFS }

func (f *fileSystem) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return fuse.EROFS
}

func (f *fileSystem) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

package vfs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"domfs/backend"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// guestUse opens the filesystem of a guest node; the caller releases the volume.
func (f *fileSystem) guestUse(c *call, nodeID uint64) (*slot, uint64, *control.Volume, backend.FS, error) {
	s, ino := f.slots.of(nodeID)
	if s == nil {
		return nil, 0, nil, nil, backend.ErrStale
	}
	v, guest, err := s.use(c)
	if err != nil {
		return nil, 0, nil, nil, err
	}
	if g, ok := guest.(backend.Interruptible); ok {
		guest = g.Until(c.ctx.Done())
	}
	return s, ino, v, guest, nil
}

// maxDamages is how many faults of one filesystem are told: a guest must not fill the log, and
// push out of last_error what others have to say.
const maxDamages = 8

// damaged records what a guest's filesystem has wrong in last_error, and returns err.
func (f *fileSystem) damaged(s *slot, op string, err error) error {
	if errors.Is(err, backend.ErrCorrupt) || errors.Is(err, backend.ErrIO) {
		if v := s.vol.Load(); v != nil {
			v.Doubt()
		}
		told := s.damages.Add(1)
		if told > maxDamages {
			return err
		}
		where := strings.Trim(s.ref.VDev+"/"+s.ref.Path, "/")
		if told == maxDamages {
			where += " (and more there, which is not told one by one)"
		}
		return f.host.Failed(s.owner, op, fmt.Errorf("%s: %w", where, err))
	}
	return err
}

// guestRootEntry is the lookup of `files`.
func (f *fileSystem) guestRootEntry(c *call, at place, owner string, out *fuse.EntryOut) error {
	v, err := c.volume(at)
	if err != nil {
		return err
	}
	defer v.Release()
	guest, err := v.FS(c.ctx)
	if err != nil {
		return err
	}
	attr, err := guest.Attr(guest.Root())
	if err != nil {
		return err
	}
	if err := v.Usable(); err != nil {
		return err
	}
	s, err := f.slots.get(v, owner, guest, nil, nil)
	if err != nil {
		return err
	}
	if err := f.guestEntry(s, &attr, out); err != nil {
		f.slots.forget(guestBit|s.index<<slotShift, 1)
		return err
	}
	out.SetEntryTimeout(cachedFor)
	return nil
}

func (f *fileSystem) guestRootIno(c *call, at place) uint64 {
	v, err := c.volume(at)
	if err != nil {
		return 0
	}
	defer v.Release()
	guest, err := v.FS(c.ctx)
	if err != nil {
		return 0
	}
	return mix(guest.Root() + seedOf(at.ref()))
}

func (s *slot) timeout() time.Duration {
	switch {
	case s.overflow:
		return overflowFor
	case s.frozen() && (s.tree == nil || !s.tree.Passing):
		return forever
	}
	return cachedFor
}

// guestEntry fills in what the kernel is told of an inode; the caller counts the lookup.
func (f *fileSystem) guestEntry(s *slot, a *backend.Attr, out *fuse.EntryOut) error {
	id, err := s.nodeID(a.Ino)
	if err != nil {
		return err
	}
	out.NodeId = id
	fillAttr(s, a, &out.Attr)
	out.SetEntryTimeout(s.timeout())
	out.SetAttrTimeout(s.timeout())
	return nil
}

func fillAttr(s *slot, a *backend.Attr, out *fuse.Attr) {
	out.Ino = s.statIno(a.Ino)
	out.Size = uint64(a.SizeBytes)
	out.Blocks = uint64(a.Blocks512)
	out.Atime, out.Atimensec = uint64(a.Atime.Sec), a.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(a.Ctime.Sec), a.Ctime.Nsec
	out.Mode = fileMode(a.Type, a.Mode)
	out.Nlink = a.Nlink
	out.Owner = fuse.Owner{Uid: a.UID, Gid: a.GID}
	out.Rdev = encodeDev(a.RdevMajor, a.RdevMinor)
	out.Blksize = s.blksize
}

// encodeDev is the kernel's 32-bit form of a device number, as FUSE carries it
// (new_encode_dev in linux/kdev_t.h).
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func (f *fileSystem) guestLookup(c *call, dir uint64, name string, out *fuse.EntryOut) error {
	s, ino, v, guest, err := f.guestUse(c, dir)
	if err != nil {
		return err
	}
	defer v.Release()
	attr, err := guest.Lookup(ino, name)
	if raw := unescapeName(name); err != nil && raw != name && (errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrTooLong)) {
		attr, err = guest.Lookup(ino, raw)
	}
	if err := v.Usable(); err != nil {
		return err
	}
	if errors.Is(err, backend.ErrNotExist) {
		if !s.frozen() {
			return err
		}
		out.SetEntryTimeout(s.timeout()) // node 0: the kernel remembers that there is none
		return nil
	}
	if err != nil {
		return f.damaged(s, "lookup", err)
	}
	if m := s.mountedOn(attr.Ino); m != nil {
		return f.mountEntry(c, s.tree, m, s.owner, out)
	}
	if err := f.guestEntry(s, &attr, out); err != nil {
		return err
	}
	s.lookups.Add(1)
	return nil
}

func (f *fileSystem) guestAttr(c *call, nodeID uint64, out *fuse.AttrOut) error {
	s, ino, v, guest, err := f.guestUse(c, nodeID)
	if err != nil {
		return err
	}
	defer v.Release()
	attr, err := guest.Attr(ino)
	if err := v.Usable(); err != nil {
		return err
	}
	if err != nil {
		return f.damaged(s, "getattr", err)
	}
	fillAttr(s, &attr, &out.Attr)
	out.SetTimeout(s.timeout())
	return nil
}

func (f *fileSystem) guestReadlink(c *call, nodeID uint64) ([]byte, error) {
	s, ino, v, guest, err := f.guestUse(c, nodeID)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	target, err := guest.Readlink(ino)
	if err := v.Usable(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, f.damaged(s, "readlink", err)
	}
	return target, nil
}

func (f *fileSystem) guestXattr(c *call, nodeID uint64, name string) ([]byte, error) {
	s, ino, v, guest, err := f.guestUse(c, nodeID)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	value, err := guest.Xattr(ino, name)
	if err := v.Usable(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, f.damaged(s, "getxattr", err)
	}
	return value, nil
}

func (f *fileSystem) guestListXattr(c *call, nodeID uint64) ([]byte, error) {
	s, ino, v, guest, err := f.guestUse(c, nodeID)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	names, err := guest.ListXattr(ino)
	if err := v.Usable(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, f.damaged(s, "listxattr", err)
	}
	var out []byte
	for _, name := range names {
		out = append(append(out, name...), 0)
	}
	return out, nil
}

// guestReadDir lists a directory: offset 1 is after ".", 2 after "..", then the filesystem's
// cookie + 2.
func (f *fileSystem) guestReadDir(c *call, nodeID uint64, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) error {
	s, ino, v, guest, err := f.guestUse(c, nodeID)
	if err != nil {
		return err
	}
	defer v.Release()
	add := func(e fuse.DirEntry, a *backend.Attr) bool {
		if !plus {
			return out.AddDirEntry(e)
		}
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		// Without attributes the kernel asks again for this one, and gets the error then.
		if a != nil && f.guestEntry(s, a, entry) == nil {
			s.lookups.Add(1)
		}
		return true
	}
	off := in.Offset
	if off == 0 {
		if !add(fuse.DirEntry{Name: ".", Off: 1, Ino: s.statIno(ino), Mode: uint32(backend.TypeDir)}, nil) {
			return nil
		}
		off = 1
	}
	if off == 1 {
		parent := ino
		if ino != s.rootIno {
			if parent, err = guest.Parent(ino); err != nil {
				return f.damaged(s, "readdir", err)
			}
		}
		if !add(fuse.DirEntry{Name: "..", Off: 2, Ino: s.statIno(parent), Mode: uint32(backend.TypeDir)}, nil) {
			return nil
		}
		off = 2
	}
	err = guest.ReadDir(ino, off-2, plus, func(e *backend.DirEntry) bool {
		name := e.Name
		if strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
			name = escapeName(name)
		}
		if m := s.mountedOn(e.Ino); m != nil {
			// Whoever wants its attributes looks it up: that opens another filesystem.
			return add(fuse.DirEntry{Name: name, Off: e.Cookie + 2, Ino: mountIno(m), Mode: uint32(backend.TypeDir)}, nil)
		}
		return add(fuse.DirEntry{Name: name, Off: e.Cookie + 2, Ino: s.statIno(e.Ino), Mode: uint32(e.Type)}, e.Attr)
	})
	if err := v.Usable(); err != nil {
		return err // names that were added already are not sent
	}
	if err != nil {
		return f.damaged(s, "readdir", err)
	}
	return nil
}

// escapeName writes what Linux cannot hold in a name as %XX: '/', NUL, and the dots of "." and
// ".." that a damaged directory may hold.
func escapeName(name string) string {
	if name == "." || name == ".." {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return strings.NewReplacer("/", "%2F", "\x00", "%00").Replace(name)
}

func unescapeName(name string) string {
	if !strings.Contains(name, "%") {
		return name
	}
	if name == "%2E" || name == "%2E%2E" {
		return strings.ReplaceAll(name, "%2E", ".")
	}
	return strings.NewReplacer("%2F", "/", "%00", "\x00").Replace(name)
}

func (f *fileSystem) guestStatFS(c *call, nodeID uint64, out *fuse.StatfsOut) error {
	_, _, v, guest, err := f.guestUse(c, nodeID)
	if err != nil {
		return err
	}
	defer v.Release()
	st, err := guest.StatFS()
	if err := v.Usable(); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	out.Bsize, out.Frsize = st.BlockSize, st.BlockSize
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.BlocksFree, st.BlocksAvail
	out.Files, out.Ffree = st.Files, st.FilesFree
	out.NameLen = st.NameLen
	return nil
}

func (f *fileSystem) guestOpen(c *call, in *fuse.OpenIn, out *fuse.OpenOut) error {
	s, ino, v, guest, err := f.guestUse(c, in.NodeId)
	if err != nil {
		return err
	}
	file, err := guest.OpenFile(ino)
	if err != nil {
		v.Release()
		return f.damaged(s, "open", err)
	}
	h := &handle{setID: s.ref.SetID, node: in.NodeId, data: &dataHandle{vol: v, data: file, close: file.Close, slot: s}}
	if err := f.openSets.add(h.setID, h, in.Pid); err != nil {
		file.Close()
		v.Release()
		return err
	}
	out.OpenFlags |= fuse.FOPEN_NOFLUSH
	if s.frozen() {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		f.push(s, in, ino, file)
	} else {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	out.Fh = f.addHandle(h)
	return f.stillUsable(v, out.Fh)
}

// openGuestDir notes an open directory in a snapshot that can become invalid: the kernel keeps what it
// has read of it.
func (f *fileSystem) openGuestDir(c *call, s *slot, nodeID uint64, out *fuse.OpenOut) error {
	v, _, err := s.use(c)
	if err != nil {
		return err
	}
	defer v.Release()
	out.Fh = f.addHandle(&handle{setID: s.ref.SetID, node: nodeID, guestDir: true})
	return f.stillUsable(v, out.Fh)
}

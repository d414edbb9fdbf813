package vfs

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"domfs/backend"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
)

const (
	// cachedFor is how long the kernel may keep names and attributes of what can change. With
	// control's age of an inventory it stays within the second in which readers see a change.
	cachedFor = 250 * time.Millisecond
	// overflowFor is how long it may keep those of guests' files in a snapshot that can become invalid.
	overflowFor = time.Second
	// forever is for what cannot change.
	forever = 100 * 365 * 24 * time.Hour
)

// fileSystem answers the kernel's requests. Virtual nodes are served by virtual.go, guests'
// by guest.go; the top bit of a node ID tells which it is.
type fileSystem struct {
	fuse.RawFileSystem // ENOSYS for what is not served

	host    *control.Host
	log     *zap.Logger
	version string
	// mountpoint is where the mount is seen, for messages.
	mountpoint string
	started    time.Time
	uid        uint32 // owner of virtual nodes
	gid        uint32
	gateGID    uint32

	server *fuse.Server
	nodes  nodeTable
	slots  slotTable

	handleMu   sync.RWMutex
	handles    map[uint64]*handle // guarded by handleMu
	nextHandle uint64             // guarded by handleMu

	openSets openSets
	pusher   pusher
	ending   chan struct{} // closed when the mount ends
	ops      atomic.Int64
	streams  atomic.Int64 // open events
	noPass   atomic.Bool  // the kernel refuses passthrough
}

func newFileSystem(o Options) *fileSystem {
	f := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		host:          o.Host,
		log:           o.Log,
		version:       o.Version,
		mountpoint:    o.Mountpoint,
		started:       time.Now(),
		uid:           uint32(syscall.Geteuid()),
		gid:           uint32(syscall.Getegid()),
		gateGID:       o.GID,
		handles:       map[uint64]*handle{},
		nextHandle:    1,
		ending:        make(chan struct{}),
	}
	if o.GID == 0 {
		f.gateGID = f.gid
	}
	f.nodes.init(&tree)
	f.slots.init()
	f.openSets.init()
	f.pusher.init()
	return f
}

func (f *fileSystem) String() string { return "domfs" }

func (f *fileSystem) Init(s *fuse.Server) { f.server = s }

func (f *fileSystem) stats() map[string]int64 {
	f.handleMu.RLock()
	open := int64(len(f.handles))
	f.handleMu.RUnlock()
	return map[string]int64{
		"fuse_requests":   f.ops.Load(),
		"fuse_nodes":      int64(f.nodes.len()),
		"fuse_open_files": open,
		"fuse_guests":     int64(f.slots.len()),
	}
}

// status turns an error into what the kernel is told, and logs one that nobody foresaw.
func (f *fileSystem) status(op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if err == errWouldWait {
		return fuse.EAGAIN
	}
	errno, known := Errno(err)
	if !known {
		f.log.Error("unforeseen error", zap.String("op", op), zap.Error(err))
	}
	return fuse.Status(errno)
}

func (f *fileSystem) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.ops.Add(1)
	if isGuest(h.NodeId) {
		return f.status("lookup", f.guestLookup(f.newCall(cancel), h.NodeId, name, out))
	}
	n := f.nodes.byNodeID(h.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	return f.status("lookup", f.virtualLookup(f.newCall(cancel), n, name, out))
}

func (f *fileSystem) Forget(nodeID, nlookup uint64) {
	if isGuest(nodeID) {
		f.slots.forget(nodeID, nlookup)
		return
	}
	f.nodes.forget(nodeID, nlookup)
}

func (f *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.ops.Add(1)
	if isGuest(in.NodeId) {
		return f.status("getattr", f.guestAttr(f.newCall(cancel), in.NodeId, out))
	}
	n := f.nodes.byNodeID(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	c := f.newCall(cancel)
	c.noWait = true
	if err := f.virtualAttr(c, n, &out.Attr); err != nil {
		return f.status("getattr", err)
	}
	if n.e.root {
		f.rootAttr(c, n, &out.Attr)
	}
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if hd := f.handle(in.Fh()); hd != nil && hd.text != nil {
			out.Attr.Size = uint64(hd.text.size())
		}
	}
	out.SetTimeout(n.attrTimeout())
	return fuse.OK
}

func (f *fileSystem) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	f.ops.Add(1)
	c := f.newCall(cancel)
	if isGuest(h.NodeId) {
		target, err := f.guestReadlink(c, h.NodeId)
		return target, f.status("readlink", err)
	}
	n := f.nodes.byNodeID(h.NodeId)
	if n == nil || n.e.link == nil {
		return nil, fuse.EINVAL
	}
	target, err := n.e.link(c, n.at)
	return []byte(target), f.status("readlink", err)
}

func (f *fileSystem) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	f.ops.Add(1)
	c := f.newCall(cancel)
	if isGuest(h.NodeId) {
		value, err := f.guestXattr(c, h.NodeId, attr)
		return f.reply("getxattr", value, dest, err)
	}
	var value []byte
	found, err := f.throughRoot(c, h.NodeId, func(guest uint64) (err error) {
		value, err = f.guestXattr(c, guest, attr)
		return err
	})
	if !found {
		return 0, fuse.ENOATTR
	}
	return f.reply("getxattr", value, dest, err)
}

func (f *fileSystem) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	f.ops.Add(1)
	c := f.newCall(cancel)
	if isGuest(h.NodeId) {
		names, err := f.guestListXattr(c, h.NodeId)
		return f.reply("listxattr", names, dest, err)
	}
	var names []byte
	found, err := f.throughRoot(c, h.NodeId, func(guest uint64) (err error) {
		names, err = f.guestListXattr(c, guest)
		return err
	})
	if !found {
		return 0, fuse.OK
	}
	return f.reply("listxattr", names, dest, err)
}

// reply copies an attribute into the kernel's buffer; without a buffer, only its size is asked.
func (f *fileSystem) reply(op string, value, dest []byte, err error) (uint32, fuse.Status) {
	if err != nil {
		return 0, f.status(op, err)
	}
	if len(dest) == 0 {
		return uint32(len(value)), fuse.OK
	}
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (f *fileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.ops.Add(1)
	if isGuest(in.NodeId) {
		s, _ := f.slots.of(in.NodeId)
		if s == nil {
			return fuse.Status(syscall.ESTALE)
		}
		if s.timeout() == forever {
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
		}
		if s.overflow {
			return f.status("opendir", f.openGuestDir(f.newCall(cancel), s, in.NodeId, out))
		}
		return fuse.OK
	}
	n := f.nodes.byNodeID(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	out.Fh = f.addHandle(&handle{dir: &dirHandle{n: n}})
	return fuse.OK
}

func (f *fileSystem) ReleaseDir(in *fuse.ReleaseIn) {
	if in.Fh != 0 {
		f.dropHandle(in.Fh)
	}
}

func (f *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.ops.Add(1)
	if isGuest(in.NodeId) {
		return f.status("readdir", f.guestReadDir(f.newCall(cancel), in.NodeId, in, out, false))
	}
	return f.status("readdir", f.virtualReadDir(f.newCall(cancel), in, out, false))
}

func (f *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.ops.Add(1)
	if isGuest(in.NodeId) {
		return f.status("readdir", f.guestReadDir(f.newCall(cancel), in.NodeId, in, out, true))
	}
	return f.status("readdir", f.virtualReadDir(f.newCall(cancel), in, out, true))
}

func (f *fileSystem) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.ops.Add(1)
	out.NameLen = 255
	out.Bsize, out.Frsize = 4096, 4096
	c := f.newCall(cancel)
	if isGuest(h.NodeId) {
		return f.status("statfs", f.guestStatFS(c, h.NodeId, out))
	}
	_, err := f.throughRoot(c, h.NodeId, func(guest uint64) error { return f.guestStatFS(c, guest, out) })
	return f.status("statfs", err)
}

func (f *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.ops.Add(1)
	c := f.newCall(cancel)
	if isGuest(in.NodeId) {
		if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
			return fuse.EROFS
		}
		return f.status("open", f.guestOpen(c, in, out))
	}
	n := f.nodes.byNodeID(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		if err := n.settable(c); err != nil {
			return f.status("open", err)
		}
	}
	return f.status("open", f.virtualOpen(c, n, in, out))
}

func (f *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.ops.Add(1)
	h := f.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	res, err := h.read(f.newCall(cancel), int64(in.Offset), buf)
	return res, f.status("read", err)
}

func (f *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f.ops.Add(1)
	h := f.handle(in.Fh)
	if h == nil || h.data == nil {
		return fuse.EINVAL
	}
	off, err := h.data.seek(f.newCall(cancel), int64(in.Offset), in.Whence)
	if err != nil {
		return f.status("lseek", err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (f *fileSystem) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) { f.dropHandle(in.Fh) }

// Flush is not served: ENOSYS tells the kernel not to ask again. Nothing is left to be done
// at close, the result of a change is its write's.
func (f *fileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Fsync finds nothing to do: a write has ended when its caller goes on.
func (f *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (f *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fuse.OK
}

// fileMode is st_mode.
func fileMode(t backend.FileType, perm uint32) uint32 { return uint32(t) | perm }

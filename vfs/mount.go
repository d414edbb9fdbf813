package vfs

import (
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"

	"domfs/backend"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// maxTransfer is the largest read, in bytes. With its header it must fit a pipe of the
	// largest size that the kernel gives (1 MiB, pipe(7)), or it cannot be spliced.
	maxTransfer = 512 << 10
	// ReadAhead is how far the kernel should read ahead on the mount, in bytes: two reads at
	// a time. Its default of 128 KiB halves the speed of large reads.
	ReadAhead = 1 << 20
	// maxBackground is how many read-ahead requests may wait at a time.
	maxBackground = 64
)

// Options are what a mount is made of.
type Options struct {
	Host       *control.Host // not yet started
	Log        *zap.Logger
	Mountpoint string
	AllowOther bool   // let other users in, as the modes shown allow
	GID        uint32 // the group of domains' directories; 0 the daemon's own
	Debug      bool   // log each request
	Version    string // for .domfs/version
	FSName     string // first field of the mount table; empty for domfs
}

// Server is a mounted tree.
type Server struct {
	fs         *fileSystem
	fuse       *fuse.Server
	mountpoint string
	endOnce    sync.Once
}

// Mount mounts the tree; when it returns, the mount answers. It takes over the Host's OnDrain
// and OnChange.
func Mount(o Options) (*Server, error) {
	f := newFileSystem(o)
	o.Host.OnDrain(f.drain)
	o.Host.OnChange(f.changed)
	name := o.FSName
	if name == "" {
		name = "domfs"
	}
	opts := &fuse.MountOptions{
		AllowOther:           o.AllowOther,
		Name:                 "domfs",
		FsName:               name,
		MaxWrite:             maxTransfer,
		MaxReadAhead:         maxTransfer,
		MaxBackground:        maxBackground,
		EnableSymlinkCaching: true,
		DirectMount:          os.Geteuid() == 0,
		Debug:                o.Debug,
		Logger:               zap.NewStdLog(o.Log),
		PanicHandler: func(p any) fuse.Status {
			o.Log.Error("a request failed on a fault of domfs itself", zap.Any("panic", p), zap.Stack("stack"))
			return fuse.EIO
		},
	}
	if o.Debug {
		opts.Logger = debugLogger(o.Log)
	}
	if o.AllowOther || os.Geteuid() == 0 {
		// The modes that the tree shows decide, guests' ACLs included.
		opts.Options = append(opts.Options, "default_permissions")
		opts.EnableAcl = true
	}
	// The kernel would mount on a file, too, with the tree's root as a file.
	if st, err := os.Stat(o.Mountpoint); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", o.Mountpoint, err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("mount on %s: %w", o.Mountpoint, backend.ErrNotDir)
	}
	server, err := fuse.NewServer(f, o.Mountpoint, opts)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", o.Mountpoint, err)
	}
	closeOnExec()
	s := &Server{fs: f, fuse: server, mountpoint: o.Mountpoint}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		server.Unmount()
		return nil, fmt.Errorf("mount on %s: %w", o.Mountpoint, err)
	}
	return s, nil
}

// closeOnExec keeps the connection to the kernel from programs that the daemon starts, which a
// direct mount does not: while one of them has it, the mount outlives a daemon that was killed, and
// whoever touches it hangs.
func closeOnExec() {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, d := range fds {
		fd, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && target == "/dev/fuse" {
			unix.CloseOnExec(fd)
		}
	}
}

func debugLogger(l *zap.Logger) *log.Logger {
	std, err := zap.NewStdLogAt(l, zap.DebugLevel)
	if err != nil {
		return zap.NewStdLog(l)
	}
	return std
}

// Wait returns when the mount has ended, by whomever.
func (s *Server) Wait() {
	s.fuse.Wait()
	s.end()
	s.fs.releaseAll()
}

// Unmount ends the mount; it fails while a file in it, or a working directory, keeps it busy.
func (s *Server) Unmount() error {
	s.end()
	if err := s.fuse.Unmount(); err != nil {
		return err
	}
	s.fs.releaseAll()
	return nil
}

// Detach takes the mount out of sight at once; it ends when the last file in it is closed.
func (s *Server) Detach() error {
	s.end()
	return unix.Unmount(s.mountpoint, unix.MNT_DETACH)
}

// end wakes those who wait for events.
func (s *Server) end() { s.endOnce.Do(func() { close(s.fs.ending) }) }

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// settleTime is longer than any tick of the clock that stamps files (10 ms at 100 Hz).
const settleTime = 30 * time.Millisecond

// guard is what Prepare checked: an open descriptor of each image, and how it is
// kept unwritten.
type guard struct {
	s       *Store
	running bool
	origins map[string]*guardedImage // by Volume.ID; not changed once made

	mu       sync.Mutex
	released bool        // guarded by mu
	copies   []*heldCopy // guarded by mu
}

// guardedImage is one image under a guard.
type guardedImage struct {
	path    string
	f       *os.File
	seen    fileVersion // when the guard began
	reflink bool        // its filesystem can FICLONE
	kept    keeping
	writer  string         // who writes to it, where kept is unkept
	format  backend.Format // nil: raw
	backing []recordedFile // the files behind it when the guard began
}

// keeping is how an image is kept unwritten.
type keeping int

const (
	unkept  keeping = iota // others may write
	leased                 // by a read lease
	watched                // by looking whether it changed
)

// Prepare implements backend.Snapshotter. It makes nothing on disk.
func (s *Store) Prepare(ctx context.Context, reqs []backend.SnapshotRequest, running bool) (backend.Guard, error) {
	g := &guard{s: s, running: running, origins: map[string]*guardedImage{}}
	need := map[string]int64{} // bytes to be copied, by folder
	for _, req := range reqs {
		if err := ctx.Err(); err != nil {
			g.Release()
			return nil, fmt.Errorf("prepare a snapshot of %s: %w", req.Origin.ID, err)
		}
		bytes, err := g.add(req)
		if err != nil {
			g.Release()
			return nil, err
		}
		need[filepath.Dir(req.Origin.ID)] += bytes
	}
	if err := checkSpace(need); err != nil {
		g.Release()
		return nil, err
	}
	return g, nil
}

// add checks and guards the image of one request, and says how many bytes of it are to be copied.
func (g *guard) add(req backend.SnapshotRequest) (copied int64, err error) {
	v := req.Origin
	if err := g.s.checkRequest(req); err != nil {
		return 0, err
	}
	image := g.origins[v.ID]
	if image == nil {
		if image, err = g.s.guardImage(v.ID, g.running); err != nil {
			return 0, err
		}
		g.origins[v.ID] = image
		if image.format, err = backend.FindFormat(g.s.formats, v.Format); err != nil {
			return 0, err
		}
		if err := g.s.guardBacking(image); err != nil {
			return 0, err
		}
	}
	if image.reflink {
		return 0, nil
	}
	if g.running || image.kept == unkept {
		return 0, image.cannotCopy(g.s, req.Meta.DomainName, g.running, v.Holder)
	}
	err = dataRanges(image.f, v.ID, image.seen.size, func(_, length int64) error {
		copied += length
		return nil
	})
	return copied, err
}

// checkRequest refuses what cannot be snapshotted whatever the host does.
func (s *Store) checkRequest(req backend.SnapshotRequest) error {
	v := req.Origin
	switch {
	case v.Store != storeName:
		return backend.Because(backend.ErrInvalid, "snapshot %s: it belongs to the store %q", v.ID, v.Store)
	case v.Err != nil:
		return fmt.Errorf("snapshot %s: %w", v.ID, v.Err)
	case v.Format != req.Meta.Disk.Format && (v.Format != backend.FormatRaw || req.Meta.Disk.Format != ""):
		return backend.Because(backend.ErrInvalid, "snapshot %s: it is %s, and its disk is %s", v.ID, v.Format, req.Meta.Disk.Format)
	case filepath.Base(filepath.Dir(filepath.Dir(v.ID))) == hiddenName:
		return backend.Because(backend.ErrUnsupported, "snapshot %s: it is a snapshot itself", v.ID)
	case !validName(req.Meta.Disk.VDev):
		return backend.Because(backend.ErrInvalid, "snapshot %s: the disk's name %q has characters other than A-Z a-z 0-9 . _ -: correct the domain's configuration", v.ID, req.Meta.Disk.VDev)
	case !validName(req.Meta.Set):
		return backend.Because(backend.ErrInvalid, "snapshot %s: %q cannot identify a snapshot set", v.ID, req.Meta.Set)
	}
	if _, err := backend.FindFormat(s.formats, v.Format); err != nil {
		return fmt.Errorf("snapshot %s: %w", v.ID, err)
	}
	if err := newManifest(pending(req.Meta), v.ID, 0).check(req.Meta.Set, req.Meta.Disk.VDev); err != nil {
		return backend.Because(backend.ErrInvalid, "snapshot %s: %v", v.ID, err)
	}
	return nil
}

// guardBacking looks at the files behind an image. They are not kept unwritten: whoever writes to a file that images are
// based on damages those images. But one who does already is told of.
func (s *Store) guardBacking(image *guardedImage) error {
	if image.format == nil {
		return nil
	}
	st, err := statFile(image.f, image.path)
	if err != nil {
		return err
	}
	c, err := s.openChain(chainFile{f: image.f, st: st, path: image.path, folder: filepath.Dir(image.path), format: image.format})
	if err != nil {
		return err
	}
	defer c.closeBacking()
	if err := s.refuseBackingWriter(c); err != nil {
		return fmt.Errorf("snapshot %s: %w", image.path, err)
	}
	image.backing = c.record()
	return nil
}

// refuseBackingWriter says who writes to a file behind an image.
func (s *Store) refuseBackingWriter(c chain) error {
	h := s.newHolderQuery()
	for i := range c[1:] {
		h.ask(1+i, c[1+i].f, c[1+i].st)
	}
	for i, name := range h.answer() {
		return backend.Because(backend.ErrBusy, "its backing file %s is being written by %s: shut that domain down, or end that process, and let nobody write to a file that images are based on", c[i].path, name)
	}
	return nil
}

func pending(m backend.SnapshotMeta) backend.SnapshotMeta {
	m.State = backend.SnapshotPending
	return m
}

// guardImage opens an image and keeps it unwritten if its domain is off and nobody
// writes to it already.
func (s *Store) guardImage(path string, running bool) (*guardedImage, error) {
	folder, err := openFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	hidden, err := folder.sub(hiddenName)
	if err == nil {
		hidden.Close()
	} else if !errors.Is(err, backend.ErrNotExist) {
		return nil, err
	}
	f, st, err := openImage(path)
	if errors.Is(err, errBlockDevice) {
		err = backend.Because(backend.ErrStale, "snapshot %s: it became a block device", path)
	}
	if err != nil {
		return nil, err
	}
	image := &guardedImage{path: path, f: f, seen: versionOf(st)}
	if !s.noReflink {
		image.reflink, err = s.canReflink(folder, st)
	}
	if err == nil && !running {
		err = s.keep(image)
	}
	if err != nil {
		image.close(s)
		return nil, err
	}
	return image, nil
}

// keep takes a lease, or begins to watch where there are no leases.
func (s *Store) keep(image *guardedImage) error {
	err := unix.Errno(unix.EACCES)
	if !s.noLease {
		err = 0
		if leaseErr := lease(image.f, unix.F_RDLCK); leaseErr != nil && !errors.As(leaseErr, &err) {
			return failed("lease", image.path, leaseErr)
		}
	}
	switch err {
	case 0:
		image.kept = leased
	case unix.EAGAIN:
		return nil // somebody has it open for writing
	default: // EACCES, EINVAL, ENOLCK, …: none to be had for this file
		// A change in the tick in which the watch begins would leave no mark.
		time.Sleep(settleTime)
		if image.writer = s.watchedWriter(image); image.writer != "" {
			return nil
		}
		image.kept = watched
	}
	// Only now nobody can have written to it since it was looked at.
	st, statErr := statFile(image.f, image.path)
	if statErr != nil {
		return statErr
	}
	image.seen = versionOf(st)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guarded[image.seen.fileID]++
	return nil
}

// watchedWriter names who writes to an image, as far as one can see without a lease.
func (s *Store) watchedWriter(image *guardedImage) string {
	if pid, locked := qemuWriter(image.f); locked {
		if pid > 0 {
			return proc.Name(s.procfs, fmt.Sprint(pid))
		}
		if name := s.writerOf(image.seen.fileID); name != "" {
			return name
		}
		return unknownHolder
	}
	return s.writerOf(image.seen.fileID)
}

// lease sets or ends (F_UNLCK) a lease.
func lease(f *os.File, kind int) error {
	return control(f, func(fd int) error {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, kind); err != nil {
			return err
		}
		// The kernel announces a breaking by a signal; nobody here needs it. Go
		// ignores SIGIO, and without an owner it is not even sent.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETOWN, 0)
		return nil
	})
}

// cannotCopy says why an image that cannot be cloned cannot be copied either.
func (image *guardedImage) cannotCopy(s *Store, domain string, running bool, holder string) error {
	if holder == "" {
		holder = image.writer
	}
	if holder == "" {
		holder = s.writerOf(image.seen.fileID)
	}
	if holder == "" {
		holder = unknownHolder
		if running {
			holder = "its running domain"
		}
	}
	if domain == "" {
		domain = "the domain"
	}
	sentinel := backend.ErrBusy
	if running {
		sentinel = backend.ErrUnsupported
	}
	return backend.Because(sentinel, "%s is in use by %s, and %s cannot reflink: shut %s down, or move the image to XFS or Btrfs",
		image.path, holder, filesystemName(image.f), domain)
}

// broken says why an image is not kept unwritten any more.
func (image *guardedImage) broken() error {
	switch image.kept {
	case leased:
		kind := 0
		err := control(image.f, func(fd int) (err error) {
			kind, err = unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
			return err
		})
		if err != nil {
			return failed("look at the lease on", image.path, err)
		}
		if kind != unix.F_RDLCK {
			return backend.Because(backend.ErrBusy, "%s is being opened for writing, so that its snapshot cannot be completed", image.path)
		}
	case watched:
		st, err := statFile(image.f, image.path)
		if err != nil {
			return err
		}
		if versionOf(st) != image.seen {
			return backend.Because(backend.ErrBusy, "%s was changed, so that its snapshot cannot be completed", image.path)
		}
		if _, locked := qemuWriter(image.f); locked {
			return backend.Because(backend.ErrBusy, "%s is in use by QEMU, so that its snapshot cannot be completed", image.path)
		}
	}
	return nil
}

func (image *guardedImage) close(s *Store) {
	image.release(s)
	image.f.Close()
}

// release lets others write to an image again, whose file stays open.
func (image *guardedImage) release(s *Store) {
	if image.kept == leased {
		// Closing alone would not do: a child that was just forked may hold the descriptor a little longer than we do.
		_ = lease(image.f, unix.F_UNLCK)
	}
	if image.kept == unkept {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := image.seen.fileID
	if s.guarded[id]--; s.guarded[id] <= 0 {
		delete(s.guarded, id)
	}
}

// Broken implements backend.Guard.
func (g *guard) Broken() error {
	g.mu.Lock()
	released := g.released
	g.mu.Unlock()
	if released {
		return backend.Because(backend.ErrStale, "the images' guard was released")
	}
	for _, image := range g.origins {
		if err := image.broken(); err != nil {
			return err
		}
		if len(image.backing) == 0 {
			continue
		}
		if err := g.s.newRecordCheck().check(image.backing); err != nil {
			return backend.Because(backend.ErrBusy, "%s: %v, so that its snapshot cannot be completed", image.path, err)
		}
	}
	return nil
}

// Exclusive implements backend.Guard.
func (g *guard) Exclusive() bool {
	for _, image := range g.origins {
		if image.kept == unkept {
			return false
		}
	}
	return true
}

// Release implements backend.Guard.
func (g *guard) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.released {
		return
	}
	g.released = true
	for _, c := range g.copies {
		c.release(g.s)
	}
	for _, image := range g.origins {
		image.close(g.s)
	}
}

// guardOf finds the image of a volume under a guard that Prepare returned.
func (s *Store) guardOf(g backend.Guard, origin string) (*guard, *guardedImage, error) {
	own, ok := g.(*guard)
	if !ok || own.s != s || own.origins[origin] == nil {
		return nil, nil, backend.Because(backend.ErrInvalid, "snapshot %s: it was not prepared", origin)
	}
	return own, own.origins[origin], own.Broken()
}

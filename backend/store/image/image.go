package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	storeName  = "image"
	driverName = "file"
)

// maxFolders bounds how many image folders are remembered beyond the configured ones.
const maxFolders = 4096

// Store is the image files of a host. It is safe for concurrent use.
//
// Lock order: changes, looking, guard.mu, mu. No lock is held while bytes are copied.
type Store struct {
	log     *zap.Logger
	folders []string // as configured: absolute, clean
	formats []backend.Format
	run     *run.Runner
	sysfs   string // where sysfs is mounted
	procfs  string // where procfs is mounted
	// noLease makes guards watch instead of taking leases, as where there are none.
	noLease bool
	// noReflink makes snapshots be copied, as where nothing can be cloned.
	noReflink bool
	// usageBudget is how long one listing may look at copies.
	usageBudget time.Duration

	// changes is held for each change of what is in .domfs folders.
	changes sync.Mutex

	// looking is held while copies are looked at for what they share.
	looking sync.Mutex

	mu        sync.Mutex
	current   map[string]bool           // folders of the disks that Volumes was last asked for; guarded by mu
	seen      map[string]bool           // folders of all disks it was ever asked for; guarded by mu
	reflinks  map[filesystem]bool       // which filesystems can FICLONE; guarded by mu
	manifests map[fileVersion]*manifest // parsed ones, nil for damaged ones; guarded by mu
	usages    map[fileVersion]usage     // what copies share; guarded by mu
	warned    map[string]string         // last warning for a path; guarded by mu
	guarded   map[fileID]int            // how many guards keep a file unwritten; guarded by mu
	held      map[fileID]*heldCopy      // copies that are being made; guarded by mu
	loops     map[string]loopBinding    // loop devices by name; guarded by mu
	holders   map[fileID]processHolder  // who holds a lock on a file; guarded by mu
}

// New makes the store. It looks for snapshots in folders, and in the folders of all
// images that Volumes is asked for; for backing files it looks in folders alone. Images are raw or in
// one of formats.
func New(folders []string, formats []backend.Format, log *zap.Logger) *Store {
	if log == nil {
		log = zap.NewNop()
	}
	s := &Store{
		log:         log,
		formats:     formats,
		run:         run.New(log),
		sysfs:       "/sys",
		procfs:      "/proc",
		current:     map[string]bool{},
		seen:        map[string]bool{},
		reflinks:    map[filesystem]bool{},
		manifests:   map[fileVersion]*manifest{},
		usageBudget: usageBudget,
		usages:      map[fileVersion]usage{},
		warned:      map[string]string{},
		guarded:     map[fileID]int{},
		held:        map[fileID]*heldCopy{},
		loops:       map[string]loopBinding{},
		holders:     map[fileID]processHolder{},
	}
	for _, folder := range folders {
		abs, err := filepath.Abs(folder)
		if err != nil {
			abs = filepath.Clean(folder)
		}
		s.folders = append(s.folders, abs)
	}
	return s
}

// Name is "image".
func (s *Store) Name() string { return storeName }

// fileID is the identity of a file on this host.
type fileID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// fileVersion is a file and the state of its content.
type fileVersion struct {
	fileID
	mtime, ctime, size int64 // nanoseconds, nanoseconds, bytes
}

func versionOf(st *unix.Stat_t) fileVersion {
	return fileVersion{idOf(st), st.Mtim.Nano(), st.Ctim.Nano(), st.Size}
}

// generation mixes a version into Volume.Generation.
func (v fileVersion) generation() uint64 {
	var b [40]byte
	for i, n := range []uint64{v.dev, v.ino, uint64(v.mtime), uint64(v.ctime), uint64(v.size)} {
		binary.LittleEndian.PutUint64(b[8*i:], n)
	}
	h := fnv.New64a()
	h.Write(b[:])
	return h.Sum64()
}

// Volumes finds the image files among disks. Each costs a few system calls.
func (s *Store) Volumes(ctx context.Context, disks []backend.Disk) ([]backend.Volume, error) {
	volumes := make([]backend.Volume, len(disks))
	current := map[string]bool{}
	h := s.newHolderQuery()
	for i, d := range disks {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for image files: %w", err)
		}
		v, ok := s.volume(d, h, i)
		if !ok {
			continue
		}
		volumes[i] = v
		current[filepath.Dir(v.ID)] = true
	}
	for i, name := range h.answer() {
		volumes[i].Holder = name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = current
	for folder := range current {
		if len(s.seen) < maxFolders {
			s.seen[folder] = true
		}
	}
	return volumes, nil
}

// volume is the volume behind one disk, which is number i of those that h asks for;
// false if the disk is not an image file.
func (s *Store) volume(d backend.Disk, h *holderQuery, i int) (backend.Volume, bool) {
	if d.Script != "" || d.BackendDomain != "" || !strings.HasPrefix(d.Source, "/") {
		return backend.Volume{}, false
	}
	path := filepath.Clean(d.Source)
	v := backend.Volume{Store: storeName, ID: path, Driver: driverName, Format: d.Format}
	if v.Format == "" {
		v.Format = backend.FormatRaw
	}
	f, st, err := openImage(d.Source)
	if errors.Is(err, errBlockDevice) || err != nil && strings.HasPrefix(path, "/dev/") {
		return backend.Volume{}, false // what is missing from /dev would have been a device
	}
	if err == nil {
		defer f.Close()
		v.ID, err = realPath(f, path)
	}
	v.Pool = poolName(filepath.Dir(v.ID))
	if err != nil {
		v.Err = err
		return v, true
	}
	h.ask(i, f, st)
	top := chainFile{f: f, st: st, path: v.ID, folder: filepath.Dir(v.ID)}
	c := chain{top}
	if top.format, err = backend.FindFormat(s.formats, v.Format); err != nil {
		err = fmt.Errorf("%s: %w: have it made anew as raw or qcow2 (qemu-img can, but reads every file of the host that the image names: only if you trust whoever made it)", path, err)
	} else if c, err = s.openChain(top); err == nil {
		defer c.closeBacking()
		err = checkFolder(c, path)
	}
	if err != nil {
		c, v.Err = chain{top}, err
	}
	v.SizeBytes = c[0].st.Size
	if v.Err == nil {
		v.SizeBytes = c.sizeBytes()
		h.askBacking(i, c)
	}
	v.Generation, v.ModTime = c.generation(), c.modTime()
	return v, true
}

// checkFolder refuses an image that a symbolic link from another folder leads to, if it has a backing file
// by a relative name: QEMU looks for that beside the link, and not beside the image.
func checkFolder(c chain, named string) error {
	if len(c) == 1 || strings.HasPrefix(strings.TrimPrefix(c[0].header.Backing, "file:"), "/") {
		return nil
	}
	folder, err := trustedPath(filepath.Dir(named))
	if err != nil || folder == c[0].folder {
		return err
	}
	return backend.Because(backend.ErrUnsupported, "%s is a symbolic link from another folder, and QEMU looks for the backing file %q beside the link: name %s in the domain's configuration",
		named, clip(c[0].header.Backing), c[0].path)
}

// errBlockDevice says that a path leads to a block device: another store's.
var errBlockDevice = errors.New("is a block device")

// openImage opens the regular file at path for reading, symbolic links followed as far as
// trustedPath does. Nothing but a regular file is ever opened: opening a FIFO or a device may block or act.
func openImage(path string) (*os.File, *unix.Stat_t, error) {
	resolved, err := trustedPath(path)
	if err != nil {
		if errors.Is(err, backend.ErrNotExist) {
			err = fmt.Errorf("%w: check the path in the domain's configuration", err)
		}
		return nil, nil, err
	}
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, nil, failed("find", path, err)
	}
	if err := checkRegular(path, &st); err != nil {
		return nil, nil, err
	}
	fd := -1
	err = ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, nil, failed("open", path, err)
	}
	// It may have been replaced between the two calls.
	err = unix.Fstat(fd, &st)
	if err == nil {
		err = checkRegular(path, &st)
	} else {
		err = failed("find", path, err)
	}
	if err == nil && st.Nlink == 0 {
		err = backend.Because(backend.ErrNotExist, "find %s: it was just removed", path)
	}
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	if err := cameFrom(f, path, resolved); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, &st, nil
}

// checkRegular says why a file cannot be an image.
func checkRegular(path string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFBLK:
		return errBlockDevice
	case unix.S_IFDIR:
		return fmt.Errorf("%s: a disk image must be a file, and this %w: correct the domain's configuration", path, backend.ErrIsDirectory)
	}
	return backend.Because(backend.ErrInvalid, "%s: a disk image must be a regular file, and this is none: correct the domain's configuration", path)
}

// realPath is the path of an open file without symbolic links; path is how it was
// opened.
func realPath(f *os.File, path string) (string, error) {
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return path, failed("find", path, err)
	}
	if !strings.HasPrefix(real, "/") || strings.HasSuffix(real, " (deleted)") {
		// Either it was removed just now, or that is its name.
		if real, err = filepath.EvalSymlinks(path); err != nil {
			return path, failed("find", path, err)
		}
	}
	return real, nil
}

// Open opens an image, or the copy of a snapshot.
func (s *Store) Open(ctx context.Context, v backend.Volume) (backend.Device, error) {
	if v.Store != storeName {
		return nil, backend.Because(backend.ErrInvalid, "open %s: it belongs to the store %q", v.ID, v.Store)
	}
	format, err := backend.FindFormat(s.formats, v.Format)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.ID, err)
	}
	if m, ok := memberAt(v.ID); ok {
		return s.openMember(m, format)
	}
	f, st, err := openImage(v.ID)
	if errors.Is(err, errBlockDevice) {
		err = backend.Because(backend.ErrStale, "open %s: it became a block device", v.ID)
	}
	if err != nil {
		return nil, err
	}
	c, err := s.openChain(chainFile{f: f, st: st, path: v.ID, folder: filepath.Dir(v.ID), format: format})
	if err != nil {
		f.Close()
		return nil, err
	}
	return c.compose()
}

// openMember opens the copy of a snapshot, with the files behind it as they were recorded.
func (s *Store) openMember(m member, format backend.Format) (backend.Device, error) {
	f, st, err := s.openCopy(m, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	top := chainFile{f: f, st: st, path: m.path(), format: format}
	if format == nil {
		return top.device(), nil
	}
	c, err := s.openRecorded(m, top)
	if err != nil {
		f.Close()
		return nil, err
	}
	return c.compose()
}

// openRecorded opens the files behind a copy, which is open. Names in it are relative to the folder of
// its origin.
func (s *Store) openRecorded(m member, top chainFile) (chain, error) {
	set, err := openSet(m.folder, m.set)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	man, err := s.readManifest(set, m.set, m.vdev)
	if err != nil {
		return nil, err
	}
	top.folder = filepath.Dir(string(man.Origin))
	c, err := s.openChain(top)
	if err != nil {
		return nil, err
	}
	if err := checkChain(c, man.Backing); err != nil {
		c.closeBacking()
		return nil, fmt.Errorf("open %s: %w: remove the snapshot", m.path(), err)
	}
	return c, nil
}

// knownFolders are all folders that snapshots may lie in, without symbolic links.
func (s *Store) knownFolders() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resolveLocked(s.seen)
}

// resolveLocked joins the configured folders that exist with others, sorted. mu is held.
func (s *Store) resolveLocked(others map[string]bool) []string {
	all := map[string]bool{}
	for _, folder := range s.folders {
		real, err := filepath.EvalSymlinks(folder)
		if err != nil {
			s.warnLocked(folder, "image folder cannot be used", err)
			continue
		}
		all[real] = true
	}
	for folder := range others {
		all[folder] = true
	}
	return sortedKeys(all)
}

// warn logs a degradation of path, but the same one only once.
func (s *Store) warn(path, what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnLocked(path, what, err)
}

func (s *Store) warnLocked(path, what string, err error) {
	const maxWarned = 4096
	text := what + ": " + err.Error()
	if s.warned[path] == text {
		return
	}
	if len(s.warned) >= maxWarned {
		clear(s.warned)
	}
	s.warned[path] = text
	s.log.Warn(what, zap.String("volume", path), zap.Error(err))
}

// ignoringEINTR repeats a call that a signal interrupted.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

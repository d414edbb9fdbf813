package image

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// hiddenName is the folder beside images that holds their snapshots.
const hiddenName = ".domfs"

// Bounds for what is read of a hidden folder.
const (
	maxSets        = 1 << 16
	maxSetFiles    = 1 << 12
	maxNameBytes   = 128 // of a set's identity or a vdev
	imageSuffix    = ".img"
	manifestSuffix = ".json"
	tempSuffix     = ".tmp" // with a dot in front
)

// member names one volume of a snapshot set by where it lies.
type member struct {
	folder string // that the image lies in
	set    string
	vdev   string
}

func (m member) path() string {
	return filepath.Join(m.folder, hiddenName, m.set, m.vdev+imageSuffix)
}

// memberAt takes the path of a copy apart; false if it is none.
func memberAt(path string) (member, bool) {
	setFolder, file := filepath.Split(path)
	setFolder = strings.TrimSuffix(setFolder, "/")
	hidden := filepath.Dir(setFolder)
	vdev, ok := strings.CutSuffix(file, imageSuffix)
	m := member{folder: filepath.Dir(hidden), set: filepath.Base(setFolder), vdev: vdev}
	ok = ok && filepath.Base(hidden) == hiddenName && filepath.IsAbs(path) && validName(m.set) && validName(m.vdev)
	return m, ok && m.path() == path
}

// validName tells whether a set's identity or a vdev can be a file name here:
// [A-Za-z0-9._-]+, not beginning with a dot.
func validName(name string) bool {
	if name == "" || len(name) > maxNameBytes || name[0] == '.' {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// dir is an open directory. Everything in it is reached from its descriptor and follows no
// symbolic link, so that whoever can rename the folders above cannot lead elsewhere.
type dir struct {
	f    *os.File
	path string
}

func (d *dir) Close() { d.f.Close() }

// openFolder opens an image folder; a symbolic link is followed.
func openFolder(path string) (*dir, error) {
	return openDirAt(unix.AT_FDCWD, path, path, 0)
}

func openDirAt(at int, name, path string, flags int) (*dir, error) {
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
		return err
	})
	if err != nil {
		return nil, failed("open", path, err)
	}
	return &dir{os.NewFile(uintptr(fd), path), path}, nil
}

// sub opens a directory in d that must be domfs's own.
func (d *dir) sub(name string) (*dir, error) {
	path := filepath.Join(d.path, name)
	var sub *dir
	err := control(d.f, func(fd int) (err error) {
		sub, err = openDirAt(fd, name, path, unix.O_NOFOLLOW)
		return err
	})
	if errors.Is(err, backend.ErrNotDir) || errors.Is(err, backend.ErrInvalid) {
		return nil, backend.Because(backend.ErrAccess, "%s is no directory, perhaps a symbolic link that somebody left there: remove it", path)
	}
	if err != nil {
		return nil, err
	}
	st, err := statFile(sub.f, path)
	if err == nil {
		switch {
		case st.Uid != 0 && int(st.Uid) != os.Geteuid():
			err = backend.Because(backend.ErrAccess, "%s belongs to the user %d, who could change the snapshots in it: remove it, or give it to root", path, st.Uid)
		case st.Mode&0o022 != 0:
			err = backend.Because(backend.ErrAccess, "%s may be written by others than its owner, who could change the snapshots in it: chmod 700 it", path)
		}
	}
	if err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}

// makeSub opens a directory in d as sub does, and makes it durably if there is none.
func (d *dir) makeSub(name string) (*dir, error) {
	path := filepath.Join(d.path, name)
	err := control(d.f, func(fd int) error { return unix.Mkdirat(fd, name, 0o700) })
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, failed("make", path, err)
	}
	if err == nil {
		if err := d.sync(); err != nil {
			return nil, err
		}
	}
	return d.sub(name)
}

// sync makes the names in d durable.
func (d *dir) sync() error {
	err := d.f.Sync()
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: the filesystem needs no such thing
		return failed("synchronise", d.path, err)
	}
	return nil
}

func (d *dir) open(name string, flags int, mode uint32) (*os.File, error) {
	path := filepath.Join(d.path, name)
	fd := -1
	err := control(d.f, func(at int) (err error) {
		fd, err = unix.Openat(at, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (d *dir) stat(name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := control(d.f, func(at int) error { return unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return &st, err
}

// unlink removes a file; one that is not there is no error.
func (d *dir) unlink(name string) error {
	err := control(d.f, func(at int) error { return unix.Unlinkat(at, name, 0) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return failed("remove", filepath.Join(d.path, name), err)
	}
	return nil
}

// rmdirIfEmpty removes an empty directory durably; one that is not empty or not there stays.
func (d *dir) rmdirIfEmpty(name string) error {
	err := control(d.f, func(at int) error { return unix.Unlinkat(at, name, unix.AT_REMOVEDIR) })
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return failed("remove", filepath.Join(d.path, name), err)
	}
	return d.sync()
}

// rename renames within d.
func (d *dir) rename(from, to string) error {
	err := control(d.f, func(at int) error { return unix.Renameat(at, from, at, to) })
	if err != nil {
		return failed("rename", filepath.Join(d.path, from), err)
	}
	return nil
}

// names lists d, sorted, at most limit names.
func (d *dir) names(limit int) ([]string, error) {
	f, err := d.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, failed("list", d.path, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, failed("list", d.path, err)
	}
	// A file that is replaced meanwhile may be met twice.
	slices.Sort(names)
	return slices.Compact(names), nil
}

// openSet opens the folder of a set.
func openSet(folder, set string) (*dir, error) {
	top, err := openFolder(folder)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	hidden, err := top.sub(hiddenName)
	if err != nil {
		return nil, err
	}
	defer hidden.Close()
	return hidden.sub(set)
}

// makeSet opens the folder of a set, made if there is none.
func makeSet(folder, set string) (*dir, error) {
	top, err := openFolder(folder)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	hidden, err := top.makeSub(hiddenName)
	if err != nil {
		return nil, err
	}
	defer hidden.Close()
	return hidden.makeSub(set)
}

// pruneSet removes the folder of a set if it is empty, and the hidden folder likewise.
func pruneSet(folder, set string) error {
	return withHidden(folder, func(top, hidden *dir) error {
		if err := hidden.rmdirIfEmpty(set); err != nil {
			return err
		}
		return top.rmdirIfEmpty(hiddenName)
	})
}

// withHidden calls f with an image folder and the hidden folder in it, if both are there.
func withHidden(folder string, f func(top, hidden *dir) error) error {
	top, err := openFolder(folder)
	if errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrNotDir) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	hidden, err := top.sub(hiddenName)
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer hidden.Close()
	return f(top, hidden)
}

// openCopy opens the copy of a snapshot.
func (s *Store) openCopy(m member, flags int) (*os.File, *unix.Stat_t, error) {
	set, err := openSet(m.folder, m.set)
	if err != nil {
		return nil, nil, err
	}
	defer set.Close()
	f, err := set.open(m.vdev+imageSuffix, flags, 0)
	if err != nil {
		return nil, nil, failed("open", m.path(), err)
	}
	st, err := statFile(f, m.path())
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = backend.Because(backend.ErrInvalid, "%s is no regular file", m.path())
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

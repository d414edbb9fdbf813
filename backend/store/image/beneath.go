package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// maxDepth is how many folders deep a backing file may lie in a folder of the admin's.
const maxDepth = 64

// namedFolder is a folder of the admin's: as it was named, and without symbolic links.
type namedFolder struct{ named, real string }

// namedFolders are those of the configured folders that are there.
func (s *Store) namedFolders() []namedFolder {
	var out []namedFolder
	for _, folder := range s.folders {
		real, err := filepath.EvalSymlinks(folder)
		if err != nil {
			s.warn(folder, "image folder cannot be used", err)
			continue
		}
		out = append(out, namedFolder{folder, real})
	}
	return out
}

// components splits a path. ".." stays: what it means is known only where the path is walked.
func components(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// enter finds the folder that a path begins with, the longest one, and what follows.
func enter(folders []namedFolder, path []string) (real string, rest []string, ok bool) {
	longest := -1
	for _, folder := range folders {
		for _, name := range []string{folder.named, folder.real} {
			prefix := components(name)
			if len(prefix) <= longest || len(prefix) > len(path) || !slices.Equal(prefix, path[:len(prefix)]) {
				continue
			}
			longest, real, rest, ok = len(prefix), folder.real, path[len(prefix):], true
		}
	}
	return real, rest, ok
}

// ascend takes the ".." at a path's beginning away; at has no symbolic links.
func ascend(at string, rest []string) []string {
	for len(rest) > 0 && rest[0] == ".." {
		at, rest = filepath.Dir(at), rest[1:]
	}
	return append(components(at), rest...)
}

// located is a file that openBeneath has found.
type located struct {
	at     *os.File // O_PATH: not opened for anything yet
	st     *unix.Stat_t
	path   string // without symbolic links
	folder string // that its name was found in: QEMU looks there for what it names, even if that name is a link
}

// errOutside says that a path leads out of the admin's folders; where is the path that does.
type errOutside struct{ where string }

func (e *errOutside) Error() string {
	return fmt.Sprintf("%q is in no folder that --image-dir names", clip(e.where))
}

// openBeneath finds the file at an absolute path in one of the folders. Nothing outside of them is
// looked at, whatever is put in the way meanwhile: each component is opened from the
// descriptor of the one before, and links are followed by hand, those of root and of our own user (as in
// trustedPath). Snapshots, which may be of other guests, are not in them.
func openBeneath(folders []namedFolder, path string) (found *located, err error) {
	todo := components(path)
	var open []*dir // the folder of the admin's, and those within it on the way
	shut := func() {
		for _, d := range open {
			d.Close()
		}
		open = nil
	}
	defer shut()
	links, inFolder := 0, ""
	for {
		if open == nil {
			real, rest, ok := enter(folders, todo)
			if !ok {
				return nil, &errOutside{"/" + strings.Join(todo, "/")}
			}
			root, err := openDirAt(unix.AT_FDCWD, real, real, unix.O_PATH)
			if err != nil {
				return nil, err
			}
			open, todo = append(open, root), rest
		}
		here := open[len(open)-1]
		if len(todo) == 0 {
			return nil, fmt.Errorf("%s: a backing file must be a file, and this %w", here.path, backend.ErrIsDirectory)
		}
		name := todo[0]
		todo = todo[1:]
		if strings.EqualFold(name, hiddenName) { // some filesystems can ignore case
			return nil, backend.Because(backend.ErrAccess, "%s is domfs's own folder of snapshots, which no image may have a backing file in: have the image made anew without it", filepath.Join(here.path, name))
		}
		if name == ".." {
			if len(open) > 1 {
				here.Close()
				open = open[:len(open)-1]
				continue
			}
			todo = ascend(filepath.Dir(here.path), todo)
			shut()
			continue
		}
		if len(todo) == 0 && inFolder == "" {
			inFolder = here.path
		}
		next := filepath.Join(here.path, name)
		f, err := here.open(name, unix.O_PATH, 0)
		if err != nil {
			return nil, failed("find the backing file", next, err)
		}
		st, err := statFile(f, next)
		if err != nil {
			f.Close()
			return nil, err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if open = append(open, &dir{f, next}); len(open) > maxDepth {
				return nil, backend.Because(backend.ErrInvalid, "%s lies more than %d folders deep", next, maxDepth)
			}
		case unix.S_IFLNK:
			target, err := followed(f, st, next)
			f.Close()
			if err != nil {
				return nil, err
			}
			if links++; links > maxLinks {
				return nil, backend.Because(backend.ErrInvalid, "%s leads through more than %d symbolic links", path, maxLinks)
			}
			todo = append(components(target), todo...)
			if strings.HasPrefix(target, "/") {
				shut()
			}
		default:
			if len(todo) > 0 {
				f.Close()
				return nil, fmt.Errorf("find the backing file %s: %s: %w", path, next, backend.ErrNotDir)
			}
			return &located{at: f, st: st, path: next, folder: inFolder}, nil
		}
	}
}

// followed reads a symbolic link that is open, if its owner can be trusted.
func followed(link *os.File, st *unix.Stat_t, path string) (string, error) {
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return "", backend.Because(backend.ErrAccess, "the symbolic link %s belongs to user %d, whom domfs does not follow: make the link root's", path, st.Uid)
	}
	buf := make([]byte, unix.PathMax)
	n := 0
	err := control(link, func(fd int) (err error) {
		n, err = unix.Readlinkat(fd, "", buf)
		return err
	})
	if err != nil {
		return "", failed("read the symbolic link", path, err)
	}
	return string(buf[:n]), nil
}

// reopen opens the very file that a descriptor is of, however it is named by now.
func reopen(f *os.File, path string, flags int) (*os.File, error) {
	fd := -1
	err := control(f, func(from int) (err error) {
		fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(from), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// open opens a file that was found for reading; nothing but a regular one is.
func (l *located) open() (*os.File, error) {
	if err := l.checkRegular(); err != nil {
		return nil, err
	}
	f, err := reopen(l.at, l.path, unix.O_RDONLY)
	if err != nil {
		return nil, failed("open the backing file", l.path, err)
	}
	// A folder that was moved away meanwhile may lie outside by now.
	if err := cameFrom(f, l.path, l.path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (l *located) checkRegular() error {
	kind := ""
	switch l.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if l.st.Nlink == 0 {
			return backend.Because(backend.ErrNotExist, "find the backing file %s: it was just removed", l.path)
		}
		return nil
	case unix.S_IFBLK, unix.S_IFCHR:
		kind = "device"
	case unix.S_IFIFO:
		kind = "FIFO"
	default:
		kind = "special file"
	}
	return backend.Because(backend.ErrUnsupported, "%s is a %s: only regular files are followed as backing files", l.path, kind)
}

// clip bounds a name that somebody else chose, for a message.
func clip(name string) string {
	const most = 300
	if len(name) <= most {
		return name
	}
	return name[:most] + "…"
}

var _ error = (*errOutside)(nil)

// asOutside finds the path that led outside, if that is what went wrong.
func asOutside(err error) (where string, ok bool) {
	var e *errOutside
	if errors.As(err, &e) {
		return e.where, true
	}
	return "", false
}

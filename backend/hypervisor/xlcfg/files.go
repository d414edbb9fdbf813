package xlcfg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"domfs/backend"
)

// maxFiles is how many files of one folder are looked at.
const maxFiles = 10000

// settleTime is how old a file must be when it is read for its time stamps to tell
// a later change: longer than the resolution of any filesystem's.
const settleTime = 2 * time.Second

// file is a configuration file that was found.
type file struct {
	path  string // absolute, symbolic links in its last component resolved
	stamp stamp
	err   error // why it cannot be read
}

// stamp changes when a file does.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// entry is what a file said.
type entry struct {
	stamp   stamp
	settled bool // the stamp tells of any later change
	domain  backend.Domain
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return filepath.Clean(path)
}

// files finds the configuration files, sorted by path, each real file once.
func (d *Driver) files(ctx context.Context) ([]file, error) {
	var found []file
	for _, path := range d.paths {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		switch {
		case err == nil && info.IsDir():
			found = append(found, d.folder(path)...)
			continue
		case err == nil:
			d.forgive(path)
			found = append(found, lookAt(path))
			continue
		case errors.Is(err, fs.ErrNotExist) && slices.Contains(DefaultPaths, path):
			d.forgive(path)
		case filepath.Ext(path) != "":
			found = append(found, file{path: path, err: hostError("open", path, err)})
		default:
			d.warn(path, hostError("open", path, err))
		}
	}
	slices.SortStableFunc(found, byPath)
	seen := map[stamp]bool{}
	paths := map[string]bool{}
	return slices.DeleteFunc(found, func(f file) bool {
		id := stamp{dev: f.stamp.dev, ino: f.stamp.ino}
		if paths[f.path] || f.err == nil && seen[id] {
			return true
		}
		paths[f.path] = true
		seen[id] = true
		return false
	}), nil
}

// folder finds the configuration files in a folder.
func (d *Driver) folder(dir string) []file {
	names, err := readNames(dir)
	if err != nil {
		d.warn(dir, hostError("list", dir, err))
	} else {
		d.forgive(dir)
	}
	all := filepath.Base(dir) == "auto"
	var found []file
	for _, name := range names {
		// As the shell's * does, leaving alone what editors keep beside a file.
		if strings.HasPrefix(name, ".") || !all && !strings.HasSuffix(name, ".cfg") {
			continue
		}
		path := filepath.Join(dir, name)
		f := lookAt(path)
		if errors.Is(f.err, backend.ErrIsDirectory) {
			continue
		}
		if errors.Is(f.err, backend.ErrNotExist) {
			if _, err := os.Lstat(path); err != nil {
				continue // removed since it was listed; a link to nowhere is shown
			}
		}
		found = append(found, f)
	}
	return found
}

// readNames lists a folder; what it could list comes with an error, too.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles)
	if err == io.EOF {
		err = nil
	}
	if err == nil && len(names) == maxFiles {
		if _, err := f.Readdirnames(1); err == nil {
			return names, fmt.Errorf("more than %d files, the rest is left out: %w", maxFiles, backend.ErrInvalid)
		}
	}
	return names, err
}

// lookAt stats a file, following links.
func lookAt(path string) file {
	info, err := os.Lstat(path)
	if err != nil {
		return file{path: path, err: hostError("open", path, err)}
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return file{path: path, err: hostError("follow the link", path, err)}
		}
		if info, err = os.Stat(real); err != nil {
			return file{path: path, err: hostError("open", real, err)}
		}
		path = real
	}
	return file{path: path, stamp: stampOf(info), err: checkType(path, info)}
}

func checkType(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return fmt.Errorf("%s: %w", shown(path), backend.ErrIsDirectory)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file: %w", shown(path), backend.ErrInvalid)
	case info.Size() > maxFileBytes:
		return fmt.Errorf("%s has %d bytes; a configuration file has %d at most: %w", shown(path), info.Size(), maxFileBytes, backend.ErrInvalid)
	}
	return nil
}

func stampOf(info fs.FileInfo) stamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}
	}
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// readEntry reads a file. It does not wait for the writer of a pipe that took the file's place.
func readEntry(path string) (entry, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return entry{}, hostError("open", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return entry{}, hostError("stat", path, err)
	}
	if err := checkType(path, info); err != nil {
		return entry{}, err
	}
	e := entry{stamp: stampOf(info)}
	now := time.Now()
	e.settled = older(now, e.stamp.mtime) && older(now, e.stamp.ctime)
	src, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return entry{}, hostError("read", path, err)
	}
	if len(src) > maxFileBytes {
		return entry{}, fmt.Errorf("%s has more than %d bytes: %w", shown(path), maxFileBytes, backend.ErrInvalid)
	}
	e.domain = domainOf(path, src)
	return e, nil
}

func older(now time.Time, ts syscall.Timespec) bool {
	return now.Sub(time.Unix(ts.Unix())) > settleTime
}

// hostError wraps an error of the host's in a sentinel.
func hostError(op, path string, err error) error {
	var sentinel error
	switch {
	case errors.Is(err, fs.ErrNotExist):
		sentinel = backend.ErrNotExist
	case errors.Is(err, fs.ErrPermission):
		sentinel = backend.ErrAccess
	case errors.Is(err, syscall.ENOTDIR):
		sentinel = backend.ErrNotDir
	case errors.Is(err, backend.ErrInvalid):
		return fmt.Errorf("%s %s: %w", op, shown(path), err)
	default:
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = pe.Err
		}
		return fmt.Errorf("%s %s: %w: %w", op, shown(path), backend.ErrIO, err)
	}
	return fmt.Errorf("%s %s: %w", op, shown(path), sentinel)
}

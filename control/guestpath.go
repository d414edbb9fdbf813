package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"domfs/backend"
)

// guestTree walks paths in a guest's filesystems as they are mounted so far. Nothing of the host's takes part:
// symbolic links are followed within the guest.
type guestTree struct {
	ctx  context.Context
	h    *Host
	top  *Mount
	open map[VolumeRef]openFS
}

type openFS struct {
	volume *Volume
	fs     backend.FS
}

// guestPlace is a directory or file of the tree.
type guestPlace struct {
	mount *Mount
	attr  backend.Attr
}

// close releases the filesystems that the walks opened.
func (t *guestTree) close() {
	for _, o := range t.open {
		o.volume.Release()
	}
}

// fs opens the filesystem of a volume, once.
func (t *guestTree) fs(ref VolumeRef) (backend.FS, error) {
	if o, ok := t.open[ref]; ok {
		return o.fs, nil
	}
	v, err := t.h.Volume(t.ctx, ref)
	if err != nil {
		return nil, err
	}
	fs, err := v.FS(t.ctx)
	if err != nil {
		v.Release()
		return nil, err
	}
	if i, ok := fs.(backend.Interruptible); ok {
		fs = i.Until(t.ctx.Done())
	}
	t.open[ref] = openFS{v, fs}
	return fs, nil
}

const (
	// maxGuestLinks is how many symbolic links a path may lead through, as in the kernel.
	maxGuestLinks = 40
	// maxGuestSteps bounds the lookups of one path, with those of its links.
	maxGuestSteps = 1024
)

// walk finds a path, following symbolic links. ErrNotExist, ErrNotDir, ErrInvalid (more links than the kernel follows).
func (t *guestTree) walk(path string) (guestPlace, error) {
	root, err := t.root()
	if err != nil {
		return root, err
	}
	above := []guestPlace{root} // the directories on the way, the present one last
	todo := splitGuestPath(path)
	links := 0
	for steps := 0; len(todo) > 0; steps++ {
		if steps == maxGuestSteps {
			return root, fmt.Errorf("%s leads through too many directories: %w", oneLine(path), backend.ErrInvalid)
		}
		name := todo[0]
		todo = todo[1:]
		here := above[len(above)-1]
		if here.attr.Type != backend.TypeDir {
			return here, backend.ErrNotDir
		}
		if name == ".." {
			above = above[:max(1, len(above)-1)]
			continue
		}
		next, err := t.lookup(here, name)
		if err != nil {
			return here, err
		}
		if next.attr.Type != backend.TypeSymlink {
			above = append(above, next)
			continue
		}
		if links++; links > maxGuestLinks {
			return next, fmt.Errorf("%s leads through more than %d symbolic links: %w", oneLine(path), maxGuestLinks, backend.ErrInvalid)
		}
		target, err := t.readlink(next)
		if err != nil {
			return next, err
		}
		if strings.HasPrefix(target, "/") {
			above = above[:1]
		}
		todo = append(splitGuestPath(target), todo...)
	}
	return above[len(above)-1], nil
}

// splitGuestPath lists the names in a path, at most as many as can be walked and one.
func splitGuestPath(path string) (names []string) {
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." && len(names) <= maxGuestSteps {
			names = append(names, name)
		}
	}
	return names
}

func (t *guestTree) root() (guestPlace, error) {
	return t.at(t.top)
}

// at is the directory that a mount shows, or that of what is mounted upon it.
func (t *guestTree) at(m *Mount) (guestPlace, error) {
	m = m.topmost()
	if m.Err != nil {
		return guestPlace{}, m.Err
	}
	fs, err := t.fs(m.Ref)
	if err != nil {
		return guestPlace{}, err
	}
	attr, err := fs.Attr(m.Ino)
	return guestPlace{m, attr}, err
}

func (t *guestTree) lookup(dir guestPlace, name string) (guestPlace, error) {
	fs, err := t.fs(dir.mount.Ref)
	if err != nil {
		return dir, err
	}
	attr, err := fs.Lookup(dir.attr.Ino, name)
	if errors.Is(err, backend.ErrTooLong) {
		err = backend.ErrNotExist
	}
	if err != nil {
		return dir, err
	}
	if m := dir.mount.At(attr.Ino); m != nil {
		return t.at(m)
	}
	return guestPlace{dir.mount, attr}, nil
}

func (t *guestTree) readlink(p guestPlace) (string, error) {
	fs, err := t.fs(p.mount.Ref)
	if err != nil {
		return "", err
	}
	target, err := fs.Readlink(p.attr.Ino)
	if len(target) >= maxPathBytes {
		return "", backend.ErrInvalid
	}
	return string(target), err
}

// readFile reads at most limit bytes of a regular file.
func (t *guestTree) readFile(p guestPlace, limit int64) ([]byte, error) {
	if p.attr.Type != backend.TypeRegular {
		return nil, fmt.Errorf("it is no regular file: %w", backend.ErrInvalid)
	}
	fs, err := t.fs(p.mount.Ref)
	if err != nil {
		return nil, err
	}
	f, err := fs.OpenFile(p.attr.Ino)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, max(0, min(limit, f.Size())))
	n, err := f.ReadAt(b, 0)
	if err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return nil, err
	}
	return b, nil
}

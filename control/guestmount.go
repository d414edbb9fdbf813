package control

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"domfs/backend"
)

// mountAll mounts what the fstab says: directories before what is in them, as systemd does, and then directories
// that are mounted at a second place.
func (f *rootFinder) mountAll(entries []fstabEntry) {
	var todo []*fstabEntry
	points := map[string]bool{"/": true}
	for i := range entries {
		e := &entries[i]
		if e.file == "/" || !e.atBoot() || !e.isBind() && !f.mayHold(e) {
			continue
		}
		if points[e.file] {
			f.warn("its /etc/fstab has %s twice: the first one counts", oneLine(e.file))
			continue
		}
		points[e.file] = true
		todo = append(todo, e)
	}
	slices.SortStableFunc(todo, func(a, b *fstabEntry) int { return a.depth() - b.depth() })
	for _, binds := range []bool{false, true} {
		for _, e := range todo {
			if e.isBind() != binds || f.tree.ctx.Err() != nil {
				continue
			}
			if f.mounts >= maxMounts {
				f.warn("its /etc/fstab mounts more than %d filesystems: %s and what follows is not shown", maxMounts, oneLine(e.file))
				return
			}
			if err := f.mount(e); err != nil && !e.has("nofail") && f.tree.ctx.Err() == nil {
				f.warn("%s, which its /etc/fstab mounts at %s, is not shown there: %v", oneLine(e.spec), oneLine(e.file), err)
			}
		}
	}
}

// mayHold tells whether an entry can be of a filesystem on the guest's disks: others, of the network or the kernel, are
// none of ours. A file that is mounted through a loop device is told of.
func (f *rootFinder) mayHold(e *fstabEntry) bool {
	return e.isDevice() || len(e.spec) > 0 && e.spec[0] == '/' && (len(e.spec) < 2 || e.spec[1] != '/')
}

// mount mounts an entry. The error says why its directory stays as it is.
func (f *rootFinder) mount(e *fstabEntry) error {
	if e.isBind() {
		return f.mountBind(e)
	}
	if !e.isDevice() {
		return fmt.Errorf("only devices and tags are found here: %w", backend.ErrUnsupported)
	}
	if dir, ok := e.option("X-mount.subdir"); ok {
		return fmt.Errorf("a part of a filesystem (X-mount.subdir=%s) is not mounted here: %w", oneLine(dir), backend.ErrUnsupported)
	}
	at, err := f.tree.walk(e.file)
	if err != nil {
		return pointError(err)
	}
	m := &Mount{ID: e.file, over: map[uint64]*Mount{}}
	volumes := f.d.all.named(e.spec)
	if len(volumes) == 0 {
		if lost := f.d.all.lost(); lost != nil {
			// It may be there: what shows the directory below would be wrong without a sign of it.
			m.Err = unrecorded{fmt.Errorf("%s (%s) may lie where it cannot be read: %w", oneLine(e.file), oneLine(e.spec), lost)}
			return f.put(at, m)
		}
		return backend.Because(backend.ErrNoDevice, "there is no such volume")
	}
	m.Ref = volumes[0].ref
	if t := volumes[0].content.Type; !f.d.h.reads(t) {
		return fmt.Errorf("%s holds %q, which is no filesystem that is read here: %w", m.Ref.member(), t, backend.ErrUnsupported)
	}
	fs, err := f.tree.fs(m.Ref)
	switch {
	case err == nil:
		m.Ino = fs.Root()
	case mayPass(err):
		m.Err, f.passing = err, true
	default:
		return err
	}
	return f.put(at, m)
}

// pointError says what is wrong with a mount point.
func pointError(err error) error {
	if errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrNotDir) {
		return backend.Because(backend.ErrNotExist, "there is no such directory")
	}
	return err
}

// put mounts m on a directory.
func (f *rootFinder) put(at guestPlace, m *Mount) error {
	if at.attr.Type != backend.TypeDir {
		return backend.Because(backend.ErrNotDir, "that is no directory")
	}
	if at.mount == f.tree.top && at.attr.Ino == f.tree.top.Ino {
		return backend.Because(backend.ErrInvalid, "that is the root directory itself")
	}
	at.mount.over[at.attr.Ino] = m
	f.mounts++
	return nil
}

// mountBind shows a directory at a second place; with rbind, with all that is mounted in it.
func (f *rootFinder) mountBind(e *fstabEntry) error {
	if e.spec == "" || e.spec[0] != '/' {
		return fmt.Errorf("it is no path: %w", backend.ErrInvalid)
	}
	from, err := f.tree.walk(e.spec)
	if err != nil {
		return pointError(err)
	}
	at, err := f.tree.walk(e.file)
	if err != nil {
		return pointError(err)
	}
	if from.attr.Type != backend.TypeDir {
		return fmt.Errorf("only directories are mounted a second time here: %w", backend.ErrUnsupported)
	}
	m := &Mount{ID: e.file, Ref: from.mount.Ref, Ino: from.attr.Ino, over: map[uint64]*Mount{}}
	if e.has("rbind") {
		if f.mounts+from.mount.count() > maxMounts {
			return fmt.Errorf("there would be more than %d filesystems: %w", maxMounts, backend.ErrUnsupported)
		}
		for _, ino := range slices.Sorted(maps.Keys(from.mount.over)) {
			if ino != from.attr.Ino {
				m.over[ino] = from.mount.over[ino].copied(e.file)
			}
		}
		f.mounts += m.count() - 1
	}
	return f.put(at, m)
}

// count is how many mounts there are, m among them.
func (m *Mount) count() int {
	n := 1
	for _, o := range m.over {
		n += o.count()
	}
	return n
}

// copied is m with all that is mounted in it, as seen at a second place.
func (m *Mount) copied(place string) *Mount {
	c := *m
	c.ID = place + "\x00" + m.ID // which no mount point has
	c.over = make(map[uint64]*Mount, len(m.over))
	for ino, o := range m.over {
		c.over[ino] = o.copied(place)
	}
	return &c
}

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"domfs/backend"
	"domfs/backend/format/qcow2"
)

// area is a part of an image's metadata: what was read for one purpose.
type area struct {
	name   string
	units  []int64 // offsets, in order
	filled []int64 // offsets of bytes that are not zero; of very many, some
}

const maxFilled = 1 << 16

// owner is what a unit of metadata belongs to.
type owner struct {
	area string
	ino  uint64 // the inode that was read, or 0
}

// tracer is a device that remembers what is read of it, by units of one size.
type tracer struct {
	backend.Device
	unit   int64
	now    owner            // what is being read; nothing is remembered without an area
	label  map[int64]string // areas of units that are known beforehand, by number
	owners map[int64]owner  // by number
	roles  map[int64]owner  // what units of the journal were read for, after it was opened
}

func newTracer(d backend.Device, unit int64) *tracer {
	return &tracer{Device: d, unit: unit, label: map[int64]string{}, owners: map[int64]owner{}, roles: map[int64]owner{}}
}

// during names what is read while f runs.
func (t *tracer) during(area string, ino uint64, f func()) {
	t.now = owner{area, ino}
	f()
	t.now = owner{}
}

func (t *tracer) ReadAt(p []byte, off int64) (int, error) {
	for n := off / t.unit; t.now.area != "" && n*t.unit < min(off+int64(len(p)), t.Size()); n++ {
		o := t.now
		if _, known := t.roles[n]; !known && o.area != "open" && t.label[n] == "journal" {
			t.roles[n] = o
		}
		if _, known := t.owners[n]; known {
			continue
		}
		if label := t.label[n]; label != "" {
			o = owner{area: label}
		}
		t.owners[n] = o
	}
	return t.Device.ReadAt(p, off)
}

func (t *tracer) NextData(off int64) (int64, error) { return backend.NextData(t.Device, off) }
func (t *tracer) NextHole(off int64) (int64, error) { return backend.NextHole(t.Device, off) }
func (t *tracer) Allocated() int64                  { return backend.Allocated(t.Device) }

func (t *tracer) Locate(off, length int64) (backend.Location, bool) {
	l, ok := t.Device.(backend.Locator)
	if !ok {
		return backend.Location{}, false
	}
	return l.Locate(off, length)
}

// areas are what was read. Units without anything in them are left out, but where all are empty.
func (t *tracer) areas() ([]area, error) {
	var numbers []int64
	for n := range t.owners {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	byName := map[string]*area{}
	buf := make([]byte, t.unit)
	for _, n := range numbers {
		name := t.owners[n].area
		a := byName[name]
		if a == nil {
			a = &area{name: name}
			byName[name] = a
		}
		a.units = append(a.units, n*t.unit)
		m, err := t.Device.ReadAt(buf, n*t.unit)
		if m == 0 {
			return nil, fmt.Errorf("read what is at %d once more: %w", n*t.unit, err)
		}
		for i, b := range buf[:m] {
			if b != 0 {
				a.filled = append(a.filled, n*t.unit+int64(i))
			}
		}
	}
	var out []area
	for _, a := range byName {
		if len(a.filled) == 0 {
			continue
		}
		if step := len(a.filled)/maxFilled + 1; step > 1 {
			var some []int64
			for i := 0; i < len(a.filled); i += step {
				some = append(some, a.filled[i])
			}
			a.filled = some
		}
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b area) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// traceFilesystem reads all of a filesystem but its files' content. Errors on the way are not
// looked at: a worker meets them, too.
func (t *tracer) traceFilesystem(f backend.Filesystem) (err error) {
	var fs backend.FS
	t.during("open", 0, func() {
		if fs, err = f.Open(t); err == nil {
			_, _ = fs.StatFS()
		}
	})
	if err != nil {
		return err
	}
	defer fs.Close()
	seen := map[uint64]bool{}
	for queue := []uint64{fs.Root()}; len(queue) > 0; queue = queue[1:] {
		if ino := queue[0]; !seen[ino] {
			seen[ino] = true
			queue = append(queue, t.traceInode(fs, ino)...)
		}
	}
	return nil
}

// traceInode reads an inode, and returns those in it.
func (t *tracer) traceInode(fs backend.FS, ino uint64) (children []uint64) {
	var a backend.Attr
	var err error
	t.during("inodes", 0, func() { a, err = fs.Attr(ino) })
	if err != nil {
		return nil
	}
	t.during("attributes", ino, func() {
		names, _ := fs.ListXattr(ino)
		for _, name := range names {
			_, _ = fs.Xattr(ino, name)
		}
	})
	switch a.Type {
	case backend.TypeDir:
		t.during("directories", ino, func() {
			var names []string
			_ = fs.ReadDir(ino, 0, false, func(e *backend.DirEntry) bool {
				names = append(names, e.Name)
				children = append(children, e.Ino)
				return true
			})
			for _, name := range names {
				_, _ = fs.Lookup(ino, name)
			}
		})
	case backend.TypeSymlink:
		t.during("links", ino, func() { _, _ = fs.Readlink(ino) })
	case backend.TypeRegular:
		t.during("extents", ino, func() { _ = traceMap(fs, ino) })
	}
	return children
}

// traceMap asks where a file's data and holes are.
func traceMap(fs backend.FS, ino uint64) error {
	f, err := fs.OpenFile(ino)
	if err != nil {
		return err
	}
	defer f.Close()
	return eachExtent(f, func(off, end int64) error { return nil })
}

// eachExtent calls f for each run of data.
func eachExtent(d interface{ Size() int64 }, f func(off, end int64) error) error {
	for off := int64(0); off < d.Size(); {
		data, err := backend.NextData(d, off)
		if errors.Is(err, backend.ErrRange) {
			return nil
		}
		if err != nil {
			return err
		}
		if off, err = backend.NextHole(d, data); err != nil {
			return err
		}
		if err := f(data, off); err != nil {
			return err
		}
	}
	return nil
}

// traceFormat opens a file of some format and asks where its data are; then it reads what
// may be compressed. What is opened is returned.
func (t *tracer) traceFormat(f backend.Format, backing backend.Device) (d backend.Device, err error) {
	t.during("header", 0, func() { _, err = f.Header(t) })
	if err != nil {
		return nil, err
	}
	t.during("tables", 0, func() {
		if d, err = f.Open(t, backing); err == nil {
			err = eachExtent(d, func(off, end int64) error { return nil })
		}
	})
	if err != nil {
		return nil, err
	}
	t.during("snapshots", 0, func() {
		var list []qcow2.Snapshot
		if list, err = qcow2.New().Snapshots(t); err != nil {
			return
		}
		for _, s := range list {
			var old backend.Device
			if old, err = qcow2.New().OpenSnapshot(t, backing, s.ID); err == nil {
				err = eachExtent(old, func(off, end int64) error { return nil })
			}
		}
	})
	if err != nil {
		return nil, err
	}
	l, _ := d.(backend.Locator)
	t.during("compressed clusters", 0, func() {
		buf := make([]byte, 4096)
		err = eachExtent(d, func(off, end int64) error {
			for ; off < end; off += int64(len(buf)) {
				if l != nil {
					if _, ok := l.Locate(off, 1); ok {
						continue
					}
				}
				if _, err := d.ReadAt(buf, off); err != nil && err != io.EOF {
					return err
				}
			}
			return nil
		})
	})
	return d, err
}

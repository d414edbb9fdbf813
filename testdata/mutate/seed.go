package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"domfs/backend"
	"domfs/backend/all"
)

// seed is an image that is changed, with its backing files.
type seed struct {
	name       string
	files      []string // the first is what a domain would have as its disk
	formats    []string // of each file
	target     int      // the file that is changed
	bigEnd     bool     // its numbers are big-endian
	unit       int64    // bytes that belong together: a block
	open       []*os.File
	areas      []area
	structures []structure
	owners     map[int64]owner // of units
	sums       sums            // how checksums are made to fit again; may be nil
	refused    string          // why it cannot be read
}

// sums makes checksums fit again after a change, those of what was touched.
type sums interface {
	fix(c *changed, s *seed) error
}

// image is what a recipe makes, as it is written beside it.
type image struct {
	Files   []string
	Formats []string
	Target  int
	Unit    int64
	BigEnd  bool
}

// recipe makes a seed.
type recipe struct {
	name string
	make func(ctx context.Context, k *kitchen) (*image, error)
}

// raw is a single raw file.
func raw(path string, unit int64) *image {
	return &image{Files: []string{path}, Formats: []string{"raw"}, Unit: unit}
}

// kitchen is where seeds are made.
type kitchen struct {
	dir  string // they are kept here
	name string // the one that is being made
	mnt  string // an empty folder to mount on
}

func (k *kitchen) path(suffix string) string { return filepath.Join(k.dir, k.name+suffix) }

var errRefused = errors.New("not read")

// prepare opens a seed's files and finds its metadata. A seed that cannot be read without an error
// is of no use, and has that as refused.
func (im *image) prepare(name string) (*seed, error) {
	s := &seed{name: name, files: im.Files, formats: im.Formats, target: im.Target, unit: im.Unit, bigEnd: im.BigEnd}
	var devs []*changed
	for _, path := range s.files {
		f, err := os.Open(path)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.open = append(s.open, f)
		d, err := openChanged(f, nil)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		devs = append(devs, d)
	}
	if err := s.trace(devs); err != nil {
		s.refused = err.Error()
		return s, nil
	}
	if len(s.areas) == 0 || len(s.structures) == 0 {
		s.refused = "no metadata was read of it"
	}
	return s, nil
}

func (s *seed) close() error {
	var errs []error
	for _, f := range s.open {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// trace finds the metadata of the file that is to be changed.
func (s *seed) trace(devs []*changed) (err error) {
	t := newTracer(devs[s.target], s.unit)
	f := newFinder(t)
	var d backend.Device
	for i := len(devs) - 1; i >= 0; i-- {
		var file backend.Device = devs[i]
		if i == s.target {
			file = t
		}
		format := formatNamed(s.formats[i])
		switch {
		case s.formats[i] == "raw":
			d = file
		case format == nil:
			return fmt.Errorf("%s is %w", s.formats[i], errRefused)
		case i == s.target:
			if d, err = t.traceFormat(format, d); err != nil {
				return err
			}
		default:
			if d, err = format.Open(file, d); err != nil {
				return err
			}
		}
	}
	if s.formats[s.target] == "raw" && len(devs) == 1 {
		if err := s.traceContent(t, f); err != nil {
			return err
		}
	} else if err := qcow2Fields(t.Device, f); err != nil {
		return err
	}
	s.owners, s.structures = t.owners, f.structures()
	s.areas, err = t.areas()
	return err
}

// traceContent finds the metadata of a partition table or a filesystem.
func (s *seed) traceContent(t *tracer, f *finder) error {
	c, err := all.Prober().Probe(t)
	if err != nil {
		return err
	}
	for _, l := range all.Layouts() {
		if slices.Contains(l.Types(), c.Type) {
			s.sums = tableSums(t.Device)
			t.during("table", 0, func() { _, err = l.Parts(t) })
			if err != nil {
				return err
			}
			return tableFields(t, f)
		}
	}
	for _, driver := range all.Filesystems() {
		if slices.Contains(driver.Types(), c.Type) {
			g, err := readGeometry(t.Device)
			if err != nil {
				return err
			}
			if err := g.label(t); err != nil {
				return err
			}
			if g.checksums {
				s.sums = g
			}
			if err := t.traceFilesystem(driver); err != nil {
				return err
			}
			return g.extFields(t, f)
		}
	}
	return fmt.Errorf("%q is %w", c.Type, errRefused)
}

// job is how a worker reads the seed with a change.
func (s *seed) job(pages map[int64][]byte) *job {
	return &job{Formats: s.formats, Target: s.target, Pages: pages}
}

// keep writes the image with a change, and returns what -read wants to know of it.
func (s *seed) keep(dir, name string, pages map[int64][]byte) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	var paths []string
	for i, f := range s.open {
		var mine map[int64][]byte
		if i == s.target {
			mine = pages
		}
		c, err := openChanged(f, mine)
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, fmt.Sprintf("%s-%d.%s", name, i, s.formats[i]))
		if err := c.write(path); err != nil {
			return "", err
		}
		paths = append(paths, path)
	}
	return strings.Join(paths, ","), nil
}

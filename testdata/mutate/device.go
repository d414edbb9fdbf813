package main

import (
	"errors"
	"io"
	"os"
	"slices"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

const pageBytes = 4096

// changed is a file with some of its pages replaced. Its size is the file's.
type changed struct {
	file  *os.File
	size  int64
	pages map[int64][]byte // by number; each of pageBytes
}

func openChanged(f *os.File, pages map[int64][]byte) (*changed, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if pages == nil {
		pages = map[int64][]byte{}
	}
	return &changed{file: f, size: info.Size(), pages: pages}, nil
}

func (c *changed) Size() int64  { return c.size }
func (c *changed) Close() error { return nil }

func (c *changed) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, backend.ErrInvalid
	}
	n, err := c.file.ReadAt(p, off)
	if n == 0 {
		return n, err
	}
	for page := off / pageBytes; page <= (off+int64(n)-1)/pageBytes; page++ {
		if b := c.pages[page]; b != nil {
			overlay(p[:n], off, b, page*pageBytes)
		}
	}
	return n, err
}

// overlay copies what b, at bOff, has of p, at off.
func overlay(p []byte, off int64, b []byte, bOff int64) {
	switch d := bOff - off; {
	case d >= 0:
		copy(p[min(d, int64(len(p))):], b)
	default:
		copy(p, b[-d:])
	}
}

// get reads bytes, zeros past the end.
func (c *changed) get(off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := c.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b, err
}

// put replaces bytes; those past the end are dropped.
func (c *changed) put(off int64, b []byte) error {
	b = b[:max(0, min(int64(len(b)), c.size-off))]
	for len(b) > 0 {
		page := off / pageBytes
		p := c.pages[page]
		if p == nil {
			var err error
			if p, err = c.get(page*pageBytes, pageBytes); err != nil {
				return err
			}
			c.pages[page] = p
		}
		n := copy(p[off%pageBytes:], b)
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// touched are the numbers of the pages that were replaced, in order.
func (c *changed) touched() []int64 {
	var pages []int64
	for page := range c.pages {
		pages = append(pages, page)
	}
	slices.Sort(pages)
	return pages
}

func (c *changed) NextData(off int64) (int64, error) { return c.seek(off, unix.SEEK_DATA) }
func (c *changed) NextHole(off int64) (int64, error) { return c.seek(off, unix.SEEK_HOLE) }

func (c *changed) seek(off int64, whence int) (int64, error) {
	if off < 0 || off >= c.size {
		return 0, backend.ErrRange
	}
	n, err := unix.Seek(int(c.file.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return 0, backend.ErrRange
	}
	return n, err
}

func (c *changed) Allocated() int64 { return c.size }

// Locate tells where the bytes were before they were replaced: nobody reads them there.
func (c *changed) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= c.size || length <= 0 {
		return backend.Location{}, false
	}
	return backend.Location{FD: c.file.Fd(), Offset: off, Length: min(length, c.size-off)}, true
}

// write makes a file of it, with holes where it is zero.
func (c *changed) write(path string) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(c.size); err != nil {
		return err
	}
	zero := make([]byte, 64<<10)
	for off := int64(0); off < c.size; off += int64(len(zero)) {
		b, err := c.get(off, int(min(int64(len(zero)), c.size-off)))
		if err != nil {
			return err
		}
		if slices.Equal(b, zero[:len(b)]) {
			continue
		}
		if _, err := out.WriteAt(b, off); err != nil {
			return err
		}
	}
	return out.Close()
}

package backend

import (
	"fmt"
	"io"
)

// Device is bytes to read: a volume, a partition, a guest's logical volume. It is
// safe for concurrent use. ReadAt past the end is (n, io.EOF), as for a file.
//
// Optional: Locator, Sparse, Warner.
type Device interface {
	io.ReaderAt
	Size() int64 // bytes
	Close() error
}

// Location is where a run of bytes lies in a file or device of the host.
type Location struct {
	FD     uintptr
	Offset int64 // in FD
	Length int64 // bytes
}

// Locator is a Device (or a File) whose bytes lie unaltered in a host file, so that
// they can be spliced.
type Locator interface {
	// Locate says where the bytes at off lie, for a prefix of length bytes. ok is false
	// where they lie nowhere (a hole, compressed, not within one descriptor). The
	// descriptor is valid until the Device is closed.
	Locate(off, length int64) (loc Location, ok bool)
}

// Warner is a Device that knows of faults which do not keep it from being read.
type Warner interface {
	// Warnings are sentences, few of them.
	Warnings() []string
}

// Sparse is a Device (or a File) that knows where its holes are.
type Sparse interface {
	// NextData returns the offset of the first byte of data at or after off, as
	// lseek(2) SEEK_DATA: ErrRange if there is none or off is at or past the end.
	NextData(off int64) (int64, error)
	// NextHole returns the offset of the first hole at or after off, as lseek(2)
	// SEEK_HOLE; the end counts as a hole.
	NextHole(off int64) (int64, error)
	// Allocated is how many bytes of space are held, for st_blocks.
	Allocated() int64
}

// Section is the length bytes of d that begin at off, as a Device. Closing it does
// nothing: d belongs to whoever opened it. It is an error if d has no such bytes.
func Section(d Device, off, length int64) (Device, error) {
	if off < 0 || length < 0 || off > d.Size() || length > d.Size()-off {
		return nil, fmt.Errorf("bytes %d to %d+%d are outside of a device of %d bytes: %w", off, off, length, d.Size(), ErrCorrupt)
	}
	return &section{d: d, off: off, length: length}, nil
}

// SectionOf is the device that a Section was made of, and where it begins there; ok is false for what is
// no Section.
func SectionOf(d Device) (of Device, off int64, ok bool) {
	s, ok := d.(*section)
	if !ok {
		return nil, 0, false
	}
	return s.d, s.off, true
}

type section struct {
	d           Device
	off, length int64
}

func (s *section) Size() int64  { return s.length }
func (s *section) Close() error { return nil }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d: %w", off, ErrInvalid)
	}
	if off >= s.length {
		return 0, io.EOF
	}
	if rest := s.length - off; int64(len(p)) > rest {
		n, err := s.d.ReadAt(p[:rest], s.off+off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return s.d.ReadAt(p, s.off+off)
}

func (s *section) Locate(off, length int64) (Location, bool) {
	l, ok := s.d.(Locator)
	if !ok || off < 0 || off >= s.length {
		return Location{}, false
	}
	return l.Locate(s.off+off, min(length, s.length-off))
}

func (s *section) NextData(off int64) (int64, error) {
	if off < 0 || off >= s.length {
		return 0, ErrRange
	}
	n, err := NextData(s.d, s.off+off)
	if err != nil {
		return 0, err
	}
	if n >= s.off+s.length {
		return 0, ErrRange
	}
	return n - s.off, nil
}

func (s *section) NextHole(off int64) (int64, error) {
	if off < 0 || off >= s.length {
		return 0, ErrRange
	}
	n, err := NextHole(s.d, s.off+off)
	if err != nil {
		return 0, err
	}
	return min(n-s.off, s.length), nil
}

// Allocated counts the section's data, giving up after a bounded number of extents:
// the rest then counts as data.
func (s *section) Allocated() int64 {
	const maxExtents = 4096
	var sum, off int64
	for i := 0; off < s.length; i++ {
		if i == maxExtents {
			return sum + s.length - off
		}
		data, err := s.NextData(off)
		if err != nil {
			break
		}
		hole, err := s.NextHole(data)
		if err != nil {
			break
		}
		sum += hole - data
		off = hole
	}
	return sum
}

// NextData is SEEK_DATA on a Device or File that need not be Sparse: without, all of
// it is data.
func NextData(d interface{ Size() int64 }, off int64) (int64, error) {
	if s, ok := d.(Sparse); ok {
		return s.NextData(off)
	}
	if off < 0 || off >= d.Size() {
		return 0, ErrRange
	}
	return off, nil
}

// NextHole is SEEK_HOLE, likewise.
func NextHole(d interface{ Size() int64 }, off int64) (int64, error) {
	if s, ok := d.(Sparse); ok {
		return s.NextHole(off)
	}
	if off < 0 || off >= d.Size() {
		return 0, ErrRange
	}
	return d.Size(), nil
}

// Allocated is the space that a Device or File holds, in bytes: its size where it is not Sparse.
func Allocated(d interface{ Size() int64 }) int64 {
	if s, ok := d.(Sparse); ok {
		return s.Allocated()
	}
	return d.Size()
}

package lvm2

import (
	"fmt"
	"io"
	"slices"
	"sort"

	"domfs/backend"
)

func sortSegments(s []*segment) {
	slices.SortStableFunc(s, func(a, b *segment) int {
		switch {
		case a.start < b.start:
			return -1
		case a.start > b.start:
			return 1
		}
		return 0
	})
}

// clip is what every ReadAt here begins with: how much of a read of n bytes at off lies on a device of
// size bytes, and io.EOF where that is not all.
func clip(n int, off, size int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d: %w", off, backend.ErrInvalid)
	}
	if off >= size {
		return 0, io.EOF
	}
	if rest := size - off; int64(n) > rest {
		return int(rest), io.EOF
	}
	return n, nil
}

// joined is devices one after the other.
type joined struct {
	parts []backend.Device
	start []int64 // of each part
	size  int64
	steps int64 // how many devices a search for data or holes may ask
}

// join puts devices one after the other; a single one stays as it is.
func join(parts []backend.Device, steps int64) backend.Device {
	if len(parts) == 1 {
		return parts[0]
	}
	j := &joined{parts: parts, steps: steps}
	for _, p := range parts {
		j.start = append(j.start, j.size)
		j.size += p.Size()
	}
	return j
}

func (j *joined) Size() int64  { return j.size }
func (j *joined) Close() error { return nil }

// at is the part that holds the byte at off, which is on the device.
func (j *joined) at(off int64) int {
	return sort.Search(len(j.start), func(i int) bool { return j.start[i] > off }) - 1
}

func (j *joined) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(len(p), off, j.size)
	done := 0
	for done < n {
		i := j.at(off + int64(done))
		in := off + int64(done) - j.start[i]
		piece := min(int64(n-done), j.parts[i].Size()-in)
		if err := readAll(j.parts[i], p[done:done+int(piece)], in); err != nil {
			return done, err
		}
		done += int(piece)
	}
	return done, end
}

func (j *joined) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= j.size {
		return backend.Location{}, false
	}
	i := j.at(off)
	l, ok := j.parts[i].(backend.Locator)
	if !ok {
		return backend.Location{}, false
	}
	in := off - j.start[i]
	return l.Locate(in, min(length, j.parts[i].Size()-in))
}

func (j *joined) NextData(off int64) (int64, error) {
	if off < 0 || off >= j.size {
		return 0, backend.ErrRange
	}
	in := off
	for i := j.at(off); i < len(j.parts); i++ {
		n, err := backend.NextData(j.parts[i], max(0, in-j.start[i]))
		switch {
		case err == nil:
			return j.start[i] + n, nil
		case !isRange(err):
			return 0, err
		}
	}
	return 0, backend.ErrRange
}

func (j *joined) NextHole(off int64) (int64, error) {
	if off < 0 || off >= j.size {
		return 0, backend.ErrRange
	}
	in := off
	for i := j.at(off); i < len(j.parts); i++ {
		n, err := backend.NextHole(j.parts[i], max(0, in-j.start[i]))
		if err != nil {
			return 0, err
		}
		if n < j.parts[i].Size() {
			return j.start[i] + n, nil
		}
	}
	return j.size, nil
}

// Allocated counts data, giving up after a bounded number of extents: the rest then counts as data.
func (j *joined) Allocated() int64 {
	const maxExtents = 4096
	left := min(maxExtents, maxHoleSteps/max(1, j.steps))
	var sum, off int64
	for off < j.size {
		if left--; left < 0 {
			return sum + j.size - off
		}
		data, err := j.NextData(off)
		if err != nil {
			break
		}
		hole, err := j.NextHole(data)
		if err != nil {
			break
		}
		sum += hole - data
		off = hole
	}
	return sum
}

// dense is a device whose holes are too many to look for: all of it is data.
type dense struct{ backend.Device }

func (d dense) Locate(off, length int64) (backend.Location, bool) {
	return locateIn(d.Device, off, length)
}

// striped is chunks of equally long legs in turn (drivers/md/dm-stripe.c, and md's raid0 with legs of
// one size). The kernel's stripes hold whole chunks only.
type striped struct {
	legs  []backend.Device
	chunk int64
	size  int64
}

func newStriped(legs []backend.Device, chunk int64) (backend.Device, error) {
	if len(legs) == 1 {
		return legs[0], nil
	}
	if chunk <= 0 {
		return nil, fmt.Errorf("stripes of %d bytes: %w", chunk, backend.ErrCorrupt)
	}
	if legs[0].Size()%chunk != 0 {
		return nil, fmt.Errorf("a leg of %d bytes is not a multiple of its stripes of %d bytes: %w", legs[0].Size(), chunk, backend.ErrCorrupt)
	}
	return &striped{legs: legs, chunk: chunk, size: legs[0].Size() * int64(len(legs))}, nil
}

func (s *striped) Size() int64  { return s.size }
func (s *striped) Close() error { return nil }

// place says where the byte at off is, and how many follow it there.
func (s *striped) place(off int64) (leg int, at, length int64) {
	c, in := off/s.chunk, off%s.chunk
	n := int64(len(s.legs))
	return int(c % n), c/n*s.chunk + in, s.chunk - in
}

func (s *striped) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(len(p), off, s.size)
	done := 0
	for done < n {
		leg, at, length := s.place(off + int64(done))
		length = min(length, int64(n-done))
		if err := readAll(s.legs[leg], p[done:done+int(length)], at); err != nil {
			return done, err
		}
		done += int(length)
	}
	return done, end
}

func (s *striped) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= s.size {
		return backend.Location{}, false
	}
	leg, at, rest := s.place(off)
	l, ok := s.legs[leg].(backend.Locator)
	if !ok {
		return backend.Location{}, false
	}
	return l.Locate(at, min(length, rest))
}

// zeros is a segment of type zero.
type zeros struct{ size int64 }

func (z zeros) Size() int64      { return z.size }
func (z zeros) Close() error     { return nil }
func (z zeros) Allocated() int64 { return 0 }

func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(len(p), off, z.size)
	clear(p[:n])
	return n, end
}

func (z zeros) NextData(int64) (int64, error) { return 0, backend.ErrRange }

func (z zeros) NextHole(off int64) (int64, error) {
	if off < 0 || off >= z.size {
		return 0, backend.ErrRange
	}
	return off, nil
}

// failing is a segment of type error.
type failing struct{ size int64 }

func (f failing) Size() int64  { return f.size }
func (f failing) Close() error { return nil }

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if n, end := clip(len(p), off, f.size); n == 0 {
		return 0, end
	}
	return 0, fmt.Errorf("the guest's volume has an error segment at byte %d: %w", off, backend.ErrIO)
}

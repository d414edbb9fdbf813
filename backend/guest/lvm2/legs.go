package lvm2

import (
	"fmt"

	"domfs/backend"
)

// mirrorLeg is one copy: dev is nil where it is missing.
type mirrorLeg struct {
	dev backend.Device
	// synced is how many bytes from its beginning are in sync.
	synced int64
}

// mirrored is copies of the same bytes: raid1, and dm-mirror, of whose later legs log knows more.
type mirrored struct {
	name string
	legs []mirrorLeg
	log  *mirrorLog // nil: only synced counts
	size int64
}

func (m *mirrored) Size() int64  { return m.size }
func (m *mirrored) Close() error { return nil }

// usable is how many bytes at off the leg has in sync.
func (m *mirrored) usable(leg int, off int64) (int64, error) {
	l := m.legs[leg]
	if l.dev == nil {
		return 0, nil
	}
	n := l.synced - off
	if n <= 0 && m.log != nil {
		var err error
		if n, err = m.log.synced(off); err != nil {
			return 0, err
		}
	}
	return min(n, m.size-off), nil
}

func (m *mirrored) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(len(p), off, m.size)
	done := 0
	for done < n {
		at := off + int64(done)
		piece, err := int64(0), error(nil)
		for leg := range m.legs {
			usable, failed := m.usable(leg, at)
			if failed != nil {
				return done, failed // the same log is that of all legs
			}
			if usable <= 0 {
				continue
			}
			piece = min(usable, int64(n-done))
			if err = readAll(m.legs[leg].dev, p[done:done+int(piece)], at); err == nil {
				break
			}
		}
		switch {
		case err != nil:
			return done, err
		case piece == 0:
			return done, fmt.Errorf("%s: no leg is in sync at byte %d: %w", m.name, at, backend.ErrIO)
		}
		done += int(piece)
	}
	return done, end
}

func (m *mirrored) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= m.size {
		return backend.Location{}, false
	}
	for leg := range m.legs {
		if n, err := m.usable(leg, off); err == nil && n > 0 {
			l, ok := m.legs[leg].dev.(backend.Locator)
			if !ok {
				return backend.Location{}, false
			}
			return l.Locate(off, min(length, n))
		}
	}
	return backend.Location{}, false
}

// raid10 is chunks of which each has copies on neighbouring legs: md's near layout (drivers/md/raid10.c).
type raid10 struct {
	name   string
	legs   []raidLeg
	chunk  int64
	copies int64
	size   int64
}

func (r *raid10) Size() int64  { return r.size }
func (r *raid10) Close() error { return nil }

// place says where copy k of the byte at off is, and how many bytes follow it there.
func (r *raid10) place(off, k int64) (leg int, at, length int64) {
	c, in := off/r.chunk, off%r.chunk
	slot := c*r.copies + k
	n := int64(len(r.legs))
	return int(slot % n), slot/n*r.chunk + in, r.chunk - in
}

func (r *raid10) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(len(p), off, r.size)
	done := 0
	for done < n {
		piece, err := int64(0), error(nil)
		for k := range r.copies {
			leg, at, length := r.place(off+int64(done), k)
			length = min(length, int64(n-done), r.legs[leg].synced-at)
			if length <= 0 {
				continue
			}
			piece = length
			if err = readAll(r.legs[leg].data, p[done:done+int(piece)], at); err == nil {
				break
			}
		}
		switch {
		case err != nil:
			return done, err
		case piece == 0:
			return done, fmt.Errorf("%s: no copy is in sync at byte %d: %w", r.name, off+int64(done), backend.ErrIO)
		}
		done += int(piece)
	}
	return done, end
}

// parity is raid4, raid5 and raid6. Only data is read; parity is used where repair is set and one leg lacks.
type parity struct {
	name   string
	legs   []raidLeg
	chunk  int64
	data   int64 // legs of a stripe that hold data
	place  func(stripe, index, legs int64) (leg int64)
	repair bool // one leg may be made up from all others
	size   int64
}

func (r *parity) Size() int64  { return r.size }
func (r *parity) Close() error { return nil }

func (r *parity) ReadAt(p []byte, off int64) (int, error) {
	n, end := clip(len(p), off, r.size)
	done := 0
	for done < n {
		o := off + int64(done)
		c, in := o/r.chunk, o%r.chunk
		stripe := c / r.data
		leg := r.place(stripe, c%r.data, int64(len(r.legs)))
		piece := p[done : done+int(min(r.chunk-in, int64(n-done)))]
		if err := r.readLeg(leg, stripe*r.chunk+in, piece); err != nil {
			return done, err
		}
		done += len(piece)
	}
	return done, end
}

func (r *parity) readLeg(leg, at int64, p []byte) error {
	if l := &r.legs[leg]; at+int64(len(p)) <= l.synced {
		return readAll(l.data, p, at)
	}
	if !r.repair {
		return fmt.Errorf("%s: leg %s is needed at byte %d: %w", r.name, r.legs[leg].name, at, backend.ErrIO)
	}
	clear(p)
	b := make([]byte, len(p))
	for i := range r.legs {
		if int64(i) == leg {
			continue
		}
		l := &r.legs[i]
		if at+int64(len(p)) > l.synced {
			return fmt.Errorf("%s: legs %s and %s are needed at byte %d: %w", r.name, r.legs[leg].name, l.name, at, backend.ErrIO)
		}
		if err := readAll(l.data, b, at); err != nil {
			return err
		}
		for j := range p {
			p[j] ^= b[j]
		}
	}
	return nil
}

// parityLayout is how a type of raid4, raid5 or raid6 places data and parity (raid5_compute_sector in
// drivers/md/raid5.c).
type parityLayout struct {
	levels []uint32
	number uint32 // md's ALGORITHM_*
	parity int64
	place  func(stripe, index, legs int64) int64
}

// The four layouts of raid5, which those of raid6 with a fixed Q share for all legs but the last.
func leftAsymmetric(stripe, index, legs int64) int64 {
	return skip(index, legs-1-stripe%legs)
}
func rightAsymmetric(stripe, index, legs int64) int64 { return skip(index, stripe%legs) }
func leftSymmetric(stripe, index, legs int64) int64 {
	return (legs - 1 - stripe%legs + 1 + index) % legs
}
func rightSymmetric(stripe, index, legs int64) int64 { return (stripe%legs + 1 + index) % legs }

func skip(index, parity int64) int64 {
	if index >= parity {
		return index + 1
	}
	return index
}

// restart places Q after P, and data around both.
func restart(index, parity, legs int64) int64 {
	switch {
	case parity == legs-1:
		return index + 1 // Q is on the first leg
	case index >= parity:
		return index + 2
	}
	return index
}

// lastIsQ is a layout of raid5 on all legs but the last.
func lastIsQ(place func(stripe, index, legs int64) int64) func(stripe, index, legs int64) int64 {
	return func(stripe, index, legs int64) int64 { return place(stripe, index, legs-1) }
}

var five, six = []uint32{4, 5}, []uint32{6}

var parityLayouts = map[string]parityLayout{
	"raid4":      {five, 4, 1, func(_, index, _ int64) int64 { return index + 1 }},
	"raid5":      {five, 2, 1, leftSymmetric},
	"raid5_la":   {five, 0, 1, leftAsymmetric},
	"raid5_ra":   {five, 1, 1, rightAsymmetric},
	"raid5_ls":   {five, 2, 1, leftSymmetric},
	"raid5_rs":   {five, 3, 1, rightSymmetric},
	"raid5_n":    {five, 5, 1, func(_, index, _ int64) int64 { return index }},
	"raid6":      {six, 8, 2, func(s, index, legs int64) int64 { return restart(index, s%legs, legs) }},
	"raid6_zr":   {six, 8, 2, func(s, index, legs int64) int64 { return restart(index, s%legs, legs) }},
	"raid6_nr":   {six, 9, 2, func(s, index, legs int64) int64 { return restart(index, legs-1-(s+1)%legs, legs) }},
	"raid6_nc":   {six, 10, 2, leftSymmetric},
	"raid6_la_6": {six, 16, 2, lastIsQ(leftAsymmetric)},
	"raid6_ra_6": {six, 17, 2, lastIsQ(rightAsymmetric)},
	"raid6_ls_6": {six, 18, 2, lastIsQ(leftSymmetric)},
	"raid6_rs_6": {six, 19, 2, lastIsQ(rightSymmetric)},
	"raid6_n_6":  {six, 5, 2, func(_, index, _ int64) int64 { return index }},
}

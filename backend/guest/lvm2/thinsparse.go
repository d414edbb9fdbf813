package lvm2

import (
	"errors"

	"domfs/backend"
)

const (
	// maxSearch is how many searches in the tree one NextData or NextHole makes: of a device that is mapped chunk by chunk, each
	// finds up to 254 chunks, and all of them 2 TiB of the smallest ones. What lies beyond counts as data from then on.
	maxSearch = 1 << 17
	askCost   = 16 // of a question to external, in searches
)

// thinSearch looks for data or holes, with bounded work.
type thinSearch struct {
	d    *thinDevice
	left int // searches
}

// exhausted tells whether the search ends at off. It does so for all later ones, too: an answer that the next one
// contradicts would send who asks for data and holes in turn round and round.
func (s *thinSearch) exhausted(off int64) bool {
	for s.left <= 0 {
		from := s.d.opaqueFrom.Load()
		if off >= from || s.d.opaqueFrom.CompareAndSwap(from, off) {
			return true
		}
	}
	s.left--
	return off >= s.d.opaqueFrom.Load()
}

// NextData returns the offset of the first byte at or after off that is mapped, or that external has as
// data. What is mapped counts as data whatever the pool's data hold there.
func (d *thinDevice) NextData(off int64) (int64, error) {
	if off < 0 || off >= d.size {
		return 0, backend.ErrRange
	}
	s := thinSearch{d: d, left: maxSearch}
	return s.nextData(off)
}

func (s *thinSearch) nextData(off int64) (int64, error) {
	d, behind := s.d, int64(-1) // where external has its next data
	for off < d.size {
		if s.exhausted(off) {
			return off, nil
		}
		e, err := d.extent(off)
		if err != nil || e.mapped {
			return off, nil // reading says what is wrong
		}
		if off < d.externalSize {
			if behind < off {
				s.left -= askCost
				behind, err = backend.NextData(d.external, off)
				if errors.Is(err, backend.ErrRange) {
					behind = d.size
				} else if err != nil {
					return 0, err
				}
			}
			if behind < min(off+e.length, d.externalSize) {
				return behind, nil
			}
		}
		off += e.length
	}
	return 0, backend.ErrRange
}

// NextHole returns the offset of the first byte at or after off that is not data.
func (d *thinDevice) NextHole(off int64) (int64, error) {
	if off < 0 || off >= d.size {
		return 0, backend.ErrRange
	}
	s := thinSearch{d: d, left: maxSearch}
	return s.nextHole(off)
}

func (s *thinSearch) nextHole(off int64) (int64, error) {
	d, behind := s.d, int64(-1) // where external has its next hole
	for off < d.size {
		if s.exhausted(off) {
			return d.size, nil
		}
		e, err := d.extent(off)
		switch {
		case err != nil:
			// Its chunk counts as data; what is behind it may be right again.
			off += min(d.pool.chunk-off%d.pool.chunk, d.size-off)
			continue
		case e.mapped:
			off += e.length
			continue
		case off >= d.externalSize:
			return off, nil
		}
		if behind < off {
			s.left -= askCost
			if behind, err = backend.NextHole(d.external, off); err != nil {
				return 0, err
			}
		}
		if at := min(behind, d.externalSize); at < off+e.length {
			return at, nil
		}
		off += e.length
	}
	return d.size, nil
}

// Allocated is the bytes of the chunks that the device has by its details, be they shared with others
// or not, and of external as much as it has in the rest.
func (d *thinDevice) Allocated() int64 {
	sum := d.size
	if d.mapped < d.chunks {
		sum = min(sum, int64(d.mapped)*d.pool.chunk)
	}
	if d.external != nil {
		sum += min(d.size-sum, d.externalSize, max(0, backend.Allocated(d.external)))
	}
	return sum
}

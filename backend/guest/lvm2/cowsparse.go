package lvm2

import (
	"errors"

	"domfs/backend"
)

// maxCOWSearch is how many questions to the origin one NextData or NextHole asks. What lies beyond counts as data
// from then on.
const maxCOWSearch = 1 << 14

// exhausted is as thinSearch's.
func (s *snapshot) exhausted(off int64, left *int) bool {
	for *left <= 0 {
		from := s.opaqueFrom.Load()
		if off >= from || s.opaqueFrom.CompareAndSwap(from, off) {
			return true
		}
	}
	return off >= s.opaqueFrom.Load()
}

// NextData returns the offset of the first byte at or after off that is on the COW device, or data of the
// origin.
func (s *snapshot) NextData(off int64) (int64, error) {
	if off < 0 || off >= s.size {
		return 0, backend.ErrRange
	}
	runs, err := s.exceptions.runs()
	if err != nil {
		return off, nil // reading says why
	}
	left, behind := maxCOWSearch, int64(-1) // behind: where the origin has its next data
	for off < s.size {
		if s.exhausted(off, &left) {
			return off, nil
		}
		e, err := s.extent(runs, off)
		if err != nil || e.copied || off >= s.originSize {
			return off, nil
		}
		if behind < off {
			left--
			behind, err = backend.NextData(s.origin, off)
			if errors.Is(err, backend.ErrRange) {
				behind = s.originSize
			} else if err != nil {
				return 0, err
			}
			behind = min(behind, s.originSize)
		}
		if behind < off+e.length && behind < s.size {
			return behind, nil
		}
		off += e.length
	}
	return 0, backend.ErrRange
}

// NextHole returns the offset of the first byte at or after off that is a hole of the origin, and not on the COW
// device. What cannot be read counts as data.
func (s *snapshot) NextHole(off int64) (int64, error) {
	if off < 0 || off >= s.size {
		return 0, backend.ErrRange
	}
	runs, err := s.exceptions.runs()
	if err != nil {
		return s.size, nil
	}
	left, behind := maxCOWSearch, int64(-1) // behind: where the origin has its next hole
	for off < s.size {
		if s.exhausted(off, &left) || off >= s.originSize {
			break
		}
		e, err := s.extent(runs, off)
		switch {
		case err != nil:
			off += s.header.chunk - off%s.header.chunk
			continue
		case e.copied:
			off += e.length
			continue
		}
		if behind < off {
			left--
			if behind, err = backend.NextHole(s.origin, off); err != nil {
				return 0, err
			}
		}
		if at := min(behind, s.originSize); at < off+e.length && at < s.originSize {
			return at, nil
		}
		off += e.length
	}
	return s.size, nil
}

// Allocated is the space that the origin and the COW device hold, as far as the snapshot is large. It does not
// read the exceptions.
func (s *snapshot) Allocated() int64 {
	held := min(s.size, max(0, backend.Allocated(s.origin)))
	return held + min(s.size-held, max(0, backend.Allocated(s.cow)))
}

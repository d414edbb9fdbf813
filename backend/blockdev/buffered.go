package blockdev

import (
	"errors"
	"io"

	"domfs/backend"
)

// buffered is a device read through the page cache. All of it is data.
type buffered struct{ device }

// ReadAt reads any range.
func (d *buffered) ReadAt(p []byte, off int64) (int, error) {
	p, atEnd, err := d.within(p, off)
	if err != nil {
		return 0, err
	}
	if len(p) > 0 {
		n, err := d.f.ReadAt(p, off)
		switch {
		case n == len(p):
		case errors.Is(err, io.EOF):
			return n, d.short(off + int64(n))
		default:
			return n, d.words.Failed("read", d.path, err)
		}
	}
	if atEnd {
		return len(p), io.EOF
	}
	return len(p), nil
}

// Locate implements backend.Locator: the bytes lie where they are.
func (d *buffered) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= d.size || length < 1 {
		return backend.Location{}, false
	}
	return backend.Location{FD: d.f.Fd(), Offset: off, Length: min(length, d.size-off)}, true
}

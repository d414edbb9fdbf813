package qcow2

import "domfs/backend"

// enoughToLocate is when no more runs are put together: a splice is not larger, and the rest costs reads of tables.
const enoughToLocate = 1 << 20

// Locate says where in the host file the bytes at off lie, or in that of the backing file; for bytes that
// are zeros, compressed or past the end of the file it does not.
//
// It is never the whole of another file from its beginning, which would be taken for the image in raw
// form: the first cluster of an image is its header, and of a backing file a part is left out.
func (im *image) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || length <= 0 || off >= im.size || im.closed.Load() {
		return backend.Location{}, false
	}
	length = min(length, im.size-off)
	r, err := im.m.lookup(&im.last, off, length, nil)
	for err == nil && r.n < min(length, enoughToLocate) {
		next, err := im.m.lookup(&im.last, off+r.n, length-r.n, nil)
		if err != nil || !r.joins(next) {
			break
		}
		r.n += next.n
	}
	if err != nil {
		return backend.Location{}, false
	}
	switch r.kind {
	case data:
		return locate(im.m.file.Device, r.host, min(r.n, im.m.file.size-r.host))
	case unallocated:
		if im.backing == nil {
			break
		}
		n := min(r.n, im.backingSize-off)
		if n == im.size {
			n -= sectorSize
		}
		return locate(im.backing, off, n)
	}
	return backend.Location{}, false
}

func locate(d backend.Device, off, length int64) (backend.Location, bool) {
	l, ok := d.(backend.Locator)
	if !ok || length <= 0 {
		return backend.Location{}, false
	}
	return l.Locate(off, length)
}

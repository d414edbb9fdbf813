package blockdev

import (
	"errors"
	"io"
	"sync"
	"unsafe"
)

// bounceBytes is how much is read at once into memory that is aligned for it.
const bounceBytes = 256 << 10

// maxAlign is the largest logical block size that is read; memory is aligned to it
// always.
const maxAlign = 64 << 10

// bounces holds aligned buffers that are not in use.
var bounces = sync.Pool{New: func() any {
	b := alignedBytes(bounceBytes, maxAlign)
	return &b
}}

// alignedBytes is n bytes of memory whose address is a multiple of align. (Go's heap does not
// move.)
func alignedBytes(n, align int) []byte {
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (align - 1)
	return b[skip : skip+n : skip+n]
}

// direct is a device read with O_DIRECT. It has neither holes nor a place in a page cache
// to be spliced from.
type direct struct{ device }

// ReadAt reads any range; what is not aligned goes through a buffer that is.
func (d *direct) ReadAt(p []byte, off int64) (int, error) {
	p, atEnd, err := d.within(p, off)
	if err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		var n int
		var err error
		if rest := p[done:]; d.aligned(rest, off) {
			n, err = d.readBlocks(rest[:int64(len(rest))&^(d.block-1)], off)
		} else {
			n, err = d.readBounced(rest, off)
		}
		done += n
		off += int64(n)
		if err != nil {
			return done, err
		}
	}
	if atEnd {
		return done, io.EOF
	}
	return done, nil
}

// aligned tells whether at least a block can be read straight into p.
func (d *direct) aligned(p []byte, off int64) bool {
	return int64(len(p)) >= d.block && off&(d.block-1) == 0 && uintptr(unsafe.Pointer(&p[0]))&uintptr(d.block-1) == 0
}

// readBounced reads a prefix of p, of at least a byte.
func (d *direct) readBounced(p []byte, off int64) (int, error) {
	bounce := bounces.Get().(*[]byte)
	defer bounces.Put(bounce)
	skip := off & (d.block - 1)
	want := min(int64(len(p)), bounceBytes-skip)
	whole := min((skip+want+d.block-1)&^(d.block-1), bounceBytes)
	n, err := d.readBlocks((*bounce)[:whole], off-skip)
	if int64(n) <= skip {
		if err == nil {
			err = d.short(off)
		}
		return 0, err
	}
	got := copy(p[:want], (*bounce)[skip:n])
	if int64(got) == want {
		err = nil // what follows was not asked for
	}
	return got, err
}

// readBlocks fills p, whose address, length and offset are aligned. A read that stops
// within the last block of a device is no error if it has all of the device's bytes.
func (d *direct) readBlocks(p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	switch {
	case n == len(p) || off+int64(n) >= d.size:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, d.short(off + int64(n))
	}
	return n, d.words.Failed("read", d.path, err)
}

package blkid

import (
	"errors"
	"io"

	"domfs/backend"
)

const (
	// windowSize covers, at the head, every signature up to btrfs and 64 KiB swap pages,
	// and at the tail, md's superblocks and the backup GPT.
	windowSize = 128 << 10
	// maxReadSize bounds one read: the largest is a FAT root directory of 65535 entries.
	maxReadSize = 2 << 20
	// maxReads bounds the reads of one probe, and maxBytes what they return in all.
	maxReads = 1024
	maxBytes = 16 << 20
)

// reader reads pieces of a device, the head and the tail only once.
type reader struct {
	d          backend.Device
	size       int64
	head, tail []byte
	tailOff    int64
	tailRead   bool
	reads      int
	bytes      int64
	err        error // the first read that failed
}

func newReader(d backend.Device) *reader {
	r := &reader{d: d, size: max(d.Size(), 0)}
	n := min(r.size, windowSize)
	r.head = r.readUpTo(0, n)
	if got := int64(len(r.head)); got < n {
		r.size = got // the device is not as large as it says
	}
	return r
}

// at returns the n bytes at off: nil if the device has no such bytes, or they cannot
// be read (then r.err says why). They must not be changed.
func (r *reader) at(off, n int64) []byte {
	if off < 0 || n <= 0 || n > maxReadSize || off > r.size || n > r.size-off {
		return nil
	}
	if off+n <= int64(len(r.head)) {
		return r.head[off : off+n]
	}
	if off >= r.size-windowSize {
		if !r.tailRead {
			r.tailRead = true
			r.tailOff = max(0, r.size-windowSize)
			r.tail = r.read(r.tailOff, r.size-r.tailOff)
		}
		if r.tail != nil {
			return r.tail[off-r.tailOff:][:n]
		}
	}
	return r.read(off, n)
}

// read reads n bytes from the device: nil if it has fewer.
func (r *reader) read(off, n int64) []byte {
	if b := r.readUpTo(off, n); int64(len(b)) == n {
		return b
	}
	return nil
}

// readUpTo reads n bytes, or fewer where the device ends before its Size, which is no error.
func (r *reader) readUpTo(off, n int64) []byte {
	if r.err != nil || n == 0 || r.reads >= maxReads || r.bytes+n > maxBytes {
		return nil
	}
	r.reads++
	r.bytes += n
	b := make([]byte, n)
	got, err := r.d.ReadAt(b, off)
	if got < len(b) && err != nil && !errors.Is(err, io.EOF) {
		r.err = err
		return nil
	}
	return b[:got]
}

// has tells whether magic is at off.
func (r *reader) has(off int64, magic string) bool {
	return string(r.at(off, int64(len(magic)))) == magic
}

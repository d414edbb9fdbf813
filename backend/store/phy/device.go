package phy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"domfs/backend"

	"golang.org/x/sys/unix"
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

// device is an open block device, read with O_DIRECT. It has neither holes nor a
// place in a page cache to be spliced from.
type device struct {
	f     *os.File
	path  string
	size  int64 // when it was opened
	block int64 // logical block size: what offsets and lengths must be multiples of
}

// Open opens a device past the host's page cache.
func (s *Store) Open(_ context.Context, v backend.Volume) (backend.Device, error) {
	if v.Store != storeName {
		return nil, backend.Because(backend.ErrInvalid, "open %s: it belongs to the store %q", v.ID, v.Store)
	}
	format, err := s.formatOf(v.Format)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.ID, err)
	}
	d, err := openDevice(v.ID)
	if err != nil {
		return nil, err
	}
	if format == nil {
		return d, nil
	}
	_, err = readHeader(d, format)
	if err == nil {
		var image backend.Device
		if image, err = format.Open(d, nil); err == nil {
			return image, nil
		}
		err = fmt.Errorf("open %s as %s: %w", v.ID, format.Name(), err)
	}
	d.f.Close()
	return nil, err
}

func openDevice(path string) (*device, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, failed("open", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		// Opening anything else may block, or act.
		return nil, backend.Because(backend.ErrInvalid, "open %s: it is no block device: correct the domain's configuration", path)
	}
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, failed("open", path, err)
	}
	d := &device{path: path}
	if err := d.measure(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	d.f = os.NewFile(uintptr(fd), path)
	return d, nil
}

// measure asks an open device for its size and block size.
func (d *device) measure(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("open", d.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return backend.Because(backend.ErrStale, "open %s: it was replaced by something that is no block device", d.path)
	}
	block, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return failed("find the block size of", d.path, err)
	}
	if block < 1 || block > maxAlign || block&(block-1) != 0 {
		return backend.Because(backend.ErrUnsupported, "%s has blocks of %d bytes, more than %d", d.path, block, maxAlign)
	}
	d.block = int64(block)
	// The end is BLKGETSIZE64, without its differing argument sizes.
	if d.size, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return failed("find the size of", d.path, err)
	}
	return nil
}

func (d *device) Size() int64 { return d.size }

func (d *device) Close() error {
	if err := d.f.Close(); err != nil {
		return failed("close", d.path, err)
	}
	return nil
}

// ReadAt reads any range; what is not aligned goes through a buffer that is.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at offset %d: %w", d.path, off, backend.ErrInvalid)
	}
	if off >= d.size {
		return 0, io.EOF
	}
	atEnd := false
	if rest := d.size - off; int64(len(p)) > rest {
		p, atEnd = p[:rest], true
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
func (d *device) aligned(p []byte, off int64) bool {
	return int64(len(p)) >= d.block && off&(d.block-1) == 0 && uintptr(unsafe.Pointer(&p[0]))&uintptr(d.block-1) == 0
}

// readBounced reads a prefix of p, of at least a byte.
func (d *device) readBounced(p []byte, off int64) (int, error) {
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
func (d *device) readBlocks(p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	switch {
	case n == len(p) || off+int64(n) >= d.size:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, d.short(off + int64(n))
	}
	return n, failed("read", d.path, err)
}

func (d *device) short(at int64) error {
	return fmt.Errorf("read %s: it ended at %d bytes, it had %d when it was opened: %w (%w)", d.path, at, d.size, backend.ErrIO, io.ErrUnexpectedEOF)
}

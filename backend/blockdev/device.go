package blockdev

import (
	"fmt"
	"io"
	"os"

	"domfs/backend"
	"domfs/backend/syserr"

	"golang.org/x/sys/unix"
)

// Options say how a device is opened.
type Options struct {
	// Direct reads past the host's page cache. Without it the device is a backend.Locator.
	Direct bool
	// Hints say what to do about an errno, as with Words.
	Hints map[unix.Errno]string
}

// Open opens the block device at path for reading. Anything else there is ErrInvalid, and is not opened, which could
// block or act.
func Open(path string, o Options) (backend.Device, error) {
	d := device{path: path, words: Words(o.Hints)}
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, d.words.Failed("open", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, backend.Because(backend.ErrInvalid, "open %s: it is no block device: correct the domain's configuration", path)
	}
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOCTTY
	if o.Direct {
		flags |= unix.O_DIRECT
	}
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, flags, 0)
		return err
	})
	if err != nil {
		return nil, d.words.Failed("open", path, err)
	}
	if err := d.measure(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	d.f = os.NewFile(uintptr(fd), path)
	if o.Direct {
		return &direct{d}, nil
	}
	return &buffered{d}, nil
}

// device is an open block device.
type device struct {
	f     *os.File
	path  string
	size  int64 // when it was opened
	block int64 // logical block size: what direct offsets and lengths must be multiples of
	words syserr.Words
}

// measure asks an open device for its size and block size.
func (d *device) measure(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return d.words.Failed("open", d.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return backend.Because(backend.ErrStale, "open %s: it was replaced by something that is no block device", d.path)
	}
	block, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return d.words.Failed("find the block size of", d.path, err)
	}
	if block < 1 || block > maxAlign || block&(block-1) != 0 {
		return backend.Because(backend.ErrUnsupported, "%s has blocks of %d bytes, more than %d", d.path, block, maxAlign)
	}
	d.block = int64(block)
	// The end is BLKGETSIZE64, without its differing argument sizes.
	if d.size, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return d.words.Failed("find the size of", d.path, err)
	}
	return nil
}

func (d *device) Size() int64 { return d.size }

func (d *device) Close() error {
	if err := d.f.Close(); err != nil {
		return d.words.Failed("close", d.path, err)
	}
	return nil
}

// within cuts p to what the device has at off. atEnd tells that p asked for more.
func (d *device) within(p []byte, off int64) (cut []byte, atEnd bool, err error) {
	if off < 0 {
		return nil, false, fmt.Errorf("read %s at offset %d: %w", d.path, off, backend.ErrInvalid)
	}
	if off >= d.size {
		return nil, true, nil
	}
	if rest := d.size - off; int64(len(p)) > rest {
		return p[:rest], true, nil
	}
	return p, false, nil
}

func (d *device) short(at int64) error {
	return fmt.Errorf("read %s: it ended at %d bytes, it had %d when it was opened: %w (%w)", d.path, at, d.size, backend.ErrIO, io.ErrUnexpectedEOF)
}

package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// device is an open image or copy. Reads and splices name their offset, so lseek(2)
// on the same descriptor disturbs nobody.
type device struct {
	f    *os.File
	fd   uintptr
	path string
	size int64 // when it was opened
}

var (
	_ backend.Device  = (*device)(nil)
	_ backend.Locator = (*device)(nil)
	_ backend.Sparse  = (*device)(nil)
)

func newDevice(f *os.File, path string, size int64) *device {
	return &device{f: f, fd: f.Fd(), path: path, size: size}
}

func (d *device) Size() int64 { return d.size }

func (d *device) Close() error {
	if err := d.f.Close(); err != nil {
		return failed("close", d.path, err)
	}
	return nil
}

// ReadAt reads as of a file of the size that it had when it was opened. If the file has
// become shorter since, that is an error and no end of file.
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
	n, err := d.f.ReadAt(p, off)
	if n == len(p) {
		err = nil
		if atEnd {
			err = io.EOF
		}
		return n, err
	}
	if errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read %s: it was truncated to %d bytes while it was open: %w (%w)", d.path, off+int64(n), backend.ErrIO, io.ErrUnexpectedEOF)
	}
	return n, failed("read", d.path, err)
}

// Locate is the same offset in the file, as long as the file has these bytes.
func (d *device) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || length <= 0 || off >= d.size {
		return backend.Location{}, false
	}
	length = min(length, d.size-off)
	st, err := d.stat()
	if err != nil || st.Size-length < off {
		return backend.Location{}, false // ReadAt says why
	}
	return backend.Location{FD: d.fd, Offset: off, Length: length}, true
}

// NextData is lseek(2) SEEK_DATA.
func (d *device) NextData(off int64) (int64, error) {
	n, err := d.seek(off, unix.SEEK_DATA)
	if err == nil && n >= d.size {
		err = backend.ErrRange
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// NextHole is lseek(2) SEEK_HOLE.
func (d *device) NextHole(off int64) (int64, error) {
	n, err := d.seek(off, unix.SEEK_HOLE)
	if err != nil {
		return 0, err
	}
	return min(n, d.size), nil
}

func (d *device) seek(off int64, whence int) (int64, error) {
	if off < 0 || off >= d.size {
		return 0, backend.ErrRange
	}
	return seekExtent(d.f, d.path, off, whence)
}

// Allocated is st_blocks in bytes.
func (d *device) Allocated() int64 {
	st, err := d.stat()
	if err != nil {
		return 0
	}
	return st.Blocks * 512
}

func (d *device) stat() (*unix.Stat_t, error) {
	return statFile(d.f, d.path)
}

// control calls f with the descriptor of file, which stays open meanwhile.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		callErr = ignoringEINTR(func() error { return f(int(fd)) })
	})
	if err != nil {
		return err
	}
	return callErr
}

func statFile(file *os.File, path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := control(file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, failed("find", path, err)
	}
	return &st, nil
}

// seekExtent is lseek(2) with SEEK_DATA or SEEK_HOLE: ErrRange where it says ENXIO. On a
// filesystem that does not know them all is data.
func seekExtent(file *os.File, path string, off int64, whence int) (int64, error) {
	n := int64(0)
	err := control(file, func(fd int) (err error) {
		n, err = unix.Seek(fd, off, whence)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			n = off
			if whence == unix.SEEK_HOLE {
				n, err = unix.Seek(fd, 0, unix.SEEK_END)
			} else {
				err = nil
			}
		}
		return err
	})
	if errors.Is(err, unix.ENXIO) {
		return 0, backend.ErrRange
	}
	if err != nil {
		return 0, failed("look for holes in", path, err)
	}
	return n, nil
}

// dataRanges calls f with each range of data of the first size bytes of file.
func dataRanges(file *os.File, path string, size int64, f func(off, length int64) error) error {
	for off := int64(0); off < size; {
		data, err := seekExtent(file, path, off, unix.SEEK_DATA)
		if errors.Is(err, backend.ErrRange) || err == nil && data >= size {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := seekExtent(file, path, data, unix.SEEK_HOLE)
		if errors.Is(err, backend.ErrRange) {
			return backend.Because(backend.ErrStale, "read %s: it was truncated meanwhile", path)
		}
		if err != nil {
			return err
		}
		hole = min(hole, size)
		if hole <= data {
			return backend.Because(backend.ErrIO, "read %s: its filesystem reports an empty range of data at %d", path, data)
		}
		if err := f(data, hole-data); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// image is the file that every contender reads.
type image struct {
	path      string
	partBytes int64
}

// rawBytes is how much of a raw disk or partition is read.
const rawBytes = 2 << 30

// prepareCache puts the image into the host's page cache, or out of it.
func (i *image) prepareCache(ctx context.Context, cold bool) error {
	f, err := os.Open(i.path)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if cold {
		if err := unix.Fdatasync(fd); err != nil { // dirty pages would stay
			return err
		}
		return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	}
	// The holes in what is read as a whole are pages of their own.
	if err := discard(ctx, f, 0, rawBytes); err != nil {
		return err
	}
	for off := int64(rawBytes); ; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := discard(ctx, f, data, hole-data); err != nil {
			return err
		}
		off = hole
	}
}

// discard reads a range of f, or to its end.
func discard(ctx context.Context, f io.ReaderAt, off, length int64) error {
	buf := make([]byte, 1<<20)
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

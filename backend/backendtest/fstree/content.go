package fstree

import (
	"bytes"
	"errors"
	"io"
	"os"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

const (
	wholeBytes  = 192 << 20 // files up to this size are compared from end to end, larger ones at their data and the edges of it
	edgeBytes   = 64 << 10  // of holes
	chunkBytes  = 1<<20 - 3 // of one read: not aligned to blocks
	maxSegments = 1 << 17
	maxProbed   = 64      // segments whose edges are probed and that are located
	locateBytes = 1 << 20 // of a segment
)

type segment struct{ from, to int64 } // data

// file compares a regular file: holes first, as reading puts unwritten extents into the
// kernel's cache, where they are data.
func (c *comparer) file(host, path string, ino uint64) {
	k, err := os.OpenFile(host, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
	if errors.Is(err, unix.ENOKEY) {
		c.stats.Locked++
		if _, err := c.fs.OpenFile(ino); !errors.Is(err, backend.ErrNoKey) {
			c.differ(path, "OpenFile: %v, not ErrNoKey as the kernel's open", err)
		}
		return
	}
	if c.failed(path, "the kernel's open", err) {
		return
	}
	defer k.Close()
	f, err := c.fs.OpenFile(ino)
	if c.failed(path, "OpenFile", err) {
		return
	}
	defer func() { c.failed(path, "Close", f.Close()) }()
	st, err := k.Stat()
	if c.failed(path, "the kernel's fstat", err) {
		return
	}
	size := st.Size()
	if f.Size() != size {
		c.differ(path, "Size is %d, the kernel says %d", f.Size(), size)
		return
	}
	c.stats.Files++
	var sys unix.Stat_t
	if err := unix.Fstat(int(k.Fd()), &sys); !c.failed(path, "the kernel's fstat", err) && backend.Allocated(f) != sys.Blocks*512 {
		c.differ(path, "Allocated is %d, the kernel says %d", backend.Allocated(f), sys.Blocks*512)
	}
	segments, ok := c.segments(path, f, k, size)
	if !ok {
		return
	}
	if size <= wholeBytes {
		c.content1(path, f, k, 0, size)
	} else {
		for _, s := range segments {
			c.content1(path, f, k, max(0, s.from-edgeBytes), min(size, s.to+edgeBytes))
		}
		c.content1(path, f, k, size-edgeBytes, size)
	}
	c.end(path, f, size)
	c.locate(path, f, segments)
}

// kernelSeek is lseek(2) in the words of backend.Sparse.
func kernelSeek(k *os.File, off int64, whence int) (int64, error) {
	n, err := unix.Seek(int(k.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		err = backend.ErrRange
	}
	return n, err
}

// seek compares one answer, and returns the kernel's.
func (c *comparer) seek(path string, f backend.File, k *os.File, off int64, whence int) (int64, error) {
	name, next := "NextData", backend.NextData
	if whence == unix.SEEK_HOLE {
		name, next = "NextHole", backend.NextHole
	}
	want, wantErr := kernelSeek(k, off, whence)
	got, err := next(f, off)
	if wantErr != nil {
		if !errors.Is(err, wantErr) {
			c.differ(path, "%s(%d) is %d, %v; the kernel says %v", name, off, got, err, wantErr)
		}
	} else if err != nil || got != want {
		c.differ(path, "%s(%d) is %d, %v; the kernel says %d", name, off, got, err, want)
	}
	return want, wantErr
}

// segments compares where the data are; ok is false where comparing on makes no sense.
func (c *comparer) segments(path string, f backend.File, k *os.File, size int64) (list []segment, ok bool) {
	before := len(c.differences)
	for off := int64(0); ; {
		data, err := c.seek(path, f, k, off, unix.SEEK_DATA)
		if err != nil {
			break
		}
		hole, err := c.seek(path, f, k, data, unix.SEEK_HOLE)
		if err != nil || len(c.differences) > before || len(list) == maxSegments {
			break
		}
		list = append(list, segment{data, hole})
		off = hole
	}
	for _, s := range list[:min(len(list), maxProbed)] {
		for _, off := range []int64{s.from - 1, s.from + 1, (s.from + s.to) / 2, s.to - 1, s.to + 1} {
			if off >= 0 {
				c.seek(path, f, k, off, unix.SEEK_DATA)
				c.seek(path, f, k, off, unix.SEEK_HOLE)
			}
		}
	}
	for _, off := range []int64{size - 1, size, size + 1} {
		if off >= 0 {
			c.seek(path, f, k, off, unix.SEEK_DATA)
			c.seek(path, f, k, off, unix.SEEK_HOLE)
		}
	}
	c.stats.Segments += len(list)
	return list, len(c.differences) == before
}

// content1 compares the bytes from one offset to another.
func (c *comparer) content1(path string, f backend.File, k *os.File, from, to int64) {
	want, got := make([]byte, min(chunkBytes, to-from)), make([]byte, min(chunkBytes, to-from))
	for off := from; off < to; {
		w, g := want[:min(int64(len(want)), to-off)], got[:min(int64(len(got)), to-off)]
		if _, err := k.ReadAt(w, off); c.failed(path, "the kernel's read", err) {
			return
		}
		if n, err := f.ReadAt(g, off); n < len(g) || err != nil && err != io.EOF {
			c.differ(path, "ReadAt of %d bytes at %d: %d, %v", len(g), off, n, err)
			return
		}
		if !bytes.Equal(w, g) {
			for i := range w {
				if w[i] != g[i] {
					c.differ(path, "byte %d is 0x%02x, the kernel says 0x%02x", off+int64(i), g[i], w[i])
					return
				}
			}
		}
		off += int64(len(w))
		c.stats.Bytes += int64(len(w))
	}
}

// end checks what a read past the end returns.
func (c *comparer) end(path string, f backend.File, size int64) {
	var b [16]byte
	rest := min(size, 7)
	for _, r := range []struct{ off, n int64 }{{size - rest, rest}, {size, 0}, {size + 1, 0}} {
		if n, err := f.ReadAt(b[:], r.off); int64(n) != r.n || err != io.EOF {
			c.differ(path, "ReadAt at %d of %d: %d, %v, not %d, EOF", r.off, size, n, err, r.n)
		}
	}
}

// locate compares the bytes that the file says lie in a descriptor.
func (c *comparer) locate(path string, f backend.File, segments []segment) {
	l, ok := f.(backend.Locator)
	if !ok {
		return
	}
	for _, s := range segments[:min(len(segments), maxProbed)] {
		off := s.from + (s.to-s.from)/3
		loc, ok := l.Locate(off, min(locateBytes, s.to-off))
		if !ok {
			continue
		}
		if loc.Length <= 0 || loc.Length > s.to-off {
			c.differ(path, "Locate(%d) says %d bytes of %d", off, loc.Length, s.to-off)
			continue
		}
		there, here := make([]byte, loc.Length), make([]byte, loc.Length)
		if _, err := unix.Pread(int(loc.FD), there, loc.Offset); c.failed(path, "read where Locate says", err) {
			continue
		}
		if _, err := f.ReadAt(here, off); err != nil && err != io.EOF {
			c.differ(path, "ReadAt at %d: %v", off, err)
			continue
		}
		if !bytes.Equal(there, here) {
			c.differ(path, "Locate(%d) says %+v, where other bytes are", off, loc)
		}
		c.stats.Located++
	}
}

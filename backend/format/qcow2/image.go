package qcow2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"domfs/backend"
)

// Driver reads qcow2 images.
type Driver struct{}

var _ backend.Format = Driver{}

// New returns the driver.
func New() Driver { return Driver{} }

// Name is qcow2.
func (Driver) Name() string { return "qcow2" }

// Header reads the header and its extensions. An image that Open would not read is
// ErrUnsupported or ErrCorrupt.
func (Driver) Header(file backend.Device) (backend.FormatHeader, error) {
	h, err := readHeader(file)
	if err != nil {
		return backend.FormatHeader{}, err
	}
	return backend.FormatHeader{SizeBytes: h.sizeBytes, Backing: h.backing, BackingFormat: h.backingFormat}, nil
}

// Open opens the active disk of an image. backing must be there exactly if Header names one. Closing the
// Device closes both, and is the caller's after an error.
func (Driver) Open(file, backing backend.Device) (backend.Device, error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	return h.open(file, backing, h.l1, h.sizeBytes)
}

func (h *header) open(file, backing backend.Device, l1 table, size int64) (backend.Device, error) {
	if h.backing != "" && backing == nil {
		return nil, backend.Because(backend.ErrInvalid, "the qcow2 image has the backing file %q, without which it cannot be read", h.backing)
	}
	if h.backing == "" && backing != nil {
		return nil, backend.Because(backend.ErrInvalid, "the qcow2 image has no backing file, and one was opened for it")
	}
	// Entries that map the state of a virtual machine, past the end of its disk, are of no use.
	l1.entries = int(min(int64(l1.entries), h.l1Need(size)))
	im := &image{
		m:           newMapping(images.Add(1), h, l1, source{file, file.Size()}),
		size:        size,
		compression: h.compression,
		corrupt:     h.incompatible&incompatCorrupt != 0,
		metadata:    h.metadataClusters(file.Size()),
	}
	if backing != nil {
		im.backing, im.backingSize = backing, backing.Size()
	}
	im.opaqueFrom.Store(size)
	maxCompressed := 2 * im.m.clusterSize()
	im.buffers.New = func() any {
		b := make([]byte, maxCompressed)
		return &b
	}
	return im, nil
}

// images counts the images opened, to name them in the caches.
var images atomic.Uint64

type lastSlice = atomic.Pointer[tablePiece]

// image is an open image.
type image struct {
	m           mapping
	size        int64
	backing     backend.Device // nil if there is none
	backingSize int64
	compression uint8
	corrupt     bool
	closed      atomic.Bool
	last        lastSlice // the piece of an L2 table that was used last
	buffers     sync.Pool // of *[]byte, for compressed data
	counted     count     // sparse.go
	metadata    int64     // clusters that hold no guest's data, about
	opaqueFrom  atomic.Int64
}

var (
	_ backend.Device  = (*image)(nil)
	_ backend.Locator = (*image)(nil)
	_ backend.Sparse  = (*image)(nil)
)

// source is the file of an image, with the size that it had when it was opened.
type source struct {
	backend.Device
	size int64
}

// readPadded reads all of b. What lies past the end of the file is zeros.
func (s source) readPadded(b []byte, off int64) error {
	n := int(min(int64(len(b)), max(0, s.size-off)))
	clear(b[n:])
	if n == 0 {
		return nil
	}
	return readFull(s.Device, b[:n], off)
}

// Size is the size of the disk that the guest sees, in bytes: whole sectors, as QEMU has it.
func (im *image) Size() int64 { return im.size }

// Warnings says if the image is marked corrupt: QEMU found its tables to contradict each other.
func (im *image) Warnings() []string {
	if !im.corrupt {
		return nil
	}
	return []string{"the image is marked corrupt by QEMU: what is read from it may be wrong until qemu-img check has repaired it"}
}

// Close closes the file and the backing file.
func (im *image) Close() error {
	if im.closed.Swap(true) {
		return os.ErrClosed
	}
	forget(im.m.id)
	im.last.Store(nil)
	err := im.m.file.Close()
	if im.backing != nil {
		err = errors.Join(err, im.backing.Close())
	}
	return err
}

// ReadAt reads as from the raw disk.
func (im *image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read a qcow2 image at offset %d: %w", off, backend.ErrInvalid)
	}
	if im.closed.Load() {
		return 0, os.ErrClosed
	}
	if off >= im.size {
		return 0, io.EOF
	}
	atEnd := int64(len(p)) > im.size-off
	if atEnd {
		p = p[:im.size-off]
	}
	n, err := im.read(p, off)
	if err == nil && atEnd {
		err = io.EOF
	}
	return n, err
}

// read fills p, with one read of the file for each run. Compressed clusters are left for the end, to be
// decompressed side by side.
func (im *image) read(p []byte, off int64) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	r, err := im.m.lookup(&im.last, off, int64(len(p)), nil)
	var parts []part // in compressed clusters, yet to be read
	for err == nil {
		rest := p[n:]
		var next run
		var nextErr error
		for r.n < int64(len(rest)) {
			next, nextErr = im.m.lookup(&im.last, off+int64(n)+r.n, int64(len(rest))-r.n, nil)
			if nextErr != nil || !r.joins(next) {
				break
			}
			r.n += next.n
		}
		if r.kind != compressed {
			err = im.fill(rest[:r.n], r, off+int64(n))
		} else {
			in := (off + int64(n)) & (im.m.clusterSize() - 1)
			parts = append(parts, part{p: rest[:r.n], at: n, in: in, entry: r.entry, keep: len(p) < passBytes})
		}
		if err != nil {
			break
		}
		if n += int(r.n); n == len(p) {
			break
		}
		if len(parts) == maxParts {
			if at, err := im.readParts(parts); err != nil {
				return at, err
			}
			parts = parts[:0]
		}
		r, err = next, nextErr
	}
	if len(parts) > 0 {
		if at, err := im.readParts(parts); err != nil {
			return at, err
		}
	}
	return n, err
}

// fill reads a run that is not compressed, which begins at off.
func (im *image) fill(p []byte, r run, off int64) error {
	switch r.kind {
	case data:
		return im.m.file.readPadded(p, r.host)
	case unallocated:
		return im.fillFromBacking(p, off)
	}
	clear(p)
	return nil
}

func (im *image) fillFromBacking(p []byte, off int64) error {
	n := 0
	if im.backing != nil {
		n = int(min(int64(len(p)), max(0, im.backingSize-off)))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	got, err := im.backing.ReadAt(p[:n], off)
	if got == n {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the backing file of the qcow2 image ends at byte %d, and had %d bytes when it was opened: %w (%w)", off+int64(got), im.backingSize, backend.ErrIO, io.ErrUnexpectedEOF)
	}
	return err
}

package lvm2

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync/atomic"

	"domfs/backend"
)

// The COW device of a classic snapshot (drivers/md/dm-snap-persistent.c in Linux), little-endian, in chunks. Chunk 0 begins
// with the header:
//
//	 0 u32 magic       "SnAp"; 0 where the kernel has not seen the device yet
//	 4 u32 valid       0 once the snapshot has overflowed, or could not be written
//	 8 u32 version     1
//	12 u32 chunk size  in sectors of 512 bytes
//
// Chunk 1 is an area of exceptions, 16 bytes each: the chunk of the origin, and the chunk of the COW device that has
// the bytes of the snapshot for it. As many chunks as an area has exceptions follow, then the next area, and so on; the first exception
// whose second number is 0 ends the list, and what lies behind it is of no meaning.
const (
	cowMagic       = 0x70416e53
	cowVersion     = 1
	cowHeaderBytes = 16
	exceptionBytes = 16
	minCOWChunk    = 512
	maxCOWChunk    = 1 << 30 // LVM makes 4 KiB to 512 KiB
)

// snapshot is an open classic snapshot.
type snapshot struct {
	origin, cow backend.Device
	size        int64
	originSize  int64 // within size
	header      cowHeader
	exceptions  *exceptionStore
	warnings    []string
	last        atomic.Int64 // index of the run that was used last
	opaqueFrom  atomic.Int64 // cowsparse.go
}

var (
	_ backend.Device  = (*snapshot)(nil)
	_ backend.Locator = (*snapshot)(nil)
	_ backend.Sparse  = (*snapshot)(nil)
	_ backend.Warner  = (*snapshot)(nil)
)

// openCOW opens a classic snapshot of its origin's size: the bytes of the COW device where the origin was written to
// since, or the snapshot was, and those of the origin elsewhere. chunkBytes is what LVM's metadata say; the COW device's own header is
// believed where it says otherwise. A snapshot that has overflowed is ErrIO.
//
// Both Devices outlive the result, whose Close does nothing; it is Sparse, a Locator and a Warner. The list of exceptions is read when
// bytes are first read, not here: ErrUnsupported if it is too long to be held.
func openCOW(origin, cow backend.Device, chunkBytes int64) (backend.Device, error) {
	return openCOWSized(origin, cow, chunkBytes, origin.Size())
}

// openCOWSized is openCOW for a snapshot whose size is not its origin's, because that was resized. Of a shorter
// origin, what lies past its end can be read as far as the COW device has it.
func openCOWSized(origin, cow backend.Device, chunkBytes, sizeBytes int64) (backend.Device, error) {
	if sizeBytes < 0 || sizeBytes > math.MaxInt64-maxCOWChunk {
		return nil, backend.Because(backend.ErrCorrupt, "a snapshot cannot have %d bytes", sizeBytes)
	}
	h, err := readCOWHeader(cow, chunkBytes)
	if err != nil {
		return nil, err
	}
	s := &snapshot{origin: origin, cow: cow, size: sizeBytes, originSize: min(origin.Size(), sizeBytes), header: h}
	chunks := (sizeBytes + h.chunk - 1) / h.chunk
	if chunks > maxOriginChunk {
		return nil, backend.Because(backend.ErrUnsupported, "the snapshot has %d chunks; at most %d are read", chunks, int64(maxOriginChunk))
	}
	s.exceptions = newExceptionStore(exceptionList{cow: cow, chunk: h.chunk, fresh: h.fresh, originChunks: uint64(chunks)})
	s.opaqueFrom.Store(sizeBytes)
	if !h.fresh && h.chunk != chunkBytes {
		s.warnings = append(s.warnings, fmt.Sprintf("the snapshot has chunks of %d bytes by its COW volume, which is believed, and of %d by LVM's metadata", h.chunk, chunkBytes))
	}
	return s, nil
}

// cowHeader is what the header of a COW device says.
type cowHeader struct {
	chunk int64 // bytes
	fresh bool  // there are no exceptions yet
}

func readCOWHeader(cow backend.Device, chunkBytes int64) (cowHeader, error) {
	var b [cowHeaderBytes]byte
	if err := readAll(cow, b[:], 0); err != nil {
		return cowHeader{}, fmt.Errorf("header of the snapshot's COW volume: %w", err)
	}
	le := binary.LittleEndian
	h := cowHeader{chunk: chunkBytes}
	switch magic := le.Uint32(b[:]); magic {
	case 0:
		h.fresh = true
	case cowMagic:
		if v := le.Uint32(b[8:]); v != cowVersion {
			return cowHeader{}, backend.Because(backend.ErrUnsupported, "the snapshot's COW volume has version %d; version %d is read", v, cowVersion)
		}
		if le.Uint32(b[4:]) == 0 {
			return cowHeader{}, errOverflowed
		}
		h.chunk = int64(le.Uint32(b[12:])) * thinSectorBytes
	default:
		return cowHeader{}, fmt.Errorf("the snapshot's COW volume begins with %#x, not %#x: %w", magic, cowMagic, backend.ErrCorrupt)
	}
	if h.chunk < minCOWChunk || h.chunk > maxCOWChunk || h.chunk&(h.chunk-1) != 0 {
		return cowHeader{}, fmt.Errorf("a snapshot cannot have chunks of %d bytes: %w", h.chunk, backend.ErrCorrupt)
	}
	return h, nil
}

var errOverflowed = backend.Because(backend.ErrIO, "the snapshot is invalid: it has overflowed")

// Size is the snapshot's size in bytes.
func (s *snapshot) Size() int64 { return s.size }

// Close does nothing.
func (s *snapshot) Close() error { return nil }

// Warnings says if LVM and the COW device differ.
func (s *snapshot) Warnings() []string { return s.warnings }

// cowExtent is bytes of a snapshot that lie together.
type cowExtent struct {
	length int64
	copied bool  // they are on the COW device
	at     int64 // there
}

// extent returns the bytes that lie together from off on, which is within the snapshot.
func (s *snapshot) extent(runs []exceptionRun, off int64) (cowExtent, error) {
	chunk := uint64(off / s.header.chunk)
	i := findException(runs, chunk, int(s.last.Load()))
	s.last.Store(int64(i))
	end := s.size
	if i+1 < len(runs) {
		end = min(end, int64(runs[i+1].origin())*s.header.chunk)
	}
	if i < 0 || runs[i].end() <= chunk {
		return cowExtent{length: end - off}, nil
	}
	r := runs[i]
	end = min(s.size, int64(r.end())*s.header.chunk)
	at, chunks := r.cow+chunk-r.origin(), uint64(s.cow.Size()/s.header.chunk)
	if at < r.cow || at >= chunks {
		return cowExtent{}, fmt.Errorf("chunk %d of the snapshot is said to be chunk %d of its COW volume, which has %d: %w", chunk, at, chunks, backend.ErrCorrupt)
	}
	in := off % s.header.chunk
	return cowExtent{
		length: min(end-off, int64(chunks-at)*s.header.chunk-in),
		copied: true, at: int64(at)*s.header.chunk + in,
	}, nil
}

// ReadAt reads what the snapshot's user sees.
func (s *snapshot) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read a snapshot at offset %d: %w", off, backend.ErrInvalid)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	runs, err := s.exceptions.runs()
	if err != nil {
		return 0, err
	}
	atEnd := int64(len(p)) > s.size-off
	if atEnd {
		p = p[:s.size-off]
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		e, err := s.extent(runs, at)
		if err != nil {
			return n, err
		}
		part := p[n:]
		part = part[:min(int64(len(part)), e.length)]
		switch {
		case e.copied:
			if err := readAll(s.cow, part, e.at); err != nil {
				return n, fmt.Errorf("the snapshot's COW volume, at byte %d of the snapshot: %w", at, err)
			}
		case at >= s.originSize:
			return n, backend.Because(backend.ErrIO, "the snapshot's origin ends at byte %d, and the snapshot has %d: what lies between cannot be read", s.originSize, s.size)
		default:
			part = part[:min(int64(len(part)), s.originSize-at)]
			if err := readAll(s.origin, part, at); err != nil {
				return n, fmt.Errorf("the snapshot's origin: %w", err)
			}
		}
		n += len(part)
	}
	if atEnd {
		return len(p), io.EOF
	}
	return len(p), nil
}

// Locate says where the COW device or the origin have the bytes at off.
func (s *snapshot) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || length <= 0 || off >= s.size {
		return backend.Location{}, false
	}
	runs, err := s.exceptions.runs()
	if err != nil {
		return backend.Location{}, false
	}
	e, err := s.extent(runs, off)
	if err != nil {
		return backend.Location{}, false
	}
	length = min(length, e.length)
	if e.copied {
		return locateIn(s.cow, e.at, length)
	}
	return locateIn(s.origin, off, min(length, s.originSize-off))
}

package lvm2

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"runtime"
	"sort"
	"sync/atomic"

	"domfs/backend"
)

// The metadata of a thin pool (drivers/md/dm-thin-metadata.c in Linux). The first block is the superblock, all of it
// little-endian:
//
//	  0 u32 checksum         of the rest of the block
//	  4 u32 flags            1 the metadata need a check
//	  8 u64 block            0
//	 32 u64 magic
//	 40 u32 version
//	320 u64 mappings' root   tree of devices, whose values are roots of trees of mappings
//	328 u64 details' root    tree of devices' details
//	336 u32 chunk size       in sectors of 512 bytes
//	340 u32 block size       likewise; of the metadata
//	344 u64 blocks           of the metadata
//	360 u32 incompatible     features
//
// The value of a mapping is the number of a chunk of the data device, shifted by 24 bits over the time when it was
// made. Details begin with a u64: how many chunks the device has. The space maps, which say what is free, are of no use for
// reading, and neither is the root that a metadata snapshot holds.
const (
	thinMagic             = 27022010
	thinChecksum          = 160774
	thinNeedsCheck        = 1
	thinMinVersion        = 1
	thinMaxVersion        = 2
	thinChunkUnit         = 64 << 10 // bytes; a chunk is a multiple
	thinMaxChunk          = 1 << 30
	maxThinDevice         = 1<<24 - 1
	detailsBytes          = 24
	thinSectorBytes int64 = 512
)

// thinPools counts the pools opened, to name them in the cache.
var thinPools atomic.Uint64

// thinPool is an open pool: what its devices have in common. It holds nothing that must be closed.
type thinPool struct {
	id                        uint64 // in the cache
	data, meta                backend.Device
	chunk                     int64  // bytes
	dataChunks, metaBlocks    uint64 // that there are
	mappingsRoot, detailsRoot uint64
	warnings                  []string
}

// openThin opens a device of a thin pool, by its number in the pool, from the pool's data and metadata.
// chunkBytes is what LVM's metadata say of the pool. external has the bytes of what the device has none of its own for; it may be nil,
// and what lies past its end is zeros. All three Devices outlive the result, whose Close does nothing; it is Sparse, a Locator and a
// Warner.
//
// Opening costs a few nodes of the metadata, however much is mapped. A pool without such a device is ErrNotExist.
func openThin(data, meta backend.Device, deviceID uint64, chunkBytes, sizeBytes int64, external backend.Device) (backend.Device, error) {
	p, err := openThinPool(data, meta, chunkBytes)
	if err != nil {
		return nil, err
	}
	d, err := p.open(deviceID, sizeBytes, external)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openThinPool reads the superblock of a pool. Devices opened of one thinPool share what is cached of its metadata.
func openThinPool(data, meta backend.Device, chunkBytes int64) (*thinPool, error) {
	if chunkBytes < thinChunkUnit || chunkBytes > thinMaxChunk || chunkBytes%thinChunkUnit != 0 {
		return nil, backend.Because(backend.ErrCorrupt, "a thin pool cannot have chunks of %d bytes: they are multiples of %d, up to %d", chunkBytes, thinChunkUnit, thinMaxChunk)
	}
	var b [metaBlockBytes]byte
	if err := readAll(meta, b[:], 0); err != nil {
		return nil, fmt.Errorf("superblock of the thin pool's metadata: %w", err)
	}
	le := binary.LittleEndian
	corrupt := func(format string, args ...any) error {
		return fmt.Errorf("the superblock of the thin pool's metadata is damaged: %s: %w", fmt.Sprintf(format, args...), backend.ErrCorrupt)
	}
	if magic := le.Uint64(b[32:]); magic != thinMagic {
		return nil, corrupt("its magic number is %d, not %d", magic, thinMagic)
	}
	if have, want := le.Uint32(b[:]), metaChecksum(b[:], thinChecksum); have != want {
		return nil, corrupt("its checksum is %#x, and that of its bytes %#x", have, want)
	}
	if at := le.Uint64(b[8:]); at != 0 {
		return nil, corrupt("it says that it is block %d", at)
	}
	if v := le.Uint32(b[40:]); v < thinMinVersion || v > thinMaxVersion {
		return nil, backend.Because(backend.ErrUnsupported, "the thin pool's metadata have version %d; versions %d and %d are read", v, thinMinVersion, thinMaxVersion)
	}
	if f := le.Uint32(b[360:]); f != 0 {
		return nil, backend.Because(backend.ErrUnsupported, "the thin pool's metadata have incompatible features (%#x); none are known", f)
	}
	if size := int64(le.Uint32(b[340:])) * thinSectorBytes; size != metaBlockBytes {
		return nil, corrupt("its blocks have %d bytes, not %d", size, metaBlockBytes)
	}
	if size := int64(le.Uint32(b[336:])) * thinSectorBytes; size != chunkBytes {
		return nil, corrupt("its chunks have %d bytes, and LVM's metadata say %d", size, chunkBytes)
	}
	p := &thinPool{
		id: thinPools.Add(1), data: data, meta: meta, chunk: chunkBytes,
		dataChunks:   uint64(max(0, data.Size()) / chunkBytes),
		metaBlocks:   uint64(meta.Size() / metaBlockBytes),
		mappingsRoot: le.Uint64(b[320:]),
		detailsRoot:  le.Uint64(b[328:]),
	}
	if le.Uint32(b[4:])&thinNeedsCheck != 0 {
		p.warnings = append(p.warnings, "the thin pool's metadata are marked as in need of a check: what is read may be wrong until the guest has repaired them (lvconvert --repair)")
	}
	if blocks := le.Uint64(b[344:]); blocks > p.metaBlocks {
		p.warnings = append(p.warnings, fmt.Sprintf("the thin pool's metadata should have %d blocks, and their volume has %d: some of what is mapped may not be readable", blocks, p.metaBlocks))
	}
	// Nobody closes a guest's volumes.
	runtime.AddCleanup(p, poolForgetter(), p.id)
	return p, nil
}

// open opens a device of the pool, as openThin does.
func (p *thinPool) open(deviceID uint64, sizeBytes int64, external backend.Device) (*thinDevice, error) {
	if deviceID > maxThinDevice {
		return nil, backend.Because(backend.ErrCorrupt, "a thin pool cannot have a device %d: its numbers end at %d", deviceID, maxThinDevice)
	}
	if sizeBytes < 0 || sizeBytes > math.MaxInt64-p.chunk {
		return nil, backend.Because(backend.ErrCorrupt, "thin device %d cannot have %d bytes", deviceID, sizeBytes)
	}
	mapped, ok, err := p.value(p.detailsRoot, deviceID, detailsTree)
	if err != nil {
		return nil, fmt.Errorf("details of thin device %d: %w", deviceID, err)
	}
	if !ok {
		return nil, backend.Because(backend.ErrNotExist, "the thin pool has no device %d: LVM's metadata name it, and the pool's do not; it was not yet made in the pool, or the pool's metadata are older", deviceID)
	}
	root, ok, err := p.value(p.mappingsRoot, deviceID, devicesTree)
	if err != nil {
		return nil, fmt.Errorf("thin device %d: %w", deviceID, err)
	}
	if !ok {
		return nil, fmt.Errorf("the thin pool has details of device %d, and no mappings: %w", deviceID, backend.ErrCorrupt)
	}
	d := &thinDevice{
		pool: p, number: deviceID, root: root, size: sizeBytes,
		chunks: uint64((sizeBytes + p.chunk - 1) / p.chunk), mapped: mapped,
	}
	if external != nil {
		d.external, d.externalSize = external, min(external.Size(), sizeBytes)
	}
	d.opaqueFrom.Store(sizeBytes)
	return d, nil
}

// thinDevice is an open device of a thin pool.
type thinDevice struct {
	pool         *thinPool
	number       uint64
	root         uint64 // of its tree of mappings
	size         int64
	chunks       uint64 // of size
	mapped       uint64 // chunks, by its details
	external     backend.Device
	externalSize int64                       // within size
	last         atomic.Pointer[btreeLeafAt] // the leaf that was used last
	opaqueFrom   atomic.Int64                // thinsparse.go
}

var (
	_ backend.Device  = (*thinDevice)(nil)
	_ backend.Locator = (*thinDevice)(nil)
	_ backend.Sparse  = (*thinDevice)(nil)
	_ backend.Warner  = (*thinDevice)(nil)
)

// Size is the device's size in bytes, as LVM's metadata have it.
func (d *thinDevice) Size() int64 { return d.size }

// Close does nothing.
func (d *thinDevice) Close() error { return nil }

// Warnings are those of the pool.
func (d *thinDevice) Warnings() []string { return d.pool.warnings }

// thinSpan is chunks of a device, from one to below another, that lie one behind the other in the data, or
// are not mapped.
type thinSpan struct {
	from, to uint64
	mapped   bool
	data     uint64 // chunk of the data, of from
}

// span returns what a chunk below d.chunks is part of: as much of it as is known without reading more.
func (d *thinDevice) span(chunk uint64) (thinSpan, error) {
	at := d.last.Load()
	if at == nil || chunk < at.lo || chunk >= at.hi {
		found, err := d.pool.seek(d.root, chunk, mappingsTree)
		if err != nil {
			return thinSpan{}, fmt.Errorf("chunk %d of thin device %d: %w", chunk, d.number, err)
		}
		at = &found
		d.last.Store(at)
	}
	s := thinSpan{from: at.lo, to: min(at.hi, d.chunks)}
	if at.node == nil {
		return s, nil
	}
	runs := at.node.runs
	i := sort.Search(len(runs), func(i int) bool { return runs[i].block > chunk })
	if i < len(runs) {
		s.to = min(runs[i].block, s.to)
	}
	if i == 0 {
		return s, nil
	}
	r := runs[i-1]
	if r.end() <= chunk {
		s.from = r.end()
		return s, nil
	}
	return thinSpan{from: r.block, to: min(r.end(), d.chunks), mapped: true, data: r.data()}, nil
}

// thinExtent is bytes of a device that lie together.
type thinExtent struct {
	length int64
	mapped bool
	at     int64 // in the data
}

// extent returns the bytes that lie together from off on, which is within the device.
func (d *thinDevice) extent(off int64) (thinExtent, error) {
	chunk := uint64(off / d.pool.chunk)
	s, err := d.span(chunk)
	if err != nil {
		return thinExtent{}, err
	}
	end := d.size
	if s.to < d.chunks {
		end = int64(s.to) * d.pool.chunk
	}
	if !s.mapped {
		return thinExtent{length: end - off}, nil
	}
	data := s.data + chunk - s.from
	if data >= d.pool.dataChunks {
		return thinExtent{}, fmt.Errorf("chunk %d of thin device %d is said to be chunk %d of the pool's data, which end at %d: %w", chunk, d.number, data, d.pool.dataChunks, backend.ErrCorrupt)
	}
	in := off % d.pool.chunk
	most := int64(d.pool.dataChunks-data)*d.pool.chunk - in
	return thinExtent{length: min(end-off, most), mapped: true, at: int64(data)*d.pool.chunk + in}, nil
}

// ReadAt reads what the device's user sees: zeros, or what external has, where nothing was written.
func (d *thinDevice) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read thin device %d at offset %d: %w", d.number, off, backend.ErrInvalid)
	}
	if off >= d.size {
		return 0, io.EOF
	}
	atEnd := int64(len(p)) > d.size-off
	if atEnd {
		p = p[:d.size-off]
	}
	for n := 0; n < len(p); {
		e, err := d.extent(off + int64(n))
		if err != nil {
			return n, err
		}
		part := p[n:]
		part = part[:min(int64(len(part)), e.length)]
		if e.mapped {
			err = readAll(d.pool.data, part, e.at)
		} else {
			err = d.readUnmapped(part, off+int64(n))
		}
		if err != nil {
			return n, fmt.Errorf("thin device %d at byte %d: %w", d.number, off+int64(n), err)
		}
		n += len(part)
	}
	if atEnd {
		return len(p), io.EOF
	}
	return len(p), nil
}

func (d *thinDevice) readUnmapped(p []byte, off int64) error {
	n := min(int64(len(p)), max(0, d.externalSize-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return readAll(d.external, p[:n], off)
}

// Locate says where the data, or external, have the bytes at off.
func (d *thinDevice) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || length <= 0 || off >= d.size {
		return backend.Location{}, false
	}
	e, err := d.extent(off)
	if err != nil {
		return backend.Location{}, false
	}
	length = min(length, e.length)
	if e.mapped {
		return locateIn(d.pool.data, e.at, length)
	}
	if d.external == nil {
		return backend.Location{}, false
	}
	return locateIn(d.external, off, min(length, d.externalSize-off))
}

func locateIn(d backend.Device, off, length int64) (backend.Location, bool) {
	l, ok := d.(backend.Locator)
	if !ok || length <= 0 {
		return backend.Location{}, false
	}
	return l.Locate(off, length)
}

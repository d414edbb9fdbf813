package lvm2

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"domfs/backend"
)

// usedBlocks is how many blocks of metadata are in use from the first on: behind them all is zeros.
func usedBlocks(b []byte) []byte {
	return b[:(len(bytes.TrimRight(b, "\x00"))+metaBlockBytes-1)/metaBlockBytes*metaBlockBytes]
}

// boundedReads counts the reads of a device.
type boundedReads struct {
	plainBytes
	reads int
}

func (b *boundedReads) ReadAt(p []byte, off int64) (int, error) {
	b.reads++
	return b.plainBytes.ReadAt(p, off)
}

// FuzzThin reads devices of a pool in whose metadata bytes are changed: which ones and how, damage says in fours. The checksums are
// right nevertheless.
func FuzzThin(f *testing.F) {
	m, b := smallPool(f)
	b = usedBlocks(b)
	f.Add([]byte{}, uint32(1))
	f.Add([]byte{1, 0, 16, 1}, uint32(2))
	f.Add([]byte{4, 0, 32, 1, 4, 8, 200, 255}, uint32(1))
	for i := range len(b) / metaBlockBytes {
		f.Add([]byte{byte(i), 0, 4, 3}, uint32(1))
		f.Add([]byte{byte(i), 0, 41, 0x80}, uint32(1))
		f.Add([]byte{byte(i), 8, 0, 1, byte(i), 8, 16, 1}, uint32(1))
	}
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	f.Fuzz(func(t *testing.T, damage []byte, id uint32) {
		b := bytes.Clone(b)
		for ; len(damage) >= 4; damage = damage[4:] {
			b[(int(damage[0])*metaBlockBytes+(int(damage[1])<<8|int(damage[2]))%metaBlockBytes)%len(b)] ^= damage[3]
		}
		for at := 0; at < len(b); at += metaBlockBytes {
			seal(b[at : at+metaBlockBytes])
		}
		readThin(t, data, b, uint64(id))
	})
}

// FuzzThinMetadata reads whole metadata, whose checksums are made right.
func FuzzThinMetadata(f *testing.F) {
	_, b := smallPool(f)
	b = usedBlocks(b)
	f.Add(b)
	f.Add(b[:metaBlockBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		for at := 0; at+metaBlockBytes <= len(b); at += metaBlockBytes {
			seal(b[at : at+metaBlockBytes])
		}
		readThin(t, patternDevice{size: 4096 * 64 * kibi, seed: 1}, b, 1)
	})
}

// readThin reads a device, with and without an external origin, and checks what holds for any metadata.
func readThin(t *testing.T, data backend.Device, b []byte, id uint64) {
	for _, external := range []backend.Device{nil, holeyDevice{patternDevice{size: 3*mebi + 512, seed: 5}}} {
		meta := &boundedReads{plainBytes: b}
		d, err := openThin(data, meta, id, 64*kibi, 1000*64*kibi-512, external)
		if meta.reads > 1+2*maxBtreeDepth {
			t.Fatalf("opening reads %d blocks", meta.reads)
		}
		if err != nil {
			sentinel(t, err)
			return
		}
		readDevice(t, d)
	}
}

// sentinel fails where an error is none that bytes of a guest may lead to.
func sentinel(t *testing.T, err error) {
	t.Helper()
	for _, s := range []error{backend.ErrCorrupt, backend.ErrUnsupported, backend.ErrIO, backend.ErrNotExist} {
		if errors.Is(err, s) {
			return
		}
	}
	t.Fatalf("the error %v says nothing", err)
}

// readDevice goes through a device's data and holes, which must come to an end, and reads at the borders.
func readDevice(t *testing.T, d backend.Device) {
	s, l := d.(backend.Sparse), d.(backend.Locator)
	if a := s.Allocated(); a < 0 || a > d.Size() {
		t.Fatalf("%d bytes of %d are allocated", a, d.Size())
	}
	p := make([]byte, 1024)
	read := func(off int64) {
		off = max(0, off)
		n, err := d.ReadAt(p, off)
		if err == nil && n < len(p) || n < 0 || n > len(p) {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			sentinel(t, err)
		}
		if at, ok := l.Locate(off, 1<<20); ok && (at.Length <= 0 || at.Length > 1<<20) {
			t.Fatalf("byte %d lies at %v", off, at)
		}
	}
	steps := 0
	for off := int64(0); off < d.Size(); steps++ {
		if steps > 100_000 {
			t.Fatal("data and holes have no end")
		}
		data, err := s.NextData(off)
		if errors.Is(err, backend.ErrRange) {
			break
		}
		noError(t, err)
		hole, err := s.NextHole(data)
		noError(t, err)
		if data < off || hole <= data || hole > d.Size() {
			t.Fatalf("from %d of %d: data at %d, a hole at %d", off, d.Size(), data, hole)
		}
		read(data - 512)
		read(hole - 512)
		off = hole
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		read(r.Int64N(d.Size()))
	}
	read(d.Size() - 1)
}

// FuzzCOW reads a snapshot by a COW device of any bytes.
func FuzzCOW(f *testing.F) {
	for _, chunk := range []int64{512, 4 * kibi} {
		_, store, _ := writtenSnapshot(f, chunk, 100*chunk, 40, rand.New(rand.NewPCG(1, 1)))
		f.Add(store.b[:3*chunk], uint16(512), uint16(8))
		store.put(3, 7, 1<<62)
		store.put(4, -1, 2)
		f.Add(store.b[:3*chunk], uint16(30000), uint16(8))
		store.b[12] = 1
		f.Add(store.b[:3*chunk], uint16(30000), uint16(8))
	}
	f.Fuzz(func(t *testing.T, b []byte, originSectors, sectors uint16) {
		var origin backend.Device = patternDevice{size: int64(originSectors) * 512, seed: 1}
		if originSectors%2 == 1 {
			origin = holeyDevice{patternDevice{size: int64(originSectors) * 512, seed: 1}}
		}
		cow := &boundedReads{plainBytes: b}
		d, err := openCOWSized(origin, cow, 4*kibi, int64(sectors)*512+1)
		if err != nil {
			sentinel(t, err)
			return
		}
		readDevice(t, d)
		chunk := d.(*snapshot).header.chunk
		runs, err := d.(*snapshot).exceptions.runs()
		if err != nil {
			sentinel(t, err)
			return
		}
		end := uint64(0)
		for _, r := range runs {
			if r.length() == 0 || r.origin() < end || r.end() > uint64((d.Size()+chunk-1)/chunk) {
				t.Fatalf("run %v behind %d of %d bytes", r, end, d.Size())
			}
			end = r.end()
		}
	})
}

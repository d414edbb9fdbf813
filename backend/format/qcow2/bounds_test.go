package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/lru"

	"github.com/klauspost/compress/zstd"
)

// sparseFile is a file of holes, with a few bytes.
func sparseFile(t testing.TB, size int64, parts map[int64][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	for off, b := range parts {
		_, err := f.WriteAt(b, off)
		must(t, err)
	}
	return path
}

// manyTables is an image with an L1 table of 32 MiB, whose every entry is entry(i), and clusters of 2^bits bytes.
func manyTables(t testing.TB, bits uint, fileSize int64, entry func(i int) uint64, l2 []byte) string {
	cs := int64(1) << bits
	im := build(3, bits)
	size := uint64(maxL1Bytes/8) << (2*bits - 3)
	im.put(24, be64(size)).put(36, be32(maxL1Bytes/8)).put(40, be64(uint64(cs)))
	l1 := make([]byte, maxL1Bytes)
	for i := range maxL1Bytes / 8 {
		binary.BigEndian.PutUint64(l1[8*i:], entry(i))
	}
	return sparseFile(t, fileSize, map[int64][]byte{0: im.b[:cs], cs: l1, cs + maxL1Bytes: l2})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemory_StaysBoundedWithTheLargestTables(t *testing.T) {
	// 2 PiB: each L2 table is elsewhere in 8 TiB of holes.
	path := manyTables(t, 16, 8<<40, func(i int) uint64 { return uint64(i%100_000+2000) << 16 }, nil)
	before := heap()
	var all []backend.Device
	for range 4 {
		d, err := New().Open(openFile(t, path), nil)
		must(t, err)
		all = append(all, d)
		r := rand.New(rand.NewPCG(1, 1))
		p := make([]byte, 512)
		for range 3000 {
			_, err := d.ReadAt(p, r.Int64N(d.Size()-512))
			must(t, err)
		}
	}
	if grown := heap() - before; grown > tableCacheBytes+16*mib {
		t.Errorf("%d MiB are held", grown/mib)
	}
	for _, d := range all {
		must(t, d.Close())
	}
	if grown := heap() - before; grown > 16*mib {
		t.Errorf("after closing, %d MiB are held", grown/mib)
	}
}

func TestCaches_TakeWhatIsAccountedOfThem(t *testing.T) {
	const most, size = 4 * mib, 512 // the least that a cluster and a piece of an L2 table have
	check := func(name string, before, accounted int64) {
		takes := float64(heap()-before) / float64(accounted)
		t.Logf("%s take %.3f of what is accounted", name, takes)
		if takes > 1 || takes < 0.8 {
			t.Errorf("%s: it is not what they take", name)
		}
	}
	before := heap()
	c := lru.New[clusterKey, []byte](most)
	for n := range uint64(100_000) {
		_, err := c.Load(clusterKey{entry: n}, func() ([]byte, int, error) { return make([]byte, size), size, nil })
		must(t, err)
	}
	check("clusters", before, int64(c.Bytes()))

	before = heap()
	p := lru.New[tableKey, *tablePiece](most)
	for n := range uint64(100_000) {
		_, err := p.Load(tableKey{at: n, kind: l2Slice}, func() (*tablePiece, int, error) {
			b := &tablePiece{at: n, entries: make([]uint64, size/8)}
			return b, b.bytes(), nil
		})
		must(t, err)
	}
	check("pieces of tables", before, int64(p.Bytes()))
	runtime.KeepAlive(c)
	runtime.KeepAlive(p)
}

func TestSearch_EndsSoonInHostileTables(t *testing.T) {
	const cs = 1 << 21
	const at = cs + maxL1Bytes
	alternating := bytes.Repeat(append(be64(1), be64(0)...), cs/16) // zero, unallocated, …: no data anywhere
	damaged := bytes.Repeat(be64(cs+512), cs/8)
	for name, path := range map[string]string{
		"one table for all":     manyTables(t, 21, at+cs, func(int) uint64 { return at }, alternating),
		"a damaged one for all": manyTables(t, 21, at+cs, func(int) uint64 { return at }, damaged),
		"the table itself":      manyTables(t, 21, at+cs, func(int) uint64 { return cs }, nil),
		"each in a hole":        manyTables(t, 21, 8<<40, func(i int) uint64 { return uint64(i+100) << 21 }, nil),
	} {
		start := time.Now()
		d, err := New().Open(openFile(t, path), nil)
		must(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			checkSearch(t, d)
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: no end after 30 s", name)
		}
		t.Logf("%s: %v", name, time.Since(start))
		must(t, d.Close())
	}
}

func TestAllocated_OfVeryManyTablesIsAnEstimate(t *testing.T) {
	const at = 512 + maxL1Bytes
	l2 := bytes.Repeat(append(be64(512), be64(1)...), 32)
	path := manyTables(t, 9, at+512, func(int) uint64 { return at }, l2)
	b, err := os.ReadFile(path)
	must(t, err)
	d, err := New().Open(memory(b), nil)
	must(t, err)
	defer d.Close()
	if n := backend.Allocated(d); n != d.Size()/2 {
		t.Errorf("%d of %d bytes are allocated, want half", n, d.Size())
	}
}

func TestDecompress_IsBoundedByTheCluster(t *testing.T) {
	const bits, cs = 16, 1 << 16
	encoder, err := zstd.NewWriter(nil)
	must(t, err)
	bomb := encoder.EncodeAll(make([]byte, 64*mib), nil)
	whole := encoder.EncodeAll(bytes.Repeat([]byte{7}, cs), nil)
	half := encoder.EncodeAll(bytes.Repeat([]byte{7}, cs/2), nil)
	empty := encoder.EncodeAll(nil, nil)
	if len(empty) == 0 {
		empty = []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0}
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	for _, c := range []struct {
		name string
		data []byte
		ok   bool
	}{
		{"whole", whole, true},
		{"whole, and another after it", append(bytes.Clone(whole), whole...), true},
		{"whole, and rubbish after it", append(bytes.Clone(whole), "rubbish"...), true},
		{"two halves", append(bytes.Clone(half), half...), true},
		{"skipped first", append(bytes.Clone(skippable), whole...), true},
		{"nothing first", append(bytes.Repeat(empty, 100), whole...), true},
		{"half", half, false},
		{"half and rubbish", append(bytes.Clone(half), "rubbish"...), false},
		{"half, then whole", append(bytes.Clone(half), whole...), false},
		{"64 MiB", bomb, false},
		{"nothing", nil, false},
		{"nothing, often", bytes.Repeat(empty, 100), false},
		{"cut", whole[:len(whole)-1], false},
	} {
		im := build(3, bits).put(72, be64(incompatCompression)).put(104, []byte{1})
		copy(im.b[4*cs:], make([]byte, cs))
		im.put(4*cs, c.data)
		sectors := (len(c.data)+511)/512 - 1
		im.l2(0, entryCompressed|uint64(max(0, sectors))<<54|4*cs)
		d, err := New().Open(memory(im.b), nil)
		must(t, err)
		p := make([]byte, cs)
		before := heap()
		_, err = d.ReadAt(p, 0)
		if grown := heap() - before; grown > 8*mib {
			t.Errorf("%s: %d MiB were held", c.name, grown/mib)
		}
		if (err == nil) != c.ok || err != nil && !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%s: %v, want it read: %v", c.name, err, c.ok)
		}
		if c.ok && !bytes.Equal(p, bytes.Repeat([]byte{7}, cs)) {
			t.Errorf("%s: other bytes", c.name)
		}
		path := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(path, im.b, 0o600))
		testneed.Tools(t, "qemu-img")
		if _, ok := convert(t, path); ok != c.ok {
			t.Errorf("%s: qemu-img reads it: %v, want %v", c.name, ok, c.ok)
		}
	}
}

func TestSnapshots_AreBounded(t *testing.T) {
	const cs = 1 << 16
	entry := func(l1 uint64, entries uint32, id, name uint16, extra uint32, size uint64) []byte {
		b := append(be64(l1), be32(entries)...)
		b = binary.BigEndian.AppendUint16(b, id)
		b = binary.BigEndian.AppendUint16(b, name)
		b = append(b, make([]byte, 20)...)
		b = append(b, be32(extra)...)
		b = append(b, be64(0)...)
		return append(append(b, be64(size)...), "1n"...)
	}
	for _, c := range []struct {
		name  string
		count uint32
		at    uint64
		entry []byte
		ok    bool
	}{
		{"sound", 1, 5 * cs, entry(2*cs, 1, 1, 1, 16, 4*cs), true},
		{"smaller table", 1, 5 * cs, entry(2*cs, 0, 1, 1, 16, 4*cs), true},
		{"misaligned", 1, 5 * cs, entry(2*cs+8, 1, 1, 1, 16, 4*cs), false},
		{"table of 32 GiB", 1, 5 * cs, entry(2*cs, math.MaxUint32, 1, 1, 16, 4*cs), false},
		{"table beyond all", 1, 5 * cs, entry(math.MaxUint64&^(cs-1), 1, 1, 1, 16, 4*cs), false},
		{"2^64 bytes", 1, 5 * cs, entry(2*cs, 1, 1, 1, 16, math.MaxUint64), false},
		{"8 EiB", 1, 5 * cs, entry(2*cs, 1, 1, 1, 16, math.MaxInt64), false},
		{"extra data of 4 GiB", 1, 5 * cs, entry(2*cs, 1, 1, 1, math.MaxUint32, 4*cs), false},
		{"names past the end", 1, 7 * cs, entry(2*cs, 1, math.MaxUint16, math.MaxUint16, 16, 4*cs), false},
		{"past the end", 1, 8 * cs, nil, false},
		{"far past the end", 1, math.MaxInt64 &^ (cs - 1), nil, false},
		{"more than there are", maxSnapshots, 5 * cs, entry(2*cs, 1, 1, 1, 16, 4*cs), false},
	} {
		im := build(3, 16).put(60, be32(c.count), be64(c.at))
		if c.entry != nil {
			im.put(int(c.at), c.entry)
		}
		list, err := New().Snapshots(memory(im.b))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, backend.ErrCorrupt) || c.ok && len(list) != int(c.count) {
			t.Errorf("%s: %d, %v, want it read: %v", c.name, len(list), err, c.ok)
		}
		if err != nil && c.count == 1 && !strings.Contains(err.Error(), "entry 0 of its snapshot table") {
			t.Errorf("%s: which entry it is is not said: %v", c.name, err)
		}
		d, err := New().OpenSnapshot(memory(im.b), nil, "1")
		if c.ok {
			p := make([]byte, d.Size())
			if _, err := d.ReadAt(p, 0); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if err == nil && c.count == 1 {
			t.Errorf("%s: it opens", c.name)
		}
	}
}

func TestRead_DecompressesOnceForManyReaders(t *testing.T) {
	testneed.Tools(t, "qemu-img")
	raw := rawFile(t, 4*mib)
	path := filepath.Join(t.TempDir(), "image")
	command(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", raw, path)
	want, err := os.ReadFile(raw)
	must(t, err)
	file := openFile(t, path)
	d, err := New().Open(file, nil)
	must(t, err)
	defer d.Close()
	p := make([]byte, 1)
	_, err = d.ReadAt(p, 0) // the tables
	must(t, err)
	before := file.reads.Load()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			p := make([]byte, 64*kib)
			off := int64(2*mib + i*100*kib)
			if _, err := d.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+64*kib]) {
				t.Errorf("at %d: other bytes, or %v", off, err)
			}
		})
	}
	wg.Wait()
	if n := file.reads.Load() - before; n != 1 {
		t.Errorf("one cluster was read %d times", n)
	}
}

func TestRead_OfMappedClustersAllocatesNothing(t *testing.T) {
	path := create(t, "cluster_size=4k", "8M") // four L2 tables
	qemuIO(t, path, "write -P 1 0 7M")
	d := openChain(t, path)
	p := make([]byte, 3*mib)
	read := func() {
		for off := int64(0); off < 8*mib; off += 700 * kib {
			d.ReadAt(p[:64*kib], off)
			d.ReadAt(p, off)
		}
	}
	read()
	if n := testing.AllocsPerRun(10, read); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRead_IsSafeForManyReaders(t *testing.T) {
	base := create(t, "cluster_size=4k", "2M")
	doWork(t, base, workload(1, 2*mib, 4*kib, 40, true))
	path := create(t, "cluster_size=512,compression_type=zstd", "2M", "-b", base, "-F", "qcow2")
	doWork(t, path, workload(2, 2*mib, 4*kib, 20, true))
	want, ok := convert(t, path)
	if !ok {
		t.Fatal("qemu-img does not read it")
	}
	d := openChain(t, path)
	var wg sync.WaitGroup
	for i := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(i, i))
			p := make([]byte, 32*kib)
			for range 300 {
				off := r.Int64N(d.Size())
				n := min(r.Int64N(int64(len(p)))+1, d.Size()-off)
				if _, err := d.ReadAt(p[:n], off); err != nil || !bytes.Equal(p[:n], want[off:off+n]) {
					t.Errorf("%d bytes at %d: other bytes, or %v", n, off, err)
					return
				}
				if i%2 == 0 {
					s := d.(backend.Sparse)
					s.NextData(off)
					s.NextHole(off)
					s.Allocated()
					d.(backend.Locator).Locate(off, n)
				}
			}
		})
	}
	wg.Wait()
}

func TestRead_OfTheFileFailsAsTheFileDoes(t *testing.T) {
	im := build(3, 16)
	failing := &failingFile{Device: memory(im.b)}
	d, err := New().Open(failing, nil)
	must(t, err)
	p := make([]byte, 100)
	failing.err = errors.New("the disk is gone")
	for range 2 { // the failure is not kept
		if _, err := d.ReadAt(p, 0); !errors.Is(err, failing.err) {
			t.Errorf("%v, want %v", err, failing.err)
		}
	}
	failing.err = nil
	if _, err := d.ReadAt(p, 0); err != nil || p[0] != 1 {
		t.Errorf("%d, %v", p[0], err)
	}
	failing.cut = 4<<16 + 50
	if n, err := d.ReadAt(p, 10); !errors.Is(err, backend.ErrIO) {
		t.Errorf("of a file that became shorter: %d, %v", n, err)
	}
}

type failingFile struct {
	backend.Device
	err error
	cut int64 // if not 0, how long it is now
}

func (f *failingFile) ReadAt(p []byte, off int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if f.cut != 0 {
		return memory(f.Device.(memory)[:f.cut]).ReadAt(p, off)
	}
	return f.Device.ReadAt(p, off)
}

func TestClose_ClosesBothFilesOnce(t *testing.T) {
	im := build(3, 16).put(8, be64(300), be32(4)).put(300, []byte("base"))
	file, backing := &closing{Device: memory(im.b)}, &closing{Device: memory(im.b)}
	d, err := New().Open(file, backing)
	must(t, err)
	must(t, d.Close())
	if file.n != 1 || backing.n != 1 {
		t.Errorf("closed %d and %d times", file.n, backing.n)
	}
	if err := d.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read then: %v", err)
	}
}

type closing struct {
	backend.Device
	n int
}

func (c *closing) Close() error { c.n++; return nil }

func TestLocate_NeverTakesTheImageForARawFile(t *testing.T) {
	for _, options := range []string{"preallocation=full", "preallocation=full,cluster_size=2M"} {
		path := create(t, options, "4M")
		d := openChain(t, path)
		loc, ok := d.(backend.Locator).Locate(0, d.Size())
		if !ok || loc.Offset == 0 || loc.Length < mib {
			t.Errorf("%s: %+v, %v", options, loc, ok)
		}
	}
	base := filepath.Join(t.TempDir(), "base")
	must(t, os.WriteFile(base, make([]byte, 4*mib), 0o600))
	path := create(t, "", "4M", "-b", base, "-F", "raw")
	d := openChain(t, path)
	loc, ok := d.(backend.Locator).Locate(0, d.Size())
	if !ok || loc.Offset != 0 || loc.Length <= 0 || loc.Length >= d.Size() {
		t.Errorf("an empty overlay: %+v, %v", loc, ok)
	}
}

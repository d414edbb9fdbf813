package lvm2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"domfs/backend"
)

// cowStore writes a COW device as the kernel does.
type cowStore struct {
	b           []byte
	chunk       int64
	next        int64 // free chunk
	count       int64 // of exceptions
	byOrigin    map[int64]int64
	orderOfOld  []int64
	perAreaSize int64
}

func newCOWStore(chunk int64, sizeBytes int64) *cowStore {
	c := &cowStore{chunk: chunk, next: 2, byOrigin: map[int64]int64{}, perAreaSize: chunk / exceptionBytes}
	c.b = bytes.Repeat([]byte{0xA5}, int(sizeBytes)) // what was there before
	c.header(1, 1)
	clear(c.b[chunk : 2*chunk])
	return c
}

func (c *cowStore) header(valid, version uint32) {
	clear(c.b[:c.chunk])
	copy(c.b, "SnAp")
	binary.LittleEndian.PutUint32(c.b[4:], valid)
	binary.LittleEndian.PutUint32(c.b[8:], version)
	binary.LittleEndian.PutUint32(c.b[12:], uint32(c.chunk/512))
}

// except gives a chunk of the origin a place, and fills that.
func (c *cowStore) except(t testing.TB, old int64, fill []byte) {
	t.Helper()
	if (c.next+1)*c.chunk > int64(len(c.b)) {
		t.Fatal("the COW device of the test is full")
	}
	copy(c.b[c.next*c.chunk:], fill)
	c.put(c.count, old, c.next)
	c.byOrigin[old] = c.next
	c.orderOfOld = append(c.orderOfOld, old)
	c.count++
	if c.count%c.perAreaSize == 0 {
		if next := c.area(c.count / c.perAreaSize); next+c.chunk <= int64(len(c.b)) {
			clear(c.b[next : next+c.chunk])
		}
	}
	c.next++
	if c.next%(c.perAreaSize+1) == 1 {
		c.next++
	}
}

func (c *cowStore) area(i int64) int64 { return (1 + (c.perAreaSize+1)*i) * c.chunk }

func (c *cowStore) put(i, old, chunk int64) {
	at := c.area(i/c.perAreaSize) + i%c.perAreaSize*exceptionBytes
	binary.LittleEndian.PutUint64(c.b[at:], uint64(old))
	binary.LittleEndian.PutUint64(c.b[at+8:], uint64(chunk))
}

func bytesOf(t testing.TB, d backend.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); n != len(b) || err != nil {
		t.Fatalf("%d bytes were read of %d: %v", n, len(b), err)
	}
	return b
}

// writtenSnapshot is a snapshot of which chunks were copied at random and in order.
func writtenSnapshot(t testing.TB, chunk, size int64, exceptions int, r *rand.Rand) (origin patternDevice, c *cowStore, want []byte) {
	t.Helper()
	origin = patternDevice{size: size, seed: 1}
	want = bytesOf(t, origin)
	perArea := chunk / exceptionBytes
	need := int64(exceptions) + int64(exceptions)/perArea + 4
	c = newCOWStore(chunk, need*chunk)
	chunks := (size + chunk - 1) / chunk
	for len(c.byOrigin) < exceptions {
		at := r.Int64N(chunks)
		for range 1 + r.IntN(5) {
			if _, ok := c.byOrigin[at]; ok || at >= chunks || len(c.byOrigin) == exceptions {
				break
			}
			fill := make([]byte, chunk)
			patternDevice{size: gibi, seed: 99 + uint64(at)}.ReadAt(fill, 0)
			copy(want[at*chunk:], fill)
			c.except(t, at, fill)
			at++
		}
	}
	return origin, c, want
}

func TestCOW_ReadsExceptionsAndOrigin(t *testing.T) {
	for _, c := range []struct {
		chunk, size int64
		exceptions  int
	}{
		{4 * kibi, 3*mebi - 512, 700}, {4 * kibi, 2 * mebi, 256}, {4 * kibi, 2 * mebi, 255}, {4 * kibi, 2 * mebi, 257}, {4 * kibi, 3 * mebi, 512},
		{4 * kibi, 2 * mebi, 512}, {8 * kibi, 6 * mebi, 600}, {64 * kibi, 4 * mebi, 40}, {512 * kibi, 8*mebi + 4096, 9}, {512, mebi, 900}, {4 * kibi, mebi, 0},
	} {
		t.Run(fmt.Sprintf("%d-%d-%d", c.chunk, c.size, c.exceptions), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(c.chunk), uint64(c.exceptions)))
			origin, store, want := writtenSnapshot(t, c.chunk, c.size, c.exceptions, r)
			d, err := openCOW(origin, &countedBytes{b: store.b}, c.chunk)
			noError(t, err)
			if !bytes.Equal(bytesOf(t, d), want) {
				t.Error("the whole differs")
			}
			for range 100 {
				off := r.Int64N(c.size)
				p := make([]byte, min(1+r.Int64N(3*c.chunk), c.size-off))
				if n, err := d.ReadAt(p, off); n != len(p) || err != nil {
					t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
				if !bytes.Equal(p, want[off:off+int64(len(p))]) {
					t.Fatalf("%d bytes at %d differ", len(p), off)
				}
			}
			if w := d.(backend.Warner).Warnings(); len(w) > 0 {
				t.Errorf("warnings: %q", w)
			}
		})
	}
}

func TestCOW_RefusesWhatItCannotRead(t *testing.T) {
	origin := patternDevice{size: mebi, seed: 1}
	for _, c := range []struct {
		name   string
		change func(*cowStore)
		want   error
		says   string
	}{
		{"overflowed", func(c *cowStore) { c.header(0, 1) }, backend.ErrIO, "the snapshot is invalid: it has overflowed"},
		{"version", func(c *cowStore) { c.header(1, 2) }, backend.ErrUnsupported, "version 2"},
		{"magic", func(c *cowStore) { c.b[0] = 'x' }, backend.ErrCorrupt, "begins with"},
		{"chunk of 12 KiB", func(c *cowStore) { c.b[12] = 24 }, backend.ErrCorrupt, "12288"},
		{"chunk of nothing", func(c *cowStore) { c.b[12] = 0 }, backend.ErrCorrupt, "chunks of 0"},
		{"chunk of 1 TiB", func(c *cowStore) { c.b[12], c.b[15] = 0, 0x80 }, backend.ErrCorrupt, "1099511627776"},
		{"short", func(c *cowStore) { c.b = c.b[:8] }, backend.ErrIO, "header"},
		{"chunk behind the COW device", func(c *cowStore) { c.put(c.count-1, 5, 1<<40) }, backend.ErrCorrupt, "chunk 5"},
		{"two exceptions for a chunk", func(c *cowStore) { c.put(1, 3, 7) }, backend.ErrCorrupt, "two exceptions for chunk 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := newCOWStore(4*kibi, mebi)
			for _, old := range []int64{3, 9, 5} {
				store.except(t, old, []byte("x"))
			}
			c.change(store)
			d, err := openCOW(origin, &countedBytes{b: store.b}, 4*kibi)
			if err == nil {
				_, err = d.ReadAt(make([]byte, mebi), 0)
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v that says %q", err, c.want, c.says)
			}
		})
	}
}

func TestCOW_DamagedExceptionLeavesTheOthers(t *testing.T) {
	store := newCOWStore(4*kibi, mebi)
	for _, old := range []int64{3, 9, 5} {
		store.except(t, old, bytes.Repeat([]byte{7}, 4096))
	}
	store.put(2, 5, 1<<62)
	origin := patternDevice{size: mebi, seed: 1}
	d, err := openCOW(origin, &countedBytes{b: store.b}, 4*kibi)
	noError(t, err)
	p := make([]byte, 4*kibi)
	n, err := d.ReadAt(make([]byte, 3*4*kibi), 3*4*kibi)
	if n != 2*4*kibi || !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("read into the damaged chunk: %d, %v", n, err)
	}
	if _, err := d.ReadAt(p, 9*4*kibi); err != nil || p[0] != 7 {
		t.Errorf("another exception: %v, %x", err, p[0])
	}
	if _, err := d.ReadAt(p, 6*4*kibi); err != nil {
		t.Errorf("behind it: %v", err)
	}
}

func TestCOW_FreshOneIsTheOrigin(t *testing.T) {
	origin := patternDevice{size: mebi + 512, seed: 1}
	d, err := openCOW(origin, &countedBytes{b: make([]byte, 64*kibi)}, 4*kibi)
	noError(t, err)
	if !bytes.Equal(bytesOf(t, d), bytesOf(t, origin)) {
		t.Error("it differs")
	}
}

func TestCOW_BelievesTheHeadersChunkSize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	origin, store, want := writtenSnapshot(t, 16*kibi, mebi, 20, r)
	d, err := openCOW(origin, &countedBytes{b: store.b}, 4*kibi)
	noError(t, err)
	if !bytes.Equal(bytesOf(t, d), want) {
		t.Error("it differs")
	}
	if w := d.(backend.Warner).Warnings(); len(w) != 1 || !strings.Contains(w[0], "16384") {
		t.Errorf("warnings: %q", w)
	}
}

func TestCOW_ReadsAnOriginOfAnotherSize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	origin, store, want := writtenSnapshot(t, 4*kibi, mebi, 100, r)
	cow := &countedBytes{b: store.b}

	long := patternDevice{size: 2 * mebi, seed: 1}
	d, err := openCOWSized(long, cow, 4*kibi, mebi)
	noError(t, err)
	if !bytes.Equal(bytesOf(t, d), want) {
		t.Error("with a longer origin it differs")
	}

	half := patternDevice{size: mebi / 2, seed: 1}
	d, err = openCOWSized(half, cow, 4*kibi, mebi)
	noError(t, err)
	p := make([]byte, 4*kibi)
	for at := int64(0); at < mebi; at += 4 * kibi {
		_, err := d.ReadAt(p, at)
		if _, ok := store.byOrigin[at/(4*kibi)]; !ok && at >= mebi/2 {
			if !errors.Is(err, backend.ErrIO) {
				t.Fatalf("byte %d, which neither has: %v", at, err)
			}
		} else if err != nil || !bytes.Equal(p, want[at:at+4*kibi]) {
			t.Fatalf("with a shorter origin chunk %d differs: %v", at/(4*kibi), err)
		}
	}

	// Shorter than the exceptions say: those behind its end are of no use.
	d, err = openCOW(patternDevice{size: mebi/2 - 512, seed: 1}, cow, 4*kibi)
	noError(t, err)
	if !bytes.Equal(bytesOf(t, d), want[:mebi/2-512]) {
		t.Error("of a shorter origin's size it differs")
	}
	_ = origin
}

// madeCOW is a COW device of which each area is made when it is read.
type madeCOW struct {
	chunk, size int64
	exception   func(i int64) (old, cow uint64)
}

func (m madeCOW) Size() int64  { return m.size }
func (m madeCOW) Close() error { return nil }
func (m madeCOW) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > m.size {
		return 0, io.EOF
	}
	perArea := m.chunk / exceptionBytes
	le := binary.LittleEndian
	switch n := off / m.chunk; {
	case n == 0:
		c := cowStore{b: make([]byte, m.chunk), chunk: m.chunk}
		c.header(1, 1)
		copy(p, c.b[off:])
	case (n-1)%(perArea+1) == 0:
		for i := int64(0); i < int64(len(p)); i += exceptionBytes {
			old, cow := m.exception((n-1)/(perArea+1)*perArea + (off%m.chunk+i)/exceptionBytes)
			le.PutUint64(p[i:], old)
			le.PutUint64(p[i+8:], cow)
		}
	default:
		for i := range p {
			p[i] = byte(n)
		}
	}
	return len(p), nil
}

func TestCOW_BoundsTheMemoryOfExceptions(t *testing.T) {
	const chunk = 4 * kibi
	origin := patternDevice{size: 1 << 46, seed: 1}
	cow := madeCOW{chunk: chunk, size: 1 << 40}

	// Each exception a run of its own, one more than there may be.
	cow.exception = func(i int64) (uint64, uint64) {
		if i > maxRuns {
			return 0, 0
		}
		return uint64(2 * i), uint64(2 + i)
	}
	d, err := openCOW(origin, cow, chunk)
	noError(t, err)
	_, err = d.ReadAt(make([]byte, 1), 0)
	if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprint(maxRuns)) {
		t.Errorf("with too many: %v", err)
	}

	// Many more, all in one run but where the areas are.
	perArea := int64(chunk / exceptionBytes)
	cow.exception = func(i int64) (uint64, uint64) {
		if i >= 5*maxRuns/4 {
			return 0, 0
		}
		return uint64(i), uint64(2 + i + i/perArea)
	}
	d, err = openCOW(origin, cow, chunk)
	noError(t, err)
	p := make([]byte, 1)
	for _, i := range []int64{0, 255, 256, 257, maxRuns, 5*maxRuns/4 - 1} {
		if _, err := d.ReadAt(p, i*chunk); err != nil || p[0] != byte(2+i+i/perArea) {
			t.Errorf("exception %d: %x, %v", i, p[0], err)
		}
	}
	runs, err := d.(*snapshot).exceptions.runs()
	noError(t, err)
	if int64(len(runs)) != 5*maxRuns/4/perArea {
		t.Errorf("%d runs, want %d", len(runs), 5*maxRuns/4/perArea)
	}
}

// holeyDevice has data only in every other MiB.
type holeyDevice struct{ patternDevice }

func (h holeyDevice) NextData(off int64) (int64, error) {
	if off < 0 || off >= h.size {
		return 0, backend.ErrRange
	}
	if off/mebi%2 == 1 {
		off = (off/mebi + 1) * mebi
	}
	if off >= h.size {
		return 0, backend.ErrRange
	}
	return off, nil
}

func (h holeyDevice) NextHole(off int64) (int64, error) {
	if off < 0 || off >= h.size {
		return 0, backend.ErrRange
	}
	if off/mebi%2 == 0 {
		off = (off/mebi + 1) * mebi
	}
	return min(off, h.size), nil
}

func (h holeyDevice) Allocated() int64 { return h.size / 2 }

// checkSectors compares data and holes, byte by byte of a map by sectors, with want.
func checkSectors(t testing.TB, d backend.Device, isData func(sector int64) bool) {
	t.Helper()
	s := d.(backend.Sparse)
	for off := int64(0); off < d.Size(); {
		data, err := s.NextData(off)
		if errors.Is(err, backend.ErrRange) {
			data = d.Size()
		} else {
			noError(t, err)
		}
		for i := off / 512; i*512 < data; i++ {
			if isData(i) {
				t.Fatalf("sector %d is data, and in the hole from %d to %d", i, off, data)
			}
		}
		if data == d.Size() {
			return
		}
		hole, err := s.NextHole(data)
		noError(t, err)
		for i := data / 512; i*512 < hole; i++ {
			if !isData(i) {
				t.Fatalf("sector %d is a hole, and in the data from %d to %d", i, data, hole)
			}
		}
		if hole <= data {
			t.Fatalf("data and a hole at %d", data)
		}
		off = hole
	}
}

func TestCOW_KnowsItsHoles(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, exceptions := range []int{0, 10, 400, 1500} {
		_, store, _ := writtenSnapshot(t, 4*kibi, 8*mebi, exceptions, r)
		for _, originSize := range []int64{8 * mebi, 5*mebi + 512, 4*mebi - 512, 12 * mebi} {
			d, err := openCOWSized(holeyDevice{patternDevice{originSize, 1}}, &countedBytes{b: store.b}, 4*kibi, 8*mebi)
			noError(t, err)
			checkSectors(t, d, func(sector int64) bool {
				_, copied := store.byOrigin[sector/8]
				return copied || sector/2048%2 == 0 || sector*512 >= originSize
			})
		}
	}
}

func TestCOW_LocatesWhatItReads(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	origin, store, _ := writtenSnapshot(t, 4*kibi, 2*mebi, 100, r)
	cow := patternDevice{size: int64(len(store.b)), seed: 2}
	d, err := openCOW(origin, struct {
		*countedBytes
		backend.Locator
	}{&countedBytes{b: store.b}, cow}, 4*kibi)
	noError(t, err)
	for off := int64(0); off < 2*mebi; {
		l, ok := d.(backend.Locator).Locate(off, mebi)
		if !ok || l.Length <= 0 {
			t.Fatalf("byte %d lies nowhere", off)
		}
		for at := off; at < off+l.Length; at += 4 * kibi {
			want := backend.Location{FD: 1, Offset: at}
			if place, ok := store.byOrigin[at/(4*kibi)]; ok {
				want = backend.Location{FD: 2, Offset: place * 4 * kibi}
			}
			if l.FD != want.FD || l.Offset+at-off != want.Offset {
				t.Fatalf("byte %d lies at %d of %d, want %d of %d", at, l.Offset+at-off, l.FD, want.Offset, want.FD)
			}
		}
		off += l.Length
	}
}

// restrictExceptions gives all snapshots together so many bytes, and drops what they hold.
func restrictExceptions(t testing.TB, bytes int) {
	b := &exceptionBudget
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.order.Len() > 0 {
		b.order.Back().Value.(*heldExceptions).dropLocked()
	}
	if b.bytes != 0 {
		t.Errorf("%d bytes are held of nothing", b.bytes)
	}
	b.max = bytes
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.max = allExceptionBytes
	})
}

func TestCOW_ForgetsExceptionsThatAreNotUsed(t *testing.T) {
	origin := patternDevice{size: 1 << 46, seed: 1}
	const each = 3 << 12 // runs
	restrictExceptions(t, allExceptionBytes>>8)
	var all []*snapshot
	for range 5 {
		d, err := openCOW(origin, madeCOW{chunk: 4 * kibi, size: 1 << 40, exception: func(i int64) (uint64, uint64) {
			if i >= each {
				return 0, 0
			}
			return uint64(2 * i), uint64(2 + i)
		}}, 4*kibi)
		noError(t, err)
		all = append(all, d.(*snapshot))
		_, err = d.ReadAt(make([]byte, 1), 0)
		noError(t, err)
	}
	exceptionBudget.mu.Lock()
	bytes := exceptionBudget.bytes
	exceptionBudget.mu.Unlock()
	if bytes > allExceptionBytes>>8 {
		t.Errorf("%d bytes are held, more than %d", bytes, allExceptionBytes>>8)
	}
	if _, ok := all[0].exceptions.held.lookup(); ok {
		t.Error("those that were used longest ago are held")
	}
	p := make([]byte, 1)
	if _, err := all[0].ReadAt(p, 2*4*kibi); err != nil || p[0] != 3 {
		t.Errorf("read again: %x, %v", p[0], err)
	}
}

func TestCOW_IsReadByManyAtOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	origin, store, want := writtenSnapshot(t, 4*kibi, 4*mebi, 600, r)
	d, err := openCOW(origin, plainBytes(store.b), 4*kibi)
	noError(t, err)
	var w sync.WaitGroup
	for i := range 4 {
		w.Go(func() {
			r := rand.New(rand.NewPCG(6, uint64(i)))
			for range 200 {
				off := r.Int64N(4*mebi - 40*kibi)
				p := make([]byte, r.IntN(40*kibi))
				if _, err := d.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
					t.Errorf("%d bytes at %d: %v", len(p), off, err)
				}
				d.(backend.Sparse).NextHole(off)
			}
		})
	}
	w.Wait()
}

// plainBytes is bytes in memory that may be read by many at once.
type plainBytes []byte

func (f plainBytes) Size() int64  { return int64(len(f)) }
func (f plainBytes) Close() error { return nil }
func (f plainBytes) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f)) {
		return 0, io.EOF
	}
	n := copy(p, f[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

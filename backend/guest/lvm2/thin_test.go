package lvm2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

const (
	kibi = 1 << 10
	mebi = 1 << 20
	gibi = 1 << 30
)

// patternDevice is as large as is wanted, and each 8 bytes of it say where they are and whose they are.
type patternDevice struct {
	size int64
	seed uint64
}

func (d patternDevice) Size() int64  { return d.size }
func (d patternDevice) Close() error { return nil }

func (d patternDevice) word(i int64) uint64 { return (uint64(i) ^ d.seed) * 0x9e3779b97f4a7c15 }

func (d patternDevice) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(0, d.size-off)))
	for i := 0; i < n; {
		at := off + int64(i)
		if at%8 == 0 && n-i >= 8 {
			binary.LittleEndian.PutUint64(p[i:], d.word(at/8))
			i += 8
			continue
		}
		p[i] = byte(d.word(at/8) >> (8 * (at % 8)))
		i++
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d patternDevice) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= d.size {
		return backend.Location{}, false
	}
	return backend.Location{FD: uintptr(d.seed), Offset: off, Length: min(length, d.size-off)}, true
}

// countedBytes is bytes in memory; it counts what is read of it.
type countedBytes struct {
	b     []byte
	reads int
}

func (m *countedBytes) Size() int64  { return int64(len(m.b)) }
func (m *countedBytes) Close() error { return nil }
func (m *countedBytes) ReadAt(p []byte, off int64) (int, error) {
	m.reads++
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// openedFile is a file. It may be read by many at once.
type openedFile struct {
	*os.File
	size int64
}

func (f openedFile) Size() int64 { return f.size }

func openFile(t testing.TB, path string) openedFile {
	t.Helper()
	f, err := os.Open(path)
	noError(t, err)
	t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	noError(t, err)
	return openedFile{f, size}
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func runTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	testneed.Tools(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// poolMap is what a pool has: of each device, the chunk of data of each mapped chunk.
type poolMap struct {
	chunk      int64
	dataChunks uint64
	devices    map[uint64]map[uint64]uint64
}

// write gives the pool as the XML of thin_restore.
func (m poolMap) write(t testing.TB, path string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "<superblock uuid=\"\" time=\"1\" transaction=\"1\" version=\"2\" data_block_size=\"%d\" nr_data_blocks=\"%d\">\n", m.chunk/512, m.dataChunks)
	for _, id := range sortedKeys(m.devices) {
		mapped := m.devices[id]
		fmt.Fprintf(&b, "<device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">\n", id, len(mapped))
		keys := sortedKeys(mapped)
		for i := 0; i < len(keys); {
			n := 1
			for i+n < len(keys) && keys[i+n] == keys[i]+uint64(n) && mapped[keys[i+n]] == mapped[keys[i]]+uint64(n) {
				n++
			}
			fmt.Fprintf(&b, "<range_mapping origin_begin=\"%d\" data_begin=\"%d\" length=\"%d\" time=\"1\"/>\n", keys[i], mapped[keys[i]], n)
			i += n
		}
		b.WriteString("</device>\n")
	}
	b.WriteString("</superblock>\n")
	noError(t, os.WriteFile(path, []byte(b.String()), 0o600))
}

func sortedKeys[V any](m map[uint64]V) []uint64 {
	keys := make([]uint64, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// restore makes a pool's metadata of it, of so many bytes.
func (m poolMap) restore(t testing.TB, bytes int64) string {
	t.Helper()
	testneed.Tools(t, "thin_restore", "thin_check")
	dir := t.TempDir()
	xml, meta := filepath.Join(dir, "pool.xml"), filepath.Join(dir, "meta")
	m.write(t, xml)
	noError(t, os.WriteFile(meta, nil, 0o600))
	noError(t, os.Truncate(meta, bytes))
	runTool(t, "thin_restore", "-q", "-i", xml, "-o", meta)
	runTool(t, "thin_check", "-q", meta)
	noError(t, os.Remove(xml))
	return meta
}

// randomPool has devices of all kinds: linear, backwards, at random with holes, a snapshot that shares most, an empty one.
func randomPool(chunk int64, r *rand.Rand, chunks uint64) poolMap {
	m := poolMap{chunk: chunk, dataChunks: 4 * chunks, devices: map[uint64]map[uint64]uint64{}}
	linear, backwards, random, snapshot := map[uint64]uint64{}, map[uint64]uint64{}, map[uint64]uint64{}, map[uint64]uint64{}
	perm := r.Perm(int(2 * chunks))
	for i := range chunks {
		linear[i] = i
		backwards[i] = 2*chunks - 1 - i
		if r.IntN(3) > 0 {
			random[i] = 2*chunks + uint64(perm[i])
			snapshot[i] = random[i]
			if r.IntN(10) == 0 {
				snapshot[i] = 2*chunks + uint64(perm[chunks+i])
			}
		}
	}
	// Runs with gaps, some at chunks far behind.
	runs := map[uint64]uint64{}
	for at := uint64(0); at < chunks; {
		at += r.Uint64N(600)
		data, n := r.Uint64N(3*chunks), 1+r.Uint64N(700)
		for i := range n {
			runs[at+i] = data + i
		}
		at += n
	}
	runs[1<<30] = 7
	m.devices[1] = linear
	m.devices[2] = backwards
	m.devices[3] = random
	m.devices[4] = snapshot
	m.devices[5] = map[uint64]uint64{}
	m.devices[maxThinDevice] = runs
	for id := range uint64(600) { // so that the trees of devices have several levels
		m.devices[1000+7*id] = map[uint64]uint64{id: id}
	}
	return m
}

// checkDevice compares a device chunk by chunk with what it should have. of each chunk, the first and the last
// bytes are read.
func checkDevice(t testing.TB, d backend.Device, m poolMap, id uint64, data, external backend.Device) {
	t.Helper()
	got, want := make([]byte, 24), make([]byte, 24)
	for c := uint64(0); int64(c)*m.chunk < d.Size(); c++ {
		for _, in := range []int64{0, m.chunk - 24} {
			at := int64(c)*m.chunk + in
			n := min(24, d.Size()-at)
			if n <= 0 {
				continue
			}
			if _, err := d.ReadAt(got[:n], at); err != nil {
				t.Fatalf("device %d chunk %d: %v", id, c, err)
			}
			clear(want)
			if block, ok := m.devices[id][c]; ok {
				data.ReadAt(want[:n], int64(block)*m.chunk+in)
			} else if external != nil {
				external.ReadAt(want[:n], at)
			}
			if string(got[:n]) != string(want[:n]) {
				t.Fatalf("device %d chunk %d byte %d: %x, want %x", id, c, in, got[:n], want[:n])
			}
		}
	}
}

// checkHoles compares what a device says of its data and holes with the mappings.
func checkHoles(t testing.TB, d backend.Device, m poolMap, id uint64) {
	t.Helper()
	mapped, s := m.devices[id], d.(backend.Sparse)
	var sum int64
	off := int64(0)
	for {
		data, err := s.NextData(off)
		if errors.Is(err, backend.ErrRange) {
			data = d.Size()
		} else if err != nil {
			t.Fatal(err)
		}
		for c := off / m.chunk; c*m.chunk < data; c++ {
			if _, ok := mapped[uint64(c)]; ok {
				t.Fatalf("device %d: chunk %d is mapped, and in the hole from %d to %d", id, c, off, data)
			}
		}
		if data == d.Size() {
			break
		}
		hole, err := s.NextHole(data)
		noError(t, err)
		if hole <= data {
			t.Fatalf("device %d: data at %d, and a hole at %d", id, data, hole)
		}
		for c := data / m.chunk; c*m.chunk < hole; c++ {
			if _, ok := mapped[uint64(c)]; !ok {
				t.Fatalf("device %d: chunk %d is not mapped, and in the data from %d to %d", id, c, data, hole)
			}
		}
		sum += hole - data
		if off = hole; off == d.Size() {
			break
		}
	}
	var inside int64
	for c := range mapped {
		inside += max(0, min(m.chunk, d.Size()-int64(c)*m.chunk))
	}
	if sum != inside {
		t.Errorf("device %d: %d bytes of data, want %d", id, sum, inside)
	}
	if got := s.Allocated(); got != min(d.Size(), int64(len(mapped))*m.chunk) {
		t.Errorf("device %d: %d bytes are allocated, and %d chunks of %d mapped", id, got, len(mapped), m.chunk)
	}
}

func TestThin_ReadsWhatThinRestoreWrote(t *testing.T) {
	for _, chunk := range []int64{64 * kibi, 192 * kibi, mebi} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(chunk), 1))
			m := randomPool(chunk, r, 5000)
			meta := openFile(t, m.restore(t, 8*mebi))
			data := patternDevice{size: int64(m.dataChunks) * chunk, seed: 3}
			for _, id := range []uint64{1, 2, 3, 4, 5, maxThinDevice, 1000, 1007, 1000 + 599*7} {
				size := 5000*chunk - r.Int64N(chunk/512)*512
				d, err := openThin(data, meta, id, chunk, size, nil)
				noError(t, err)
				checkDevice(t, d, m, id, data, nil)
				checkHoles(t, d, m, id)
			}
			_, err := openThin(data, meta, 6, chunk, gibi, nil)
			if !errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), "no device 6") {
				t.Errorf("device 6, which is not there: %v", err)
			}
		})
	}
}

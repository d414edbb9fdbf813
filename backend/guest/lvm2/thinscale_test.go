package lvm2

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// largePool has one device, number 5, of so many chunks: one behind the other, or each somewhere else. place says where.
func largePool(t testing.TB, chunks uint64, scattered bool) (meta string, place func(uint64) uint64, dataChunks uint64) {
	t.Helper()
	testneed.Tools(t, "thin_restore")
	place = func(c uint64) uint64 { return c }
	if scattered {
		// A multiplier without a common factor permutes them, so that none lies behind the one before it.
		place = func(c uint64) uint64 { return c * 2654435761 % chunks }
	}
	dir := t.TempDir()
	xml, meta := filepath.Join(dir, "xml"), filepath.Join(dir, "meta")
	f, err := os.Create(xml)
	noError(t, err)
	b := []byte(fmt.Sprintf("<superblock uuid=\"\" time=\"1\" transaction=\"1\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"%d\">\n<device dev_id=\"5\" mapped_blocks=\"%d\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">\n", chunks, chunks))
	if scattered {
		for c := range chunks {
			b = fmt.Appendf(b, "<single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"0\"/>\n", c, place(c))
			if len(b) > mebi {
				_, err := f.Write(b)
				noError(t, err)
				b = b[:0]
			}
		}
	} else {
		b = fmt.Appendf(b, "<range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"%d\" time=\"0\"/>\n", chunks)
	}
	_, err = f.Write(append(b, "</device>\n</superblock>\n"...))
	noError(t, err)
	noError(t, f.Close())
	noError(t, os.WriteFile(meta, nil, 0o600))
	noError(t, os.Truncate(meta, int64(chunks)*48+4*mebi))
	runTool(t, "thin_restore", "-q", "-i", xml, "-o", meta)
	noError(t, os.Remove(xml))
	return meta, place, chunks
}

// countedFile is a file that counts its reads.
type countedFile struct {
	openedFile
	reads int
}

func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.openedFile.ReadAt(p, off)
}

func TestThin_CostsAFewNodesHoweverMuchIsMapped(t *testing.T) {
	const chunk = 64 * kibi
	for _, c := range []struct {
		chunks    uint64
		scattered bool
	}{{1 << 17, false}, {50_000, true}} {
		t.Run(fmt.Sprint(c.chunks), func(t *testing.T) {
			path, place, dataChunks := largePool(t, c.chunks, c.scattered)
			data := patternDevice{size: int64(dataChunks) * chunk, seed: 2}
			meta := &countedFile{openedFile: openFile(t, path)}
			restrictNodes(t, mebi)

			d, err := openThin(data, meta, 5, chunk, int64(c.chunks)*chunk, nil)
			noError(t, err)
			if meta.reads > 3 {
				t.Errorf("opening reads %d blocks of metadata; the superblock and a node of each tree are enough", meta.reads)
			}
			meta.reads = 0
			got, want := make([]byte, 16), make([]byte, 16)
			check := func(n uint64) {
				t.Helper()
				_, err := d.ReadAt(got, int64(n)*chunk+8)
				noError(t, err)
				data.ReadAt(want, int64(place(n))*chunk+8)
				if string(got) != string(want) {
					t.Fatalf("chunk %d: %x, want %x", n, got, want)
				}
			}
			check(c.chunks / 2)
			if meta.reads > 4 {
				t.Errorf("the first read reads %d blocks of metadata", meta.reads)
			}
			meta.reads = 0
			for n := range c.chunks {
				check(n)
			}
			// Entries put in in order leave nodes half full, with 126; each leaf is read once, and little else.
			if most := int(c.chunks)/126*101/100 + 10; meta.reads > most {
				t.Errorf("reading all in order reads %d blocks of metadata, more than %d", meta.reads, most)
			}
			r := rand.New(rand.NewPCG(1, 1))
			for range 5000 {
				check(r.Uint64N(c.chunks))
			}
			s := d.(backend.Sparse)
			if at, err := s.NextHole(5); err != nil || at != d.Size() {
				t.Errorf("the hole behind all data is at %d of %d, %v", at, d.Size(), err)
			}
			if held := nodes.Bytes(); held == 0 || held > mebi {
				t.Errorf("%d bytes of nodes are held", held)
			}
		})
	}
}

func TestThin_EndsItsSearchInATreeOfNothing(t *testing.T) {
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	// 250 nodes of 250 children each, which are all the same empty leaf: 62,500 holes that do not join.
	const fan = 250
	first := uint64(len(b) / metaBlockBytes)
	b = append(b, make([]byte, (2*fan+2)*metaBlockBytes)...)
	node := func(block uint64, flags uint32, keys, values []uint64) {
		n := nodeAt(b, block)
		putNode(n, block, flags, keys, values)
	}
	root, inner, leaf := first, first+1, first+1+fan
	node(leaf, btreeLeaf, nil, nil)
	var keys, values []uint64
	for i := range uint64(fan) {
		keys, values = append(keys, i*fan*fan), append(values, inner+i)
	}
	node(root, btreeInternal, keys, values)
	for i := range uint64(fan) {
		var k, v []uint64
		for j := range uint64(fan) {
			k, v = append(k, i*fan*fan+j*fan), append(v, leaf)
		}
		node(inner+i, btreeInternal, k, v)
	}
	top := nodeAt(b, u64At(b, 320))
	copy(top[valueAt(top, 0):], le64(root))
	seal(top)

	d, err := openThin(data, plainBytes(b), 1, m.chunk, fan*fan*fan*m.chunk, nil)
	noError(t, err)
	s := d.(*thinDevice)
	search := thinSearch{d: s, left: 1000}
	if at, err := search.nextData(0); err != nil || at != 1000*fan*m.chunk {
		t.Fatalf("a search of 1000 steps ends at chunk %d, %v", at/m.chunk, err)
	}
	// From there on all is data, for whoever asks.
	end := int64(1000 * fan * m.chunk)
	if at, err := s.NextData(0); err != nil || at != end {
		t.Errorf("the data begin at %d, %v; want %d", at, err, end)
	}
	if at, err := s.NextHole(end); err != nil || at != s.Size() {
		t.Errorf("the hole behind it is at %d, %v", at, err)
	}
	if at, err := s.NextHole(5); err != nil || at != 5 {
		t.Errorf("the hole before it is at %d, %v", at, err)
	}
}

func BenchmarkThin(b *testing.B) {
	const chunk, chunks = 64 * kibi, 4096 // 256 MiB
	path := filepath.Join(b.TempDir(), "data")
	f, err := os.Create(path)
	noError(b, err)
	p := make([]byte, mebi)
	for i := range int64(chunks * chunk / mebi) {
		patternDevice{size: gibi, seed: 1}.ReadAt(p, i*mebi)
		_, err := f.Write(p)
		noError(b, err)
	}
	noError(b, f.Close())
	raw := openFile(b, path)
	open := func(scattered bool) backend.Device {
		meta, _, _ := largePool(b, chunks, scattered)
		d, err := openThin(raw, openFile(b, meta), 5, chunk, chunks*chunk, nil)
		noError(b, err)
		return d
	}
	large, _, _ := largePool(b, 1_000_000, true)
	largeThin, err := openThin(patternless{1_000_000 * chunk}, openFile(b, large), 5, chunk, 1_000_000*chunk, nil)
	noError(b, err)
	for _, c := range []struct {
		name string
		d    backend.Device
	}{{"raw", raw}, {"linear", open(false)}, {"scattered", open(true)}, {"1M scattered over nothing", largeThin}} {
		for _, size := range []int64{mebi, 128 * kibi, 4 * kibi} {
			for _, random := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%dk/random=%v", c.name, size/kibi, random), func(b *testing.B) {
					p, off := make([]byte, size), int64(0)
					r := rand.New(rand.NewPCG(1, 1))
					b.SetBytes(size)
					b.ReportAllocs()
					for b.Loop() {
						if random {
							off = r.Int64N(c.d.Size()/size) * size
						} else if off += size; off+size > c.d.Size() {
							off = 0
						}
						if _, err := c.d.ReadAt(p, off); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// patternless is a device that costs nothing to read.
type patternless struct{ size int64 }

func (d patternless) Size() int64                           { return d.size }
func (d patternless) Close() error                          { return nil }
func (d patternless) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestNodes_TakeWhatIsAccountedOfThem(t *testing.T) {
	restrictNodes(t, 8*mebi)
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	r := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, metaBlockBytes)
	before := heap()
	for block := range uint64(40_000) {
		_, err := nodes.Load(nodeKey{block: block, kind: mappingsTree}, func() (*btreeNode, int, error) {
			keys := make([]uint64, 84+r.IntN(168)) // a third full at least, as the kernel leaves them
			for i := range keys {
				keys[i] = uint64(2 * i)
			}
			putNode(b, block, []uint32{btreeInternal, btreeLeaf}[block%2], keys, make([]uint64, len(keys)))
			n, err := decodeNode(b, block, mappingsTree)
			if err != nil {
				return nil, 0, err
			}
			return n, n.bytes(), nil
		})
		noError(t, err)
	}
	takes := float64(heap()-before) / float64(nodes.Bytes())
	t.Logf("nodes take %.3f of what is accounted", takes)
	if takes > 1 || takes < 0.8 {
		t.Error("it is not what they take")
	}
}

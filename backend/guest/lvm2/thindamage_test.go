package lvm2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"domfs/backend"
	"domfs/backend/lru"
)

// smallPool is a pool with trees of two levels and little else, and its metadata.
func smallPool(t testing.TB) (poolMap, []byte) {
	t.Helper()
	m := poolMap{chunk: 64 * kibi, dataChunks: 4096, devices: map[uint64]map[uint64]uint64{1: {}, 2: {0: 4095, 1: 3, 2: 4, 9: 8}, 3: {}}}
	r := rand.New(rand.NewPCG(7, 7))
	for i := range uint64(900) {
		if i%3 > 0 {
			m.devices[1][i] = r.Uint64N(m.dataChunks)
		}
	}
	b, err := os.ReadFile(m.restore(t, 128*kibi))
	noError(t, err)
	return m, b
}

// seal makes the checksum of a block of metadata right.
func seal(block []byte) {
	kind := uint32(btreeChecksum)
	if binary.LittleEndian.Uint64(block[32:]) == thinMagic {
		kind = thinChecksum
	}
	binary.LittleEndian.PutUint32(block, metaChecksum(block, kind))
}

// putNode makes a node with values of 8 bytes.
func putNode(block []byte, at uint64, flags uint32, keys, values []uint64) {
	le := binary.LittleEndian
	clear(block)
	le.PutUint32(block[4:], flags)
	le.PutUint64(block[8:], at)
	le.PutUint32(block[16:], uint32(len(keys)))
	le.PutUint32(block[20:], 252)
	le.PutUint32(block[24:], 8)
	for i := range keys {
		le.PutUint64(block[btreeHeader+8*i:], keys[i])
		le.PutUint64(block[btreeHeader+8*(252+i):], values[i])
	}
	seal(block)
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func u64At(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }

func nodeAt(b []byte, block uint64) []byte {
	return b[block*metaBlockBytes : (block+1)*metaBlockBytes]
}

// valueAt is where in a node its value i is.
func valueAt(node []byte, i int) int {
	return btreeHeader + 8*int(binary.LittleEndian.Uint32(node[20:])) + 8*i
}

// mappingsOf is the root of the mappings of a device, by its index in the pool, whose tree of devices is a leaf.
func mappingsOf(b []byte, i int) uint64 {
	top := nodeAt(b, u64At(b, 320))
	return u64At(top, valueAt(top, i))
}

func TestThin_RefusesADamagedPool(t *testing.T) {
	m, good := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	le := binary.LittleEndian
	// Device 1 has an internal node as its root.
	if root := nodeAt(good, mappingsOf(good, 0)); le.Uint32(root[4:]) != btreeInternal {
		t.Fatal("the tree of device 1 has one level")
	}
	root := func(b []byte) []byte { return nodeAt(b, mappingsOf(b, 0)) }
	leaf := func(b []byte) []byte { return nodeAt(b, u64At(root(b), valueAt(root(b), 0))) }
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte // the block to seal, nil for none
		want   error
		says   string
	}{
		{"magic", func(b []byte) []byte { b[32]++; return nil }, backend.ErrCorrupt, "magic"},
		{"superblock's checksum", func(b []byte) []byte { b[70]++; return nil }, backend.ErrCorrupt, "checksum"},
		{"superblock's place", func(b []byte) []byte { b[8]++; return b[:4096] }, backend.ErrCorrupt, "block 1"},
		{"version", func(b []byte) []byte { b[40] = 3; return b[:4096] }, backend.ErrUnsupported, "version 3"},
		{"feature", func(b []byte) []byte { b[360] = 1; return b[:4096] }, backend.ErrUnsupported, "features"},
		{"block size", func(b []byte) []byte { b[340] = 16; return b[:4096] }, backend.ErrCorrupt, "8192"},
		{"chunk size", func(b []byte) []byte { b[337] = 1; return b[:4096] }, backend.ErrCorrupt, "LVM's metadata say 65536"},
		{"mappings' root behind the end", func(b []byte) []byte { le.PutUint64(b[320:], 1<<60); return b[:4096] }, backend.ErrCorrupt, "block 1152921504606846976"},
		{"mappings' root is the superblock", func(b []byte) []byte { le.PutUint64(b[320:], 0); return b[:4096] }, backend.ErrCorrupt, "block 0"},
		{"details' root is of mappings", func(b []byte) []byte { le.PutUint64(b[328:], u64At(b, 320)); return b[:4096] }, backend.ErrCorrupt, "8 bytes each, not 24"},
		{"node's checksum", func(b []byte) []byte { root(b)[4000]++; return nil }, backend.ErrCorrupt, "checksum"},
		{"node's place", func(b []byte) []byte { root(b)[8]++; return root(b) }, backend.ErrCorrupt, "says that it is block"},
		{"both flags", func(b []byte) []byte { root(b)[4] = 3; return root(b) }, backend.ErrCorrupt, "flags"},
		{"no flags", func(b []byte) []byte { root(b)[4] = 0; return root(b) }, backend.ErrCorrupt, "flags"},
		{"more entries than room", func(b []byte) []byte { le.PutUint32(root(b)[16:], 253); return root(b) }, backend.ErrCorrupt, "253 entries, and room for 252"},
		{"more room than a block", func(b []byte) []byte {
			le.PutUint32(root(b)[16:], 300)
			le.PutUint32(root(b)[20:], 300)
			return root(b)
		}, backend.ErrCorrupt, "do not fit"},
		{"room that overflows", func(b []byte) []byte {
			le.PutUint32(root(b)[20:], 1<<28)
			return root(b)
		}, backend.ErrCorrupt, "do not fit"},
		{"no children", func(b []byte) []byte { le.PutUint32(root(b)[16:], 0); return root(b) }, backend.ErrCorrupt, "without children"},
		{"values of nothing", func(b []byte) []byte { le.PutUint32(root(b)[24:], 0); return root(b) }, backend.ErrCorrupt, "0 bytes each"},
		{"values of 4 GiB", func(b []byte) []byte { le.PutUint32(leaf(b)[24:], 1<<32-1); return leaf(b) }, backend.ErrCorrupt, "bytes each"},
		{"keys in no order", func(b []byte) []byte { copy(leaf(b)[32+8:], leaf(b)[32:40]); return leaf(b) }, backend.ErrCorrupt, "follows key"},
		{"keys of others", func(b []byte) []byte {
			le.PutUint64(leaf(b)[32+8*(int(le.Uint32(leaf(b)[16:]))-1):], 1<<40)
			return leaf(b)
		}, backend.ErrCorrupt, "belong"},
		{"root in itself", func(b []byte) []byte {
			le.PutUint64(root(b)[valueAt(root(b), 0):], mappingsOf(b, 0))
			return root(b)
		}, backend.ErrCorrupt, "belong"},
		{"root its own only child", func(b []byte) []byte {
			le.PutUint64(root(b)[valueAt(root(b), 0):], mappingsOf(b, 0))
			le.PutUint32(root(b)[16:], 1)
			return root(b)
		}, backend.ErrCorrupt, "deeper than 16"},
		{"data behind the end", func(b []byte) []byte {
			le.PutUint64(leaf(b)[valueAt(leaf(b), 0):], 4096<<24)
			return leaf(b)
		}, backend.ErrCorrupt, "chunk 4096 of the pool's data"},
		{"data far behind the end", func(b []byte) []byte {
			le.PutUint64(leaf(b)[valueAt(leaf(b), 0):], 1<<64-1)
			return leaf(b)
		}, backend.ErrCorrupt, "chunk 1099511627775 of the pool's data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			if sealed := c.change(b); sealed != nil {
				seal(sealed)
			}
			d, err := openThin(data, plainBytes(b), 1, m.chunk, 1000*m.chunk, nil)
			if err == nil {
				_, err = d.ReadAt(make([]byte, 8), m.chunk) // chunk 0 is not mapped
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v that says %q", err, c.want, c.says)
			}
		})
	}
	t.Run("short", func(t *testing.T) {
		if _, err := openThin(data, plainBytes(good[:4000]), 1, m.chunk, gibi, nil); !errors.Is(err, backend.ErrIO) {
			t.Errorf("metadata of 4000 bytes: %v", err)
		}
	})
	for _, chunk := range []int64{-65536, 0, 4096, 65536 + 512, 2 * gibi} {
		if _, err := openThin(data, plainBytes(good), 1, chunk, gibi, nil); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("chunks of %d bytes: %v", chunk, err)
		}
	}
	for _, size := range []int64{-1, 1<<63 - 1} {
		if _, err := openThin(data, plainBytes(good), 1, m.chunk, size, nil); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if _, err := openThin(data, plainBytes(good), 1<<24, m.chunk, gibi, nil); !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("device 2^24: %v", err)
	}
}

func TestThin_DamagedNodeLeavesTheRest(t *testing.T) {
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	root := nodeAt(b, mappingsOf(b, 0))
	nodeAt(b, u64At(root, valueAt(root, 1)))[100]++
	from, to := u64At(root, btreeHeader+8), u64At(root, btreeHeader+16)
	d, err := openThin(data, plainBytes(b), 1, m.chunk, 1000*m.chunk, nil)
	noError(t, err)
	p := make([]byte, 8)
	for c := range uint64(1000) {
		_, err := d.ReadAt(p, int64(c)*m.chunk)
		if damaged := c >= from && c < to; damaged != errors.Is(err, backend.ErrCorrupt) {
			t.Fatalf("chunk %d, where those from %d to below %d are damaged: %v", c, from, to, err)
		}
	}
	// What cannot be known counts as data, and does not end the search.
	s := d.(backend.Sparse)
	if at, err := s.NextData(int64(from) * m.chunk); err != nil || at != int64(from)*m.chunk {
		t.Errorf("data from chunk %d on: %d, %v", from, at/m.chunk, err)
	}
	if at, err := s.NextHole(int64(from) * m.chunk); err != nil || at < int64(to)*m.chunk || at > int64(to+3)*m.chunk {
		t.Errorf("hole from chunk %d on: chunk %d, %v", from, at/m.chunk, err)
	}
	other, err := openThin(data, plainBytes(b), 2, m.chunk, 1000*m.chunk, nil)
	noError(t, err)
	checkDevice(t, other, m, 2, data, nil)
}

func TestThin_WarnsOfMetadataThatNeedACheck(t *testing.T) {
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	warnings := func(b []byte) []string {
		d, err := openThin(data, plainBytes(b), 1, m.chunk, gibi, nil)
		noError(t, err)
		return d.(backend.Warner).Warnings()
	}
	if w := warnings(b); len(w) > 0 {
		t.Errorf("of a sound pool: %q", w)
	}
	b[4] |= thinNeedsCheck
	seal(b[:4096])
	if w := warnings(b); len(w) != 1 || !strings.Contains(w[0], "need of a check") {
		t.Errorf("with the flag: %q", w)
	}
	b[4] = 0
	b[344]++
	seal(b[:4096])
	if w := warnings(b); len(w) != 1 || !strings.Contains(w[0], "33 blocks") {
		t.Errorf("with fewer blocks than there should be: %q", w)
	}
}

func TestThin_IgnoresAMetadataSnapshotAndReadsVersion1(t *testing.T) {
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	binary.LittleEndian.PutUint64(b[56:], 17)
	b[40] = 1
	seal(b[:4096])
	d, err := openThin(data, plainBytes(b), 2, m.chunk, 20*m.chunk, nil)
	noError(t, err)
	checkDevice(t, d, m, 2, data, nil)
}

func TestThin_ReadsAnExternalOriginWhereNothingIsMapped(t *testing.T) {
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	for _, externalSize := range []int64{0, 100*mebi + 512, 30*m.chunk - 512, 5*mebi + 512, 200 * m.chunk} {
		for _, id := range []uint64{1, 2, 3} {
			external := holeyDevice{patternDevice{size: externalSize, seed: 9}}
			size := 200*m.chunk - 512
			d, err := openThin(data, plainBytes(b), id, m.chunk, size, external)
			noError(t, err)
			checkDevice(t, d, m, id, data, external)
			checkSectors(t, d, func(sector int64) bool {
				_, mapped := m.devices[id][uint64(sector*512/m.chunk)]
				return mapped || sector*512 < externalSize && sector/2048%2 == 0
			})
			if a := d.(backend.Sparse).Allocated(); a > size {
				t.Errorf("%d bytes of %d are allocated", a, size)
			}
			for off := int64(0); off < size; off += m.chunk / 2 {
				l, ok := d.(backend.Locator).Locate(off, mebi)
				want, found := backend.Location{}, false
				if c, mapped := m.devices[id][uint64(off/m.chunk)]; mapped {
					want, found = backend.Location{FD: 1, Offset: int64(c)*m.chunk + off%m.chunk}, true
				} else if off < externalSize {
					want, found = backend.Location{FD: 9, Offset: off}, true
				}
				if ok != found || l.FD != want.FD || l.Offset != want.Offset || ok && l.Length <= 0 {
					t.Fatalf("device %d byte %d lies at %v, %v; want %v", id, off, l, ok, want)
				}
			}
		}
	}
}

func TestThin_LocatesWholeRunsWithinTheDevice(t *testing.T) {
	m := poolMap{chunk: 64 * kibi, dataChunks: 1000, devices: map[uint64]map[uint64]uint64{1: {}}}
	for i := range uint64(100) {
		m.devices[1][i] = 500 + i
	}
	data := patternDevice{size: 1000 * m.chunk, seed: 1}
	d, err := openThin(data, openFile(t, m.restore(t, mebi)), 1, m.chunk, 60*m.chunk-512, nil)
	noError(t, err)
	l, ok := d.(backend.Locator).Locate(10*m.chunk+5, gibi)
	if want := (backend.Location{FD: 1, Offset: 510*m.chunk + 5, Length: 50*m.chunk - 517}); !ok || l != want {
		t.Errorf("%v, %v; want %v", l, ok, want)
	}
}

func TestThin_EndsAsAFileDoes(t *testing.T) {
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	d, err := openThin(data, plainBytes(b), 1, m.chunk, 10*m.chunk+1, nil)
	noError(t, err)
	fileEnds(t, d)
	fixed := newCOWStore(4*kibi, mebi)
	fixed.except(t, 2, nil)
	d, err = openCOW(patternDevice{size: 11 * kibi, seed: 1}, plainBytes(fixed.b), 4*kibi)
	noError(t, err)
	fileEnds(t, d)
}

func fileEnds(t *testing.T, d backend.Device) {
	t.Helper()
	for _, c := range []struct {
		length, off int64
		n           int
		err         string
	}{
		{10, d.Size() - 10, 10, ""}, {10, d.Size() - 9, 9, "EOF"}, {10, d.Size(), 0, "EOF"}, {10, d.Size() + 5, 0, "EOF"},
		{10, 1 << 62, 0, "EOF"}, {0, 3, 0, ""}, {10, -1, 0, "invalid value"},
	} {
		n, err := d.ReadAt(make([]byte, c.length), c.off)
		if n != c.n || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%d bytes at %d of %d: %d, %v; want %d, %q", c.length, c.off, d.Size(), n, err, c.n, c.err)
		}
	}
	s := d.(backend.Sparse)
	for _, off := range []int64{-1, d.Size(), 1 << 62} {
		if _, err := s.NextData(off); !errors.Is(err, backend.ErrRange) {
			t.Errorf("data at %d: %v", off, err)
		}
		if _, err := s.NextHole(off); !errors.Is(err, backend.ErrRange) {
			t.Errorf("hole at %d: %v", off, err)
		}
		if _, ok := d.(backend.Locator).Locate(off, 1); ok {
			t.Errorf("byte %d lies somewhere", off)
		}
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

// restrictNodes gives the test an empty cache of so many bytes.
func restrictNodes(t testing.TB, bytes int) {
	before := nodes
	nodes = lru.New[nodeKey, *btreeNode](bytes)
	t.Cleanup(func() { nodes = before })
}

func TestThin_IsReadByManyAtOnce(t *testing.T) {
	restrictNodes(t, 16*kibi)
	r := rand.New(rand.NewPCG(1, 1))
	m := randomPool(64*kibi, r, 2000)
	meta := openFile(t, m.restore(t, 8*mebi))
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 3}
	p, err := openThinPool(data, meta, m.chunk)
	noError(t, err)
	var w sync.WaitGroup
	for i := range 4 {
		id := []uint64{3, 4, 3, 2}[i]
		d, err := p.open(id, 2000*m.chunk, nil)
		noError(t, err)
		for j := range 2 {
			w.Go(func() {
				r := rand.New(rand.NewPCG(2, uint64(2*i+j)))
				got, want := make([]byte, 16), make([]byte, 16)
				for range 500 {
					c := r.Uint64N(2000)
					if _, err := d.ReadAt(got, int64(c)*m.chunk); err != nil {
						t.Error(err)
						return
					}
					clear(want)
					if block, ok := m.devices[id][c]; ok {
						data.ReadAt(want, int64(block)*m.chunk)
					}
					if !bytes.Equal(got, want) {
						t.Errorf("device %d chunk %d: %x, want %x", id, c, got, want)
						return
					}
					if r.IntN(20) == 0 {
						d.NextHole(int64(c) * m.chunk)
					}
				}
			})
		}
	}
	w.Wait()
	if held := nodes.Bytes(); held == 0 || held > 16*kibi {
		t.Errorf("%d bytes of nodes are held", held)
	}
}

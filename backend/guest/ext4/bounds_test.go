package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"domfs/backend"
)

// aliasBlocks is the length in blocks of each of the four extents of a longDir, which hold
// the same blocks: more than a cache holds.
const aliasBlocks = 16 << 10

// longDir is an image whose root directory has four times the same blocks, all empty until
// fill writes the first ones.
func longDir(t testing.TB, flags uint32, fill func(fs *FS, dirBlock func(i int) []byte)) []byte {
	t.Helper()
	const first = 4000 // of the directory's blocks
	path := mkfs(t, 24, false, "-t", "ext4", "-b", "1024", "-N", "64", "-O", "^metadata_csum,^has_journal,^resize_inode")
	b, err := os.ReadFile(path)
	must(t, err)
	fs, err := New().Open(inMemory(b))
	must(t, err)
	defer fs.Close()
	x := fs.(*FS)
	table, err := x.inodeTable(0)
	must(t, err)
	le := binary.LittleEndian
	in := b[table*1024+(rootIno-1)*uint64(x.sb.inodeBytes):]
	le.PutUint32(in[0x4:], 4*aliasBlocks*1024)
	le.PutUint32(in[0x20:], inodeExtents|flags)
	node := in[0x28:][:blockArray]
	clear(node)
	le.PutUint16(node, extentMagic)
	le.PutUint16(node[2:], 4)
	le.PutUint16(node[4:], 4)
	for i := range 4 {
		e := extentNode(node).entry(i)
		le.PutUint32(e, uint32(i*aliasBlocks))
		le.PutUint16(e[4:], aliasBlocks)
		le.PutUint32(e[8:], first)
	}
	dirBlock := func(i int) []byte { return b[(first+i)*1024:][:1024] }
	for i := range aliasBlocks {
		e := dirBlock(i)
		clear(e)
		le.PutUint16(e[4:], 1024) // one entry, unused
	}
	if fill != nil {
		fill(x, dirBlock)
	}
	return b
}

// longChain is a longDir whose htree has a name's hash in all its entries, so that a
// lookup of the name reads every leaf.
func longChain(t testing.TB, name string) []byte {
	t.Helper()
	return longDir(t, inodeIndex, func(fs *FS, dirBlock func(i int) []byte) {
		const version = 1 // half MD4
		le := binary.LittleEndian
		with := version
		if fs.sb.hashUnsigned {
			with += hashUnsigned
		}
		hash, _ := nameHash(name, with, fs.sb.hashSeed)
		hash |= 1 // goes on from the leaf before
		entries := func(b []byte, next func() int) {
			room := len(b) / indexEntryBytes
			for i := range room {
				le.PutUint32(b[indexEntryBytes*i:], hash)
				le.PutUint32(b[indexEntryBytes*i+4:], uint32(next()))
			}
			le.PutUint16(b, uint16(room))
			le.PutUint16(b[2:], uint16(room))
		}
		root := dirBlock(0)
		root[0x1c], root[0x1d], root[0x1e] = version, 8, 1
		inner, leaf := 0, 200
		entries(root[indexRootAt:], func() int { inner++; return inner })
		for i := 1; i <= inner; i++ {
			entries(dirBlock(i)[indexNodeAt:], func() int { leaf++; return leaf - 1 })
		}
	})
}

// ending is a device that closes done in its n-th read.
type ending struct {
	backend.Device
	n, reads int
	done     chan struct{}
}

func (d *ending) ReadAt(p []byte, off int64) (int, error) {
	if d.reads++; d.reads == d.n {
		close(d.done)
	}
	return d.Device.ReadAt(p, off)
}

func TestUntil_EndsLongWalksSoonAfterDone(t *testing.T) {
	linear, chain := longDir(t, 0, nil), longChain(t, "absent")
	for _, v := range []struct {
		name  string
		image []byte
		walk  func(fs backend.FS) error
		all   error // without an end
		soon  int   // reads after the end: of interruptMask+1 blocks, and what else was begun
	}{
		{"ReadDir", linear, func(fs backend.FS) error {
			return fs.ReadDir(rootIno, 0, true, func(*backend.DirEntry) bool { return true })
		}, nil, 8},
		{"Lookup", linear, func(fs backend.FS) error { _, err := fs.Lookup(rootIno, "absent"); return err }, backend.ErrNotExist, 8},
		{"Lookup through the htree", chain, func(fs backend.FS) error { _, err := fs.Lookup(rootIno, "absent"); return err }, backend.ErrNotExist, 300},
		{"Parent", linear, func(fs backend.FS) error { _, err := fs.Parent(rootIno); return err }, backend.ErrCorrupt, 8},
	} {
		t.Run(v.name, func(t *testing.T) {
			const middle = 400 // of the reads
			for _, n := range []int{0, middle} {
				d := &ending{Device: inMemory(v.image), n: n, done: make(chan struct{})}
				fs, err := New().Open(d)
				must(t, err)
				defer fs.Close()
				until := fs.(backend.Interruptible).Until(d.done)
				err = v.walk(until)
				switch {
				case n == 0 && (!errors.Is(err, v.all) || d.reads < middle+2*v.soon):
					t.Errorf("without an end: %v after %d reads", err, d.reads)
				case n == middle && (!errors.Is(err, context.Canceled) || d.reads > n+v.soon):
					t.Errorf("ended in read %d: %v after %d reads", n, err, d.reads)
				}
				if n != 0 {
					before := d.reads
					if err := v.walk(until); !errors.Is(err, context.Canceled) || d.reads > before+v.soon {
						t.Errorf("after the end: %v after %d reads", err, d.reads-before)
					}
				}
			}
		})
	}
}

// budgeted is what the budget counts.
func budgeted() int {
	budget.mu.Lock()
	defer budget.mu.Unlock()
	return budget.bytes
}

func TestCache_OfAllFilesystemsStaysWithinItsBudget(t *testing.T) {
	image := longDir(t, 0, nil)
	before := budgeted()
	const count = allCacheBytes/cacheBytes + 4
	var open []*FS
	var wg sync.WaitGroup
	for range count {
		fs, err := New().Open(inMemory(image))
		must(t, err)
		open = append(open, fs.(*FS))
		wg.Go(func() {
			// Up to the second extent: the cache is full then.
			if err := fs.ReadDir(rootIno, 3*aliasBlocks*1024, true, func(*backend.DirEntry) bool { return true }); err != nil {
				t.Error(err)
			}
			if n := budgeted(); n > allCacheBytes {
				t.Errorf("%d bytes are cached, more than %d", n, allCacheBytes)
			}
		})
	}
	wg.Wait()
	held := 0
	for _, fs := range open {
		fs.cache.mu.Lock()
		held += fs.cache.bytes
		fs.cache.mu.Unlock()
	}
	// What other tests left open counts, too, unless it was dropped.
	if n := budgeted(); n > allCacheBytes || held > n || n-held > before || held < allCacheBytes/2 {
		t.Errorf("%d bytes are held and %d counted, of at most %d; before there were %d", held, n, allCacheBytes, before)
	}
	for _, fs := range open {
		must(t, fs.Close())
		must(t, fs.Close())
	}
	if n := budgeted(); n > before || n < 0 {
		t.Errorf("%d bytes are counted after Close, before there were %d", n, before)
	}
	budget.mu.Lock()
	defer budget.mu.Unlock()
	for _, fs := range open {
		if budget.place[fs.cache] != nil {
			t.Error("the cache of a closed filesystem is kept")
		}
	}
}

// zeroTail is an image with zeros after it.
type zeroTail struct {
	image []byte
	size  int64
	reads int
}

func (d *zeroTail) Size() int64  { return d.size }
func (d *zeroTail) Close() error { return nil }

func (d *zeroTail) ReadAt(p []byte, off int64) (int, error) {
	d.reads++
	clear(p)
	if off < int64(len(d.image)) {
		copy(p, d.image[off:])
	}
	return len(p), nil
}

func TestStatFS_RefusesToCountMoreGroupsThanFitInMemory(t *testing.T) {
	path := mkfs(t, 300, false, "-t", "ext4", "-O", "bigalloc,^metadata_csum,^has_journal,^resize_inode", "-C", "65536", "-N", "64")
	b, err := os.ReadFile(path)
	must(t, err)
	b = b[:mib]
	le := binary.LittleEndian
	sb := b[superOffset:]
	const perGroup = 128
	le.PutUint32(sb[0x20:], perGroup)          // blocks in a group
	le.PutUint32(sb[0x24:], perGroup/16)       // clusters
	le.PutUint32(sb[0x28:], 16)                // inodes
	le.PutUint32(sb[0x0:], maxGroups*16)       // inodes
	le.PutUint32(sb[0x4:], maxGroups*perGroup) // blocks
	le.PutUint32(sb[0x150:], 0)
	le.PutUint32(sb[0x248:], 0) // overhead
	d := &zeroTail{image: b, size: maxGroups * perGroup * 4096}
	fs, err := New().Open(d)
	must(t, err)
	defer fs.Close()
	if n := fs.(*FS).sb.groups; n != maxGroups {
		t.Fatalf("%d groups", n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = fs.StatFS()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("StatFS: %v", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > mib || d.reads > 10 {
		t.Errorf("StatFS took %d bytes of memory and %d reads", n, d.reads)
	}
}

package qcow2

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/lru"
)

// withHelpers gives reads n helpers, however many processors there are.
func withHelpers(t *testing.T, n int) {
	before := helping
	helping = make(chan struct{}, n)
	t.Cleanup(func() {
		if len(helping) != 0 {
			t.Errorf("%d helpers are still there", len(helping))
		}
		helping = before
	})
}

// compressedImage is one of clusters that all differ, in raw and converted.
func compressedImage(t *testing.T, size int64, options string) (want []byte, path string) {
	testneed.Tools(t, "qemu-img")
	raw := rawFile(t, size)
	path = filepath.Join(t.TempDir(), "image")
	command(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
	want, err := os.ReadFile(raw)
	must(t, err)
	return want, path
}

func TestRead_OfManyClustersPutsEachInItsPlace(t *testing.T) {
	for _, options := range []string{"cluster_size=512", "cluster_size=64k", "cluster_size=64k,compression_type=zstd", "cluster_size=2M"} {
		want, path := compressedImage(t, 5*mib+512, options)
		for _, n := range []int{0, 1, 7} {
			withHelpers(t, n)
			d := openChain(t, path)
			for _, r := range [][2]int{{0, len(want)}, {100, 4 * mib}, {5, 300}, {mib - 1, 200 * kib}, {len(want) - 1000, 1000}} {
				p := make([]byte, r[1])
				if n, err := d.ReadAt(p, int64(r[0])); n != len(p) || err != nil || !bytes.Equal(p, want[r[0]:][:r[1]]) {
					t.Errorf("%s: %d bytes at %d: %d, %v, or other bytes", options, r[1], r[0], n, err)
				}
			}
		}
	}
}

func TestRead_EndsBeforeTheFirstClusterThatIsDamaged(t *testing.T) {
	const cs = 64 * kib
	want, path := compressedImage(t, 32*cs, "cluster_size=64k")
	im := openChain(t, path).(*image)
	for _, i := range []int64{11, 5, 20} {
		r, err := im.m.lookup(&im.last, i*cs, cs, nil)
		must(t, err)
		if r.kind != compressed {
			t.Fatalf("cluster %d is not compressed", i)
		}
		patch(t, path, int64(r.entry&(1<<54-1)), 0xff) // a block of the reserved type
	}
	for _, helpers := range []int{0, 1, 7} {
		withHelpers(t, helpers)
		for range 20 {
			p := make([]byte, len(want))
			n, err := im.ReadAt(p, 0)
			if n != 5*cs || !errors.Is(err, backend.ErrCorrupt) || !bytes.Equal(p[:n], want[:n]) {
				t.Fatalf("with %d helpers %d bytes, %v", helpers, n, err)
			}
		}
	}
}

// panicking is a file of which a part makes the reader panic.
type panicking struct {
	*hostFile
	from int64
}

func (p panicking) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.from {
		panic("hostile bytes")
	}
	return p.hostFile.ReadAt(b, off)
}

func TestRead_PanicsWhereItWasCalled(t *testing.T) {
	const cs = 64 * kib
	want, path := compressedImage(t, 32*cs, "cluster_size=64k")
	file := openFile(t, path)
	d, err := New().Open(file, nil)
	must(t, err)
	im := d.(*image)
	r, err := im.m.lookup(&im.last, 3*cs, cs, nil)
	must(t, err)
	im.m.file.Device = panicking{file, int64(r.entry & (1<<54 - 1))}
	for _, helpers := range []int{0, 1, 7} {
		withHelpers(t, helpers)
		for range 20 {
			func() {
				defer func() {
					if p := recover(); p != "hostile bytes" {
						t.Errorf("with %d helpers it panicked with %v", helpers, p)
					}
				}()
				d.ReadAt(make([]byte, len(want)), 0)
			}()
		}
	}
	if len(decompressing) != 0 {
		t.Errorf("%d clusters are still being decompressed", len(decompressing))
	}
}

func TestRead_OfTheWholeImageLeavesTheCacheToSmallReads(t *testing.T) {
	before := clusters
	clusters = lru.New[clusterKey, []byte](mib)
	t.Cleanup(func() { clusters = before })
	want, path := compressedImage(t, 4*mib, "cluster_size=64k")
	file := openFile(t, path)
	d, err := New().Open(file, nil)
	must(t, err)
	defer d.Close()
	small := make([]byte, 512)
	_, err = d.ReadAt(small, mib)
	must(t, err)
	p := make([]byte, len(want))
	if n, err := d.ReadAt(p, 0); n != len(p) || err != nil || !bytes.Equal(p, want) {
		t.Fatalf("%d bytes, %v, or others", n, err)
	}
	reads := file.reads.Load()
	_, err = d.ReadAt(small, mib+512)
	must(t, err)
	if n := file.reads.Load() - reads; n != 0 || !bytes.Equal(small, want[mib+512:][:512]) {
		t.Errorf("the file was read %d times more, or other bytes", n)
	}
}

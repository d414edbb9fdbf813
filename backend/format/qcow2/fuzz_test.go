package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"domfs/backend"
)

// fuzzImages are small images of each kind.
func fuzzImages(f *testing.F) (all [][]byte) {
	for _, c := range []struct {
		options string
		cluster int64
	}{
		{"cluster_size=512", 512},
		{"cluster_size=512,compat=0.10", 512},
		{"cluster_size=512,preallocation=metadata", 512},
		{"cluster_size=512,compression_type=zstd", 512},
		{"cluster_size=16k,extended_l2=on", 16 * kib},
	} {
		path := create(f, c.options, "40k")
		doWork(f, path, workload(3, 40*kib, min(c.cluster, kib), 8, c.options != "cluster_size=512,compat=0.10"))
		command(f, "qemu-img", "snapshot", "-c", "one", path)
		qemuIO(f, path, "write -P 9 8k 1k")
		b, err := os.ReadFile(path)
		must(f, err)
		all = append(all, b)
		command(f, "qemu-img", "rebase", "-u", "-b", "base", "-F", "qcow2", path)
		b, err = os.ReadFile(path)
		must(f, err)
		all = append(all, b)
	}
	return all
}

// FuzzOpenAndRead reads an image, its holes and its snapshots, on itself as its backing file.
func FuzzOpenAndRead(f *testing.F) {
	for _, b := range fuzzImages(f) {
		f.Add(b)
	}
	f.Fuzz(readImage)
}

// FuzzDamagedTables reads images of each kind in which bytes of the header and the tables are changed: which ones
// and how, damage says in threes.
func FuzzDamagedTables(f *testing.F) {
	images := fuzzImages(f)
	var metadata [][]int64
	for i, b := range images {
		metadata = append(metadata, metadataOf(f, b))
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0, 72 + 7, 1, 0, 120, 1, 0, 180, 0x40})
	}
	f.Fuzz(func(t *testing.T, which uint8, damage []byte) {
		i := int(which) % len(images)
		b, at := bytes.Clone(images[i]), metadata[i]
		for ; len(damage) >= 3; damage = damage[3:] {
			b[at[(int(damage[0])<<8|int(damage[1]))%len(at)]] ^= damage[2]
		}
		readImage(t, b)
	})
}

// metadataOf is where the bytes of the header, the tables and the snapshots are.
func metadataOf(t testing.TB, b []byte) (at []int64) {
	h, err := readHeader(memory(b))
	must(t, err)
	add := func(off, n int64) {
		for i := off; i < min(off+n, int64(len(b))); i++ {
			at = append(at, i)
		}
	}
	add(0, 200)
	add(h.snapshots.off, 100)
	l1s := []table{h.l1}
	must(t, h.eachSnapshot(memory(b), func(s Snapshot) bool {
		l1s = append(l1s, s.l1)
		return true
	}))
	for _, l1 := range l1s {
		add(l1.off, int64(l1.entries)*8)
		for i := range l1.entries {
			if l2 := int64(binary.BigEndian.Uint64(b[l1.off+int64(i)*8:]) & entryOffset); l2 != 0 {
				add(l2, 512)
			}
		}
	}
	return at
}

func readImage(t *testing.T, b []byte) {
	file := memory(b)
	h, err := New().Header(file)
	if err != nil {
		sound(t, err)
		return
	}
	var backing backend.Device
	if h.Backing != "" {
		backing = memory(b)
	}
	d, err := New().Open(file, backing)
	if err != nil {
		t.Fatalf("Header reads it, and Open says %v", err)
	}
	readSome(t, d)
	list, err := New().Snapshots(file)
	sound(t, err)
	for i, s := range list {
		if i == 4 {
			break
		}
		d, err := New().OpenSnapshot(file, backing, s.ID)
		if err != nil {
			sound(t, err) // a later one may be damaged
			continue
		}
		readSome(t, d)
	}
}

// sound fails on an error that is none of those that an image may cause.
func sound(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, backend.ErrCorrupt) && !errors.Is(err, backend.ErrUnsupported) && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func readSome(t *testing.T, d backend.Device) {
	t.Helper()
	defer d.Close()
	p := make([]byte, 128*kib)
	for _, off := range []int64{0, d.Size()/2 - 1000, d.Size() - 1000} {
		if n, err := d.ReadAt(p, max(0, off)); err == nil && n != len(p) {
			t.Fatalf("%d bytes at %d, and no error", n, off)
		} else {
			sound(t, err)
		}
	}
	s := d.(backend.Sparse)
	for off, n := int64(0), 0; off < d.Size() && n < 200; n++ {
		data, err := s.NextData(off)
		if err != nil {
			if !errors.Is(err, backend.ErrRange) {
				t.Fatal(err)
			}
			break
		}
		hole, err := s.NextHole(data)
		if err != nil || data < off || hole <= data || hole > d.Size() {
			t.Fatalf("asked from %d on, data is from %d to %d, %v", off, data, hole, err)
		}
		// The byte before was a hole, and reads as zero.
		if data > off {
			if m, err := d.ReadAt(p[:1], data-1); err != nil || m != 1 || p[0] != 0 {
				t.Fatalf("the hole before %d reads %d, %v", data, p[0], err)
			}
		}
		off = hole
	}
	if n := s.Allocated(); n < 0 || n > d.Size() {
		t.Fatalf("%d of %d bytes are allocated", n, d.Size())
	}
}

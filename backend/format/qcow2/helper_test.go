package qcow2

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a program and returns its output.
func command(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// create makes an empty image and returns its path.
func create(t testing.TB, options, size string, more ...string) string {
	t.Helper()
	testneed.Tools(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "image.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	command(t, "qemu-img", append(append(args, more...), path, size)...)
	return path
}

// qemuIO runs commands of qemu-io on an image.
func qemuIO(t testing.TB, path string, commands ...string) {
	t.Helper()
	args := []string{"-t", "unsafe", "-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := command(t, "qemu-io", append(args, path)...)
	if bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io %q: %s", commands, out)
	}
}

// doWork runs a workload on an image. Compressed writes come first and have a process of their own: a QEMU that frees a
// compressed cluster and goes on writing such writes over others. Those to clusters in use fail.
func doWork(t testing.TB, path string, commands []string) {
	t.Helper()
	first, rest := []string{"-t", "unsafe", "-f", "qcow2"}, []string{"-t", "unsafe", "-f", "qcow2"}
	for _, c := range commands {
		if strings.HasPrefix(c, "write -c") {
			first = append(first, "-c", c)
		} else {
			rest = append(rest, "-c", c)
		}
	}
	if len(first) > 4 {
		exec.Command("qemu-io", append(first, path)...).Run()
	}
	out := command(t, "qemu-io", append(rest, path)...)
	if bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io %q: %s", rest, out)
	}
}

// hostFile is a file of the host as a Device, which the store's is likewise.
type hostFile struct {
	f     *os.File
	size  int64
	reads atomic.Int64
}

func openFile(t testing.TB, path string) *hostFile {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	must(t, err)
	return &hostFile{f: f, size: st.Size()}
}

func (h *hostFile) Size() int64  { return h.size }
func (h *hostFile) Close() error { return h.f.Close() }

func (h *hostFile) ReadAt(p []byte, off int64) (int, error) {
	h.reads.Add(1)
	return h.f.ReadAt(p, off)
}

func (h *hostFile) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= h.size {
		return backend.Location{}, false
	}
	return backend.Location{FD: h.f.Fd(), Offset: off, Length: min(length, h.size-off)}, true
}

func (h *hostFile) seek(off int64, whence int) (int64, error) {
	if off < 0 || off >= h.size {
		return 0, backend.ErrRange
	}
	n, err := unix.Seek(int(h.f.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return 0, backend.ErrRange
	}
	return n, err
}

func (h *hostFile) NextData(off int64) (int64, error) { return h.seek(off, unix.SEEK_DATA) }
func (h *hostFile) NextHole(off int64) (int64, error) { return h.seek(off, unix.SEEK_HOLE) }

func (h *hostFile) Allocated() int64 {
	var st unix.Stat_t
	if unix.Fstat(int(h.f.Fd()), &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// memory is bytes as a Device that is neither Sparse nor a Locator.
type memory []byte

func (m memory) Size() int64  { return int64(len(m)) }
func (m memory) Close() error { return nil }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// openChain opens an image with the backing files that it names, which a store would have to allow first.
func openChain(t testing.TB, path string) backend.Device {
	t.Helper()
	file := openFile(t, path)
	d, err := New().Open(file, openBacking(t, path, file))
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func openBacking(t testing.TB, path string, file backend.Device) backend.Device {
	t.Helper()
	h, err := New().Header(file)
	must(t, err)
	if h.Backing == "" {
		return nil
	}
	backing := filepath.Join(filepath.Dir(path), h.Backing)
	if filepath.IsAbs(h.Backing) {
		backing = h.Backing
	}
	if h.BackingFormat == "raw" {
		return openFile(t, backing)
	}
	return openChain(t, backing)
}

// asQEMU compares a Device with what qemu-img makes of the image.
func asQEMU(t testing.TB, path string, d backend.Device) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	command(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	defer os.Remove(raw)
	want, err := os.ReadFile(raw)
	must(t, err)
	sameBytes(t, want, d)
	sameMap(t, path, d)
}

// sameBytes reads d as a whole and in pieces.
func sameBytes(t testing.TB, want []byte, d backend.Device) {
	t.Helper()
	if d.Size() != int64(len(want)) {
		t.Errorf("size %d, want %d", d.Size(), len(want))
		return
	}
	got := make([]byte, len(want)+1)
	if n, err := d.ReadAt(got, 0); n != len(want) || !errors.Is(err, io.EOF) {
		t.Errorf("read all: %d of %d bytes, %v", n, len(want), err)
		return
	}
	if at := differAt(got[:len(want)], want); at >= 0 {
		t.Errorf("differs at byte %d", at)
		return
	}
	if len(want) == 0 {
		return
	}
	r := rand.New(rand.NewPCG(1, uint64(len(want))))
	for range 200 {
		off := r.Int64N(int64(len(want)))
		n := min(r.Int64N(1<<r.IntN(20)+1)+1, int64(len(want))-off)
		p := got[:n]
		for i := range p {
			p[i] = 0xee
		}
		if m, err := d.ReadAt(p, off); int64(m) != n || err != nil {
			t.Errorf("read %d bytes at %d: %d, %v", n, off, m, err)
			return
		}
		if at := differAt(p, want[off:off+n]); at >= 0 {
			t.Errorf("read %d bytes at %d: differs at byte %d", n, off, at)
			return
		}
	}
	sameLocated(t, want, d)
}

// sameLocated reads the bytes where Locate says that they lie.
func sameLocated(t testing.TB, want []byte, d backend.Device) {
	t.Helper()
	l := d.(backend.Locator)
	buf := make([]byte, mib)
	for off := int64(0); off < d.Size(); {
		n := min(mib, d.Size()-off)
		loc, ok := l.Locate(off, n)
		if !ok {
			off += 512
			continue
		}
		if loc.Length <= 0 || loc.Length > n {
			t.Errorf("Locate(%d, %d): %+v", off, n, loc)
			return
		}
		m, err := unix.Pread(int(loc.FD), buf[:loc.Length], loc.Offset)
		if int64(m) != loc.Length || err != nil {
			t.Errorf("Locate(%d, %d): %+v, where %d bytes are read: %v", off, n, loc, m, err)
			return
		}
		if at := differAt(buf[:loc.Length], want[off:off+loc.Length]); at >= 0 {
			t.Errorf("Locate(%d, %d): %+v differs at byte %d", off, n, loc, at)
			return
		}
		off += loc.Length
	}
}

func differAt(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

type extent struct{ off, end int64 }

// dataExtents are the ranges of data, adjacent ones together.
func dataExtents(t testing.TB, d backend.Device) (all []extent) {
	t.Helper()
	s := d.(backend.Sparse)
	for off := int64(0); off < d.Size(); {
		at, err := s.NextData(off)
		if errors.Is(err, backend.ErrRange) {
			break
		}
		must(t, err)
		end, err := s.NextHole(at)
		must(t, err)
		if at < off || end <= at || end > d.Size() {
			t.Fatalf("data at %d is from %d to %d", off, at, end)
		}
		all = append(all, extent{at, end})
		off = end
	}
	return all
}

// mapOf is the ranges of data that `qemu-img map` says.
func mapOf(t testing.TB, path string) (all []extent) {
	t.Helper()
	var entries []struct {
		Start, Length int64
		Data, Zero    bool
	}
	must(t, json.Unmarshal(command(t, "qemu-img", "map", "--output=json", "-f", "qcow2", path), &entries))
	for _, e := range entries {
		if !e.Data || e.Zero {
			continue
		}
		if n := len(all); n > 0 && all[n-1].end == e.Start {
			all[n-1].end += e.Length
		} else {
			all = append(all, extent{e.Start, e.Start + e.Length})
		}
	}
	return all
}

// sameMap compares data and holes with `qemu-img map`.
func sameMap(t testing.TB, path string, d backend.Device) {
	t.Helper()
	want, got := mapOf(t, path), dataExtents(t, d)
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Errorf("data extent %d of %d is %v, qemu-img map says %d: %v", i, len(got), at(got, i), len(want), at(want, i))
			return
		}
	}
	var sum int64
	for _, e := range want {
		sum += e.end - e.off
	}
	allocated := backend.Allocated(d)
	if im := d.(*image); im.backing == nil && !im.fileHasHoles() && allocated != sum {
		t.Errorf("%d bytes are allocated, qemu-img map says %d", allocated, sum)
	}
	if allocated < sum && allocated < backend.Allocated(d.(*image).m.file.Device) || allocated > d.Size() {
		t.Errorf("%d bytes of %d are allocated, qemu-img map says %d", allocated, d.Size(), sum)
	}
	r := rand.New(rand.NewPCG(2, uint64(d.Size())))
	for range min(d.Size(), 100) {
		off := r.Int64N(d.Size())
		data, hole := int64(-1), d.Size()
		for _, e := range want {
			if off < e.end {
				if data = max(off, e.off); off >= e.off {
					hole = e.end
				} else {
					hole = off
				}
				break
			}
		}
		if data < 0 {
			hole = off
		}
		s := d.(backend.Sparse)
		if n, err := s.NextData(off); n != data && !(data < 0 && errors.Is(err, backend.ErrRange)) {
			t.Errorf("NextData(%d) is %d, %v, want %d", off, n, err, data)
		}
		if n, err := s.NextHole(off); n != hole || err != nil {
			t.Errorf("NextHole(%d) is %d, %v, want %d", off, n, err, hole)
		}
	}
}

func at(all []extent, i int) any {
	if i < len(all) {
		return all[i]
	}
	return "none"
}

// patch changes bytes of a file.
func patch(t testing.TB, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(b, off)
	must(t, err)
	must(t, f.Close())
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

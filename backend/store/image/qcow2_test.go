package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/format/qcow2"

	"go.uber.org/zap"
)

// formats are those of the tests.
var formats = []backend.Format{qcow2.New()}

// qemuImage makes a qcow2 image; backing is "" or FORMAT:NAME, which need not exist.
func qemuImage(t *testing.T, path string, sizeBytes int64, backing string, options ...string) {
	t.Helper()
	testneed.Tools(t, "qemu-img")
	args := append([]string{"create", "-q", "-f", "qcow2"}, options...)
	if backing != "" {
		format, name, _ := strings.Cut(backing, ":")
		args = append(args, "-u", "-F", format, "-b", name)
	}
	loop.Command(t, "qemu-img", append(args, path, fmt.Sprint(sizeBytes))...)
}

// qemuWrite writes to an image as a guest does.
func qemuWrite(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	testneed.Tools(t, "qemu-io")
	file := filepath.Join(t.TempDir(), "bytes")
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
	out := loop.Command(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d %d", file, off, len(p)), "-c", "flush", path)
	if strings.Contains(out, "fail") || strings.Contains(out, "error") || strings.Contains(out, "align") {
		t.Fatalf("qemu-io: %s", out)
	}
}

// qemuSees is what QEMU reads of an image.
func qemuSees(t *testing.T, path string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	loop.Command(t, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func qcow2Disk(path string) backend.Disk {
	return backend.Disk{VDev: "xvda", Format: "qcow2", Source: path, Mode: backend.ReadWrite}
}

func qcow2Volume(t *testing.T, s *Store, path string) backend.Volume {
	t.Helper()
	volumes, err := s.Volumes(t.Context(), []backend.Disk{qcow2Disk(path)})
	if err != nil || len(volumes) != 1 {
		t.Fatalf("Volumes = %+v, %v", volumes, err)
	}
	return volumes[0]
}

// contents reads all of a volume.
func contents(t *testing.T, s *Store, v backend.Volume) []byte {
	t.Helper()
	d, err := s.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// chainOf3 makes top on mid on a raw base, each with bytes of its own, all in folder.
func chainOf3(t *testing.T, folder string) (top string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(folder, name) }
	sparseImage(t, at("base.raw"), 2<<20, 0, 1<<20) // shorter than what lies on it
	qemuImage(t, at("mid.qcow2"), 3<<20, "raw:base.raw")
	qemuWrite(t, at("mid.qcow2"), bytes.Repeat([]byte("middle "), 10_000), 1<<20)
	qemuImage(t, at("top.qcow2"), 3<<20+512, "qcow2:mid.qcow2")
	qemuWrite(t, at("top.qcow2"), bytes.Repeat([]byte("top "), 10_000), 1<<20+30_000)
	return at("top.qcow2")
}

func TestStore_KeepsContractForQcow2(t *testing.T) {
	const sizeBytes = 3<<20 + 512
	run := func(name string, chained bool, folder func(t *testing.T) string) {
		t.Run(name, func(t *testing.T) {
			base := folder(t)
			clones := canClone(t, base)
			made, path := filepath.Join(base, "made"), "web-01.qcow2"
			if err := os.Mkdir(made, 0o755); err != nil {
				t.Fatal(err)
			}
			if chained {
				path = filepath.Base(chainOf3(t, made))
			} else {
				qemuImage(t, filepath.Join(made, path), sizeBytes, "")
			}
			count := 0
			backendtest.Store(t, func(t *testing.T) backendtest.StoreFixture {
				count++
				folder := filepath.Join(base, fmt.Sprint("images ", count))
				if err := os.CopyFS(folder, os.DirFS(made)); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(folder, path)
				return backendtest.StoreFixture{
					New:       func(t *testing.T) backend.Store { return New([]string{folder}, formats, zap.NewNop()) },
					Disk:      qcow2Disk(path),
					SizeBytes: sizeBytes,
					Missing:   qcow2Disk(filepath.Join(folder, "none.qcow2")),
					Foreign:   []backend.Disk{{VDev: "xvda", Format: "qcow2", Source: "/dev/vg/web-01"}, {VDev: "xvda", Format: "qcow2", Source: "nbd://127.0.0.1/disk"}},
					Write:     func(t *testing.T, p []byte, off int64) { qemuWrite(t, path, p, off) },
					Copies:    !clones,
				}
			})
		})
	}
	run("alone", false, func(t *testing.T) string { return t.TempDir() })
	run("chain of 3", true, func(t *testing.T) string { return t.TempDir() })
	run("chain of 3 on xfs", true, mountedXFS)
}

func TestVolumes_OfAChainAreWhatQEMUReads(t *testing.T) {
	folder := t.TempDir()
	top := chainOf3(t, folder)
	s := New([]string{folder}, formats, nil)
	v := qcow2Volume(t, s, top)
	if v.Err != nil || v.SizeBytes != 3<<20+512 || v.Format != "qcow2" {
		t.Fatalf("Volumes = %+v", v)
	}
	if !bytes.Equal(contents(t, s, v), qemuSees(t, top)) {
		t.Error("the bytes are others than QEMU's")
	}
	for _, name := range []string{"top.qcow2", "mid.qcow2", "base.raw"} {
		before := qcow2Volume(t, s, top)
		if again := qcow2Volume(t, s, top); again != before {
			t.Errorf("Volumes = %+v, then %+v", before, again)
		}
		time.Sleep(20 * time.Millisecond)
		now := time.Now()
		if err := os.Chtimes(filepath.Join(folder, name), now, now); err != nil {
			t.Fatal(err)
		}
		if after := qcow2Volume(t, s, top); after.Generation == before.Generation || !after.ModTime.After(before.ModTime) {
			t.Errorf("after a change of %s: generation %x and %x, time %v and %v", name, before.Generation, after.Generation, before.ModTime, after.ModTime)
		}
	}
}

// The format is the configuration's: what a guest writes into its disk decides nothing.
func TestVolumes_NeverGuessTheFormat(t *testing.T) {
	folder := t.TempDir()
	image, plain := filepath.Join(folder, "image"), filepath.Join(folder, "plain")
	qemuImage(t, image, 1<<20, "raw:/etc/hostname")
	sparseImage(t, plain, 1<<20, 0)
	s := New([]string{"/"}, formats, nil)
	v := volumeOf(t, s, image)
	file, err := os.ReadFile(image)
	if err != nil || !bytes.HasPrefix(file, []byte("QFI\xfb")) {
		t.Fatalf("the image begins with %q, %v", file[:4], err)
	}
	if v.Err != nil || v.Format != "raw" || v.SizeBytes != int64(len(file)) || !bytes.Equal(contents(t, s, v), file) {
		t.Errorf("Volumes = %+v of a raw disk that begins as a qcow2 image", v)
	}
	v = qcow2Volume(t, s, plain)
	if !errors.Is(v.Err, backend.ErrCorrupt) || !strings.Contains(v.Err.Error(), plain) || !strings.Contains(v.Err.Error(), "qcow2") {
		t.Errorf("Err = %v of a qcow2 disk that has no such header", v.Err)
	}
	// A raw backing file is raw, whatever is in it.
	over := filepath.Join(folder, "over")
	qemuImage(t, over, 1<<20, "raw:image")
	if got := contents(t, s, qcow2Volume(t, s, over)); !bytes.Equal(got[:len(file)], file) {
		t.Error("a raw backing file was read as something else")
	}
}

// forgetFormat takes the record of its backing file's format out of an image.
func forgetFormat(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(b, []byte{0xe2, 0x79, 0x2a, 0xca})
	if i < 0 {
		t.Fatal("no format is recorded")
	}
	copy(b[i:], []byte{0x12, 0x34, 0x56, 0x78}) // an extension that nobody knows
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVolumes_NeverGuessABackingFilesFormat(t *testing.T) {
	folder := t.TempDir()
	top := chainOf3(t, folder)
	forgetFormat(t, top)
	s := New([]string{folder}, formats, nil)
	v := qcow2Volume(t, s, top)
	want := "qemu-img rebase -u -f qcow2 -F FORMAT -b mid.qcow2 " + top
	if !errors.Is(v.Err, backend.ErrUnsupported) || !strings.Contains(v.Err.Error(), want) {
		t.Fatalf("Err = %v, want it with %q", v.Err, want)
	}
	// What it says is what helps.
	loop.Command(t, "sh", "-c", strings.Replace(want, "FORMAT", "qcow2", 1))
	v = qcow2Volume(t, s, top)
	if v.Err != nil || !bytes.Equal(contents(t, s, v), qemuSees(t, top)) {
		t.Errorf("after %s: %v", want, v.Err)
	}
	// A format that is not read is refused by name, also one that is only called so to confuse.
	for _, format := range []string{"vmdk", "file", "r\nw"} {
		other := filepath.Join(folder, "other.qcow2")
		qemuImage(t, other, 1<<20, "qcow2:base.raw")
		b, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte("\x00\x00\x00\x05qcow2"), fmt.Appendf(nil, "\x00\x00\x00%c%-5s", len(format), format), 1)
		if err := os.WriteFile(other, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := qcow2Volume(t, s, other).Err; !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprintf("%q", format)) || strings.Contains(err.Error(), "\n") {
			t.Errorf("backing format %q: %v", format, err)
		}
	}
	// A name that a shell would run is not put into a command.
	bad := filepath.Join(folder, "bad.qcow2")
	qemuImage(t, bad, 1<<20, "raw:$(touch x)")
	forgetFormat(t, bad)
	if err := qcow2Volume(t, s, bad).Err; err == nil || !strings.Contains(err.Error(), "-b BACKING ") {
		t.Errorf("Err = %v", err)
	}
}

func TestSnapshot_OfQcow2BecomesInvalidWithItsBackingFile(t *testing.T) {
	folder := t.TempDir()
	top := chainOf3(t, folder)
	base, kept := filepath.Join(folder, "base.raw"), filepath.Join(folder, "kept")
	s := New([]string{folder}, formats, nil)
	want := qemuSees(t, top)
	snap := qcow2Active(t, s, top, "set1")
	stat := func() backend.Snapshot {
		t.Helper()
		snaps, err := s.Snapshots(t.Context())
		if err != nil || len(snaps) != 1 {
			t.Fatalf("Snapshots = %+v, %v", snaps, err)
		}
		return snaps[0]
	}
	valid := func(when string) {
		t.Helper()
		if got := stat(); got.State != backend.SnapshotActive || got.Volume.Err != nil || !bytes.Equal(contents(t, s, got.Volume), want) {
			t.Errorf("%s: %+v", when, got)
		}
	}
	invalid := func(when, why string) {
		t.Helper()
		got := stat()
		if got.State != backend.SnapshotInvalid || got.Volume.Err == nil || !strings.Contains(got.Volume.Err.Error(), why) || !strings.Contains(got.Volume.Err.Error(), base) {
			t.Errorf("%s: %s, %v; want it invalid, with %q", when, got.State, got.Volume.Err, why)
		}
		if d, err := s.Open(t.Context(), got.Volume); err == nil {
			d.Close()
			t.Errorf("%s: it opens", when)
		}
	}
	valid("at first")
	if got := stat().Volume; got.Format != "qcow2" || got.SizeBytes != int64(len(want)) {
		t.Errorf("the snapshot is %+v", got)
	}
	// The image above it may change, and go.
	qemuWrite(t, top, []byte("changed"), 0)
	valid("with another image")
	info, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.Rename(base, kept))
	invalid("without its base", "is gone")
	do(os.WriteFile(base, make([]byte, 2<<20), 0o600))
	do(os.Chtimes(base, info.ModTime(), info.ModTime()))
	invalid("with another base", "replaced")
	do(os.Rename(kept, base))
	valid("with its base again")
	// What is written while it is invalid must not make it so for ever.
	now := time.Now()
	do(os.Chtimes(base, now, now))
	invalid("with a base that was written to", "written to")
	meta := stat().SnapshotMeta
	meta.Hold = true
	do(s.Annotate(t.Context(), snap.With(meta)))
	do(os.Chtimes(base, info.ModTime(), info.ModTime()))
	valid("put back")
	if !stat().Hold {
		t.Error("hold was lost")
	}
	do(os.Truncate(base, 3<<20))
	do(os.Chtimes(base, info.ModTime(), info.ModTime()))
	invalid("with a larger base", "bytes now")
	do(os.Truncate(base, 2<<20))
	do(os.Chtimes(base, info.ModTime(), info.ModTime()))
	valid("with the old size")
	// Another daemon that may not look there says which folder to name.
	other := New(nil, formats, nil)
	other.seen[folder] = true
	snaps, err := other.Snapshots(t.Context())
	if err != nil || len(snaps) != 1 || snaps[0].State != backend.SnapshotInvalid || !strings.Contains(snaps[0].Volume.Err.Error(), "--image-dir="+folder) {
		t.Errorf("Snapshots = %+v, %v", snaps, err)
	}
	do(os.Remove(base))
	do(s.Remove(t.Context(), snap))
	noStray(t, folder)
}

// qcow2Active makes a snapshot of a qcow2 image that is off and carries it to active.
func qcow2Active(t *testing.T, s *Store, path, set string) backend.Snapshot {
	t.Helper()
	req := requestFor(qcow2Volume(t, s, path), set)
	req.Meta.Disk.Format = "qcow2"
	g, err := prepare(t, s, req, false)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	snap, err := s.Snapshot(t.Context(), req, g)
	if err != nil {
		t.Fatal(err)
	}
	if snap.State == backend.SnapshotFilling {
		if err := s.Annotate(t.Context(), snap.With(snap.SnapshotMeta)); err != nil {
			t.Fatal(err)
		}
		if err := s.Fill(t.Context(), snap, g, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Broken(); err != nil {
		t.Fatal(err)
	}
	snap.State = backend.SnapshotActive
	if err := s.Annotate(t.Context(), snap.With(snap.SnapshotMeta)); err != nil {
		t.Fatal(err)
	}
	return snap
}

func TestSnapshot_OfQcow2ClonesAnImageInUse(t *testing.T) {
	folder := mountedXFS(t)
	top := chainOf3(t, folder)
	want := qemuSees(t, top)
	s := New([]string{folder}, formats, nil)
	qemuIO(t, "-f", "qcow2", top)
	v := qcow2Volume(t, s, top)
	if v.Holder == "" || v.Err != nil {
		t.Fatalf("Volumes = %+v", v)
	}
	req := requestFor(v, "set1")
	req.Meta.Disk.Format = "qcow2"
	g, err := prepare(t, s, req, true)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.Snapshot(t.Context(), req, g)
	if err != nil || snap.State != backend.SnapshotPending {
		t.Fatalf("Snapshot = %+v, %v", snap, err)
	}
	if !bytes.Equal(contents(t, s, snap.Volume), want) {
		t.Error("the snapshot has other bytes")
	}
	g.Release()
}

func TestVolumes_WithABackingFileInUseAreInUse(t *testing.T) {
	folder := t.TempDir()
	top := chainOf3(t, folder)
	mid := filepath.Join(folder, "mid.qcow2")
	s := New([]string{folder}, formats, nil)
	req := requestFor(qcow2Volume(t, s, top), "set1")
	req.Meta.Disk.Format = "qcow2"
	writer := qemuIO(t, "-f", "qcow2", mid)
	v := qcow2Volume(t, s, top)
	if !strings.Contains(v.Holder, fmt.Sprintf("qemu-io (pid %d), which writes to its backing file %s", writer.Process.Pid, mid)) || v.Err != nil {
		t.Errorf("Holder = %q, Err = %v", v.Holder, v.Err)
	}
	if _, err := prepare(t, s, req, false); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), mid) || !strings.Contains(err.Error(), "shut that domain down") {
		t.Errorf("Prepare: %v", err)
	}
	if _, err := s.Resize(t.Context(), v, 10<<20); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), mid) {
		t.Errorf("Resize: %v", err)
	}
	stopHelper(writer)
	g, err := prepare(t, s, req, false)
	if err != nil {
		t.Fatal(err)
	}
	qemuWrite(t, mid, []byte("changed"), 0)
	if err := g.Broken(); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), mid) {
		t.Errorf("Broken = %v after a write to a backing file", err)
	}
}

func TestResize_OfQcow2KeepsWhatQEMUReads(t *testing.T) {
	folder := t.TempDir()
	top := chainOf3(t, folder)
	s := New([]string{folder}, formats, nil)
	before := qemuSees(t, top)
	v := qcow2Volume(t, s, top)
	got, err := s.Resize(t.Context(), v, 20<<20+1)
	if err != nil || got != 20<<20+512 {
		t.Fatalf("Resize = %d, %v", got, err)
	}
	after := qemuSees(t, top)
	if int64(len(after)) != got || !bytes.Equal(after[:len(before)], before) || len(bytes.Trim(after[len(before):], "\x00")) != 0 {
		t.Errorf("%d bytes are others than before", len(after))
	}
	if now := qcow2Volume(t, s, top); now.SizeBytes != got || now.Err != nil || !bytes.Equal(contents(t, s, now), after) {
		t.Errorf("Volumes = %+v", now)
	}
	var info struct {
		Backing string `json:"backing-filename"`
		Format  string `json:"backing-filename-format"`
	}
	if err := json.Unmarshal([]byte(loop.Command(t, "qemu-img", "info", "--output=json", top)), &info); err != nil || info.Backing != "mid.qcow2" || info.Format != "qcow2" {
		t.Errorf("qemu-img info: %+v, %v", info, err)
	}
	loop.Command(t, "qemu-img", "check", "-q", "-f", "qcow2", top)
	// What a backing file has past the end of the image does not come up.
	short := filepath.Join(folder, "short.qcow2")
	qemuImage(t, short, 64<<10, "raw:base.raw")
	if got, err := s.Resize(t.Context(), qcow2Volume(t, s, short), 2<<20); err != nil || got != 2<<20 {
		t.Fatalf("Resize = %d, %v", got, err)
	}
	if got := contents(t, s, qcow2Volume(t, s, short)); len(bytes.Trim(got[:64<<10], "\x00")) == 0 || len(bytes.Trim(got[64<<10:], "\x00")) != 0 || !bytes.Equal(got, qemuSees(t, short)) {
		t.Error("an image that was shorter than its backing file shows other bytes")
	}
	// No qemu-img is run on an image whose chain is refused.
	over := filepath.Join(folder, "over.qcow2")
	qemuImage(t, over, 1<<20, "raw:/etc/hostname")
	v = qcow2Volume(t, s, over)
	v.Err = nil
	if _, err := s.Resize(t.Context(), v, 10<<20); !errors.Is(err, backend.ErrAccess) {
		t.Errorf("Resize with a backing file outside: %v", err)
	}
}

func TestResize_SaysWhyQEMUWillNot(t *testing.T) {
	folder := t.TempDir()
	s := New(nil, formats, nil)
	old := filepath.Join(folder, "old.qcow2")
	qemuImage(t, old, 1<<20, "", "-o", "compat=0.10")
	loop.Command(t, "qemu-img", "snapshot", "-c", "one", old)
	if _, err := s.Resize(t.Context(), qcow2Volume(t, s, old), 2<<20); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "compat=1.1") {
		t.Errorf("an old image with snapshots: %v", err)
	}
	loop.Command(t, "qemu-img", "amend", "-q", "-f", "qcow2", "-o", "compat=1.1", old)
	if got, err := s.Resize(t.Context(), qcow2Volume(t, s, old), 2<<20); err != nil || got != 2<<20 {
		t.Errorf("after what it says: %d, %v", got, err)
	}
	small := filepath.Join(folder, "small.qcow2")
	qemuImage(t, small, 1<<20, "", "-o", "cluster_size=512")
	for _, size := range []int64{1 << 50, 1<<63 - 1} {
		if got, err := s.Resize(t.Context(), qcow2Volume(t, s, small), size); !errors.Is(err, backend.ErrNoSpace) {
			t.Errorf("to %d bytes: %d, %v", size, got, err)
		}
	}
	qemuIO(t, "-f", "qcow2", small)
	if _, err := s.Resize(t.Context(), qcow2Volume(t, s, small), 2<<20); !errors.Is(err, backend.ErrBusy) || strings.Contains(err.Error(), "/proc/") || strings.Contains(err.Error(), "\n") {
		t.Errorf("of an image in use: %v", err)
	}
}

package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// active makes a snapshot of an image that is off and carries it to active.
func active(s *Store, path, set string, meta backend.SnapshotMeta) (backend.Snapshot, error) {
	var none backend.Snapshot
	volumes, err := s.Volumes(bg, rawDisks([]string{path}))
	if err != nil {
		return none, err
	}
	req := requestFor(volumes[0], set)
	if meta.Name != "" {
		req.Meta.Name, req.Meta.DomainName = meta.Name, meta.DomainName
	}
	g, err := s.Prepare(bg, []backend.SnapshotRequest{req}, false)
	if err != nil {
		return none, err
	}
	defer g.Release()
	snap, err := s.Snapshot(bg, req, g)
	if err != nil {
		return none, err
	}
	if snap.State == backend.SnapshotFilling {
		if err := s.Annotate(bg, snap.With(snap.SnapshotMeta)); err != nil {
			return none, err
		}
		if err := s.Fill(bg, snap, g, nil); err != nil {
			return none, err
		}
	}
	snap.State = backend.SnapshotActive
	return snap, s.Annotate(bg, snap.With(snap.SnapshotMeta))
}

func mustActive(t *testing.T, s *Store, path, set string) backend.Snapshot {
	t.Helper()
	snap, err := active(s, path, set, backend.SnapshotMeta{})
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// listedAs lists the snapshots by set, with their states.
func listedAs(t *testing.T, s *Store) map[string]backend.SnapshotState {
	t.Helper()
	snaps, err := s.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]backend.SnapshotState{}
	for _, snap := range snaps {
		states[snap.Set] = snap.State
	}
	return states
}

// extents lists where a file has data, by the kernel's word.
func extents(t *testing.T, path string) []int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []int64
	off := int64(0)
	for {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err != nil {
			return all
		}
		if off, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		all = append(all, data, off)
	}
}

func TestFill_KeepsHoles(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	path := filepath.Join(folder, "web-01.img")
	const size = 128<<20 + 1000 // larger than the filesystem
	sparseImage(t, path, size, 1<<20, 100<<20+4096, 101<<20, size-1000)
	s := New(nil, nil, nil)
	snap := mustActive(t, s, path, "set1")
	if got, want := extents(t, snap.Volume.ID), extents(t, path); !slices.Equal(got, want) {
		t.Errorf("the copy has data at %v, the image at %v", got, want)
	}
	loop.Command(t, "cmp", path, snap.Volume.ID)
	var copied, image unix.Stat_t
	if unix.Stat(snap.Volume.ID, &copied) != nil || unix.Stat(path, &image) != nil {
		t.Fatal("cannot stat")
	}
	if copied.Blocks > image.Blocks+16 || copied.Mode&0o777 != 0o400 {
		t.Errorf("the copy has %d blocks and mode %o, the image %d blocks", copied.Blocks, copied.Mode, image.Blocks)
	}
	snaps, err := s.Snapshots(t.Context())
	if err != nil || len(snaps) != 1 || snaps[0].UsedBytes != copied.Blocks*512 {
		t.Errorf("Snapshots = %+v, %v, want one of %d bytes", snaps, err, copied.Blocks*512)
	}
}

func TestSnapshot_ReservesTheSpaceOfACopy(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	path := filepath.Join(folder, "web-01.img")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(nil, nil, nil)
	g, snap := filling(t, s, path, "set1")
	// Fill up what is left: the copy has its space already.
	if err := os.WriteFile(filepath.Join(folder, "filler"), make([]byte, 60<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the filesystem is not full: %v", err)
	}
	if err := s.Fill(t.Context(), snap, g, nil); err != nil {
		t.Errorf("Fill = %v", err)
	}
	loop.Command(t, "cmp", path, snap.Volume.ID)
	// And on the full disk it can be removed.
	if err := s.Remove(t.Context(), snap); err != nil {
		t.Error(err)
	}
	noStray(t, folder)
}

func TestSnapshot_WithoutRoomLeavesNothing(t *testing.T) {
	for name, folder := range map[string]string{
		"ext4": mountedExt4(t, 64<<20),
		"xfs":  mounted(t, 320<<20, "mkfs.xfs", "-q", "-m", "reflink=0"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(folder, "web-01.img")
			_, free, err := space(folder)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, bytes.Repeat([]byte("x"), int(free*6/10)), 0o600); err != nil {
				t.Fatal(err)
			}
			s := New(nil, nil, nil)
			req := requestFor(volumeOf(t, s, path), "set1")
			g, err := prepare(t, s, req, false)
			if !errors.Is(err, backend.ErrNoSpace) || !strings.Contains(err.Error(), fmt.Sprint(req.Origin.SizeBytes)) || !strings.Contains(err.Error(), folder) {
				t.Fatalf("Prepare = %v, %v, want ErrNoSpace with numbers and folder", g, err)
			}
			// The space goes after Prepare looked: Snapshot finds out.
			if err := os.Truncate(path, free*3/10); err != nil {
				t.Fatal(err)
			}
			req = requestFor(volumeOf(t, s, path), "set1")
			g, err = prepare(t, s, req, false)
			if err != nil {
				t.Fatal(err)
			}
			filler := filepath.Join(folder, "filler")
			if err := os.WriteFile(filler, make([]byte, free*5/10), 0o600); err != nil {
				t.Fatal(err)
			}
			before := freeBytes(t, folder)
			if snap, err := s.Snapshot(t.Context(), req, g); !errors.Is(err, backend.ErrNoSpace) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Snapshot = %+v, %v, want ErrNoSpace in one line", snap, err)
			}
			noStray(t, folder)
			if after := freeBytes(t, folder); after < before-64<<10 {
				t.Errorf("%d bytes were free before, %d after", before, after)
			}
		})
	}
}

func TestReserveSpace_SaysWhenTheFilesystemRunsFull(t *testing.T) {
	// The look at f_bavail is led to another filesystem, with room, as if the room had gone after it.
	path := filepath.Join(t.TempDir(), "web-01.img")
	const size = 80 << 20
	from, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := from.Write(bytes.Repeat([]byte("x"), size)); err != nil {
		t.Fatal(err)
	}
	to, err := os.Create(filepath.Join(mountedExt4(t, 64<<20), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := reserveSpace(to, from, path, size); !errors.Is(err, backend.ErrNoSpace) || !strings.Contains(err.Error(), fmt.Sprint(size)) {
		t.Errorf("reserveSpace = %v, want ErrNoSpace with %d", err, size)
	}
}

func freeBytes(t *testing.T, folder string) int64 {
	t.Helper()
	loop.Command(t, "sync", "-f", folder)
	_, free, err := space(folder)
	if err != nil {
		t.Fatal(err)
	}
	return free
}

func TestSnapshot_RefusesAFolderThatIsNotItsOwn(t *testing.T) {
	testneed.Root(t)
	tests := map[string]func(hidden, elsewhere string) error{
		"symlink": func(hidden, elsewhere string) error { return os.Symlink(elsewhere, hidden) },
		"file":    func(hidden, _ string) error { return os.WriteFile(hidden, nil, 0o600) },
		"other owner": func(hidden, _ string) error {
			return errors.Join(os.Mkdir(hidden, 0o700), os.Chown(hidden, 65534, 65534))
		},
		"world writable": func(hidden, _ string) error { return errors.Join(os.Mkdir(hidden, 0o700), os.Chmod(hidden, 0o777)) },
		"set is a symlink": func(hidden, elsewhere string) error {
			return errors.Join(os.Mkdir(hidden, 0o700), os.Symlink(elsewhere, filepath.Join(hidden, "set1")))
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			folder, elsewhere := t.TempDir(), t.TempDir()
			path := filepath.Join(folder, "web-01.img")
			sparseImage(t, path, 1<<20, 0)
			precious := filepath.Join(elsewhere, ".xvda.img.tmp")
			if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			hidden := filepath.Join(folder, hiddenName)
			if err := prepare(hidden, elsewhere); err != nil {
				t.Fatal(err)
			}
			s := New([]string{folder}, nil, nil)
			if snap, err := active(s, path, "set1", backend.SnapshotMeta{}); !errors.Is(err, backend.ErrAccess) || !strings.Contains(err.Error(), hidden) {
				t.Errorf("snapshot = %+v, %v, want ErrAccess with %s", snap, err, hidden)
			}
			if states := listedAs(t, s); len(states) != 0 {
				t.Errorf("Snapshots = %v", states)
			}
			_ = s.Repair(t.Context())
			if b, err := os.ReadFile(precious); string(b) != "precious" {
				t.Errorf("a file elsewhere was touched: %q, %v", b, err)
			}
			if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) != 1 {
				t.Errorf("elsewhere are %v, %v", entries, err)
			}
			snap := backend.Snapshot{Volume: backend.Volume{Store: "image", ID: filepath.Join(hidden, "set1", "xvda.img"), Format: "raw"}}
			if _, err := s.Open(t.Context(), snap.Volume); err == nil {
				t.Error("Open follows it")
			}
		})
	}
}

func TestSnapshot_RefusesNamesThatCannotBeFiles(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New(nil, nil, nil)
	good := requestFor(volumeOf(t, s, path), "set1")
	tests := map[string]func(r *backend.SnapshotRequest){
		"vdev with slash": func(r *backend.SnapshotRequest) { r.Meta.Disk.VDev = "../x" },
		"vdev of dots":    func(r *backend.SnapshotRequest) { r.Meta.Disk.VDev = ".." },
		"vdev empty":      func(r *backend.SnapshotRequest) { r.Meta.Disk.VDev = "" },
		"vdev with NUL":   func(r *backend.SnapshotRequest) { r.Meta.Disk.VDev = "a\x00b" },
		"set with slash":  func(r *backend.SnapshotRequest) { r.Meta.Set = "a/b" },
		"set of a dot":    func(r *backend.SnapshotRequest) { r.Meta.Set = "." },
		"set too long":    func(r *backend.SnapshotRequest) { r.Meta.Set = strings.Repeat("a", 200) },
		"name with slash": func(r *backend.SnapshotRequest) { r.Meta.Name = "a/b" },
		"name empty":      func(r *backend.SnapshotRequest) { r.Meta.Name = "" },
		"no disks":        func(r *backend.SnapshotRequest) { r.Meta.DiskCount = 0 },
		"other store's":   func(r *backend.SnapshotRequest) { r.Origin.Store = "lvm" },
		"odd consistency": func(r *backend.SnapshotRequest) { r.Meta.Consistency = "perfect" },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			req := good
			spoil(&req)
			if g, err := prepare(t, s, req, false); !errors.Is(err, backend.ErrInvalid) {
				t.Errorf("Prepare = %v, %v, want ErrInvalid", g, err)
			}
			noStray(t, folder)
		})
	}
}

func TestSnapshot_OfASnapshotIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New(nil, nil, nil)
	snap := mustActive(t, s, path, "set1")
	req := requestFor(volumeOf(t, s, snap.Volume.ID), "set2")
	if g, err := prepare(t, s, req, false); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("Prepare = %v, %v, want ErrUnsupported", g, err)
	}
	if _, err := s.Resize(t.Context(), snap.Volume, 2<<20); !errors.Is(err, backend.ErrReadOnly) {
		t.Errorf("Resize = %v, want ErrReadOnly", err)
	}
}

func TestSnapshot_KeepsNamesThatAreNotUTF8(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "b\xe4der")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "\xff\n.img")
	sparseImage(t, path, 1<<20)
	s := New([]string{folder}, nil, nil)
	want := backend.SnapshotMeta{Name: "m\xe4rz \u2028", DomainName: "w\xfcb"}
	if _, err := active(s, path, "set1", want); err != nil {
		t.Fatal(err)
	}
	snaps, err := New([]string{folder}, nil, nil).Snapshots(t.Context())
	if err != nil || len(snaps) != 1 {
		t.Fatalf("Snapshots = %+v, %v", snaps, err)
	}
	if got := snaps[0]; got.Name != want.Name || got.DomainName != want.DomainName || got.Origin != path || got.Disk.Source != path {
		t.Errorf("Snapshots = %+v, want %+v of %q", got, want, path)
	}
}

func TestSnapshots_ListsWhatIsDamagedAsInvalid(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New([]string{folder}, nil, nil)
	for _, set := range []string{"good", "gone", "short", "link"} {
		mustActive(t, s, path, set)
	}
	at := func(set string) string { return filepath.Join(folder, hiddenName, set, "xvda.img") }
	for _, err := range []error{
		os.Remove(at("gone")),
		os.Chmod(at("short"), 0o600),
		os.Truncate(at("short"), 5),
		os.Remove(at("link")),
		os.Symlink("/etc/passwd", at("link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, store := range []*Store{s, New([]string{folder}, nil, nil)} {
		snaps, err := store.Snapshots(t.Context())
		if err != nil || len(snaps) != 4 {
			t.Fatalf("Snapshots = %+v, %v", snaps, err)
		}
		for _, snap := range snaps {
			if good := snap.Set == "good"; good != (snap.State == backend.SnapshotActive) || good != (snap.Volume.Err == nil) {
				t.Errorf("%s is %s: %v", snap.Set, snap.State, snap.Volume.Err)
			}
		}
		if _, err := store.Open(t.Context(), backend.Volume{Store: "image", ID: at("link")}); err == nil {
			t.Error("Open follows a link in place of a copy")
		}
	}
	snaps, _ := s.Snapshots(t.Context())
	for _, snap := range snaps {
		if err := s.Remove(t.Context(), snap); err != nil {
			t.Error(err)
		}
	}
	noStray(t, folder)
}

func TestSnapshots_ListsWhileTheyChange(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	core, logs := observer.New(zap.WarnLevel)
	s := New([]string{folder}, nil, zap.New(core))
	mustActive(t, s, path, "kept")
	done := make(chan struct{})
	var group sync.WaitGroup
	for _, lister := range []*Store{s, New([]string{folder}, nil, zap.New(core))} {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				select {
				case <-done:
					return
				default:
				}
				snaps, err := lister.Snapshots(bg)
				if err != nil {
					t.Error(err)
				}
				kept := false
				for _, snap := range snaps {
					kept = kept || snap.Set == "kept"
					if snap.State == backend.SnapshotInvalid || snap.Volume.Err != nil && snap.State != backend.SnapshotRemoving {
						t.Errorf("%s is %s: %v", snap.Set, snap.State, snap.Volume.Err)
					}
				}
				if !kept {
					t.Error("a snapshot that nobody touched is not listed")
				}
			}
		}()
	}
	for i := range 12 {
		snap := mustActive(t, s, path, fmt.Sprint("set", i%2))
		if err := s.Remove(bg, snap); err != nil {
			t.Error(err)
		}
	}
	close(done)
	group.Wait()
	for _, entry := range logs.All() {
		t.Errorf("logged: %s %v", entry.Message, entry.ContextMap())
	}
}

func TestSnapshots_WarnsOnce(t *testing.T) {
	folder := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(folder, hiddenName)); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	s := New([]string{folder}, nil, zap.New(core))
	for range 3 {
		if states := listedAs(t, s); len(states) != 0 {
			t.Errorf("Snapshots = %v", states)
		}
	}
	if logs.Len() != 1 {
		t.Errorf("logged %d times: %v, want once", logs.Len(), logs.All())
	}
}

func TestSnapshots_SkipsManifestsThatCannotBeUsed(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New([]string{folder}, nil, nil)
	mustActive(t, s, path, "good")
	good, err := os.ReadFile(filepath.Join(folder, hiddenName, "good", "xvda.json"))
	if err != nil {
		t.Fatal(err)
	}
	change := func(key string, value any) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		m["set"] = "bad"
		m[key] = value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tests := map[string][]byte{
		"empty":         nil,
		"not JSON":      []byte("x"),
		"cut":           good[:len(good)/2],
		"other set's":   good,
		"huge":          bytes.Repeat([]byte(" "), maxManifestBytes+1),
		"deep":          bytes.Repeat([]byte("["), maxManifestBytes-1),
		"newer":         change("version", 2),
		"negative size": change("size_bytes", -1),
		"odd name":      change("name", "../x"),
		"odd state":     change("state", "fine"),
		"no disks":      change("disk_count", 0),
		"year":          change("created", "99999-01-01T00:00:00Z"),
		"origin":        change("origin", "relative"),
		"disk":          change("disk", map[string]string{"vdev": "xvdb"}),
	}
	set := filepath.Join(folder, hiddenName, "bad")
	if err := os.Mkdir(set, 0o700); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(set, "xvda.json")
	if err := os.WriteFile(filepath.Join(set, "xvda.img"), make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(manifest, b, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if states := listedAs(t, s); len(states) != 1 || states["good"] != backend.SnapshotActive {
					t.Errorf("Snapshots = %v, want the good one only", states)
				}
			}
			if err := s.Repair(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(set, "xvda.img")); err != nil {
				t.Errorf("Repair took the copy: %v", err)
			}
			os.Remove(manifest)
		})
	}
	if err := os.WriteFile(manifest, change("hold", true), 0o600); err != nil {
		t.Fatal(err)
	}
	if states := listedAs(t, s); states["bad"] != backend.SnapshotActive {
		t.Errorf("Snapshots = %v: a sound manifest is not listed, so the tests above show nothing", states)
	}
}

func TestRepair_RemovesOnlyWhatIsItsOwn(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New([]string{folder}, nil, nil)
	mustActive(t, s, path, "good")
	hidden := filepath.Join(folder, hiddenName)
	for _, set := range []string{"stray", "empty", "mine"} {
		if err := os.Mkdir(filepath.Join(hidden, set), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	gone := []string{"good/.xvda.json.tmp", "good/.xvdb.img.tmp", "good/xvdb.img", "stray/xvda.img", "stray/.xvda.img.tmp"}
	kept := []string{"mine/notes.txt", "mine/.hidden", "mine/.x.tmp", "../.xvda.img.tmp", "../web-02.img", "good/xvda.img", "good/xvda.json"}
	for _, name := range slices.Concat(gone, kept[:5]) {
		if err := os.WriteFile(filepath.Join(hidden, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(gone, []string{"stray", "empty"}) {
		if _, err := os.Lstat(filepath.Join(hidden, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", name, err)
		}
	}
	for _, name := range kept {
		if _, err := os.Lstat(filepath.Join(hidden, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}

func TestResize_NamesTheLargestSize(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New(nil, nil, nil)
	v := volumeOf(t, s, path)
	_, err := s.Resize(t.Context(), v, 1<<62)
	if !errors.Is(err, backend.ErrNoSpace) || !strings.Contains(err.Error(), "bytes at most") {
		t.Fatalf("Resize to 4 EiB = %v, want ErrNoSpace with the limit", err)
	}
	var limit int64
	if _, err := fmt.Sscanf(err.Error()[strings.Index(err.Error(), "can have ")+9:], "%d bytes", &limit); err != nil {
		t.Fatal(err)
	}
	limit &^= 511
	if got, err := s.Resize(t.Context(), v, limit); err != nil || got != limit {
		t.Errorf("Resize to the limit %d = %d, %v", limit, got, err)
	}
}

func FuzzParseManifest(f *testing.F) {
	folder := f.TempDir()
	path := filepath.Join(folder, "\xff.img")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		f.Fatal(err)
	}
	s := New([]string{folder}, nil, nil)
	if _, err := active(s, path, "set1", backend.SnapshotMeta{}); err != nil {
		f.Fatal(err)
	}
	seed, err := os.ReadFile(filepath.Join(folder, hiddenName, "set1", "xvda.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b, "set1", "xvda")
		if err != nil {
			return
		}
		// What is accepted can be written again, and means the same.
		again, err := json.Marshal(newManifest(m.meta(), string(m.Origin), m.SizeBytes))
		if err != nil {
			t.Fatal(err)
		}
		m2, err := parseManifest(again, "set1", "xvda")
		if err != nil || m2.meta().Name != m.meta().Name || m2.Origin != m.Origin || !m2.Created.Equal(m.Created) {
			t.Errorf("%+v became %+v, %v", m, m2, err)
		}
	})
}

func TestUnlinkedFile_LeavesNothing(t *testing.T) {
	path := t.TempDir()
	folder, err := openFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	f, err := unlinkedFile(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	noStray(t, path)
}

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"
)

// writeHelper opens an image for writing, writes to it and says so.
func writeHelper(args []string) error {
	f, err := os.OpenFile(args[0], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("torn"), 0); err != nil {
		return err
	}
	fmt.Println("written")
	return f.Close()
}

// holdHelper keeps an image open for writing.
func holdHelper(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("open")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func rawDisks(paths []string) []backend.Disk {
	var disks []backend.Disk
	for _, path := range paths {
		disks = append(disks, backend.Disk{VDev: "xvda", Source: path, Mode: backend.ReadWrite})
	}
	return disks
}

// requestFor asks for a snapshot of an image.
func requestFor(v backend.Volume, set string) backend.SnapshotRequest {
	return backend.SnapshotRequest{Origin: v, Meta: backend.SnapshotMeta{
		Set:        set,
		Name:       "nightly",
		DomainName: "web-01",
		Disk:       backend.Disk{VDev: "xvda", Source: v.ID, Mode: backend.ReadWrite},
		DiskCount:  1,
		Created:    time.Unix(1_790_000_000, 0).UTC(),
	}}
}

// prepare calls Prepare for one image; the guard is released when the test ends at the latest.
func prepare(t *testing.T, s *Store, req backend.SnapshotRequest, running bool) (backend.Guard, error) {
	t.Helper()
	g, err := s.Prepare(t.Context(), []backend.SnapshotRequest{req}, running)
	if g != nil {
		t.Cleanup(g.Release)
	}
	return g, err
}

// filling makes a snapshot that must be copied.
func filling(t *testing.T, s *Store, path, set string) (backend.Guard, backend.Snapshot) {
	t.Helper()
	s.noReflink = true
	req := requestFor(volumeOf(t, s, path), set)
	g, err := prepare(t, s, req, false)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.Snapshot(t.Context(), req, g)
	if err != nil {
		t.Fatal(err)
	}
	if snap.State != backend.SnapshotFilling {
		t.Fatalf("state is %q, want filling", snap.State)
	}
	if !g.Exclusive() {
		t.Fatal("the guard is not exclusive")
	}
	meta := snap.SnapshotMeta
	meta.State = backend.SnapshotFilling
	if err := s.Annotate(t.Context(), snap.With(meta)); err != nil {
		t.Fatal(err)
	}
	return g, snap
}

// noStray fails if anything is left beside the images of a folder.
func noStray(t *testing.T, folder string) {
	t.Helper()
	hidden := filepath.Join(folder, hiddenName)
	filepath.Walk(hidden, func(path string, _ os.FileInfo, err error) error {
		if err == nil {
			t.Errorf("%s is left", path)
		}
		return nil
	})
}

// nthErr is a context that calls f when it is asked for the n-th time whether it ended, as Fill does for each chunk.
type nthErr struct {
	context.Context
	n int
	f func()
}

func (c *nthErr) Err() error {
	if c.n--; c.n == 0 {
		c.f()
	}
	return c.Context.Err()
}

func TestFill_EndsWhenAWriterAppears(t *testing.T) {
	for _, kind := range []string{"lease", "watch"} {
		for _, chunk := range []int{1, 3, 6} {
			t.Run(fmt.Sprintf("%s_at_chunk_%d_of_6", kind, chunk), func(t *testing.T) {
				folder := t.TempDir()
				path := filepath.Join(folder, "web-01.img")
				if err := os.WriteFile(path, make([]byte, 6*chunkBytes), 0o600); err != nil {
					t.Fatal(err)
				}
				s := New(nil, nil, nil)
				s.noLease = kind == "watch"
				g, snap := filling(t, s, path, "set1")
				written := make(chan error, 1)
				ctx := &nthErr{Context: t.Context(), n: chunk, f: func() {
					cmd := startHelper(t, kind == "watch", "write", path)
					for start := time.Now(); g.Broken() == nil; time.Sleep(time.Millisecond) {
						if time.Since(start) > 10*time.Second {
							t.Error("the guard does not notice")
							break
						}
					}
					go func() { written <- cmd.Wait() }()
				}}
				err := s.Fill(ctx, snap, g, nil)
				if !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), path) {
					t.Errorf("Fill = %v, want ErrBusy with the path", err)
				}
				if ctx.n < 0 {
					t.Errorf("Fill went on for %d chunks", -ctx.n)
				}
				meta := snap.SnapshotMeta
				meta.State = backend.SnapshotActive
				if err := s.Annotate(t.Context(), snap.With(meta)); !errors.Is(err, backend.ErrInvalid) {
					t.Errorf("Annotate as active = %v, want ErrInvalid", err)
				}
				g.Release()
				select {
				case err := <-written:
					if err != nil {
						t.Errorf("the writer: %v", err)
					}
				case <-time.After(5 * time.Second):
					t.Error("the writer does not get through")
				}
				if err := s.Remove(t.Context(), snap); err != nil {
					t.Error(err)
				}
				noStray(t, folder)
			})
		}
	}
}

func TestFill_EndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	if err := os.WriteFile(path, make([]byte, 4*chunkBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(nil, nil, nil)
	g, snap := filling(t, s, path, "set1")
	inner, cancel := context.WithCancel(t.Context())
	defer cancel()
	ctx := &nthErr{Context: inner, n: 2, f: cancel}
	if err := s.Fill(ctx, snap, g, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Fill = %v, want context.Canceled", err)
	}
}

func TestFill_IsDoneByOneDaemonOnly(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	if err := os.WriteFile(path, make([]byte, 4*chunkBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(nil, nil, nil)
	g, snap := filling(t, s, path, "set1")
	ctx := &nthErr{Context: t.Context(), n: 2, f: func() {
		other := New([]string{folder}, nil, nil)
		if err := other.Remove(t.Context(), snap); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("another daemon's Remove = %v, want ErrBusy", err)
		}
		if err := other.Repair(t.Context()); err != nil {
			t.Error(err)
		}
	}}
	if err := s.Fill(ctx, snap, g, nil); err != nil {
		t.Errorf("Fill = %v", err)
	}
}

func TestPrepare_RefusesToCopyAnImageInUse(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New(nil, nil, nil)
	for _, noLease := range []bool{false, true} {
		s.noLease = noLease
		holder := startHelper(t, true, "hold", path)
		req := requestFor(volumeOf(t, s, path), "set1")
		g, err := prepare(t, s, req, false)
		pid := fmt.Sprintf("(pid %d)", holder.Process.Pid)
		if !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), pid) || !strings.Contains(err.Error(), "ext4") {
			t.Errorf("Prepare = %v, %v, want ErrBusy with path, %q and ext4", g, err, pid)
		}
		stopHelper(holder)
	}
	s.noLease = false
	holder := startHelper(t, true, "lock", "ofd", path)
	req := requestFor(volumeOf(t, s, path), "set1")
	g, err := prepare(t, s, req, true)
	pid := fmt.Sprintf("(pid %d)", holder.Process.Pid)
	if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), pid) || !strings.Contains(err.Error(), "shut web-01 down") {
		t.Errorf("Prepare while it runs = %v, %v, want ErrUnsupported with %q", g, err, pid)
	}
	stopHelper(holder)
	req = requestFor(volumeOf(t, s, path), "set1")
	if g, err := prepare(t, s, req, true); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("Prepare while it runs, unused = %v, %v, want ErrUnsupported", g, err)
	}
	if _, err := prepare(t, s, req, false); err != nil {
		t.Errorf("Prepare of an unused image = %v", err)
	}
	noStray(t, folder)
}

func TestPrepare_SeesALoopDeviceAsAWriter(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	device := strings.TrimSpace(loop.Command(t, "losetup", "--find", "--show", path))
	t.Cleanup(func() { loop.Retry(t, "losetup", "-d", device) })
	s := New(nil, nil, nil)
	req := requestFor(volumeOf(t, s, path), "set1")
	g, err := prepare(t, s, req, false)
	if !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), device) {
		t.Errorf("Prepare = %v, %v, want ErrBusy with %s", g, err, device)
	}
}

func TestSnapshot_ClonesAnImageInUse(t *testing.T) {
	folder := mountedXFS(t)
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New(nil, nil, nil)
	startHelper(t, true, "hold", path)
	for i, running := range []bool{true, false} {
		req := requestFor(volumeOf(t, s, path), fmt.Sprint("set", i))
		g, err := prepare(t, s, req, running)
		if err != nil {
			t.Fatal(err)
		}
		if g.Exclusive() {
			t.Error("a guard of an image in use is exclusive")
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := s.Snapshot(t.Context(), req, g)
		if err != nil || snap.State != backend.SnapshotPending {
			t.Fatalf("Snapshot = %+v, %v", snap, err)
		}
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(snap.Volume.ID); err != nil || string(got) != string(want) {
			t.Errorf("the copy has other bytes (%v)", err)
		}
		sparseImage(t, path, 1<<20, 0, 1<<19)
	}
}

func TestSnapshot_ClonesAnImageWithoutCopyOnWrite(t *testing.T) {
	testneed.Tools(t, "chattr")
	folder := mounted(t, 256<<20, "mkfs.btrfs", "-q")
	loop.Command(t, "chattr", "+C", folder) // as libvirt does for image folders
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	loop.Command(t, "chattr", "-C", folder)
	s := New(nil, nil, nil)
	req := requestFor(volumeOf(t, s, path), "set1")
	g, err := prepare(t, s, req, true)
	if err != nil {
		t.Fatal(err)
	}
	if snap, err := s.Snapshot(t.Context(), req, g); err != nil || snap.State != backend.SnapshotPending {
		t.Errorf("Snapshot = %+v, %v", snap, err)
	}
}

func TestResize_WaitsForACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New(nil, nil, nil)
	v := volumeOf(t, s, path)
	g, _ := filling(t, s, path, "set1")
	for _, store := range []*Store{s, New(nil, nil, nil)} {
		if _, err := store.Resize(t.Context(), v, 2<<20); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("Resize = %v, want ErrBusy", err)
		}
		if store == s {
			if err := g.Broken(); err != nil {
				t.Errorf("Resize broke the guard: %v", err)
			}
		}
	}
	g.Release()
	if got, err := s.Resize(t.Context(), v, 2<<20); got != 2<<20 || err != nil {
		t.Errorf("Resize after it = %d, %v", got, err)
	}
}

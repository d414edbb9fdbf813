package vfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// fileDevice is a regular file of the host as a device.
type fileDevice struct {
	*os.File
	size int64
}

func (d fileDevice) Size() int64 { return d.size }

func (d fileDevice) Locate(off, length int64) (backend.Location, bool) {
	if off < 0 || off >= d.size {
		return backend.Location{}, false
	}
	return backend.Location{FD: d.Fd(), Offset: off, Length: min(length, d.size-off)}, true
}

func (d fileDevice) seek(off int64, whence int) (int64, error) {
	n, err := unix.Seek(int(d.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return 0, backend.ErrRange
	}
	return n, err
}

func (d fileDevice) NextData(off int64) (int64, error) { return d.seek(off, unix.SEEK_DATA) }
func (d fileDevice) NextHole(off int64) (int64, error) { return d.seek(off, unix.SEEK_HOLE) }

func (d fileDevice) Allocated() int64 {
	var st unix.Stat_t
	if unix.Fstat(int(d.Fd()), &st) != nil {
		return d.size
	}
	return st.Blocks * 512
}

type fullStore interface {
	backend.Store
	backend.Snapshotter
	backend.Filler
	backend.Resizer
}

// allStore opens one image file for whatever volume.
type allStore struct {
	fullStore
	path string
}

func (s allStore) Open(ctx context.Context, v backend.Volume) (backend.Device, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, backend.ErrIO)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return fileDevice{f, st.Size()}, nil
}

// fileRig mounts a host all of whose disks are one sparse image file.
func fileRig(t *testing.T, noPass bool) (r *rig, image []byte) {
	t.Helper()
	path := t.TempDir() + "/image"
	image = make([]byte, 8*MiB)
	copy(image[MiB:], pattern(2*MiB+5000, 9))
	copy(image[6*MiB:], pattern(100, 8))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(int64(len(image)))
	f.WriteAt(image[MiB:3*MiB+5000], MiB)
	f.WriteAt(image[6*MiB:6*MiB+100], 6*MiB)
	r = newRigWith(t, rigOptions{noPass: noPass, store: func(s backend.Store) backend.Store {
		return allStore{s.(fullStore), path}
	}})
	r.Store.AddVolume("/images/web01-xvda", image)
	r.mkdir("snapshots/web01/one")
	return r, image
}

func TestRaw_IsByteEqualHoweverItIsRead(t *testing.T) {
	for _, noPass := range []bool{false, true} {
		t.Run(fmt.Sprintf("without passthrough %v", noPass), func(t *testing.T) {
			r, image := fileRig(t, noPass)
			const raw = "snapshots/web01/one/disks/xvda/raw"
			st := r.stat(raw)
			if st.Size != int64(len(image)) || st.Blocks*512 > 3*MiB || st.Blocks == 0 {
				t.Errorf("st_size %d, st_blocks %d", st.Size, st.Blocks)
			}
			var wg sync.WaitGroup
			for i := range 3 {
				wg.Go(func() {
					f, err := os.Open(r.path(raw))
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					got, err := io.ReadAll(f)
					if err != nil || !bytes.Equal(got, image) {
						t.Errorf("reader %d: %d bytes, %v", i, len(got), err)
					}
					for _, off := range []int{0, 1, MiB - 3, MiB, 3*MiB + 4999, 6 * MiB, 8*MiB - 1} {
						for _, n := range []int{1, 4097, 70000, 2 * MiB} {
							n = min(n, len(image)-off)
							equalFile(t, f, int64(off), image[off:off+n])
						}
					}
				})
			}
			wg.Wait()
			f, err := os.Open(r.path(raw))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, c := range []struct {
				off    int64
				whence int
				want   int64
			}{{0, unix.SEEK_DATA, MiB}, {MiB, unix.SEEK_HOLE, 3*MiB + 8192}, {4 * MiB, unix.SEEK_DATA, 6 * MiB}, {7 * MiB, unix.SEEK_HOLE, 7 * MiB}} {
				if got, err := unix.Seek(int(f.Fd()), c.off, c.whence); err != nil || got != c.want {
					t.Errorf("lseek(%d, %d) = %d, %v, want %d", c.off, c.whence, got, err, c.want)
				}
			}
			if _, err := unix.Seek(int(f.Fd()), 7*MiB, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
				t.Errorf("SEEK_DATA after the last: %v", err)
			}
			if !noPass && r.srv.fs.noPass.Load() && os.Geteuid() == 0 {
				t.Log("the kernel has no passthrough: only the other way was tested")
			}
			// A live disk of the same bytes, at the same time.
			if got := r.read("xenstore/web01/disks/xvda/raw"); got != string(image) {
				t.Error("the live disk's raw has other bytes")
			}
			if strings.Contains(r.read("xenstore/web01/last_error"), "raw") {
				t.Error(r.read("xenstore/web01/last_error"))
			}
		})
	}
}

// changingStore is an allStore whose file may be another one the next time.
type changingStore struct {
	fullStore
	path *atomic.Pointer[string]
}

func (s changingStore) Open(ctx context.Context, v backend.Volume) (backend.Device, error) {
	return allStore{s.fullStore, *s.path.Load()}.Open(ctx, v)
}

// The bytes of an image in a format may all lie in one file, that behind it, until the guest writes.
func TestRaw_OfAnImageInAFormatFollowsItsChanges(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b byte) string {
		if err := os.WriteFile(dir+"/"+name, bytes.Repeat([]byte{b}, MiB), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir + "/" + name
	}
	before, after := write("before", 'b'), write("after", 'a')
	path := new(atomic.Pointer[string])
	path.Store(&before)
	r := newRigWith(t, rigOptions{store: func(s backend.Store) backend.Store {
		return changingStore{s.(fullStore), path}
	}})
	r.Store.AddVolume("/images/web01-xvda", make([]byte, MiB))
	r.Hypervisor.Change("web01", func(d *backend.Domain) { d.Disks[0].Format = "qcow2" })
	within(t, time.Second, "the format is known", func() bool {
		return strings.TrimSpace(r.read("xenstore/web01/disks/xvda/format")) == "qcow2"
	})
	f, err := os.Open(r.path("xenstore/web01/disks/xvda/raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first := func() byte {
		t.Helper()
		got := make([]byte, MiB)
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		return got[0]
	}
	if got := first(); got != 'b' {
		t.Fatalf("read %q", got)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 4 { // others read, and look for holes, while it changes
		wg.Go(func() {
			for range 200 {
				if _, err := f.ReadAt(make([]byte, 70_000), 5); err != nil {
					t.Error(err)
				}
				if n, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); n != MiB || err != nil {
					t.Errorf("SEEK_HOLE = %d, %v", n, err)
				}
			}
		})
	}
	path.Store(&after)
	r.Store.Write("/images/web01-xvda", 0, []byte("changed"))
	within(t, 2*time.Second, "what was open before the change shows it", func() bool { return first() == 'a' })
}

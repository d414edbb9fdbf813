package blockdev

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/loop"

	"golang.org/x/sys/unix"
)

func TestReadAt_GoesPastThePageCache(t *testing.T) {
	device, file := loop.Device(t, 1<<20)
	loop.Write(t, file, bytes.Repeat([]byte("old."), 1024), 0)
	d, err := Open(device, Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buffered, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer buffered.Close()
	read := func(r io.ReaderAt) string {
		b := make([]byte, 4)
		if _, err := r.ReadAt(b, 4); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := read(buffered) + read(d); got != "old.old." {
		t.Fatalf("read %q", got)
	}
	loop.Write(t, file, bytes.Repeat([]byte("new."), 1024), 0) // behind the device's page cache, as a guest does
	if got := read(d); got != "new." {
		t.Errorf("read %q, want what is there now", got)
	}
	if got := read(buffered); got != "old." {
		t.Errorf("a buffered read gives %q: this test shows nothing", got)
	}
}

// eachWay runs a test on a device that is read past the page cache, and on one read through it.
func eachWay(t *testing.T, f func(t *testing.T, o Options)) {
	t.Run("direct", func(t *testing.T) { f(t, Options{Direct: true}) })
	t.Run("buffered", func(t *testing.T) { f(t, Options{}) })
}

func TestReadAt_IsRightForAnyAlignment(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		const size = 1 << 20
		device, file := loop.Device(t, size, "--sector-size", sector)
		want := make([]byte, size)
		rand.NewChaCha8([32]byte{1}).Read(want)
		loop.Write(t, file, want, 0)
		eachWay(t, func(t *testing.T, o Options) {
			d, err := Open(device, o)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			r := rand.New(rand.NewPCG(1, 2))
			buf := alignedBytes(bounceBytes*3, maxAlign)
			for i := range 400 {
				off, length := r.IntN(size), 1+r.IntN(bounceBytes*2)
				skip := r.IntN(4096)
				if i%4 == 0 {
					off, skip = off&^4095, 0
				}
				b := buf[skip : skip+length]
				n, err := d.ReadAt(b, int64(off))
				wantN := min(length, size-off)
				if n != wantN || (err == io.EOF) != (wantN < length) || err != nil && err != io.EOF {
					t.Fatalf("ReadAt(%d bytes at %d) = %d, %v, want %d", length, off, n, err, wantN)
				}
				if !bytes.Equal(b[:n], want[off:off+n]) {
					t.Fatalf("ReadAt(%d bytes at %d into %d): wrong bytes", length, off, skip)
				}
			}
		})
	}
}

func TestReadAt_SaysThatADeviceShrank(t *testing.T) {
	eachWay(t, func(t *testing.T, o Options) {
		device, file := loop.Device(t, 1<<20)
		d, err := Open(device, o)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := os.Truncate(file, 512<<10); err != nil {
			t.Fatal(err)
		}
		loop.Command(t, "losetup", "-c", device)
		for _, b := range [][]byte{make([]byte, 1000), alignedBytes(8192, 4096)} {
			if n, err := d.ReadAt(b, 600<<10); n != 0 || !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), device) {
				t.Errorf("ReadAt = %d, %v, want ErrIO", n, err)
			}
			if n, err := d.ReadAt(b, 512<<10-512); n != 512 || !errors.Is(err, backend.ErrIO) {
				t.Errorf("ReadAt over the new end = %d, %v, want 512 bytes and ErrIO", n, err)
			}
		}
	})
}

func TestReadAt_KnowsTheBoundsOfADevice(t *testing.T) {
	device, _ := loop.Device(t, 1<<20)
	eachWay(t, func(t *testing.T, o Options) {
		d, err := Open(device, o)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 512)
		if d.Size() != 1<<20 {
			t.Errorf("Size = %d", d.Size())
		}
		if n, err := d.ReadAt(b, -1); n != 0 || !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("ReadAt(-1) = %d, %v", n, err)
		}
		for _, off := range []int64{1 << 20, 1 << 62} {
			if n, err := d.ReadAt(b, off); n != 0 || err != io.EOF {
				t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
			}
		}
		if n, err := d.ReadAt(nil, 0); n != 0 || err != nil {
			t.Errorf("ReadAt of nothing = %d, %v", n, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n, err := d.ReadAt(b, 0); n != 0 || !errors.Is(err, backend.ErrStale) {
			t.Errorf("ReadAt of what is closed = %d, %v", n, err)
		}
	})
}

func TestLocate_IsOfBufferedDevicesOnly(t *testing.T) {
	device, _ := loop.Device(t, 1<<20)
	live, err := Open(device, Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if _, ok := live.(backend.Locator); ok {
		t.Error("a device that is to be read past the page cache can be spliced")
	}
	frozen, err := Open(device, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Close()
	l := frozen.(backend.Locator)
	loc, ok := l.Locate(1<<20-100, 4096)
	if !ok || loc.Offset != 1<<20-100 || loc.Length != 100 {
		t.Errorf("Locate over the end = %+v, %t", loc, ok)
	}
	for _, c := range [][2]int64{{-1, 1}, {1 << 20, 1}, {1 << 62, 1}, {0, 0}, {0, -1}} {
		if loc, ok := l.Locate(c[0], c[1]); ok {
			t.Errorf("Locate(%d, %d) = %+v", c[0], c[1], loc)
		}
	}
}

func TestOpen_TakesBlockDevicesOnly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hints := map[unix.Errno]string{unix.ENOENT: "attach it"}
	for path, want := range map[string]error{file: backend.ErrInvalid, "/dev/null": backend.ErrInvalid, file + ".none": backend.ErrNotExist} {
		eachWay(t, func(t *testing.T, o Options) {
			o.Hints = hints
			if d, err := Open(path, o); !errors.Is(err, want) || !strings.Contains(err.Error(), path) || (want == backend.ErrNotExist) != strings.Contains(err.Error(), "attach it") {
				t.Errorf("Open(%s) = %v, %v, want %v", path, d, err, want)
			}
		})
	}
}

package phy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/testneed"
)

// helperEnv makes the test binary be another process, which has a device open exclusively.
const helperEnv = "DOMFS_PHY_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) == "" {
		os.Exit(m.Run())
	}
	f, err := os.OpenFile(os.Args[1], os.O_RDWR|syscall.O_EXCL, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer f.Close()
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
}

// loopDevice makes a block device of some size, and the file behind it.
func loopDevice(t *testing.T, size int64, args ...string) (device, file string) {
	t.Helper()
	testneed.Loop(t)
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	device = strings.TrimSpace(command(t, "losetup", append(args, "--find", "--show", file)...))
	t.Cleanup(func() { retry(t, "losetup", "-d", device) })
	return device, file
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// retry runs a command until it works: a process that is just ending may keep things busy.
func retry(t *testing.T, name string, args ...string) {
	t.Helper()
	var out []byte
	var err error
	for range 50 {
		if out, err = exec.Command(name, args...).CombinedOutput(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s %v: %v: %s", name, args, err, out)
}

func write(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func volumeOf(t *testing.T, s *Store, path string) backend.Volume {
	t.Helper()
	volumes, err := s.Volumes(t.Context(), []backend.Disk{{VDev: "xvda", Source: path}})
	if err != nil || len(volumes) != 1 {
		t.Fatalf("Volumes = %+v, %v", volumes, err)
	}
	return volumes[0]
}

func TestStore_KeepsContract(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		t.Run("sectors of "+sector, func(t *testing.T) {
			const sizeBytes = 3<<20 + 4096
			backendtest.Store(t, func(t *testing.T) backendtest.StoreFixture {
				device, file := loopDevice(t, sizeBytes, "--sector-size", sector)
				return backendtest.StoreFixture{
					New:       func(t *testing.T) backend.Store { return New(nil, nil) },
					Disk:      backend.Disk{VDev: "xvda", Backend: "phy", Source: device},
					SizeBytes: sizeBytes,
					Missing:   backend.Disk{VDev: "xvdb", Source: "/dev/mapper/no-such-device"},
					Foreign: []backend.Disk{
						{VDev: "xvda", Source: file},
						{VDev: "xvda", Source: filepath.Join(filepath.Dir(file), "none")},
						{VDev: "xvda", Source: "nbd://127.0.0.1/disk"},
						{VDev: "xvda", Source: device, Script: "block-drbd"},
						{VDev: "xvda", Source: device, BackendDomain: "storage"},
					},
					Write: func(t *testing.T, p []byte, off int64) { write(t, device, p, off) },
				}
			})
		})
	}
}

func TestReadAt_GoesPastThePageCache(t *testing.T) {
	device, file := loopDevice(t, 1<<20)
	write(t, file, bytes.Repeat([]byte("old."), 1024), 0)
	d, err := New(nil, nil).Open(t.Context(), volumeOf(t, New(nil, nil), device))
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
	write(t, file, bytes.Repeat([]byte("new."), 1024), 0) // behind the device's page cache, as a guest does
	if got := read(d); got != "new." {
		t.Errorf("read %q, want what is there now", got)
	}
	if got := read(buffered); got != "old." {
		t.Errorf("a buffered read gives %q: this test shows nothing", got)
	}
}

func TestReadAt_IsRightForAnyAlignment(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		const size = 1 << 20
		device, file := loopDevice(t, size, "--sector-size", sector)
		want := make([]byte, size)
		rand.NewChaCha8([32]byte{1}).Read(want)
		write(t, file, want, 0)
		d, err := New(nil, nil).Open(t.Context(), volumeOf(t, New(nil, nil), device))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if _, ok := d.(backend.Locator); ok {
			t.Error("a device that is to be read past the page cache can be spliced")
		}
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
	}
}

func TestReadAt_SaysThatADeviceShrank(t *testing.T) {
	device, file := loopDevice(t, 1<<20)
	d, err := New(nil, nil).Open(t.Context(), volumeOf(t, New(nil, nil), device))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Truncate(file, 512<<10); err != nil {
		t.Fatal(err)
	}
	command(t, "losetup", "-c", device)
	for _, b := range [][]byte{make([]byte, 1000), alignedBytes(8192, 4096)} {
		if n, err := d.ReadAt(b, 600<<10); n != 0 || !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), device) {
			t.Errorf("ReadAt = %d, %v, want ErrIO", n, err)
		}
		if n, err := d.ReadAt(b, 512<<10-512); n != 512 || !errors.Is(err, backend.ErrIO) {
			t.Errorf("ReadAt over the new end = %d, %v, want 512 bytes and ErrIO", n, err)
		}
	}
}

func TestVolumes_SaysWhyADeviceCannotBeRead(t *testing.T) {
	device, _ := loopDevice(t, 1<<20)
	tests := []struct {
		disk backend.Disk
		want error
	}{
		{backend.Disk{Source: "/dev/no-such-disk"}, backend.ErrNotExist},
		{backend.Disk{Source: "/dev/null/x"}, backend.ErrNotDir},
		{backend.Disk{Source: "/dev/null"}, backend.ErrInvalid},
		{backend.Disk{Source: "/dev/shm"}, backend.ErrInvalid},
		{backend.Disk{Source: device, Format: "qcow2"}, backend.ErrUnsupported},
	}
	s := New(nil, nil)
	for _, test := range tests {
		volumes, err := s.Volumes(t.Context(), []backend.Disk{test.disk})
		if err != nil {
			t.Fatal(err)
		}
		v := volumes[0]
		if v.Store != "phy" || !errors.Is(v.Err, test.want) || !strings.Contains(v.Err.Error(), test.disk.Source) {
			t.Errorf("%+v: Volumes = %+v, want %v", test.disk, v, test.want)
		}
		if d, err := s.Open(t.Context(), v); !errors.Is(err, test.want) {
			t.Errorf("%+v: Open = %v, %v, want %v", test.disk, d, err, test.want)
		}
	}
	link := filepath.Join(t.TempDir(), "disk")
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	if v := volumeOf(t, s, link); v.Store != "phy" || v.Err != nil || v.SizeBytes != 1<<20 {
		t.Errorf("Volumes of a link = %+v", v)
	}
}

func TestVolumes_NamesTheHolder(t *testing.T) {
	testneed.Tools(t, "mkfs.ext4", "qemu-io")
	device, _ := loopDevice(t, 16<<20)
	command(t, "mkfs.ext4", "-q", device)
	s := New(nil, nil)
	if v := volumeOf(t, s, device); v.Holder != "" {
		t.Errorf("Holder = %q of a free device", v.Holder)
	}
	folder := filepath.Join(t.TempDir(), "a mount")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", device, folder)
	if v := volumeOf(t, s, device); v.Holder != "mount on "+folder {
		t.Errorf("Holder = %q, want the mount on %s", v.Holder, folder)
	}
	retry(t, "umount", folder)
	if v := volumeOf(t, s, device); v.Holder != "" {
		t.Errorf("Holder = %q after umount", v.Holder)
	}

	hold := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		fmt.Fprintln(stdin, "length")
		if _, err := stdout.Read(make([]byte, 100)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := New(nil, nil) // another one, which has not just found the device free
		want := fmt.Sprintf("(pid %d)", cmd.Process.Pid)
		for range 2 {
			if v := volumeOf(t, s, device); !strings.Contains(v.Holder, want) {
				t.Errorf("%s: Holder = %q, want it with %q", name, v.Holder, want)
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		if v := volumeOf(t, s, device); v.Holder != "" {
			t.Errorf("%s: Holder = %q after it ended", name, v.Holder)
		}
	}
	hold("qemu-io", "-f", "raw", device)
	t.Setenv(helperEnv, "exclusive")
	hold("/proc/self/exe", device)
}

func TestVolumes_SeesAMountedPartitionOfADisk(t *testing.T) {
	testneed.Tools(t, "sfdisk", "mkfs.ext4", "partx")
	device, file := loopDevice(t, 32<<20)
	cmd := exec.Command("sfdisk", "-q", file)
	cmd.Stdin = strings.NewReader("start=2048\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	if out, err := exec.Command("partx", "-a", device).CombinedOutput(); err != nil {
		testneed.Missing(t, fmt.Sprintf("partitions of loop devices: %v: %s", err, out))
	}
	t.Cleanup(func() { retry(t, "partx", "-d", device) })
	part := device + "p1"
	command(t, "mkfs.ext4", "-q", part)
	folder := t.TempDir()
	command(t, "mount", part, folder)
	t.Cleanup(func() { retry(t, "umount", folder) })
	s := New(nil, nil)
	for _, path := range []string{device, part} {
		if v := volumeOf(t, s, path); v.Holder != "mount on "+folder {
			t.Errorf("%s: Holder = %q, want the mount on %s", path, v.Holder, folder)
		}
	}
	before := volumeOf(t, s, part)
	write(t, device, []byte("x"), 20<<20) // through the whole disk, into the partition
	if after := volumeOf(t, s, part); after.Generation == before.Generation {
		t.Error("the partition's generation stayed the same after a write through the disk")
	}
}

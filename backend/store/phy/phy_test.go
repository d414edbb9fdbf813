package phy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/loop"
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
				device, file := loop.Device(t, sizeBytes, "--sector-size", sector)
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
					Write: func(t *testing.T, p []byte, off int64) { loop.Write(t, device, p, off) },
				}
			})
		})
	}
}

func TestOpen_ReadsPastThePageCache(t *testing.T) {
	device, _ := loop.Device(t, 1<<20)
	s := New(nil, nil)
	d, err := s.Open(t.Context(), volumeOf(t, s, device))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, ok := d.(backend.Locator); ok {
		t.Error("its bytes can be spliced, from the page cache, which guests' writes do not go through")
	}
}

func TestVolumes_SaysWhyADeviceCannotBeRead(t *testing.T) {
	device, _ := loop.Device(t, 1<<20)
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
	device, _ := loop.Device(t, 16<<20)
	loop.Command(t, "mkfs.ext4", "-q", device)
	s := New(nil, nil)
	if v := volumeOf(t, s, device); v.Holder != "" {
		t.Errorf("Holder = %q of a free device", v.Holder)
	}
	folder := filepath.Join(t.TempDir(), "a mount")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	loop.Command(t, "mount", device, folder)
	if v := volumeOf(t, s, device); v.Holder != "mount on "+folder {
		t.Errorf("Holder = %q, want the mount on %s", v.Holder, folder)
	}
	loop.Retry(t, "umount", folder)
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
	device, file := loop.Device(t, 32<<20)
	cmd := exec.Command("sfdisk", "-q", file)
	cmd.Stdin = strings.NewReader("start=2048\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	if out, err := exec.Command("partx", "-a", device).CombinedOutput(); err != nil {
		testneed.Missing(t, fmt.Sprintf("partitions of loop devices: %v: %s", err, out))
	}
	t.Cleanup(func() { loop.Retry(t, "partx", "-d", device) })
	part := device + "p1"
	loop.Command(t, "mkfs.ext4", "-q", part)
	folder := t.TempDir()
	loop.Command(t, "mount", part, folder)
	t.Cleanup(func() { loop.Retry(t, "umount", folder) })
	s := New(nil, nil)
	for _, path := range []string{device, part} {
		if v := volumeOf(t, s, path); v.Holder != "mount on "+folder {
			t.Errorf("%s: Holder = %q, want the mount on %s", path, v.Holder, folder)
		}
	}
	before := volumeOf(t, s, part)
	loop.Write(t, device, []byte("x"), 20<<20) // through the whole disk, into the partition
	if after := volumeOf(t, s, part); after.Generation == before.Generation {
		t.Error("the partition's generation stayed the same after a write through the disk")
	}
}

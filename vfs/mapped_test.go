package vfs

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func (r *rig) setMapped(value string) error {
	return os.WriteFile(r.path("snapshots/web01/nightly/mapped"), []byte(value), 0)
}

func TestMapped_ShowsDevicesWhileItIsOne(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots", "web01", "nightly")
	id := strings.TrimSpace(r.setID("web01", "nightly"))
	paths := map[string]string{"disks/xvda": "xvda", "disks/xvda/p1": "xvda:p1", "disks/xvdb": "xvdb"}
	for range 2 {
		if got := r.read("snapshots/web01/nightly/mapped"); got != "0\n" {
			t.Errorf("mapped is %q", got)
		}
		for path := range paths {
			if _, err := os.Lstat(r.path("snapshots/web01/nightly", path, "device")); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s has a device: %v", path, err)
			}
		}
		if err := r.setMapped("1\n"); err != nil {
			t.Fatal(err)
		}
		if got := r.read("snapshots/web01/nightly/mapped"); got != "1\n" {
			t.Errorf("mapped is %q", got)
		}
		for path, name := range paths {
			got, err := os.Readlink(r.path("snapshots/web01/nightly", path, "device"))
			if want := "/dev/mapper/fake-" + id + ":" + name; err != nil || got != want {
				t.Errorf("%s: device is %q, %v, want %q", path, got, err, want)
			}
		}
		if _, err := os.Lstat(r.path("xenstore/web01/disks/xvda/device")); !errors.Is(err, unix.ENOENT) {
			t.Errorf("a live disk has a device: %v", err)
		}
		if err := r.setMapped("0\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.setMapped("2\n"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("2: %v", err)
	}
}

func (r *rig) setID(domain, name string) string {
	r.t.Helper()
	inv, err := r.ctl.Inventory(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return inv.SnapshotDir(domain).Set(name).ID
}

func TestRmdir_OfASnapshotWhoseDeviceIsInUseIsBusy(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots", "web01", "nightly")
	if err := r.setMapped("1"); err != nil {
		t.Fatal(err)
	}
	id := r.setID("web01", "nightly")
	r.mapper.Use(id, "xvda/p1", "mount on /mnt")
	if err := os.Remove(r.path("snapshots/web01/nightly")); !errors.Is(err, unix.EBUSY) {
		t.Errorf("rmdir: %v", err)
	}
	if got := r.read("xenstore/web01/last_error"); !strings.Contains(got, "EBUSY") || !strings.Contains(got, "mount on /mnt") {
		t.Errorf("last_error: %s", got)
	}
	if err := r.setMapped("0"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmapping: %v", err)
	}
	// All is as it was: devices and files.
	if _, err := os.Readlink(r.path("snapshots/web01/nightly/disks/xvdb/device")); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadFile(r.path("snapshots/web01/nightly/disks/xvda/raw")); err != nil {
		t.Errorf("it cannot be read after a removal that failed: %v", err)
	}
	r.mapper.Use(id, "xvda/p1", "")
	r.rmdir("snapshots", "web01", "nightly")
	if n := r.mapper.Sets(); n != 0 {
		t.Errorf("%d sets are mapped after rmdir", n)
	}
}

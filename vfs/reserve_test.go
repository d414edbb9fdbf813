package vfs

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func TestReserve_IsThereForThickSnapshotsOnly(t *testing.T) {
	r := newRigWith(t, rigOptions{reserve: 64 << 10})
	r.mkdir("snapshots/web01/thick")
	r.Store.SetReserve(0)
	r.mkdir("snapshots/web01/thin")
	thick, thin := strings.Join(r.list("snapshots/web01/thick/disks/xvda"), " "), strings.Join(r.list("snapshots/web01/thin/disks/xvda"), " ")
	if !strings.Contains(thick, "reserve") || !strings.Contains(thick, "fill") {
		t.Errorf("a thick one has %s", thick)
	}
	if strings.Contains(thin, "reserve") || strings.Contains(thin, "fill") {
		t.Errorf("a thin one has %s", thin)
	}
	_, err := os.Stat(r.path("snapshots/web01/thin/disks/xvda/reserve"))
	wantErrno(t, "stat", err, unix.ENOENT)
	if got := r.read("snapshots/web01/thick/disks/xvda/used"); got != "0\n" {
		t.Errorf("used is %q", got)
	}
}

func TestReserve_IsExtendedByAWrite(t *testing.T) {
	r := newRigWith(t, rigOptions{reserve: 64 << 10})
	r.Store.SetUnit(4096)
	r.mkdir("snapshots/web01/s")
	const dir = "snapshots/web01/s/disks/xvda"
	for _, c := range []struct {
		write  string
		status int
		says   string
		want   string
	}{
		{"+1K", 0, "", "69632\n"}, // rounded up
		{"128K", 0, "", "131072\n"},
		{"128K", 0, "", "131072\n"},
		{"64K", 1, "Operation not permitted", "131072\n"},
		{"lots", 1, "Invalid argument", "131072\n"},
		{"5G", 0, "", "4198400\n"}, // all that it can use
	} {
		out, status := sh(t, `echo "$2" > "$1"`, r.path(dir, "reserve"), c.write)
		if status != c.status || !strings.Contains(out, c.says) {
			t.Errorf("%s: status %d, %s", c.write, status, out)
		}
		if got := r.read(dir, "reserve"); got != c.want {
			t.Errorf("after %s: %q, want %q", c.write, got, c.want)
		}
	}
	r.Store.SetCapacity(0)
	_, status := sh(t, `echo +1M > "$1"`, r.path("snapshots/web01/s/disks/xvdb/reserve"))
	if status == 0 || !strings.Contains(r.read("xenstore/web01/last_error"), " extend ENOSPC ") {
		t.Errorf("without room: status %d, %s", status, r.read("xenstore/web01/last_error"))
	}
}

func TestReserve_FillRisesWithTheGuestsWrites(t *testing.T) {
	r := newRigWith(t, rigOptions{reserve: 64 << 10})
	r.mkdir("snapshots/web01/s")
	const dir = "snapshots/web01/s/disks/xvdb"
	if got := r.read(dir, "fill"); got != "0\n" {
		t.Errorf("at first: %q", got)
	}
	r.Store.Write("/images/web01-xvdb", 0, make([]byte, 40<<10)) // ten chunks of sixteen
	within(t, 2*time.Second, "62 percent", func() bool { return r.read(dir, "fill") == "62\n" })
	if got := r.read(dir, "used"); got != "40960\n" {
		t.Errorf("used is %q", got)
	}
	if got := r.read("snapshots/web01/s/disks/xvda/fill"); got != "0\n" {
		t.Errorf("of the other disk: %q", got)
	}
}

func TestStores_ShowVolumeGroupsAndThinPools(t *testing.T) {
	r := newRig(t)
	r.Store.AddPool(backend.Pool{Name: "vg0", Driver: "lvm", SizeBytes: 1 << 40, FreeBytes: 1 << 39})
	r.Store.AddPool(backend.Pool{Name: "vg0:thin", Driver: "lvm-thin", SizeBytes: 1 << 30, FreeBytes: 1 << 29, MetadataSizeBytes: 1 << 20, MetadataFreeBytes: 12345})
	within(t, time.Second, "the pools are there", func() bool { return len(r.list("stores")) == 3 })
	for path, want := range map[string]string{"vg0/driver": "lvm\n", "vg0/size": "1099511627776\n", "vg0/free": "549755813888\n",
		"vg0:thin/driver": "lvm-thin\n", "vg0:thin/metadata_free": "12345\n"} {
		if got := r.read("stores", path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	_, err := os.Stat(r.path("stores/vg0/metadata_free"))
	wantErrno(t, "a volume group's metadata_free", err, unix.ENOENT)
}

func TestForeign_IsShownAndKept(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		r := newRigWith(t, rigOptions{foreign: allowed, loses: true})
		r.Store.PutForeign("/images/web01-xvdb", "byhand", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Created: time.Unix(1e9, 0)}, ReserveBytes: 1 << 20})
		const dir = "snapshots/web01/byhand"
		within(t, time.Second, "it is listed", func() bool { return len(r.list("snapshots/web01")) == 1 })
		for file, want := range map[string]string{"created": "2001-09-09T01:46:40Z\n", "consistency": "crash\n", "state": "active\n", "expires": "", "hold": "0\n",
			"disks/xvdb/reserve": "1048576\n", "disks/xvdb/files/version": "data-1\n"} {
			if got := r.read(dir, file); got != want {
				t.Errorf("%s: %q, want %q", file, got, want)
			}
		}
		if got := r.list(dir, "disks"); len(got) != 1 {
			t.Errorf("disks %q", got)
		}
		for _, script := range []string{`mv "$1" "$1-2"`, `echo +7d > "$1/expires"`, `echo 1 > "$1/hold"`} {
			if out, status := sh(t, script, r.path(dir)); status == 0 || !strings.Contains(out, "Operation not permitted") {
				t.Errorf("%s: %d, %s", script, status, out)
			}
		}
		if out, status := sh(t, `echo +1M > "$1/disks/xvdb/reserve"`, r.path(dir)); status != 0 || r.read(dir, "disks/xvdb/reserve") != "1052672\n" {
			t.Errorf("reserve: %d, %s, %s", status, out, r.read(dir, "disks/xvdb/reserve"))
		}
		err := syscall.Rmdir(r.path(dir))
		if allowed {
			wantErrno(t, "rmdir", err, 0)
			continue
		}
		wantErrno(t, "rmdir", err, unix.EPERM)
		if last := r.read("xenstore/web01/last_error"); !strings.Contains(last, "remove EPERM") || !strings.Contains(last, "--foreign") {
			t.Errorf("last_error: %s", last)
		}
	}
}

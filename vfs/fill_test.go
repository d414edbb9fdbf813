package vfs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"
	"domfs/backend/fake"

	"golang.org/x/sys/unix"
)

// filling is a rig with a snapshot of web01 that is being copied until release is called.
func filling(t *testing.T, err error) (r *rig, release func()) {
	r = newRig(t)
	r.Store.SetCopies(true)
	wait := make(chan struct{})
	r.Store.Plant(fake.Fault{Op: "Fill", ID: "/images/web01-xvda", Hang: wait, Err: err})
	r.mkdir("snapshots/web01/a")
	eventually(t, "the copy has begun", func() bool { return r.Store.Calls("Fill") > 0 })
	return r, func() { close(wait) }
}

func TestFilling_OpensWaitAndStatsDoNot(t *testing.T) {
	r, release := filling(t, nil)
	disk := "snapshots/web01/a/disks/xvda"
	if got := r.read("snapshots/web01/a/state"); got != "filling\n" {
		t.Errorf("state is %q", got)
	}
	prompt := async(func() error {
		for _, name := range []string{"size", "raw", "content", "label", "uuid", "source", "used"} {
			r.stat(disk, name)
		}
		r.stat(disk)
		r.list("snapshots/web01/a")
		r.list("snapshots/web01/a/disks")
		if got := r.read(disk, "size"); got != "4194304\n" {
			return fmt.Errorf("size is %q", got)
		}
		return nil
	})
	if err := receive(t, "stat while it is being copied", prompt); err != nil {
		t.Error(err)
	}
	readdir := async(func() []string { return r.list(disk) })
	content := async(func() string { return r.read(disk, "content") })
	raw := async(func() int { return len(r.read(disk, "p1/raw")) })
	stillWaits(t, "readdir of the disk", readdir)
	stillWaits(t, "content", content)
	stillWaits(t, "raw", raw)
	release()
	if got := receive(t, "readdir", readdir); !slices.Contains(got, "p1") {
		t.Errorf("the disk has %q", got)
	}
	if got := receive(t, "content", content); got != "memtable\n" {
		t.Errorf("content is %q", got)
	}
	if got := receive(t, "raw", raw); got != MiB {
		t.Errorf("raw has %d bytes", got)
	}
	eventually(t, "the state is active", func() bool { return r.read("snapshots/web01/a/state") == "active\n" })
	if st := r.stat(disk, "content"); st.Size != int64(len("memtable\n")) {
		t.Errorf("content has st_size %d afterwards", st.Size)
	}
}

func TestFilling_OpenCanBeInterrupted(t *testing.T) {
	r, release := filling(t, nil)
	defer release()
	for _, script := range []string{`cat "$1/content"`, `ls "$1"`, `cat "$1/raw"`, `stat "$1/p1"`} {
		sh := startSh(t, "exec "+script, r.path("snapshots/web01/a/disks/xvda"))
		stillWaits(t, script, sh.ended)
		sh.cmd.Process.Signal(syscall.SIGTERM)
		sh.wait()
	}
}

func TestFilling_AFailureRemovesTheSnapshot(t *testing.T) {
	r, release := filling(t, fmt.Errorf("the disk is full: %w", backend.ErrNoSpace))
	raw := async(func() error {
		_, err := os.ReadFile(r.path("snapshots/web01/a/disks/xvda/raw"))
		return err
	})
	stillWaits(t, "open", raw)
	release()
	err := receive(t, "open", raw)
	if err == nil {
		t.Error("the open succeeded")
	}
	eventually(t, "the snapshot is removed", func() bool { return len(r.list("snapshots/web01")) == 0 && len(r.Store.All()) == 0 })
	if errs := r.read("xenstore/web01/last_error"); !strings.Contains(errs, "the disk is full") {
		t.Errorf("last_error:\n%s", errs)
	}
}

func TestFilling_RmdirEndsTheCopyAndItsReaders(t *testing.T) {
	r, release := filling(t, nil)
	defer release()
	raw := async(func() error {
		_, err := os.ReadFile(r.path("snapshots/web01/a/disks/xvda/raw"))
		return err
	})
	stillWaits(t, "open", raw)
	if err := receive(t, "rmdir", async(func() error { return unix.Rmdir(r.path("snapshots/web01/a")) })); err != nil {
		t.Errorf("rmdir: %v", err)
	}
	if err := receive(t, "open", raw); err == nil {
		t.Error("the open succeeded")
	}
	if n := len(r.Store.All()); n != 0 {
		t.Errorf("%d snapshot volumes are left", n)
	}
}

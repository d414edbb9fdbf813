package vfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
	"domfs/backend/fake"

	"golang.org/x/sys/unix"
)

// hang makes an operation of the store wait until it is released.
func hang(r *rig, op string) (release func()) {
	wait := make(chan struct{})
	clear := r.Store.Plant(fake.Fault{Op: op, Hang: wait, Deaf: true})
	return sync.OnceFunc(func() {
		clear()
		close(wait)
	})
}

func TestMkdir_RunsOnceUnderAStormOfSignals(t *testing.T) {
	r := newRig(t)
	release := hang(r, "Snapshot")
	defer release()
	c := startChild(t, "mkdir", r.path("snapshots/web01/a"))
	// SIGURG is what a Go runtime interrupts its own threads with.
	storm := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-storm:
				return
			case <-time.After(time.Millisecond):
				c.Process.Signal(syscall.SIGURG)
			}
		}
	})
	eventually(t, "the change has begun", func() bool { return r.Store.Calls("Snapshot") > 0 })
	time.Sleep(300 * time.Millisecond)
	release()
	err := c.Wait()
	close(storm)
	wg.Wait()
	if err != nil {
		t.Errorf("mkdir: %v", err)
	}
	if n := r.Store.Calls("Snapshot"); n != 2 {
		t.Errorf("the change ran %d times for its 2 disks", n)
	}
	if got := r.list("snapshots/web01"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("snapshots are %q", got)
	}
	if got := r.stats("changes_failed"); got != 0 {
		t.Errorf("%d changes failed", got)
	}
}

func TestMkdir_OfAKilledCallerEndsOnce(t *testing.T) {
	r := newRig(t)
	release := hang(r, "Snapshot")
	defer release()
	c := startChild(t, "mkdir", r.path("snapshots/web01/a"))
	eventually(t, "the change has begun", func() bool { return r.Store.Calls("Snapshot") > 0 })
	c.Process.Kill()
	// Others go on meanwhile.
	if got := r.read("xenstore/web01/name"); got != "web01\n" {
		t.Errorf("name is %q", got)
	}
	// The kernel keeps snapshots/web01 itself locked for as long as a mkdir in it lasts.
	if got := r.list("snapshots"); len(got) != 2 {
		t.Errorf("snapshots has %q", got)
	}
	release()
	c.Wait()
	eventually(t, "the snapshot is there", func() bool { return slices.Equal(r.list("snapshots/web01"), []string{"a"}) })
	if n := r.Store.Calls("Snapshot"); n != 2 {
		t.Errorf("the change ran %d times for its 2 disks", n)
	}
}

func TestRmdir_OfAKilledCallerEndsOnce(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	release := hang(r, "Remove")
	defer release()
	c := startChild(t, "rmdir", r.path("snapshots/web01/a"))
	eventually(t, "the change has begun", func() bool { return r.Store.Calls("Remove") > 0 })
	c.Process.Kill()
	release()
	c.Wait()
	eventually(t, "the snapshot is gone", func() bool { return len(r.list("snapshots/web01")) == 0 })
	if n := len(r.Store.All()); n != 0 {
		t.Errorf("%d snapshot volumes are left", n)
	}
}

func TestWrite_OfAKilledCallerEndsOnce(t *testing.T) {
	r := newRig(t)
	release := hang(r, "Resize")
	defer release()
	sh := startSh(t, `echo +1M > "$1"`, r.path(diskA))
	eventually(t, "the change has begun", func() bool { return r.Store.Calls("Resize") > 0 })
	sh.cmd.Process.Kill()
	release()
	sh.wait()
	eventually(t, "the disk has grown", func() bool { return r.read(diskA) == "5242880\n" })
	if n := r.Store.Calls("Resize"); n != 1 {
		t.Errorf("the disk was grown %d times", n)
	}
}

func TestRead_OfAKilledCallerIsGivenUp(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	wait := make(chan struct{})
	defer close(wait)
	defer r.Store.Plant(fake.Fault{Op: "Open", Hang: wait})()
	sh := startSh(t, `cat "$1"`, r.path("snapshots/web01/a/disks/xvda/content"))
	eventually(t, "the disk is being opened", func() bool { return r.Store.Calls("Open") > 0 })
	sh.cmd.Process.Kill()
	sh.wait()
}

// The kernel's classic: a process that keeps the mount busy while it ends.
func TestUnmount_IsBusyWithAWorkingDirectoryAndEndsWithoutIt(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	cd := startSh(t, `cd "$1" && echo in; read -r line`, r.path("snapshots/web01/a/disks/xvda/p1/files/etc"))
	cd.expect("in")
	err := receive(t, "unmounting", async(r.srv.Unmount))
	if err == nil {
		t.Fatal("unmounted below a working directory")
	}
	if got := r.read("xenstore/web01/name"); got != "web01\n" {
		t.Errorf("after a refused unmount: %q", got)
	}
	cd.send("go")
	cd.wait()
	if err := receive(t, "unmounting", async(r.srv.Unmount)); err != nil {
		t.Error(err)
	}
}

func TestDetach_EndsWithTheLastWorkingDirectory(t *testing.T) {
	testneed.Root(t)
	r := newRig(t)
	cd := startSh(t, `cd "$1" && echo in; read -r line; cat name; echo end`, r.path("xenstore/web01"))
	cd.expect("in")
	if err := r.srv.Detach(); err != nil {
		t.Fatal(err)
	}
	ended := async(func() error { r.srv.Wait(); return nil })
	stillWaits(t, "Wait", ended)
	if _, err := os.Stat(r.path("xenstore")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("after Detach: %v", err)
	}
	cd.send("go")
	cd.expect("web01", "end")
	cd.wait()
	receive(t, "Wait", ended)
	r.srv = nil
}

func TestUnmount_EndsWhileManyRead(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for !stop.Load() {
				filepath.WalkDir(r.path("snapshots/web01/a/disks/xvda/p1/files"), func(p string, d os.DirEntry, err error) error {
					if err == nil && d.Type().IsRegular() && i%2 == 0 && d.Name() != "hole" {
						os.ReadFile(p)
					}
					if stop.Load() {
						return filepath.SkipAll
					}
					return nil
				})
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	stop.Store(true)
	err := receive(t, "unmounting", async(r.srv.Unmount))
	wg.Wait()
	if err != nil {
		if err := r.srv.Unmount(); err != nil {
			t.Error(err)
		}
	}
}

func TestChanges_OfTwoDaemonsShowInEachOtherWithinASecond(t *testing.T) {
	lock := t.TempDir() + "/lock"
	a := newRigWith(t, rigOptions{lock: lock})
	b := newRigWith(t, rigOptions{lock: lock, world: a})
	has := func(r *rig, p string) bool { _, err := os.Stat(r.path(p)); return err == nil }
	// Both know the directories, and that the names are not there.
	for _, r := range []*rig{a, b} {
		r.list("snapshots/web01")
		if has(r, "snapshots/web01/one") {
			t.Fatal("it is there already")
		}
	}
	soon := func(what string, f func() bool) { t.Helper(); within(t, time.Second, what, f) }
	a.mkdir("snapshots/web01/one")
	soon("the new snapshot", func() bool { return has(b, "snapshots/web01/one/disks/xvdb/files/version") })
	if got := b.read("snapshots/web01/one/hold"); got != "0\n" {
		t.Errorf("hold is %q", got)
	}
	sh(t, `echo 1 > "$1"`, a.path("snapshots/web01/one/hold"))
	soon("hold", func() bool { return b.read("snapshots/web01/one/hold") == "1\n" })
	wantErrno(t, "rmdir of a snapshot that is held by another daemon", unix.Rmdir(b.path("snapshots/web01/one")), syscall.EPERM)
	sh(t, `echo 0 > "$1"; echo +1M > "$2"`, a.path("snapshots/web01/one/hold"), a.path(diskA))
	soon("the size", func() bool {
		return b.read(diskA) == "5242880\n" && b.stat("xenstore/web01/disks/xvda/raw").Size == 5242880
	})
	if err := os.Rename(a.path("snapshots/web01/one"), a.path("snapshots/web01/two")); err != nil {
		t.Fatal(err)
	}
	soon("the new name", func() bool { return has(b, "snapshots/web01/two") && !has(b, "snapshots/web01/one") })
	b.rmdir("snapshots/web01/two")
	soon("the removal", func() bool { return !has(a, "snapshots/web01/two") && len(a.list("snapshots/web01")) == 0 })
	b.mkdir("snapshots/web01/two")
	soon("a snapshot of the same name", func() bool { return has(a, "snapshots/web01/two/disks/xvda/p1") })
	a.rmdir("snapshots/web01/two")
}

func TestChanges_OfFourShellsEndWithoutAWrongErrno(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	stop := time.Now().Add(2 * time.Second)
	outs := make([]string, 4)
	for i := range outs {
		wg.Go(func() {
			for n := 0; time.Now().Before(stop); n++ {
				out, _ := sh(t, `mkdir "$1/$2"; ls -R "$1" > /dev/null; cat "$1"/*/disks/xvdb/files/version > /dev/null; rmdir "$1/$2"`,
					r.path("snapshots/web01"), fmt.Sprintf("s%d-%d", i, n))
				outs[i] += out
			}
		})
	}
	wg.Wait()
	for _, out := range outs {
		for line := range strings.Lines(out) {
			// Another shell's snapshot may go while this one looks into it; or be looked into when it is to go.
			if !strings.Contains(line, "No such file") && !strings.Contains(line, "Stale file handle") && !strings.Contains(line, "resource busy") {
				t.Errorf("a shell says %s", line)
			}
		}
	}
	for _, s := range r.list("snapshots/web01") {
		r.rmdir("snapshots/web01", s)
	}
	if n := len(r.Store.All()); n != 0 {
		t.Errorf("%d snapshot volumes are left", n)
	}
}

func TestGuest_WalkOfAKilledReaderEnds(t *testing.T) {
	r := guestRig(t)
	g := fake.NewGuest("web-root")
	fillGuest(g)
	r.guests.Add(g)
	r.stat(webFiles, "etc") // it is open, and known
	began, ended := make(chan string, 10), make(chan error, 10)
	release := make(chan struct{})
	defer close(release)
	g.SetWalk(func(op string, done <-chan struct{}) error {
		began <- op
		err := errors.New("nobody ended it")
		select {
		case <-done:
			err = fmt.Errorf("%s: %w", op, context.Canceled)
		case <-release:
		case <-time.After(5 * time.Second):
		}
		ended <- err
		return err
	})
	for _, c := range []struct{ what, path, op string }{{"stat", "no such name", "lookup"}, {"list", "etc", "parent"}} {
		child := startChild(t, c.what, r.path(webFiles, c.path))
		if op := receive(t, "the walk", began); op != c.op {
			t.Errorf("%s asks for %s, want %s", c.what, op, c.op)
		}
		child.Process.Kill()
		child.Wait()
		if err := receive(t, "the walk's end", ended); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	g.SetWalk(nil)
	if got := r.list(webFiles, "hard"); len(got) != 2 {
		t.Errorf("afterwards: %q", got)
	}
	if errs := r.read("xenstore/web01/last_error"); errs != "" {
		t.Errorf("it was recorded: %s", errs)
	}
}

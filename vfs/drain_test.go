package vfs

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

func TestRmdir_NamesTheLoopDeviceThatHasAFileOpen(t *testing.T) {
	testneed.Loop(t)
	r := newRig(t)
	r.mkdir("snapshots/web01/other")
	r.mkdir("snapshots/web01/a")
	attach := func(path string) (device string, detach func()) {
		t.Helper()
		out, err := exec.Command("losetup", "--find", "--show", "--read-only", path).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup %s: %v: %s", path, err, out)
		}
		device = strings.TrimSpace(string(out))
		detach = sync.OnceFunc(func() {
			if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
				t.Errorf("losetup --detach %s: %v: %s", device, err, out)
			}
		})
		t.Cleanup(detach)
		return device, detach
	}
	_, detachOther := attach(r.path("snapshots/web01/other/disks/xvdb/raw"))
	loop, detach := attach(r.path("snapshots/web01/a/disks/xvdb/raw"))
	err := unix.Rmdir(r.path("snapshots/web01/a"))
	detachOther()
	detach()
	wantErrno(t, "rmdir", err, syscall.EBUSY)
	if errs := r.read("xenstore/web01/last_error"); !strings.Contains(errs, "open, by loop device "+loop+":") {
		t.Errorf("last_error does not name %s:\n%s", loop, errs)
	}
	eventually(t, "the loop device is gone", func() bool { return unix.Rmdir(r.path("snapshots/web01/a")) == nil })
}

func TestRmdir_SaysWhereTheHolderHasEnded(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	// The one who opens it leaves it to another, and ends.
	heir := startSh(t, `exec 4<&0; bash -c 'exec 3< "$1"; echo "pid $$"; cat <&4 >/dev/null & ' bash "$1"; echo ended`, r.path("snapshots/web01/a/disks/xvda/raw"))
	heir.expect("ended")
	pid, _, _ := strings.Cut(strings.TrimPrefix(heir.text(), "pid "), "\n")
	wantErrno(t, "rmdir", unix.Rmdir(r.path("snapshots/web01/a")), syscall.EBUSY)
	if errs, want := r.read("xenstore/web01/last_error"), fmt.Sprintf("open, by a process that has ended (pid %s)", pid); !strings.Contains(errs, want) {
		t.Errorf("last_error does not say %q:\n%s", want, errs)
	}
}

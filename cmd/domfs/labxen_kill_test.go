package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"

	"golang.org/x/sys/unix"
)

// What a kill leaves of a guest's pause or of its disks, the next start makes good: the guest runs, and a disk that comes or goes is there and works, or
// nothing of it is left. The start that looks at one step is the one that is killed at the next. (That a volume is removed whose making was
// cut off is the store's own test.)
func whatAKillLeavesIsMadeGood(t *testing.T, h *xenHost, d *labxen.DomU) {
	const sizeBytes = 16 * mib
	disk, snapshot := "xenstore/"+d.Name+"/disks/xvdc", "snapshots/"+d.Name+"/s"
	trace := filepath.Join(h.dir, "trace")
	attach := func(m *mount) {
		if os.Mkdir(m.at(disk), 0o755) == nil {
			_ = m.set(disk+"/size", "16M")
		}
	}
	detach := func(m *mount) { _ = os.Remove(m.at(disk)) }
	// The keeper of the pause is killed together with the program, so that nobody is left to resume the guest.
	pauseForEver := func(m *mount) {
		made := make(chan error, 1)
		go func() { made <- os.Mkdir(m.at(snapshot), 0o755) }()
		eventually(t, endLimit, "the pause", func() bool {
			text, _ := os.ReadFile(trace)
			return strings.Contains(string(text), "control.snapshot.disk\n")
		})
		keeper := keeperOf(t, h.host)
		if keeper == 0 {
			t.Fatal("nobody keeps the pause")
		}
		must(t, unix.Kill(keeper, unix.SIGSTOP)) // it is not to notice the program's end
		<-m.done
		must(t, unix.Kill(keeper, unix.SIGKILL))
		if err := <-made; err == nil {
			t.Error("mkdir ends well")
		}
		if !h.isPaused(d) {
			t.Error("the guest is not paused when both are dead")
		}
	}
	clean := h.lvs()
	// vbds counts the devices that Xen gives the guest: its own disks, and xvdc or not.
	vbds := func() int {
		return strings.Count(labneed.Run(t, "xl", "block-list", d.Name), "/backend/vbd/")
	}
	own := vbds()
	nothing := func(m *mount) {
		t.Helper()
		if _, err := os.Stat(m.at(disk)); !errors.Is(err, unix.ENOENT) {
			t.Errorf("the disk is shown: %v", err)
		}
		if now := h.lvs(); now != clean {
			t.Errorf("the volumes were\n%s\nand are\n%s", clean, now)
		}
		if n := vbds(); n != own {
			t.Errorf("the guest has %d disks", n)
		}
	}
	resumed := func(m *mount) {
		t.Helper()
		if h.isPaused(d) {
			t.Error("the guest is left paused")
		}
		d.Do(t, "true")
		if _, err := os.Stat(m.at(snapshot)); !errors.Is(err, unix.ENOENT) {
			t.Errorf("the snapshot is shown: %v", err)
		}
		nothing(m)
	}
	works := func(m *mount) {
		t.Helper()
		d.AwaitSize("xvdc", sizeBytes)
		if n := vbds(); n != own+1 {
			t.Errorf("the guest has %d disks", n)
		}
		// In the middle: the ends stay zero, by which it is not in use.
		if said := d.Do(t, "echo hello | dd of=/dev/xvdc bs=1M seek=8 conv=fsync 2>/dev/null && dd if=/dev/xvdc bs=1M skip=8 count=1 2>/dev/null | head -c 5"); said != "hello" {
			t.Errorf("the guest reads %q from its disk", said)
		}
		if got, lvs := m.read(disk+"/source"), h.lvs(); !strings.HasPrefix(got, "/dev/vga/") || strings.Contains(lvs, "domfs-volume.") {
			t.Errorf("its source is %q, and the volumes are\n%s", got, lvs)
		}
	}
	// A disk that was detached, its volume not removed yet: that is one as any other.
	kept := func(m *mount) {
		t.Helper()
		d.AwaitSize("xvdc", -1)
		labneed.Run(t, "lvremove", "-q", "-y", "vga/"+d.Name+"-xvdc")
		nothing(m)
	}
	look, began := nothing, time.Now()
	for _, step := range []struct {
		point   string
		gesture func(m *mount)
		after   func(m *mount)
	}{
		{"lvm.snapshot.created:1", pauseForEver, resumed},
		{"control.attach.attach", attach, nothing},
		{"control.attach.attached", attach, works},
		{"control.detach.detach", detach, works},
		{"control.detach.detached", detach, kept},
		{"", nil, nil},
	} {
		t.Logf("%v: to be killed at %q", time.Since(began), step.point)
		m, err := h.host.start([]string{"DOMFS_FAULT=" + step.point, "DOMFS_FAULT_TRACE=" + trace}, h.mnt, "--remove-volumes", "--map=none")
		must(t, err)
		look(m)
		if step.point == "" {
			m.stop()
			break
		}
		step.gesture(m)
		m.awaitKilled(step.point)
		look = step.after
	}
}

// keeperOf is the process that has the only record locked of what a host's guests are kept in; 0 while there is none.
func keeperOf(t testing.TB, h *host) int {
	t.Helper()
	records, _ := filepath.Glob(filepath.Join(h.dir, "lock"+heldInfix+"*"))
	if len(records) != 1 {
		return 0
	}
	f, err := os.OpenFile(records[0], os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock))
	if lock.Type == unix.F_UNLCK {
		return 0
	}
	return int(lock.Pid)
}

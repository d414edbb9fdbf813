package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// hold makes a domain run, as far as the host can tell: a writable loop device on its disk.
func hold(t *testing.T, image string) (device string, release func()) {
	t.Helper()
	testneed.Loop(t)
	device = strings.TrimSpace(command(t, "losetup", "--find", "--show", image))
	released := false
	release = func() {
		if !released {
			released = true
			command(t, "losetup", "-d", device)
		}
	}
	t.Cleanup(release)
	return device, release
}

func TestRunningDomain_ShowsItsDisksButNoFiles(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	if !slices.Contains(m.names("xenstore/vm/disks/xvda"), "files") {
		t.Error("a domain that is off has no files")
	}
	_, release := hold(t, h.images+"/a.img")
	eventually(t, 2*seenLimit, "it is seen to run", func() bool { return m.read("xenstore/vm/state") == "running" })
	if _, err := os.Stat(m.at("xenstore/vm/disks/xvda/files")); err == nil {
		t.Error("a domain that runs shows files")
	}
	if got := m.read("xenstore/vm/disks/xvda/content"); got != "ext4" {
		t.Errorf("content %q", got)
	}
	release()
	eventually(t, 2*seenLimit, "it is seen to be off", func() bool { return m.read("xenstore/vm/state") == "off" })
	if got := m.read("xenstore/vm/disks/xvda/files/etc/hostname"); got != "vm" {
		t.Errorf("hostname %q", got)
	}
	m.stop()
}

func TestSnapshot_OfARunningDomainIsRefusedWhereItMustBeCopied(t *testing.T) {
	h := loopHost(t, "mke2fs", 64, "-q", "-F", "-t", "ext4")
	h.tinyDisks()
	m := h.mount()
	device, _ := hold(t, h.images+"/b.img")
	wantErrno(t, "mkdir", os.Mkdir(m.at("snapshots/vm/s"), 0o755), unix.EOPNOTSUPP)
	m.says("vm", unix.EOPNOTSUPP, "reflink")
	m.says("vm", unix.EOPNOTSUPP, device)
	if names, litter := m.names("snapshots/vm"), h.litter(); len(names)+len(litter) != 0 {
		t.Errorf("left: %q %q", names, litter)
	}
	m.stop()
}

func TestSnapshot_OfARunningDomainIsAtOnceOnXFS(t *testing.T) {
	h := loopHost(t, "mkfs.xfs", 320, "-q", "-f")
	h.tinyDisks()
	want := h.disks()
	m := h.mount()
	device, release := hold(t, h.images+"/a.img")
	must(t, os.Mkdir(m.at("snapshots/vm/s"), 0o755))
	if got := m.read("snapshots/vm/s/state"); got != "active" {
		t.Errorf("state %q", got)
	}
	if got := m.read("snapshots/vm/s/consistency"); got != "crash-per-disk" {
		t.Errorf("consistency %q", got)
	}
	// What is written afterwards is not in it.
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("later", 20_000)), 1<<20)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	m.copiesAre("s", want)
	if got := m.read("snapshots/vm/s/disks/xvda/files/etc/hostname"); got != "vm" {
		t.Errorf("hostname %q", got)
	}
	release()
	must(t, os.Remove(m.at("snapshots/vm/s")))
	if litter := h.litter(); len(litter) != 0 {
		t.Errorf("left: %q", litter)
	}
	m.stop()
}

// Who holds an image is looked up among all that processes have open, files of the mount itself
// included: asking those would be the daemon's waiting for itself.
func TestState_OfALockedImageIsToldWhileAFileOfTheMountIsOpen(t *testing.T) {
	h := tinyHost(t)
	h.tinyDisks()
	m := h.mount()
	var open []*os.File
	for _, name := range []string{"xenstore/vm/name", "xenstore/vm/disks/xvda/size", ".domfs/events"} {
		f, err := os.Open(m.at(name))
		must(t, err)
		open = append(open, f)
	}
	image, err := os.OpenFile(h.images+"/a.img", os.O_RDWR, 0)
	must(t, err)
	defer image.Close()
	// As QEMU does for an image that it writes to (RAW_LOCK_PERM_BASE 100, BLK_PERM_WRITE 1).
	must(t, unix.FcntlFlock(image.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET, Start: 101, Len: 1}))
	eventually(t, endLimit/6, "the domain is running", func() bool { return m.read("xenstore/vm/state") == "running" })
	if got := m.read("xenstore/vm/disks/xvda/size"); got == "" {
		t.Error("no size")
	}
	for _, f := range open {
		must(t, f.Close())
	}
	m.stop()
}

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"

	"golang.org/x/sys/unix"
)

func TestLab_SnapshotsOfTheAdminsAreListedAndLeftAlone(t *testing.T) {
	h := kindHost(t)
	h.domains(32, 1)
	for _, kind := range diskKinds {
		args := []string{"lvcreate", "-q", "-y", "-s", "-n", "byhand-" + kind.name}
		if kind.name == "thick" {
			args = append(args, "-L", "16m")
		} else {
			args = append(args, "-kn")
		}
		labneed.Run(t, append(args, "vg/"+kind.name)...)
	}
	before := h.lvs()
	m := h.mount()
	for _, kind := range diskKinds {
		snap := "snapshots/" + kind.name + "/byhand-" + kind.name
		if got := m.names("snapshots/" + kind.name); !slices.Equal(got, []string{"byhand-" + kind.name}) {
			t.Errorf("%s: snapshots are %q", kind.name, got)
			continue
		}
		if got := m.read(snap + "/disks/xvda/files/etc/hostname"); got != kind.name {
			t.Errorf("%s: hostname is %q", kind.name, got)
		}
		if err := os.Remove(m.at(snap)); !errors.Is(err, unix.EPERM) || !strings.Contains(m.lastError(kind.name), "--foreign") {
			t.Errorf("%s: rmdir: %v: %s", kind.name, err, m.lastError(kind.name))
		}
		if err := os.Rename(m.at(snap), m.at(snap+"2")); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: mv: %v", kind.name, err)
		}
		if err := m.set(snap+"/expires", "+1m"); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: expires: %v", kind.name, err)
		}
	}
	m.stop()
	if now := h.lvs(); now != before {
		t.Errorf("the LVs were\n%s\nand are\n%s", before, now)
	}
	m = h.mount("--foreign")
	for _, kind := range diskKinds {
		must(t, os.Remove(m.at("snapshots", kind.name, "byhand-"+kind.name)))
	}
	if now := h.lvs(); strings.Contains(now, "byhand") {
		t.Errorf("the LVs are\n%s", now)
	}
	m.stop()
}

func TestLab_AMissingPVHidesNothingElse(t *testing.T) {
	h := newLVMHost(t)
	whole, lost := labneed.Disk(t, 256*mib), labneed.Disk(t, 256*mib)
	labneed.VG(t, "vg", whole, lost)
	good := "/dev/vg/good"
	labneed.Run(t, "lvcreate", "-q", "-y", "-n", "good", "-L", "32m", "vg", whole)
	labneed.Run(t, "lvcreate", "-q", "-y", "-n", "bad", "-L", "32m", "vg", lost)
	h.ext4(good, "good", 1)
	h.config("good", "phy:/dev/vg/good,xvda,w")
	h.config("bad", "phy:/dev/vg/bad,xvda,w")
	labneed.Settle(t)
	file := strings.TrimSpace(labneed.Run(t, "losetup", "--noheadings", "--output", "BACK-FILE", lost))
	labneed.Run(t, "vgchange", "-q", "--setautoactivation", "n", "vg") // udev would activate them again
	labneed.Deactivate(t, "vg")
	labneed.Settle(t)
	labneed.Detach(t, lost)
	t.Cleanup(func() { // before the VG is removed
		labneed.Attach(t, file)
		labneed.Settle(t)
	})
	labneed.Run(t, "lvchange", "-q", "-ay", "vg/good")

	m := h.mount()
	if got := m.read("xenstore/good/disks/xvda/files/etc/hostname"); got != "good" {
		t.Errorf("hostname is %q", got)
	}
	if _, err := os.ReadFile(m.at("xenstore/bad/disks/xvda/raw")); err == nil {
		t.Error("a volume whose PV is missing can be read")
	} else if got := m.lastError("bad"); !strings.Contains(got, "vg") {
		t.Errorf("last_error says %q", got)
	}
	if err := os.Mkdir(m.at("snapshots/bad/s"), 0o755); err == nil {
		t.Error("a volume whose PV is missing can be snapshotted")
	}
	// LVM changes no VG that is not whole: that is said, and nothing is done.
	if err := os.Mkdir(m.at("snapshots/good/s"), 0o755); err != nil {
		if got := m.lastError("good"); !strings.Contains(got, "missing") {
			t.Errorf("mkdir in a VG that is not whole: %v: %s", err, got)
		}
	} else {
		must(t, os.Remove(m.at("snapshots/good/s")))
	}
	if got := h.ours(); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	m.stop()
}

func TestLab_ADeviceHeldOpenKeepsItsSnapshot(t *testing.T) {
	h := killHost(t)
	clean := h.machine()
	m := h.mount()
	m.snapshot("vm", "s")
	for _, name := range []string{"disks/xvda/p1/device", "disks/xvda/device", "disks/xvdb/device"} {
		held, err := os.Open(m.at("snapshots/vm/s", name))
		must(t, err)
		err = os.Remove(m.at("snapshots/vm/s"))
		if got := m.lastError("vm"); !errors.Is(err, unix.EBUSY) || !strings.Contains(got, fmt.Sprint(os.Getpid())) {
			t.Errorf("rmdir while %s is open: %v: %s", name, err, got)
		}
		must(t, held.Close())
		// Nothing was lost by the attempt.
		if a, b := m.read("snapshots/vm/s/disks/xvda/p1/files/etc/hostname"), m.read("snapshots/vm/s/state"); a != "first" || b != "active" {
			t.Errorf("afterwards the snapshot is %s and holds %q", b, a)
		}
	}
	must(t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
	if now := h.machine(); now != clean {
		t.Errorf("the machine was\n%s\nand is\n%s", clean, now)
	}
}

func TestLab_ADiskThatSomebodyUsesIsOfARunningDomain(t *testing.T) {
	h := killHost(t)
	m := h.mount()
	if got := m.read("xenstore/vm/state"); got != "off" {
		t.Errorf("the domain is %s", got)
	}
	held, err := os.OpenFile("/dev/vgb/b", os.O_RDWR, 0)
	must(t, err)
	eventually(t, endLimit, "the domain is running", func() bool { return m.read("xenstore/vm/state") == "running" })
	m.snapshot("vm", "s")
	if got := m.read("snapshots/vm/s/consistency"); got != "crash-per-disk" {
		t.Errorf("consistency is %q", got)
	}
	must(t, held.Close())
	eventually(t, endLimit, "the domain is off", func() bool { return m.read("xenstore/vm/state") == "off" })
	// Our own reading makes no domain run.
	raw, err := os.Open(m.at("xenstore/vm/disks/xvdb/raw"))
	must(t, err)
	_, err = raw.Read(make([]byte, 4096))
	must(t, err)
	time.Sleep(2 * seenLimit)
	if got := m.read("xenstore/vm/state"); got != "off" {
		t.Errorf("while domfs reads a disk the domain is %s", got)
	}
	must(t, raw.Close())
	must(t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
}

func TestLab_ExpiryAndHoldSurviveRestarts(t *testing.T) {
	h := killHost(t)
	m := h.mount("--map=none") // its devices would end with it
	for _, name := range []string{"due", "held", "open"} {
		m.snapshot("vm", name)
	}
	must(t, m.set("snapshots/vm/held/hold", "1"))
	m.stop()
	m = h.mount()
	open, err := os.Open(m.at("snapshots/vm/open/disks/xvda/p1/files/etc/hostname"))
	must(t, err)
	for _, name := range []string{"held", "open", "due"} { // the last one is due last; what is written by RFC 3339 is exact
		must(t, m.set("snapshots/vm/"+name+"/expires", time.Now().Add(6*time.Second).UTC().Format(time.RFC3339)))
	}
	eventually(t, 3*endLimit, "the one that is due is removed", func() bool { return !slices.Contains(m.names("snapshots/vm"), "due") })
	if got := m.names("snapshots/vm"); !slices.Equal(got, []string{"held", "open"}) {
		t.Errorf("there are %q", got)
	}
	must(t, open.Close())
	m.stop()
	m = h.mount()
	eventually(t, 3*endLimit, "the one that was open is removed after a restart", func() bool { return !slices.Contains(m.names("snapshots/vm"), "open") })
	if got := m.read("snapshots/vm/held/hold"); got != "1" {
		t.Errorf("hold is %q", got)
	}
	must(t, m.set("snapshots/vm/held/hold", "0"))
	eventually(t, 3*endLimit, "the one that was held is removed", func() bool { return len(m.names("snapshots/vm")) == 0 })
	if got := h.ours(); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	m.stop()
}

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"

	"golang.org/x/sys/unix"
)

// Ten growths in a row of each kind, each seen by the guest with no command in it.
func theGuestSeesEachGrowth(t *testing.T, h *xenHost, d *labxen.DomU) {
	m := h.mount("--map=none", slowPause)
	for vdev, size := range map[string]int64{"xvda": guestRootMiB * mib, "xvdb": guestDataMiB * mib} {
		path := "xenstore/" + d.Name + "/disks/" + vdev + "/size"
		for range 10 {
			must(t, m.set(path, "+4M"))
			size += 4 * mib
			if got := m.read(path); got != fmt.Sprint(size) {
				t.Errorf("%s is %s, want %d", path, got, size)
			}
			d.AwaitSize(vdev, size)
		}
	}
	// A thick volume cannot grow while it has a snapshot; a thin one can.
	m.snapshot(d.Name, "s")
	if err := m.set("xenstore/"+d.Name+"/disks/xvda/size", "+4M"); !errors.Is(err, unix.EBUSY) || !strings.Contains(m.lastError(d.Name), "snapshot") {
		t.Errorf("growth of a thick volume with a snapshot: %v: %s", err, m.lastError(d.Name))
	}
	must(t, m.set("xenstore/"+d.Name+"/disks/xvdb/size", "+4M"))
	d.AwaitSize("xvdb", (guestDataMiB+44)*mib)
	must(t, os.Remove(m.at("snapshots", d.Name, "s")))
	m.stop()
}

func TestLabXen_AFileThatQEMUServesDoesNotGrowUnderAGuest(t *testing.T) {
	h := newXenHost(t)
	file := labneed.File(t, guestRootMiB*mib)
	labxen.MakeRoot(t, file, labxen.Whole)
	d := h.start(labxen.Options{Layout: labxen.Whole, Disks: []labxen.Disk{{Target: file, Backend: "qdisk"}}})
	m := h.mount()
	if got := m.read("xenstore/" + d.Name + "/disks/xvda/source"); got != file {
		t.Errorf("source is %q, want %q", got, file)
	}
	err := m.set("xenstore/"+d.Name+"/disks/xvda/size", "+4M")
	if said := m.lastError(d.Name); !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(said, "xvda") {
		t.Errorf("growth: %v: %s", err, said)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != guestRootMiB*mib {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	m.stop()
}

// What concerns a guest's disks and its part of xenstore, whatever it writes to them.
func TestLabXen_AnIdleDomain(t *testing.T) {
	h := newXenHost(t)
	d := h.one(labxen.Options{Idle: true, Disks: []labxen.Disk{{Target: h.thinIn("vgb", 512, "data", guestDataMiB)}}})
	h.share(t, d, []subtest{
		{"has its pause and its disks made good after a kill", whatAKillLeavesIsMadeGood},
		{"is given a disk, uses it and gives it back", aDiskIsAttachedUsedAndDetached},
		{"sees each growth of a thick and of a thin disk", theGuestSeesEachGrowth},
		{"changes nothing by rubbish in xenstore", aGuestsRubbishInXenstoreChangesNothing},
	})
}

func aDiskIsAttachedUsedAndDetached(t *testing.T, h *xenHost, d *labxen.DomU) {
	m := h.mount()
	disk := "xenstore/" + d.Name + "/disks/xvdc"
	must(t, os.Mkdir(m.at(disk), 0o755))
	must(t, m.set(disk+"/size", "64M"))
	d.AwaitSize("xvdc", 64*mib)
	labneed.Eventually(t, "the tree shows its source", func() bool { return strings.HasPrefix(m.read(disk+"/source"), "/dev/") })
	volume := m.read(disk + "/source")
	if !strings.HasPrefix(volume, "/dev/vga/") {
		t.Errorf("it is %s, not beside the first disk", volume)
	}
	d.Do(t, "mke2fs -q /dev/xvdc && mount -t ext4 /dev/xvdc /mnt && echo hello >/mnt/file && sync")
	if err := os.Remove(m.at(disk)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("rmdir of a mounted disk: %v: %s", err, m.lastError(d.Name))
	}
	if said := d.Do(t, "cat /mnt/file && echo more >>/mnt/file && sync"); said != "hello" {
		t.Errorf("the guest's disk has %q", said)
	}
	d.Do(t, "umount /mnt")
	must(t, os.Remove(m.at(disk)))
	d.AwaitSize("xvdc", -1)
	if _, err := os.Stat(m.at(disk)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("it is still shown: %v", err)
	}
	if got := labneed.Run(t, "blkid", "-o", "value", "-s", "TYPE", volume); got != "ext2" {
		t.Errorf("the volume that was kept holds %q", got)
	}
	m.stop()

	// In another store, with its volume removed afterwards.
	m = h.mount("--remove-volumes")
	must(t, os.Mkdir(m.at(disk), 0o755))
	if err := m.set(disk+"/source", "nowhere"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a store that is none: %v", err)
	}
	must(t, m.set(disk+"/source", "vgb:pool"))
	must(t, m.set(disk+"/size", "32M"))
	d.AwaitSize("xvdc", 32*mib)
	volume = m.read(disk + "/source")
	must(t, os.Remove(m.at(disk)))
	d.AwaitSize("xvdc", -1)
	if _, err := os.Stat(volume); err == nil {
		t.Errorf("%s is still there", volume)
	}
	m.stop()
}

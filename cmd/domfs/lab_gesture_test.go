package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"

	"golang.org/x/sys/unix"
)

// diskKinds are the ways in which a disk can lie on LVM.
var diskKinds = []diskKind{
	{"thick", "lvm", func(h *lvmHost, lv string, sizeMiB int64) string { return h.thick("vg", lv, sizeMiB) }},
	{"thin", "lvm-thin", func(h *lvmHost, lv string, sizeMiB int64) string { return h.thin("vg", "pool", lv, sizeMiB) }},
}

type diskKind struct {
	name   string
	driver string
	make   func(h *lvmHost, lv string, sizeMiB int64) string
}

// kindHost has a VG "vg" with a pool "pool".
func kindHost(t testing.TB) *lvmHost {
	t.Helper()
	h := newLVMHost(t)
	h.vg("vg", 2, 512)
	h.pool("vg", "pool", 256, 8)
	return h
}

// domains makes a domain for each kind of disk, of its name, and returns the disks.
func (h *lvmHost) domains(sizeMiB int64, dataMiB int) (devices map[string]string) {
	h.t.Helper()
	devices = map[string]string{}
	for _, kind := range diskKinds {
		dev := kind.make(h, kind.name, sizeMiB)
		h.ext4(dev, kind.name, dataMiB)
		h.config(kind.name, "phy:"+dev+",xvda,w")
		devices[kind.name] = dev
	}
	return devices
}

func TestLab_EachGestureOnThickAndThin(t *testing.T) {
	h := kindHost(t)
	devices := h.domains(64, 4)
	before := h.lvs()
	m := h.mount()
	each := func(when string, gestures func(h *lvmHost, m *mount, kind diskKind, dev string)) {
		for _, kind := range diskKinds {
			t.Run(when+" "+kind.name, func(t *testing.T) {
				m.t = t
				defer func() { m.t = h.t }()
				gestures(h.within(t), m, kind, devices[kind.name])
			})
		}
	}
	each("until a restart", (*lvmHost).gestures)
	// All of it is in the tags: another daemon knows it.
	m.stop()
	m = h.mount()
	each("after it", (*lvmHost).gesturesAfterARestart)
	m.stop()
	if got := h.lvs(); got != before {
		t.Errorf("the LVs were\n%s\nand are\n%s", before, got)
	}
}

// gestures makes a snapshot of a domain's disk, sets what it has, and leaves it under another name.
func (h *lvmHost) gestures(m *mount, kind diskKind, dev string) {
	t, name := h.t, kind.name
	disk := "xenstore/" + name + "/disks/xvda/"
	for file, want := range map[string]string{"driver": kind.driver, "format": "raw", "source": dev, "mode": "rw", "size": strconv.Itoa(64 * mib), "content": "ext4", "label": name} {
		if got := m.read(disk + file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := m.read(disk + "files/etc/hostname"); got != name {
		t.Errorf("the live disk's hostname is %q", got)
	}

	// mkdir
	m.snapshot(name, "nightly")
	snap := "snapshots/" + name + "/nightly/"
	if got := m.read(snap + "disks/xvda/files/etc/hostname"); got != name {
		t.Errorf("the snapshot's hostname is %q", got)
	}
	if err := os.Mkdir(m.at(snap), 0o755); !errors.Is(err, unix.EEXIST) {
		t.Errorf("mkdir of the same name: %v", err)
	}
	if got := m.read(snap + "consistency"); got != "off" {
		t.Errorf("consistency is %q", got)
	}
	// The snapshot stays as it was when the origin is written.
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_DSYNC, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, mib), 32*mib)
	must(t, err)
	must(t, f.Close())
	eventually(t, endLimit, "used grows", func() bool {
		n, err := strconv.ParseInt(m.read(snap+"disks/xvda/used"), 10, 64)
		return err == nil && n > 0
	})

	_, err = os.Stat(m.at(snap, "disks/xvda/reserve"))
	if hasReserve := err == nil; hasReserve != (name == "thick") {
		t.Errorf("reserve is there: %t", hasReserve)
	}
	if name == "thick" {
		h.checkReserve(m, snap+"disks/xvda/")
		// A thick LV with snapshots cannot grow.
		if err := m.set(disk+"size", "+32M"); !errors.Is(err, unix.EBUSY) || !strings.Contains(m.lastError(name), "nightly") {
			t.Errorf("growing a thick LV with a snapshot: %v: %s", err, m.lastError(name))
		}
	} else {
		must(t, m.set(disk+"size", "+32M"))
	}

	// hold, expires
	must(t, m.set(snap+"hold", "1"))
	if err := os.Remove(m.at(snap)); !errors.Is(err, unix.EPERM) {
		t.Errorf("rmdir of a held one: %v", err)
	}
	must(t, m.set(snap+"hold", "0"))
	must(t, m.set(snap+"expires", "+7d"))

	// mv
	must(t, os.Rename(m.at(snap), m.at("snapshots", name, "weekly")))
	if got := m.read("snapshots/" + name + "/weekly/expires"); !strings.HasPrefix(got, time.Now().UTC().Add(7*24*time.Hour).Format("2006-01-")) {
		t.Errorf("expires is %q", got)
	}
}

// gesturesAfterARestart removes the snapshot that gestures left, and grows the disk.
func (h *lvmHost) gesturesAfterARestart(m *mount, kind diskKind, dev string) {
	t, name := h.t, kind.name
	disk, snap := "xenstore/"+name+"/disks/xvda/", m.at("snapshots", name, "weekly")
	if got := m.names("snapshots/" + name); len(got) != 1 || got[0] != "weekly" {
		t.Errorf("after a restart there are %q", got)
	}

	// rmdir while open, then not.
	open, err := os.Open(snap + "/disks/xvda/files/etc/hostname")
	must(t, err)
	if err := os.Remove(snap); !errors.Is(err, unix.EBUSY) {
		t.Errorf("rmdir with a file open: %v", err)
	}
	must(t, open.Close())
	must(t, os.Remove(snap))
	for _, left := range h.ours() {
		if strings.HasPrefix(left, "vg/domfs-"+name+"-") {
			t.Errorf("left after rmdir: %s", left)
		}
	}

	// Growth, without snapshots.
	now, err := strconv.ParseInt(m.read(disk+"size"), 10, 64)
	must(t, err)
	must(t, m.set(disk+"size", "+10M")) // rounded up to extents of 4 MiB
	if got, want := m.read(disk+"size"), strconv.FormatInt(now+12*mib, 10); got != want {
		t.Errorf("the size is %s, want %s", got, want)
	}
	if got := labneed.Run(t, "blockdev", "--getsize64", dev); got != m.read(disk+"size") {
		t.Errorf("the device has %s bytes", got)
	}
	for value, want := range map[string]error{"1M": unix.EPERM, "many": unix.EINVAL, "": unix.EINVAL} {
		if err := m.set(disk+"size", value); !errors.Is(err, want) {
			t.Errorf("size %q: %v, want %v", value, err, want)
		}
	}
	if err := m.set(disk+"size", "+10T"); name == "thick" && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("growing beyond the VG: %v", err)
	}
}

// checkReserve extends a thick snapshot's reserve.
func (h *lvmHost) checkReserve(m *mount, disk string) {
	t := h.t
	t.Helper()
	before, err := strconv.ParseInt(m.read(disk+"reserve"), 10, 64)
	must(t, err)
	must(t, m.set(disk+"reserve", "+4M"))
	after, err := strconv.ParseInt(m.read(disk+"reserve"), 10, 64)
	must(t, err)
	if after < before || after > 68*mib {
		t.Errorf("the reserve was %d and is %d", before, after)
	}
	if err := m.set(disk+"reserve", "1M"); !errors.Is(err, unix.EPERM) {
		t.Errorf("a smaller reserve: %v", err)
	}
	if fill := strings.TrimSuffix(m.read(disk+"fill"), "%"); fill == "" {
		t.Error("fill is empty")
	} else if _, err := strconv.ParseFloat(fill, 64); err != nil {
		t.Errorf("fill is %q", fill)
	}
}

func TestLab_SnapshotOfFourDisksInTwoVGsIsAllOrNone(t *testing.T) {
	h := newLVMHost(t)
	h.vg("vga", 1, 512)
	h.vg("vgb", 1, 256)
	h.pool("vga", "pool", 128, 8)
	disks := []string{h.thick("vga", "d1", 32), h.thin("vga", "pool", "d2", 32), h.thick("vgb", "d3", 96), h.thick("vgb", "d4", 96)}
	var config []string
	for i, d := range disks {
		h.ext4(d, fmt.Sprintf("disk%d", i), 1)
		config = append(config, fmt.Sprintf("phy:%s,xvd%c,w", d, 'a'+i))
	}
	h.config("db", config...)
	before := h.lvs()
	// 20 % of 96 MiB are 19.2: the floor is above what remains of vgb for two of them.
	m := h.mount("--snapshot-size=50%")
	err := os.Mkdir(m.at("snapshots/db/big"), 0o755)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(m.lastError("db"), "vgb") {
		t.Errorf("a snapshot that vgb has no room for: %v: %s", err, m.lastError("db"))
	}
	if got := h.lvs(); got != before {
		t.Errorf("the LVs were\n%s\nand are\n%s", before, got)
	}
	m.stop()

	m = h.mount("--snapshot-size=16M")
	m.snapshot("db", "s")
	for i := range disks {
		vdev := fmt.Sprintf("xvd%c", 'a'+i)
		if got := m.read(filepath.Join("snapshots/db/s/disks", vdev, "files/etc/hostname")); got != fmt.Sprintf("disk%d", i) {
			t.Errorf("%s holds %q", vdev, got)
		}
	}
	if got := h.ours(); len(got) != 4 {
		t.Errorf("domfs has made %q", got)
	}
	must(t, os.Remove(m.at("snapshots/db/s")))
	if got := h.lvs(); got != before {
		t.Errorf("the LVs were\n%s\nand are\n%s", before, got)
	}
	m.stop()
}

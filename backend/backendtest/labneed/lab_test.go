package labneed

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

const mib = 1 << 20

// The lab is what its tests believe: LVM, device-mapper and udev are real in it.

func TestLab_ThickSnapshotFreezesItsOrigin(t *testing.T) {
	LVM(t)
	Leftovers(t)
	VG(t, "labthick", Disk(t, 256*mib))
	Run(t, "lvcreate", "--quiet", "--yes", "--name", "a", "--size", "16M", "labthick")
	before, after := bytes.Repeat([]byte("before.."), mib/8), bytes.Repeat([]byte("after..."), mib/8)
	put(t, "/dev/labthick/a", before)
	Run(t, "lvcreate", "--quiet", "--snapshot", "--name", "s", "--size", "8M", "labthick/a")
	put(t, "/dev/labthick/a", after)
	if !bytes.Equal(get(t, "/dev/labthick/a", mib), after) {
		t.Error("the origin was not written")
	}
	if !bytes.Equal(get(t, "/dev/labthick/s", mib), before) {
		t.Error("the snapshot shows the origin's new bytes")
	}
	if fill := Run(t, "lvs", "--noheadings", "--options", "snap_percent", "labthick/s"); fill == "" || fill == "0.00" {
		t.Errorf("the snapshot's fill is %q after a write of 1 MiB", fill)
	}
}

func TestLab_ThinPoolSnapshots(t *testing.T) {
	LVM(t)
	Leftovers(t)
	VG(t, "labthin", Disk(t, 512*mib))
	Run(t, "lvcreate", "--quiet", "--type", "thin-pool", "--name", "pool", "--size", "128M", "labthin")
	Run(t, "lvcreate", "--quiet", "--thin", "--name", "a", "--virtualsize", "1G", "labthin/pool")
	before, after := bytes.Repeat([]byte("before.."), mib/8), bytes.Repeat([]byte("after..."), mib/8)
	put(t, "/dev/labthin/a", before)
	Run(t, "lvcreate", "--quiet", "--snapshot", "--setactivationskip", "n", "--name", "s", "labthin/a")
	put(t, "/dev/labthin/a", after)
	if !bytes.Equal(get(t, "/dev/labthin/s", mib), before) || !bytes.Equal(get(t, "/dev/labthin/a", mib), after) {
		t.Error("a thin snapshot and its origin are not what was written")
	}
}

// A test may rely on it that a host would activate what it finds.
func TestLab_AutoactivationIsReal(t *testing.T) {
	LVM(t)
	Leftovers(t)
	file := File(t, 64*mib)
	loop := Attach(t, file)
	VG(t, "labauto", loop)
	Run(t, "lvcreate", "--quiet", "--yes", "--name", "a", "--size", "8M", "labauto")
	Deactivate(t, "labauto")
	if _, err := os.Stat("/dev/labauto/a"); err == nil {
		t.Fatal("the volume is active after Deactivate")
	}
	Detach(t, loop)
	Attach(t, file)
	t.Cleanup(func() { RemoveVG(t, "labauto") }) // before this device goes
	Eventually(t, "udev activates a VG that appears", func() bool {
		_, err := os.Stat("/dev/labauto/a")
		return err == nil
	})
}

// The same disk again, not hidden, shows that hiding is what made the difference.
func TestLab_HiddenDevicesAreNotActivated(t *testing.T) {
	LVM(t)
	Leftovers(t)
	file := File(t, 64*mib)
	active := func() bool {
		_, err := os.Stat("/dev/mapper/labguest-a")
		return err == nil
	}
	t.Run("hidden", func(t *testing.T) {
		loop := Hidden(t, file)
		Run(t, "pvcreate", "--quiet", "--devices", loop, loop)
		Run(t, "vgcreate", "--quiet", "--devices", loop, "labguest", loop)
		Run(t, "lvcreate", "--quiet", "--yes", "--devices", loop, "--name", "a", "--size", "8M", "labguest")
		Run(t, "vgchange", "--quiet", "--devices", loop, "-an", "labguest")
		Detach(t, loop)
		Settle(t)
		Attach(t, file)
		Settle(t)
		time.Sleep(2 * time.Second) // for what comes after udev's queue
		if active() {
			t.Error("a hidden device's volume was activated")
			RemoveVG(t, "labguest")
		}
	})
	t.Run("not hidden", func(t *testing.T) {
		Attach(t, file)
		t.Cleanup(func() { RemoveVG(t, "labguest") })
		Eventually(t, "udev activates the VG of a device that is not hidden", active)
	})
}

func TestLab_KpartxMapsPartitions(t *testing.T) {
	LVM(t)
	Leftovers(t)
	disk := Disk(t, 64*mib)
	Run(t, "sgdisk", "--new=1:2048:+16M", "--new=2:0:+16M", disk)
	Run(t, "kpartx", "-a", "-s", disk)
	t.Cleanup(func() { Run(t, "kpartx", "-d", disk) })
	name := "/dev/mapper/" + strings.TrimPrefix(disk, "/dev/") + "p2"
	if size := Run(t, "blockdev", "--getsize64", name); size != "16777216" {
		t.Errorf("%s has %s bytes, want 16 MiB", name, size)
	}
}

func put(t *testing.T, path string, text []byte) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(text, 0); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string, sizeBytes int) []byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	text := make([]byte, sizeBytes)
	if _, err := file.ReadAt(text, 0); err != nil {
		t.Fatal(err)
	}
	return text
}

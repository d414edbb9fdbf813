package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// mappedHost is a tiny host whose second disk has three partitions; the third looks like a physical volume.
func mappedHost(t *testing.T) *host {
	t.Helper()
	testneed.Root(t)
	testneed.Loop(t)
	testneed.Tools(t, "sfdisk")
	h := tinyHost(t)
	b := h.images + "/b.img"
	must(t, os.Truncate(b, 0))
	must(t, os.Truncate(b, 8<<20))
	command(t, "sh", "-c", `printf 'label: gpt\nsize=1M\nsize=2M\nsize=2M\n' | sfdisk --quiet `+b)
	f, err := os.OpenFile(b, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for i, text := range []string{"first partition", "second partition", "LABELONE"} {
		_, err = f.WriteAt([]byte(text), []int64{1 << 20, 2 << 20, 4<<20 + 512}[i])
		must(t, err)
	}
	return h
}

// hostDevices are the block devices of this machine that lie on a host's snapshots: loop devices, and devices of
// device-mapper of these sets.
func (h *host) hostDevices() (left []string) {
	sets, _ := filepath.Glob(h.images + "/.domfs/*")
	files, _ := filepath.Glob("/sys/block/*/loop/backing_file")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), h.images+"/") {
			left = append(left, f)
		}
	}
	names, _ := filepath.Glob("/sys/block/*/dm/name")
	for _, f := range names {
		text, err := os.ReadFile(f)
		if err == nil && slices.ContainsFunc(sets, func(s string) bool { return strings.Contains(string(text), filepath.Base(s)) }) {
			left = append(left, strings.TrimSpace(string(text)))
		}
	}
	return left
}

// showsDevices maps a snapshot and compares the devices with the tree.
func showsDevices(t *testing.T, hidden bool) {
	h := mappedHost(t)
	m := h.mount()
	m.snapshot("vm", "s")
	if got := m.read("snapshots/vm/s/mapped"); got != "0" {
		t.Errorf("mapped is %q", got)
	}
	must(t, m.set("snapshots/vm/s/mapped", "1"))
	if got := m.read("snapshots/vm/s/mapped"); got != "1" {
		t.Errorf("mapped is %q", got)
	}
	volumes := []string{"xvda", "xvdb", "xvdb/p1", "xvdb/p2"}
	third := m.at("snapshots/vm/s/disks/xvdb/p3/device")
	if _, err := os.Lstat(third); hidden {
		volumes = append(volumes, "xvdb/p3")
	} else if !os.IsNotExist(err) || !strings.Contains(m.lastError("vm"), "LVM") {
		t.Errorf("what LVM would see: %v; last_error: %s", err, m.lastError("vm"))
	}
	for _, v := range volumes {
		dir := m.at("snapshots/vm/s/disks", v)
		device, err := os.Readlink(dir + "/device")
		if err != nil {
			t.Error(err)
			continue
		}
		want, err := os.ReadFile(dir + "/raw")
		must(t, err)
		if got, err := os.ReadFile(device); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has other bytes than %s/raw (%v)", device, v, err)
		}
		if f, err := os.OpenFile(device, os.O_WRONLY, 0); err == nil {
			_, err = f.Write([]byte("x"))
			f.Close()
			if err == nil {
				t.Errorf("%s can be written to", device)
			}
		}
	}
	// In use: all stays as it is, and the user is told.
	device, err := os.Readlink(m.at("snapshots/vm/s/disks/xvdb/p2/device"))
	must(t, err)
	f, err := os.Open(device)
	must(t, err)
	wantErrno(t, "rmdir of a snapshot whose device is open", os.Remove(m.at("snapshots/vm/s")), unix.EBUSY)
	if text := m.lastError("vm"); !strings.Contains(text, "xvdb/p2") || !strings.Contains(text, filepath.Base(os.Args[0])[:5]) {
		t.Errorf("last_error: %s", text)
	}
	if got := m.read("snapshots/vm/s/mapped") + m.read("snapshots/vm/s/state"); got != "1active" {
		t.Errorf("after that: %s", got)
	}
	must(t, f.Close())
	must(t, os.Rename(m.at("snapshots/vm/s"), m.at("snapshots/vm/r")))
	if _, err := os.Readlink(m.at("snapshots/vm/r/disks/xvdb/p2/device")); err != nil {
		t.Error(err)
	}
	must(t, os.Remove(m.at("snapshots/vm/r")))
	if left := h.hostDevices(); len(left) > 0 {
		t.Errorf("left after rmdir: %q", left)
	}
	m.snapshot("vm", "t")
	must(t, m.set("snapshots/vm/t/mapped", "1"))
	m.stop()
	if left := h.hostDevices(); len(left) > 0 {
		t.Errorf("left after the daemon's end: %q", left)
	}
}

// killedMapping kills the daemon at each step of mapping and unmapping.
func killedMapping(t *testing.T) {
	h := mappedHost(t)
	gesture := func(m *mount) {
		_ = m.set("snapshots/vm/s/mapped", "1")
		_ = m.set("snapshots/vm/s/mapped", "0")
	}
	m := h.mount()
	m.snapshot("vm", "s")
	m.stop()
	steps := points(t, h, gesture)
	if len(steps) < 6 {
		t.Fatalf("mapping passes only %q", steps)
	}
	r := relay{t: t, host: h, repaired: func(t *testing.T, m *mount) {
		if got := m.read("snapshots/vm/s/mapped"); got != "0" {
			t.Errorf("mapped is %q", got)
		}
		if left := h.hostDevices(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}}
	for _, step := range steps {
		r.killedAt(step, step, func(*mount) {}, gesture)
	}
	m = r.next(t)
	must(t, m.set("snapshots/vm/s/mapped", "1"))
	if _, err := os.Readlink(m.at("snapshots/vm/s/disks/xvdb/p2/device")); err != nil {
		t.Error(err)
	}
	m.stop()
	if left := h.hostDevices(); len(left) > 0 {
		t.Errorf("left at the end: %q", left)
	}
	if locks, _ := filepath.Glob(h.dir + "/*.map-*"); len(locks) > 0 {
		t.Errorf("locks are left: %q", locks)
	}
}

// withoutTables skips on a host that has device-mapper.
func withoutTables(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/class/misc/device-mapper"); err == nil {
		t.Skip("this host has device-mapper: TestLab... is the same test there")
	}
}

func TestMapped_ShowsLoopDevicesWhereThereIsNoDeviceMapper(t *testing.T) {
	withoutTables(t)
	showsDevices(t, false)
}

func TestMapped_KilledAtAnyStepLeavesNoLoopDevice(t *testing.T) {
	withoutTables(t)
	killedMapping(t)
}

func TestLabMapped_ShowsDevicesOfImages(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	showsDevices(t, true)
}

func TestLabMapped_KilledAtAnyStepLeavesNoDevice(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	killedMapping(t)
}

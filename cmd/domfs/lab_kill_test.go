package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"

	"golang.org/x/sys/unix"
)

// killHost is a domain "vm" with a thick disk in one VG and a thin one in another, with partitions
// on the first.
func killHost(t testing.TB) *lvmHost {
	t.Helper()
	h := newLVMHost(t)
	h.vg("vga", 1, 512)
	h.vg("vgb", 1, 256)
	a, b := h.thick("vga", "a", 32), h.thinPool("vgb", "pool", 64, 8, "b", 32)
	h.ext4(b, "second", 1)
	h.partitioned(a)
	h.config("vm", "phy:"+a+",xvda,w", "phy:"+b+",xvdb,w")
	return h
}

// partitioned gives a disk two partitions, the first with a filesystem.
func (h *lvmHost) partitioned(device string) {
	h.t.Helper()
	labneed.Run(h.t, "sh", "-c", `printf 'label: gpt\nsize=8MiB\nsize=8MiB\n' | sfdisk -q --no-reread --no-tell-kernel "$1"`, "sh", device)
	image := labneed.File(h.t, 8*mib)
	mkfs(h.t, image, "first", map[string]string{"etc/hostname": "first\n"})
	labneed.Run(h.t, "dd", "if="+image, "of="+device, "bs=1M", "seek=1", "conv=notrunc,fsync", "status=none")
	labneed.Settle(h.t)
}

// lastOfEach keeps of steps that are passed several times the last one, and leaves out those of the store where
// its own test is killed at them.
func lastOfEach(steps []string, withStore bool) []string {
	var kept []string
	last := map[string]int{}
	for i, s := range steps {
		name, _, _ := strings.Cut(s, ":")
		last[name] = i
	}
	for i, s := range steps {
		name, _, _ := strings.Cut(s, ":")
		if last[name] == i && (withStore || !strings.HasPrefix(name, "lvm.")) {
			kept = append(kept, s)
		}
	}
	return kept
}

// machine is what a change must leave as it was: LVs, device-mapper's tables, loop devices.
func (h *lvmHost) machine() string {
	h.t.Helper()
	labneed.Settle(h.t)
	var tables []string
	for line := range strings.Lines(labneed.Run(h.t, "dmsetup", "table")) {
		tables = append(tables, strings.TrimSpace(line))
	}
	slices.Sort(tables)
	return h.lvs() + "\n" + strings.Join(tables, "\n") + "\n" + labneed.Run(h.t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE")
}

func (h *lvmHost) within(t *testing.T) *lvmHost { return &lvmHost{host: h.host.within(t)} }

// is checks that the machine is as it was.
func (h *lvmHost) is(was string) {
	h.t.Helper()
	if now := h.machine(); now != was {
		h.t.Errorf("the machine was\n%s\nand is\n%s", was, now)
	}
}

// isThere tells whether there is the snapshot s, and checks that it is whole then, and that there is no other.
func (m *mount) isThere() bool {
	m.t.Helper()
	names := m.names("snapshots/vm")
	if len(names) == 0 {
		return false
	}
	if !slices.Equal(names, []string{"s"}) {
		m.t.Fatalf("snapshots: %q", names)
	}
	if state := m.read("snapshots/vm/s/state"); state != "active" {
		m.t.Errorf("the snapshot is %s", state)
	}
	if a, b := m.read("snapshots/vm/s/disks/xvda/p1/files/etc/hostname"), m.read("snapshots/vm/s/disks/xvdb/files/etc/hostname"); a != "first" || b != "second" {
		m.t.Errorf("the snapshot holds %q and %q", a, b)
	}
	return true
}

func nothing(*mount) {}

func TestLab_GrowthKilledAtAnyStepIsDoneOrNot(t *testing.T) {
	h := killHost(t)
	var size string
	var before int64
	grow := func(m *mount) error { return m.set(size, "+4M") }
	r := relay{t: t, host: h.host, repaired: func(t *testing.T, m *mount) {
		after := number(t, m.read(size))
		if after != before && after != before+4*mib {
			t.Errorf("the size was %d and is %d", before, after)
		}
		must(t, grow(m))
		if got := number(t, m.read(size)); got != after+4*mib {
			t.Errorf("the size is %d after another growth of %d", got, after)
		}
	}}
	disks := []string{"xvda", "xvdb"}
	sizeOf := func(disk string) string { return "xenstore/vm/disks/" + disk + "/size" }
	var gestures []func(*mount)
	for _, disk := range disks {
		gestures = append(gestures, func(m *mount) {
			size = sizeOf(disk)
			must(t, grow(m))
		})
	}
	passed := pointsOf(t, h.host, gestures...)
	for i, disk := range disks {
		if len(passed[i]) < 3 {
			t.Fatalf("a growth of %s passes only %q", disk, passed[i])
		}
		for _, step := range lastOfEach(passed[i], false) {
			r.killedAt(disk+" "+step, step, func(m *mount) {
				size = sizeOf(disk)
				before = number(m.t, m.read(size))
			}, func(m *mount) { _ = grow(m) })
		}
	}
	r.next(t).stop()
}

// One program after the other is killed, at each step of a snapshot's mapping, at each of the program's own end, of the snapshot's removal
// and of its making.
func TestLab_SnapshotAndItsRemovalKilledAtAnyStepAreAllOrNothing(t *testing.T) {
	h := killHost(t)
	clean := h.machine()
	const path = "snapshots/vm/s"
	mkdir := func(m *mount) { m.snapshot("vm", "s") }
	passed := pointsOf(t, h.host, mkdir, func(m *mount) {
		must(t, os.Remove(m.at(path)))
		h.is(clean)
	}, mkdir)
	making, removal, ending := passed[0], passed[1], passed[len(passed)-1]
	if len(making) < 10 || len(removal) < 3 || len(ending) == 0 || !slices.ContainsFunc(removal, func(s string) bool { return strings.HasPrefix(s, "control.remove.") }) {
		t.Fatalf("a snapshot passes only %q, its removal %q, and the end %q", making, removal, ending)
	}
	var mapping []string
	making = slices.DeleteFunc(lastOfEach(making, true), func(step string) bool {
		if strings.HasPrefix(step, "kpartx.") {
			mapping = append(mapping, step)
			return true
		}
		return false
	})
	if len(mapping) < 3 {
		t.Fatalf("the mapping of a snapshot passes only %q", mapping)
	}

	// A snapshot outlives the kills at the steps of its mapping and of the end, and all of it is as it was before.
	whole := h.machine()
	remap := func(m *mount) { must(m.t, m.set(path+"/mapped", "1")) } // its devices went with the program before
	r := relay{t: t, host: h.host, last: "its end", repaired: func(t *testing.T, m *mount) {
		if !m.isThere() {
			t.Error("the snapshot is gone")
		}
		h.within(t).is(whole)
	}}
	for _, step := range mapping {
		r.killedAt("mapping "+step, step, nothing, func(m *mount) { _ = m.set(path+"/mapped", "1") })
	}
	for _, step := range lastOfEach(ending, true) {
		r.killedAt("end "+step, step, remap, func(m *mount) { must(m.t, m.cmd.Process.Signal(unix.SIGTERM)) })
	}

	// It outlives the first kills of its removal, too. From the one on that it does not outlive, none does.
	there, gone := true, 0
	r.repaired = func(t *testing.T, m *mount) {
		h := h.within(t)
		if there = m.isThere(); there && gone > 0 {
			t.Error("the removal was begun, and is not gone on with")
		}
		if there {
			h.is(whole)
			return
		}
		gone++
		h.is(clean)
	}
	for _, step := range lastOfEach(removal, false) {
		r.killedAt("removal "+step, step, func(m *mount) {
			if there {
				remap(m)
			} else {
				mkdir(m)
			}
		}, func(m *mount) { _ = os.Remove(m.at(path)) })
	}

	// What is there after the kills of its making is removed: there is none before the next.
	complete := 0
	r.repaired = func(t *testing.T, m *mount) {
		if m.isThere() {
			complete++
			must(t, os.Remove(m.at(path)))
		}
		h.within(t).is(clean)
	}
	for i, step := range making {
		r.killedAt("making "+step, step, func(m *mount) {
			if i == 0 && there {
				must(m.t, os.Remove(m.at(path)))
			}
		}, func(m *mount) { _ = os.Mkdir(m.at(path), 0o755) })
	}
	m := r.next(t)
	if gone < 2 || complete < 3 {
		t.Errorf("%d steps come after the removal has begun, and %d after the snapshot is complete: the last ones are not covered", gone, complete)
	}

	// At the end a whole snapshot can be made and removed, and nothing of it all is left.
	mkdir(m)
	if !m.isThere() {
		t.Error("the snapshot that was made is not there")
	}
	m.stop()

	// One command changes the tags of both volumes, in a commit for each: what it leaves where it is killed between them is brought to
	// its end, too.
	ours := h.ours()
	if len(ours) != 2 {
		t.Fatalf("the volumes of the snapshot are %q", ours)
	}
	for _, volume := range ours {
		labneed.Run(t, "lvchange", "-q", "--deltag", "domfs.state=active", "--addtag", "domfs.state=pending", volume)
		m = h.mount()
		if !m.isThere() || strings.Contains(h.lvs(), "pending") {
			t.Errorf("with %s not committed yet the volumes are\n%s", volume, h.lvs())
		}
		m.stop()
	}
	labneed.Run(t, "lvchange", "-q", "--deltag", "domfs.state=active", "--addtag", "domfs.state=removing", ours[0])
	m = h.mount()
	if m.isThere() {
		t.Error("a snapshot whose removal was begun is there")
	}
	m.stop()
	h.is(clean)
}

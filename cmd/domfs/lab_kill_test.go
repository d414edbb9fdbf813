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
	h.pool("vgb", "pool", 64, 8)
	a, b := h.thick("vga", "a", 32), h.thin("vgb", "pool", "b", 32)
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

// endsWell checks at the end that a whole snapshot can be made and removed, and that nothing of it all is left.
func (h *lvmHost) endsWell(m *mount, clean string) {
	h.t.Helper()
	m.snapshot("vm", "s")
	if !m.isThere() {
		h.t.Error("the snapshot that was made is not there")
	}
	must(h.t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
	h.is(clean)
}

func nothing(*mount) {}

func TestLab_SnapshotKilledAtAnyStepLeavesAllOrNothing(t *testing.T) {
	h := killHost(t)
	clean := h.machine()
	steps, ending := pointsToTheEnd(t, h.host, nothing, func(m *mount) { m.snapshot("vm", "s") })
	if len(steps) < 10 || len(ending) == 0 {
		t.Fatalf("a snapshot passes only %q, and the end %q", steps, ending)
	}
	var making, mapping []string
	for _, step := range lastOfEach(steps, true) {
		if strings.HasPrefix(step, "kpartx.") {
			mapping = append(mapping, step)
		} else {
			making = append(making, step)
		}
	}
	if len(mapping) < 3 {
		t.Errorf("the mapping of a snapshot passes only %q", mapping)
	}

	// The snapshot of the program that was asked for its steps outlives the kills at those of its mapping, and all of it is as it was then.
	whole := h.machine()
	r := relay{t: t, host: h.host, last: "its end", repaired: func(t *testing.T, m *mount) {
		if !m.isThere() {
			t.Error("the snapshot is gone")
		}
		h.within(t).is(whole)
	}}
	for _, step := range mapping {
		r.killedAt(step, step, nothing, func(m *mount) { _ = m.set("snapshots/vm/s/mapped", "1") })
	}
	for _, step := range lastOfEach(ending, true) {
		r.killedAt("at the end "+step, step, nothing, func(m *mount) {
			must(m.t, m.set("snapshots/vm/s/mapped", "1"))
			must(m.t, m.cmd.Process.Signal(unix.SIGTERM))
		})
	}

	complete := 0
	mapped := r.repaired
	r.repaired = func(t *testing.T, m *mount) {
		if mapped != nil {
			mapped(t, m)
			mapped = nil
		}
		h := h.within(t)
		if m.isThere() {
			complete++
			must(t, os.Remove(m.at("snapshots/vm/s")))
		}
		h.is(clean)
	}
	for _, step := range making {
		r.killedAt(step, step, nothing, func(m *mount) { _ = os.Mkdir(m.at("snapshots/vm/s"), 0o755) })
	}
	h.endsWell(r.next(t), clean)
	if complete < 3 {
		t.Error("no step comes after the snapshot is complete: the last ones are not covered")
	}
}

func TestLab_RemovalKilledAtAnyStepIsGoneOnWith(t *testing.T) {
	h := killHost(t)
	clean := h.machine()
	make := func(m *mount) { m.snapshot("vm", "s") }
	steps, _ := pointsToTheEnd(t, h.host, make, func(m *mount) { must(t, os.Remove(m.at("snapshots/vm/s"))) })
	if len(steps) < 3 || !slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, "control.remove.") }) {
		t.Fatalf("a removal passes only %q", steps)
	}
	h.is(clean)

	m := h.mount()
	make(m)
	m.stop()
	// One snapshot outlives the first kills, and all of it is as it was then. From the one on that it does not outlive, none does.
	whole, there, gone := h.machine(), true, 0
	r := relay{t: t, host: h.host, last: "its end", repaired: func(t *testing.T, m *mount) {
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
	}}
	for _, step := range lastOfEach(steps, false) {
		r.killedAt(step, step, func(m *mount) {
			if there {
				must(m.t, m.set("snapshots/vm/s/mapped", "1")) // its devices went with the program before
			} else {
				make(m)
			}
		}, func(m *mount) { _ = os.Remove(m.at("snapshots/vm/s")) })
	}
	m = r.next(t)
	if gone < 2 {
		t.Error("no step comes after the removal has begun: the last ones are not covered")
	}
	if there {
		must(t, os.Remove(m.at("snapshots/vm/s")))
		h.is(clean)
	}
	h.endsWell(m, clean)
}

func TestLab_GrowthKilledAtAnyStepIsDoneOrNot(t *testing.T) {
	h := killHost(t)
	var size string
	var before int64
	r := relay{t: t, host: h.host, repaired: func(t *testing.T, m *mount) {
		after := number(t, m.read(size))
		if after != before && after != before+4*mib {
			t.Errorf("the size was %d and is %d", before, after)
		}
		must(t, m.set(size, "+4M"))
		if got := number(t, m.read(size)); got != after+4*mib {
			t.Errorf("the size is %d after another growth of %d", got, after)
		}
	}}
	for _, disk := range []string{"xvda", "xvdb"} {
		path := "xenstore/vm/disks/" + disk + "/size"
		steps := points(t, h.host, func(m *mount) { must(t, m.set(path, "+4M")) })
		if len(steps) < 3 {
			t.Fatalf("a growth passes only %q", steps)
		}
		for _, step := range lastOfEach(steps, false) {
			r.killedAt(disk+" "+step, step, func(m *mount) {
				size = path
				before = number(m.t, m.read(path))
			}, func(m *mount) { _ = m.set(path, "+4M") })
		}
		r.next(t).stop()
		r.last = ""
	}
}

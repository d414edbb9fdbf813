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

// wholeAgain checks, after a program was killed, that the next one finds all or nothing of the
// snapshot s, that what is there is whole, and that nothing of it remains once it is removed.
func (h *lvmHost) wholeAgain(clean string) (complete bool) {
	h.t.Helper()
	m := h.mount()
	switch names := m.names("snapshots/vm"); {
	case len(names) == 0:
		if now := h.machine(); now != clean {
			h.t.Errorf("there is no snapshot, and the machine was\n%s\nand is\n%s", clean, now)
		}
		m.snapshot("vm", "s")
	case slices.Equal(names, []string{"s"}):
		complete = true
	default:
		h.t.Errorf("snapshots: %q", names)
	}
	if state := m.read("snapshots/vm/s/state"); state != "active" {
		h.t.Errorf("the snapshot is %s", state)
	}
	if a, b := m.read("snapshots/vm/s/disks/xvda/p1/files/etc/hostname"), m.read("snapshots/vm/s/disks/xvdb/files/etc/hostname"); a != "first" || b != "second" {
		h.t.Errorf("the snapshot holds %q and %q", a, b)
	}
	must(h.t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
	if now := h.machine(); now != clean {
		h.t.Errorf("the machine was\n%s\nand is\n%s", clean, now)
	}
	return complete
}

func TestLab_SnapshotKilledAtAnyStepLeavesAllOrNothing(t *testing.T) {
	h := killHost(t)
	clean := h.machine()
	steps, ending := pointsToTheEnd(t, h.host, func(m *mount) { m.snapshot("vm", "s") })
	if len(steps) < 10 || len(ending) == 0 {
		t.Fatalf("a snapshot passes only %q, and the end %q", steps, ending)
	}
	h.wholeAgain(clean)
	complete := 0
	killed := func(step string, gesture func(m *mount)) {
		t.Run(step, func(t *testing.T) {
			h := h.within(t)
			killedAt(t, h.host, step, gesture)
			if h.wholeAgain(clean) {
				complete++
			}
		})
	}
	for _, step := range lastOfEach(steps, true) {
		killed(step, func(m *mount) { _ = os.Mkdir(m.at("snapshots/vm/s"), 0o755) })
	}
	if complete == 0 {
		t.Error("no step comes after the snapshot is complete: the last ones are not covered")
	}
	for _, step := range lastOfEach(ending, true) {
		killed(step, func(m *mount) {
			m.snapshot("vm", "s")
			must(t, m.cmd.Process.Signal(unix.SIGTERM))
		})
	}
}

func TestLab_RemovalKilledAtAnyStepIsGoneOnWith(t *testing.T) {
	h := killHost(t)
	clean := h.machine()
	steps := points(t, h.host, func(m *mount) {
		m.snapshot("vm", "s")
		must(t, os.Remove(m.at("snapshots/vm/s")))
	})
	// Only what the removal passes.
	first := slices.IndexFunc(steps, func(s string) bool { return strings.HasPrefix(s, "control.remove.") })
	if first < 0 {
		t.Fatalf("a removal passes only %q", steps)
	}
	steps = steps[first:]
	if len(steps) < 3 {
		t.Fatalf("a removal passes only %q", steps)
	}
	for _, step := range lastOfEach(steps, false) {
		t.Run(step, func(t *testing.T) {
			h := h.within(t)
			// In one program: the k-th time is counted from its start.
			killedAt(t, h.host, step, func(m *mount) {
				if os.Mkdir(m.at("snapshots/vm/s"), 0o755) == nil {
					_ = os.Remove(m.at("snapshots/vm/s"))
				}
			})
			h.wholeAgain(clean)
		})
	}
}

func TestLab_GrowthKilledAtAnyStepIsDoneOrNot(t *testing.T) {
	h := killHost(t)
	for _, disk := range []string{"xvda", "xvdb"} {
		size := "xenstore/vm/disks/" + disk + "/size"
		steps := points(t, h.host, func(m *mount) { must(t, m.set(size, "+4M")) })
		if len(steps) < 3 {
			t.Fatalf("a growth passes only %q", steps)
		}
		for _, step := range lastOfEach(steps, false) {
			t.Run(disk+" "+step, func(t *testing.T) {
				h := h.within(t)
				m := h.mount()
				before := m.read(size)
				m.stop()
				killedAt(t, h.host, step, func(m *mount) { _ = m.set(size, "+4M") })
				m = h.mount()
				after := m.read(size)
				if a, b := number(t, after), number(t, before); a != b && a != b+4*mib {
					t.Errorf("the size was %d and is %d", b, a)
				}
				must(t, m.set(size, "+4M"))
				if a, b := number(t, m.read(size)), number(t, after); a != b+4*mib {
					t.Errorf("the size is %d after another growth of %d", a, b)
				}
				m.stop()
			})
		}
	}
}

package main

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"
)

// Tests named TestLabXen… need a host that Xen has booted; make lab boots one.

const (
	guestRootMiB = 96
	guestDataMiB = 64
	// Two snapshots take seconds where the processor is emulated.
	slowPause = "--pause-timeout=30s"
	// Between the snapshots of two disks a guest writes several records at this pace, and leaves an emulated processor to others.
	easyPace = 400 * time.Millisecond
)

// xenHost is a host whose domains run.
type xenHost struct{ *lvmHost }

// newXenHost is a host without volume groups: each guest's are made with it.
func newXenHost(t testing.TB) *xenHost {
	t.Helper()
	labxen.Need(t)
	return &xenHost{newLVMHost(t)}
}

// thinIn makes a volume group of that many MiB with a pool, and a thin volume in it.
func (h *xenHost) thinIn(vg string, sizeMiB int64, lv string, lvMiB int64) string {
	h.t.Helper()
	h.vg(vg, 1, sizeMiB)
	h.pool(vg, "pool", 256, 8)
	return h.thin(vg, "pool", lv, lvMiB)
}

// zeroes makes a volume's bytes zero: LVM gives what was there before.
func (h *xenHost) zeroes(device string) string {
	h.t.Helper()
	labneed.Run(h.t, "blkdiscard", "-z", device)
	return device
}

// two starts a guest that writes to two disks alternately: guest LVM on a partition, and a bare filesystem in another VG. Both are thin,
// since a thin snapshot takes an emulated processor half the time of a thick one.
func (h *xenHost) two(o labxen.Options) *labxen.DomU {
	h.t.Helper()
	root, data := h.thinIn("vga", 1024, "root", guestRootMiB), h.thinIn("vgb", 512, "data", guestDataMiB)
	labxen.MakeRoot(h.t, root, labxen.LVM)
	labxen.MakeData(h.t, data)
	o.Layout, o.Data = labxen.LVM, "/dev/xvdb"
	o.Disks = []labxen.Disk{{Target: root}, {Target: data}}
	return h.start(o)
}

// one starts a guest whose first disk is a filesystem on a thick volume.
func (h *xenHost) one(o labxen.Options) *labxen.DomU {
	h.t.Helper()
	h.vg("vga", 1, 1024)
	root := h.zeroes(h.thick("vga", "root", guestRootMiB))
	labxen.MakeRoot(h.t, root, labxen.Whole)
	o.Layout = labxen.Whole
	o.Disks = append([]labxen.Disk{{Target: root}}, o.Disks...)
	return h.start(o)
}

func (h *xenHost) within(t *testing.T) *xenHost { return &xenHost{h.lvmHost.within(t)} }

// subtest is of a guest that runs before it and after it.
type subtest struct {
	name string
	test func(t *testing.T, h *xenHost, d *labxen.DomU)
}

// share gives tests the same guest, one after the other: to boot one takes its time.
func (h *xenHost) share(t *testing.T, d *labxen.DomU, tests []subtest) {
	for _, s := range tests {
		t.Run(s.name, func(t *testing.T) {
			h := h.within(t)
			s.test(t, h, d.Within(t))
			if got := h.ours(); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
		})
	}
}

// start starts a guest whose configuration is the host's, too. It is to leave the processor to domfs and its tools, if o says nothing else.
func (h *xenHost) start(o labxen.Options) *labxen.DomU {
	h.t.Helper()
	o.Weight = cmp.Or(o.Weight, labxen.LightWeight)
	d := labxen.NewDomU(h.t, o)
	must(h.t, os.WriteFile(filepath.Join(h.xl, d.Name+".cfg"), []byte(readFile(h.t, d.Config)), 0o644))
	return d
}

// isPaused tells whether Xen has a domain paused.
func (h *xenHost) isPaused(d *labxen.DomU) bool {
	h.t.Helper()
	return xlState(h.t, d.Name)[2] == 'p'
}

// xlState is xl's own word for a domain's state: rbpscd, each letter or a hyphen.
func xlState(t testing.TB, name string) string {
	t.Helper()
	// Name ID Mem VCPUs State Time(s)
	fields := strings.Fields(labneed.Run(t, "xl", "list", name))
	state := ""
	if len(fields) > 1 {
		state = fields[len(fields)-2]
	}
	if len(state) != 6 {
		t.Fatalf("xl list has the state %q", fields)
	}
	return state
}

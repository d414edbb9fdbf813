package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/fake"
)

// mapBench is a bench whose host can map; with newOnes, sets are mapped as they are made.
func mapBench(t *testing.T, newOnes bool, more ...func(*setup)) (*bench, *fake.Mapper) {
	t.Helper()
	m := fake.NewMapper()
	s := setup{options: func(o *Options) {
		o.Mapper = m
		if newOnes {
			o.MapNew = []string{"fakestore"}
		}
	}}
	for _, f := range more {
		f(&s)
	}
	b := newBench(t, s)
	t.Cleanup(func() {
		b.Close()
		if n := m.Sets(); n != 0 {
			t.Errorf("%d sets are mapped after Close", n)
		}
		if left, _ := filepath.Glob(b.o.LockFile + ".map-*"); len(left) > 0 {
			t.Errorf("locks are left: %q", left)
		}
	})
	return b, m
}

func TestSetMapped_MapsAndUnmapsAllOfASet(t *testing.T) {
	b, m := mapBench(t, false)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	s := b.set("web01", "nightly")
	if s.Mapped || s.Device("xvda") != "" {
		t.Errorf("a new set is mapped: %+v", s)
	}
	b.must(b.SetMapped(t.Context(), "web01", "nightly", "1"))
	s = b.set("web01", "nightly")
	wantEqual(t, "mapped", m.Mapped(s.ID), []string{"xvda", "xvdb"})
	if !s.Mapped || s.Device("xvda") != "/dev/mapper/fake-"+s.ID+":xvda" || s.Device("xvdc") != "" {
		t.Errorf("the inventory has %v, %q", s.Mapped, s.Device("xvda"))
	}
	for _, k := range m.Requests()[0].Disks {
		if k.SizeBytes != 1<<20 || !strings.HasPrefix(k.Path, "/dev/fake/") {
			t.Errorf("asked for %+v", k)
		}
	}
	b.must(b.SetMapped(t.Context(), "web01", "nightly", "1"))
	b.must(b.SetMapped(t.Context(), "web01", "nightly", "0"))
	if s := b.set("web01", "nightly"); s.Mapped || m.Sets() != 0 {
		t.Errorf("after 0: %v, %d", s.Mapped, m.Sets())
	}
	b.must(b.SetMapped(t.Context(), "web01", "nightly", "0"))
	if n := m.Calls("Unmap"); n != 1 {
		t.Errorf("%d calls of Unmap, want 1", n)
	}
}

func TestSetMapped_RefusesWhatIsNoValueOrCannotBe(t *testing.T) {
	b, m := mapBench(t, false)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	for _, v := range []string{"", "2", "yes", "01"} {
		b.mustFail(b.SetMapped(t.Context(), "web01", "nightly", v), backend.ErrInvalid, "neither")
	}
	b.mustFail(b.SetMapped(t.Context(), "web01", "gone", "1"), backend.ErrNotExist)
	if m.Calls("Map") != 0 {
		t.Error("something was mapped")
	}
	none := newBench(t, setup{options: func(o *Options) { o.NoMapper = fmt.Errorf("only root can: %w", backend.ErrPermission) }})
	none.must(none.Snapshot(t.Context(), "web01", "nightly"))
	none.mustFail(none.SetMapped(t.Context(), "web01", "nightly", "1"), backend.ErrPermission, "only root can")
	none.must(none.SetMapped(t.Context(), "web01", "nightly", "0"))
}

// What is asked for has the bytes that the tree shows: of partitions, of volumes over two disks, of those in a partition.
func TestSetMapped_AsksForVolumesAtTheirPlaceInTheDisks(t *testing.T) {
	m := fake.NewMapper()
	b, _ := withLVM(t, setup{options: func(o *Options) { o.Mapper = m }})
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	b.must(b.SetMapped(t.Context(), "web01", "nightly", "1"))
	r := m.Requests()[0]
	whole := func(path string) string {
		t.Helper()
		ref := VolumeRef{SetID: r.SetID, Path: path}
		if vdev, rest, _ := strings.Cut(path, "/"); vdev != "lvm" {
			ref.VDev, ref.Path = vdev, rest
		}
		v := b.open(ref)
		defer v.Release()
		return bytesAt(t, v, 0, int(v.Device().Size()))
	}
	members := map[string]string{}
	for _, d := range r.Disks {
		members[d.VDev] = whole(d.VDev)
		for _, p := range d.Parts {
			path := d.VDev + "/" + p.Name
			members[path] = whole(path)
			if members[path] != members[d.VDev][p.Start:p.Start+p.Length] {
				t.Errorf("%s is not at %d of its disk", path, p.Start)
			}
			v := b.open(VolumeRef{SetID: r.SetID, VDev: d.VDev, Path: p.Name})
			if c, err := v.Content(); err != nil || c.Type != p.Content {
				t.Errorf("%s holds %q, asked for %q (%v)", path, c.Type, p.Content, err)
			}
			v.Release()
		}
	}
	var names []string
	for _, v := range r.Volumes {
		names = append(names, v.Name)
		for _, s := range v.Segments {
			to := s.Targets[0]
			if _, ok := members[to.Member]; !ok {
				members[to.Member] = whole(to.Member) // a physical volume on a logical one
			}
			if whole(v.Name)[s.Start:s.Start+s.Length] != members[to.Member][to.Offset:to.Offset+s.Length] {
				t.Errorf("%s at %d is not at %d of %s", v.Name, s.Start, to.Offset, to.Member)
			}
		}
	}
	slices.Sort(names)
	wantEqual(t, "volumes", names, []string{"lvm/vg0/home", "lvm/vg0/nested", "lvm/vg0/root", "lvm/vg1/deep"})
}

func TestSetMapped_WarnsOfWhatIsLeftOut(t *testing.T) {
	b, m := mapBench(t, false)
	m.LeaveOut("xvdb")
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	b.must(b.SetMapped(t.Context(), "web01", "nightly", "1"))
	if s := b.set("web01", "nightly"); s.Device("xvda") == "" || s.Device("xvdb") != "" {
		t.Errorf("devices %q and %q", s.Device("xvda"), s.Device("xvdb"))
	}
	b.lastErrorHas("web01", "WARNING", "xvdb cannot be mapped here")
}

func TestSnapshot_MapsAsItIsMade(t *testing.T) {
	b, m := mapBench(t, true)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	s := b.set("web01", "nightly")
	wantEqual(t, "mapped", m.Mapped(s.ID), []string{"xvda", "xvdb"})
	b.must(b.Rename(t.Context(), "web01", "nightly", "weekly"))
	if s := b.set("web01", "weekly"); !s.Mapped {
		t.Error("a rename has unmapped it")
	}
	b.must(b.Remove(t.Context(), "web01", "weekly"))
	if m.Sets() != 0 {
		t.Error("it is mapped after its removal")
	}
}

func TestSnapshot_IsTakenBackWhereItCannotBeMapped(t *testing.T) {
	for name, plant := range map[string]fake.Fault{
		"refused":      {Op: "Map", Err: fmt.Errorf("device-mapper is out of order: %w", backend.ErrIO)},
		"made, failed": {Op: "Map", Err: fmt.Errorf("device-mapper is out of order: %w", backend.ErrIO), After: true},
	} {
		t.Run(name, func(t *testing.T) {
			b, m := mapBench(t, true)
			m.Plant(plant)
			b.mustFail(b.Snapshot(t.Context(), "web01", "nightly"), backend.ErrIO, "device-mapper is out of order", "--map none")
			b.noSnapshotsLeft()
			if m.Sets() != 0 {
				t.Error("something is mapped")
			}
			if len(b.sets("web01")) != 0 {
				t.Errorf("sets %q", b.sets("web01"))
			}
		})
	}
}

func TestRemove_NamesWhoUsesADeviceAndLeavesAllAsItWas(t *testing.T) {
	b, m := mapBench(t, true)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	s := b.set("web01", "nightly")
	m.Use(s.ID, "xvdb", "mount on /mnt")
	for _, f := range []func() error{
		func() error { return b.Remove(t.Context(), "web01", "nightly") },
		func() error { return b.SetMapped(t.Context(), "web01", "nightly", "0") },
	} {
		b.mustFail(f(), backend.ErrBusy, "xvdb", "mount on /mnt")
		b.lastErrorHas("web01", "mount on /mnt")
		wantEqual(t, "mapped", m.Mapped(s.ID), []string{"xvda", "xvdb"})
		if s := b.set("web01", "nightly"); s.State != backend.SnapshotActive || !s.Mapped {
			t.Errorf("state %s, mapped %v", s.State, s.Mapped)
		}
	}
	v, err := b.Volume(t.Context(), VolumeRef{SetID: s.ID, VDev: "xvda"})
	if err != nil {
		t.Fatalf("it cannot be read after a removal that failed: %v", err)
	}
	v.Release()
	m.Use(s.ID, "xvdb", "")
	b.must(b.Remove(t.Context(), "web01", "nightly"))
	if m.Sets() != 0 {
		t.Error("it is mapped after its removal")
	}
}

func TestStart_RemovesMappingsOfADaemonThatDied(t *testing.T) {
	b, m := mapBench(t, true)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	s := b.set("web01", "nightly")
	again := func() *Host {
		o := b.o
		h := New(o)
		if err := h.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return h
	}
	// A second daemon leaves those of the living one alone.
	h := again()
	if !slices.Contains(m.Mapped(s.ID), "xvda") {
		t.Error("the second daemon has removed the first one's")
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if !slices.Contains(m.Mapped(s.ID), "xvda") {
		t.Error("the second daemon's end has removed the first one's")
	}
	// The first one dies: the kernel ends its locks.
	b.mappings.disown(s.ID, false)
	// A daemon with another lock file knows nothing of it.
	other := New(Options{Mapper: m, Hypervisors: b.o.Hypervisors, Stores: b.o.Stores, LockFile: filepath.Join(t.TempDir(), "lock")})
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if m.Sets() != 1 {
		t.Error("a daemon with another lock file has removed it")
	}
	h = again()
	defer h.Close()
	if m.Sets() != 0 {
		t.Error("what the dead one left is there")
	}
	if left, _ := filepath.Glob(b.o.LockFile + ".map-*"); len(left) > 0 {
		t.Errorf("locks are left: %q", left)
	}
	if b.set("web01", "nightly").Mapped {
		t.Error("the inventory says that it is mapped")
	}
}

func TestClose_UnmapsWhatThisDaemonMapped(t *testing.T) {
	b, m := mapBench(t, true)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	if m.Sets() != 1 {
		t.Fatal("it is not mapped")
	}
	b.must(b.Close())
	if m.Sets() != 0 {
		t.Error("it is mapped after Close")
	}
}

func TestInventory_ShowsTheLastWordOfAMapperThatCannotSay(t *testing.T) {
	b, m := mapBench(t, true)
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	if !b.set("web01", "nightly").Mapped {
		t.Fatal("it is not mapped")
	}
	clear := m.Fail("Mappings", fmt.Errorf("dmsetup hangs: %w", backend.ErrTimeout))
	if !b.set("web01", "nightly").Mapped {
		t.Error("a mapper that cannot say makes it unmapped")
	}
	clear()
	// Somebody else changes it: whoever has it cached is told.
	b.must(m.Unmap(context.Background(), b.set("web01", "nightly").ID))
	eventually(t, "the change is told", func() bool {
		b.inv()
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.changes) > 1
	})
}

func TestSetMapped_RefusesWhatIsNotActive(t *testing.T) {
	d := &SnapshotDir{Name: "web01"}
	for state, want := range map[backend.SnapshotState]error{
		backend.SnapshotActive: nil, backend.SnapshotInvalid: backend.ErrIO, backend.SnapshotFilling: backend.ErrBusy, backend.SnapshotRemoving: backend.ErrBusy,
	} {
		if err := (&Set{Name: "s", State: state}).mappable(d); !errors.Is(err, want) {
			t.Errorf("%s: %v", state, err)
		}
	}
}

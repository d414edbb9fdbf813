package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// lvmGuest makes web01 a guest with the group vg0: root on xvda/p2 alone, home on xvda/p2 and xvdb.
func lvmGuest(h *fake.Host, guests *fake.Guests) {
	root, home := fake.NewGuest("lvm-root"), fake.NewGuest("lvm-home")
	root.Label, home.Label = "rootfs", "homefs"
	guests.Add(root)
	guests.Add(home)
	const k = 1 << 10
	a := make([]byte, 1<<20)
	copy(a, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 64 * k, Length: 64 * k}, fake.TablePart{Number: 2, OffsetBytes: 512 * k, Length: 512 * k}))
	copy(a[512*k:], fake.PVHeader("vg0", "pv-a",
		fake.PVExtent{LV: "root", Count: 1, OffsetBytes: 64 * k, Length: 128 * k},
		fake.PVExtent{LV: "home", Count: 2, OffsetBytes: 256 * k, Length: 64 * k},
		fake.PVExtent{LV: "nested", Count: 1, OffsetBytes: 384 * k, Length: 64 * k}))
	copy(a[(512+64)*k:], root.Header())
	copy(a[(512+256)*k:], home.Header())
	// A physical volume on a logical one.
	copy(a[(512+384)*k:], fake.PVHeader("vg1", "pv-c", fake.PVExtent{LV: "deep", Count: 1, OffsetBytes: 8 * k, Length: 16 * k}))
	copy(a[(512+384+8)*k:], fake.TableHeader(fake.TablePart{Number: 3, OffsetBytes: 4 * k, Length: 4 * k}))
	copy(a[(512+384+8+4)*k:], "bytes of the third partition")
	b := make([]byte, 1<<20)
	copy(b, fake.PVHeader("vg0", "pv-b", fake.PVExtent{LV: "home", Index: 1, Count: 2, OffsetBytes: 32 * k, Length: 32 * k}))
	copy(b[32*k:], "second run of home")
	h.AddDomain("web01", uuid1, map[string][]byte{"xvda": a, "xvdb": b}, "xvda", "xvdb")
}

func withLVM(t *testing.T, s setup) (*bench, *fake.Guests) {
	guests := fake.NewGuests()
	s.domains = func(h *fake.Host) { lvmGuest(h, guests) }
	also := s.options
	s.options = func(o *Options) {
		o.Prober, o.Layouts, o.Filesystems = guests, []backend.Layout{fake.Table{}}, []backend.Filesystem{guests}
		o.Assemblers = []backend.Assembler{&fake.Assembler{}}
		if also != nil {
			also(o)
		}
	}
	return newBench(t, s), guests
}

// groups are the names of all guest volumes.
func (b *bench) groups(ref VolumeRef) (names []string) {
	b.t.Helper()
	gs, err := b.Groups(b.t.Context(), ref, "lvm")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, g := range gs {
		for _, v := range g.Volumes {
			names = append(names, g.Name+"/"+v.Name)
		}
	}
	return names
}

func bytesAt(t *testing.T, v *Volume, off int64, n int) string {
	t.Helper()
	p := make([]byte, n)
	if _, err := v.Device().ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(p)
}

func TestUsable_OfWhatLiesOverDisksEndsWithTheFirstOfThem(t *testing.T) {
	guests := fake.NewGuests()
	host := fake.NewHost()
	lvmGuest(host, guests)
	host.Store.SetReserve(100 << 10)
	b := guardBench(t, AutoExtend{}, setup{onFake: host, options: func(o *Options) {
		o.Prober, o.Layouts, o.Filesystems = guests, []backend.Layout{fake.Table{}}, []backend.Filesystem{guests}
		o.Assemblers = []backend.Assembler{&fake.Assembler{}}
	}})
	id := b.set("web01", "s").ID
	for _, path := range []string{"lvm/vg0/root", "lvm/vg1/deep/p3"} { // both on xvda alone
		v := b.open(VolumeRef{SetID: id, Path: path})
		defer v.Release()
		if err := v.Usable(); err != nil || !v.CanOverflow() {
			t.Fatalf("%s: %v, can overflow: %t", path, err, v.CanOverflow())
		}
		defer func() {
			b.mustFail(v.Usable(), backend.ErrIO, "xvda", "invalid")
			if _, err := v.Content(); !errors.Is(err, backend.ErrIO) {
				t.Errorf("content of %s: %v", path, err)
			}
		}()
	}
	b.fake.Store.Invalidate(id, "xvda")
	b.fake.Store.Happen()
	eventually(t, "it is known", func() bool { return b.set("web01", "s").Disk("xvda").State == backend.SnapshotInvalid })
	if _, err := b.Volume(t.Context(), VolumeRef{SetID: id, Path: "lvm/vg0/root"}); !errors.Is(err, backend.ErrIO) {
		t.Errorf("opened anew: %v", err)
	}
}

func TestGroups_AreAssembledOverAllDisksOfADomainThatIsOffAndOfASnapshot(t *testing.T) {
	b, _ := withLVM(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	set := b.set("web01", "s").ID
	for _, ref := range []VolumeRef{{Domain: "web01"}, {SetID: set}} {
		if got, want := fmt.Sprint(b.groups(ref)), "[vg0/home vg0/nested vg0/root vg1/deep]"; got != want {
			t.Errorf("groups of %+v: %s, want %s", ref, got, want)
		}
		at := func(path string) VolumeRef { r := ref; r.Path = path; return r }
		home := b.open(at("lvm/vg0/home"))
		if c, err := home.Content(); err != nil || c.Label != "homefs" || home.Device().Size() != 96<<10 {
			t.Errorf("home: %+v, %v, %d bytes", c, err, home.Device().Size())
		}
		if got := bytesAt(t, home, 64<<10, 18); got != "second run of home" {
			t.Errorf("home's second run begins %q", got)
		}
		if home.Frozen() != (ref.SetID != "") {
			t.Errorf("frozen: %t", home.Frozen())
		}
		home.Release()
		deep := b.open(at("lvm/vg1/deep/p3"))
		if got := bytesAt(t, deep, 0, 28); got != "bytes of the third partition" {
			t.Errorf("a partition in a volume on a volume: %q", got)
		}
		if got := deep.Ref(); got != at("lvm/vg1/deep/p3") {
			t.Errorf("its ref is %+v", got)
		}
		deep.Release()
		for _, path := range []string{"lvm", "lvm/vg0", "lvm/vg9/root", "lvm/vg0/r", "lvm/vg0/root/p1", "lvm/vg0/root/x", "md/vg0/root", "lvm//", ""} {
			if _, err := b.Volume(t.Context(), at(path)); !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("volume %q: %v, want that it does not exist", path, err)
			}
		}
	}
	if got := string(b.LastErrors("web01")); got != "" {
		t.Errorf("last_error: %s", got)
	}
}

func TestAssembly_IsMadeOncePerGeneration(t *testing.T) {
	b, _ := withLVM(t, setup{})
	made := func() int64 { return b.Stats()["assemblies"] }
	ref := VolumeRef{Domain: "web01"}
	for range 3 {
		b.groups(ref)
	}
	if made() != 1 {
		t.Fatalf("%d assemblies were made of disks that did not change", made())
	}
	v := b.open(VolumeRef{Domain: "web01", Path: "lvm/vg0/root"})
	b.fake.Store.Write("/images/web01-xvdb", 512<<10, []byte("x"))
	b.inv()
	if v.Acquire() {
		t.Error("a volume is still acquired after one of its domain's disks changed")
		v.Release()
	}
	b.groups(ref)
	if made() != 2 {
		t.Errorf("%d assemblies, want a second one after a disk changed", made())
	}
	v.Release()
}

func TestAssembly_IsGoneOnceTheDomainRuns(t *testing.T) {
	b, _ := withLVM(t, setup{})
	ref := VolumeRef{Domain: "web01"}
	v := b.open(VolumeRef{Domain: "web01", Path: "lvm/vg0/root"})
	b.fake.Hypervisor.Start("web01")
	b.inv()
	if v.Acquire() {
		t.Error("acquired though the domain runs")
		v.Release()
	}
	v.Release()
	_, err := b.Groups(t.Context(), ref, "lvm")
	b.mustFail(err, backend.ErrStale, "web01 runs")
	eventually(t, "the disks are closed", func() bool { n, _ := b.volumes.counts(); return n == 0 })
	if got := string(b.LastErrors("web01")); got != "" {
		t.Errorf("last_error: %s", got)
	}
}

func TestAssembly_ADiskThatCannotBeReadHidesOnlyWhatLiesOnIt(t *testing.T) {
	b, _ := withLVM(t, setup{limits: func(l *limits) { l.idle = 100 * time.Millisecond }})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	ref := VolumeRef{SetID: b.set("web01", "s").ID}
	clear := b.fake.Store.Plant(fake.Fault{Op: "Open", ID: b.set("web01", "s").Disk("xvdb").Volume.ID, Err: fmt.Errorf("a cable is loose: %w", backend.ErrIO)})
	if got, want := fmt.Sprint(b.groups(ref)), "[vg0/home vg0/nested vg0/root vg1/deep]"; got != want {
		t.Errorf("groups: %s, want %s", got, want)
	}
	v := b.open(VolumeRef{SetID: ref.SetID, Path: "lvm/vg0/root"})
	if c, err := v.Content(); err != nil || c.Label != "rootfs" {
		t.Errorf("root: %+v, %v", c, err)
	}
	v.Release()
	_, err := b.Volume(t.Context(), VolumeRef{SetID: ref.SetID, Path: "lvm/vg0/home"})
	b.mustFail(err, backend.ErrIO, "lvm/vg0/home on the disks in snapshot s of web01", "lacks a physical volume", "a cable is loose")
	last := string(b.LastErrors("web01"))
	for _, want := range []string{"lvm WARNING the disks in snapshot s of web01: vg0: home lacks", "open EIO disk xvdb in snapshot s of web01: a cable is loose"} {
		if strings.Count(last, want) != 1 {
			t.Errorf("last_error does not say %q once:\n%s", want, last)
		}
	}
	clear()
	eventually(t, "it is whole again", func() bool {
		v, err := b.Volume(t.Context(), VolumeRef{SetID: ref.SetID, Path: "lvm/vg0/home"})
		if err == nil {
			v.Release()
		}
		return err == nil
	})
}

func TestAssembly_ADriverThatPanicsIsAnErrorOfItsOwn(t *testing.T) {
	b, _ := withLVM(t, setup{options: func(o *Options) { o.Assemblers = []backend.Assembler{&fake.Assembler{Panic: true}} }})
	if got := b.groups(VolumeRef{Domain: "web01"}); len(got) != 0 {
		t.Errorf("groups: %v", got)
	}
	if got := string(b.LastErrors("web01")); !strings.Contains(got, "lvm EUCLEAN the disks of web01: what is there confuses the lvm driver") {
		t.Errorf("last_error: %s", got)
	}
	v := b.open(VolumeRef{Domain: "web01", VDev: "xvda", Path: "p2"})
	v.Release()
}

// many is an Assembler of a group with many volumes, of which none can be read.
type many struct {
	fake.Assembler
	reads *atomic.Int64
}

func (m *many) Assemble(members []backend.Member) ([]backend.Group, []string) {
	g := backend.Group{Name: "vg0"}
	for i := range 4000 {
		g.Volumes = append(g.Volumes, backend.GroupVolume{Name: fmt.Sprintf("v%04d", i), Device: unreadable{m.reads}})
	}
	return []backend.Group{g}, nil
}

type unreadable struct{ reads *atomic.Int64 }

func (unreadable) Size() int64  { return 1 << 20 }
func (unreadable) Close() error { return nil }
func (u unreadable) ReadAt([]byte, int64) (int, error) {
	u.reads.Add(1)
	return 0, fmt.Errorf("the guest has an error segment there: %w", backend.ErrIO)
}

func TestAssembly_ManyVolumesThatCannotBeReadAreToldOfInBounds(t *testing.T) {
	var reads atomic.Int64
	b, _ := withLVM(t, setup{options: func(o *Options) { o.Assemblers = []backend.Assembler{&many{reads: &reads}} }})
	if got := b.groups(VolumeRef{Domain: "web01"}); len(got) != 4000 {
		t.Errorf("%d volumes are listed", len(got))
	}
	if n := len(b.eventsOf("error")); n == 0 || n > maxErrorsPerDomain {
		t.Errorf("%d errors are told", n)
	}
	if n := reads.Load(); n > 2*maxSeen {
		t.Errorf("%d reads", n)
	}
}

// costly is an Assembler whose volumes cost 7 reads, and which notes what its members cost.
type costly struct {
	fake.Assembler
	members map[string]int64
}

func (c *costly) Assemble(members []backend.Member) ([]backend.Group, []string) {
	for _, m := range members {
		c.members[m.Name] = m.Cost
	}
	groups, warnings := c.Assembler.Assemble(members)
	for _, g := range groups {
		for i := range g.Volumes {
			g.Volumes[i].Cost = 7
		}
	}
	return groups, warnings
}

func TestAssembly_TellsWhatMembersCostThatLieOnVolumes(t *testing.T) {
	c := &costly{members: map[string]int64{}}
	b, _ := withLVM(t, setup{options: func(o *Options) { o.Assemblers = []backend.Assembler{c} }})
	b.groups(VolumeRef{Domain: "web01"})
	if want := map[string]int64{"xvda/p2": 0, "xvdb": 0, "lvm/vg0/nested": 7}; !maps.Equal(c.members, want) {
		t.Errorf("members cost %v, want %v", c.members, want)
	}
}

func TestAssembly_KeepsNoDiskOpenThatHoldsNothingOfIt(t *testing.T) {
	guests := fake.NewGuests()
	b := newBench(t, setup{options: func(o *Options) {
		o.Prober, o.Assemblers = guests, []backend.Assembler{&fake.Assembler{}}
	}})
	if got := b.groups(VolumeRef{Domain: "web01"}); len(got) != 0 {
		t.Errorf("groups: %v", got)
	}
	if _, acquired := b.volumes.counts(); acquired != 0 {
		t.Errorf("%d volumes are acquired", acquired)
	}
}

func TestAssembly_IsClosedBeforeItsDisksWhenTheSnapshotIsRemoved(t *testing.T) {
	b, _ := withLVM(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	ref := VolumeRef{SetID: b.set("web01", "s").ID}
	b.groups(ref)
	if n := b.fake.Store.OpenDevices(); n != 2 {
		t.Fatalf("%d devices are open, want the two that hold physical volumes", n)
	}
	b.must(b.Remove(t.Context(), "web01", "s"))
	if n := b.fake.Store.OpenDevices(); n != 0 {
		t.Errorf("%d devices are open after the removal", n)
	}
	_, err := b.Groups(t.Context(), ref, "lvm")
	b.mustFail(err, backend.ErrNotExist)
}

func TestAssembly_IsClosedWhenIdleAndMakesRoom(t *testing.T) {
	b, _ := withLVM(t, setup{limits: func(l *limits) { l.idle = 50 * time.Millisecond }})
	b.groups(VolumeRef{Domain: "web01"})
	eventually(t, "nothing is open", func() bool { return b.fake.Store.OpenDevices() == 0 })
	b.lim.disks = 0
	b.groups(VolumeRef{Domain: "web01"})
	if n := b.fake.Store.OpenDevices(); n != 0 {
		t.Errorf("%d devices are open though there is room for none", n)
	}
}

func TestAssembly_WhoeverComesWhileItIsMadeSharesIt(t *testing.T) {
	b, _ := withLVM(t, setup{})
	hang := make(chan struct{})
	defer b.fake.Store.Plant(fake.Fault{Op: "Open", Hang: hang})()
	const many = 8
	got := make(chan error, many)
	for range many {
		go func() {
			_, err := b.Groups(t.Context(), VolumeRef{Domain: "web01"}, "lvm")
			got <- err
		}()
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Groups(short, VolumeRef{Domain: "web01"}, "lvm"); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("one who does not wait: %v", err)
	}
	close(hang)
	for range many {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if n := b.Stats()["assemblies"]; n != 1 {
		t.Errorf("%d assemblies", n)
	}
}

func TestFitGroups_KeepsWhatCanBeADirectory(t *testing.T) {
	dev := backend.Device(noBytes{})
	groups, warnings := fitGroups("lvm", []backend.Group{
		{Name: "vg", Volumes: []backend.GroupVolume{{Name: "a", Device: dev}, {Name: "a", Device: dev}, {Name: "x/y", Device: dev}, {Name: "..", Device: dev}, {Name: "b"}}},
		{Name: "vg", UUID: "second"}, {Name: ""}, {Name: "."}, {Name: "a/b"}, {Name: "nul\x00"}, {Name: strings.Repeat("n", 256)},
	})
	if len(groups) != 1 || len(warnings) != 7 {
		t.Fatalf("%d groups, %d warnings", len(groups), len(warnings))
	}
	var names []string
	for _, v := range groups[0].Volumes {
		names = append(names, v.Name)
	}
	if !slices.Equal(names, []string{"a", "b"}) || !errors.Is(groups[0].Volumes[1].Err, backend.ErrCorrupt) {
		t.Errorf("volumes %v, %v", names, groups[0].Volumes)
	}
	if !strings.Contains(warnings[0], "3 volumes of vg are not shown") || !strings.Contains(warnings[1], "second") || bytes.ContainsRune([]byte(strings.Join(warnings, "")), 0) {
		t.Errorf("warnings %q", warnings)
	}
}

package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestInventory_AsksEachStoreOnceForAllDisks(t *testing.T) {
	b := newBench(t, setup{noStart: true, domains: func(h *fake.Host) {
		for i := range 5 {
			h.AddDomain(fmt.Sprintf("web%02d", i), "", nil, "xvda", "xvdb")
		}
	}})
	inv := b.inv()
	if len(inv.Domains) != 5 || b.fake.Store.Calls("Volumes") != 1 || b.fake.Hypervisor.Calls("Domains") != 1 {
		t.Errorf("%d domains, %d and %d calls", len(inv.Domains), b.fake.Store.Calls("Volumes"), b.fake.Hypervisor.Calls("Domains"))
	}
	if len(inv.Pools) != 1 || inv.Pools[0].Name != "fakestore" {
		t.Errorf("pools %+v", inv.Pools)
	}
}

func TestInventory_FirstStoreToClaimADiskWins(t *testing.T) {
	second, third := fake.NewStore("second"), fake.NewStore("third")
	for _, s := range []*fake.Store{second, third} {
		s.AddVolume("/images/web01-xvda", make([]byte, 512))
		s.AddVolume("/other", make([]byte, 512))
	}
	b := newBench(t, setup{options: func(o *Options) { o.Stores = append(o.Stores, second.Driver(0), third.Driver(0)) }})
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", Source: "/other"}, backend.Disk{VDev: "hdc", CDROM: true},
			backend.Disk{VDev: "xvdd", Source: "/nowhere", Script: "block-drbd"}, backend.Disk{VDev: "xvde", Source: "/other", BackendDomain: "netdom"})
	})
	d := b.inv().Domain("web01")
	var got []string
	for _, v := range d.Volumes {
		got = append(got, v.Store)
	}
	wantEqual(t, "stores", got, []string{"fakestore", "fakestore", "second", "", "", ""})
	for i, want := range map[int]error{3: backend.ErrNoDevice, 4: backend.ErrUnsupported, 5: backend.ErrUnsupported} {
		if !errors.Is(d.Volumes[i].Err, want) {
			t.Errorf("%s: %v, want %v", d.Disks[i].VDev, d.Volumes[i].Err, want)
		}
	}
	if err := d.Volumes[4].Err.Error(); !strings.Contains(err, "no store here reads /nowhere") || !strings.Contains(err, "block-drbd") {
		t.Errorf("reason %q", err)
	}
}

func TestInventory_IsRunningWhereSomebodyHoldsADisk(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.Hold("/images/web01-xvdb", "qemu (pid 7)")
	if d := b.inv().Domain("web01"); d.State != backend.StateRunning || d.Holder != "qemu (pid 7)" {
		t.Errorf("state %s, holder %q", d.State, d.Holder)
	}
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Disks[1].Mode = backend.ReadOnly })
	b.invalidate()
	if d := b.inv().Domain("web01"); d.State != backend.StateOff {
		t.Errorf("a disk that the guest cannot write to makes it %s", d.State)
	}
}

func TestInventory_FailingDriversHideNothing(t *testing.T) {
	broken := fake.NewHypervisor("broken")
	broken.Fail("Domains", fmt.Errorf("xl: %w", backend.ErrIO))
	deaf := fake.NewStore("deaf")
	hang := make(chan struct{})
	deaf.Plant(fake.Fault{Op: "Volumes", Hang: hang, Deaf: true})
	b := newBench(t, setup{
		options: func(o *Options) {
			o.Hypervisors = append([]backend.Hypervisor{broken.Driver(0)}, o.Hypervisors...)
			o.Stores = append([]backend.Store{deaf.Driver(fake.All)}, o.Stores...)
		},
		limits: func(l *limits) { l.read = 50 * time.Millisecond },
	})
	defer close(hang)
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", Source: "/maybe/deaf"})
	})
	for range 3 {
		d := b.inv().Domain("web01")
		if d == nil || d.Volumes[0].Err != nil || d.Volumes[0].Store != "fakestore" {
			t.Fatalf("domain %+v", d)
		}
		if err := d.Volumes[2].Err; !errors.Is(err, backend.ErrTimeout) || !strings.Contains(err.Error(), "deaf") {
			t.Errorf("the reason is %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	began := time.Now()
	b.invalidate()
	b.inv()
	if took := time.Since(began); took >= 50*time.Millisecond {
		t.Errorf("a store that is known to hang costs another %s", took)
	}
	if n := deaf.Calls("Volumes"); n != 1 {
		t.Errorf("a store that does not answer was asked %d times", n)
	}
	for _, what := range []string{"hypervisor broken", "store deaf"} {
		n := 0
		for _, e := range b.logs.FilterMessage("a driver cannot be read").All() {
			if e.ContextMap()["driver"] == what && (e.ContextMap()["op"] == "domains" || e.ContextMap()["op"] == "volumes") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s was logged %d times", what, n)
		}
	}
}

func TestInventory_ShowsWhatCannotBeReadAsItWasAndRefusesToChangeIt(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	clear := b.fake.Hypervisor.Fail("Domains", backend.ErrIO)
	b.invalidate()
	if d := b.inv().Domain("web01"); d == nil || d.Stale == nil || d.Volumes[0].Err != nil {
		t.Fatalf("domain %+v", d)
	}
	b.mustFail(b.Snapshot(t.Context(), "web01", "t"), backend.ErrIO, "not known now")
	v, err := b.Volume(t.Context(), VolumeRef{Domain: "web01", VDev: "xvda"})
	b.must(err)
	if !v.Running() {
		t.Error("a domain of which nothing is known is taken for one that is off")
	}
	v.Release()
	clear()
	clear = b.fake.Store.Fail("Snapshots", backend.ErrIO)
	b.invalidate()
	if s := b.set("web01", "s"); s.Stale == nil || s.State != backend.SnapshotActive {
		t.Fatalf("set %+v", s)
	}
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrIO)
	clear()
	b.must(b.Remove(t.Context(), "web01", "s"))
}

func TestInventory_IsAnErrorWhereNothingCanBeRead(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	clear := b.fake.Hypervisor.Fail("Domains", backend.ErrAccess)
	if _, err := b.Inventory(t.Context()); !errors.Is(err, backend.ErrAccess) {
		t.Errorf("error %v", err)
	}
	clear()
	b.inv()
}

func TestInventory_IsReadOnceForAllWhoWait(t *testing.T) {
	b := newBench(t, setup{noStart: true, options: func(o *Options) { o.MaxAge = time.Hour }})
	hang := make(chan struct{})
	b.fake.Hypervisor.Plant(fake.Fault{Op: "Domains", Hang: hang})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if inv, err := b.Inventory(t.Context()); err != nil || inv.Domain("web01") == nil {
				t.Errorf("%v", err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Inventory(ctx); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("impatient: %v", err)
	}
	close(hang)
	wg.Wait()
	b.inv()
	if n := b.fake.Hypervisor.Calls("Domains"); n != 1 {
		t.Errorf("read %d times", n)
	}
}

func TestInventory_RecordsFaultsOfAConfigurationOnce(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Warnings = []string{"web01.cfg:7: unknown option foo"}
		d.Err = fmt.Errorf("web01.cfg:9: a quote is not closed: %w", backend.ErrInvalid)
	})
	for range 3 {
		time.Sleep(2 * time.Millisecond)
		b.inv()
	}
	text := string(b.LastErrors("web01"))
	if strings.Count(text, "\n") != 2 {
		t.Errorf("last_error:\n%s", text)
	}
	b.lastErrorHas("web01", " config WARNING web01.cfg:7", " config EINVAL web01.cfg:9")
	if n := len(b.eventsOf("warning")); n != 1 {
		t.Errorf("%d warnings", n)
	}
}

func TestSnapshotDir_FollowsTheDomain(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.fake.Hypervisor.Rename("web01", "shop")
	b.invalidate()
	wantEqual(t, "renamed", b.dirs(), []string{"shop"})
	wantEqual(t, "its sets", b.sets("shop"), []string{"s"})
	if d := b.inv().Domain("shop"); d.SnapshotDir != "shop" {
		t.Errorf("dir %q", d.SnapshotDir)
	}
	b.fake.Hypervisor.Remove("shop")
	b.invalidate()
	wantEqual(t, "gone", b.dirs(), []string{"web01"}) // the name in the record
	b.must(b.Rename(t.Context(), "web01", "s", "t"))
	b.must(b.Remove(t.Context(), "web01", "t"))
	wantEqual(t, "empty", b.dirs(), nil)
}

func TestSnapshotDir_OfAGoneDomainYieldsItsName(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.fake.Hypervisor.Remove("web01")
	b.fake.AddDomain("web01", uuid2, nil, "xvda")
	b.invalidate()
	wantEqual(t, "dirs", b.dirs(), []string{"web01", "web01@11111111"})
	wantEqual(t, "new", b.sets("web01"), []string{})
	wantEqual(t, "old", b.sets("web01@11111111"), []string{"s"})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.fake.Hypervisor.Remove("web01")
	b.invalidate()
	wantEqual(t, "both gone", b.dirs(), []string{"web01", "web01@11111111"})
	if d := b.inv().SnapshotDir("web01"); d.Sets[0].DomainUUID != uuid2 {
		t.Errorf("the name is not the latest's: %+v", d.Sets[0])
	}
}

func TestSnapshotDir_OfADomainWithoutUUIDGoesByName(t *testing.T) {
	b := newBench(t, setup{domains: func(h *fake.Host) { h.AddDomain("old", "", nil, "xvda") }})
	b.must(b.Snapshot(t.Context(), "old", "s"))
	b.fake.Hypervisor.Change("old", func(d *backend.Domain) { d.UUID = uuid2 })
	b.invalidate()
	wantEqual(t, "with a uuid", b.sets("old"), []string{"s"})
	b.fake.Hypervisor.Rename("old", "new")
	b.invalidate()
	wantEqual(t, "renamed", b.dirs(), []string{"new", "old"})
}

func TestSnapshotDir_TellsDomainsWithOneUUIDApartByName(t *testing.T) {
	b := newBench(t, setup{domains: func(h *fake.Host) {
		h.AddDomain("a", uuid1, nil, "xvda")
		h.AddDomain("b", uuid1, nil, "xvda")
	}})
	b.must(b.Snapshot(t.Context(), "b", "s"))
	wantEqual(t, "a", b.sets("a"), []string{})
	wantEqual(t, "b", b.sets("b"), []string{"s"})
	b.lastErrorHas("a", "WARNING its uuid is also that of b")
}

func TestSnapshotDir_GivesEqualNamesASuffix(t *testing.T) {
	b := newBench(t, setup{domains: func(h *fake.Host) { h.AddDomain("a", "", nil, "xvda") }})
	b.must(b.Snapshot(t.Context(), "a", "s"))
	first := b.fake.Store.All()[0]
	second := first
	second.Set = "20300101T000000000-zzzzzz"
	second.Created = first.Created.Add(time.Hour)
	b.fake.Store.Put(second)
	b.invalidate()
	wantEqual(t, "sets", b.sets("a"), []string{"s", "s@zzzzzz"})
	b.must(b.Remove(t.Context(), "a", "s@zzzzzz"))
	wantEqual(t, "sets", b.sets("a"), []string{"s"})
	if b.set("a", "s").ID != first.Set {
		t.Error("the wrong one was removed")
	}
}

func TestSuffixed_FitsIntoAName(t *testing.T) {
	for _, name := range []string{strings.Repeat("x", 255), strings.Repeat("ü", 127), strings.Repeat("日", 85)} {
		got := suffixed(name, "12345678")
		if len(got) > 255 || !strings.HasSuffix(got, "@12345678") || checkName(got) != nil {
			t.Errorf("%d bytes: %s", len(got), got)
		}
	}
}

func TestSetState_IsThatOfItsMembers(t *testing.T) {
	const p, f, a, i, r = backend.SnapshotPending, backend.SnapshotFilling, backend.SnapshotActive, backend.SnapshotInvalid, backend.SnapshotRemoving
	for _, c := range []struct {
		members []backend.SnapshotState
		count   int
		want    backend.SnapshotState
		hidden  bool
	}{
		{[]backend.SnapshotState{a, a}, 2, a, false},
		{[]backend.SnapshotState{a, f}, 2, f, false},
		{[]backend.SnapshotState{a}, 2, i, false},
		{[]backend.SnapshotState{a, i}, 2, i, false},
		{[]backend.SnapshotState{i, r}, 2, r, false},
		{[]backend.SnapshotState{r}, 2, r, false},
		{[]backend.SnapshotState{p, a}, 2, p, true},
		{[]backend.SnapshotState{p}, 2, i, true},
		{[]backend.SnapshotState{p, r}, 2, r, false},
	} {
		var snaps []backend.Snapshot
		for n, st := range c.members {
			snaps = append(snaps, backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: "x", State: st, DiskCount: c.count, Disk: backend.Disk{VDev: fmt.Sprint(n)}}})
		}
		s := groupSets(snaps, nil)[0]
		if s.State != c.want || s.isPending() != c.hidden {
			t.Errorf("%v of %d: %s, hidden %t; want %s, %t", c.members, c.count, s.State, s.isPending(), c.want, c.hidden)
		}
	}
}

func TestInventory_TellsOfChangesItSees(t *testing.T) {
	b := newBench(t, setup{})
	b.inv()
	b.mu.Lock()
	b.changes = nil
	b.mu.Unlock()
	time.Sleep(2 * time.Millisecond)
	b.fake.Hypervisor.Start("web01")
	b.inv()
	eventually(t, "told", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.changes) == 1 && b.changes[0] == Change{Domain: "web01"}
	})
}

func TestInventory_TellsOfWhatOthersChangedThoughAChangeOfOursCameBetween(t *testing.T) {
	b := newBench(t, setup{})
	b.inv()
	b.fake.Hypervisor.Start("web01")
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.inv()
	eventually(t, "told", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Contains(b.changes, Change{Domain: "web01"})
	})
}

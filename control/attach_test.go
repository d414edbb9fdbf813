package control

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// running is a host whose domain web01 runs, with a second pool.
func running(t *testing.T, s setup) *bench {
	t.Helper()
	onLimits := s.limits
	s.limits = func(l *limits) {
		l.observe, l.appear = 0, time.Second
		if onLimits != nil {
			onLimits(l)
		}
	}
	b := newBench(t, s)
	b.fake.Store.AddPool(backend.Pool{Name: "vg1", Driver: "fake", SizeBytes: 1 << 30, FreeBytes: 1 << 30})
	b.fake.Hypervisor.Start("web01")
	b.invalidate()
	return b
}

// nothingMade looks that no volume, and no new disk, is left.
func (b *bench) nothingMade() {
	b.t.Helper()
	if left := b.fake.Store.Unfinished(); len(left) > 0 || b.fake.Store.Making() != 0 || b.fake.Store.HasVolume("/images/web01-xvdc") {
		b.t.Errorf("left over: %q, %d open", left, b.fake.Store.Making())
	}
	if d := b.inv().Domain("web01"); d != nil && d.Disk("xvdc") >= 0 {
		b.t.Error("the domain has the disk")
	}
}

func TestAttach_MakesAClearedVolumeAndGivesItToTheDomain(t *testing.T) {
	for _, c := range []struct{ source, size, pool string }{{"", "1.5M", "fakestore"}, {"vg1", "+2M", "vg1"}, {"fakestore", "4096", "fakestore"}} {
		t.Run(c.source, func(t *testing.T) {
			b := running(t, setup{})
			b.fake.Store.SetUnit(1 << 20)
			b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
			if got := b.NewDisks("web01"); len(got) != 1 || got[0] != (NewDisk{VDev: "xvdc"}) {
				t.Errorf("new disks: %+v", got)
			}
			if c.source != "" {
				b.must(b.SetSource(t.Context(), "web01", "xvdc", c.source))
				if n, ok := b.FindNewDisk("web01", "xvdc"); !ok || n.Source != c.source {
					t.Errorf("%+v, %t", n, ok)
				}
			}
			b.must(b.Attach(t.Context(), "web01", "xvdc", c.size))
			d := b.inv().Domain("web01")
			i := d.Disk("xvdc")
			if i < 0 {
				t.Fatal("the domain has no such disk")
			}
			_, asked, _ := ParseSize(c.size)
			v := d.Volumes[i]
			if want := (asked + 1<<20 - 1) >> 20 << 20; v.SizeBytes != want || v.Pool != c.pool || v.Unfinished || d.Disks[i].Mode != backend.ReadWrite || d.Disks[i].Source != "/images/web01-xvdc" {
				t.Errorf("the disk is %+v, its volume %+v, want %d bytes in %s", d.Disks[i], v, want, c.pool)
			}
			if b.fake.Store.Making() != 0 || bytes.Contains(b.fake.Store.Bytes("/images/web01-xvdc"), []byte(fake.Stale)) {
				t.Error("the volume is open still, or shows what another guest had there")
			}
			if got := b.NewDisks("web01"); len(got) != 0 {
				t.Errorf("new disks: %+v", got)
			}
			if es := b.eventsOf("attach"); len(es) != 1 || es[0].Disk != "xvdc" || es[0].Domain != "web01" || es[0].Message != "/images/web01-xvdc" {
				t.Errorf("events %+v", es)
			}
			ops := b.fake.Store.Ops()
			created, cleared, kept := slices.Index(ops, "Create web01-xvdc"), slices.Index(ops, "Clear /images/web01-xvdc"), slices.Index(ops, "Keep /images/web01-xvdc")
			if created < 0 || cleared < created || kept < cleared {
				t.Errorf("operations: %q", ops)
			}
		})
	}
}

func TestBeginDisk_Refuses(t *testing.T) {
	none := func(*bench) {}
	for _, c := range []struct {
		name, domain, vdev string
		caps               fake.Caps
		make               func(b *bench)
		want               error
		words              []string
	}{
		{"there", "web01", "xvda", 0, none, backend.ErrExist, []string{"xvda"}},
		{"begun", "web01", "xvdc", 0, func(b *bench) { b.must(b.BeginDisk(b.t.Context(), "web01", "xvdc")) }, backend.ErrExist, []string{"write its size"}},
		{"no domain", "web02", "xvdc", 0, none, backend.ErrNotExist, nil},
		{"no attacher", "web01", "xvdc", fake.All &^ fake.Attach, none, backend.ErrUnsupported, []string{"fakehv"}},
		{"off", "web01", "xvdc", 0, func(b *bench) { b.fake.Hypervisor.Stop("web01") }, backend.ErrUnsupported, []string{"is off", "configuration"}},
		{"paused", "web01", "xvdc", 0, func(b *bench) { b.fake.Hypervisor.PauseByHand("web01") }, backend.ErrBusy, []string{"paused"}},
		{"held by others", "web01", "xvdc", 0, func(b *bench) {
			b.fake.Hypervisor.Stop("web01")
			b.fake.Store.Hold("/images/web01-xvda", "qemu (pid 9)")
		}, backend.ErrUnsupported, []string{"qemu (pid 9)"}},
		{"vda", "web01", "vda", 0, none, backend.ErrInvalid, []string{`"vda"`, "xvda to xvdz"}},
		{"too many of one domain", "web01", "xvdc", 0, func(b *bench) {
			for i := range maxNewDisksDomain {
				b.must(b.BeginDisk(b.t.Context(), "web01", fmt.Sprintf("xvdz%d", i+1)))
			}
		}, backend.ErrBusy, []string{"16 disks of web01"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := running(t, setup{caps: c.caps})
			c.make(b)
			b.invalidate()
			b.mustFail(b.BeginDisk(t.Context(), c.domain, c.vdev), c.want, c.words...)
			b.lastErrorHas(c.domain, " attach "+errnoName(c.want)+" ")
		})
	}
}

func TestCheckVDev_TakesWhatGuestsOfXenKnow(t *testing.T) {
	for _, ok := range []string{"xvda", "xvdz", "xvdaa", "xvdb1", "xvdb255", "xvdbgqh", "sda", "sdp", "sda15", "hda", "hdd", "hda63"} {
		if err := checkVDev(ok); err != nil {
			t.Error(err)
		}
	}
	for _, no := range []string{"", "a", "xvd", "xvdA", "xvd1", "xvda0", "xvda01", "xvda256", "xvdaaaaa", "xvdbzzzz", "sdq", "sdaa", "sda16", "hde", "hda64", "vda", "nvme0n1", "xvda\n", " xvda", "xvda/1", "d0p0", "xvda1p1", "..", strings.Repeat("x", 300)} {
		if err := checkVDev(no); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%q: %v", no, err)
		}
	}
}

func TestSetSource_TakesTheNameOfAStore(t *testing.T) {
	other := fake.NewStore("files")
	b := running(t, setup{options: func(o *Options) { o.Stores = append(o.Stores, other.Driver(fake.Snapshot)) }})
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	b.mustFail(b.SetSource(t.Context(), "web01", "xvdc", "vg9"), backend.ErrNoDevice, `"vg9"`, "stores/")
	b.mustFail(b.SetSource(t.Context(), "web01", "xvdc", "/dev/vg1"), backend.ErrNoDevice)
	b.mustFail(b.SetSource(t.Context(), "web01", "xvdc", "files"), backend.ErrUnsupported, "volume group")
	b.mustFail(b.SetSource(t.Context(), "web01", "xvda", "vg1"), backend.ErrReadOnly)
	b.must(b.SetSource(t.Context(), "web01", "xvdc", "vg1"))
	b.must(b.SetSource(t.Context(), "web01", "xvdc", ""))
	if n, _ := b.FindNewDisk("web01", "xvdc"); n.Source != "" {
		t.Errorf("%+v", n)
	}
}

func TestAttach_RefusesAndLeavesNothing(t *testing.T) {
	none := func(*bench) {}
	begin := func(b *bench) { b.must(b.BeginDisk(b.t.Context(), "web01", "xvdc")) }
	for _, c := range []struct {
		name, value string
		caps        fake.Caps
		make        func(b *bench) // before it is begun
		then        func(b *bench)
		want        error
		words       []string
	}{
		{"no size", "10X", 0, none, none, backend.ErrInvalid, []string{"10X"}},
		{"nothing", "0", 0, none, none, backend.ErrInvalid, nil},
		{"no room", "4M", 0, func(b *bench) { b.fake.Store.SetCapacity(4 << 20) }, none, backend.ErrNoSpace, []string{"4194304"}},
		{"its first disk lies elsewhere", "4M", fake.All &^ fake.Create, none, none, backend.ErrUnsupported, []string{"xvda", "/images/web01-xvda", "stores/"}},
		{"no disks", "4M", 0, func(b *bench) { b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Disks = nil }) }, none, backend.ErrUnsupported, []string{"stores/"}},
		{"the store went", "4M", 0, none, func(b *bench) {
			b.must(b.SetSource(b.t.Context(), "web01", "xvdc", "vg1"))
			b.fake.Store.RemovePool("vg1")
		}, backend.ErrNoDevice, []string{"vg1"}},
		{"the domain was shut down", "4M", 0, none, func(b *bench) { b.fake.Hypervisor.Stop("web01") }, backend.ErrUnsupported, []string{"is off"}},
		{"the domain is gone", "4M", 0, none, func(b *bench) { b.fake.Hypervisor.Remove("web01") }, backend.ErrNotExist, nil},
		{"it has such a disk by now", "4M", 0, none, func(b *bench) {
			b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
				d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", Source: "/images/web01-xvda"})
			})
		}, backend.ErrExist, nil},
		{"it is not made", "4M", 0, none, func(b *bench) { b.fake.Store.Fail("Create", backend.ErrIO) }, backend.ErrIO, nil},
		{"it is not cleared", "4M", 0, none, func(b *bench) { b.fake.Store.Fail("Clear", backend.ErrIO) }, backend.ErrIO, nil},
		{"it is not attached", "4M", 0, none, func(b *bench) { b.fake.Hypervisor.Fail("Attach", backend.ErrTimeout) }, backend.ErrTimeout, []string{"cannot be attached to web01"}},
		{"it was started anew while it was made", "4M", 0, none, func(b *bench) {
			hang := make(chan struct{})
			b.fake.Store.Plant(fake.Fault{Op: "Clear", Hang: hang})
			go func() {
				for b.fake.Store.Calls("Clear") == 0 {
					time.Sleep(time.Millisecond)
				}
				b.fake.Hypervisor.Stop("web01")
				b.fake.Hypervisor.Start("web01")
				close(hang)
			}()
		}, backend.ErrStale, []string{"started anew"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := running(t, setup{caps: c.caps})
			c.make(b)
			b.invalidate()
			begin(b)
			c.then(b)
			b.mustFail(b.Attach(t.Context(), "web01", "xvdc", c.value), c.want, c.words...)
			b.lastErrorHas("web01", " attach ")
			if c.want != backend.ErrExist {
				b.nothingMade()
			}
			if c.want != backend.ErrExist && c.want != backend.ErrNotExist && len(b.NewDisks("web01")) != 1 {
				t.Error("the new disk was forgotten: its size cannot be written again")
			}
		})
	}
	b := running(t, setup{})
	b.mustFail(b.Attach(t.Context(), "web01", "xvdc", "4M"), backend.ErrNotExist)
}

func TestAttach_HoldsTheHostForNobodyWhileItClears(t *testing.T) {
	b := running(t, setup{})
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Clear", Hang: hang})
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	done := make(chan error)
	go func() { done <- b.Attach(t.Context(), "web01", "xvdc", "1M") }()
	eventually(t, "clearing", func() bool { return b.fake.Store.Calls("Clear") == 1 })
	b.must(b.Resize(t.Context(), "web01", "xvda", "2M"))
	b.mustFail(b.Attach(t.Context(), "web01", "xvdc", "1M"), backend.ErrBusy, "is being made")
	b.mustFail(b.SetSource(t.Context(), "web01", "xvdc", "vg1"), backend.ErrBusy)
	// Another daemon's start takes it for nothing that a crash left.
	b.must(b.fake.Store.Driver(fake.All).(backend.Snapshotter).Repair(t.Context()))
	close(hang)
	b.must(<-done)
	if d := b.inv().Domain("web01"); d.Disk("xvdc") < 0 {
		t.Error("the domain has no such disk")
	}
}

func TestDetach_GivesUpADiskThatIsBeingMade(t *testing.T) {
	b := running(t, setup{})
	b.fake.Store.Plant(fake.Fault{Op: "Clear", Hang: make(chan struct{})})
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	done := make(chan error)
	go func() { done <- b.Attach(t.Context(), "web01", "xvdc", "1M") }()
	eventually(t, "clearing", func() bool { return b.fake.Store.Calls("Clear") == 1 })
	b.must(b.Detach(t.Context(), "web01", "xvdc"))
	b.mustFail(<-done, backend.ErrBusy, "given up")
	b.nothingMade()
	if len(b.NewDisks("web01")) != 0 {
		t.Error("it is there still")
	}
}

func TestClose_GivesUpADiskThatIsBeingMade(t *testing.T) {
	b := running(t, setup{})
	b.fake.Store.Plant(fake.Fault{Op: "Clear", Hang: make(chan struct{})})
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	done := make(chan error)
	go func() { done <- b.Attach(t.Context(), "web01", "xvdc", "1M") }()
	eventually(t, "clearing", func() bool { return b.fake.Store.Calls("Clear") == 1 })
	b.must(b.Close())
	b.mustFail(<-done, backend.ErrBusy, "ending")
	if left := b.fake.Store.Unfinished(); len(left) > 0 || b.fake.Store.Making() != 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestNewDisks_AreForgotten(t *testing.T) {
	b := running(t, setup{})
	now := time.Now()
	b.now = func() time.Time { return now }
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	now = now.Add(b.lim.forget - time.Second)
	b.must(b.SetSource(t.Context(), "web01", "xvdc", "vg1"))
	now = now.Add(b.lim.forget - time.Second)
	if len(b.NewDisks("web01")) != 1 {
		t.Error("it was forgotten too early")
	}
	now = now.Add(2 * time.Second)
	if len(b.NewDisks("web01")) != 0 {
		t.Error("it was not forgotten")
	}
	b.mustFail(b.Attach(t.Context(), "web01", "xvdc", "1M"), backend.ErrNotExist)
}

func TestStart_KeepsWhatBecameADiskAndRemovesWhatDidNot(t *testing.T) {
	world := fake.NewHost()
	world.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
	world.Hypervisor.Start("web01")
	world.Store.AddUnfinished("/images/attached", make([]byte, 4096))
	world.Store.AddUnfinished("/images/lost", make([]byte, 4096))
	world.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", Format: "raw", Source: "/images/attached", Mode: backend.ReadWrite})
	})
	newBench(t, setup{onFake: world})
	if left := world.Store.Unfinished(); len(left) > 0 || !world.Store.HasVolume("/images/attached") || world.Store.HasVolume("/images/lost") {
		t.Errorf("unfinished: %q; attached %t, lost %t", left, world.Store.HasVolume("/images/attached"), world.Store.HasVolume("/images/lost"))
	}
}

func TestAttach_IsNotTakenBackWhereItsVolumeCannotBeMarked(t *testing.T) {
	b := running(t, setup{})
	b.fake.Store.Fail("Keep", backend.ErrIO)
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	b.must(b.Attach(t.Context(), "web01", "xvdc", "1M"))
	if d := b.inv().Domain("web01"); d.Disk("xvdc") < 0 || b.logs.FilterMessageSnippet("not marked as kept").Len() != 1 {
		t.Error("the disk is gone, or nobody was told")
	}
}

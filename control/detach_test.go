package control

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// guests have the driver of filesystems and tables that a bench reads.
func withGuests(o *Options) *fake.Guests {
	g := fake.NewGuests()
	o.Prober, o.Layouts, o.Filesystems = g, []backend.Layout{fake.Table{}}, []backend.Filesystem{g}
	return g
}

// guestDisk puts bytes onto xvdb.
func (b *bench) guestDisk(at int64, p []byte) { b.fake.Store.Write("/images/web01-xvdb", at, p) }

func TestDetach_TakesADiskThatNobodyUses(t *testing.T) {
	var guests *fake.Guests
	b := running(t, setup{options: func(o *Options) { guests = withGuests(o) }})
	clean := fake.NewGuest("clean")
	guests.Add(clean)
	for name, make := range map[string]func(){
		"empty":     func() {},
		"unmounted": func() { b.guestDisk(0, clean.Header()) },
		"unmounted partition": func() {
			b.guestDisk(0, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 65536, Length: 65536}))
			b.guestDisk(65536, clean.Header())
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := b.inv().Domain("web01").Disks[1]
			make()
			b.must(b.Detach(t.Context(), "web01", "xvdb"))
			if d := b.inv().Domain("web01"); d.Disk("xvdb") >= 0 || d.Disk("xvda") < 0 {
				t.Errorf("its disks are %+v", d.Disks)
			}
			if !b.fake.Store.HasVolume("/images/web01-xvdb") {
				t.Error("the volume is gone")
			}
			b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Disks = append(d.Disks, disk) })
		})
	}
	if es := b.eventsOf("detach"); len(es) != 3 || es[0].Disk != "xvdb" || es[0].Message != "/images/web01-xvdb" {
		t.Errorf("events %+v", es)
	}
}

func TestDetach_LeavesADiskThatIsInUse(t *testing.T) {
	mounted, odd := fake.NewGuest("mounted"), fake.NewGuest("odd")
	mounted.SetUse(backend.InUse)
	odd.SetUse(backend.UseUnknown)
	clean := fake.NewGuest("clean")
	table := func(b *bench, g *fake.Guest) {
		b.guestDisk(0, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 65536, Length: 65536}, fake.TablePart{Number: 2, OffsetBytes: 131072, Length: 65536}))
		b.guestDisk(65536, clean.Header())
		b.guestDisk(131072, g.Header())
	}
	change := func(f func(k *backend.Disk)) func(*bench) {
		return func(b *bench) { b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { f(&d.Disks[1]) }) }
	}
	const byHand = "xl block-detach web01 xvdb"
	for _, c := range []struct {
		name  string
		make  func(b *bench)
		words []string
	}{
		{"mounted", func(b *bench) { b.guestDisk(0, mounted.Header()) }, []string{"xvdb of web01 stays: memfs on xvdb is mounted"}},
		{"partition mounted", func(b *bench) { table(b, mounted) }, []string{"memfs on xvdb/p2 is mounted"}},
		{"partition not understood", func(b *bench) { table(b, odd) }, []string{"memfs on xvdb/p2 has a superblock", byHand}},
		{"part past the end", func(b *bench) {
			b.guestDisk(0, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 65536, Length: 1 << 30}))
		}, []string{"xvdb/p1 cannot be read", byHand}},
		{"broken table", func(b *bench) { b.guestDisk(0, append(fake.TableHeader(), "what?\n"...)) }, []string{"not understood", byHand}},
		{"unknown bytes", func(b *bench) { b.guestDisk(4096, []byte("database")) }, []string{"not known", byHand, "blkdiscard"}},
		{"unknown bytes at its end", func(b *bench) { b.guestDisk(1<<20-1, []byte{1}) }, []string{"not known"}},
		{"physical volume", func(b *bench) { b.guestDisk(0, []byte(fake.GuestPVType+` "a" "" ""`+"\n")) }, []string{fake.GuestPVType + " on xvdb may be in use", byHand}},
		{"read-only", func(b *bench) {
			b.guestDisk(0, clean.Header())
			change(func(k *backend.Disk) { k.Mode = backend.ReadOnly })(b)
		}, []string{"leaves no trace"}},
		{"unreadable", func(b *bench) { b.fake.Store.Break("/images/web01-xvdb", backend.ErrIO) }, []string{"cannot be told", byHand}},
		{"not to be opened", func(b *bench) { b.fake.Store.Fail("Open", backend.ErrIO) }, []string{"cannot be told"}},
		{"no store", change(func(k *backend.Disk) { k.Source = "/elsewhere" }), []string{"cannot be told"}},
		{"the guest does not let go", func(b *bench) { b.fake.Hypervisor.Fail("Detach", backend.ErrBusy) }, []string{"cannot be detached from web01"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := running(t, setup{options: func(o *Options) {
				g := withGuests(o)
				g.Add(mounted)
				g.Add(odd)
				g.Add(clean)
				o.RemoveVolumes = true
			}})
			c.make(b)
			b.mustFail(b.Detach(t.Context(), "web01", "xvdb"), backend.ErrBusy, c.words...)
			b.lastErrorHas("web01", " detach EBUSY ")
			if d := b.inv().Domain("web01"); d.Disk("xvdb") < 0 || !b.fake.Store.HasVolume("/images/web01-xvdb") {
				t.Error("it is gone")
			}
			if c.name != "the guest does not let go" && b.fake.Hypervisor.Calls("Detach") != 0 {
				t.Error("the toolstack was asked")
			}
		})
	}
}

func TestDetach_SeesAGuestThatWrites(t *testing.T) {
	b := running(t, setup{options: func(o *Options) { withGuests(o) }, limits: func(l *limits) { l.observe = 300 * time.Millisecond }})
	go func() {
		for b.fake.Store.Calls("Open") == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // it has been looked at, and was empty
		b.guestDisk(4096, []byte("dd"))
	}()
	b.mustFail(b.Detach(t.Context(), "web01", "xvdb"), backend.ErrBusy, "written to meanwhile")
	if b.fake.Hypervisor.Calls("Detach") != 0 {
		t.Error("the toolstack was asked")
	}
}

func TestDetach_Refuses(t *testing.T) {
	none := func(*bench) {}
	for _, c := range []struct {
		name, domain, vdev string
		caps               fake.Caps
		make               func(b *bench)
		want               error
		words              []string
	}{
		{"unknown domain", "web02", "xvdb", 0, none, backend.ErrNotExist, nil},
		{"unknown disk", "web01", "xvdc", 0, none, backend.ErrNotExist, nil},
		{"off", "web01", "xvdb", 0, func(b *bench) { b.fake.Hypervisor.Stop("web01") }, backend.ErrUnsupported, []string{"configuration"}},
		{"no attacher", "web01", "xvdb", fake.All &^ fake.Attach, none, backend.ErrUnsupported, []string{"fakehv"}},
		{"drive", "web01", "xvdb", 0, func(b *bench) { b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Disks[1].CDROM = true }) }, backend.ErrUnsupported, []string{"cd-eject"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := running(t, setup{caps: c.caps, options: func(o *Options) { withGuests(o) }})
			c.make(b)
			b.mustFail(b.Detach(t.Context(), c.domain, c.vdev), c.want, c.words...)
			b.lastErrorHas(c.domain, " detach "+errnoName(c.want)+" ")
		})
	}
}

func TestDetach_RemovesTheVolumeWhereToldTo(t *testing.T) {
	b := running(t, setup{options: func(o *Options) { withGuests(o); o.RemoveVolumes = true }})
	b.must(b.BeginDisk(t.Context(), "web01", "xvdc"))
	b.must(b.Attach(t.Context(), "web01", "xvdc", "1M"))
	v, err := b.Volume(t.Context(), VolumeRef{Domain: "web01", VDev: "xvdc"})
	b.must(err)
	v.Release() // it is kept open for a while
	b.must(b.Detach(t.Context(), "web01", "xvdc"))
	if b.fake.Store.HasVolume("/images/web01-xvdc") {
		t.Error("the volume is there still")
	}
	b.must(b.Detach(t.Context(), "web01", "xvdb"))
	if b.fake.Store.HasVolume("/images/web01-xvdb") || !b.fake.Store.HasVolume("/images/web01-xvda") {
		t.Error("the volume is there still, or another one is not")
	}
}

func TestDetach_KeepsAVolumeThatOthersNeed(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(b *bench)
		words []string
	}{
		{"snapshot", func(b *bench) { b.must(b.Snapshot(b.t.Context(), "web01", "nightly")) }, []string{"nightly of web01", "--remove-volumes"}},
		{"another domain's", func(b *bench) {
			b.fake.Hypervisor.Add(backend.Domain{Name: "web02", Disks: []backend.Disk{{VDev: "sda1", Format: "raw", Source: "/images/web01-xvdb", Mode: backend.ReadWrite}}})
		}, []string{"sda1 of web02"}},
		{"in its own configuration", func(b *bench) {
			b.o.Hypervisors[1].(*configured).domains.Store(&[]backend.Domain{{Name: "web01", UUID: uuid1, Disks: []backend.Disk{{VDev: "xvdb", Format: "raw", Source: "/images/web01-xvdb"}}}})
		}, []string{"xvdb of web01 (config)"}},
		{"another running domain's configuration, by another path", func(b *bench) {
			b.fake.Store.Alias("/dev/mapper/web01-xvdb", "/images/web01-xvdb")
			b.fake.AddDomain("web02", uuid2, nil, "xvda")
			b.fake.Hypervisor.Start("web02")
			b.o.Hypervisors[1].(*configured).domains.Store(&[]backend.Domain{{Name: "web02", UUID: uuid2, State: backend.StateOff, Disks: []backend.Disk{
				{VDev: "xvda", Format: "raw", Source: "/images/web02-xvda"}, {VDev: "xvdd", Format: "raw", Source: "/dev/mapper/web01-xvdb"}}}})
		}, []string{"xvdd of web02 (config)"}},
		{"a configuration that cannot be read", func(b *bench) {
			b.o.Hypervisors[1].(*configured).domains.Store(&[]backend.Domain{{Name: "web03", State: backend.StateOff, Err: fmt.Errorf("web03.cfg:1: no quote: %w", backend.ErrInvalid)}})
		}, []string{"a disk of web03, too, cannot be told", "web03.cfg:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := running(t, setup{options: func(o *Options) {
				withGuests(o)
				o.RemoveVolumes = true
				o.Hypervisors = append(o.Hypervisors, &configured{})
			}})
			c.make(b)
			b.mustFail(b.Detach(t.Context(), "web01", "xvdb"), backend.ErrBusy, c.words...)
			if d := b.inv().Domain("web01"); d.Disk("xvdb") < 0 || !b.fake.Store.HasVolume("/images/web01-xvdb") || b.fake.Hypervisor.Calls("Detach") != 0 {
				t.Error("it is gone")
			}
		})
	}
	// With --remove-volumes not given, a snapshot keeps no disk where it is.
	b := running(t, setup{options: func(o *Options) { withGuests(o) }})
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	b.must(b.Detach(t.Context(), "web01", "xvdb"))
}

func TestDetach_SaysThatOnlyTheVolumeIsLeft(t *testing.T) {
	b := running(t, setup{options: func(o *Options) { withGuests(o); o.RemoveVolumes = true }})
	b.fake.Store.Fail("Delete", backend.ErrBusy)
	b.mustFail(b.Detach(t.Context(), "web01", "xvdb"), backend.ErrBusy, "is detached", "is kept")
	if b.inv().Domain("web01").Disk("xvdb") >= 0 {
		t.Error("it is attached still")
	}
}

// panicking is a filesystem that a guest's bytes confuse.
type panicking struct{ *fake.Guests }

func (panicking) Use(backend.Device) (backend.Use, string, error) { panic("no such bytes") }

func TestDetach_SurvivesADriverThatFails(t *testing.T) {
	b := running(t, setup{options: func(o *Options) { o.Filesystems = []backend.Filesystem{panicking{withGuests(o)}} }})
	b.guestDisk(0, fake.NewGuest("g").Header())
	b.mustFail(b.Detach(t.Context(), "web01", "xvdb"), backend.ErrBusy, "cannot be told")
	if n := b.logs.FilterMessageSnippet("a defect of domfs").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if err := b.Detach(t.Context(), "web01", "xvda"); errors.Is(err, backend.ErrTimeout) {
		t.Error(err)
	}
}

// configured is a hypervisor of configurations alone.
type configured struct {
	domains atomic.Pointer[[]backend.Domain]
}

func (*configured) Name() string { return "config" }

func (c *configured) Domains(context.Context) ([]backend.Domain, error) {
	if ds := c.domains.Load(); ds != nil {
		return *ds, nil
	}
	return nil, nil
}

package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestSnapshot_TakesEveryDiskAtOneInstant(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "nightly"))
	s := b.set("web01", "nightly")
	if len(s.Disks) != 2 || s.Disk("xvda") == nil || s.Disk("xvdb") == nil || s.Disk("xvdc") != nil {
		t.Fatalf("disks: %+v", s.Disks)
	}
	if s.State != backend.SnapshotActive || s.Consistency != backend.ConsistencyOff || s.DomainUUID != uuid1 || !isSetID(s.ID) {
		t.Errorf("set: %+v", s)
	}
	if b.fake.Hypervisor.EverPaused("web01") != 0 {
		t.Error("a domain that is off was paused")
	}
	if n := len(b.eventsOf("snapshot")); n != 1 {
		t.Errorf("%d snapshot events", n)
	}
}

func TestSnapshot_KeepsTheBytesOfItsInstant(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.Write("/images/web01-xvda", 0, []byte("before"))
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.fake.Store.Write("/images/web01-xvda", 0, []byte("after!"))
	v, err := b.Volume(t.Context(), VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"})
	b.must(err)
	defer v.Release()
	got := make([]byte, 6)
	if _, err := v.Device().ReadAt(got, 0); err != nil || string(got) != "before" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestSnapshot_SaysWhatItCanPromise(t *testing.T) {
	for _, c := range []struct {
		name  string
		caps  fake.Caps
		disks []string
		start func(b *bench)
		want  backend.Consistency
	}{
		{"off", fake.All, []string{"xvda", "xvdb"}, func(*bench) {}, backend.ConsistencyOff},
		{"running", fake.All, []string{"xvda", "xvdb"}, func(b *bench) { b.fake.Hypervisor.Start("web01") }, backend.ConsistencyPaused},
		{"no pauser, one disk", fake.Snapshot, []string{"xvda"}, func(b *bench) { b.fake.Hypervisor.Start("web01") }, backend.ConsistencyCrash},
		{"no pauser, two disks", fake.Snapshot, []string{"xvda", "xvdb"}, func(b *bench) { b.fake.Hypervisor.Start("web01") }, backend.ConsistencyCrashPerDisk},
		{"held by somebody", fake.All, []string{"xvda", "xvdb"}, func(b *bench) { b.fake.Store.Hold("/images/web01-xvda", "qemu (pid 7)") }, backend.ConsistencyCrashPerDisk},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, setup{caps: c.caps, domains: func(h *fake.Host) { h.AddDomain("web01", uuid1, nil, c.disks...) }})
			c.start(b)
			b.must(b.Snapshot(t.Context(), "web01", "s"))
			s := b.set("web01", "s")
			for _, k := range s.Disks {
				if k.Consistency != c.want {
					t.Errorf("%s: consistency %s, want %s", k.Disk.VDev, k.Consistency, c.want)
				}
			}
			if n := b.fake.Hypervisor.Pauses("web01"); n != 0 {
				t.Errorf("the domain is left paused %d times", n)
			}
		})
	}
}

func TestSnapshot_LeavesADomainPausedThatTheAdminPaused(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Start("web01")
	b.fake.Hypervisor.PauseByHand("web01")
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := b.fake.Hypervisor.Pauses("web01"); n != 1 {
		t.Errorf("paused %d times, want 1", n)
	}
}

func TestSnapshot_SkipsCDROMsAndTakesReadOnlyDisks(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.AddVolume("/iso/debian.iso", make([]byte, 4096))
	b.fake.Store.AddVolume("/images/data", make([]byte, 4096))
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Disks = append(d.Disks,
			backend.Disk{VDev: "hdc", CDROM: true, Mode: backend.ReadOnly},
			backend.Disk{VDev: "hdd", CDROM: true, Mode: backend.ReadOnly, Source: "/iso/debian.iso"},
			backend.Disk{VDev: "xvdr", Mode: backend.ReadOnly, Source: "/images/data"})
	})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	var got []string
	for _, k := range b.set("web01", "s").Disks {
		got = append(got, k.Disk.VDev)
	}
	wantEqual(t, "disks", got, []string{"xvda", "xvdb", "xvdr"})
}

func TestSnapshot_RollsBackWhenSecondDiskFails(t *testing.T) {
	for _, op := range []string{"Prepare", "Snapshot", "Annotate"} {
		for _, after := range []bool{false, true} {
			// A store that fails undoes its own half: see TestStart_RemovesWhatACrashLeft. The fake's
			// Prepare has no effect to come after.
			if after && op != "Annotate" {
				continue
			}
			t.Run(fmt.Sprintf("%s, after=%t", op, after), func(t *testing.T) {
				b := newBench(t, setup{})
				b.fake.Hypervisor.Start("web01")
				nth := 2
				if op == "Prepare" {
					nth = 1
				}
				b.fake.Store.Plant(fake.Fault{Op: op, Nth: nth, After: after, Err: fmt.Errorf("pool full: %w", backend.ErrNoSpace)})
				err := b.Snapshot(t.Context(), "web01", "s")
				b.mustFail(err, backend.ErrNoSpace, "pool full")
				b.noSnapshotsLeft()
				b.lastErrorHas("web01", "1 20", " snapshot ENOSPC ", "pool full")
				if b.fake.Hypervisor.Pauses("web01") != 0 {
					t.Error("the domain is left paused")
				}
				if b.fake.Store.Guards() != 0 {
					t.Error("a guard is left")
				}
			})
		}
	}
}

// What was committed before a failure is marked as to be removed, one by one where not together: after a crash, or where it cannot be
// removed now, it must not look whole.
func TestSnapshot_ThatFailedHalfCommittedNeverLooksWhole(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.Plant(fake.Fault{Op: "Annotate", Nth: 2, Err: backend.ErrTimeout}) // the second disk's commit
	b.fake.Store.Plant(fake.Fault{Op: "Annotate", Nth: 3, Err: backend.ErrTimeout}) // the marks of both
	clear := b.fake.Store.Fail("Remove", backend.ErrTimeout)
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrTimeout)
	all := b.fake.Store.All()
	if len(all) != 2 {
		t.Fatalf("%d volumes", len(all))
	}
	for _, k := range all {
		if k.State != backend.SnapshotRemoving {
			t.Errorf("%s is %s", k.Disk.VDev, k.State)
		}
	}
	clear()
	b.must(b.Close())
	again := newBench(t, setup{onFake: b.fake})
	again.noSnapshotsLeft()
}

func TestSnapshot_RollsBackWhenSecondStoreFails(t *testing.T) {
	other := fake.NewStore("other")
	other.AddVolume("/dev/other", make([]byte, 4096))
	b := newBench(t, setup{options: func(o *Options) { o.Stores = append(o.Stores, other.Driver(fake.All)) }})
	b.fake.Hypervisor.Change("web01", func(d *backend.Domain) {
		d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", Source: "/dev/other", Mode: backend.ReadWrite})
	})
	clear := other.Fail("Snapshot", backend.ErrIO)
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrIO, "xvdc")
	b.noSnapshotsLeft()
	clear()
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := len(b.set("web01", "s").Disks); n != 3 {
		t.Errorf("%d disks, want 3", n)
	}
}

func TestSnapshot_ResumesDomainWhenStoreHangs(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.pause = 50 * time.Millisecond }})
	b.fake.Hypervisor.Start("web01")
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Hang: make(chan struct{})})
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrTimeout, "was resumed")
	if n := b.fake.Hypervisor.Pauses("web01"); n != 0 {
		t.Errorf("paused %d times", n)
	}
	b.noSnapshotsLeft()
}

func TestSnapshot_ResumesDomainWhenStoreIsDeaf(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.pause = 50 * time.Millisecond }})
	b.fake.Hypervisor.Start("web01")
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang, Deaf: true})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
	eventually(t, "paused", func() bool { return b.fake.Hypervisor.EverPaused("web01") == 1 })
	eventually(t, "resumed while the store still hangs", func() bool { return b.fake.Hypervisor.Pauses("web01") == 0 })
	select {
	case err := <-result:
		t.Fatalf("returned %v though its store had not", err)
	default:
	}
	close(hang)
	b.mustFail(<-result, backend.ErrTimeout)
	b.noSnapshotsLeft()
}

func TestSnapshot_TriesAgainToResume(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Start("web01")
	b.fake.Hypervisor.Plant(fake.Fault{Op: "Resume", Nth: 1, Err: backend.ErrIO})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := b.fake.Hypervisor.Pauses("web01"); n != 0 {
		t.Errorf("paused %d times", n)
	}
}

func TestSnapshot_IsNotMadeWhenPauseFails(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Start("web01")
	b.fake.Hypervisor.Fail("Pause", backend.ErrIO)
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrIO, "paused")
	b.noSnapshotsLeft()
}

func TestSnapshot_RefusesWhatItCannotDoWhole(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup setup
		make  func(b *bench)
		dir   string
		want  error
		words []string
	}{
		{"existing name", setup{}, func(b *bench) { b.must(b.Snapshot(t.Context(), "web01", "s")) }, "web01", backend.ErrExist, []string{"already"}},
		{"unknown domain", setup{}, func(*bench) {}, "nobody", backend.ErrNotExist, []string{"nobody"}},
		{"gone domain", setup{}, func(b *bench) {
			b.must(b.Snapshot(t.Context(), "web01", "old"))
			b.fake.Hypervisor.Remove("web01")
		}, "web01", backend.ErrPermission, []string{"only a domain that exists"}},
		{"store without snapshots", setup{caps: fake.Resize}, func(*bench) {}, "web01", backend.ErrUnsupported, []string{"xvda", "fakestore"}},
		{"disk of no store", setup{}, func(b *bench) { b.fake.Store.RemoveVolume("/images/web01-xvdb") }, "web01", backend.ErrUnsupported, []string{"xvdb", "no store here reads /images/web01-xvdb"}},
		{"missing image", setup{}, func(b *bench) {
			b.fake.Store.Break("/images/web01-xvda", fmt.Errorf("/images/web01-xvda: %w", backend.ErrNotExist))
		}, "web01", backend.ErrNotExist, []string{"xvda"}},
		{"no disks", setup{}, func(b *bench) { b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Disks = nil }) }, "web01", backend.ErrUnsupported, []string{"no disks"}},
		{"broken configuration", setup{}, func(b *bench) {
			b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Err = fmt.Errorf("web01.cfg:3: %w", backend.ErrInvalid) })
		}, "web01", backend.ErrInvalid, []string{"web01.cfg:3"}},
		{"copy of a running domain", setup{}, func(b *bench) { b.fake.Store.SetCopies(true); b.fake.Hypervisor.Start("web01") }, "web01", backend.ErrUnsupported, []string{"shut it down"}},
		{"no space", setup{}, func(b *bench) { b.fake.Store.SetCopies(true); b.fake.Store.SetCapacity(3 << 20) }, "web01", backend.ErrNoSpace, []string{"2097152"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.setup)
			c.make(b)
			before := len(b.fake.Store.All())
			b.mustFail(b.Snapshot(t.Context(), c.dir, "s"), c.want, c.words...)
			if n := len(b.fake.Store.All()); n != before {
				t.Errorf("%d snapshots, there were %d", n, before)
			}
			b.lastErrorHas(c.dir, " snapshot "+errnoName(c.want)+" ")
		})
	}
}

func TestSnapshot_ChecksTheName(t *testing.T) {
	b := newBench(t, setup{})
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b", "a\nb", "a\x7fb", "tab\t", "\xff\xfe", "\u0085", strings.Repeat("x", 256)} {
		b.mustFail(b.Snapshot(t.Context(), "web01", name), backend.ErrInvalid)
	}
	b.noSnapshotsLeft()
	for _, name := range []string{"-rf", ".hidden", "...", "with blank", "größe", strings.Repeat("x", 255), "a@b", "日本"} {
		b.must(b.Snapshot(t.Context(), "web01", name))
		b.set("web01", name)
	}
}

func TestSnapshot_OfOneNameAtOnceIsMadeOnce(t *testing.T) {
	b := newBench(t, setup{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			err := b.Snapshot(t.Context(), "web01", "s")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errnoName(err) != "EEXIST":
				t.Errorf("wrong error: %v", err)
			}
		})
	}
	wg.Wait()
	if made != 1 || len(b.fake.Store.All()) != 2 {
		t.Errorf("made %d times, %d snapshots", made, len(b.fake.Store.All()))
	}
}

func TestSnapshot_EndsThoughTheCallerWasInterrupted(t *testing.T) {
	b := newBench(t, setup{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.must(b.Snapshot(ctx, "web01", "s"))
	b.set("web01", "s")
}

func TestSnapshot_FailsWhenTheDomainStartsMeanwhile(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.SetCopies(true)
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Hang: hang})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
	eventually(t, "second disk", func() bool { return b.fake.Store.Calls("Snapshot") == 2 })
	b.fake.Store.Hold("/images/web01-xvda", "qemu (pid 99)")
	close(hang)
	b.mustFail(<-result, backend.ErrBusy, "qemu (pid 99)")
	b.noSnapshotsLeft()
}

func TestSnapshot_PromisesLessWhenTheDomainStartsMeanwhile(t *testing.T) {
	b := newBench(t, setup{})
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Hang: hang})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
	eventually(t, "second disk", func() bool { return b.fake.Store.Calls("Snapshot") == 2 })
	b.fake.Hypervisor.Start("web01")
	close(hang)
	b.must(<-result)
	if c := b.set("web01", "s").Consistency; c != backend.ConsistencyCrashPerDisk {
		t.Errorf("consistency %s", c)
	}
}

func TestSnapshot_IsSeenAtOnceAndReported(t *testing.T) {
	b := newBench(t, setup{options: func(o *Options) { o.MaxAge = time.Hour }})
	wantEqual(t, "before", b.sets("web01"), []string{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	wantEqual(t, "after", b.sets("web01"), []string{"s"})
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.changes) == 0 || b.changes[0] != (Change{Dir: "web01", SetID: b.fake.Store.All()[0].Set}) {
		t.Errorf("changes: %+v", b.changes)
	}
}

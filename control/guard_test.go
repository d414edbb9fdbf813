package control

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"

	"go.uber.org/zap"
)

const mib = 1 << 20

// guardBench has the snapshot "s" of web01, whose disks have a mebibyte and thick snapshots a reserve
// of 100 KiB. The guard samples when it is told to, unless s says otherwise.
func guardBench(t *testing.T, extend AutoExtend, s setup) *bench {
	options := s.options
	s.options = func(o *Options) {
		o.AutoExtend = extend
		if options != nil {
			options(o)
		}
	}
	if s.limits == nil {
		s.limits = func(l *limits) { l.sampleFast, l.sampleSlow, l.sampleGap = time.Hour, time.Hour, time.Millisecond }
	}
	if s.onFake == nil {
		s.onFake = fake.NewHost()
		s.onFake.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
		s.onFake.Store.SetReserve(100 << 10)
		s.onFake.Store.SetUnit(4096)
	}
	b := newBench(t, s)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	return b
}

func (b *bench) use(vdev string, bytes int64) {
	b.t.Helper()
	b.fake.Store.Use(b.set("web01", "s").ID, vdev, bytes)
	b.fake.Store.Happen()
}

func (b *bench) reserve(vdev string) int64 {
	b.t.Helper()
	return b.set("web01", "s").Disk(vdev).ReserveBytes
}

func TestGuard_ExtendsAtTheThreshold(t *testing.T) {
	b := guardBench(t, AutoExtend{70, 20}, setup{})
	b.use("xvda", 69<<10)
	eventually(t, "the level is told", func() bool { return len(b.eventsOf("forecast")) == 1 })
	if got := b.reserve("xvda"); got != 100<<10 {
		t.Fatalf("extended to %d below the threshold", got)
	}
	b.use("xvda", 1<<10)
	eventually(t, "extended", func() bool { return b.reserve("xvda") == 120<<10 })
	eventually(t, "told", func() bool { return len(b.eventsOf("extend")) == 1 })
	e := b.eventsOf("extend")[0]
	if e.Domain != "web01" || e.Snapshot != "s" || e.Disk != "xvda" || e.Message != "122880" {
		t.Errorf("event %+v", e)
	}
	if n := b.logs.FilterMessage("done").FilterField(zap.String("op", "extend")).Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if got := b.reserve("xvdb"); got != 100<<10 {
		t.Errorf("the other disk has %d", got)
	}
}

func TestGuard_ExtendsByAsManyStepsAsItTakes(t *testing.T) {
	b := guardBench(t, AutoExtend{70, 20}, setup{})
	b.use("xvda", 99<<10)
	eventually(t, "extended", func() bool { return b.reserve("xvda") > 100<<10 })
	s := b.set("web01", "s").Disk("xvda")
	if s.FillPercent >= 70 || s.ReserveBytes != 144<<10 {
		t.Errorf("%d bytes, %v %% full", s.ReserveBytes, s.FillPercent)
	}
}

func TestGuard_ExtendsUpToWhatCanBeUsedAndIsQuietThen(t *testing.T) {
	b := guardBench(t, AutoExtend{50, 1000}, setup{})
	b.use("xvda", 99<<10)
	eventually(t, "extended", func() bool { return b.reserve("xvda") == 1<<20+4096 })
	b.use("xvda", 850<<10)
	b.settles()
	if n := b.fake.Store.Calls("ExtendReserve"); n != 1 {
		t.Errorf("extended %d times", n)
	}
	if n := len(b.eventsOf("forecast")); n != 0 {
		t.Errorf("it is told %d times how full it is, and can never be full", n)
	}
}

// settles waits until what has happened was looked at.
func (b *bench) settles() {
	b.t.Helper()
	for range 3 {
		n := b.fake.Store.Calls("Snapshots")
		b.fake.Store.Happen()
		eventually(b.t, "the host is read", func() bool { return b.fake.Store.Calls("Snapshots") > n })
	}
}

func TestGuard_NoneExtendsNothingAndTellsAllTheSame(t *testing.T) {
	b := guardBench(t, AutoExtend{}, setup{})
	for i, kib := range []int64{49, 1, 19, 1, 10, 10, 5} { // 49, 50, 69, 70, 80, 90, 95 %
		b.use("xvda", kib<<10)
		b.settles()
		if got, want := len(b.eventsOf("forecast")), []int{0, 1, 1, 2, 3, 4, 5}[i]; got != want {
			t.Fatalf("after step %d it was told %d times, want %d", i, got, want)
		}
	}
	if n := b.fake.Store.Calls("ExtendReserve"); n != 0 {
		t.Errorf("extended %d times", n)
	}
	b.lastErrorHas("web01", " forecast WARNING disk xvda in snapshot s: 50 % of its reserve of 100 KiB", "95 %", "+SIZE")
	if n := b.logs.FilterLevelExact(zap.WarnLevel).FilterField(zap.String("op", "forecast")).Len(); n != 5 {
		t.Errorf("%d warnings in the log", n)
	}
}

func TestGuard_TellsOnceThatThereIsNoRoomUntilThereIs(t *testing.T) {
	b := guardBench(t, AutoExtend{70, 20}, setup{})
	b.fake.Store.SetCapacity(2*mib + 200<<10)
	b.use("xvda", 75<<10)
	eventually(t, "told", func() bool { return len(b.eventsOf("error")) == 1 })
	b.lastErrorHas("web01", " extend ENOSPC disk xvda in snapshot s is 75 % full", "make room in fakestore", "remove the snapshot")
	b.use("xvda", 1<<10)
	b.settles()
	if n := len(b.eventsOf("error")); n != 1 {
		t.Errorf("told %d times", n)
	}
	if n := b.fake.Store.Calls("ExtendReserve"); n != 0 {
		t.Errorf("tried %d times though no byte is free", n)
	}
	// Less than a step is free: better than nothing.
	b.fake.Store.SetCapacity(2*mib + 208<<10)
	b.settles()
	eventually(t, "extended by what there is", func() bool { return b.reserve("xvda") == 108<<10 })
	eventually(t, "told again", func() bool { return len(b.eventsOf("error")) == 2 })
	b.fake.Store.SetCapacity(64 * mib)
	b.settles()
	eventually(t, "extended", func() bool { return b.reserve("xvda") > 108<<10 })
}

func TestGuard_TriesAgainAfterAFailureAndNotBusily(t *testing.T) {
	b := guardBench(t, AutoExtend{70, 20}, setup{limits: func(l *limits) {
		l.sampleFast, l.sampleSlow, l.sampleGap = 5*time.Millisecond, 5*time.Millisecond, time.Millisecond
	}})
	clear := b.fake.Store.Fail("ExtendReserve", backend.ErrTimeout)
	b.use("xvda", 75<<10)
	eventually(t, "tried", func() bool { return b.fake.Store.Calls("ExtendReserve") >= 1 })
	n := b.fake.Store.Calls("Snapshots")
	eventually(t, "the host was read a few times more", func() bool { return b.fake.Store.Calls("Snapshots") > n+20 })
	if n := b.fake.Store.Calls("ExtendReserve"); n > 20 {
		t.Errorf("tried %d times", n)
	}
	clear()
	eventually(t, "extended", func() bool { return b.reserve("xvda") == 120<<10 })
}

func TestGuard_TellsWhatHasBecomeInvalidOnceAndAfterARestart(t *testing.T) {
	b := guardBench(t, AutoExtend{}, setup{})
	b.use("xvda", 100<<10)
	eventually(t, "told", func() bool { return len(b.eventsOf("invalid")) == 1 })
	if e := b.eventsOf("invalid")[0]; e.Domain != "web01" || e.Snapshot != "s" || e.Disk != "xvda" || e.Errno != "EIO" || !strings.Contains(e.Message, "copy-on-write space") {
		t.Errorf("event %+v", e)
	}
	b.settles()
	if n := b.logs.FilterLevelExact(zap.ErrorLevel).FilterMessage("a snapshot has become invalid").Len(); n != 1 || len(b.eventsOf("invalid")) != 1 {
		t.Errorf("%d lines, %d events", n, len(b.eventsOf("invalid")))
	}
	b.lastErrorHas("web01", " invalid EIO disk xvda in snapshot s is invalid")
	if st := b.set("web01", "s").State; st != backend.SnapshotInvalid {
		t.Errorf("state %s", st)
	}
	b.mustFail(b.ExtendReserve(t.Context(), "web01", "s", "xvda", "+1M"), backend.ErrIO, "does not bring it back")
	b.must(b.ExtendReserve(t.Context(), "web01", "s", "xvdb", "+4096"))
	b.must(b.Close())
	again := newBench(t, setup{onFake: b.fake})
	if st := again.set("web01", "s").State; st != backend.SnapshotInvalid {
		t.Errorf("state %s after a restart", st)
	}
	eventually(t, "told again", func() bool { return len(again.eventsOf("invalid")) == 1 })
	again.must(again.Remove(t.Context(), "web01", "s"))
	again.noSnapshotsLeft()
}

func TestGuard_SleepsWhileThereIsNothingToWatch(t *testing.T) {
	limits := func(l *limits) {
		l.sampleFast, l.sampleSlow, l.sampleGap = time.Millisecond, time.Millisecond, time.Millisecond
	}
	reads := func(b *bench) bool {
		time.Sleep(50 * time.Millisecond) // what the start and the change read
		n := b.fake.Store.Calls("Snapshots")
		time.Sleep(100 * time.Millisecond)
		return b.fake.Store.Calls("Snapshots") != n
	}
	plain := newBench(t, setup{limits: limits})
	plain.must(plain.Snapshot(t.Context(), "web01", "s"))
	if reads(plain) {
		t.Error("the host is read though no snapshot can overflow")
	}
	b := guardBench(t, AutoExtend{}, setup{limits: limits})
	n := b.fake.Store.Calls("Snapshots")
	eventually(t, "it is sampled", func() bool { return b.fake.Store.Calls("Snapshots") > n+5 })
	b.use("xvda", 100<<10)
	b.use("xvdb", 100<<10)
	b.settles()
	if reads(b) {
		t.Error("the host is read though all is lost already")
	}
	b.must(b.Remove(t.Context(), "web01", "s"))
	if reads(b) {
		t.Error("the host is read though the snapshot is gone")
	}
}

// By lvcreate, say: any reading of the host shows it.
func TestGuard_WakesForASnapshotThatSomebodyElseMade(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.sampleFast, l.sampleSlow = time.Hour, 5*time.Millisecond }})
	eventually(t, "it sleeps", b.guard.idle.Load)
	b.fake.Store.PutForeign(web01Disk, "byhand", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: "id-0123456"}, ReserveBytes: 100_000})
	b.inv()
	n := b.fake.Store.Calls("Snapshots")
	eventually(t, "it is sampled", func() bool { return b.fake.Store.Calls("Snapshots") > n+5 })
}

func TestGuard_SamplesWhereEventsCannotBeWatched(t *testing.T) {
	h := fake.NewHost()
	h.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
	h.Store.SetReserve(100 << 10)
	h.Store.Fail("Watch", backend.ErrIO)
	b := guardBench(t, AutoExtend{}, setup{onFake: h, limits: func(l *limits) {
		l.sampleFast, l.sampleSlow = 5*time.Millisecond, time.Hour
	}})
	eventually(t, "told", func() bool { return b.logs.FilterMessageSnippet("cannot be watched").Len() == 1 })
	// It is open: who reads it must learn soon.
	v, err := b.Volume(t.Context(), VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"})
	b.must(err)
	defer v.Release()
	b.guard.wake()
	h.Store.Use(b.set("web01", "s").ID, "xvda", 100<<10)
	eventually(t, "it is known", func() bool { return v.Usable() != nil })
	eventually(t, "it is told", func() bool { return len(b.eventsOf("invalid")) == 1 })
}

func TestGuard_WarnsOfThinPools(t *testing.T) {
	h := fake.NewHost()
	h.AddDomain("web01", uuid1, nil, "xvda")
	pool := func(free, metadataFree int64) {
		h.Store.SetMetadataPool(web01Disk, backend.Pool{Name: "vg0:thin", Driver: "lvm-thin", SizeBytes: 10 << 30, FreeBytes: free,
			MetadataSizeBytes: 100 * mib, MetadataFreeBytes: metadataFree})
	}
	pool(1<<30, 60*mib)
	b := newBench(t, setup{onFake: h, limits: func(l *limits) { l.sampleFast, l.sampleSlow, l.sampleGap = time.Hour, time.Hour, time.Millisecond }})
	b.settles()
	if n := len(b.eventsOf("forecast")); n != 0 {
		t.Fatalf("told %d times of a pool without snapshots", n)
	}
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	eventually(t, "told", func() bool { return len(b.eventsOf("forecast")) == 1 })
	b.lastErrorHas("web01", "thin pool vg0:thin: 90 % of its data of 10 GiB are used", "lvextend -L +2G vg0/thin")
	pool(1<<30, 4*mib)
	b.settles()
	eventually(t, "told", func() bool { return len(b.eventsOf("forecast")) == 2 })
	b.lastErrorHas("web01", "96 % of its metadata of 100 MiB are used", "lvextend --poolmetadatasize +20M vg0/thin")
	b.settles()
	if n := len(b.eventsOf("forecast")); n != 2 {
		t.Errorf("told %d times", n)
	}
	if n := h.Store.Calls("ExtendReserve"); n != 0 {
		t.Errorf("extended %d times", n)
	}
}

func TestExtendReserve_KeepsTheRulesOfSize(t *testing.T) {
	b := guardBench(t, AutoExtend{}, setup{})
	extend := func(value string) error { return b.ExtendReserve(t.Context(), "web01", "s", "xvda", value) }
	b.mustFail(extend("much"), backend.ErrInvalid, "much")
	b.mustFail(extend("+9223372036854775807"), backend.ErrInvalid)
	b.mustFail(extend("50K"), backend.ErrPermission, "102400")
	b.must(extend("100K"))
	b.must(extend("+0"))
	if n := len(b.eventsOf("extend")); n != 0 {
		t.Errorf("%d events of nothing", n)
	}
	b.must(extend("+1")) // rounds up
	if got := b.reserve("xvda"); got != 104<<10 {
		t.Errorf("%d", got)
	}
	b.must(extend("104K"))
	b.fake.Store.SetCapacity(2*mib + 210<<10)
	b.mustFail(extend("+1M"), backend.ErrNoSpace, "free")
	b.fake.Store.SetCapacity(64 * mib)
	b.must(extend("5G")) // all that it can use
	if got := b.reserve("xvda"); got != mib+4096 {
		t.Errorf("%d", got)
	}
	b.must(extend("5G"))
	if n := len(b.eventsOf("extend")); n != 2 {
		t.Errorf("%d events", n)
	}
	b.mustFail(b.ExtendReserve(t.Context(), "web01", "s", "xvdz", "+1"), backend.ErrNotExist)
	b.mustFail(b.ExtendReserve(t.Context(), "web01", "t", "xvda", "+1"), backend.ErrNotExist)
	b.fake.Store.SetReserve(0)
	b.must(b.Snapshot(t.Context(), "web01", "thin"))
	b.mustFail(b.ExtendReserve(t.Context(), "web01", "thin", "xvda", "+1"), backend.ErrUnsupported, "no reserve")
}

func TestParseAutoExtend_ReadsThresholdAndStep(t *testing.T) {
	for text, want := range map[string]AutoExtend{"none": {}, "70:20": {70, 20}, "1:1": {1, 1}, "99%:1000%": {99, 1000}} {
		if got, err := ParseAutoExtend(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "70", "70:", ":20", "0:20", "100:20", "70:0", "70:1001", "-1:5", "a:b", "70:20:1", "1e1:5", "None", "70 :20", strings.Repeat("9", 100)} {
		if got, err := ParseAutoExtend(text); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestUsable_IsFalseForWhoeverHadTheVolumeBefore(t *testing.T) {
	b := guardBench(t, AutoExtend{}, setup{})
	id := b.set("web01", "s").ID
	open := func(vdev string) *Volume {
		v, err := b.Volume(t.Context(), VolumeRef{SetID: id, VDev: vdev})
		b.must(err)
		return v
	}
	lost, kept := open("xvda"), open("xvdb")
	defer lost.Release()
	defer kept.Release()
	if lost.Usable() != nil || !lost.CanOverflow() {
		t.Error("it is lost from the beginning")
	}
	b.fake.Store.Write(web01Disk, 0, make([]byte, 100<<10)) // the guest writes: that fills the reserve
	eventually(t, "it is known", func() bool { return lost.Usable() != nil })
	b.mustFail(lost.Usable(), backend.ErrIO, "xvda", "invalid")
	if _, err := lost.Content(); !errors.Is(err, backend.ErrIO) {
		t.Errorf("content: %v", err)
	}
	if err := kept.Usable(); err != nil {
		t.Errorf("the other disk: %v", err)
	}
	eventually(t, "the mount is told", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.changes {
			if c.Invalid && c.SetID == id && c.Dir == "web01" {
				return true
			}
		}
		return false
	})
}

func TestGuard_IsContentWithAReadingThatBeganAfterTheEvent(t *testing.T) {
	b := newBench(t, setup{options: func(o *Options) { o.MaxAge = time.Minute }, limits: func(l *limits) { l.sampleGap = time.Millisecond }})
	reads := func() int64 { return b.Stats()["inventory_reads"] }
	at := time.Now()
	if _, err := b.Inventory(t.Context()); err != nil { // within Options.MaxAge
		t.Fatal(err)
	}
	b.invalidate()
	if _, err := b.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := reads()
	b.readSince(at)
	if _, err := b.Inventory(t.Context()); err != nil || reads() != before {
		t.Errorf("an older event costs %d readings: %v", reads()-before, err)
	}
	b.readSince(time.Now())
	if _, err := b.Inventory(t.Context()); err != nil || reads() != before+1 {
		t.Errorf("a later event costs %d readings: %v", reads()-before, err)
	}
}

func TestGuard_PutsOffItsReadingDuringAChangeButNotForEver(t *testing.T) {
	for _, c := range []struct {
		name  string
		held  time.Duration
		reads bool
	}{{"a short change", time.Hour, false}, {"a long change", time.Millisecond, true}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, setup{limits: func(l *limits) { l.sampleGap, l.sampleOwn = time.Millisecond, c.held }})
			hang := make(chan struct{})
			b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
			result := make(chan error)
			go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
			eventually(t, "it hangs", func() bool { return b.fake.Store.Calls("Snapshot") == 1 })
			before := b.Stats()["inventory_reads"]
			b.guard.happened()
			if c.reads {
				eventually(t, "the host is read", func() bool { return b.Stats()["inventory_reads"] > before })
			} else {
				for range 20 {
					time.Sleep(time.Millisecond)
					b.guard.happened()
				}
				if n := b.Stats()["inventory_reads"] - before; n != 0 {
					t.Errorf("the host was read %d times", n)
				}
			}
			close(hang)
			b.must(<-result)
			ended := b.Stats()["inventory_reads"]
			b.guard.happened()
			eventually(t, "the host is read after the change", func() bool { return b.Stats()["inventory_reads"] > ended })
		})
	}
}

// Whatever a change has the guard put off, a snapshot that fills is looked at in time, and a failed read or a domain's event is not
// taken for the change's own.
func TestGuard_PutsOffOnlyWhatAChangeMayHaveCaused(t *testing.T) {
	for _, c := range []struct {
		name     string
		fast     time.Duration
		happened func(g *guard)
	}{
		{"a look that is due", 10 * time.Millisecond, (*guard).happened},
		{"an event that is no change's", time.Hour, (*guard).happenedNow},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := guardBench(t, AutoExtend{}, setup{limits: func(l *limits) {
				l.sampleFast, l.sampleSlow, l.sampleGap, l.sampleOwn, l.sampleHeld = c.fast, c.fast, time.Millisecond, time.Hour, time.Millisecond
			}})
			b.use("xvda", 40<<10)
			hang := make(chan struct{})
			goOn := sync.OnceFunc(func() { close(hang) })
			defer goOn()
			b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
			before := b.fake.Store.Calls("Snapshot")
			result := make(chan error)
			go func() { result <- b.Snapshot(t.Context(), "web01", "another") }()
			eventually(t, "it hangs", func() bool { return b.fake.Store.Calls("Snapshot") > before })
			reads := b.Stats()["inventory_reads"]
			c.happened(&b.guard)
			eventually(t, "the host is read during the change", func() bool { return b.Stats()["inventory_reads"] > reads })
			goOn()
			b.must(<-result)
		})
	}
}

func TestGuard_ReadsOnceForTheEventsAroundAChange(t *testing.T) {
	const gap = 500 * time.Millisecond
	b := newBench(t, setup{options: func(o *Options) { o.MaxAge = time.Minute }, limits: func(l *limits) { l.sampleGap = gap }})
	eventually(t, "the guard sleeps", b.guard.idle.Load)
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
	eventually(t, "it hangs", func() bool { return b.fake.Store.Calls("Snapshot") == 1 })
	b.guard.happened()
	eventually(t, "the guard is awake", func() bool { return !b.guard.idle.Load() })
	close(hang)
	b.must(<-result)
	ended := b.Stats()["inventory_reads"]
	for range 5 {
		b.guard.happened()
		time.Sleep(time.Millisecond)
	}
	eventually(t, "the host is read", func() bool { return b.Stats()["inventory_reads"] > ended })
	time.Sleep(gap + gap/2)
	if n := b.Stats()["inventory_reads"] - ended; n != 1 {
		t.Errorf("the host was read %d times", n)
	}
}

func TestGuard_ReadsNothingWhileADomainIsPaused(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) {
		l.sampleGap, l.sampleOwn, l.sampleHeld = time.Millisecond, time.Millisecond, time.Millisecond
	}})
	b.fake.Hypervisor.Start("web01")
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
	eventually(t, "it hangs", func() bool { return b.fake.Store.Calls("Snapshot") == 1 })
	before := b.Stats()["inventory_reads"]
	for range 30 {
		time.Sleep(time.Millisecond)
		b.guard.happened()
	}
	if n := b.Stats()["inventory_reads"] - before; n > 1 { // one may have been under way
		t.Errorf("the host was read %d times", n)
	}
	close(hang)
	b.must(<-result)
	ended := b.Stats()["inventory_reads"]
	b.guard.happened()
	eventually(t, "the host is read after the pause", func() bool { return b.Stats()["inventory_reads"] > ended })
}

package control

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
)

// clock is a time that a test sets.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) forward(d time.Duration) { c.ns.Add(int64(d)) }

func withClock(t *testing.T, s setup) (*bench, *clock) {
	c := &clock{}
	c.ns.Store(time.Now().UnixNano())
	s.noStart = true
	s.limits = func(l *limits) { l.tick, l.retry = 10*time.Millisecond, 10*time.Millisecond }
	b := newBench(t, s)
	b.now = c.now
	b.must(b.Start(t.Context()))
	return b, c
}

func TestExpiry_RemovesWhatIsDueAndNotBefore(t *testing.T) {
	b, c := withClock(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "keep"))
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.SetExpires(t.Context(), "web01", "s", "+7d"))
	c.forward(7*24*time.Hour - 2*time.Second)
	time.Sleep(50 * time.Millisecond)
	wantEqual(t, "before", b.sets("web01"), []string{"keep", "s"})
	c.forward(3 * time.Second)
	eventually(t, "expired", func() bool { return len(b.sets("web01")) == 1 })
	wantEqual(t, "after", b.sets("web01"), []string{"keep"})
	eventually(t, "told", func() bool { return len(b.eventsOf("expire")) == 1 })
}

func TestExpiry_WaitsForHold(t *testing.T) {
	b, c := withClock(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.SetExpires(t.Context(), "web01", "s", "+1h"))
	b.must(b.SetHold(t.Context(), "web01", "s", "1"))
	c.forward(2 * time.Hour)
	time.Sleep(50 * time.Millisecond)
	wantEqual(t, "held", b.sets("web01"), []string{"s"})
	b.must(b.SetHold(t.Context(), "web01", "s", "0"))
	eventually(t, "expired", func() bool { return len(b.sets("web01")) == 0 })
}

func TestExpiry_WaitsForOpenFilesAndSaysSoOnce(t *testing.T) {
	var open atomic.Bool
	open.Store(true)
	var asked atomic.Int32
	b, c := withClock(t, setup{drain: func(context.Context, string) error {
		asked.Add(1)
		if open.Load() {
			return fmt.Errorf("borg (pid 3) has a file open: %w", backend.ErrBusy)
		}
		return nil
	}})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.SetExpires(t.Context(), "web01", "s", "+1h"))
	c.forward(2 * time.Hour)
	eventually(t, "tried several times", func() bool { c.forward(time.Second); return asked.Load() >= 3 })
	b.lastErrorHas("web01", "1 ", " expire EBUSY ", "borg (pid 3)")
	if n := len(b.logs.FilterMessage("refused").All()); n != 1 {
		t.Errorf("logged %d times", n)
	}
	open.Store(false)
	eventually(t, "expired", func() bool { c.forward(time.Second); return len(b.sets("web01")) == 0 })
}

func TestExpiry_SurvivesARestartAndSeesOtherDaemons(t *testing.T) {
	a, c := withClock(t, setup{})
	a.must(a.Snapshot(t.Context(), "web01", "s"))
	b, d := withClock(t, setup{onFake: a.fake, options: func(o *Options) { o.LockFile = a.o.LockFile }})
	a.must(a.SetExpires(t.Context(), "web01", "s", "+1h"))
	a.must(a.Close())
	c.forward(2 * time.Hour)
	time.Sleep(30 * time.Millisecond)
	wantEqual(t, "not due for the other", b.sets("web01"), []string{"s"})
	d.forward(2 * time.Hour)
	eventually(t, "expired", func() bool { return len(b.sets("web01")) == 0 })
}

func TestExpiry_DoesNotLoopBusily(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.sampleGap = time.Millisecond }})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	time.Sleep(50 * time.Millisecond)
	n := b.fake.Hypervisor.Calls("Domains")
	time.Sleep(200 * time.Millisecond)
	if more := b.fake.Hypervisor.Calls("Domains") - n; more != 0 {
		t.Errorf("the host was read %d times with nothing to do", more)
	}
}

func TestSetExpires_ShowsWhatWasSet(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.SetExpires(t.Context(), "web01", "s", "2099-01-31T12:00:00Z"))
	for _, k := range b.set("web01", "s").Disks {
		if got := k.Expires.Format(time.RFC3339); got != "2099-01-31T12:00:00Z" {
			t.Errorf("%s: %s", k.Disk.VDev, got)
		}
	}
	b.mustFail(b.SetExpires(t.Context(), "web01", "s", "yesterday"), backend.ErrInvalid, "yesterday")
	b.must(b.SetExpires(t.Context(), "web01", "s", ""))
	if !b.set("web01", "s").Expires.IsZero() {
		t.Error("it still expires")
	}
}

func TestExpiry_ANameHeldStaysHeldAfterARestart(t *testing.T) {
	a, c := withClock(t, setup{})
	a.must(a.Snapshot(t.Context(), "web01", "s"))
	a.must(a.SetExpires(t.Context(), "web01", "s", "+1h"))
	a.must(a.SetHold(t.Context(), "web01", "s", "1"))
	a.must(a.Close())
	b, d := withClock(t, setup{onFake: a.fake})
	d.forward(c.now().Sub(d.now()) + 48*time.Hour)
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrPermission, "held")
	time.Sleep(50 * time.Millisecond)
	wantEqual(t, "held", b.sets("web01"), []string{"s"})
	b.must(b.SetHold(t.Context(), "web01", "s", "0"))
	eventually(t, "expired", func() bool { return len(b.sets("web01")) == 0 })
}

func TestExpiry_OfWhatExpiredWhileNoDaemonRanIsAtTheStart(t *testing.T) {
	a, _ := withClock(t, setup{})
	a.must(a.Snapshot(t.Context(), "web01", "s"))
	a.must(a.SetExpires(t.Context(), "web01", "s", "+1h"))
	a.must(a.Close())
	b := newBench(t, setup{onFake: a.fake, noStart: true})
	b.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	b.must(b.Start(t.Context())) // it does not wait for its next look, a minute away
	eventually(t, "expired", func() bool { return len(b.sets("web01")) == 0 })
}

// Another program has the device open: its store alone knows.
func TestExpiry_LeavesWhatIsOpenOutsideAsItIs(t *testing.T) {
	b, c := withClock(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	clear := b.fake.Store.Fail("Remove", fmt.Errorf("held open by losetup (pid 7): %w", backend.ErrBusy))
	b.must(b.SetExpires(t.Context(), "web01", "s", "+1h"))
	c.forward(2 * time.Hour)
	eventually(t, "it is tried", func() bool { return b.fake.Store.Calls("Remove") > 0 })
	eventually(t, "it is told", func() bool { return len(b.eventsOf("error")) > 0 })
	b.lastErrorHas("web01", "expire", "EBUSY", "losetup (pid 7)", "left as it is")
	b.must(b.SetHold(t.Context(), "web01", "s", "1"))
	s := b.set("web01", "s")
	if s.State != backend.SnapshotActive || len(s.Disks) != 2 {
		t.Errorf("%+v", s)
	}
	v, err := b.Volume(t.Context(), VolumeRef{SetID: s.ID, VDev: "xvda"})
	b.must(err)
	v.Release()
	clear()
	b.must(b.SetHold(t.Context(), "web01", "s", "0"))
	eventually(t, "expired", func() bool { c.forward(time.Second); return len(b.sets("web01")) == 0 })
}

package control

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"

	"go.uber.org/zap"
)

// slowGuest has a filesystem whose opening takes until hold is closed on a disk of web01, and a quick one
// on one of web02.
func slowGuest(t *testing.T, interruptible bool, limit func(*limits)) (*bench, *guestDrivers) {
	g := &guestDrivers{hold: make(chan struct{}), interruptible: interruptible}
	b := newBench(t, setup{options: g.use, limits: limit, domains: func(h *fake.Host) {
		h.AddDomain("web01", uuid1, map[string][]byte{"xvda": content(map[int]string{0: "fsslow"})}, "xvda")
		h.AddDomain("web02", uuid2, map[string][]byte{"xvda": content(map[int]string{0: "fs"})}, "xvda")
	}})
	return b, g
}

// gaveUp waits for a filesystem no longer than 20 ms.
func gaveUp(b *bench, v *Volume) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	if _, err := v.FS(ctx); !errors.Is(err, context.Canceled) {
		b.t.Errorf("%v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		b.t.Errorf("took %s", took)
	}
}

func TestFS_LetsItsCallersGiveUpAndGoesOn(t *testing.T) {
	b, g := slowGuest(t, true, nil)
	v := b.open(live)
	defer v.Release()
	gaveUp(b, v)
	gaveUp(b, v)
	deadline, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := v.FS(deadline); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("%v", err)
	}

	other := b.open(VolumeRef{Domain: "web02", VDev: "xvda"})
	defer other.Release()
	if _, err := other.FS(t.Context()); err != nil {
		t.Errorf("another domain's: %v", err)
	}

	waiting := make(chan error)
	go func() {
		_, err := v.FS(t.Context())
		waiting <- err
	}()
	close(g.hold)
	b.must(<-waiting)
	gone, cancelGone := context.WithCancel(t.Context())
	cancelGone()
	if _, err := v.FS(gone); err != nil {
		t.Errorf("it is open, which takes no waiting: %v", err)
	}
	if n := g.opens.Load(); n != 2 {
		t.Errorf("opened %d filesystems of 2", n)
	}
	if n := b.Stats()["filesystem_opens"]; n != 2 {
		t.Errorf("counted %d", n)
	}
	b.lastErrorHas("web01", " files WARNING disk xvda of web01: the journal was not replayed\n")
}

func TestFS_ThatIsBeingOpenedEndsWhenItsDiskIsClosed(t *testing.T) {
	b, g := slowGuest(t, true, nil)
	v := b.open(live)
	gaveUp(b, v)
	v.Release()
	b.must(b.Close())
	if n := b.fake.Store.OpenDevices(); n != 0 || g.closes.Load() != 0 {
		t.Errorf("%d devices are open, %d filesystems were closed", n, g.closes.Load())
	}
	if out := b.LastErrors("web01"); strings.Contains(string(out), "files") {
		t.Errorf("what nobody waited for is told: %s", out)
	}
}

func TestFS_ThatCannotBeEndedDoesNotHoldUpClose(t *testing.T) {
	b, g := slowGuest(t, false, func(l *limits) { l.end = 50 * time.Millisecond })
	v := b.open(live)
	gaveUp(b, v)
	v.Release()
	start := time.Now()
	b.must(b.Close())
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if n := b.fake.Store.OpenDevices(); n != 1 {
		t.Errorf("%d devices are open, and one is being read", n)
	}
	if n := b.logs.FilterLevelExact(zap.ErrorLevel).FilterMessageSnippet("does not end that").Len(); n != 1 {
		t.Errorf("told %d times", n)
	}
	close(g.hold)
	eventually(t, "closed when it ended", func() bool { return g.closes.Load() == 1 && b.fake.Store.OpenDevices() == 0 })
}

func TestFS_IsAskedForAgainAfterAnOpeningThatWasBusy(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fs"}), setup{})
	v := b.open(live)
	defer v.Release()
	busy := backend.Because(backend.ErrBusy, "others hold the memory")
	g.fail.Store(&busy)
	if _, err := v.FS(t.Context()); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("%v", err)
	}
	g.fail.Store(nil)
	if _, err := v.FS(t.Context()); err != nil {
		t.Errorf("%v", err)
	}
}

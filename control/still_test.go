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

// frozenBench is a bench whose domain web01 runs, and whose guests are frozen for snapshots.
func frozenBench(t *testing.T, s setup) (*bench, *fake.Freezer) {
	t.Helper()
	s.onFake = fake.NewHost()
	s.onFake.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
	freezer := fake.NewFreezer(s.onFake.Hypervisor)
	more := s.options
	s.options = func(o *Options) {
		o.Freezer = freezer
		if more != nil {
			more(o)
		}
	}
	b := newBench(t, s)
	b.fake.Hypervisor.Start("web01")
	return b, freezer
}

// still checks that the domain runs as before, its guest not frozen, and that each was undone once.
func (b *bench) still(f *fake.Freezer, pauses, freezes int) {
	b.t.Helper()
	if n := b.fake.Hypervisor.Pauses("web01"); n != 0 {
		b.t.Errorf("the domain is left paused %d times", n)
	}
	if n := b.fake.Hypervisor.EverPaused("web01"); n != pauses {
		b.t.Errorf("the domain was paused %d times, want %d", n, pauses)
	}
	if f.Frozen("web01") {
		b.t.Error("the guest is left frozen")
	}
	if n := f.Calls("Freeze"); n != freezes {
		b.t.Errorf("the guest was frozen %d times, want %d", n, freezes)
	}
	if n := b.fake.Store.Guards(); n != 0 {
		b.t.Errorf("%d guards are left", n)
	}
}

func TestSnapshot_FreezesBeforeItPausesAndThawsAfterItResumes(t *testing.T) {
	b, f := frozenBench(t, setup{})
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Hang: hang})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "nightly") }()
	eventually(t, "second disk", func() bool { return b.fake.Store.Calls("Snapshot") == 2 })
	// The fake guest answers nobody while it is paused, so it was frozen before.
	if !f.Frozen("web01") || b.fake.Hypervisor.Pauses("web01") != 1 {
		t.Errorf("frozen: %t, paused %d times", f.Frozen("web01"), b.fake.Hypervisor.Pauses("web01"))
	}
	close(hang)
	b.must(<-result)
	b.still(f, 1, 1)
	if n := f.Calls("Thaw"); n != 1 {
		t.Errorf("thawed %d times", n)
	}
	wantEqual(t, "snapshots that it was frozen for", f.Snapshots(), []string{"nightly"})
	for _, k := range b.set("web01", "nightly").Disks {
		if k.Consistency != backend.ConsistencyFrozen {
			t.Errorf("%s: consistency %s", k.Disk.VDev, k.Consistency)
		}
	}
}

func TestSnapshot_WithoutPausePromisesWhatItCan(t *testing.T) {
	for _, c := range []struct {
		name   string
		disks  []string
		freeze bool
		want   backend.Consistency
	}{
		{"one disk", []string{"xvda"}, false, backend.ConsistencyCrash},
		{"two disks", []string{"xvda", "xvdb"}, false, backend.ConsistencyCrashPerDisk},
		{"frozen", []string{"xvda", "xvdb"}, true, backend.ConsistencyFrozen},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := fake.NewHost()
			host.AddDomain("web01", uuid1, nil, c.disks...)
			f := fake.NewFreezer(host.Hypervisor)
			b := newBench(t, setup{onFake: host, options: func(o *Options) {
				o.NoPause = true
				if c.freeze {
					o.Freezer = f
				}
			}})
			host.Hypervisor.Start("web01")
			b.must(b.Snapshot(t.Context(), "web01", "s"))
			if got := b.set("web01", "s").Consistency; got != c.want {
				t.Errorf("consistency %s, want %s", got, c.want)
			}
			freezes := 0
			if c.freeze {
				freezes = 1
			}
			b.still(f, 0, freezes)
			if e := b.eventsOf("snapshot"); len(e) != 1 || e[0].Paused != 0 || (e[0].Frozen > 0) != c.freeze {
				t.Errorf("events: %+v", e)
			}
		})
	}
}

func TestSnapshot_FreezesOnlyAGuestThatRuns(t *testing.T) {
	b, f := frozenBench(t, setup{})
	b.fake.Hypervisor.PauseByHand("web01")
	b.must(b.Snapshot(t.Context(), "web01", "paused"))
	if got := b.set("web01", "paused").Consistency; got != backend.ConsistencyPaused {
		t.Errorf("consistency %s", got)
	}
	b.fake.Hypervisor.Stop("web01")
	b.must(b.Snapshot(t.Context(), "web01", "off"))
	if got := b.set("web01", "off").Consistency; got != backend.ConsistencyOff {
		t.Errorf("consistency %s", got)
	}
	b.still(f, 1, 0)
}

func TestSnapshot_ThawsAndResumesWhateverFails(t *testing.T) {
	planted := fmt.Errorf("planted: %w", backend.ErrIO)
	for _, c := range []struct {
		name    string
		plant   func(b *bench, f *fake.Freezer)
		want    error
		words   string
		pauses  int
		freezes int
		thaws   int
	}{
		{"no room", func(b *bench, f *fake.Freezer) { b.fake.Store.Fail("Prepare", planted) }, backend.ErrIO, "planted", 0, 0, 0},
		{"not frozen", func(b *bench, f *fake.Freezer) { f.Fail("Freeze", planted) }, backend.ErrIO, "web01 cannot be frozen", 0, 1, 1},
		{"perhaps frozen", func(b *bench, f *fake.Freezer) { f.Plant(fake.Fault{Op: "Freeze", Err: planted, After: true}) }, backend.ErrIO, "web01 cannot be frozen", 0, 1, 1},
		{"not paused", func(b *bench, f *fake.Freezer) { b.fake.Hypervisor.Fail("Pause", planted) }, backend.ErrIO, "web01 cannot be paused", 0, 1, 1},
		{"no snapshot", func(b *bench, f *fake.Freezer) {
			b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Err: planted})
		}, backend.ErrIO, "planted", 1, 1, 1},
		{"no record", func(b *bench, f *fake.Freezer) { b.fake.Store.Plant(fake.Fault{Op: "Annotate", Nth: 2, Err: planted}) }, backend.ErrIO, "planted", 1, 1, 1},
		{"resumed by others", func(b *bench, f *fake.Freezer) {
			b.fake.Hypervisor.Plant(fake.Fault{Op: "Resume", After: true, Err: backend.ErrStale})
		}, backend.ErrIO, "did not stay paused", 1, 1, 1},
		{"thawed by others", func(b *bench, f *fake.Freezer) {
			f.Plant(fake.Fault{Op: "Thaw", After: true, Err: backend.ErrStale})
		}, backend.ErrIO, "did not stay frozen", 1, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, f := frozenBench(t, setup{})
			c.plant(b, f)
			err := b.Snapshot(t.Context(), "web01", "s")
			b.mustFail(err, c.want, c.words)
			if errors.Is(err, backend.ErrStale) {
				t.Errorf("%v would have the kernel repeat its mkdir", err)
			}
			b.noSnapshotsLeft()
			b.still(f, c.pauses, c.freezes)
			if n := f.Calls("Thaw"); n != c.thaws {
				t.Errorf("thawed %d times, want %d", n, c.thaws)
			}
		})
	}
}

func TestSnapshot_TriesAgainToResumeAndToThaw(t *testing.T) {
	b, f := frozenBench(t, setup{})
	b.fake.Hypervisor.Plant(fake.Fault{Op: "Resume", Nth: 1, Err: backend.ErrIO})
	f.Plant(fake.Fault{Op: "Thaw", Nth: 1, Err: backend.ErrIO})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.still(f, 1, 1)
	if got := b.set("web01", "s").Consistency; got != backend.ConsistencyFrozen {
		t.Errorf("consistency %s", got)
	}
}

func TestSnapshot_ThawsInTheBackgroundWhatDoesNotThaw(t *testing.T) {
	b, f := frozenBench(t, setup{})
	for n := range undoTries {
		f.Plant(fake.Fault{Op: "Thaw", Nth: n + 1, Err: backend.ErrIO})
	}
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.lastErrorHas("web01", " thaw ", "still frozen")
	eventually(t, "thawed", func() bool { return !f.Frozen("web01") })
	b.still(f, 1, 1)
}

func TestSnapshot_ThawsWhenStoreHangs(t *testing.T) {
	b, f := frozenBench(t, setup{
		limits:  func(l *limits) { l.frozen = 50 * time.Millisecond },
		options: func(o *Options) { o.NoPause = true },
	})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Hang: make(chan struct{})})
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrTimeout, "was frozen for", "thawed")
	b.noSnapshotsLeft()
	b.still(f, 0, 1)
}

func TestSnapshot_IsNotHeldUpByAGuestThatIsNotThawed(t *testing.T) {
	b, f := frozenBench(t, setup{limits: func(l *limits) { l.frozen = 300 * time.Millisecond }})
	answers := make(chan struct{})
	f.Plant(fake.Fault{Op: "Thaw", Hang: answers})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := f.Calls("Thaw"); n != 1 {
		t.Errorf("it was waited for %d times", n)
	}
	b.lastErrorHas("web01", " thaw ", "still frozen")
	close(answers)
	eventually(t, "thawed", func() bool { return !f.Frozen("web01") })
}

func TestSnapshot_OfADomainThatIsEndingIsNotOneOfTheDisksThatAreLeft(t *testing.T) {
	for _, state := range []backend.DomainState{backend.StatePaused, backend.StateShutdown, backend.StateCrashed, backend.StateDying} {
		for name, ends := range map[string]func(hv *fake.Hypervisor){
			"it is off then":      func(hv *fake.Hypervisor) { hv.Stop("web01") },
			"it is gone then":     func(hv *fake.Hypervisor) { hv.Remove("web01") },
			"it is another then":  func(hv *fake.Hypervisor) { hv.Start("web01") },
			"it loses the others": func(hv *fake.Hypervisor) { hv.Change("web01", func(d *backend.Domain) { d.Disks = nil }) },
			"nothing":             nil,
		} {
			t.Run(string(state)+", "+name, func(t *testing.T) {
				b := newBench(t, setup{options: func(o *Options) { o.NoPause = true }})
				hv := b.fake.Hypervisor
				hv.Start("web01")
				hv.Change("web01", func(d *backend.Domain) { d.State, d.Disks = state, d.Disks[1:] }) // xvda has gone already
				hang := make(chan struct{})
				b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
				result := make(chan error)
				go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
				eventually(t, "the snapshot", func() bool { return b.fake.Store.Calls("Snapshot") == 1 })
				if ends == nil {
					close(hang)
					b.must(<-result)
					return
				}
				ends(hv)
				close(hang)
				b.mustFail(<-result, backend.ErrBusy, "ended or changed meanwhile")
				b.noSnapshotsLeft()
			})
		}
	}
}

func TestSnapshot_FailsWhenTheDomainIsResumedByOthers(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Hypervisor.Start("web01")
	b.fake.Hypervisor.Plant(fake.Fault{Op: "Resume", After: true, Err: fmt.Errorf("resumed by somebody else: %w", backend.ErrStale)})
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrIO, "did not stay paused", "by somebody else")
	b.noSnapshotsLeft()
	if n := b.fake.Hypervisor.Calls("Resume"); n != 1 {
		t.Errorf("resumed %d times", n)
	}
}

func TestSnapshot_SaysWhyItFailedThoughTheDomainDidNotStayStill(t *testing.T) {
	b, f := frozenBench(t, setup{})
	b.fake.Hypervisor.Plant(fake.Fault{Op: "Resume", After: true, Err: fmt.Errorf("resumed by somebody else: %w", backend.ErrStale)})
	f.Plant(fake.Fault{Op: "Thaw", After: true, Err: fmt.Errorf("thawed by somebody else: %w", backend.ErrStale)})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 2, Err: backend.ErrNoSpace})
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrNoSpace)
	b.noSnapshotsLeft()
}

// pausedAndFailed is a Pauser that fails though it has paused, as one does that has run out of time.
type pausedAndFailed struct {
	backend.Hypervisor
	backend.Pauser
}

func (p pausedAndFailed) Pause(ctx context.Context, d backend.Domain) (func(context.Context) error, error) {
	resume, err := p.Pauser.Pause(ctx, d)
	return resume, errors.Join(err, fmt.Errorf("no answer: %w", backend.ErrTimeout))
}

func TestSnapshot_ResumesADomainWhosePauseFails(t *testing.T) {
	b := newBench(t, setup{options: func(o *Options) {
		hv := o.Hypervisors[0]
		o.Hypervisors[0] = pausedAndFailed{hv, hv.(backend.Pauser)}
	}})
	b.fake.Hypervisor.Start("web01")
	b.fake.Hypervisor.Plant(fake.Fault{Op: "Resume", Nth: 1, Err: backend.ErrIO})
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrTimeout, "cannot be paused")
	b.noSnapshotsLeft()
	if ever, now := b.fake.Hypervisor.EverPaused("web01"), b.fake.Hypervisor.Pauses("web01"); ever != 1 || now != 0 {
		t.Errorf("paused %d times, and %d still", ever, now)
	}
}

// preparing is a Pauser that gets ready first, and notes what it is asked.
type preparing struct {
	backend.Hypervisor
	backend.Pauser
	mu   sync.Mutex
	done []string // guarded by mu
	err  error
}

func (p *preparing) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = append(p.done, what)
}

func (p *preparing) PreparePause(ctx context.Context, d backend.Domain) (backend.Pauser, func(), error) {
	p.note("prepare")
	return noted{p}, func() { p.note("release") }, p.err
}

type noted struct{ *preparing }

func (n noted) Pause(ctx context.Context, d backend.Domain) (func(context.Context) error, error) {
	n.note("pause")
	return n.Pauser.Pause(ctx, d)
}

func TestSnapshot_PreparesThePauseFirst(t *testing.T) {
	var p *preparing
	b, f := frozenBench(t, setup{options: func(o *Options) {
		hv := o.Hypervisors[0]
		p = &preparing{Hypervisor: hv, Pauser: hv.(backend.Pauser)}
		o.Hypervisors[0] = p
	}})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	want := []string{"prepare", "pause", "release"}
	if !slices.Equal(p.done, want) {
		t.Errorf("asked %q, want %q", p.done, want)
	}
	b.still(f, 1, 1)

	p.done = nil
	f.Plant(fake.Fault{Op: "Freeze", Nth: 1, Err: backend.ErrIO})
	b.mustFail(b.Snapshot(t.Context(), "web01", "t"), backend.ErrIO)
	if want := []string{"prepare", "release"}; !slices.Equal(p.done, want) {
		t.Errorf("asked %q, want %q", p.done, want)
	}

	p.err = fmt.Errorf("no xl: %w", backend.ErrNotExist)
	b.mustFail(b.Snapshot(t.Context(), "web01", "t"), backend.ErrNotExist, "cannot be paused", "no xl")
	b.still(f, 1, 2)
}

func TestSnapshot_TellsHowLongItPausedAndFroze(t *testing.T) {
	b, _ := frozenBench(t, setup{})
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
	const paused = 60 * time.Millisecond
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "s") }()
	eventually(t, "paused", func() bool { return b.fake.Hypervisor.Pauses("web01") == 1 })
	time.Sleep(paused)
	close(hang)
	b.must(<-result)
	e := b.eventsOf("snapshot")
	if len(e) != 1 || e[0].Paused < paused.Seconds() || e[0].Frozen < e[0].Paused || e[0].Took < e[0].Frozen || e[0].Paused > 5 {
		t.Fatalf("events: %+v", e)
	}
	fields := map[string]any{}
	for _, l := range b.logs.FilterMessage("done").All() {
		for k, v := range l.ContextMap() {
			fields[k] = v
		}
	}
	for _, k := range []string{"paused", "frozen", "took"} {
		if d, ok := fields[k].(time.Duration); !ok || d <= 0 {
			t.Errorf("logged %s: %v", k, fields[k])
		}
	}
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Err: backend.ErrIO})
	b.mustFail(b.Snapshot(t.Context(), "web01", "t"), backend.ErrIO)
	if e := b.eventsOf("error"); len(e) != 1 || e[0].Paused <= 0 || !strings.HasPrefix(e[0].Message, "snapshot:") {
		t.Errorf("events: %+v", e)
	}
}

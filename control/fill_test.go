package control

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// copying is a bench whose snapshots are copies; those of disks that hang are held up
// until release is called.
func copying(t *testing.T, s setup, hang bool) (b *bench, release func()) {
	b = newBench(t, s)
	b.fake.Store.SetCopies(true)
	c := make(chan struct{})
	if hang {
		b.fake.Store.Plant(fake.Fault{Op: "Fill", Hang: c})
	}
	return b, func() { close(c) }
}

func TestFill_ReturnsAtOnceAndActivatesAtItsEnd(t *testing.T) {
	b, release := copying(t, setup{}, true)
	b.fake.Store.Write("/images/web01-xvdb", 5, []byte("content"))
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if s := b.set("web01", "s"); s.State != backend.SnapshotFilling || s.Consistency != backend.ConsistencyOff {
		t.Fatalf("set: %+v", s)
	}
	id := b.set("web01", "s").ID
	got := make(chan string)
	go func() {
		v, err := b.Volume(context.Background(), VolumeRef{SetID: id, VDev: "xvdb"})
		if err != nil {
			got <- err.Error()
			return
		}
		defer v.Release()
		p := make([]byte, 7)
		v.Device().ReadAt(p, 5)
		got <- string(p)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := b.Volume(ctx, VolumeRef{SetID: id, VDev: "xvda"}); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("open while filling: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := b.Volume(ctx, VolumeRef{SetID: id, VDev: "xvda"}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted open while filling: %v", err)
	}
	release()
	if s := <-got; s != "content" {
		t.Errorf("waiting open read %q", s)
	}
	if s := b.set("web01", "s"); s.State != backend.SnapshotActive {
		t.Errorf("state %s", s.State)
	}
	eventually(t, "the guard is released", func() bool { return b.fake.Store.Guards() == 0 })
	eventually(t, "the end is told", func() bool {
		es := b.eventsOf("fill")
		return len(es) >= 2 && es[len(es)-1].Done == 2<<20 && es[len(es)-1].Total == 2<<20
	})
}

func TestFill_FailureRemovesTheSet(t *testing.T) {
	b, release := copying(t, setup{}, true)
	b.fake.Store.Plant(fake.Fault{Op: "Fill", Nth: 2, Err: backend.ErrNoSpace})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	id := b.set("web01", "s").ID
	failed := make(chan error)
	go func() {
		_, err := b.Volume(context.Background(), VolumeRef{SetID: id, VDev: "xvda"})
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond)
	release()
	b.mustFail(<-failed, backend.ErrIO)
	eventually(t, "removed", func() bool { return len(b.fake.Store.All()) == 0 })
	eventually(t, "told", func() bool { return len(b.eventsOf("error")) > 0 })
	b.lastErrorHas("web01", " fill ENOSPC ", "snapshot s could not be copied and is removed")
	wantEqual(t, "sets", b.sets("web01"), []string{})
	if _, err := b.Volume(t.Context(), VolumeRef{SetID: id, VDev: "xvda"}); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("open afterwards: %v", err)
	}
}

func TestFill_WriterEndsIt(t *testing.T) {
	b, release := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.fake.Store.Hold("/images/web01-xvdb", "qemu (pid 99)")
	release()
	eventually(t, "removed", func() bool { return len(b.fake.Store.All()) == 0 })
	eventually(t, "told", func() bool { return len(b.eventsOf("error")) > 0 })
	b.lastErrorHas("web01", " fill EBUSY ", "qemu (pid 99)")
}

func TestFill_RemoveCancelsIt(t *testing.T) {
	b, _ := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	began := time.Now()
	b.must(b.Remove(t.Context(), "web01", "s"))
	if time.Since(began) > 5*time.Second {
		t.Error("removal waited for the copy")
	}
	b.noSnapshotsLeft()
	if text := b.LastErrors("web01"); len(text) != 0 {
		t.Errorf("last_error: %s", text)
	}
}

func TestFill_RemoveAndEndAtOnceDoNotDeadlock(t *testing.T) {
	b, _ := copying(t, setup{}, false)
	for range 30 {
		b.must(b.Snapshot(t.Context(), "web01", "s"))
		b.must(b.Remove(t.Context(), "web01", "s"))
		b.noSnapshotsLeft()
	}
}

func TestFill_CloseRemovesWhatIsNotCopied(t *testing.T) {
	b, _ := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.Close())
	b.noSnapshotsLeft()
	if err := b.Snapshot(t.Context(), "web01", "t"); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("snapshot after Close: %v", err)
	}
}

func TestFill_KeepsChangesMadeMeanwhile(t *testing.T) {
	b, release := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.Rename(t.Context(), "web01", "s", "renamed"))
	b.must(b.SetHold(t.Context(), "web01", "renamed", "1"))
	if st := b.set("web01", "renamed").State; st != backend.SnapshotFilling {
		t.Errorf("state %s", st)
	}
	release()
	eventually(t, "active", func() bool { return b.set("web01", "renamed").State == backend.SnapshotActive })
	if !b.set("web01", "renamed").Hold {
		t.Error("hold is lost")
	}
}

func TestFill_AtMostSomeAtOnce(t *testing.T) {
	b, release := copying(t, setup{limits: func(l *limits) { l.fills = 1 }}, true)
	b.must(b.Snapshot(t.Context(), "web01", "a"))
	b.must(b.Snapshot(t.Context(), "web01", "b"))
	eventually(t, "the first copies", func() bool { return b.fake.Store.Calls("Fill") == 1 })
	time.Sleep(30 * time.Millisecond)
	if n := b.fake.Store.Calls("Fill"); n != 1 {
		t.Errorf("%d copies at once", n)
	}
	release()
	for _, name := range []string{"a", "b"} {
		eventually(t, name+" is active", func() bool { return b.set("web01", name).State == backend.SnapshotActive })
	}
}

func TestFill_OfAnotherDaemonIsWaitedForAndLeftAlone(t *testing.T) {
	a, release := copying(t, setup{}, true)
	a.must(a.Snapshot(t.Context(), "web01", "s"))
	id := a.set("web01", "s").ID
	b := newBench(t, setup{onFake: a.fake, options: func(o *Options) { o.LockFile = a.o.LockFile }})
	if st := b.set("web01", "s").State; st != backend.SnapshotFilling {
		t.Fatalf("a daemon that starts made of another's copy: %s", st)
	}
	opened := make(chan error)
	go func() {
		v, err := b.Volume(context.Background(), VolumeRef{SetID: id, VDev: "xvda"})
		if err == nil {
			_, err = v.Device().ReadAt(make([]byte, 1), 0)
			v.Release()
		}
		opened <- err
	}()
	time.Sleep(20 * time.Millisecond)
	release()
	if err := <-opened; err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("open in the other daemon: %v", err)
	}
	if st := b.set("web01", "s").State; st != backend.SnapshotActive {
		t.Errorf("state %s", st)
	}
}

// fileFiller copies files whose bytes are not those that guests see, and does not say so before it begins.
type fileFiller struct {
	backend.Snapshotter
	bytes map[string]int64 // by disk
}

func (s *fileFiller) Fill(_ context.Context, snap backend.Snapshot, _ backend.Guard, progress func(done, total int64)) error {
	total := s.bytes[snap.Disk.VDev]
	progress(0, total)
	time.Sleep(progressEvery + progressEvery/10)
	progress(total/2, total)
	progress(total, total)
	return nil
}

type keptGuard struct{ backend.Guard }

func (keptGuard) Broken() error { return nil }
func (keptGuard) Release()      {}

func TestFill_CountsTheBytesThatItsStoreCopies(t *testing.T) {
	b := newBench(t, setup{})
	part := &storePart{store: &fileFiller{bytes: map[string]int64{"xvda": 1700, "xvdb": 300}}, guard: keptGuard{}}
	m := &maker{h: b.Host, id: "set", name: "s", domain: &Domain{Domain: backend.Domain{Name: "web01"}}, parts: []*storePart{part}}
	for vdev, reserved := range map[string]int64{"xvda": 2048, "xvdb": 0} {
		m.made = append(m.made, member{part, backend.Snapshot{
			SnapshotMeta: backend.SnapshotMeta{State: backend.SnapshotFilling, Disk: backend.Disk{VDev: vdev}},
			Volume:       backend.Volume{SizeBytes: 4096},
			UsedBytes:    reserved,
		}})
	}
	slices.SortFunc(m.made, func(a, b member) int { return strings.Compare(a.snap.Disk.VDev, b.snap.Disk.VDev) })
	f := b.newFill(m, func() {})
	if got := f.total(); got != 2048+4096 {
		t.Errorf("%d bytes at first", got)
	}
	if err := f.copyAll(); err != nil {
		t.Fatal(err)
	}
	f.finish(nil)
	if got := f.total(); got != 2000 {
		t.Errorf("%d bytes in the end", got)
	}
	want := []Event{{Disk: "xvda", Done: 0, Total: 1700 + 4096}, {Disk: "xvda", Done: 850, Total: 1700 + 4096}, {Disk: "xvdb", Done: 1700 + 150, Total: 2000}}
	var got []Event
	for _, e := range b.eventsOf("fill") {
		e = Event{Disk: e.Disk, Done: e.Done, Total: e.Total}
		// Where the machine stands still for a second, more are due.
		late := []Event{{Disk: "xvda", Done: 1700, Total: 1700 + 4096}, {Disk: "xvdb", Done: 1700, Total: 2000}, {Disk: "xvdb", Done: 2000, Total: 2000}}
		if !slices.Contains(late, e) {
			got = append(got, e)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("events: %+v, want %+v", got, want)
	}
}

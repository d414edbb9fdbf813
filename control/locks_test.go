package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestHostLock_LetsOneChangeHappenAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "lock")
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		l := newHostLock(path) // as another process would have it
		for range 4 {
			wg.Go(func() {
				release, err := l.acquire(t.Context(), "test", 30*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				n := inside.Add(1)
				most.Store(max(most.Load(), n))
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				release()
			})
		}
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("lock file: %v %v", st.Mode(), err)
	}
}

func TestHostLock_SaysWhoHasIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := newHostLock(path).acquire(t.Context(), "snapshot of web01/nightly", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, setup{noStart: true, options: func(o *Options) { o.LockFile, o.LockTimeout = path, 30*time.Millisecond }})
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrBusy, fmt.Sprintf("process %d: snapshot of web01/nightly", os.Getpid()))
	b.lastErrorHas("web01", " snapshot EBUSY ")
	if err := b.Start(t.Context()); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("start: %v", err)
	}
	release()
	b.must(b.Snapshot(t.Context(), "web01", "s"))
}

func TestHostLock_SaysWhatThisDaemonDoes(t *testing.T) {
	b := newBench(t, setup{options: func(o *Options) { o.LockTimeout = 30 * time.Millisecond }})
	hang := make(chan struct{})
	b.fake.Store.Plant(fake.Fault{Op: "Snapshot", Nth: 1, Hang: hang})
	result := make(chan error)
	go func() { result <- b.Snapshot(t.Context(), "web01", "slow") }()
	eventually(t, "it hangs", func() bool { return b.fake.Store.Calls("Snapshot") == 1 })
	b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrBusy, "this daemon's snapshot of web01/slow")
	close(hang)
	b.must(<-result)
}

func TestHostLock_FollowsNoSymlinkAndSurvivesRemoval(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if _, err := newHostLock(link).acquire(t.Context(), "test", time.Second); err == nil {
		t.Error("a symlink was locked")
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a symlink was followed")
	}
	path := filepath.Join(dir, "lock")
	release, err := newHostLock(path).acquire(t.Context(), "first", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path) // somebody tidies up: the next lock is on a new file
	second, err := newHostLock(path).acquire(t.Context(), "second", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newHostLock(path).acquire(t.Context(), "third", 20*time.Millisecond); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), "second") {
		t.Errorf("third: %v", err)
	}
	release()
	second()
}

func TestTwoDaemons_TakeTurns(t *testing.T) {
	a := newBench(t, setup{})
	b := newBench(t, setup{onFake: a.fake, options: func(o *Options) { o.LockFile = a.o.LockFile }})
	var wg sync.WaitGroup
	var made atomic.Int32
	for i := range 6 {
		for _, h := range []*bench{a, b} {
			wg.Go(func() {
				name := fmt.Sprintf("s%d", i)
				switch err := h.Snapshot(t.Context(), "web01", name); {
				case err == nil:
					made.Add(1)
				case !errors.Is(err, backend.ErrExist):
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if made.Load() != 6 || len(a.fake.Store.All()) != 12 {
		t.Errorf("%d made, %d snapshots", made.Load(), len(a.fake.Store.All()))
	}
	a.must(a.Remove(t.Context(), "web01", "s0"))
	eventually(t, "the other sees it", func() bool { return b.inv().SnapshotDir("web01").Set("s0") == nil })
}

// Four callers do what four shells would, on one domain, for a while.
func TestChanges_AtOnceGiveOnlyRightErrors(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.SetCopies(true)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			name := fmt.Sprintf("s%d", i%2)
			for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); {
				if err := b.Snapshot(t.Context(), "web01", name); err != nil && !errors.Is(err, backend.ErrExist) {
					t.Errorf("snapshot: %v", err)
				}
				inv := b.inv()
				if s := inv.SnapshotDir("web01").Set(name); s != nil {
					v, err := b.Volume(t.Context(), VolumeRef{SetID: s.ID, VDev: "xvda"})
					switch {
					case err == nil:
						if _, err := v.Device().ReadAt(make([]byte, 10), 0); err != nil {
							t.Errorf("read: %v", err)
						}
						v.Release()
					case !errors.Is(err, backend.ErrNotExist) && !errors.Is(err, backend.ErrIO):
						t.Errorf("open: %v", err)
					}
				}
				if err := b.Remove(t.Context(), "web01", name); err != nil && !errors.Is(err, backend.ErrNotExist) {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
	b.noSnapshotsLeft()
}

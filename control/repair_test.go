package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestStart_EndsWhatACrashLeft(t *testing.T) {
	const p, f, a, i, r = backend.SnapshotPending, backend.SnapshotFilling, backend.SnapshotActive, backend.SnapshotInvalid, backend.SnapshotRemoving
	for _, c := range []struct {
		name    string
		members []backend.SnapshotState
		want    []string
		state   backend.SnapshotState
	}{
		{"first of two disks made", []backend.SnapshotState{p}, []string{}, ""},
		{"both made", []backend.SnapshotState{p, p}, []string{}, ""},
		{"one committed", []backend.SnapshotState{a, p}, []string{"s"}, a},
		{"both committed", []backend.SnapshotState{a, a}, []string{"s"}, a},
		{"one reserved", []backend.SnapshotState{f}, []string{}, ""},
		{"reserved, not committed", []backend.SnapshotState{f, p}, []string{}, ""},
		{"copying", []backend.SnapshotState{f, f}, []string{}, ""},
		{"copying one", []backend.SnapshotState{a, f}, []string{}, ""},
		{"marked for removal", []backend.SnapshotState{r, a}, []string{}, ""},
		{"undone in part", []backend.SnapshotState{r, p}, []string{}, ""},
		{"removed in part", []backend.SnapshotState{r}, []string{}, ""},
		{"damaged", []backend.SnapshotState{a, i}, []string{"s"}, i},
		{"a disk's snapshot is lost", []backend.SnapshotState{a}, []string{"s"}, i},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := fake.NewHost()
			host.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
			for n, st := range c.members {
				host.Store.Put(backend.Snapshot{Origin: "/images/x", SnapshotMeta: backend.SnapshotMeta{Set: "20260101T000000000-abcdef", Name: "s", DomainName: "web01", DomainUUID: uuid1,
					DiskCount: 2, State: st, Disk: backend.Disk{VDev: fmt.Sprintf("xvd%c", 'a'+n)}, Created: time.Unix(1, 0), Consistency: backend.ConsistencyOff}})
			}
			host.Store.PutStray()
			b := newBench(t, setup{onFake: host})
			wantEqual(t, "sets", b.sets("web01"), c.want)
			if len(c.want) == 0 {
				b.noSnapshotsLeft()
			} else if st := b.set("web01", "s").State; st != c.state {
				t.Errorf("state %s, want %s", st, c.state)
			}
			if n := host.Store.Strays(); n != 0 {
				t.Errorf("%d strays", n)
			}
			b.must(b.Close())
			again := newBench(t, setup{onFake: host})
			wantEqual(t, "sets after another start", again.sets("web01"), c.want)
		})
	}
}

func TestStart_MakesTheMembersOfASetAgree(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "old"))
	b.must(b.Close())
	// A rename that was killed after its first disk.
	first := b.fake.Store.All()[0]
	m := first.SnapshotMeta
	m.Name = "new"
	sn := b.fake.Store.Driver(fake.All).(backend.Snapshotter)
	b.must(sn.Annotate(t.Context(), first.With(m)))
	c := newBench(t, setup{onFake: b.fake})
	wantEqual(t, "sets", c.sets("web01"), []string{"new"})
	for _, k := range b.fake.Store.All() {
		if k.Name != "new" {
			t.Errorf("%s is called %s", k.Disk.VDev, k.Name)
		}
	}
}

func TestSnapshot_ReplacesWhatAnotherDaemonsCrashLeft(t *testing.T) {
	b := newBench(t, setup{})
	b.fake.Store.Put(backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: "20260101T000000000-abcdef", Name: "s", DomainName: "web01", DomainUUID: uuid1,
		DiskCount: 2, State: backend.SnapshotPending, Disk: backend.Disk{VDev: "xvda"}}})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := len(b.fake.Store.All()); n != 2 {
		t.Errorf("%d snapshots", n)
	}
}

func TestStart_GoesOnWhenRepairFails(t *testing.T) {
	host := fake.NewHost()
	host.AddDomain("web01", uuid1, nil, "xvda")
	host.Store.Fail("Repair", backend.ErrIO)
	b := newBench(t, setup{onFake: host})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := b.logs.FilterMessage("a store could not be repaired").Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func TestCrashedCopy_IsRemovedByALivingDaemon(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.tick = 20 * time.Millisecond }})
	const id = "20260101T000000000-abcdef"
	// A dead daemon's lock file is there, but nobody has its flock.
	path := b.lock.setLockPath(copies, id)
	b.must(os.WriteFile(path, []byte("1 copying\n"), 0o600))
	b.fake.Store.Put(backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: id, Name: "s", DomainName: "web01", DomainUUID: uuid1,
		DiskCount: 1, State: backend.SnapshotFilling, Disk: backend.Disk{VDev: "xvda"}}})
	eventually(t, "removed", func() bool { return len(b.fake.Store.All()) == 0 })
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the lock file: %v", err)
	}
}

func TestFill_LeavesNoLockFile(t *testing.T) {
	b, _ := copying(t, setup{}, false)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	eventually(t, "copied", func() bool { return b.set("web01", "s").State == backend.SnapshotActive })
	eventually(t, "only the host's lock file is left", func() bool {
		files, _ := filepath.Glob(b.o.LockFile + "*")
		return len(files) == 1
	})
}

// resuming counts how often a store was told to resume.
type resuming struct {
	backend.Store
	resumed int
}

func (r *resuming) Resume(context.Context) error {
	r.resumed++
	return nil
}

func TestResume_FollowsTheDeathOfADaemonInAChangeAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var store *resuming
	setup := setup{noStart: true, options: func(o *Options) { o.LockFile = path }}
	withStore := setup
	withStore.options = func(o *Options) {
		setup.options(o)
		store = &resuming{Store: o.Stores[0]}
		o.Stores = []backend.Store{store}
	}
	b := newBench(t, withStore)
	b.must(b.Start(t.Context()))
	if store.resumed != 0 {
		t.Errorf("resumed %d times though nobody had died", store.resumed)
	}
	// As one leaves it that is killed.
	if err := os.WriteFile(path, []byte("4242 snapshot of web01/nightly\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.SetHold(t.Context(), "web01", "none", "1"); !errors.Is(err, backend.ErrNotExist) {
		t.Error(err)
	}
	if store.resumed != 1 {
		t.Errorf("resumed %d times after a death", store.resumed)
	}
	if err := b.SetHold(t.Context(), "web01", "none", "1"); !errors.Is(err, backend.ErrNotExist) || store.resumed != 1 {
		t.Errorf("resumed %d times for one death (%v)", store.resumed, err)
	}
}

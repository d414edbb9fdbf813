package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestRemove_RemovesEveryDisk(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	id := b.set("web01", "s").ID
	b.must(b.Remove(t.Context(), "web01", "s"))
	b.noSnapshotsLeft()
	b.mu.Lock()
	last := b.changes[len(b.changes)-1]
	b.mu.Unlock()
	if last != (Change{Dir: "web01", SetID: id, Gone: true}) {
		t.Errorf("change %+v", last)
	}
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrNotExist)
}

func TestRemove_RefusesWhatIsHeld(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.SetHold(t.Context(), "web01", "s", "1"))
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrPermission, "held")
	b.must(b.SetHold(t.Context(), "web01", "s", "0"))
	b.must(b.Remove(t.Context(), "web01", "s"))
}

func TestRemove_ChangesNothingWhileAFileIsOpen(t *testing.T) {
	busy := true
	b := newBench(t, setup{drain: func(context.Context, string) error {
		if busy {
			return fmt.Errorf("a file is open by vim (pid 5): %w", backend.ErrBusy)
		}
		return nil
	}})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrBusy, "vim (pid 5)")
	if st := b.set("web01", "s").State; st != backend.SnapshotActive {
		t.Errorf("state %s", st)
	}
	busy = false
	b.must(b.Remove(t.Context(), "web01", "s"))
}

func TestRemove_GoesOnWhereItFailed(t *testing.T) {
	for _, how := range []string{"by rmdir", "by the next start"} {
		t.Run(how, func(t *testing.T) {
			b := newBench(t, setup{})
			b.must(b.Snapshot(t.Context(), "web01", "s"))
			clear := b.fake.Store.Plant(fake.Fault{Op: "Remove", Nth: 2, Err: backend.ErrIO})
			b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrIO, "in part")
			s := b.set("web01", "s")
			if s.State != backend.SnapshotRemoving || len(s.Disks) != 1 {
				t.Fatalf("set: %+v", s)
			}
			if _, err := b.Volume(t.Context(), VolumeRef{SetID: s.ID, VDev: s.Disks[0].Disk.VDev}); !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("open of a set that is being removed: %v", err)
			}
			b.mustFail(b.Rename(t.Context(), "web01", "s", "t"), backend.ErrBusy)
			clear()
			if how == "by rmdir" {
				b.must(b.Remove(t.Context(), "web01", "s"))
			} else {
				newBench(t, setup{onFake: b.fake})
			}
			b.noSnapshotsLeft()
		})
	}
}

func TestRemove_LeavesASetThatCannotBeMarked(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	clear := b.fake.Store.Fail("Annotate", backend.ErrReadOnly)
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrReadOnly, "left as it is")
	clear()
	if st := b.set("web01", "s").State; st != backend.SnapshotActive || len(b.fake.Store.All()) != 2 {
		t.Errorf("state %s", st)
	}
}

func TestRemove_LeavesASetWhoseSecondDiskCannotBeMarked(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.fake.Store.Plant(fake.Fault{Op: "Annotate", Nth: 2, Err: backend.ErrReadOnly})
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrReadOnly, "left as it is")
	for _, k := range b.fake.Store.All() {
		if k.State != backend.SnapshotActive {
			t.Errorf("%s is %s", k.Disk.VDev, k.State)
		}
	}
}

func TestRename_NeverReplaces(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "a"))
	b.must(b.Snapshot(t.Context(), "web01", "b"))
	b.mustFail(b.Rename(t.Context(), "web01", "a", "b"), backend.ErrExist)
	b.mustFail(b.Rename(t.Context(), "web01", "a", "x/y"), backend.ErrInvalid)
	b.mustFail(b.Rename(t.Context(), "web01", "nothing", "c"), backend.ErrNotExist)
	b.must(b.Rename(t.Context(), "web01", "a", "a"))
	id := b.set("web01", "a").ID
	b.must(b.Rename(t.Context(), "web01", "a", "c"))
	wantEqual(t, "sets", b.sets("web01"), []string{"b", "c"})
	if got := b.set("web01", "c").ID; got != id {
		t.Errorf("identity changed from %s to %s", id, got)
	}
}

func TestRename_IsTakenBackWhenTheSecondDiskFails(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "a"))
	b.fake.Store.Plant(fake.Fault{Op: "Annotate", Nth: 2, Err: backend.ErrNoSpace})
	b.mustFail(b.Rename(t.Context(), "web01", "a", "b"), backend.ErrNoSpace)
	for _, k := range b.fake.Store.All() {
		if k.Name != "a" {
			t.Errorf("%s is called %s", k.Disk.VDev, k.Name)
		}
	}
}

func TestSetHold_TakesZeroAndOne(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	for _, v := range []string{"", "2", "yes", "01", " 1"} {
		b.mustFail(b.SetHold(t.Context(), "web01", "s", v), backend.ErrInvalid)
	}
	b.must(b.SetHold(t.Context(), "web01", "s", "1"))
	if !b.set("web01", "s").Hold {
		t.Error("not held")
	}
}

func TestParseExpires_ReadsTimesAndDurations(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 500, time.UTC)
	for value, want := range map[string]string{
		"+7d": "2026-05-13T07:08:09Z", "+12h": "2026-05-06T19:08:09Z", "+90m": "2026-05-06T08:38:09Z", "+4w": "2026-06-03T07:08:09Z",
		"2030-01-31T12:00:00+02:00": "2030-01-31T10:00:00Z", "2030-01-31T12:00:00Z": "2030-01-31T12:00:00Z",
	} {
		got, err := parseExpires(value, now)
		if err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%q: %s, %v; want %s", value, got, err, want)
		}
	}
	if got, err := parseExpires("", now); err != nil || !got.IsZero() {
		t.Errorf("empty: %s, %v", got, err)
	}
	for _, value := range []string{"7d", "+d", "+", "+7", "+0d", "+-1d", "+1.5d", "+7x", "+7 d", "never", "2026-05-06", "2026-05-06T07:08:09Z", "2000-01-01T00:00:00Z",
		"+99999999999999999999d", "+9223372036854775807w", "9999-01-01T00:00:00Z", " "} {
		if got, err := parseExpires(value, now); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%q: %s, %v; want ErrInvalid", value, got, err)
		}
	}
}

func TestRemove_KeepsWhatIsADomainsDiskByNow(t *testing.T) {
	b, c := withClock(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.SetExpires(t.Context(), "web01", "s", "+1h"))
	id := b.set("web01", "s").Disk("xvda").Volume.ID
	b.fake.Store.AddVolume(id, make([]byte, 4096)) // the store gives a volume and a snapshot of one LV the same ID
	b.fake.Hypervisor.Add(backend.Domain{Name: "clone", State: backend.StateOff, Disks: []backend.Disk{{VDev: "xvdb", Source: id}}})
	b.inv()
	b.mustFail(b.Remove(t.Context(), "web01", "s"), backend.ErrBusy, id, "disk xvdb of clone")
	c.forward(2 * time.Hour)
	b.kickExpiry()
	eventually(t, "it was tried", func() bool { return strings.Contains(string(b.LastErrors("web01")), "due for removal") })
	wantEqual(t, "sets", b.sets("web01"), []string{"s"})
	b.fake.Hypervisor.Remove("clone")
	b.must(b.Remove(t.Context(), "web01", "s"))
}

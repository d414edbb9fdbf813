package control

import (
	"fmt"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

const lateSet = "20260101T000000000-abcdef"

// appear has a set of two disks of web01 appear, without devices.
func appear(host *fake.Host) {
	for _, vdev := range []string{"xvda", "xvdb"} {
		host.Store.Put(backend.Snapshot{Origin: "/images/x", SnapshotMeta: backend.SnapshotMeta{Set: lateSet, Name: "late", DomainName: "web01", DomainUUID: uuid1,
			DiskCount: 2, State: backend.SnapshotActive, Disk: backend.Disk{VDev: vdev}, Created: time.Unix(1, 0), Consistency: backend.ConsistencyOff},
			Volume: backend.Volume{Err: fmt.Errorf("it is not active: %w", backend.ErrNoDevice)}})
	}
}

func (b *bench) asleep() bool {
	for _, sn := range b.fake.Store.All() {
		if sn.Volume.Err != nil {
			return true
		}
	}
	return false
}

// An admin who deactivates a snapshot means it.
func TestWake_ActivatesWhatAppearsLaterAndNotWhatIsDeactivated(t *testing.T) {
	b, _ := withClock(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	appear(b.fake)
	eventually(t, "it is activated", func() bool { return !b.asleep() })
	repairs := b.fake.Store.Calls("Repair")
	if repairs != 2 { // the start's is the first
		t.Errorf("Repair was called %d times", repairs)
	}
	time.Sleep(50 * time.Millisecond) // some ticks, in which it is seen awake
	b.fake.Store.Deactivate(lateSet)
	b.fake.Store.Deactivate(b.set("web01", "s").ID)
	time.Sleep(100 * time.Millisecond)
	if !b.asleep() || b.fake.Store.Calls("Repair") != repairs {
		t.Errorf("what was deactivated is active again: Repair was called %d times", b.fake.Store.Calls("Repair"))
	}
}

func TestWake_TriesOnceWhereItFails(t *testing.T) {
	b, _ := withClock(t, setup{})
	clear := b.fake.Store.Fail("Repair", fmt.Errorf("the pool is broken: %w", backend.ErrIO))
	defer clear()
	appear(b.fake)
	eventually(t, "it is tried", func() bool { return b.fake.Store.Calls("Repair") == 2 })
	time.Sleep(100 * time.Millisecond)
	if n := b.fake.Store.Calls("Repair"); n != 2 || !b.asleep() {
		t.Errorf("Repair was called %d times", n)
	}
	if n := b.logs.FilterMessage("a store could not be repaired").Len(); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}

// Nothing but the loop activates: it sleeps for an hour here.
func TestWake_IsNeverDoneByARead(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.tick = time.Hour }})
	time.Sleep(50 * time.Millisecond) // its first look
	appear(b.fake)
	for range 10 {
		time.Sleep(2 * time.Millisecond)
		b.set("web01", "late")
	}
	if n := b.fake.Store.Calls("Repair"); n != 1 || !b.asleep() {
		t.Errorf("Repair was called %d times", n)
	}
}

package control

import (
	"strings"
	"testing"
	"time"

	"domfs/backend"
)

const web01Disk = "/images/web01-xvda" // of the bench's domain

func foreignBench(t *testing.T, allowed bool) (*bench, *clock) {
	b, c := withClock(t, setup{options: func(o *Options) { o.Foreign = allowed }})
	b.fake.Store.PutForeign(web01Disk, "byhand", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{
		Set: "Abcdef-0123-zyxwvu", Created: time.Unix(1e9, 0), Expires: time.Unix(1e9+1, 0)}, ReserveBytes: 8192})
	return b, c
}

func TestForeign_IsListedUnderTheDomainOfItsOrigin(t *testing.T) {
	b, _ := foreignBench(t, false)
	b.fake.Store.AddVolume("/images/nobodys", make([]byte, 4096))
	b.fake.Store.PutForeign("/images/nobodys", "stray", backend.Snapshot{})
	wantEqual(t, "directories", b.dirs(), []string{"web01"})
	wantEqual(t, "sets", b.sets("web01"), []string{"byhand"})
	s := b.set("web01", "byhand")
	if !s.Foreign || s.State != backend.SnapshotActive || s.Consistency != backend.ConsistencyCrash || !s.Created.Equal(time.Unix(1e9, 0)) ||
		!s.Expires.IsZero() || len(s.Disks) != 1 || s.Disks[0].Disk.VDev != "xvda" || s.Disks[0].Disk.Source != web01Disk {
		t.Errorf("%+v", s)
	}
	v, err := b.Volume(t.Context(), VolumeRef{SetID: s.ID, VDev: "xvda"})
	b.must(err)
	v.Release()
	// It follows its domain, and goes with its disk.
	b.fake.Hypervisor.Rename("web01", "web02")
	wantEqual(t, "sets", b.sets("web02"), []string{"byhand"})
	b.fake.Hypervisor.Remove("web02")
	wantEqual(t, "directories", b.dirs(), nil)
}

func TestForeign_OfASharedDiskIsShownOnceUnderTheFirstDomain(t *testing.T) {
	b, _ := foreignBench(t, false)
	b.fake.Hypervisor.Add(backend.Domain{Name: "a01", Disks: []backend.Disk{{VDev: "vdb", Source: web01Disk}}})
	wantEqual(t, "web01", b.sets("web01"), []string{})
	wantEqual(t, "a01", b.sets("a01"), []string{"byhand"})
}

func TestForeign_YieldsItsNameToOneOfOurs(t *testing.T) {
	b, _ := foreignBench(t, false)
	b.mustFail(b.Snapshot(t.Context(), "web01", "byhand"), backend.ErrExist)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	// By another tool, while ours is there: the older name does not win.
	b.fake.Store.PutForeign(web01Disk, "s", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: "vg/lv", Created: time.Unix(1, 0)}})
	wantEqual(t, "sets", b.sets("web01"), []string{"byhand", "s", "s@vg-lv"})
	if b.set("web01", "s").Foreign || !b.set("web01", "s@vg-lv").Foreign {
		t.Error("the foreign one has the name")
	}
}

func TestForeign_HasNoRecordToChange(t *testing.T) {
	b, _ := foreignBench(t, true)
	b.mustFail(b.Rename(t.Context(), "web01", "byhand", "other"), backend.ErrPermission, "not made by domfs")
	b.mustFail(b.Rename(t.Context(), "web01", "byhand", "byhand"), backend.ErrPermission)
	b.mustFail(b.SetExpires(t.Context(), "web01", "byhand", "+1d"), backend.ErrPermission, "no record")
	b.mustFail(b.SetHold(t.Context(), "web01", "byhand", "1"), backend.ErrPermission)
	b.lastErrorHas("web01", "EPERM", "not made by domfs")
	if n := b.fake.Store.Calls("Annotate"); n != 0 {
		t.Errorf("annotated %d times", n)
	}
}

func TestForeign_IsRemovedOnlyWhereThatWasAllowed(t *testing.T) {
	b, _ := foreignBench(t, false)
	b.mustFail(b.Remove(t.Context(), "web01", "byhand"), backend.ErrPermission, "--foreign", "byhand")
	b.lastErrorHas("web01", "EPERM", "--foreign")
	if n := b.fake.Store.Calls("Remove"); n != 0 || len(b.sets("web01")) != 1 {
		t.Errorf("Remove was called %d times, sets %q", n, b.sets("web01"))
	}
	allowed, _ := foreignBench(t, true)
	allowed.must(allowed.Remove(t.Context(), "web01", "byhand"))
	allowed.noSnapshotsLeft()
	if n := allowed.fake.Store.Calls("Annotate"); n != 0 {
		t.Errorf("annotated %d times", n)
	}
}

func TestForeign_IsNeverExpiredNorRepaired(t *testing.T) {
	b, c := foreignBench(t, true)
	// Whatever its store takes its state for.
	b.fake.Store.PutForeign(web01Disk, "pending", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{State: backend.SnapshotPending, DiskCount: 3}})
	b.fake.Store.PutForeign(web01Disk, "filling", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{State: backend.SnapshotFilling}})
	c.forward(100 * 365 * 24 * time.Hour)
	b.must(b.Snapshot(t.Context(), "web01", "s")) // which ends what is half-made
	again := newBench(t, setup{onFake: b.fake, options: func(o *Options) { o.Foreign = true }})
	b.must(again.SetHold(t.Context(), "web01", "s", "1")) // a change, after which expiry looks
	wantEqual(t, "sets", again.sets("web01"), []string{"byhand", "filling", "pending", "s"})
	for _, op := range b.fake.Store.Ops() {
		if strings.HasPrefix(op, "Remove") {
			t.Error(op)
		}
	}
	if n := len(again.eventsOf("repair")); n != 0 {
		t.Errorf("%d repairs", n)
	}
}

func TestForeign_ReserveCanBeExtendedByHandAndIsLeftAloneByTheGuard(t *testing.T) {
	b := newBench(t, setup{options: func(o *Options) { o.AutoExtend = AutoExtend{70, 20} }})
	b.fake.Store.PutForeign(web01Disk, "byhand", backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: "id-0123456"}, ReserveBytes: 100_000})
	b.inv()
	b.fake.Store.Use("id-0123456", "", 90_000)
	b.fake.Store.Happen()
	eventually(t, "the fill is told", func() bool { return len(b.eventsOf("forecast")) == 1 })
	if n := b.fake.Store.Calls("ExtendReserve"); n != 0 {
		t.Errorf("extended %d times", n)
	}
	b.must(b.ExtendReserve(t.Context(), "web01", "byhand", "xvda", "+100000"))
	if got := b.set("web01", "byhand").Disks[0].ReserveBytes; got != 200_000 {
		t.Errorf("the reserve is %d", got)
	}
}

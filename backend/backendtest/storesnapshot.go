package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
)

func preadFull(loc backend.Location, p []byte) error {
	for done := 0; done < len(p); {
		n, err := syscall.Pread(int(loc.FD), p[done:], loc.Offset+int64(done))
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%d bytes of %d", done, len(p))
		}
		done += n
	}
	return nil
}

// snapshotter is the store as a Snapshotter.
func (s *storeTest) snapshotter(t *testing.T) backend.Snapshotter {
	t.Helper()
	snapshotter, ok := s.store.(backend.Snapshotter)
	if !ok {
		t.Fatal("the store makes no snapshots")
	}
	return snapshotter
}

// request asks for a snapshot of the fixture's disk.
func (s *storeTest) request(t *testing.T, set string) backend.SnapshotRequest {
	t.Helper()
	return backend.SnapshotRequest{Origin: s.volume(t), Meta: backend.SnapshotMeta{
		Set:         set,
		Name:        "before <upgrade> & \"é\" +1",
		DomainName:  "web-01",
		DomainUUID:  "7d3f2f6e-3c1b-4c39-9d2e-2f8f2f0f3a55",
		Disk:        s.Disk,
		DiskCount:   3,
		Created:     time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		Consistency: backend.ConsistencyOff,
		State:       backend.SnapshotPending,
	}}
}

// snapshot makes a snapshot of the fixture's disk and carries it to active.
func (s *storeTest) snapshot(t *testing.T, set string) backend.Snapshot {
	t.Helper()
	snapshotter := s.snapshotter(t)
	req := s.request(t, set)
	g, err := snapshotter.Prepare(s.ctx, []backend.SnapshotRequest{req}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	if err := g.Broken(); err != nil {
		t.Fatal(err)
	}
	snap, err := snapshotter.Snapshot(s.ctx, req, g)
	if err != nil {
		t.Fatal(err)
	}
	meta := req.Meta
	switch {
	case s.Copies && snap.State == backend.SnapshotFilling:
		if !g.Exclusive() {
			t.Fatal("a copy is made under a guard that is not exclusive")
		}
		meta.State = backend.SnapshotFilling
		if err := snapshotter.Annotate(s.ctx, snap.With(meta)); err != nil {
			t.Fatal(err)
		}
		last := int64(-1)
		err := snapshotter.(backend.Filler).Fill(s.ctx, snap, g, func(done, total int64) {
			if done < last || done > total {
				t.Errorf("progress went from %d to %d of %d", last, done, total)
			}
			last = done
		})
		if err != nil {
			t.Fatal(err)
		}
	case !s.Copies && snap.State == backend.SnapshotPending:
	default:
		t.Fatalf("state is %q", snap.State)
	}
	meta.State = backend.SnapshotActive
	if err := snapshotter.Annotate(s.ctx, snap.With(meta)); err != nil {
		t.Fatal(err)
	}
	snap.SnapshotMeta = meta
	return snap
}

// listed finds a snapshot in a list, nil if it is not there.
func listed(t *testing.T, store backend.Store, id string) *backend.Snapshot {
	t.Helper()
	snaps, err := store.(backend.Snapshotter).Snapshots(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range snaps {
		if snaps[i].Volume.ID == id {
			return &snaps[i]
		}
	}
	return nil
}

func testSnapshotFrozen(t *testing.T, s *storeTest) {
	s.snapshotter(t)
	s.Write(t, pattern(200_000, 5), 40_000)
	want := s.contents(t, s.volume(t))
	snap := s.snapshot(t, "set-frozen")
	before := listed(t, s.store, snap.Volume.ID)
	s.Write(t, pattern(300_000, 6), 0)
	if got := s.contents(t, snap.Volume); !bytes.Equal(got, want) {
		t.Error("the snapshot changed with its origin")
	}
	if got := s.contents(t, s.volume(t)); bytes.Equal(got, want) {
		t.Error("the origin did not change")
	}
	after := listed(t, s.store, snap.Volume.ID)
	if before == nil || after == nil || before.Volume.Generation != after.Volume.Generation {
		t.Errorf("listed as %+v before, as %+v after the origin changed: want one generation", before, after)
	}
}

func testSnapshotListed(t *testing.T, s *storeTest) {
	snapshotter := s.snapshotter(t)
	req := s.request(t, "set-listed")
	g, err := snapshotter.Prepare(s.ctx, []backend.SnapshotRequest{req}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Release) // a failure here must leave nothing open
	if got := listed(t, s.store, s.volume(t).ID); got != nil {
		t.Errorf("Prepare made %+v", got)
	}
	snap, err := snapshotter.Snapshot(s.ctx, req, g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshotter.Snapshot(s.ctx, req, g); !errors.Is(err, backend.ErrExist) {
		t.Errorf("the same snapshot again: %v, want ErrExist", err)
	}
	g.Release()
	g.Release()
	if snap.Origin != req.Origin.ID || snap.Volume.Store != s.store.Name() || snap.Volume.SizeBytes != s.SizeBytes || snap.Volume.Driver == "" {
		t.Errorf("Snapshot = %+v", snap)
	}
	other := s.New(t)
	findVolume(t, other, s.Disk)
	got := listed(t, other, snap.Volume.ID)
	if got == nil {
		t.Fatal("another store does not list the snapshot")
	}
	if got.State != backend.SnapshotPending {
		t.Errorf("listed in state %q, want pending", got.State)
	}
	want := req.Meta
	want.State = got.State
	if !reflect.DeepEqual(got.SnapshotMeta, want) {
		t.Errorf("meta is %+v, want %+v", got.SnapshotMeta, want)
	}
	if got.Origin != req.Origin.ID || got.Volume.ID != snap.Volume.ID || got.Volume.SizeBytes != s.SizeBytes || got.Volume.Format != req.Origin.Format || got.UsedBytes < 0 {
		t.Errorf("listed as %+v, made as %+v", got, snap)
	}
}

func testAnnotate(t *testing.T, s *storeTest) {
	snap := s.snapshot(t, "set-annotate")
	snapshotter := s.snapshotter(t)
	meta := snap.SnapshotMeta
	meta.Name = "after"
	meta.Hold = true
	meta.Expires = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	meta.Consistency = backend.ConsistencyCrash
	if err := snapshotter.Annotate(s.ctx, snap.With(meta)); err != nil {
		t.Fatal(err)
	}
	for _, store := range []backend.Store{s.store, s.New(t)} {
		findVolume(t, store, s.Disk)
		got := listed(t, store, snap.Volume.ID)
		if got == nil || !reflect.DeepEqual(got.SnapshotMeta, meta) {
			t.Errorf("listed as %+v, want %+v", got, meta)
		}
	}
	meta.Expires, meta.Hold = time.Time{}, false
	if err := snapshotter.Annotate(s.ctx, snap.With(meta)); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, s.store, snap.Volume.ID); got == nil || !reflect.DeepEqual(got.SnapshotMeta, meta) {
		t.Errorf("listed as %+v, want %+v", got, meta)
	}
}

func testRemove(t *testing.T, s *storeTest) {
	keep := s.snapshot(t, "set-keep")
	snap := s.snapshot(t, "set-remove")
	snapshotter := s.snapshotter(t)
	for range 2 {
		if err := snapshotter.Remove(s.ctx, snap); err != nil {
			t.Fatal(err)
		}
		if got := listed(t, s.store, snap.Volume.ID); got != nil {
			t.Fatalf("still listed: %+v", got)
		}
	}
	if listed(t, s.store, keep.Volume.ID) == nil {
		t.Error("the other snapshot went too")
	}
	if _, err := s.store.Open(s.ctx, snap.Volume); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Open = %v, want ErrNotExist", err)
	}
	if err := snapshotter.Annotate(s.ctx, snap.With(snap.SnapshotMeta)); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Annotate = %v, want ErrNotExist", err)
	}
	if got := s.volume(t); got.Err != nil {
		t.Errorf("the origin: %v", got.Err)
	}
}

func testSnapshotMissing(t *testing.T, s *storeTest) {
	snapshotter := s.snapshotter(t)
	req := s.request(t, "set-missing")
	req.Origin = findVolume(t, s.store, s.Missing)
	if g, err := snapshotter.Prepare(s.ctx, []backend.SnapshotRequest{req}, false); !errors.Is(err, backend.ErrNotExist) || g != nil {
		t.Errorf("Prepare = %v, %v, want ErrNotExist", g, err)
	}
}

func testSnapshotUnprepared(t *testing.T, s *storeTest) {
	snapshotter := s.snapshotter(t)
	req := s.request(t, "set-unprepared")
	g, err := snapshotter.Prepare(s.ctx, []backend.SnapshotRequest{req}, false)
	if err != nil {
		t.Fatal(err)
	}
	g.Release()
	if g.Broken() == nil {
		t.Error("a guard that was released holds")
	}
	if snap, err := snapshotter.Snapshot(s.ctx, req, g); err == nil {
		t.Errorf("Snapshot under it = %+v", snap)
	}
	if snap, err := snapshotter.Snapshot(s.ctx, req, nil); err == nil {
		t.Errorf("Snapshot without a guard = %+v", snap)
	}
	snaps, err := snapshotter.Snapshots(s.ctx)
	if err != nil || len(snaps) != 0 {
		t.Errorf("Snapshots = %+v, %v, want none", snaps, err)
	}
}

func testRepairKeeps(t *testing.T, s *storeTest) {
	snap := s.snapshot(t, "set-repair")
	want := s.contents(t, snap.Volume)
	other := s.New(t)
	findVolume(t, other, s.Disk)
	for range 2 {
		if err := other.(backend.Snapshotter).Repair(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	got := listed(t, other, snap.Volume.ID)
	if got == nil || got.State != backend.SnapshotActive {
		t.Fatalf("listed as %+v, want active", got)
	}
	if !bytes.Equal(s.contents(t, got.Volume), want) {
		t.Error("its bytes changed")
	}
}

// resizer is the store as a Resizer.
func (s *storeTest) resizer(t *testing.T) backend.Resizer {
	t.Helper()
	resizer, ok := s.store.(backend.Resizer)
	if !ok {
		t.Fatal("the store resizes nothing")
	}
	return resizer
}

func testResize(t *testing.T, s *storeTest) {
	resizer := s.resizer(t)
	want := pattern(4096, 7)
	s.Write(t, want, s.SizeBytes-4096)
	v := s.volume(t)
	if got, err := resizer.Resize(s.ctx, v, s.SizeBytes); got != s.SizeBytes || err != nil {
		t.Errorf("Resize to the present size = %d, %v", got, err)
	}
	if again := s.volume(t); again.Generation != v.Generation {
		t.Error("Resize to the present size did something")
	}
	rounded := resizer.RoundSize(v, s.SizeBytes+1)
	if rounded <= s.SizeBytes || resizer.RoundSize(v, rounded) != rounded {
		t.Fatalf("RoundSize(%d) = %d, which is rounded to %d", s.SizeBytes+1, rounded, resizer.RoundSize(v, rounded))
	}
	if got := resizer.RoundSize(v, math.MaxInt64); got < 0 {
		t.Errorf("RoundSize of the largest number = %d", got)
	}
	got, err := resizer.Resize(s.ctx, v, s.SizeBytes+1)
	if err != nil || got != rounded {
		t.Fatalf("Resize by a byte = %d, %v, want %d", got, err, rounded)
	}
	grown := s.volume(t)
	if grown.SizeBytes != rounded || grown.Generation == v.Generation {
		t.Errorf("after Resize %+v, want %d bytes and another generation", grown, rounded)
	}
	if got := s.contents(t, grown)[s.SizeBytes-4096 : s.SizeBytes]; !bytes.Equal(got, want) {
		t.Error("Resize changed bytes")
	}
	if got, err := resizer.Resize(s.ctx, grown, s.SizeBytes+1); err != nil || got != rounded {
		t.Errorf("Resize again = %d, %v, want %d", got, err, rounded)
	}
}

func testShrink(t *testing.T, s *storeTest) {
	resizer := s.resizer(t)
	v := s.volume(t)
	for _, size := range []int64{1, s.SizeBytes / 2} {
		if got, err := resizer.Resize(s.ctx, v, size); !errors.Is(err, backend.ErrPermission) {
			t.Errorf("Resize to %d = %d, %v, want ErrPermission", size, got, err)
		}
	}
	for _, size := range []int64{0, -1, math.MinInt64} {
		if got, err := resizer.Resize(s.ctx, v, size); !errors.Is(err, backend.ErrPermission) && !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("Resize to %d = %d, %v, want an error", size, got, err)
		}
	}
	if now := s.volume(t); now != v {
		t.Errorf("the volume became %+v, was %+v", now, v)
	}
}

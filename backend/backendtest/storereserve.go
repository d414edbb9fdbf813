package backendtest

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"domfs/backend"
)

// reserved is a snapshot of the fixture's disk, as it is listed, and the store as its Reserver.
func (s *storeTest) reserved(t *testing.T, set string) (backend.Snapshot, backend.Reserver) {
	t.Helper()
	reserver, ok := s.store.(backend.Reserver)
	if !ok {
		t.Fatal("the store has no reserves")
	}
	made := s.snapshot(t, set)
	snap := listed(t, s.store, made.Volume.ID)
	if snap == nil {
		t.Fatal("the snapshot is not listed")
	}
	return *snap, reserver
}

func testReserveListed(t *testing.T, s *storeTest) {
	snap, reserver := s.reserved(t, "set-reserve")
	most := reserver.MaxReserve(snap)
	if snap.ReserveBytes <= 0 || most < snap.ReserveBytes || most < s.SizeBytes {
		t.Fatalf("reserve %d, at most %d, of a volume of %d bytes", snap.ReserveBytes, most, s.SizeBytes)
	}
	if snap.FillPercent < 0 || snap.FillPercent >= 100 || snap.Foreign {
		t.Errorf("a new snapshot: %+v", snap)
	}
	s.Write(t, pattern(256<<10, 8), 0)
	now := listed(t, s.store, snap.Volume.ID)
	if now.FillPercent <= snap.FillPercent || now.FillPercent > 100 || now.UsedBytes <= snap.UsedBytes || now.ReserveBytes != snap.ReserveBytes {
		t.Errorf("after a write to its origin: %+v, before: %+v", now, snap)
	}
}

func testReserveGrows(t *testing.T, s *storeTest) {
	snap, reserver := s.reserved(t, "set-reserve-grows")
	want := s.contents(t, snap.Volume)
	if got, err := reserver.ExtendReserve(s.ctx, snap, snap.ReserveBytes); got != snap.ReserveBytes || err != nil {
		t.Errorf("to what it has: %d, %v, want %d", got, err, snap.ReserveBytes)
	}
	got, err := reserver.ExtendReserve(s.ctx, snap, snap.ReserveBytes+1)
	if err != nil || got <= snap.ReserveBytes {
		t.Fatalf("by a byte: %d, %v", got, err)
	}
	now := listed(t, s.New(t), snap.Volume.ID)
	if now == nil || now.ReserveBytes != got || now.State != backend.SnapshotActive {
		t.Fatalf("listed as %+v, want a reserve of %d", now, got)
	}
	// What rounds to the present size is reached.
	if again, err := reserver.ExtendReserve(s.ctx, *now, snap.ReserveBytes+1); err != nil || again != got {
		t.Errorf("by the same byte again: %d, %v, want %d", again, err, got)
	}
	if !bytes.Equal(s.contents(t, now.Volume), want) {
		t.Error("its bytes changed")
	}
}

func testReserveShrink(t *testing.T, s *storeTest) {
	snap, reserver := s.reserved(t, "set-reserve-shrinks")
	for _, size := range []int64{1, snap.ReserveBytes / 2} {
		if got, err := reserver.ExtendReserve(s.ctx, snap, size); !errors.Is(err, backend.ErrPermission) {
			t.Errorf("to %d: %d, %v, want ErrPermission", size, got, err)
		}
	}
	if now := listed(t, s.store, snap.Volume.ID); now == nil || now.ReserveBytes != snap.ReserveBytes {
		t.Errorf("it is %+v now, was %+v", now, snap)
	}
}

func testReserveMax(t *testing.T, s *storeTest) {
	snap, reserver := s.reserved(t, "set-reserve-max")
	most := reserver.MaxReserve(snap)
	for range 2 {
		got, err := reserver.ExtendReserve(s.ctx, snap, math.MaxInt64)
		if err != nil || got != most {
			t.Fatalf("as large as can be: %d, %v, want %d", got, err, most)
		}
		snap = *listed(t, s.store, snap.Volume.ID)
	}
	gone := snap
	if err := s.snapshotter(t).Remove(s.ctx, snap); err != nil {
		t.Fatal(err)
	}
	if got, err := reserver.ExtendReserve(s.ctx, gone, math.MaxInt64); err == nil {
		t.Errorf("of one that is gone: %d", got)
	}
}

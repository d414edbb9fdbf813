package lvm

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"
)

// activated is the change of n members of a set from pending to active.
func activated(t *testing.T, n int, source string) (rs []retagging) {
	t.Helper()
	for i := range n {
		vdev := "xvd" + string(rune('a'+i))
		sn := backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: labSet, Name: "s", State: backend.SnapshotPending, Disk: backend.Disk{VDev: vdev, Source: source}}}
		sn.Volume = backend.Volume{Store: storeName, ID: "vg/" + vdev}
		m := sn.SnapshotMeta
		m.State = backend.SnapshotActive
		r, err := retaggingOf(sn.With(m))
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

func TestAlike_EndsWhereOneCommandDoes(t *testing.T) {
	if rs := activated(t, 3, "/dev/vg/a"); alike(rs) != 3 {
		t.Errorf("of three that change alike one command changes %d", alike(rs))
	}
	if rs := activated(t, 20, "/dev/vg/a"); alike(rs) != maxRetagged {
		t.Errorf("of twenty one command changes %d", alike(rs))
	}
	rs := activated(t, maxRetagged, "/dev/"+strings.Repeat("x", 3*maxRetaggedBytes/maxRetagged/2))
	if n := alike(rs); n < 2 || n >= maxRetagged {
		t.Errorf("of those with long records one command changes %d", n)
	}
	rs = activated(t, 3, "/dev/vg/a")
	rs[2].add = append(slices.Clone(rs[2].add), "more")
	if n := alike(rs); n != 2 {
		t.Errorf("of two that change alike and one that does not one command changes %d", n)
	}
}

// What device-mapper says of a snapshot is not written down: after a repair of its pool it may be whole again.
func TestRetagging_OfAnInvalidSnapshotLeavesItsState(t *testing.T) {
	sn := backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: labSet, Name: "s", State: backend.SnapshotInvalid, Disk: backend.Disk{VDev: "xvda"}}}
	sn.Volume = backend.Volume{Store: storeName, ID: "vg/a"}
	m := sn.SnapshotMeta
	m.Name = "renamed"
	r, err := retaggingOf(sn.With(m))
	if err != nil || len(r.add) != 1 || len(r.del) != 1 || !strings.Contains(r.add[0], "renamed") {
		t.Errorf("adds %q, deletes %q, %v", r.add, r.del, err)
	}
	if state, _ := parseTags(r.ours); state.State != backend.SnapshotActive {
		t.Errorf("its state is written as %s", state.State)
	}
}

// That a tool is gone does not mean that what it was to remove is.
func TestRemove_WithoutLVMRemovesNothingAndSaysSo(t *testing.T) {
	sn := backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: labSet, Disk: backend.Disk{VDev: "xvda"}}}
	sn.Volume = backend.Volume{Store: storeName, ID: "vg/a"}
	tools := &run.Transcript{Calls: []run.Call{{Argv: append([]string{"lvremove"}, removeArgs("vg/a", selectSnapshot(sn.SnapshotMeta))...), Failure: "missing"}}}
	err := New(Options{Runner: tools.Replay()}).Remove(t.Context(), sn)
	if !errors.Is(err, backend.ErrUnsupported) || errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), "lvremove") {
		t.Errorf("Remove = %v", err)
	}
	if err := tools.Check(); err != nil {
		t.Error(err)
	}
}

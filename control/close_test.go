package control

import (
	"strings"
	"testing"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

func TestClose_DoesNotWaitForeverForWhatHangs(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.end = 20 * time.Millisecond }})
	end, err := b.begin()
	b.must(err)
	err = b.Close()
	b.mustFail(err, backend.ErrTimeout, "did not end within 20ms")
	stacks := ""
	for _, e := range b.logs.FilterLevelExact(zap.ErrorLevel).All() {
		piece, _ := e.ContextMap()["stacks"].(string)
		stacks += piece
	}
	if !strings.Contains(stacks, "TestClose_DoesNotWaitForever") {
		t.Errorf("the stacks are not logged: %s", stacks)
	}
	end()
	b.lim.end = 10 * time.Second
	b.must(b.Close())
}

func TestVolumeCache_ClosesASnapshotsDisksThatNobodyUses(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.rest = time.Millisecond }})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	id := b.set("web01", "s").ID
	used := b.open(VolumeRef{SetID: id, VDev: "xvda"})
	b.open(VolumeRef{SetID: id, VDev: "xvdb"}).Release()
	eventually(t, "the idle one is closed", func() bool { return b.fake.Store.OpenDevices() == 1 })
	if !used.Acquire() {
		t.Fatal("the one in use was closed")
	}
	used.Release()
	used.Release()
	eventually(t, "the other one is closed, too", func() bool { return b.fake.Store.OpenDevices() == 0 })
	eventually(t, "no longer watched", func() bool {
		b.volumes.mu.Lock()
		defer b.volumes.mu.Unlock()
		return !b.volumes.watching
	})
	if used.Acquire() {
		t.Error("a closed one can be acquired")
	}
	b.open(VolumeRef{SetID: id, VDev: "xvda"}).Release() // opens it again
}

func TestVolumeCache_KeepsASnapshotsDisksOpenOverAPause(t *testing.T) {
	b := newBench(t, setup{limits: func(l *limits) { l.idle = time.Millisecond }})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.open(VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"}).Release()
	b.open(VolumeRef{Domain: "web01", VDev: "xvda"}).Release()
	eventually(t, "the live one is closed", func() bool { return b.fake.Store.OpenDevices() == 1 })
	time.Sleep(watchEvery + 100*time.Millisecond)
	if n := b.fake.Store.OpenDevices(); n != 1 {
		t.Errorf("%d are open after a pause", n)
	}
}

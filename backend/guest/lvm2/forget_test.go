package lvm2

import (
	"runtime"
	"testing"
	"time"

	"domfs/backend"
)

// A guest's volumes are never closed: what is held for them has to go with them.

func TestThin_ForgetsThePoolsThatAreGone(t *testing.T) {
	restrictNodes(t, mebi)
	m, b := smallPool(t)
	data := patternDevice{size: int64(m.dataChunks) * m.chunk, seed: 1}
	p, err := openThinPool(data, plainBytes(b), m.chunk)
	noError(t, err)
	d, err := p.open(1, 100*m.chunk, nil)
	noError(t, err)
	_, err = d.ReadAt(make([]byte, 1), 0)
	noError(t, err)
	runtime.GC()
	if nodes.Bytes() == 0 {
		t.Fatal("nothing is held of a pool that is read")
	}
	runtime.KeepAlive(d)
	untilCollected(t, func() bool { return nodes.Bytes() == 0 })
}

func TestCOW_ForgetsTheSnapshotsThatAreGone(t *testing.T) {
	restrictExceptions(t, allExceptionBytes)
	store := newCOWStore(4*kibi, mebi)
	store.except(t, 3, nil)
	var d backend.Device
	d, err := openCOW(patternDevice{size: mebi, seed: 1}, plainBytes(store.b), 4*kibi)
	noError(t, err)
	_, err = d.ReadAt(make([]byte, 1), 0)
	noError(t, err)
	held := func() int {
		exceptionBudget.mu.Lock()
		defer exceptionBudget.mu.Unlock()
		return exceptionBudget.bytes
	}
	runtime.GC()
	if held() == 0 {
		t.Fatal("nothing is held of a snapshot that is read")
	}
	runtime.KeepAlive(d)
	untilCollected(t, func() bool { return held() == 0 })
}

func untilCollected(t *testing.T, gone func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !gone(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is still held")
		}
		runtime.GC()
	}
}

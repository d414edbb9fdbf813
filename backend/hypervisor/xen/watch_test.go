package xen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend/hypervisor/xen/xenstore/xenstoretest"
)

// watching is a Watch under way.
type watching struct {
	*host
	d     *Driver
	count atomic.Int64
}

func newWatching(t *testing.T) *watching {
	w := &watching{host: newHost(t)}
	w.d = w.open(nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.d.Watch(ctx, func() { w.count.Add(1) }) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Watch ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Watch does not end with its context")
		}
		if left := w.Watches(); len(left) != 0 {
			t.Errorf("watches left: %q", left)
		}
	})
	eventually(t, "Watch begins", func() bool { return w.count.Load() > 0 })
	w.settle()
	return w
}

// settle waits until nothing is told any more, and returns how often something was.
func (w *watching) settle() int64 {
	n := w.count.Load()
	for quiet := 0; quiet < 6; quiet++ {
		time.Sleep(10 * time.Millisecond)
		if now := w.count.Load(); now != n {
			n, quiet = now, 0
		}
	}
	return n
}

func TestWatch_TellsOfWhatChanges(t *testing.T) {
	w := newWatching(t)
	back := backendPath(0, "vbd", 7, "xvda")
	for _, step := range []struct {
		what string
		f    func()
	}{
		{"a domain comes", func() { w.create(7, "web01") }},
		{"it gets a disk", func() { w.attach(7, 0, "xvda", "phy", "/dev/vg/a") }},
		{"the disk is connected", func() { w.connect(back, "fd:3", "/dev/dm-3", "2048") }},
		{"the disk grows", func() { w.Set(back+"/sectors", "4096") }},
		{"the disk grows again", func() { w.Set(back+"/sectors", "8192") }},
		{"it is renamed", func() { w.rename(7, "shop") }},
		{"a medium is changed", func() { w.Set(libxlPath(7, "xvda")+"/params", "aio:/x.iso", back+"/params", "aio:/x.iso") }},
		{"the toolstack begins to remove the disk", func() { w.Set(back+"/online", "0", back+"/state", "5") }},
		{"the disk is removed", func() { w.detach(7, 0, "xvda", "vbd") }},
		{"it crashes", func() { w.Fire("@releaseDomain") }},
		{"it ends", func() { w.destroy(7) }},
	} {
		before := w.settle()
		began := time.Now()
		step.f()
		eventually(t, step.what, func() bool { return w.count.Load() > before })
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: told after %s", step.what, took)
		}
	}
	w.settle()
	if left := w.Watches(); len(left) != len(watched) {
		t.Errorf("watches of a domain that has ended are left: %q", left)
	}
}

func TestWatch_WatchesNothingThatAGuestWrites(t *testing.T) {
	w := newWatching(t)
	w.create(7, "web01")
	w.attach(7, 0, "xvda", "phy", "/dev/vg/a")
	w.settle()
	want := append(slices.Clone(watched), "/local/domain/7/name")
	slices.Sort(want)
	eventually(t, "the name is watched", func() bool { return slices.Equal(w.Watches(), want) })
}

// A guest can connect to its backend again and again, for which the backend writes each time what it wrote before, and can
// have itself restarted.
func TestWatch_IsNotKeptBusyByAGuest(t *testing.T) {
	w := newWatching(t)
	w.create(7, "web01")
	w.attach(7, 0, "xvda", "phy", "/dev/vg/a")
	back := backendPath(0, "vbd", 7, "xvda")
	w.connect(back, "fd:3", "/dev/dm-3", "2048")
	w.settle()
	w.Set(back+"/sectors", "2048") // the first that is seen of it by itself may be told
	before := w.settle()
	reads := w.Requests(xenstoretest.Read)
	for i := range 3000 {
		w.Set(back+"/state", fmt.Sprint(i%7), back+"/sectors", "2048", back+"/feature-flush-cache", "1", back+"/hotplug-status", "connected",
			"/local/domain/7/device/vbd/51712/state", fmt.Sprint(i), "/local/domain/7/data/x", fmt.Sprint(i), "/libxl/7/device/vif/0/state", "4")
	}
	if n := w.settle(); n != before {
		t.Errorf("told %d times of nothing", n-before)
	}
	if n := w.Requests(xenstoretest.Read) - reads; n > 1500 {
		t.Errorf("%d reads for it", n)
	}
	before = w.settle()
	began := time.Now()
	for range 500 {
		w.Fire("@releaseDomain")
	}
	most := int64(time.Since(began)/w.d.gap) + 2
	if n := w.settle() - before; n > most || n < 1 {
		t.Errorf("told %d times of 500 restarts in %d gaps", n, most-2)
	}
}

func TestWatch_WaitsForAXenstoredThatIsAway(t *testing.T) {
	w := newWatching(t)
	w.create(7, "web01")
	before := w.settle()
	w.Stop()
	eventually(t, "told that it is away", func() bool { return w.count.Load() > before })
	before = w.settle()
	w.Set("/local/domain/7/name", "shop")
	w.Start()
	eventually(t, "told that it is there again", func() bool { return w.count.Load() > before })
	if dom := one(t, w.d); dom.Name != "shop" {
		t.Errorf("name %s", dom.Name)
	}
	eventually(t, "all is watched again", func() bool { return len(w.Watches()) == len(watched)+1 })
	before = w.settle()
	w.rename(7, "web02")
	eventually(t, "told of a rename after that", func() bool { return w.count.Load() > before })
}

func TestWatch_OfOneThatStartsLater(t *testing.T) {
	h := newHost(t)
	d := h.open(nil)
	h.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	var told atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Watch(ctx, func() { told.Add(1) })
	}()
	defer func() { cancel(); <-ended }()
	eventually(t, "told that nothing is known", func() bool { return told.Load() == 1 })
	h.Start()
	eventually(t, "told that it is there", func() bool { return told.Load() > 1 })
	eventually(t, "all is watched", func() bool { return strings.Join(h.Watches(), " ") != "" && len(h.Watches()) == len(watched) })
}

package vfs

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/proc"
	"domfs/control"
)

// drainFor is how long a removal waits for files to be closed: close(2) returns before the
// kernel tells us.
const drainFor = 2 * time.Second

// openSets knows which snapshots have files open, and who has them.
type openSets struct {
	mu      sync.Mutex
	open    map[string]map[*handle]uint32 // set ID: handle: process that opened it; guarded by mu
	closing map[string]bool               // sets that were drained for removal; guarded by mu
	changed chan struct{}                 // closed and replaced when a file is closed; guarded by mu
}

func (o *openSets) init() {
	o.open = map[string]map[*handle]uint32{}
	o.closing = map[string]bool{}
	o.changed = make(chan struct{})
}

// add notes an open file. Live disks have no set, and are not noted.
func (o *openSets) add(setID string, h *handle, pid uint32) error {
	if setID == "" {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closing[setID] {
		return fmt.Errorf("the snapshot is being removed: %w", backend.ErrNotExist)
	}
	if o.open[setID] == nil {
		o.open[setID] = map[*handle]uint32{}
	}
	o.open[setID][h] = pid
	return nil
}

func (o *openSets) remove(setID string, h *handle) {
	if setID == "" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.open[setID], h)
	if len(o.open[setID]) == 0 {
		delete(o.open, setID)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

func (f *fileSystem) draining(setID string) bool {
	f.openSets.mu.Lock()
	defer f.openSets.mu.Unlock()
	return f.openSets.closing[setID]
}

// drain waits until no file of a set is open, and lets none be opened from then on.
func (f *fileSystem) drain(ctx context.Context, setID string) error {
	o := &f.openSets
	deadline := time.NewTimer(drainFor)
	defer deadline.Stop()
	for {
		o.mu.Lock()
		holders, changed := o.open[setID], o.changed
		if len(holders) == 0 {
			o.closing[setID] = true
			o.mu.Unlock()
			return nil
		}
		var pid uint32
		for _, pid = range holders {
			break
		}
		n := len(holders)
		o.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("%d of its files are open, by %s: close them first: %w", n, proc.Name(proc.Root, strconv.Itoa(int(pid))), backend.ErrBusy)
		}
	}
}

// forgetSet ends the draining of a set that was removed, or whose removal failed.
func (f *fileSystem) forgetSet(ch control.Change) {
	if ch.SetID == "" {
		return
	}
	f.openSets.mu.Lock()
	defer f.openSets.mu.Unlock()
	delete(f.openSets.closing, ch.SetID)
}

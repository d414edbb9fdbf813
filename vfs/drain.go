package vfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
			return fmt.Errorf("%d of its files are open, by %s: close them first: %w", n, f.holder(ctx, setID, pid), backend.ErrBusy)
		}
	}
}

// holder names who has a file of a set open, which pid opened. It need not be that process: one such
// as losetup hands the file on, and ends.
func (f *fileSystem) holder(ctx context.Context, setID string, pid uint32) string {
	if loop := f.loopDevice(ctx, setID); loop != "" {
		return "loop device " + loop
	}
	if pid == 0 { // the kernel's word for one outside of our PID namespace
		return "a process that is not seen from here"
	}
	id := strconv.Itoa(int(pid))
	if _, err := os.Stat(filepath.Join(proc.Root, id)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("a process that has ended (pid %s), or something that it handed the file to", id)
	}
	return proc.Name(proc.Root, id)
}

const (
	sysBlock    = "/sys/block"
	maxBlock    = 65536 // block devices that are looked at
	inventoryIn = 2 * time.Second
)

// loopDevice is the first loop device on a file of a set, as sysfs tells it without asking the file;
// "" if there is none.
func (f *fileSystem) loopDevice(ctx context.Context, setID string) string {
	ctx, cancel := context.WithTimeout(ctx, inventoryIn)
	defer cancel()
	var dir string // as a path in the mount
	for _, name := range proc.List(sysBlock, maxBlock) {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		file, err := os.ReadFile(filepath.Join(sysBlock, name, "loop/backing_file"))
		if err != nil {
			continue
		}
		if dir == "" {
			if dir = f.setPath(ctx, setID); dir == "" {
				return ""
			}
		}
		if strings.HasPrefix(string(file), dir+"/") {
			return "/dev/" + name
		}
	}
	return ""
}

// setPath is the directory of a set, by its present name; "" if it has none.
func (f *fileSystem) setPath(ctx context.Context, setID string) string {
	inv, err := f.host.Inventory(ctx)
	if err != nil {
		return ""
	}
	for _, d := range inv.Snapshots {
		for _, s := range d.Sets {
			if s.ID == setID {
				return filepath.Join(f.mountpoint, "snapshots", d.Name, s.Name)
			}
		}
	}
	return ""
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

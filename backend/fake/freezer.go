package fake

import (
	"context"
	"fmt"
	"sync"

	"domfs/backend"
)

// Freezer freezes the guests of a Hypervisor. A guest that is paused answers nobody: it can neither be frozen nor
// thawed. Its operations for faults are Freeze and Thaw.
type Freezer struct {
	faults
	hv *Hypervisor

	mu     sync.Mutex
	frozen map[string]bool // guarded by mu; by domain
	names  []string        // guarded by mu; of the snapshots that it was asked to freeze for
}

var _ backend.Freezer = (*Freezer)(nil)

// NewFreezer is a Freezer of the guests of hv.
func NewFreezer(hv *Hypervisor) *Freezer { return &Freezer{hv: hv, frozen: map[string]bool{}} }

// Frozen tells whether a domain's guest is frozen.
func (f *Freezer) Frozen(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen[name]
}

// Snapshots are the names of those that it was asked to freeze for.
func (f *Freezer) Snapshots() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.names...)
}

func (f *Freezer) set(name string, on bool) error {
	if n := f.hv.Pauses(name); n != 0 {
		return fmt.Errorf("%s is paused %d times and does not answer: %w", name, n, backend.ErrTimeout)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen[name] = on
	return nil
}

// Freeze freezes a guest. One that fails After has frozen it.
func (f *Freezer) Freeze(ctx context.Context, d backend.Domain, snapshot string) (thaw func(context.Context) error, err error) {
	f.mu.Lock()
	f.names = append(f.names, snapshot)
	f.mu.Unlock()
	var undone bool // guarded by f.mu
	thaw = func(ctx context.Context) error {
		f.mu.Lock()
		again := undone
		f.mu.Unlock()
		if again {
			return nil
		}
		after, err := f.enter(ctx, "Thaw", d.Name)
		if err != nil {
			return err
		}
		if err := f.set(d.Name, false); err != nil {
			return err
		}
		f.mu.Lock()
		undone = true
		f.mu.Unlock()
		return after
	}
	after, err := f.enter(ctx, "Freeze", d.Name)
	if err == nil {
		err = f.set(d.Name, true)
	}
	if err == nil {
		err = after
	}
	return thaw, err
}

package fake

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"domfs/backend"
)

// Caps are capabilities, to be or'ed.
type Caps int

// The capabilities.
const (
	Pause    Caps = 1 << iota // backend.Pauser
	Notify                    // backend.SizeNotifier
	Snapshot                  // backend.Snapshotter
	Fill                      // backend.Filler (and backend.Snapshotter)
	Resize                    // backend.Resizer
	Reserve                   // backend.Reserver and backend.Watcher (and backend.Snapshotter)
	Attach                    // backend.Attacher
	Create                    // backend.Creator, of a store with Resize

	All = Pause | Notify | Snapshot | Fill | Resize | Reserve | Attach | Create
)

// Host is one hypervisor and one store. A test that wants more makes them with
// NewHypervisor and NewStore.
type Host struct {
	Hypervisor *Hypervisor
	Store      *Store
}

// NewHost is an empty host: the hypervisor "fakehv" and the store "fakestore".
func NewHost() *Host {
	h := &Host{Hypervisor: NewHypervisor("fakehv"), Store: NewStore("fakestore")}
	return h
}

// AddDomain adds a domain that is off, and for each of its disks a volume of the store with
// the bytes given for its vdev (1 MiB of zeros where none are).
func (h *Host) AddDomain(name, uuid string, bytes map[string][]byte, vdevs ...string) {
	d := backend.Domain{Name: name, UUID: uuid, ID: -1, State: backend.StateOff, Config: "/etc/fake/" + name + ".cfg"}
	for _, v := range vdevs {
		b := bytes[v]
		if b == nil {
			b = make([]byte, 1<<20)
		}
		source := "/images/" + name + "-" + v
		h.Store.AddVolume(source, b)
		d.Disks = append(d.Disks, backend.Disk{VDev: v, Format: "raw", Source: source, Mode: backend.ReadWrite})
	}
	h.Hypervisor.Add(d)
}

// faults are errors and delays that a test plants, by operation.
type faults struct {
	mu    sync.Mutex
	plans []*Fault       // guarded by mu
	calls map[string]int // guarded by mu
	done  []string       // guarded by mu; operations in order
}

// Fault makes an operation fail or hang. Operations have the names of the interface's
// methods.
type Fault struct {
	Op  string
	ID  string // of the volume or the name of the domain; "" for any
	Nth int    // only the n-th call that matches; 0 for every
	Err error
	// Hang makes it wait until the context ends, or this is closed.
	Hang <-chan struct{}
	// Deaf makes it wait for Hang alone, whatever becomes of the context.
	Deaf bool
	// After makes the operation take effect before it fails.
	After bool

	seen int
}

// Plant adds a fault. clear takes it back.
func (f *faults) Plant(p Fault) (clear func()) {
	plan := &p
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans = append(f.plans, plan)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for i, q := range f.plans {
			if q == plan {
				f.plans = append(f.plans[:i:i], f.plans[i+1:]...)
				return
			}
		}
	}
}

// Fail makes every call of op fail, until clear is called.
func (f *faults) Fail(op string, err error) (clear func()) { return f.Plant(Fault{Op: op, Err: err}) }

// Calls is how often op was called.
func (f *faults) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Ops lists the operations so far, in order, as "Op id".
func (f *faults) Ops() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.done...)
}

const maxOps = 10000

// enter counts a call and applies what was planted; after is an error for its end.
func (f *faults) enter(ctx context.Context, op, id string) (after, err error) {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[op]++
	if len(f.done) < maxOps {
		f.done = append(f.done, op+" "+id)
	}
	var hit []Fault
	for _, p := range f.plans {
		if p.Op != op || p.ID != "" && p.ID != id {
			continue
		}
		p.seen++
		if p.Nth == 0 || p.Nth == p.seen {
			hit = append(hit, *p)
		}
	}
	f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, contextError(ctx, op)
	}
	for _, p := range hit {
		if p.Hang != nil {
			if p.Deaf {
				<-p.Hang
			} else {
				select {
				case <-p.Hang:
				case <-ctx.Done():
					return nil, contextError(ctx, op)
				}
			}
		}
		switch {
		case p.Err != nil && p.After:
			after = p.Err
		case p.Err != nil:
			return nil, p.Err
		}
	}
	return after, nil
}

func contextError(ctx context.Context, op string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", op, backend.ErrTimeout)
	}
	return fmt.Errorf("%s: %w", op, context.Cause(ctx))
}

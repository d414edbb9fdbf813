package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"domfs/backend"

	"go.uber.org/zap"
)

// driverStates is what a Host remembers of its drivers between readings.
type driverStates struct {
	mu        sync.Mutex
	slots     map[string]*driverSlot        // guarded by mu; by driver
	faults    map[string]string             // guarded by mu; by driver and question: the error last logged
	domains   map[string][]*Domain          // guarded by mu; by hypervisor: its last answer
	snapshots map[string][]backend.Snapshot // guarded by mu; by store: its last answer
	warned    map[string]string             // guarded by mu; by domain: faults of its configuration last recorded
}

func (s *driverStates) init() {
	s.slots = map[string]*driverSlot{}
	s.faults = map[string]string{}
	s.domains = map[string][]*Domain{}
	s.snapshots = map[string][]backend.Snapshot{}
	s.warned = map[string]string{}
}

// driverSlot lets a driver be asked one question at a time.
type driverSlot struct {
	full chan struct{} // full while a question is being answered
	late atomic.Bool   // nobody waits for that answer any more
}

func (s *driverStates) slot(key string) *driverSlot {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.slots[key]
	if c == nil {
		c = &driverSlot{full: make(chan struct{}, 1)}
		s.slots[key] = c
	}
	return c
}

func (s *driverStates) rememberDomains(key string, ds []*Domain) {
	// Copies: the reading goes on to fill in the volumes of the originals.
	kept := make([]*Domain, len(ds))
	for i, d := range ds {
		d := *d
		kept[i] = &d
	}
	s.mu.Lock()
	s.domains[key] = kept
	s.mu.Unlock()
}

func (s *driverStates) lastDomains(key string) ([]*Domain, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ds, ok := s.domains[key]
	return ds, ok
}

func (s *driverStates) rememberSnapshots(key string, snaps []backend.Snapshot) {
	s.mu.Lock()
	s.snapshots[key] = snaps
	s.mu.Unlock()
}

func (s *driverStates) lastSnapshots(key string) []backend.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots[key]
}

// ask puts a question to a driver, within the deadline for reading even where the driver
// does not heed its context: it is left behind then, and asked nothing more until it has
// answered. A failure is logged when it begins and when it ends.
func ask[T any](ctx context.Context, h *Host, driver, question string, f func(context.Context) (T, error)) (T, error) {
	v, err := askWithin(ctx, h, driver, f)
	if ctx.Err() == nil {
		h.driverFault(driver, question, err)
	}
	return v, err
}

func askWithin[T any](ctx context.Context, h *Host, driver string, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, h.lim.read)
	slot := h.drivers.slot(driver)
	late := fmt.Errorf("no answer within %s: %w", h.lim.read, backend.ErrTimeout)
	var zero T
	select {
	case slot.full <- struct{}{}:
	default:
		if slot.late.Load() {
			cancel()
			return zero, late // it still thinks about an earlier question
		}
		select {
		case slot.full <- struct{}{}:
		case <-ctx.Done():
			cancel()
			return zero, late
		}
	}
	slot.late.Store(false)
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		defer cancel()
		defer func() {
			slot.late.Store(false)
			<-slot.full
		}()
		v, err := answered(h, driver, func() (T, error) { return f(ctx) })
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
		// Both may be ready: an answer counts.
		select {
		case a := <-done:
			return a.v, a.err
		default:
			// A reading that was given up says nothing about the driver.
			slot.late.Store(errors.Is(ctx.Err(), context.DeadlineExceeded))
			return zero, late
		}
	}
}

// answered calls a driver. A defect of one must not end the daemon.
func answered[T any](h *Host, driver string, f func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("a driver failed: this is a defect of domfs", zap.String("driver", driver), zap.Any("panic", p), zap.Stack("stack"))
			err = fmt.Errorf("%s failed on a defect of domfs: %w", driver, backend.ErrIO)
		}
	}()
	return f()
}

func (h *Host) driverFault(driver, question string, err error) {
	key := driver + " " + question
	s := &h.drivers
	s.mu.Lock()
	before := s.faults[key]
	now := ""
	if err != nil {
		now = err.Error()
		s.faults[key] = now
	} else {
		delete(s.faults, key)
	}
	s.mu.Unlock()
	switch {
	case now == before:
	case now == "":
		h.log.Info("a driver answers again", zap.String("driver", driver), zap.String("op", question))
	default:
		h.log.Warn("a driver cannot be read", zap.String("driver", driver), zap.String("op", question), zap.Error(err))
		h.emit(Event{Event: "error", Errno: h.errno(err), Message: key + ": " + oneLine(now)})
	}
}

// recordFaults puts what is wrong with domains' configurations into their last_error:
// once, until it changes.
func (h *Host) recordFaults(inv *Inventory) {
	type fault struct {
		domain   string
		err      error
		warnings []string
	}
	var news []fault
	s := &h.drivers
	s.mu.Lock()
	warned := map[string]string{}
	for _, d := range inv.Domains {
		text := strings.Join(d.Warnings, "\n")
		if d.Err != nil {
			text += "\n" + d.Err.Error()
		}
		if text == "" {
			continue
		}
		warned[d.Name] = text
		if s.warned[d.Name] != text {
			news = append(news, fault{d.Name, d.Err, d.Warnings})
		}
	}
	s.warned = warned
	s.mu.Unlock()
	for _, f := range news {
		for _, w := range f.warnings {
			h.warning(f.domain, "", "config", w)
		}
		if f.err != nil {
			h.Failed(f.domain, "config", f.err)
		}
	}
}

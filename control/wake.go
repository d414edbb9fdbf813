package control

import (
	"context"
	"errors"

	"domfs/backend"
)

// waker has stores activate snapshots that appeared without a device after the start, as those of a VG whose disk was attached
// later. Each set is tried once for each time that it appears: one that is deactivated while it is there is so because
// somebody wants it.
type waker struct {
	known map[string]bool // by set ID: seen with its devices, or tried
}

// look tries those sets that appeared since it last looked.
func (w *waker) look(h *Host, inv *Inventory) {
	for id := range w.known {
		if inv.byID[id] == nil {
			delete(w.known, id)
		}
	}
	stores := map[string]bool{}
	var tried []Change
	for _, d := range inv.Snapshots {
		for _, s := range d.Sets {
			if s.Foreign || s.Stale != nil || w.known[s.ID] {
				continue
			}
			asleep, decided := s.sleeping()
			w.known[s.ID] = decided
			for _, store := range asleep {
				stores[store] = true
			}
			if len(asleep) > 0 {
				tried = append(tried, Change{Dir: d.Name, SetID: s.ID})
			}
		}
	}
	if len(stores) > 0 && !h.wake(stores, tried) {
		for _, c := range tried {
			delete(w.known, c.SetID) // another daemon was at work: the next round comes
		}
	}
}

// sleeping names the stores of those members that have no device. decided tells whether the others can be read: a set that
// lacks more is looked at again, for a VG may appear disk by disk.
func (s *Set) sleeping() (stores []string, decided bool) {
	decided = len(s.Disks) == s.diskCount
	for _, k := range s.Disks {
		switch {
		case k.State == backend.SnapshotFilling || k.State == backend.SnapshotRemoving:
			return nil, false
		case k.State != backend.SnapshotActive || k.Volume.Err == nil:
		case errors.Is(k.Volume.Err, backend.ErrNoDevice):
			stores = append(stores, k.Volume.Store)
		default:
			decided = false
		}
	}
	if !decided {
		return nil, false
	}
	return stores, true
}

// wake repairs stores under the host's lock; false if it could not be had.
func (h *Host) wake(stores map[string]bool, sets []Change) bool {
	end, err := h.begin()
	if err != nil {
		return false
	}
	defer end()
	release, err := h.lock.acquire(h.done, "activation of snapshots", h.o.LockTimeout)
	if err != nil {
		return false
	}
	defer h.notify(sets...)
	defer release()
	ctx, cancel := context.WithTimeout(context.Background(), h.lim.change)
	defer cancel()
	defer h.invalidate()
	for _, st := range h.o.Stores {
		if stores[st.Name()] {
			h.repairStore(ctx, st)
		}
	}
	return true
}

package control

import (
	"context"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// repair removes what a crash left, of this daemon or another on the host. Since it has the
// host's lock, nobody is in the middle of a change: what looks half-made is a leftover. Only
// a copy may be under way elsewhere, and a living copy has its own lock.
func (h *Host) repair(ctx context.Context) error {
	end, err := h.begin()
	if err != nil {
		return err
	}
	defer end()
	release, err := h.lock.acquire(ctx, "repair at the start", h.o.LockTimeout)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, h.lim.change)
	defer cancel()
	defer h.invalidate()
	h.resumeAfterDeath(ctx)
	// Reading first: the stores learn where their pools are.
	inv, err := h.fresh(ctx)
	if err != nil {
		return err
	}
	h.reapMappings(ctx)
	h.settleHidden(ctx, inv)
	for _, dir := range inv.Snapshots {
		for _, s := range dir.Sets {
			h.settle(ctx, dir.domainName(), s)
		}
	}
	h.keepDisks(ctx, inv)
	for _, st := range h.o.Stores {
		h.repairStore(ctx, st)
	}
	return nil
}

// resumeAfterDeath has volumes go on that a daemon which died in the middle of a change left suspended: what waits for them
// is a guest, and may be we. The host's lock is held.
func (h *Host) resumeAfterDeath(ctx context.Context) {
	died := h.lock.takeDead()
	if died == "" {
		return
	}
	h.log.Warn("a change was cut off", zap.String("op", "repair"), zap.String("by", died))
	for _, st := range h.o.Stores {
		if r, ok := st.(backend.Resumer); ok {
			if err := r.Resume(ctx); err != nil {
				h.log.Error("volumes may be suspended, and their guests wait", zap.String("op", "repair"), zap.String("store", st.Name()), zap.Error(err))
			}
		}
	}
}

// keepDisks keeps the volumes that are domains' disks though a crash came before Attach could say so: a store's
// Repair would take them for its own.
func (h *Host) keepDisks(ctx context.Context, inv *Inventory) {
	for _, d := range inv.Domains {
		for i, v := range d.Volumes {
			cr, ok := h.stores[v.Store].(backend.Creator)
			if !ok || !v.Unfinished {
				continue
			}
			fields := []zap.Field{zap.String("op", "repair"), zap.String("domain", d.Name), zap.String("disk", d.Disks[i].VDev), zap.String("volume", v.ID)}
			if err := cr.Keep(ctx, v); err != nil {
				h.log.Warn("a disk whose attaching a crash cut off is not marked as kept; it is tried again at the next start", append(fields, zap.Error(err))...)
				continue
			}
			h.log.Info("a disk whose attaching a crash cut off is kept", fields...)
		}
	}
}

// repairStore has a store repair itself. The host's lock is held.
func (h *Host) repairStore(ctx context.Context, st backend.Store) {
	sn, ok := st.(backend.Snapshotter)
	if !ok {
		return
	}
	fault.Point("control.repair.store")
	if err := sn.Repair(ctx); err != nil {
		h.log.Warn("a store could not be repaired", zap.String("op", "repair"), zap.String("store", st.Name()), zap.Error(err))
	}
}

// settleHidden ends what became of sets that are pending though nobody can be making them.
func (h *Host) settleHidden(ctx context.Context, inv *Inventory) {
	for _, s := range inv.hidden {
		h.settle(ctx, s.DomainName, s)
	}
}

// settle brings a set that a crash left to its end: one that was being committed, with
// all of its members, is kept; one that was being made, copied or removed goes. The host's lock
// is held.
func (h *Host) settle(ctx context.Context, domain string, s *Set) {
	if s.Foreign || s.Stale != nil || h.fills.find(s.ID) != nil {
		return
	}
	complete := len(s.Disks) == s.diskCount
	filling := s.has(backend.SnapshotFilling)
	var err error
	what := ""
	switch {
	case s.has(backend.SnapshotRemoving):
		what = "removal is gone on with"
		err = h.removeMembers(ctx, s)
	case filling && !h.lock.fillIsOrphaned(s.ID):
		return
	case filling:
		what = "copy had been cut off: removed"
		err = h.removeMembers(ctx, s)
	case s.has(backend.SnapshotPending) && complete && s.has(backend.SnapshotActive):
		// Every snapshot was made, and some are marked as good.
		what = "was whole, but not marked so everywhere: kept"
		err = h.annotate(ctx, s, func(m *backend.SnapshotMeta) {
			m.State, m.Consistency, m.DiskCount = backend.SnapshotActive, s.committedConsistency(), s.diskCount
		})
	case s.has(backend.SnapshotPending):
		what = "was half-made: removed"
		err = h.removeMembers(ctx, s)
	case s.disagrees():
		what = "was half-changed: made equal"
		err = h.annotate(ctx, s, func(m *backend.SnapshotMeta) { m.Name, m.Expires, m.Hold = s.Disks[0].Name, s.Expires, s.Hold })
	default:
		return
	}
	fields := []zap.Field{zap.String("op", "repair"), zap.String("domain", domain), zap.String("snapshot", s.Name), zap.String("what", what)}
	if err != nil {
		h.log.Warn("a snapshot that a crash left cannot be repaired; it is tried again at the next start", append(fields, zap.Error(err))...)
		return
	}
	h.log.Info("a snapshot that a crash left", fields...)
	h.emit(Event{Event: "repair", Domain: domain, Snapshot: s.Name, Message: what})
}

// committedConsistency is that of the members that were marked as good.
func (s *Set) committedConsistency() backend.Consistency {
	for _, k := range s.Disks {
		if k.State == backend.SnapshotActive {
			return k.Consistency
		}
	}
	return s.Consistency
}

// disagrees tells whether a change of the set's record was cut off.
func (s *Set) disagrees() bool {
	first := s.Disks[0]
	for _, k := range s.Disks {
		if k.Name != first.Name || !k.Expires.Equal(first.Expires) || k.Hold != first.Hold {
			return true
		}
	}
	return false
}

// adoptOrphans removes sets whose copying daemon has died, as Start does.
func (h *Host) adoptOrphans(inv *Inventory) {
	for _, dir := range inv.Snapshots {
		for _, s := range dir.Sets {
			if s.State == backend.SnapshotFilling && s.Stale == nil && h.fills.find(s.ID) == nil {
				h.adopt(dir.Name, s.ID)
			}
		}
	}
}

func (h *Host) adopt(dir, id string) {
	end, err := h.begin()
	if err != nil {
		return
	}
	defer end()
	release, err := h.lock.acquire(h.done, "repair of "+dir, h.o.LockTimeout)
	if err != nil {
		return // the next round comes
	}
	defer h.notify(Change{Dir: dir, SetID: id})
	defer release()
	ctx, cancel := context.WithTimeout(context.Background(), h.lim.change)
	defer cancel()
	defer h.invalidate()
	inv, err := h.fresh(ctx)
	if err != nil {
		return
	}
	if d, s := inv.set(id); s != nil && s.State == backend.SnapshotFilling {
		h.settle(ctx, d.domainName(), s)
	}
}

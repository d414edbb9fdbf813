package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// activateBatch is how many LVs are activated by one command.
const activateBatch = 64

// Repair implements backend.Snapshotter. It
//
//   - removes LVs with a record of ours in state pending or removing that are plain: lvcreate begins and lvremove ends with
//     such a one, in commits of their own,
//   - activates thin snapshots of ours, as the host's own activation may be restricted or have come too early, or as their VG appeared later.
//     Thick ones are active when their origin is,
//   - removes volumes that Create made and nobody keeps: see repairNew.
//
// Nothing without a record of ours is touched.
func (s *Store) Repair(ctx context.Context) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	if s.absent() != nil {
		return nil
	}
	// Most often there is nothing to do, which whoever has read the host a moment ago, with the host's lock held, knows.
	h, err := s.recent(ctx)
	if err == nil && h.needsRepair() {
		h, err = s.read(ctx)
	}
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	var errs []error
	for _, g := range h.vgs {
		// LVs can be removed, and their tags changed, while PVs are missing.
		if g.missingPVs > 0 || g.changeable() == nil {
			errs = append(errs, s.repairVG(ctx, h, g)...)
		}
	}
	return errors.Join(errs...)
}

// needsRepair tells whether there is anything that Repair may change.
func (h *host) needsRepair() bool {
	return slices.ContainsFunc(h.lvs, func(l *lv) bool {
		if state := volumeState(l.tags); state == volumePending || state == volumeCleared {
			return true
		}
		m, ours := parseTags(l.tags)
		return ours && (isRemains(l, m.State) || l.isThin() && h.dm.of(l) == nil)
	})
}

func (s *Store) repairVG(ctx context.Context, h *host, g *vg) (errs []error) {
	var inactive []string
	for _, l := range g.lvs {
		if ctx.Err() != nil {
			return append(errs, ctxError(ctx))
		}
		if err := s.repairNew(ctx, h, l); err != nil {
			errs = append(errs, err)
		}
		m, ours := parseTags(l.tags)
		if !ours || l.hidden || recordFault(l.tags) != nil {
			continue
		}
		switch {
		case isRemains(l, m.State):
			if err := s.removeRemains(ctx, l, m); err != nil {
				errs = append(errs, err)
				continue
			}
			fault.Point("lvm.repair.removed")
			s.log.Info("removed what a crash left", zap.String("op", "repair"), zap.String("volume", l.id()))
		case l.isThin() && !l.partial && h.dm.of(l) == nil && m.State == backend.SnapshotActive:
			inactive = append(inactive, l.id())
		}
	}
	for len(inactive) > 0 {
		n := min(len(inactive), activateBatch)
		args := append([]string{"--activate", "y", "--ignoreactivationskip", "--"}, inactive[:n]...)
		if _, err := s.change(ctx, "activate the snapshots in VG "+g.name, "lvchange", args...); err != nil {
			errs = append(errs, err)
		} else {
			s.log.Info("activated snapshots", zap.String("op", "repair"), zap.Strings("volumes", inactive[:n]))
		}
		fault.Point("lvm.repair.activated")
		inactive = inactive[n:]
	}
	return errs
}

// isRemains tells whether an LV with a record is what lvcreate begins a thick snapshot with, or lvremove ends with. One whose state
// is active is not: an admin has made it a volume of its own (lvconvert --splitsnapshot).
func isRemains(l *lv, state backend.SnapshotState) bool {
	return (state == backend.SnapshotPending || state == backend.SnapshotRemoving) &&
		l.origin == "" && l.originUUID == "" && !l.isThin() && l.pool == "" && isOurName(l.name)
}

// repairNew removes a volume that was made and is nobody's, as who made it has died: one that was not cleared, and one that was, but to which
// nobody has written since. Whoever clears a volume has it open, and so has a guest that it was given to.
func (s *Store) repairNew(ctx context.Context, h *host, l *lv) error {
	state := volumeState(l.tags)
	if state != volumePending && state != volumeCleared || l.hidden || l.isPart() || l.isSnapshot() {
		return nil
	}
	if dev := h.dm.of(l); dev != nil && dev.Open > 0 {
		return nil
	}
	if state == volumeCleared {
		used, err := s.isUsed(ctx, l)
		if err != nil {
			return fmt.Errorf("%s was to be a new disk, and may have become one: it is left as it is: %w", l.id(), err)
		}
		if used {
			s.log.Warn("a volume that was to be a new disk has become one: it stays", zap.String("op", "repair"), zap.String("volume", l.id()))
			return s.keepLV(ctx, "keep "+l.id(), l)
		}
	}
	err := retry(ctx, func() error {
		_, err := s.change(ctx, "remove "+l.id(), "lvremove", deleteArgs(l)...)
		return err
	})
	switch {
	case errors.Is(err, backend.ErrNotExist) || isBusy(err): // somebody has it after all
		return nil
	case err != nil:
		return err
	}
	fault.Point("lvm.repair.unmade")
	s.log.Info("removed a volume that was to be a new disk, whose making a crash cut off", zap.String("op", "repair"), zap.String("volume", l.id()))
	return nil
}

// isUsed tells whether somebody has written to a volume that was cleared.
func (s *Store) isUsed(ctx context.Context, l *lv) (bool, error) {
	d, err := s.Open(ctx, backend.Volume{Store: storeName, ID: l.id(), Format: backend.FormatRaw})
	if err != nil {
		return false, err
	}
	defer d.Close()
	untouched, err := isUntouched(d)
	return !untouched, err
}

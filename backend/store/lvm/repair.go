package lvm

import (
	"context"
	"errors"
	"fmt"

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
//     Thick ones are active when their origin is.
//
// Nothing without a record of ours is touched.
func (s *Store) Repair(ctx context.Context) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	if s.absent() != nil {
		return nil
	}
	h, err := s.read(ctx)
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

func (s *Store) repairVG(ctx context.Context, h *host, g *vg) (errs []error) {
	var inactive []string
	for _, l := range g.lvs {
		if ctx.Err() != nil {
			return append(errs, ctxError(ctx))
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

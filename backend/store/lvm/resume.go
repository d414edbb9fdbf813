package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"
	"domfs/backend/run"

	"go.uber.org/zap"
)

// Resume implements backend.Resumer. A tool that is killed in the middle of a change leaves an origin or a whole thin pool
// suspended, and whoever uses a volume of it waits for ever: LVM's metadata say nothing of that, and no record of ours need be
// left. vgchange --refresh waits for tools that are still at work on the VG.
func (s *Store) Resume(ctx context.Context) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	if s.absent() != nil {
		return nil
	}
	return s.resume(ctx)
}

func (s *Store) resume(ctx context.Context) error {
	h, err := s.read(ctx)
	if err != nil {
		return fmt.Errorf("look for volumes that are suspended: %w", err)
	}
	var errs []error
	for _, g := range h.vgs {
		devices := h.dm.suspendedIn(g)
		if len(devices) == 0 || g.missingPVs == 0 && g.changeable() != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
		_, err := s.run.Run(ctx, "vgchange", "--refresh", "--select", `vg_uuid="`+g.uuid+`"`, "--", g.name)
		cancel()
		s.changed()
		if err != nil {
			errs = append(errs, toolFailed("resume "+strings.Join(devices, ", "), err))
			continue
		}
		fault.Point("lvm.resume.refreshed")
		s.log.Warn("resumed volumes that a tool which was killed had left suspended", zap.String("op", "repair"), zap.String("vg", g.name), zap.Strings("devices", devices))
	}
	return errors.Join(errs...)
}

// suspendedIn names the devices of a VG's LVs, and of their layers, that are suspended.
func (d *devices) suspendedIn(g *vg) []string {
	if d == nil {
		return nil
	}
	var names []string
	prefix := dmPrefix + strings.ReplaceAll(g.uuid, "-", "")
	for name, dev := range d.byName {
		if dev.Suspended && strings.HasPrefix(dev.UUID, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// wasKilled tells whether a tool was, so that what it had suspended may be so still.
func wasKilled(err error) bool {
	var e *run.Error
	return errors.As(err, &e) && (e.Signal != 0 || errors.Is(err, backend.ErrTimeout))
}

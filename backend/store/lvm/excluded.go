package lvm

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"domfs/backend"
)

var _ backend.Excluder = (*Store)(nil)

// Excluded implements backend.Excluder: device-mapper knows the LVs of VGs that --vg leaves out, and of those that LVM does not show.
func (s *Store) Excluded(ctx context.Context, d backend.Disk) error {
	if d.Script != "" || d.BackendDomain != "" || !strings.HasPrefix(d.Source, "/") || s.absent() != nil {
		return nil
	}
	rdev, isBlock, err := s.stat(filepath.Clean(d.Source))
	if err != nil || !isBlock {
		return nil
	}
	h, err := s.recent(ctx)
	if err != nil {
		return nil // the disk's own store says what it can
	}
	dev := h.dm.byRdev[rdev]
	if dev == nil || !strings.HasPrefix(dev.UUID, dmPrefix) || h.lvOf(dev) != nil {
		return nil
	}
	vgName, name, ok := splitDMName(dev.Name)
	switch {
	case !ok || h.vg(vgName) != nil:
		return nil
	case len(s.o.VGs) > 0 && !slices.Contains(s.o.VGs, vgName):
		return backend.Because(backend.ErrUnsupported, "it is the logical volume %s of VG %s, which --vg leaves out: mount with --vg=%s, too", name, vgName, vgName)
	}
	return backend.Because(backend.ErrUnsupported, "it is the logical volume %s of VG %s, which LVM does not show here: see vgs --foreign --shared (another host's system ID, or lvmlockd), and lvmdevices for disks that are left out", name, vgName)
}

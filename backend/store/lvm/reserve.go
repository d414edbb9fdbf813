package lvm

import (
	"context"
	"fmt"

	"domfs/backend"
	"domfs/backend/fault"
)

// ExtendReserve implements backend.Reserver: it grows the LV of a thick snapshot, which is its space for copies on write.
func (s *Store) ExtendReserve(ctx context.Context, sn backend.Snapshot, sizeBytes int64) (int64, error) {
	what := "extend the space of " + sn.Volume.ID
	if sn.Volume.Store != storeName {
		return 0, backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", what, sn.Volume.Store)
	}
	if sizeBytes <= 0 {
		return 0, backend.Because(backend.ErrInvalid, "%s to %d bytes: it must have some", what, sizeBytes)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	h, err := s.read(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	l := h.byID(sn.Volume.ID)
	if l == nil {
		return 0, backend.Because(backend.ErrNotExist, "%s: there is no such logical volume", what)
	}
	if err := isStill(l, sn); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if !l.isThick() {
		return 0, backend.Because(backend.ErrUnsupported, "%s: it is no thick snapshot, and takes its space from its pool", what)
	}
	most := l.maxReserve()
	target := min(roundUp(sizeBytes, l.vg.extentBytes), most)
	switch {
	case target == l.sizeBytes || sizeBytes == l.sizeBytes || l.sizeBytes >= most && sizeBytes >= l.sizeBytes:
		return l.sizeBytes, nil
	case target < l.sizeBytes:
		return 0, backend.Because(backend.ErrPermission, "%s to %s: it has %s, and is not made smaller", what, sizeText(sizeBytes), sizeText(l.sizeBytes))
	case l.merging:
		return 0, backend.Because(backend.ErrBusy, "%s: it is being merged into its origin", what)
	case h.fault(l) != "":
		return 0, backend.Because(backend.ErrUnsupported, "%s: %s: remove it", what, h.fault(l))
	}
	if err := l.vg.changeable(); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if need := target - l.sizeBytes; need > l.vg.freeBytes {
		return 0, noExtents(what, l.vg, need)
	}
	fault.Point("lvm.reserve.begin")
	if err := s.extend(ctx, what, l, target); err != nil {
		return 0, err
	}
	fault.Point("lvm.reserve.done")
	return s.sizeNow(ctx, what, l)
}

// MaxReserve implements backend.Reserver, by what was last read.
func (s *Store) MaxReserve(sn backend.Snapshot) int64 {
	if r := s.lastReport(); r != nil {
		if l := r.byID(sn.Volume.ID); l != nil {
			if !l.isThick() {
				return 0
			}
			return l.maxReserve()
		}
	}
	if sn.ReserveBytes == 0 {
		return 0
	}
	return maxCOWBytes(sn.Volume.SizeBytes, defaultChunkBytes, defaultExtentBytes)
}

// defaultExtentBytes is an extent where LVM is not told otherwise.
const defaultExtentBytes = 4 << 20

// maxReserve is the most space that a thick snapshot can use.
func (l *lv) maxReserve() int64 {
	return maxCOWBytes(l.originBytes, l.chunkBytes, l.vg.extentBytes)
}

package lvm

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"domfs/backend"
	"domfs/backend/blockdev"
	"domfs/backend/fault"
)

// growTypes are the segment types that grow here. Others do with lvextend, by somebody who knows why they were chosen.
var growTypes = []string{"linear", "striped", "raid0", "raid0_meta", "raid1", "raid10", segThin}

// RoundSize implements backend.Resizer: up to whole extents, of which each stripe gets the same number.
func (s *Store) RoundSize(v backend.Volume, sizeBytes int64) int64 {
	unit := int64(1)
	if r := s.lastReport(); r != nil {
		if l := r.byID(v.ID); l != nil {
			unit = l.growthUnit()
		}
	}
	return roundGrowth(v.SizeBytes, sizeBytes, unit)
}

// roundGrowth is what a volume of now bytes has after it grew to sizeBytes: LVM rounds what is added. Other segments of the
// volume may have another number of stripes, so now may be no multiple of unit.
func roundGrowth(now, sizeBytes, unit int64) int64 {
	if sizeBytes <= now {
		return min(roundUp(sizeBytes, unit), max(now, 0))
	}
	room := (math.MaxInt64 - now) / unit * unit
	return now + min(roundUp(sizeBytes-now, unit), room)
}

// growthUnit is what the size of an LV grows by, in bytes.
func (l *lv) growthUnit() int64 {
	stripes := int64(1)
	switch segmentKind(l.lastSegtype) {
	case "striped", "raid0", "raid0_meta":
		stripes = l.lastStripes
	case "raid10":
		stripes = l.lastStripes / max(l.copies, 1)
	}
	return max(l.vg.extentBytes, 1) * max(stripes, 1)
}

// extentsFor is what of the VG an LV takes to grow by so many bytes.
func (l *lv) extentsFor(bytes int64) int64 {
	copies := int64(1)
	switch segmentKind(l.lastSegtype) {
	case "raid1":
		copies = max(l.lastStripes, l.copies)
	case "raid10":
		copies = l.copies
	}
	if bytes > math.MaxInt64/max(copies, 1) {
		return math.MaxInt64
	}
	return bytes * max(copies, 1)
}

// Resize implements backend.Resizer. What is in the guest's filesystem does not change. A volume with thick snapshots is ErrBusy: LVM
// grows none. New extents are not wiped; see doc.go.
func (s *Store) Resize(ctx context.Context, v backend.Volume, sizeBytes int64) (int64, error) {
	what := "resize " + v.ID
	if v.Store != storeName {
		return 0, backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", what, v.Store)
	}
	if sizeBytes <= 0 {
		return 0, backend.Because(backend.ErrInvalid, "%s to %d bytes: it must have some", what, sizeBytes)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	h, err := s.recent(ctx)
	if err == nil && h.dm.of(h.byID(v.ID)) == nil { // nothing but LVM tells whether it is the same still
		h, err = s.read(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	l := h.byID(v.ID)
	if l == nil {
		return 0, backend.Because(backend.ErrNotExist, "%s: there is no such logical volume", what)
	}
	if l.isSnapshot() {
		if _, ours := parseTags(l.tags); ours || l.isThick() {
			return 0, backend.Because(backend.ErrReadOnly, "%s: it is a snapshot", what)
		}
	}
	target := roundGrowth(l.sizeBytes, sizeBytes, l.growthUnit())
	switch {
	case target == l.sizeBytes:
		return target, nil
	case target < l.sizeBytes:
		return 0, backend.Because(backend.ErrPermission, "%s to %s: it has %s, and what lies beyond would be lost", what, sizeText(sizeBytes), sizeText(l.sizeBytes))
	}
	if err := s.growthRefusal(h, l, target); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	// lvextend knows no --select, and would grow whatever has the name.
	if size, ok := s.deviceSize(ctx, l); h.dm.of(l) != nil && (!ok || size != l.sizeBytes) {
		s.changed()
		return 0, backend.Because(backend.ErrStale, "%s: it was changed a moment ago by others: look at it, and try again", what)
	}
	fault.Point("lvm.resize.begin")
	if err := s.extend(ctx, what, l, target); err != nil {
		return 0, err
	}
	fault.Point("lvm.resize.done")
	if size, ok := s.deviceSize(ctx, l); ok {
		return size, nil
	}
	return s.sizeNow(ctx, what, l)
}

// deviceSize is how large an LV's device is, in bytes, which is what a guest sees of it; false if there is none, or it has another name by now.
func (s *Store) deviceSize(ctx context.Context, l *lv) (size int64, ok bool) {
	found, err := s.mapper.Devices(context.WithoutCancel(ctx))
	if err != nil {
		return 0, false
	}
	dev := indexDevices(found).of(l)
	if dev == nil || dev.Name != dmName(l.vg.name, l.name) {
		return 0, false
	}
	size, err = blockdev.Size(s.sysfs, dev.rdev())
	return size, err == nil
}

// growthRefusal says why an LV cannot grow to target bytes.
func (s *Store) growthRefusal(h *host, l *lv, target int64) error {
	if err := l.vg.changeable(); err != nil {
		return err
	}
	switch {
	case l.hidden:
		return backend.Because(backend.ErrUnsupported, "%s is a part of another volume", l.id())
	case l.partial:
		return backend.Because(backend.ErrIO, "a physical volume that it lies on is missing")
	case l.merging:
		return backend.Because(backend.ErrBusy, "a snapshot is being merged into it: wait until that is done")
	case !slices.Contains(growTypes, segmentKind(l.segtype)):
		return backend.Because(backend.ErrUnsupported, "it is a volume of type %s: grow it with lvextend", l.segtype)
	}
	if names := thickSnapshotNames(h, l); len(names) > 0 {
		return backend.Because(backend.ErrBusy, "LVM does not grow a volume that has thick snapshots: remove %s first", strings.Join(names, ", "))
	}
	if l.isThin() {
		return checkPool(h, l.vg, l.pool, "growth")
	}
	if need := l.extentsFor(target - l.sizeBytes); need > l.vg.freeBytes {
		return noExtents("", l.vg, need)
	}
	return nil
}

// thickSnapshotNames are the names of an LV's thick snapshots: the users' for those of ours.
func thickSnapshotNames(h *host, l *lv) []string {
	const most = 8
	var names []string
	for _, sn := range h.snapshotsOf(l) {
		if !sn.isThick() {
			continue
		}
		if len(names) == most {
			return append(names, "and others")
		}
		if m, ours := parseTags(sn.tags); ours {
			names = append(names, fmt.Sprintf("snapshot %q of %s (%s)", m.Name, m.DomainName, sn.id()))
		} else {
			names = append(names, sn.id())
		}
	}
	return names
}

// noExtents is the error of a VG in which need bytes are not free.
func noExtents(what string, g *vg, need int64) error {
	if what != "" {
		what += ": "
	}
	return backend.Because(backend.ErrNoSpace, "%s%s more are needed, and VG %s has %s free (%d extents of %d): remove snapshots, or add a disk with vgextend",
		what, sizeText(need), g.name, sizeText(g.freeBytes), need/max(g.extentBytes, 1), g.freeBytes/max(g.extentBytes, 1))
}

// extend makes an LV size bytes large: of a thick snapshot, its space for copies on write.
func (s *Store) extend(ctx context.Context, what string, l *lv, size int64) error {
	args := []string{"--yes", "--size", fmt.Sprintf("%db", size)}
	args = append(args, l.stripeArgs()...)
	_, err := s.change(ctx, what, "lvextend", append(args, "--", l.id())...) // lvextend knows no --select
	return err
}

// stripeArgs tell lvextend to go on as the last segment does: where the stripes of others differ it does not choose.
func (l *lv) stripeArgs() []string {
	if !l.unevenStripes {
		return nil
	}
	args := []string{"--stripes", fmt.Sprint(l.lastStripes)}
	if l.lastStripes > 1 && l.lastStripeBytes > 0 {
		args = append(args, "--stripesize", fmt.Sprintf("%db", l.lastStripeBytes))
	}
	return args
}

// sizeNow reads how large an LV is: of a thick snapshot, its space for copies on write.
func (s *Store) sizeNow(ctx context.Context, what string, l *lv) (int64, error) {
	r, err := s.readReport(context.WithoutCancel(ctx))
	if err != nil {
		return 0, fmt.Errorf("%s: it was done, but: %w", what, err)
	}
	now := r.byID(l.id())
	if now == nil || now.uuid != l.uuid {
		return 0, backend.Because(backend.ErrStale, "%s: it was done, and the volume is gone since", what)
	}
	return now.sizeBytes, nil
}

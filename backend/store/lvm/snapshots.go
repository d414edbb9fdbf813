package lvm

import (
	"context"
	"fmt"
	"strings"

	"domfs/backend"
)

// Snapshots lists our snapshots, by their tags, and those that others made.
func (s *Store) Snapshots(ctx context.Context) ([]backend.Snapshot, error) {
	h, err := s.listed(ctx, func(l *listing) *int { return &l.forSnapshots })
	if err != nil || h == nil {
		return nil, err
	}
	var snaps []backend.Snapshot
	for _, l := range h.lvs {
		if snap, ok := s.snapshot(h, l); ok {
			snaps = append(snaps, snap)
		}
	}
	return snaps, nil
}

// snapshot is an LV as a snapshot; false if it is none.
func (s *Store) snapshot(h *host, l *lv) (backend.Snapshot, bool) {
	if l.hidden || l.isThinPool() || l.vg.twin {
		return backend.Snapshot{}, false
	}
	meta, ours := parseTags(l.tags)
	// A thin snapshot whose origin was removed is one still. Any other LV with our tags came to them by accident.
	if ours = ours && (l.isThick() || l.isThin()); !ours {
		if !l.isSnapshot() {
			return backend.Snapshot{}, false
		}
		meta = s.foreign(l)
	}
	snap := backend.Snapshot{SnapshotMeta: meta, Foreign: !ours}
	if l.origin != "" {
		snap.Origin = l.vg.name + "/" + l.origin
	}
	v := &snap.Volume
	v.Format = meta.Disk.Format
	if v.Format == "" {
		v.Format = backend.FormatRaw
	}
	s.describe(h, l, v)
	if ours && h.dm.of(l) == nil && l.unreadable() == nil {
		v.Err = fmt.Errorf("%w; or start domfs again, which activates its snapshots", l.inactive())
	}
	if fault := h.fault(l); fault != "" {
		v.Err = backend.Because(backend.ErrIO, "snapshot %s: %s", l.id(), fault)
		if snap.State == backend.SnapshotActive {
			snap.State = backend.SnapshotInvalid
		}
	}
	if err := recordFault(l.tags); ours && err != nil && v.Err == nil {
		v.Err = fmt.Errorf("%s: %w", l.id(), err)
	}
	h.fill(l, &snap)
	if dev := h.dm.of(l); dev != nil && v.Format == backend.FormatRaw {
		snap.Path = s.node(l, dev)
	}
	return snap, true
}

// node is where the device of an LV is: below its VG's name, if udev has been there.
func (s *Store) node(l *lv, dev *device) string {
	for _, path := range []string{l.path(), "/dev/mapper/" + dev.Name} {
		if rdev, isBlock, err := s.stat(path); err == nil && isBlock && rdev == dev.rdev() {
			return path
		}
	}
	return dev.path()
}

// foreign is what is known of a snapshot that others made.
func (s *Store) foreign(l *lv) backend.SnapshotMeta {
	s.mu.Lock()
	format := s.formatsOf[l.vg.name+"/"+l.origin]
	s.mu.Unlock()
	return backend.SnapshotMeta{
		Set:       foreignSet(l),
		Name:      l.name,
		Disk:      backend.Disk{Format: format, Source: "/dev/" + l.vg.name + "/" + l.origin, Mode: backend.ReadOnly},
		DiskCount: 1,
		Created:   l.created,
		State:     backend.SnapshotActive,
	}
}

// foreignPrefix is what the sets of snapshots begin with that others made.
const foreignPrefix = "lvm-"

// foreignSet is the set of a snapshot that others made: its LV is the only one in it.
func foreignSet(l *lv) string { return foreignPrefix + l.uuid }

// uuidOfForeign is the UUID of the LV in such a set.
func uuidOfForeign(set string) (string, bool) {
	uuid, ok := strings.CutPrefix(set, foreignPrefix)
	return uuid, ok && uuid != ""
}

// snapshotOf is one that is known to be a snapshot. h is nil for one that was just made, of which neither LVM nor
// device-mapper was asked yet.
func (s *Store) snapshotOf(h *host, l *lv) backend.Snapshot {
	if h != nil {
		snap, _ := s.snapshot(h, l)
		return snap
	}
	meta, _ := parseTags(l.tags)
	snap := backend.Snapshot{
		SnapshotMeta: meta,
		Origin:       l.vg.name + "/" + l.origin,
		Volume: backend.Volume{
			Store: storeName, ID: l.id(), Driver: l.driver(), Pool: l.poolName(), Format: meta.Disk.Format, SizeBytes: l.visibleBytes(), Generation: l.mix(0),
		},
	}
	if snap.Volume.Format == "" {
		snap.Volume.Format = backend.FormatRaw
	}
	if l.isThick() {
		snap.ReserveBytes = l.sizeBytes
	}
	if snap.Volume.Format == backend.FormatRaw {
		snap.Path = l.path()
	}
	return snap
}

// fault is why reads of a snapshot fail, "" if they do not.
func (h *host) fault(l *lv) string {
	if l.isThick() {
		c, ok := h.dm.cow(l)
		if ok {
			return c.fault
		}
		// Without device-mapper's word, LVM's own (lvs(8), the fifth attribute).
		if len(l.attr) > 4 && (l.attr[4] == 'I' || l.attr[4] == 'M') {
			return parseCOW("Invalid").fault
		}
		return ""
	}
	if p := l.vg.lv(l.pool); p != nil {
		if state, ok := poolStatusOf(h, p); ok && state.failed {
			return fmt.Sprintf("its thin pool %s has failed: repair it with lvconvert --repair %s", p.id(), p.id())
		}
	}
	if t, ok := h.dm.thin(l); ok && t.failed {
		return "its thin pool has lost it: repair the pool with lvconvert --repair"
	}
	return ""
}

// fill says how much space a snapshot holds.
func (h *host) fill(l *lv, snap *backend.Snapshot) {
	if !l.isThick() {
		t, _ := h.dm.thin(l)
		snap.UsedBytes = t.mappedBytes
		return
	}
	snap.ReserveBytes = l.sizeBytes
	c, ok := h.dm.cow(l)
	if !ok {
		return
	}
	snap.FillPercent = c.percent()
	snap.UsedBytes = c.usedBytes
	if c.fault != "" {
		snap.UsedBytes = l.sizeBytes
	}
}

package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// mappings is what this process knows of block devices that show what is in snapshots. Which there are is
// the host's own word (backend.Mapper); owned are those sets that this daemon mapped, and unmaps when it ends. Another daemon
// leaves them alone at its start, by the file that owned locks (hostLock.lockMap).
type mappings struct {
	mu    sync.Mutex
	last  map[string][]backend.Mapping // guarded by mu; the Mapper's last answer
	owned map[string]func(gone bool)   // guarded by mu; by set ID: ends the lock
}

func (m *mappings) init() { m.owned = map[string]func(bool){} }

func (m *mappings) own(setID string, unlock func(gone bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owned[setID] = unlock
}

func (m *mappings) isOwn(setID string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owned[setID] != nil
}

// disown forgets a set, and tells whether it is unmapped.
func (m *mappings) disown(setID string, gone bool) {
	m.mu.Lock()
	unlock := m.owned[setID]
	delete(m.owned, setID)
	m.mu.Unlock()
	if unlock != nil {
		unlock(gone)
	}
}

func (m *mappings) ownSets() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.owned))
}

// errNoMapper is for a host that has none.
func (h *Host) errNoMapper() error {
	if h.o.NoMapper != nil {
		return fmt.Errorf("this host cannot map snapshots as block devices: %w", h.o.NoMapper)
	}
	return fmt.Errorf("this daemon maps no snapshots as block devices: %w", backend.ErrUnsupported)
}

// readMappings asks the Mapper what is mapped. Where it cannot say, what it said last is shown.
func (h *Host) readMappings(ctx context.Context) map[string][]backend.Mapping {
	if h.o.Mapper == nil {
		return nil
	}
	all, err := ask(ctx, h, h.mapperName(), "mappings", h.o.Mapper.Mappings)
	m := &h.mappings
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		return m.last
	}
	m.last = all
	return all
}

func (h *Host) mapperName() string { return "mapper " + h.o.Mapper.Name() }

// showMappings fills in what is mapped of each set.
func (inv *Inventory) showMappings(all map[string][]backend.Mapping) {
	for _, dir := range inv.Snapshots {
		for _, s := range dir.Sets {
			if len(all[s.ID]) == 0 {
				continue
			}
			s.Mapped = true
			s.devices = make(map[string]string, len(all[s.ID]))
			for _, m := range all[s.ID] {
				s.devices[m.Name] = m.Device
			}
		}
	}
}

// Device is the block device of the host that shows a volume of the set, by its path in it ("xvda/p2",
// "lvm/vg0/root"); "" if there is none.
func (s *Set) Device(path string) string { return s.devices[path] }

// SetMapped maps all volumes of a set as read-only block devices of the host ("1"), or removes
// those ("0"): ErrBusy names who has one open, and all of them are there then. Volumes that cannot be mapped by
// their nature are left out, with a warning.
func (h *Host) SetMapped(ctx context.Context, dir, name, value string) error {
	c := &change{op: "mapped", domain: dir, snapshot: name, message: value}
	check := func() error {
		switch {
		case value != "0" && value != "1":
			return fmt.Errorf("mapped is 0 or 1, and %q is neither: %w", oneLine(value), backend.ErrInvalid)
		case h.o.Mapper == nil && value == "1":
			return h.errNoMapper()
		}
		return nil
	}
	return h.do(ctx, c, check, func(ctx context.Context, inv *Inventory) error {
		d, s, err := c.findSet(inv, dir, name)
		if err != nil {
			return err
		}
		if value == "0" {
			c.quiet = !s.Mapped
			c.touched = append(c.touched, Change{Dir: d.Name, SetID: s.ID})
			return h.unmapSet(ctx, d, s)
		}
		if err := s.mappable(d); err != nil {
			return err
		}
		c.touched = append(c.touched, Change{Dir: d.Name, SetID: s.ID})
		made, err := h.mapSet(ctx, d, s)
		if err == nil && made == 0 {
			return fmt.Errorf("no disk of snapshot %s of %s lies in a device or a file as the guest sees it (%s), so there is nothing to map: %w", s.Name, d.Name, s.Disks[0].Volume.Format, backend.ErrUnsupported)
		}
		c.extra = []zap.Field{zap.Int("devices", made)}
		return err
	})
}

// mappable says why a set cannot be mapped now.
func (s *Set) mappable(d *SnapshotDir) error {
	switch s.State {
	case backend.SnapshotActive:
		return nil
	case backend.SnapshotInvalid:
		return fmt.Errorf("snapshot %s of %s is invalid: there is nothing to map: %w", s.Name, d.Name, backend.ErrIO)
	}
	return fmt.Errorf("snapshot %s of %s is %s: map it when it is active: %w", s.Name, d.Name, s.State, backend.ErrBusy)
}

// mapSet maps what there is in a set, and counts it. The host's lock is held.
func (h *Host) mapSet(ctx context.Context, d *SnapshotDir, s *Set) (made int, err error) {
	r, err := h.mapRequest(ctx, d, s)
	if err != nil || len(r.Disks) == 0 {
		return 0, err
	}
	// Before anything is there: who dies in between leaves a lock that nobody holds, and others reap.
	if !h.mappings.isOwn(s.ID) {
		unlock, err := h.lock.lockMap(s.ID)
		switch {
		case errors.Is(err, backend.ErrBusy): // another daemon has mapped it: then it is that one's to unmap
		case err != nil:
			return 0, err
		default:
			h.mappings.own(s.ID, unlock)
		}
	}
	fault.Point("control.map")
	done, left, err := h.o.Mapper.Map(ctx, r)
	fault.Point("control.mapped")
	if err != nil {
		if !s.Mapped {
			h.takeBack(ctx, s)
		}
		return 0, fmt.Errorf("snapshot %s of %s cannot be mapped: %w", s.Name, d.Name, err)
	}
	for i, u := range left {
		if i == maxTold {
			h.warning(d.domainName(), s.Name, "mapped", fmt.Sprintf("snapshot %s has no device of %d more", s.Name, len(left)-maxTold))
			break
		}
		h.warning(d.domainName(), s.Name, "mapped", fmt.Sprintf("snapshot %s has no device of %v", s.Name, u.Err))
	}
	return len(done), nil
}

// takeBack removes what a Map that failed may have left: nothing, where it is as it should be.
func (h *Host) takeBack(ctx context.Context, s *Set) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.lim.undo)
	defer cancel()
	if err := h.o.Mapper.Unmap(ctx, s.ID); err != nil {
		h.log.Error("block devices of a snapshot are left over; write 0 to its mapped", zap.String("snapshot", s.Name), zap.Error(err))
		return
	}
	h.mappings.disown(s.ID, true)
}

// unmapSet removes a set's mappings. Where one is in use, they are as before. The host's lock is held.
func (h *Host) unmapSet(ctx context.Context, d *SnapshotDir, s *Set) error {
	if h.o.Mapper == nil || !s.Mapped {
		h.mappings.disown(s.ID, true)
		return nil
	}
	fault.Point("control.unmap")
	err := h.o.Mapper.Unmap(ctx, s.ID)
	fault.Point("control.unmapped")
	if err == nil {
		h.mappings.disown(s.ID, true)
		return nil
	}
	if s.State == backend.SnapshotActive {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.lim.undo)
		defer cancel()
		if _, again := h.mapSet(undo, d, s); again != nil {
			h.log.Warn("a snapshot that could not be unmapped is mapped in part", zap.String("domain", d.domainName()), zap.String("snapshot", s.Name), zap.Error(again))
		}
	}
	return fmt.Errorf("snapshot %s of %s stays mapped: %w", s.Name, d.Name, err)
}

// mapNew maps a set that has just been made, where that is wanted for its stores. If it fails, the set
// is taken back: whoever asked for devices expects them. The host's lock is held.
func (h *Host) mapNew(ctx context.Context, c *change, m *maker) error {
	if h.o.Mapper == nil || len(h.o.MapNew) == 0 {
		return nil
	}
	for _, p := range m.parts {
		if !slices.Contains(h.o.MapNew, p.name) {
			return nil
		}
	}
	h.invalidate()
	inv, err := h.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("the snapshot is made, but not mapped: %w", err)
	}
	d, s := inv.set(m.id)
	if s == nil {
		return fmt.Errorf("the snapshot is made, but not seen: %w", backend.ErrIO)
	}
	_, err = h.mapSet(ctx, d, s)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.lim.undo)
	defer cancel()
	if gone := h.removeSet(undo, c, d, s); gone != nil {
		return errors.Join(err, gone)
	}
	return fmt.Errorf("%w; so there is no snapshot (mount --map none makes them without devices)", err)
}

// reapMappings removes what daemons that died have left mapped. The host's lock is held.
func (h *Host) reapMappings(ctx context.Context) {
	for id := range h.readMappings(ctx) {
		if h.mappings.isOwn(id) {
			continue
		}
		release, dead := h.lock.lockDeadMap(id)
		if !dead {
			continue
		}
		fault.Point("control.reap")
		err := h.o.Mapper.Unmap(ctx, id)
		release(err == nil)
		if err != nil {
			h.log.Warn("block devices that a crash left cannot be removed; it is tried again at the next start", zap.String("op", "repair"), zap.String("set", id), zap.Error(err))
			continue
		}
		h.log.Info("block devices that a crash left are removed", zap.String("op", "repair"), zap.String("set", id))
	}
}

// endMappings removes the mappings that this daemon made: it ends.
func (h *Host) endMappings() {
	own := h.mappings.ownSets()
	if len(own) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.lim.end)
	defer cancel()
	release, err := h.lock.acquire(ctx, "unmapping at the end", h.lim.end)
	if err != nil {
		h.log.Error("block devices of snapshots are left over; the next start removes them", zap.Error(err))
		return
	}
	defer release()
	for _, id := range own {
		fault.Point("control.end")
		err := h.o.Mapper.Unmap(ctx, id)
		if err != nil {
			h.log.Error("a block device of a snapshot is left over; the next start removes it", zap.String("set", id), zap.Error(err))
		}
		h.mappings.disown(id, err == nil)
	}
}

// mapRequest says what of a set is to be mapped: its disks and all partitions, and the guest's volumes
// that a table can show. What cannot be looked into is recorded, and the rest is mapped.
func (h *Host) mapRequest(ctx context.Context, d *SnapshotDir, s *Set) (backend.MapRequest, error) {
	r := backend.MapRequest{SetID: s.ID}
	for i := range s.Disks {
		k := &s.Disks[i]
		if k.Path == "" {
			h.warning(d.domainName(), s.Name, "mapped", fmt.Sprintf("disk %s in snapshot %s is of format %s: no block device of the host shows it as the guest sees it", k.Disk.VDev, s.Name, k.Volume.Format))
			continue
		}
		disk, err := h.mapDisk(ctx, s.ID, k)
		if err != nil {
			return r, err
		}
		r.Disks = append(r.Disks, disk)
	}
	if len(r.Disks) > 0 {
		r.Volumes = h.mapVolumes(ctx, s)
	}
	return r, nil
}

func (h *Host) mapDisk(ctx context.Context, setID string, k *backend.Snapshot) (backend.MapDisk, error) {
	disk := backend.MapDisk{VDev: k.Disk.VDev, Path: k.Path}
	v, err := h.Volume(ctx, VolumeRef{SetID: setID, VDev: k.Disk.VDev})
	if err != nil {
		return disk, err
	}
	defer v.Release()
	disk.SizeBytes = v.dev.Size()
	h.mapParts(v, 0, &disk)
	return disk, nil
}

// mapParts adds the partitions of a volume that begins at start of its disk.
func (h *Host) mapParts(v *Volume, start int64, disk *backend.MapDisk) {
	parts, err := v.Parts()
	if err != nil {
		h.Failed(v.disk.from.domain, "partitions", err)
		return
	}
	for _, p := range parts {
		of, off, ok := backend.SectionOf(p.Device)
		if p.Err != nil || !ok || of != v.dev || len(disk.Parts) == maxVolumes {
			continue
		}
		child, err := v.child(p.Number)
		if err != nil {
			continue // whoever reads it is told
		}
		part := backend.MapPart{Name: child.ref.Path, Start: start + off, Length: p.Device.Size()}
		if c, err := child.Content(); err == nil {
			part.Content = c.Type
		}
		disk.Parts = append(disk.Parts, part)
		h.mapParts(child, part.Start, disk)
	}
}

// mapVolumes are the guest's volumes that are linear or striped all through.
func (h *Host) mapVolumes(ctx context.Context, s *Set) (out []backend.MapVolume) {
	for _, a := range h.o.Assemblers {
		groups, err := h.Groups(ctx, VolumeRef{SetID: s.ID}, a.Name())
		if err != nil {
			continue // it was recorded
		}
		for _, g := range groups {
			for _, v := range g.Volumes {
				if v.Err == nil && len(v.Segments) > 0 {
					out = append(out, backend.MapVolume{Name: assembledPath(a.Name(), g.Name, v.Name), SizeBytes: v.Device.Size(), Segments: v.Segments})
				}
			}
		}
	}
	return out
}

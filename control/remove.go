package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// Remove removes a snapshot set: ErrPermission while it is held, ErrBusy while a file of it
// is open, or a block device of it in use. One that is being copied is removed, too. A removal that fails half-way leaves
// the state removing, and is gone on with by the next Remove or Start.
func (h *Host) Remove(ctx context.Context, dir, name string) error {
	c := &change{op: "remove", domain: dir, snapshot: name}
	return h.do(ctx, c, nil, func(ctx context.Context, inv *Inventory) error {
		d, s, err := c.findSet(inv, dir, name)
		if err != nil {
			return err
		}
		if s.Foreign && !h.o.Foreign {
			return s.foreignKept(d)
		}
		if err := inv.isDisk(d, s); err != nil {
			return err
		}
		return h.removeSet(ctx, c, d, s)
	})
}

// isDisk says that a volume of the set is a domain's disk by now: an admin has made a machine of a snapshot. Nothing
// else need have it open, so that the store would remove it.
func (inv *Inventory) isDisk(d *SnapshotDir, s *Set) error {
	for i := range s.Disks {
		v := &s.Disks[i].Volume
		for _, dom := range inv.Domains {
			j := slices.IndexFunc(dom.Volumes, func(of backend.Volume) bool { return of.Store != "" && of.Store == v.Store && of.ID == v.ID })
			if j >= 0 {
				return backend.Because(backend.ErrBusy, "snapshot %s of %s stays: its volume %s is disk %s of %s", s.Name, d.Name, v.ID, dom.Disks[j].VDev, dom.Name)
			}
		}
	}
	return nil
}

// removeSet removes a set of the inventory, with the host's lock held.
func (h *Host) removeSet(ctx context.Context, c *change, d *SnapshotDir, s *Set) error {
	if s.Hold {
		return fmt.Errorf("snapshot %s of %s is held: write 0 to its hold first: %w", s.Name, d.Name, backend.ErrPermission)
	}
	for _, k := range s.Disks {
		if k.Volume.Holder != "" {
			return fmt.Errorf("disk %s in snapshot %s of %s is in use by %s: %w", k.Disk.VDev, s.Name, d.Name, k.Volume.Holder, backend.ErrBusy)
		}
	}
	if h.onDrain != nil {
		if err := h.onDrain(ctx, s.ID); err != nil {
			return err
		}
	}
	fault.Point("control.remove.drained")
	c.touched = append(c.touched, Change{Dir: d.Name, SetID: s.ID}) // also where it fails: the draining ends
	if err := h.unmapSet(ctx, d, s); err != nil {
		return err
	}
	if f := h.fills.find(s.ID); f != nil {
		f.abandon()
	}
	reopen := h.volumes.closeSet(s.ID)
	defer reopen()
	if err := h.removeMembers(ctx, s); err != nil {
		return err
	}
	c.touched = []Change{{Dir: d.Name, SetID: s.ID, Gone: true}}
	return nil
}

// removeMembers marks a set as one to be removed, then removes its volumes. All of them are
// tried.
func (h *Host) removeMembers(ctx context.Context, s *Set) error {
	fault.Point("control.remove.mark")
	if err := h.markRemoving(ctx, s); err != nil {
		// Nothing is lost yet: a set that cannot be marked is not touched.
		return fmt.Errorf("snapshot %s is left as it is: %w", s.Name, err)
	}
	var errs []error
	removed := 0
	for _, k := range slices.Backward(s.Disks) {
		fault.Point("control.remove.disk")
		st, err := h.snapshotterOf(k.Volume)
		if err == nil {
			err = st.Remove(ctx, k)
		}
		if err == nil {
			removed++
		}
		if errors.Is(err, backend.ErrBusy) && removed == 0 && h.unmark(ctx, s) {
			return fmt.Errorf("snapshot %s is left as it is: disk %s: %w", s.Name, k.Disk.VDev, err)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", k.Disk.VDev, err))
		}
	}
	fault.Point("control.remove.removed")
	if len(errs) > 0 {
		return fmt.Errorf("snapshot %s is removed in part only; remove it again to go on: %w", s.Name, errors.Join(errs...))
	}
	return nil
}

// markRemoving marks all members that are there and are not marked yet, or, with the reason, none.
func (h *Host) markRemoving(ctx context.Context, s *Set) error {
	if s.Foreign {
		return nil
	}
	mark := func(m *backend.SnapshotMeta) { m.State = backend.SnapshotRemoving }
	members := slices.DeleteFunc(slices.Clone(s.Disks), func(k backend.Snapshot) bool { return k.State == backend.SnapshotRemoving })
	err := h.annotateMembers(ctx, s.Name, members, mark)
	if !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	// One has gone meanwhile; the others are marked all the same.
	for i, k := range members {
		err := h.annotateMembers(ctx, s.Name, []backend.Snapshot{k}, mark)
		if err != nil && !errors.Is(err, backend.ErrNotExist) {
			h.annotateAsFarAsItGoes(ctx, s.Name, "a snapshot that stays is marked as one to be removed", unmarked(members[:i]))
			return err
		}
	}
	return nil
}

// unmark takes back that a set is to be removed, of which nothing was: somebody outside has a disk of it open,
// and is to go on reading. One that was marked before, as by a removal that was cut off, stays so.
func (h *Host) unmark(ctx context.Context, s *Set) bool {
	if s.Foreign || s.has(backend.SnapshotRemoving) || s.has(backend.SnapshotPending) {
		return s.Foreign
	}
	return h.annotateEach(ctx, unmarked(s.Disks)) == nil
}

// unmarked are the members that were marked as to be removed, with the metas that they had before.
func unmarked(members []backend.Snapshot) (all []backend.Annotation) {
	for _, k := range members {
		marked := k
		marked.State = backend.SnapshotRemoving
		all = append(all, marked.With(k.SnapshotMeta))
	}
	return all
}

// Rename renames a snapshot set within its domain: ErrExist, it never replaces another.
func (h *Host) Rename(ctx context.Context, dir, oldName, newName string) error {
	c := &change{op: "rename", domain: dir, snapshot: oldName, message: newName}
	check := func() error { return checkName(newName) }
	return h.do(ctx, c, check, func(ctx context.Context, inv *Inventory) error {
		d, s, err := c.findSet(inv, dir, oldName)
		if err != nil {
			return err
		}
		if s.Foreign {
			return s.foreignFixed(d)
		}
		if oldName == newName {
			c.quiet = true
			return nil
		}
		if d.Set(newName) != nil {
			return fmt.Errorf("%s has a snapshot %s already: %w", d.Name, newName, backend.ErrExist)
		}
		if err := s.changeable(d); err != nil {
			return err
		}
		fault.Point("control.rename")
		c.touched = append(c.touched, Change{Dir: d.Name, SetID: s.ID})
		c.extra = []zap.Field{zap.String("to", newName)}
		return h.annotate(ctx, s, func(m *backend.SnapshotMeta) { m.Name = newName })
	})
}

// changeable says why a set's record cannot be changed.
func (s *Set) changeable(d *SnapshotDir) error {
	if s.Foreign {
		return s.foreignFixed(d)
	}
	if s.State == backend.SnapshotRemoving {
		return fmt.Errorf("snapshot %s of %s is being removed: %w", s.Name, d.Name, backend.ErrBusy)
	}
	return nil
}

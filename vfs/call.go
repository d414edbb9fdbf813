package vfs

import (
	"context"
	"errors"
	"slices"
	"time"

	"domfs/backend"
	"domfs/control"
)

// errWouldWait stands for a value that cannot be had without waiting (a snapshot that is still
// being copied), where the caller only wants attributes.
var errWouldWait = errors.New("would wait for the snapshot to be copied")

// call is one request of the kernel: its context, and the inventory that it sees.
type call struct {
	fs     *fileSystem
	ctx    context.Context
	noWait bool // attributes only: errWouldWait instead of waiting for a copy
	inv    *control.Inventory
}

// requestContext is a context that ends when the kernel interrupts the request.
type requestContext struct {
	context.Context
	cancel <-chan struct{}
}

func (r requestContext) Done() <-chan struct{} { return r.cancel }

func (r requestContext) Err() error {
	select {
	case <-r.cancel:
		return context.Canceled
	default:
		return nil
	}
}

func (f *fileSystem) newCall(cancel <-chan struct{}) *call {
	return &call{fs: f, ctx: requestContext{context.Background(), cancel}}
}

func (c *call) inventory() (*control.Inventory, error) {
	if c.inv == nil {
		inv, err := c.fs.host.Inventory(c.ctx)
		if err != nil {
			return nil, err
		}
		c.inv = inv
	}
	return c.inv, nil
}

func (c *call) domain(at place) (*control.Domain, error) {
	inv, err := c.inventory()
	if err != nil {
		return nil, err
	}
	if d := inv.Domain(at.domain); d != nil {
		return d, nil
	}
	return nil, gone("domain", at.domain)
}

func (c *call) snapshotDir(at place) (*control.SnapshotDir, error) {
	inv, err := c.inventory()
	if err != nil {
		return nil, err
	}
	if d := inv.SnapshotDir(at.dir); d != nil {
		return d, nil
	}
	return nil, gone("domain", at.dir)
}

func (c *call) set(at place) (*control.Set, error) {
	dir, err := c.snapshotDir(at)
	if err != nil {
		return nil, err
	}
	for _, s := range dir.Sets {
		if s.ID == at.setID {
			return s, nil
		}
	}
	return nil, gone("snapshot", at.setID)
}

// snapshot is the snapshot of the disk that a place is on, with its set.
func (c *call) snapshot(at place) (*control.Set, *backend.Snapshot, error) {
	s, err := c.set(at)
	if err != nil {
		return nil, nil, err
	}
	k := s.Disk(at.vdev)
	if k == nil {
		return nil, nil, gone("disk", at.vdev)
	}
	return s, k, nil
}

// isLost tells whether a place is in a snapshot that is invalid; for what lies over all disks, whether one of them is.
func (c *call) isLost(at place) bool {
	if at.setID == "" {
		return false
	}
	if at.vdev == "" {
		s, err := c.set(at)
		return err == nil && slices.ContainsFunc(s.Disks, func(k backend.Snapshot) bool { return k.State == backend.SnapshotInvalid })
	}
	_, k, err := c.snapshot(at)
	return err == nil && k.State == backend.SnapshotInvalid
}

// disk is the disk that a place is on or in, and the volume behind it: a live one, or a
// snapshot's.
func (c *call) disk(at place) (backend.Disk, backend.Volume, error) {
	if at.setID != "" {
		s, err := c.set(at)
		if err != nil {
			return backend.Disk{}, backend.Volume{}, err
		}
		d := s.Disk(at.vdev)
		if d == nil {
			return backend.Disk{}, backend.Volume{}, gone("disk", at.vdev)
		}
		return d.Disk, d.Volume, nil
	}
	dom, err := c.domain(at)
	if err != nil {
		return backend.Disk{}, backend.Volume{}, err
	}
	i := dom.Disk(at.vdev)
	if i < 0 {
		return c.newDisk(at)
	}
	return dom.Disks[i], dom.Volumes[i], nil
}

// noMedium tells whether a place is on a disk that has no bytes, all of whose values are empty: an empty CD-ROM drive, or a
// new disk that waits for its size.
func (c *call) noMedium(at place) (bool, error) {
	if at.setID != "" || at.vdev == "" {
		return false, nil
	}
	d, v, err := c.disk(at)
	return err == nil && (control.NoMedium(d, v) || c.isNewDisk(at)), err
}

func (at place) ref() control.VolumeRef {
	return control.VolumeRef{Domain: at.domain, SetID: at.setID, VDev: at.vdev, Path: at.path}
}

// volume opens the volume of a place; the caller releases it.
func (c *call) volume(at place) (*control.Volume, error) {
	if err := c.mayOpen(at); err != nil {
		return nil, err
	}
	if c.isNewDisk(at) {
		return nil, errNoSize(at)
	}
	return c.fs.host.Volume(c.ctx, at.ref())
}

// mayOpen says why the disks at a place are not to be opened now, if they are not.
func (c *call) mayOpen(at place) error {
	if at.setID == "" {
		return nil
	}
	s, err := c.set(at)
	if err != nil {
		return err
	}
	if c.noWait && s.State == backend.SnapshotFilling {
		return errWouldWait
	}
	if c.fs.draining(at.setID) {
		return gone("snapshot", s.Name)
	}
	return nil
}

// sizeBytes is the size of a place's volume, for a whole disk without opening it.
func (c *call) sizeBytes(at place) (int64, error) {
	if at.path == "" {
		_, v, err := c.disk(at)
		if err != nil {
			return 0, err
		}
		if v.Err == nil {
			return v.SizeBytes, nil
		}
		// Opening it says why, in the one sentence that every file of the disk gives.
	}
	v, err := c.volume(at)
	if err != nil {
		return 0, err
	}
	defer v.Release()
	return v.Device().Size(), nil
}

// owner is the domain to whose last_error a failure at a place goes.
func (c *call) owner(at place) string {
	if at.domain != "" {
		return at.domain
	}
	return at.dir
}

func (c *call) pool(at place) (control.Pool, error) {
	inv, err := c.inventory()
	if err != nil {
		return control.Pool{}, err
	}
	for _, p := range inv.Pools {
		if p.Name == at.pool {
			return p, nil
		}
	}
	return control.Pool{}, gone("store", at.pool)
}

// changed is when what a node shows last changed: for a snapshot the instant it was made, so
// that two walks over it look the same.
func (c *call) changed(n *node) time.Time {
	if n.at.setID != "" {
		if s, err := c.set(n.at); err == nil {
			return s.Created
		}
	}
	if n.e.raw && n.at.vdev == "" {
		if d, err := c.domain(n.at); err == nil {
			return c.lastWrite(d)
		}
	}
	if n.e.raw {
		if _, v, err := c.disk(n.at); err == nil {
			if !v.ModTime.IsZero() {
				return v.ModTime
			}
			if d, err := c.domain(n.at); err == nil && d.State != backend.StateOff {
				return time.Now() // whatever the guest writes: never twice the same
			}
		}
	}
	return c.fs.started
}

// lastWrite is when one of a domain's disks was written to last.
func (c *call) lastWrite(d *control.Domain) time.Time {
	var last time.Time
	for i := range d.Volumes {
		if t := d.Volumes[i].ModTime; t.After(last) {
			last = t
		}
	}
	if last.IsZero() {
		return c.fs.started
	}
	return last
}

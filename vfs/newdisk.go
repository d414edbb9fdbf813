package vfs

import (
	"fmt"

	"domfs/backend"
	"domfs/control"
)

// A disk that mkdir has begun is shown among a domain's disks until its size is written: its values are empty, but for
// `source`, which says where it is to lie, and what it is going to be.

// newDisks are the names of those that a domain does not have yet.
func newDisks(c *call, d *control.Domain) []string {
	var names []string
	for _, n := range c.fs.host.NewDisks(d.Name) {
		if d.Disk(n.VDev) < 0 {
			names = append(names, n.VDev)
		}
	}
	return names
}

// newDisk is one of them, as a disk.
func (c *call) newDisk(at place) (backend.Disk, backend.Volume, error) {
	n, ok := c.fs.host.FindNewDisk(at.domain, at.vdev)
	if !ok {
		return backend.Disk{}, backend.Volume{}, gone("disk", at.vdev)
	}
	return backend.Disk{VDev: n.VDev, Format: backend.FormatRaw, Source: n.Source, Mode: backend.ReadWrite}, backend.Volume{Err: errNoSize(at)}, nil
}

// isNewDisk tells whether a place is on one of them.
func (c *call) isNewDisk(at place) bool {
	if at.domain == "" || at.setID != "" || at.vdev == "" {
		return false
	}
	dom, err := c.domain(at)
	if err != nil || dom.Disk(at.vdev) >= 0 {
		return false
	}
	_, ok := c.fs.host.FindNewDisk(at.domain, at.vdev)
	return ok
}

func errNoSize(at place) error {
	return fmt.Errorf("%s of %s has no bytes yet: write its size: %w", at.vdev, at.domain, backend.ErrNoDevice)
}

func beginDisk(c *call, at place, name string) error {
	return c.fs.host.BeginDisk(c.ctx, at.domain, name)
}

func detachDisk(c *call, at place, name string) error {
	return c.fs.host.Detach(c.ctx, at.domain, name)
}

func writeSource(c *call, at place, value string) error {
	return c.fs.host.SetSource(c.ctx, at.domain, at.vdev, value)
}

// sourceFixed says why a disk's source is not to be written: but for new ones, always.
func sourceFixed(c *call, at place) error {
	if c.isNewDisk(at) {
		return nil
	}
	return control.SourceFixed(at.domain, at.vdev)
}

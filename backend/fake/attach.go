package fake

import (
	"context"
	"fmt"
	"slices"

	"domfs/backend"
)

// hvAttacher is a hypervisor that lets disks come and go.
type hvAttacher struct{ host *Hypervisor }

func (a hvAttacher) Attach(ctx context.Context, d backend.Domain, k backend.Disk) error {
	h := a.host
	after, err := h.enter(ctx, "Attach", d.Name)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	dom := h.findLocked(d.Name)
	switch {
	case dom == nil || dom.ID != d.ID || dom.State == backend.StateOff:
		return fmt.Errorf("%s does not run: %w", d.Name, backend.ErrNotExist)
	case slices.ContainsFunc(dom.Disks, func(o backend.Disk) bool { return o.VDev == k.VDev }):
		return fmt.Errorf("%s has a disk %s: %w", d.Name, k.VDev, backend.ErrExist)
	}
	if after != nil {
		return after // it was taken back
	}
	dom.Disks = append(dom.Disks, k)
	return nil
}

func (a hvAttacher) Detach(ctx context.Context, d backend.Domain, vdev string) error {
	h := a.host
	after, err := h.enter(ctx, "Detach", d.Name)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	dom := h.findLocked(d.Name)
	if dom == nil || dom.ID != d.ID {
		return fmt.Errorf("%s does not run: %w", d.Name, backend.ErrNotExist)
	}
	dom.Disks = slices.DeleteFunc(dom.Disks, func(o backend.Disk) bool { return o.VDev == vdev })
	return after
}

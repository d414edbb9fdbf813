package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// Resize grows a live disk: value is a size or +size, as ParseSize reads it. What a target
// is relative to is read with the host's lock held, once. A target that the store rounds to
// the present size is reached already. All that can be refused is refused before anything
// grows.
func (h *Host) Resize(ctx context.Context, domain, vdev, value string) error {
	c := &change{op: "resize", domain: domain, disk: vdev, message: value}
	var delta bool
	var size int64
	check := func() (err error) {
		delta, size, err = ParseSize(value)
		return err
	}
	return h.do(ctx, c, check, func(ctx context.Context, inv *Inventory) error {
		d := inv.Domain(domain)
		if d == nil {
			return fmt.Errorf("there is no domain %s: %w", domain, backend.ErrNotExist)
		}
		i := d.Disk(vdev)
		if i < 0 {
			return fmt.Errorf("%s has no disk %s: %w", domain, vdev, backend.ErrNotExist)
		}
		g := growth{h: h, c: c, domain: d, disk: d.Disks[i], volume: d.Volumes[i]}
		if err := g.aim(ctx, delta, size); err != nil || c.quiet {
			return err
		}
		if err := g.refusal(ctx, inv); err != nil {
			return err
		}
		return g.grow(ctx)
	})
}

// NeverGrows says why a disk is not to be resized whatever state it is in (ErrReadOnly), nil if it is.
func NeverGrows(domain string, d backend.Disk) error {
	switch {
	case d.CDROM:
		return fmt.Errorf("%s of %s is a CD-ROM drive: %w", d.VDev, domain, backend.ErrReadOnly)
	case d.Mode == backend.ReadOnly:
		return fmt.Errorf("%s of %s is configured read-only: %w", d.VDev, domain, backend.ErrReadOnly)
	}
	return nil
}

// growth is one disk that is to grow.
type growth struct {
	h       *Host
	c       *change
	domain  *Domain
	disk    backend.Disk
	volume  backend.Volume
	resizer backend.Resizer
	target  int64 // bytes
}

// aim finds the target, in bytes. Where it is reached already, the change is quiet.
func (g *growth) aim(ctx context.Context, delta bool, size int64) error {
	name := g.disk.VDev + " of " + g.domain.Name
	switch {
	case g.domain.Stale != nil:
		return fmt.Errorf("the state of %s is not known now: %w", g.domain.Name, g.domain.Stale)
	case NeverGrows(g.domain.Name, g.disk) != nil:
		return NeverGrows(g.domain.Name, g.disk)
	case g.volume.Err != nil:
		return fmt.Errorf("%s: %w", name, g.volume.Err)
	}
	var ok bool
	if g.resizer, ok = g.h.stores[g.volume.Store].(backend.Resizer); !ok {
		if err := g.h.excluded(ctx, g.disk); err != nil {
			return fmt.Errorf("%s (%s) cannot grow: %w", name, g.disk.Source, err)
		}
		return fmt.Errorf("%s (%s) cannot grow: its store %s does not resize: %w", name, g.disk.Source, g.volume.Store, backend.ErrUnsupported)
	}
	now := g.volume.SizeBytes
	g.target = size
	if delta {
		if size > math.MaxInt64-now {
			return fmt.Errorf("%d bytes more than the %d that %s has are more than any volume can have: %w", size, now, name, backend.ErrInvalid)
		}
		g.target = now + size
	}
	rounded := g.resizer.RoundSize(g.volume, g.target)
	switch {
	case g.target == now || rounded == now:
		g.c.quiet = true
	case g.target < now:
		return fmt.Errorf("%s has %d bytes, and is not made smaller, to %d: that would cut off what the guest has there: %w", name, now, g.target, backend.ErrPermission)
	}
	return nil
}

// refusal says why the disk must not grow now.
func (g *growth) refusal(ctx context.Context, inv *Inventory) error {
	for _, dir := range inv.Snapshots {
		for _, s := range dir.Sets {
			if s.State != backend.SnapshotFilling {
				continue
			}
			for _, k := range s.Disks {
				if k.Volume.Store == g.volume.Store && k.Origin == g.volume.ID && k.State == backend.SnapshotFilling {
					return fmt.Errorf("snapshot %s of %s is still being copied from %s: wait until its state is active: %w", s.Name, dir.Name, g.disk.VDev, backend.ErrBusy)
				}
			}
		}
	}
	if !g.domain.isRunning() {
		return nil
	}
	n, ok := g.domain.hypervisor.(backend.SizeNotifier)
	if !ok || g.domain.reported == backend.StateOff {
		why := g.domain.hypervisor.Name() + " cannot tell it of a new size"
		if g.domain.Holder != "" {
			why = "in use by " + g.domain.Holder + ", and " + why
		}
		return fmt.Errorf("%s is %s (%s): shut %s down first: %w", g.domain.Name, g.domain.State, why, g.domain.Name, backend.ErrUnsupported)
	}
	if err := n.CanNotify(ctx, g.domain.Domain, g.disk.VDev); err != nil {
		return fmt.Errorf("%s is %s and would not see a new size of %s: %w", g.domain.Name, g.domain.State, g.disk.VDev, err)
	}
	return nil
}

func (g *growth) grow(ctx context.Context) error {
	fault.Point("control.resize.grow")
	size, err := g.resizer.Resize(ctx, g.volume, g.target)
	if err != nil {
		return fmt.Errorf("disk %s: %w", g.disk.VDev, err)
	}
	fault.Point("control.resize.grown")
	g.c.touched = append(g.c.touched, Change{Domain: g.domain.Name})
	g.h.volumes.closeLive(g.domain.Name, g.disk.VDev)
	g.c.message = strconv.FormatInt(size, 10)
	g.c.extra = []zap.Field{zap.Int64("from", g.volume.SizeBytes), zap.Int64("to", size)}
	if !g.domain.isRunning() {
		return nil
	}
	n := g.domain.hypervisor.(backend.SizeNotifier)
	if err := n.NotifySize(ctx, g.domain.Domain, g.disk.VDev, size); err != nil && !errors.Is(err, backend.ErrNotExist) {
		return fmt.Errorf("%s has %d bytes now, but %s could not be told and sees it when it starts next: %w", g.disk.VDev, size, g.domain.Name, err)
	}
	return nil
}

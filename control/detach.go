package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// Detach takes a disk from a domain that runs. ErrBusy where the guest uses it, or may use it (see inuse.go). Its volume is kept but
// where Options.RemoveVolumes says that it goes: then what speaks against that is found first, and ErrBusy. A disk that only
// BeginDisk began is forgotten; one that is being made is given up.
func (h *Host) Detach(ctx context.Context, domain, vdev string) error {
	there, err := h.newDisks.drop(ctx, domain, vdev)
	if err != nil {
		return h.Failed(domain, "detach", err)
	}
	c := &change{op: "detach", domain: domain, disk: vdev}
	return h.do(ctx, c, nil, func(ctx context.Context, inv *Inventory) error {
		d := inv.Domain(domain)
		if there && (d == nil || d.Disk(vdev) < 0) {
			c.quiet = true
			return nil
		}
		r := &removal{h: h, c: c, vdev: vdev}
		if err := r.find(inv); err != nil {
			return err
		}
		if err := r.refusal(ctx, inv); err != nil {
			return err
		}
		return r.detach(ctx)
	})
}

// removal is one disk that is to go.
type removal struct {
	h    *Host
	c    *change
	vdev string

	domain   *Domain
	disk     backend.Disk
	volume   backend.Volume
	attacher backend.Attacher
	creator  backend.Creator // nil where the volume is kept
}

// find finds the disk, and says why it is none that can be detached.
func (r *removal) find(inv *Inventory) (err error) {
	d := inv.Domain(r.c.domain)
	if d == nil {
		return fmt.Errorf("there is no domain %s: %w", r.c.domain, backend.ErrNotExist)
	}
	i := d.Disk(r.vdev)
	if i < 0 {
		return fmt.Errorf("%s has no disk %s: %w", d.Name, r.vdev, backend.ErrNotExist)
	}
	r.domain, r.disk, r.volume = d, d.Disks[i], d.Volumes[i]
	if r.attacher, err = d.attacher(); err != nil {
		return err
	}
	if r.disk.CDROM {
		return fmt.Errorf("%s of %s is a CD-ROM drive: xl cd-eject takes its medium: %w", r.vdev, d.Name, backend.ErrUnsupported)
	}
	return nil
}

// refusal says why the disk must not go.
func (r *removal) refusal(ctx context.Context, inv *Inventory) error {
	if r.h.o.RemoveVolumes {
		if err := r.volumeRefusal(ctx, inv); err != nil {
			return fmt.Errorf("%s of %s stays: its volume is to go with it (--remove-volumes), and %w", r.vdev, r.domain.Name, err)
		}
	}
	began := time.Now()
	if r.volume.Err != nil {
		return r.stays(usage{backend.UseUnknown, "whether it is in use cannot be told: " + r.volume.Err.Error()})
	}
	u, err := r.h.look(ctx, r.disk, r.volume)
	if err != nil {
		u = usage{backend.UseUnknown, "whether it is in use cannot be told: " + err.Error()}
	}
	if u.use != backend.Unused {
		return r.stays(u)
	}
	if rest := r.h.lim.observe - time.Since(began); rest > 0 {
		time.Sleep(rest)
	}
	before := r.volume
	if inv, err = r.h.fresh(ctx); err != nil {
		return err
	}
	if err := r.find(inv); err != nil {
		return err
	}
	if v := r.volume; v.Store != before.Store || v.ID != before.ID || v.Generation != before.Generation || v.Err != nil {
		return r.stays(usage{backend.InUse, "it was written to meanwhile, or this host does not count what is written (queue/iostats)"})
	}
	return nil
}

// stays is the error of a disk that is used, or may be.
func (r *removal) stays(u usage) error {
	name := r.vdev + " of " + r.domain.Name
	if u.use == backend.InUse {
		return backend.Because(backend.ErrBusy, "%s stays: %s: have the guest let go of it first", name, u.why)
	}
	return backend.Because(backend.ErrBusy, "%s stays: %s: have the guest overwrite it with zeroes if nobody needs it (blkdiscard -z), or, if you know that nothing uses it, take it away by hand (xl block-detach %s %s)",
		name, u.why, r.domain.Name, r.vdev)
}

// volumeRefusal says why the volume must not be removed: for everything that is known before.
func (r *removal) volumeRefusal(ctx context.Context, inv *Inventory) error {
	v := r.volume
	cr, ok := r.h.stores[v.Store].(backend.Creator)
	if !ok {
		return nil // its store removes none: it is kept
	}
	if err := inv.failed[v.Store]; err != nil {
		return fmt.Errorf("whether it has snapshots cannot be told: %w", err)
	}
	for _, dir := range inv.Snapshots {
		for _, s := range dir.Sets {
			for _, k := range s.Disks {
				if k.Volume.Store == v.Store && (k.Origin == v.ID || k.Volume.ID == v.ID) {
					return fmt.Errorf("it has, or is in, the snapshot %s of %s: remove that first: %w", s.Name, dir.Name, backend.ErrBusy)
				}
			}
		}
	}
	users, err := r.h.othersOf(ctx, inv, r.domain, r.disk, v)
	if err != nil {
		return err
	}
	if users != "" {
		return fmt.Errorf("it is disk %s, too: %w", users, backend.ErrBusy)
	}
	r.creator = cr
	return nil
}

// othersOf names a disk beside k of d that is on the volume v: of any domain, of what the configuration of a running one says, too,
// whatever path it has there. What cannot be told is an error.
func (h *Host) othersOf(ctx context.Context, inv *Inventory, d *Domain, k backend.Disk, v backend.Volume) (string, error) {
	same := func(at diskAt) bool {
		w := at.domain.Volumes[at.disk]
		return w.Store == v.Store && w.ID == v.ID || at.domain.Disks[at.disk].Source == k.Source
	}
	for _, o := range inv.Domains {
		for i, l := range o.Disks {
			if same(diskAt{o, i}) && (o != d || l.VDev != k.VDev) {
				return l.VDev + " of " + o.Name, nil
			}
		}
	}
	for _, hv := range h.o.Hypervisors {
		ds, err := ask(ctx, h, "hypervisor "+hv.Name(), "domains", hv.Domains)
		if err != nil {
			return "", fmt.Errorf("whether another domain has it cannot be told: %w", err)
		}
		disks, err := h.volumesOf(ctx, wrapDomains(hv, ds))
		if err != nil {
			return "", err
		}
		for _, at := range disks {
			o, l := at.domain, at.domain.Disks[at.disk]
			if same(at) && (hv != d.hypervisor || o.Name != d.Name || l.VDev != k.VDev) {
				return l.VDev + " of " + o.Name + " (" + hv.Name() + ")", nil
			}
		}
	}
	return "", nil
}

// volumesOf has the stores say what the disks of domains are on, those that the inventory does not show among them.
func (h *Host) volumesOf(ctx context.Context, ds []*Domain) (all []diskAt, err error) {
	for _, o := range ds {
		if o.Err != nil && !errors.Is(o.Err, backend.ErrExist) { // one of two equal names has its disks all the same
			return nil, backend.Because(backend.ErrBusy, "whether it is a disk of %s, too, cannot be told: %v", o.Name, o.Err)
		}
		o.Volumes = make([]backend.Volume, len(o.Disks))
		for i, k := range o.Disks {
			if k.Source != "" {
				all = append(all, diskAt{o, i})
			}
		}
	}
	open, failed := all, map[diskAt]error{}
	for _, s := range h.o.Stores {
		open = h.claim(ctx, s, open, failed)
	}
	for _, at := range open {
		if err := failed[at]; err != nil {
			return nil, backend.Because(backend.ErrBusy, "what %s of %s is cannot be told: %v", at.domain.Disks[at.disk].VDev, at.domain.Name, err)
		}
	}
	return all, nil
}

func (r *removal) detach(ctx context.Context) error {
	h := r.h
	fault.Point("control.detach.detach")
	if err := r.attacher.Detach(ctx, r.domain.Domain, r.vdev); err != nil {
		return fmt.Errorf("%s cannot be detached from %s: %w", r.vdev, r.domain.Name, err)
	}
	fault.Point("control.detach.detached")
	r.c.touched = append(r.c.touched, Change{Domain: r.domain.Name})
	r.c.message = r.disk.Source
	r.c.extra = []zap.Field{zap.String("volume", r.volume.ID), zap.Bool("removed", r.creator != nil)}
	h.volumes.closeLive(r.domain.Name, r.vdev)
	if r.creator == nil {
		return nil
	}
	if err := r.creator.Delete(ctx, r.volume); err != nil {
		return fmt.Errorf("%s is detached from %s, but its volume %s is kept: %w", r.vdev, r.domain.Name, r.volume.ID, err)
	}
	fault.Point("control.detach.removed")
	return nil
}

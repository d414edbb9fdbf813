package control

import (
	"context"
	"fmt"
	"time"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// Attach makes the volume of a disk that BeginDisk began, of a size as ParseSize reads it (with + before it or not), and gives it to
// the domain, which runs: all of that or, with the reason as the error, nothing. Of what may hold other guests' old data all is
// overwritten with zeroes first, which takes its time; the host's lock is not held meanwhile, and Detach ends it.
func (h *Host) Attach(ctx context.Context, domain, vdev, value string) error {
	c := &change{h: h, op: "attach", domain: domain, disk: vdev, began: h.now()}
	end, err := h.begin() // from its beginning to its end: Close waits for what is undone, too
	if err == nil {
		defer end()
		err = h.attach(ctx, c, value)
	}
	return c.finish(err)
}

func (h *Host) attach(ctx context.Context, c *change, value string) error {
	_, size, err := ParseSize(value)
	switch {
	case err != nil:
		return err
	case size == 0:
		return fmt.Errorf("%s of %s cannot have no bytes: %w", c.disk, c.domain, backend.ErrInvalid)
	}
	making, source, end, err := h.newDisks.start(c.domain, c.disk)
	if err != nil {
		return err
	}
	a := &attachment{h: h, c: c, source: source, size: size}
	defer func() { end(a.attached) }()
	return a.run(ctx, making)
}

// attachment is one new disk on its way.
type attachment struct {
	h      *Host
	c      *change
	source string // the Pool, by its name; "" beside the first disk
	size   int64

	domain   *Domain
	creator  backend.Creator
	volume   backend.NewVolume
	locked   bool // the host's lock was had, for what was tried last
	attached bool
}

// run makes the volume with the host's lock, clears it without, and attaches it with the lock again.
func (a *attachment) run(ctx, making context.Context) error {
	h := a.h
	if err := h.underLock(ctx, a.c, nil, a.create); err != nil {
		return err
	}
	fault.Point("control.attach.created")
	err := a.clear(making)
	// A change of others' that takes long is no reason to clear it all again.
	const tries = 10
	for i := 0; err == nil && !a.attached; i++ {
		a.locked = false
		err = h.underLock(ctx, a.c, nil, a.attach)
		if err != nil && !a.locked && i < tries && making.Err() == nil {
			err = nil
		}
	}
	if a.attached {
		return err
	}
	return a.undo(err)
}

// create makes the volume. The host's lock is held.
func (a *attachment) create(ctx context.Context, inv *Inventory) error {
	if err := a.find(inv); err != nil {
		return err
	}
	pool, err := a.pool(inv)
	if err != nil {
		return err
	}
	fault.Point("control.attach.create")
	a.volume, err = a.creator.Create(ctx, backend.VolumeRequest{Pool: pool, Name: a.c.domain + "-" + a.c.disk, SizeBytes: a.size})
	return err
}

// find finds the domain, which is to be the same each time.
func (a *attachment) find(inv *Inventory) error {
	d := inv.Domain(a.c.domain)
	switch {
	case d == nil:
		return fmt.Errorf("there is no domain %s: %w", a.c.domain, backend.ErrNotExist)
	case a.domain != nil && (d.UUID != a.domain.UUID || d.ID != a.domain.ID):
		return fmt.Errorf("%s was started anew meanwhile: begin its disk %s again: %w", d.Name, a.c.disk, backend.ErrStale)
	case d.Disk(a.c.disk) >= 0:
		return errHasDisk(d, a.c.disk)
	}
	if _, err := d.attacher(); err != nil {
		return err
	}
	a.domain = d
	return nil
}

// pool is where the volume is to lie, by its store's name for it.
func (a *attachment) pool(inv *Inventory) (key string, err error) {
	var p *Pool
	if a.source != "" {
		if a.creator, p, err = a.h.creatorOf(inv, a.source); err != nil {
			return "", err
		}
		return p.Key, nil
	}
	const ask = "write the name of a directory in stores/ to its source first"
	for i, k := range a.domain.Disks {
		if k.CDROM {
			continue
		}
		v := a.domain.Volumes[i]
		var ok bool
		if a.creator, ok = a.h.stores[v.Store].(backend.Creator); !ok || v.Pool == "" {
			return "", fmt.Errorf("the first disk of %s, %s, lies in %s, beside which no volumes are made: %s: %w", a.domain.Name, k.VDev, k.Source, ask, backend.ErrUnsupported)
		}
		return v.Pool, nil
	}
	return "", fmt.Errorf("%s has no disk beside which a new one could lie: %s: %w", a.domain.Name, ask, backend.ErrUnsupported)
}

// clearProgress is how often the log tells how far it is.
const clearProgress = 10 * time.Second

// clear overwrites what other guests left there.
func (a *attachment) clear(making context.Context) error {
	slots := a.h.newDisks.slots
	select {
	case slots <- struct{}{}:
	case <-making.Done():
		return a.givenUp()
	}
	defer func() { <-slots }()
	last := time.Now()
	err := a.volume.Clear(making, func(done, total int64) {
		if time.Since(last) < clearProgress {
			return
		}
		last = time.Now()
		a.h.log.Info("clearing a new volume", zap.String("op", "attach"), zap.String("domain", a.c.domain), zap.String("disk", a.c.disk),
			zap.String("volume", a.volume.Volume().ID), zap.Int64("done", done), zap.Int64("total", total))
	})
	if err != nil && making.Err() != nil {
		return a.givenUp()
	}
	return err
}

func (a *attachment) givenUp() error {
	if a.h.done.Err() != nil {
		return errClosing
	}
	return fmt.Errorf("the making of %s of %s was given up, as its directory was removed: %w", a.c.disk, a.c.domain, backend.ErrBusy)
}

// attach gives the volume to the domain. The host's lock is held.
func (a *attachment) attach(ctx context.Context, inv *Inventory) error {
	a.locked = true
	if err := a.find(inv); err != nil {
		return err
	}
	hv, err := a.domain.attacher()
	if err != nil {
		return err
	}
	disk := backend.Disk{VDev: a.c.disk, Backend: "phy", Format: backend.FormatRaw, Source: a.volume.Source(), Mode: backend.ReadWrite}
	v := a.volume.Volume()
	a.volume.Close() // not while the guest has it; nobody else repairs now
	fault.Point("control.attach.attach")
	if err := hv.Attach(ctx, a.domain.Domain, disk); err != nil {
		return fmt.Errorf("%s cannot be attached to %s: %w", disk.VDev, a.domain.Name, err)
	}
	fault.Point("control.attach.attached")
	a.attached = true
	a.c.touched = append(a.c.touched, Change{Domain: a.domain.Name})
	a.c.message = disk.Source
	a.c.extra = []zap.Field{zap.String("volume", v.ID), zap.Int64("size", v.SizeBytes)}
	// The guest may use it from now on: it is not taken back.
	if err := a.creator.Keep(ctx, v); err != nil {
		a.h.log.Warn("the volume of a new disk is not marked as kept: the next start of domfs does that", zap.String("op", "attach"),
			zap.String("domain", a.domain.Name), zap.String("disk", disk.VDev), zap.String("volume", v.ID), zap.Error(err))
	}
	a.await(ctx)
	return nil
}

// await waits until the hypervisor tells of the disk: who attached it is to see it.
func (a *attachment) await(ctx context.Context) {
	const poll = 50 * time.Millisecond
	for end := time.Now().Add(a.h.lim.appear); time.Now().Before(end); time.Sleep(poll) {
		inv, err := a.h.fresh(ctx)
		if err != nil {
			return
		}
		if d := inv.Domain(a.domain.Name); d == nil || d.Disk(a.c.disk) >= 0 {
			return
		}
	}
}

// undo removes the volume after what came to err.
func (a *attachment) undo(err error) error {
	h := a.h
	a.volume.Close()
	ctx, cancel := context.WithTimeout(context.Background(), h.lim.undo)
	defer cancel()
	defer h.invalidate()
	release, undoErr := h.lock.acquire(ctx, "undoing the attach of "+a.c.disk+" to "+a.c.domain, h.o.LockTimeout)
	if undoErr == nil {
		defer release()
		undoErr = a.creator.Delete(ctx, a.volume.Volume())
	}
	if undoErr != nil {
		h.log.Warn("the volume of a disk that could not be attached is left over; the next start of domfs removes it",
			zap.String("op", "attach"), zap.String("domain", a.c.domain), zap.String("volume", a.volume.Volume().ID), zap.Error(undoErr))
		return fmt.Errorf("%w; its volume %s is left over (%v)", err, a.volume.Volume().ID, undoErr)
	}
	return err
}

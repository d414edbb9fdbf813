package xen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

var _ backend.SizeNotifier = (*Driver)(nil)

// How long a new size is waited for, and how often it is looked for. The kernel's blkback looks ten times a second.
const (
	sizeLimit = 5 * time.Second
	sizePause = 50 * time.Millisecond
)

// CanNotify is ErrUnsupported but for a block device that the kernel of this domain serves: blkback compares the device's
// size with what it has told the guest each time that it serves requests, and since Linux 3.11 every 100 ms. ErrUnsupported, too, where the
// guest does not use blkback: see emulated.
func (d *Driver) CanNotify(ctx context.Context, dom backend.Domain, vdev string) error {
	k, err := d.device(ctx, dom.ID, vdev)
	if err != nil {
		return err
	}
	if err := d.canNotify(k); err != nil {
		return err
	}
	return d.emulated(ctx, dom.ID, k)
}

// emulated is ErrUnsupported for a disk of a guest that QEMU emulates a machine for, while no driver of Xen's in the guest has connected
// to it: what the guest uses until then, or always, is QEMU's disk.
func (d *Driver) emulated(ctx context.Context, id int, k *device) error {
	kind, err := optional(d.read(ctx, libxlPrefix+strconv.Itoa(id)+"/type"))
	if err != nil || kind != "hvm" {
		return err
	}
	state, err := d.number(ctx, k.back+"/state")
	if err != nil || state == stateConnected {
		return err
	}
	return fmt.Errorf("its guest (HVM) has no Xen driver that uses it, or not yet, and QEMU, which emulates it, keeps the size that it had when it was opened: %w", backend.ErrUnsupported)
}

func (d *Driver) canNotify(k *device) error {
	_, block := uint64(0), false
	if k.server == 0 && k.kind == "phy" {
		_, block = d.stat(k.target)
	}
	switch {
	case k.server != 0:
		return fmt.Errorf("it is served by domain %d, which cannot be asked: %w", k.server, backend.ErrUnsupported)
	case k.kind == "qdisk":
		return fmt.Errorf("it is served by QEMU (qdisk), which keeps the size that the disk had when it was opened: %w", backend.ErrUnsupported)
	case k.kind == "tap":
		return fmt.Errorf("it is served by tapdisk, which keeps the size that the disk had when it was opened: %w", backend.ErrUnsupported)
	case k.kind != "phy":
		return fmt.Errorf("it is served by %.40q, which tells no new sizes: %w", k.kind, backend.ErrUnsupported)
	case !block:
		return fmt.Errorf("%.200q is served through a loop device or a script, which keeps its size: %w", k.target, backend.ErrUnsupported)
	}
	return nil
}

// NotifySize waits until blkback has told the guest, for some seconds at most. There is nothing to be done for it. nil is also for a
// guest that has not connected to the disk (it reads the size when it does), and, which is logged, for a blkback that has not noticed (one
// older than Linux 3.11 does when the guest uses the disk next), and where xenstored is not there to be asked: the disk has grown, and an
// error would have it grown once more.
func (d *Driver) NotifySize(ctx context.Context, dom backend.Domain, vdev string, sizeBytes int64) error {
	ctx, cancel := context.WithTimeout(ctx, sizeLimit)
	defer cancel()
	for {
		told, err := d.knows(ctx, dom, vdev, sizeBytes)
		if err == nil && told {
			return nil
		}
		if err != nil && !isSilence(err) && ctx.Err() == nil {
			return err
		}
		select {
		case <-time.After(sizePause):
			continue
		case <-ctx.Done():
		}
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return ctx.Err()
		}
		d.log.Warn("a domain has not been told of a disk's new size yet; it is when it uses the disk next",
			zap.String("domain", dom.Name), zap.String("disk", vdev), zap.Int64("size", sizeBytes), zap.Duration("waited", sizeLimit), zap.Error(err))
		return nil
	}
}

// knows tells whether a domain knows the size of a disk: ErrUnsupported where it never will.
func (d *Driver) knows(ctx context.Context, dom backend.Domain, vdev string, sizeBytes int64) (bool, error) {
	k, err := d.device(ctx, dom.ID, vdev)
	if err == nil {
		err = d.canNotify(k)
	}
	if err != nil {
		return false, err
	}
	return d.told(ctx, k, sizeBytes)
}

// told tells whether the guest knows the size, or will when it connects.
func (d *Driver) told(ctx context.Context, k *device, sizeBytes int64) (bool, error) {
	state, err := d.number(ctx, k.back+"/state")
	if err != nil || state != stateConnected {
		return err == nil, err
	}
	sectors, err := d.number(ctx, k.back+"/sectors")
	if err != nil {
		return false, err
	}
	return sectors > math.MaxInt64/sectorBytes || sectors*sectorBytes >= sizeBytes, nil
}

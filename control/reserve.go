package control

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// AutoExtend says when the guard extends the reserve of a snapshot, and by how much.
type AutoExtend struct {
	ThresholdPercent int // of the reserve that is used; 0: never
	StepPercent      int // of the reserve, that is added
}

// ParseAutoExtend reads THRESHOLD:STEP in percent, such as 70:20, or "none": ErrInvalid otherwise. A threshold is from 1 to
// 99, a step from 1 to 1000.
func ParseAutoExtend(text string) (AutoExtend, error) {
	if text == "none" {
		return AutoExtend{}, nil
	}
	const maxStep = 1000
	threshold, step, ok := strings.Cut(text, ":")
	a, okA := percent(threshold, 99)
	b, okB := percent(step, maxStep)
	if !ok || !okA || !okB {
		return AutoExtend{}, backend.Because(backend.ErrInvalid,
			"%q is not THRESHOLD:STEP in percent, such as 70:20 (at 70 %% of a snapshot's reserve add 20 %% to it), nor none", oneLine(text[:min(len(text), maxSizeText)]))
	}
	return AutoExtend{ThresholdPercent: a, StepPercent: b}, nil
}

// percent reads a whole number from 1 to most, with or without a percent sign.
func percent(text string, most int) (int, bool) {
	digits := strings.TrimSuffix(text, "%")
	if !isDigits(digits) || len(digits) > 4 {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 1 && n <= most
}

// HasReserve tells whether a snapshot has bounded space for copies on write, and may so be extended or
// become invalid.
func HasReserve(k *backend.Snapshot) bool { return k.ReserveBytes > 0 }

// ExtendReserve grows the space for copies on write of one disk's snapshot: value is a size or +size, as
// ParseSize reads it, by the rules of Resize. More than the snapshot can ever use becomes that. Those of others'
// making can be extended, too; one that is invalid cannot (ErrIO): it is lost.
func (h *Host) ExtendReserve(ctx context.Context, dir, name, vdev, value string) error {
	c := &change{op: "extend", domain: dir, snapshot: name, disk: vdev, message: value}
	var delta bool
	var size int64
	check := func() (err error) {
		delta, size, err = ParseSize(value)
		return err
	}
	return h.do(ctx, c, check, func(ctx context.Context, inv *Inventory) error {
		d, s, err := c.findSet(inv, dir, name)
		if err != nil {
			return err
		}
		k := s.Disk(vdev)
		if k == nil {
			return fmt.Errorf("snapshot %s has no disk %s: %w", s.Name, vdev, backend.ErrNotExist)
		}
		if delta {
			if size > math.MaxInt64-k.ReserveBytes {
				return fmt.Errorf("%d bytes more than the %d that the reserve has are more than any can have: %w", size, k.ReserveBytes, backend.ErrInvalid)
			}
			size += k.ReserveBytes
		}
		return h.extend(ctx, c, d, s, k, size)
	})
}

// extend grows a reserve, with the host's lock held.
func (h *Host) extend(ctx context.Context, c *change, d *SnapshotDir, s *Set, k *backend.Snapshot, size int64) error {
	where := fmt.Sprintf("disk %s in snapshot %s of %s", k.Disk.VDev, s.Name, d.Name)
	r, ok := h.stores[k.Volume.Store].(backend.Reserver)
	switch {
	case !ok || !HasReserve(k):
		return fmt.Errorf("%s takes its space as it needs it, there is no reserve to extend: %w", where, backend.ErrUnsupported)
	case k.State == backend.SnapshotInvalid:
		return backend.Because(backend.ErrIO, "%s is invalid: %s; more space does not bring it back, remove the snapshot", where, invalidity(k))
	case s.State == backend.SnapshotRemoving:
		return fmt.Errorf("snapshot %s of %s is being removed: %w", s.Name, d.Name, backend.ErrBusy)
	case size == k.ReserveBytes:
		c.quiet = true
		return nil
	}
	fault.Point("control.reserve.extend")
	got, err := r.ExtendReserve(ctx, *k, size)
	if err != nil {
		return fmt.Errorf("the reserve of %s: %w", where, err)
	}
	fault.Point("control.reserve.extended")
	if got == k.ReserveBytes {
		c.quiet = true // it rounds to what is there, or that is all it can ever use
		return nil
	}
	c.touched = append(c.touched, Change{Dir: d.Name, SetID: s.ID})
	c.message = strconv.FormatInt(got, 10)
	c.extra = append(c.extra, zap.Int64("from", k.ReserveBytes), zap.Int64("to", got))
	return nil
}

package hostdev

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"domfs/backend"
)

// How long a mapping may be in use by who only looks at it for a moment (udev, blkid, a scan of LVM): how often its
// removal is tried, and the pause between.
const (
	RemoveTries = 15
	removePause = 200 * time.Millisecond
)

// AwaitRemoval pauses before a removal is tried again. Its error wraps backend.ErrTimeout.
func AwaitRemoval(ctx context.Context) error {
	select {
	case <-time.After(removePause):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmapping: %w: %w", backend.ErrTimeout, ctx.Err())
	}
}

// InUse is the error of a mapping that cannot be removed because of who; it wraps backend.ErrBusy.
func InUse(m backend.Mapping, who string) error {
	return backend.Because(backend.ErrBusy, "the block device of %s (%s) is in use by %s: end that first", m.Name, m.Device, who)
}

// SortMappings puts mappings of a set in the order of their names.
func SortMappings(of []backend.Mapping) {
	slices.SortFunc(of, func(a, b backend.Mapping) int { return cmp.Compare(a.Name, b.Name) })
}

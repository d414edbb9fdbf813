package control

import (
	"context"

	"domfs/backend"
)

// excluded asks the stores why a disk that another one took is not theirs; nil if none of them knows it.
func (h *Host) excluded(ctx context.Context, d backend.Disk) error {
	for _, st := range h.o.Stores {
		if x, ok := st.(backend.Excluder); ok {
			if err := x.Excluded(ctx, d); err != nil {
				return err
			}
		}
	}
	return nil
}

package lvm

import (
	"context"
	"math"

	"domfs/backend"
)

// Pools lists the VGs, and the thin pools as "VG:pool". The free space of a pool that is not active is
// unknown, and shown as none.
func (s *Store) Pools(ctx context.Context) ([]backend.Pool, error) {
	h, err := s.listed(ctx, func(l *listing) *int { return &l.forPools })
	if err != nil || h == nil {
		return nil, err
	}
	var pools []backend.Pool
	for _, g := range h.vgs {
		if g.twin || g.sizeBytes <= 0 {
			continue
		}
		pools = append(pools, backend.Pool{Name: g.name, Driver: driverLV, Path: "/dev/" + g.name, SizeBytes: g.sizeBytes, FreeBytes: min(g.freeBytes, g.sizeBytes)})
		for _, l := range g.lvs {
			if l.isThinPool() && !l.hidden && l.sizeBytes > 0 {
				pools = append(pools, h.thinPool(l))
			}
		}
	}
	return pools, nil
}

func (h *host) thinPool(l *lv) backend.Pool {
	p := backend.Pool{Name: l.vg.name + ":" + l.name, Driver: driverThin, Path: l.path(), SizeBytes: l.sizeBytes, MetadataSizeBytes: l.metadataBytes}
	state, ok := poolStatusOf(h, l)
	if !ok || state.failed {
		return p
	}
	p.FreeBytes = min(blockBytes(state.data-state.usedData, l.chunkBytes), p.SizeBytes)
	p.MetadataFreeBytes = min(blockBytes(state.metadata-state.usedMetadata, poolMetadataBlock), p.MetadataSizeBytes)
	return p
}

// blockBytes is n blocks in bytes.
func blockBytes(n, bytes int64) int64 {
	if n <= 0 || bytes <= 0 {
		return 0
	}
	if n > math.MaxInt64/bytes {
		return math.MaxInt64
	}
	return n * bytes
}

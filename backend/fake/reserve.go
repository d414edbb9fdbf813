package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"domfs/backend"
)

// chunkBytes is what a thick snapshot copies before the origin's first write to it.
const chunkBytes = 4096

// SetReserve makes the snapshots that are made from now on thick ones, with so many bytes for
// copies on write: a snapshot all of whose reserve is used becomes invalid. 0: they cannot overflow.
func (s *Store) SetReserve(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserve = bytes
}

// SetMetadataPool puts the volume into a pool of its own, with metadata, as a thin pool is; again for the
// same pool to change its sizes. Its snapshots are in it, too.
func (s *Store) SetMetadataPool(source string, p backend.Pool) {
	s.mu.Lock()
	v := s.volumeLocked(source)
	v.pool = p.Name
	s.pools[p.Name] = p
	s.mu.Unlock()
}

// AddPool adds a pool that no volume is in.
func (s *Store) AddPool(p backend.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pools[p.Name] = p
}

// Use uses bytes of a snapshot's reserve, as writes of its origin's guest do. One that is full by
// that becomes invalid.
func (s *Store) Use(setID, vdev string, bytes int64) {
	s.mu.Lock()
	full := false
	for _, v := range s.snapshots {
		if v.snap.Set == setID && v.snap.Disk.VDev == vdev {
			full = s.useLocked(v, bytes) || full
		}
	}
	s.mu.Unlock()
	if full {
		s.Happen()
	}
}

// useLocked tells whether the snapshot has become invalid.
func (s *Store) useLocked(v *volume, bytes int64) bool {
	if v.snap.State == backend.SnapshotInvalid {
		return false
	}
	v.used = min(v.used+bytes, v.reserve)
	if v.used < v.reserve {
		return false
	}
	v.snap.State, v.dead = backend.SnapshotInvalid, true
	return true
}

// copyOnWriteLocked does what a thick snapshot's origin has done before it is written to. The bytes
// that the snapshot shows are its own already. It tells whether one has become invalid.
func (s *Store) copyOnWriteLocked(origin *volume, off int64, n int) (full bool) {
	for _, v := range s.snapshots {
		if v.origin != origin || v.reserve == 0 {
			continue
		}
		for c := off / chunkBytes; c*chunkBytes < off+int64(n); c++ {
			if !v.copied[c] {
				v.copied[c] = true
				full = s.useLocked(v, chunkBytes) || full
			}
		}
	}
	return full
}

// PutForeign puts a snapshot there that somebody else made of a volume, thick if it has a reserve.
func (s *Store) PutForeign(source, name string, sn backend.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.volumeLocked(source)
	sn.Name, sn.Origin, sn.Foreign = name, o.id, true
	if sn.Set == "" {
		sn.Set = "foreign/" + name
	}
	if sn.State == "" {
		sn.State = backend.SnapshotActive
	}
	v := s.newSnapshotLocked(sn.SnapshotMeta, o.id)
	v.snap = sn
	v.origin, v.data, v.dev, v.pool = o, slices.Clone(o.data), o.dev, o.pool
	v.reserve, v.copied = sn.ReserveBytes, map[int64]bool{}
}

// Happen makes watchers look, as an event of the host does.
func (s *Store) Happen() {
	s.mu.Lock()
	watchers := slices.Collect(maps.Keys(s.watchers))
	s.mu.Unlock()
	for _, w := range watchers {
		(*w)()
	}
}

// Watchers is how many watch.
func (s *Store) Watchers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watchers)
}

// reserver is a Reserver and a Watcher.
type reserver struct{ store *Store }

func (d reserver) MaxReserve(sn backend.Snapshot) int64 {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	if v := d.store.snapshots[sn.Volume.ID]; v != nil {
		return d.store.maxReserveLocked(v)
	}
	return 0
}

// maxReserveLocked is room for a copy of each chunk, and a chunk that says which they are.
func (s *Store) maxReserveLocked(v *volume) int64 {
	if v.reserve == 0 {
		return 0
	}
	return max(s.roundLocked(v.size()+chunkBytes), v.reserve)
}

func (d reserver) ExtendReserve(ctx context.Context, sn backend.Snapshot, sizeBytes int64) (int64, error) {
	s := d.store
	after, err := s.enter(ctx, "ExtendReserve", sn.Volume.ID)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.snapshots[sn.Volume.ID]
	switch {
	case v == nil:
		return 0, fmt.Errorf("snapshot %s: %w", sn.Volume.ID, backend.ErrNotExist)
	case v.reserve == 0:
		return 0, fmt.Errorf("snapshot %s has no reserve: %w", v.id, backend.ErrUnsupported)
	case v.snap.State == backend.SnapshotInvalid:
		return 0, fmt.Errorf("snapshot %s is invalid: %w", v.id, backend.ErrIO)
	}
	size := min(s.roundLocked(sizeBytes), s.maxReserveLocked(v))
	if size < v.reserve {
		return 0, fmt.Errorf("%s has a reserve of %d bytes already: %w", v.id, v.reserve, backend.ErrPermission)
	}
	if err := s.noSpaceLocked(size - v.reserve); err != nil {
		return 0, err
	}
	v.reserve = size
	return size, after
}

func (d reserver) Watch(ctx context.Context, changed func()) error {
	s := d.store
	if _, err := s.enter(ctx, "Watch", ""); err != nil {
		return err
	}
	key := &changed
	s.mu.Lock()
	s.watchers[key] = true
	s.mu.Unlock()
	changed()
	<-ctx.Done()
	s.mu.Lock()
	delete(s.watchers, key)
	s.mu.Unlock()
	return nil
}

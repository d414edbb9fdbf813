package control

import (
	"time"

	"domfs/backend"
)

// A snapshot that has become invalid shows bytes of two times, or none. Whoever has it open learns that
// from Usable: nothing that was read is to be given to anybody unless Usable says so afterwards.

// CanOverflow tells whether the volume is on a snapshot that can become invalid at any time, since its space
// for copies on write is bounded.
func (v *Volume) CanOverflow() bool { return v.disk.from.overflow }

// Usable is nil as long as what is read of the volume is true. Once its snapshot has become invalid
// it is ErrIO, for good, however long the volume has been acquired. What lies over several disks goes with the first
// of those that it was assembled from.
func (v *Volume) Usable() error {
	if err := v.disk.invalid.Load(); err != nil {
		return *err
	}
	if v.disk.all != nil {
		for _, m := range v.disk.all.members {
			if err := m.Usable(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Doubt says that a read of the volume failed: its snapshot may have become invalid a moment ago. The
// host is read at once then, rather than at the next sample.
func (v *Volume) Doubt() {
	d := v.disk
	if !d.from.overflow {
		return
	}
	now := time.Now().UnixNano()
	if last := d.doubted.Load(); now-last > int64(doubtEvery) && d.doubted.CompareAndSwap(last, now) {
		d.h.guard.happenedNow()
	}
}

// doubtEvery keeps a disk with bad blocks from having the host read all the time.
const doubtEvery = time.Second

// whileUsable is what f reads, unless the volume is not usable before or after it.
func whileUsable[T any](v *Volume, f func() (T, error)) (T, error) {
	var zero T
	if err := v.Usable(); err != nil {
		return zero, err
	}
	out, err := f()
	if invalid := v.Usable(); invalid != nil {
		return zero, invalid
	}
	return out, err
}

// markInvalid marks the open disks of snapshots that are invalid.
func (c *volumeCache) markInvalid(inv *Inventory) []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Change
	for d := range c.alive {
		if !d.from.frozen || d.invalid.Load() != nil {
			continue
		}
		dir, s := inv.set(d.key.setID)
		if s == nil {
			continue
		}
		k := s.Disk(d.key.vdev)
		if k == nil || k.State != backend.SnapshotInvalid || k.Volume.ID != d.from.volume.ID {
			continue
		}
		err := d.from.invalid(k)
		d.invalid.Store(&err)
		out = append(out, Change{Dir: dir.Name, SetID: s.ID, Invalid: true})
	}
	return out
}

// isOpen tells whether a disk of the set is open.
func (c *volumeCache) isOpen(setID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for d := range c.alive {
		if d.key.setID == setID {
			return true
		}
	}
	return false
}

package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"domfs/backend"
)

// guard watches volumes that are to be copied.
type guard struct {
	store     *Store
	exclusive bool
	volumes   []*volume
	broken    error // guarded by store.mu
	released  bool  // guarded by store.mu
}

func (g *guard) Broken() error {
	g.store.mu.Lock()
	defer g.store.mu.Unlock()
	return g.brokenLocked()
}

func (g *guard) brokenLocked() error {
	if g.released {
		return fmt.Errorf("the guard was released: %w", backend.ErrInvalid)
	}
	return g.broken
}

func (g *guard) Exclusive() bool { return g.exclusive }

func (g *guard) Release() {
	g.store.mu.Lock()
	defer g.store.mu.Unlock()
	g.released = true
	delete(g.store.guards, g)
}

type snapshotter struct{ store *Store }

func (d snapshotter) Prepare(ctx context.Context, reqs []backend.SnapshotRequest, running bool) (backend.Guard, error) {
	s := d.store
	if _, err := s.enter(ctx, "Prepare", ""); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &guard{store: s, exclusive: s.copies}
	var need int64
	for _, r := range reqs {
		v := s.volumes[r.Origin.ID]
		if v == nil {
			return nil, fmt.Errorf("volume %s: %w", r.Origin.ID, backend.ErrNotExist)
		}
		if v.err != nil {
			return nil, v.err
		}
		if s.copies && (running || v.holder != "") {
			return nil, fmt.Errorf("%s can only be copied, and its domain runs: shut it down first: %w", v.id, backend.ErrUnsupported)
		}
		if s.copies {
			need += v.size()
		} else {
			need += s.reserve
		}
		g.volumes = append(g.volumes, v)
	}
	if err := s.noSpaceLocked(need); err != nil {
		return nil, err
	}
	s.guards[g] = true
	return g, nil
}

func (s *Store) newSnapshotLocked(m backend.SnapshotMeta, origin string) *volume {
	s.next++
	v := &volume{id: fmt.Sprintf("%s/snapshot-%04d", s.name, s.next), generation: 1}
	v.snap = backend.Snapshot{SnapshotMeta: m, Origin: origin}
	s.snapshots[v.id] = v
	return v
}

func (d snapshotter) Snapshot(ctx context.Context, req backend.SnapshotRequest, g backend.Guard) (backend.Snapshot, error) {
	s := d.store
	after, err := s.enter(ctx, "Snapshot", req.Origin.ID)
	if err != nil {
		return backend.Snapshot{}, err
	}
	own, ok := g.(*guard)
	if !ok || own.store != s {
		return backend.Snapshot{}, fmt.Errorf("the guard is not of this store: %w", backend.ErrInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if own.released {
		return backend.Snapshot{}, own.brokenLocked()
	}
	if err := ctx.Err(); err != nil {
		return backend.Snapshot{}, contextError(ctx, "Snapshot")
	}
	o := s.volumes[req.Origin.ID]
	if o == nil {
		return backend.Snapshot{}, fmt.Errorf("volume %s: %w", req.Origin.ID, backend.ErrNotExist)
	}
	for _, v := range s.snapshots {
		if v.snap.Set == req.Meta.Set && v.snap.Disk.VDev == req.Meta.Disk.VDev {
			return backend.Snapshot{}, fmt.Errorf("%s is the snapshot of %s in that set: %w", v.id, req.Meta.Disk.VDev, backend.ErrExist)
		}
	}
	if s.copies {
		if err := s.noSpaceLocked(o.size()); err != nil {
			return backend.Snapshot{}, err
		}
	}
	m := req.Meta
	m.State = backend.SnapshotPending
	v := s.newSnapshotLocked(m, o.id)
	v.origin = o
	switch {
	case o.dev != nil:
		v.dev = o.dev
	case s.copies:
		v.data = make([]byte, len(o.data))
	default:
		v.data = slices.Clone(o.data)
	}
	v.pool = o.pool
	switch {
	case s.copies:
		v.reserved = o.size()
	case s.reserve > 0:
		v.reserve, v.copied = s.roundLocked(s.reserve), map[int64]bool{}
	}
	if after != nil {
		return backend.Snapshot{}, after
	}
	sn := v.snap
	if s.copies {
		sn.State = backend.SnapshotFilling
	}
	sn.Volume = s.describe(v)
	sn.UsedBytes, sn.ReserveBytes = v.reserved, v.reserve
	return sn, nil
}

func (d snapshotter) Snapshots(ctx context.Context) ([]backend.Snapshot, error) {
	after, err := d.store.enter(ctx, "Snapshots", "")
	if err != nil {
		return nil, err
	}
	if after != nil {
		return nil, after
	}
	return d.store.All(), nil
}

func (d snapshotter) Annotate(ctx context.Context, all ...backend.Annotation) error {
	for _, a := range all {
		if err := d.annotate(ctx, a.Snapshot, a.Meta); err != nil {
			return err
		}
	}
	return nil
}

func (d snapshotter) annotate(ctx context.Context, sn backend.Snapshot, m backend.SnapshotMeta) error {
	s := d.store
	after, err := s.enter(ctx, "Annotate", sn.Volume.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.snapshots[sn.Volume.ID]
	if v == nil {
		return fmt.Errorf("snapshot %s: %w", sn.Volume.ID, backend.ErrNotExist)
	}
	if v.snap.Foreign {
		return fmt.Errorf("snapshot %s was made by somebody else and has no record: %w", v.id, backend.ErrPermission)
	}
	if v.dead && m.State == backend.SnapshotActive {
		m.State = backend.SnapshotInvalid // whatever is written down
	}
	v.snap.SnapshotMeta = m
	return after
}

func (d snapshotter) Remove(ctx context.Context, sn backend.Snapshot) error {
	s := d.store
	after, err := s.enter(ctx, "Remove", sn.Volume.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.snapshots, sn.Volume.ID)
	return after
}

func (d snapshotter) Repair(ctx context.Context) error {
	after, err := d.store.enter(ctx, "Repair", "")
	if err != nil {
		return err
	}
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	d.store.stray = 0
	maps.DeleteFunc(d.store.volumes, func(_ string, v *volume) bool { return v.unfinished && !v.making && v.holder == "" })
	for _, v := range d.store.snapshots {
		if errors.Is(v.err, backend.ErrNoDevice) {
			v.err = nil
		}
	}
	return after
}

type filler struct{ store *Store }

// fillStep is how many bytes are copied between two looks at the context.
const fillStep = 64 << 10

func (d filler) Fill(ctx context.Context, sn backend.Snapshot, g backend.Guard, progress func(done, total int64)) error {
	s := d.store
	after, err := s.enter(ctx, "Fill", sn.Origin)
	if err != nil {
		return err
	}
	s.mu.Lock()
	v := s.snapshots[sn.Volume.ID]
	if v == nil || v.origin == nil || v.snap.State != backend.SnapshotFilling {
		s.mu.Unlock()
		return fmt.Errorf("snapshot %s is not to be filled: %w", sn.Volume.ID, backend.ErrInvalid)
	}
	total, whole := v.size(), v.dev != nil
	s.mu.Unlock()
	buf := make([]byte, fillStep)
	for off := int64(0); off < total; off += fillStep {
		if ctx.Err() != nil {
			return contextError(ctx, "Fill")
		}
		if err := g.Broken(); err != nil {
			return err
		}
		if !whole {
			if err := s.copyRange(v, buf, off); err != nil {
				return err
			}
		}
		if progress != nil {
			progress(min(off+fillStep, total), total)
		}
	}
	return after
}

func (s *Store) copyRange(v *volume, buf []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshots[v.id] != v {
		return fmt.Errorf("snapshot %s: %w", v.id, backend.ErrNotExist)
	}
	if off >= int64(len(v.origin.data)) {
		return io.ErrUnexpectedEOF
	}
	n := copy(buf, v.origin.data[off:])
	copy(v.data[off:], buf[:n])
	return nil
}

type resizer struct{ store *Store }

func (d resizer) RoundSize(_ backend.Volume, sizeBytes int64) int64 {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	return d.store.roundLocked(sizeBytes)
}

func (s *Store) roundLocked(n int64) int64 {
	rest := n % s.unit
	if n <= 0 || rest == 0 || n > (1<<63-1)-s.unit {
		return n
	}
	return n - rest + s.unit
}

const maxVolumeBytes = 1 << 30 // a fake volume is in memory

func (d resizer) Resize(ctx context.Context, v backend.Volume, sizeBytes int64) (int64, error) {
	s := d.store
	after, err := s.enter(ctx, "Resize", v.ID)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vol := s.volumes[v.ID]
	if vol == nil {
		return 0, fmt.Errorf("volume %s: %w", v.ID, backend.ErrNotExist)
	}
	if vol.err != nil {
		return 0, vol.err
	}
	if vol.dev != nil {
		return 0, fmt.Errorf("volume %s is a device: %w", v.ID, backend.ErrUnsupported)
	}
	size := s.roundLocked(sizeBytes)
	more := size - vol.size()
	if size < vol.size() {
		return 0, fmt.Errorf("%s has %d bytes already: %w", v.ID, vol.size(), backend.ErrPermission)
	}
	if err := s.noSpaceLocked(more); err != nil {
		return 0, err
	}
	if size > maxVolumeBytes {
		return 0, fmt.Errorf("%d bytes are more than memory allows: %w", size, backend.ErrNoSpace)
	}
	if more > 0 {
		vol.data = append(slices.Clip(vol.data), make([]byte, more)...)
		vol.generation++
		s.breakLocked(vol, "was grown")
	}
	return size, after
}

package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"domfs/backend"
)

// Stale is what is in a new volume until it is cleared: what another guest had there.
const Stale = "another tenant's secret"

// HasVolume tells whether there is a volume behind a source.
func (s *Store) HasVolume(source string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumes[source] != nil
}

// Bytes are those of a volume.
func (s *Store) Bytes(source string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.volumeLocked(source).data)
}

// Unfinished lists the sources of volumes that were made and not kept.
func (s *Store) Unfinished() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, source := range slices.Sorted(maps.Keys(s.volumes)) {
		if s.volumes[source].unfinished {
			out = append(out, source)
		}
	}
	return out
}

// Making is how many new volumes are not closed.
func (s *Store) Making() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.making
}

// AddUnfinished adds a volume as a crash leaves one.
func (s *Store) AddUnfinished(source string, data []byte) {
	s.AddVolume(source, data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[source].unfinished = true
}

type creator struct{ store *Store }

// creatingDriver is Driver with Resize and Create.
func (s *Store) creatingDriver(caps Caps) backend.Store {
	d, sn, f, r, w, c := storeDriver{s}, snapshotter{s}, filler{s}, resizer{s}, reserver{s}, creator{s}
	if caps&(Fill|Reserve) != 0 {
		caps |= Snapshot
	}
	switch caps & (Snapshot | Fill | Reserve) {
	case Snapshot:
		return struct {
			storeDriver
			snapshotter
			resizer
			creator
		}{d, sn, r, c}
	case Snapshot | Fill:
		return struct {
			storeDriver
			snapshotter
			filler
			resizer
			creator
		}{d, sn, f, r, c}
	case Snapshot | Reserve:
		return struct {
			storeDriver
			snapshotter
			resizer
			reserver
			creator
		}{d, sn, r, w, c}
	case Snapshot | Fill | Reserve:
		return struct {
			storeDriver
			snapshotter
			filler
			resizer
			reserver
			creator
		}{d, sn, f, r, w, c}
	}
	return struct {
		storeDriver
		resizer
		creator
	}{d, r, c}
}

// Create makes a volume whose source is /images/NAME.
func (c creator) Create(ctx context.Context, req backend.VolumeRequest) (backend.NewVolume, error) {
	s := c.store
	after, err := s.enter(ctx, "Create", req.Name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pool := s.pools[req.Pool]
	if req.Pool != s.name && pool.Name == "" {
		return nil, fmt.Errorf("there is no pool %s: %w", req.Pool, backend.ErrNoDevice)
	}
	size := s.roundLocked(req.SizeBytes)
	if err := s.noSpaceLocked(size); err != nil {
		return nil, err
	}
	if size > maxVolumeBytes {
		return nil, fmt.Errorf("%d bytes are more than memory allows: %w", size, backend.ErrNoSpace)
	}
	if after != nil {
		return nil, after
	}
	source := "/images/" + req.Name
	for n := 2; s.volumes[source] != nil; n++ {
		source = "/images/" + req.Name + "-" + strconv.Itoa(n)
	}
	v := &volume{id: source, data: make([]byte, size), generation: 1, unfinished: true, making: true}
	copy(v.data, Stale)
	if req.Pool != s.name {
		v.pool = req.Pool
	}
	s.volumes[source] = v
	s.making++
	return &newVolume{s, v}, nil
}

func (c creator) Keep(ctx context.Context, v backend.Volume) error {
	s := c.store
	after, err := s.enter(ctx, "Keep", v.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vol := s.volumes[v.ID]
	if vol == nil {
		return fmt.Errorf("volume %s: %w", v.ID, backend.ErrNotExist)
	}
	vol.unfinished = false
	return after
}

func (c creator) Delete(ctx context.Context, v backend.Volume) error {
	s := c.store
	after, err := s.enter(ctx, "Delete", v.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vol := s.volumes[v.ID]
	if vol == nil {
		return after
	}
	if vol.holder != "" || vol.making {
		return fmt.Errorf("volume %s is open: %w", v.ID, backend.ErrBusy)
	}
	for _, sn := range s.snapshots {
		if sn.origin == vol {
			return fmt.Errorf("volume %s has the snapshot %s: %w", v.ID, sn.id, backend.ErrBusy)
		}
	}
	delete(s.volumes, v.ID)
	return after
}

type newVolume struct {
	store  *Store
	volume *volume
}

func (n *newVolume) Volume() backend.Volume {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	v := n.store.describe(n.volume)
	return v
}

func (n *newVolume) Source() string { return n.volume.id }

func (n *newVolume) Clear(ctx context.Context, progress func(done, total int64)) error {
	after, err := n.store.enter(ctx, "Clear", n.volume.id)
	if err != nil {
		return err
	}
	n.store.mu.Lock()
	clear(n.volume.data)
	size := n.volume.size()
	n.store.mu.Unlock()
	progress(size, size)
	return after
}

func (n *newVolume) Close() error {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	if n.volume.making {
		n.volume.making = false
		n.store.making--
	}
	return nil
}

// RemovePool removes a pool that AddPool added.
func (s *Store) RemovePool(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pools, name)
}

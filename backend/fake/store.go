package fake

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"domfs/backend"
)

// Store is a store as its admin sees it.
type Store struct {
	faults
	name string

	mu        sync.Mutex
	capacity  int64                   // guarded by mu
	unit      int64                   // guarded by mu; what sizes are rounded up to
	copies    bool                    // guarded by mu; snapshots have to be copied
	volumes   map[string]*volume      // guarded by mu; by source
	snapshots map[string]*volume      // guarded by mu; by ID
	stray     int                     // guarded by mu; temporary things that a crash left
	next      int                     // guarded by mu
	guards    map[*guard]bool         // guarded by mu; those not released
	open      int                     // guarded by mu; devices not closed
	reserve   int64                   // guarded by mu; of the snapshots that are made; 0: they have none
	watchers  map[*func()]bool        // guarded by mu
	pools     map[string]backend.Pool // guarded by mu; beside the store's own
	making    int                     // guarded by mu; new volumes not closed
	aliases   map[string]string       // guarded by mu; further names of sources
}

type volume struct {
	id         string
	data       []byte
	dev        backend.Device // instead of data, if not nil
	generation uint64
	holder     string
	err        error
	snap       backend.Snapshot // of a snapshot
	origin     *volume          // of a snapshot
	reserved   int64            // of a snapshot that is copied
	pool       string           // "" the store's own
	unfinished bool             // was made, and not kept
	making     bool             // was made, and is not closed
	reserve    int64            // of a thick snapshot
	used       int64            // of its reserve
	copied     map[int64]bool   // by chunk: whether the origin's first write to it was seen
	dead       bool             // of a thick snapshot that overflowed: reads fail
}

// NewStore is a store without volumes and with all the room in the world.
func NewStore(name string) *Store {
	return &Store{name: name, capacity: math.MaxInt64, unit: 1, volumes: map[string]*volume{}, snapshots: map[string]*volume{}, guards: map[*guard]bool{},
		watchers: map[*func()]bool{}, pools: map[string]backend.Pool{}}
}

// AddVolume adds a volume of those bytes.
func (s *Store) AddVolume(source string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[source] = &volume{id: source, data: slices.Clone(data), generation: 1}
}

// Alias makes path another name of the volume of source.
func (s *Store) Alias(path, source string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aliases == nil {
		s.aliases = map[string]string{}
	}
	s.aliases[path] = source
}

// AddDevice adds a volume whose bytes are dev's. Closing the volume leaves dev open. Its
// snapshots read dev, too.
func (s *Store) AddDevice(source string, dev backend.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[source] = &volume{id: source, dev: dev, generation: 1}
}

// AddMissing adds a volume that is the store's, and does not exist.
func (s *Store) AddMissing(source string) {
	s.AddVolume(source, nil)
	s.Break(source, fmt.Errorf("%s: %w", source, backend.ErrNotExist))
}

// RemoveVolume removes a volume: disks that have it as their source are not the store's then.
func (s *Store) RemoveVolume(source string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.volumes, source)
}

// Write writes to a volume as its guest would.
func (s *Store) Write(source string, off int64, p []byte) {
	s.mu.Lock()
	v := s.volumeLocked(source)
	full := s.copyOnWriteLocked(v, off, len(p))
	copy(v.data[off:], p)
	v.generation++
	s.breakLocked(v, "was written to")
	s.mu.Unlock()
	if full {
		s.Happen()
	}
}

// Hold says who has a volume open, "" nobody.
func (s *Store) Hold(source, holder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.volumeLocked(source)
	v.holder = holder
	if holder != "" {
		s.breakLocked(v, "is in use by "+holder)
	}
}

// Break makes a volume unreadable, for the reason err.
func (s *Store) Break(source string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumeLocked(source).err = err
}

// SetCapacity limits the bytes of all volumes and reserved snapshots: ErrNoSpace beyond.
func (s *Store) SetCapacity(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capacity = bytes
}

// SetUnit sets what sizes are rounded up to.
func (s *Store) SetUnit(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unit = bytes
}

// SetCopies sets whether snapshots are copies that are to be filled, of domains that are off.
// Without, they are there at once and take no space.
func (s *Store) SetCopies(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies = on
}

// Invalidate makes a snapshot invalid, as a full one is.
func (s *Store) Invalidate(setID, vdev string) { s.InvalidateFor(setID, vdev, nil) }

// InvalidateFor makes a snapshot invalid for a reason that its store tells, nil: it tells none.
func (s *Store) InvalidateFor(setID, vdev string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.snapshots {
		if v.snap.Set == setID && v.snap.Disk.VDev == vdev {
			v.snap.State, v.err = backend.SnapshotInvalid, why
		}
	}
}

// Deactivate takes the device of a set's snapshots away, until Repair.
func (s *Store) Deactivate(setID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.snapshots {
		if v.snap.Set == setID {
			v.err = fmt.Errorf("%s is not active: %w", v.id, backend.ErrNoDevice)
		}
	}
}

// Put puts a snapshot there as a crash may have left it. Of its Volume only Err counts.
func (s *Store) Put(sn backend.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.newSnapshotLocked(sn.SnapshotMeta, sn.Origin)
	v.data, v.err = make([]byte, 4096), sn.Volume.Err
}

// PutStray leaves a temporary thing for Repair to remove.
func (s *Store) PutStray() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stray++
}

// Strays is how many temporary things there are.
func (s *Store) Strays() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stray
}

// All lists the snapshots, in no state left out, sorted by ID.
func (s *Store) All() []backend.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listLocked()
}

// Size is the size of a volume in bytes.
func (s *Store) Size(source string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumeLocked(source).size()
}

// OpenDevices is how many devices are open.
func (s *Store) OpenDevices() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// Guards is how many guards are not released.
func (s *Store) Guards() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.guards)
}

func (s *Store) volumeLocked(source string) *volume {
	v := s.volumes[source]
	if v == nil {
		panic("fake: there is no volume " + source)
	}
	return v
}

func (s *Store) breakLocked(v *volume, why string) {
	for g := range s.guards {
		if g.exclusive && slices.Contains(g.volumes, v) && g.broken == nil {
			g.broken = fmt.Errorf("%s %s: %w", v.id, why, backend.ErrBusy)
		}
	}
}

func (v *volume) size() int64 {
	if v.dev != nil {
		return v.dev.Size()
	}
	return int64(len(v.data))
}

func (s *Store) usedLocked() int64 {
	var n int64
	for _, v := range s.volumes {
		n += v.size()
	}
	for _, v := range s.snapshots {
		n += v.reserved + v.reserve
	}
	return n
}

func (s *Store) noSpaceLocked(need int64) error {
	if free := s.capacity - s.usedLocked(); need > free {
		return fmt.Errorf("%d bytes are needed and %d free in pool %s: %w", need, free, s.name, backend.ErrNoSpace)
	}
	return nil
}

func (s *Store) describe(v *volume) backend.Volume {
	pool := s.name
	if v.pool != "" {
		pool = v.pool
	}
	return backend.Volume{Store: s.name, ID: v.id, Driver: "fake", Format: "raw", Pool: pool,
		SizeBytes: v.size(), Generation: v.generation, Holder: v.holder, Unfinished: v.unfinished, Err: v.err}
}

// Driver is what control sees, with those of Snapshot, Fill, Resize, Reserve and Create that caps names.
func (s *Store) Driver(caps Caps) backend.Store {
	if caps&(Create|Resize) == Create|Resize {
		return s.creatingDriver(caps)
	}
	d, sn, f, r, w := storeDriver{s}, snapshotter{s}, filler{s}, resizer{s}, reserver{s}
	if caps&(Fill|Reserve) != 0 {
		caps |= Snapshot
	}
	switch caps & (Snapshot | Fill | Resize | Reserve) {
	case Resize:
		return struct {
			storeDriver
			resizer
		}{d, r}
	case Snapshot:
		return struct {
			storeDriver
			snapshotter
		}{d, sn}
	case Snapshot | Resize:
		return struct {
			storeDriver
			snapshotter
			resizer
		}{d, sn, r}
	case Snapshot | Fill:
		return struct {
			storeDriver
			snapshotter
			filler
		}{d, sn, f}
	case Snapshot | Fill | Resize:
		return struct {
			storeDriver
			snapshotter
			filler
			resizer
		}{d, sn, f, r}
	case Snapshot | Reserve:
		return struct {
			storeDriver
			snapshotter
			reserver
		}{d, sn, w}
	case Snapshot | Resize | Reserve:
		return struct {
			storeDriver
			snapshotter
			resizer
			reserver
		}{d, sn, r, w}
	case Snapshot | Fill | Reserve:
		return struct {
			storeDriver
			snapshotter
			filler
			reserver
		}{d, sn, f, w}
	case Snapshot | Fill | Resize | Reserve:
		return struct {
			storeDriver
			snapshotter
			filler
			resizer
			reserver
		}{d, sn, f, r, w}
	}
	return d
}

type storeDriver struct{ store *Store }

func (d storeDriver) Name() string { return d.store.name }

func (d storeDriver) Volumes(ctx context.Context, disks []backend.Disk) ([]backend.Volume, error) {
	s := d.store
	after, err := s.enter(ctx, "Volumes", "")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]backend.Volume, len(disks))
	for i, k := range disks {
		source := k.Source
		if to, ok := s.aliases[source]; ok {
			source = to
		}
		if v := s.volumes[source]; v != nil {
			out[i] = s.describe(v)
			out[i].Format = k.Format
		}
	}
	return out, after
}

func (d storeDriver) Pools(ctx context.Context) ([]backend.Pool, error) {
	s := d.store
	after, err := s.enter(ctx, "Pools", "")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []backend.Pool{{Name: s.name, Driver: "fake", Path: "/" + s.name, SizeBytes: s.capacity, FreeBytes: s.capacity - s.usedLocked()}}
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		out = append(out, s.pools[name])
	}
	return out, after
}

func (d storeDriver) Open(ctx context.Context, v backend.Volume) (backend.Device, error) {
	s := d.store
	if _, err := s.enter(ctx, "Open", v.ID); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vol := s.volumes[v.ID]
	if vol == nil {
		vol = s.snapshots[v.ID]
	}
	switch {
	case vol == nil:
		return nil, fmt.Errorf("volume %s: %w", v.ID, backend.ErrNotExist)
	case vol.err != nil:
		return nil, vol.err
	}
	s.open++
	return &device{store: s, volume: vol, size: vol.size()}, nil
}

func (s *Store) listLocked() []backend.Snapshot {
	var out []backend.Snapshot
	for _, id := range slices.Sorted(maps.Keys(s.snapshots)) {
		v := s.snapshots[id]
		sn := v.snap
		sn.Volume = s.describe(v)
		sn.UsedBytes = v.reserved
		if v.reserve > 0 {
			sn.UsedBytes, sn.ReserveBytes, sn.FillPercent = v.used, v.reserve, float64(v.used)/float64(v.reserve)*100
		}
		sn.Path = "/dev/fake/" + v.id
		out = append(out, sn)
	}
	return out
}

package fake

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"domfs/backend"
)

// Mapper is a backend.Mapper in memory. Its faults are Map, Unmap and Mappings, the ID being the set's.
type Mapper struct {
	faults
	mu    sync.Mutex
	sets  map[string]map[string]string // devices by set and name; guarded by mu
	asked []backend.MapRequest         // guarded by mu
	busy  map[string]string            // who uses a device, by "set name"; guarded by mu
	left  map[string]bool              // names that cannot be mapped by their nature; guarded by mu
}

var _ backend.Mapper = (*Mapper)(nil)

// NewMapper is a Mapper without mappings.
func NewMapper() *Mapper {
	return &Mapper{sets: map[string]map[string]string{}, busy: map[string]string{}, left: map[string]bool{}}
}

// Name implements backend.Mapper.
func (m *Mapper) Name() string { return "fakemapper" }

// Map implements backend.Mapper.
func (m *Mapper) Map(ctx context.Context, r backend.MapRequest) ([]backend.Mapping, []backend.Unmapped, error) {
	after, err := m.enter(ctx, "Map", r.SetID)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, r)
	var left []backend.Unmapped
	devices := m.sets[r.SetID]
	if devices == nil {
		devices = map[string]string{}
	}
	add := func(name string) {
		if m.left[name] {
			left = append(left, backend.Unmapped{Name: name, Err: fmt.Errorf("%s cannot be mapped here: %w", name, backend.ErrUnsupported)})
			return
		}
		devices[name] = "/dev/mapper/fake-" + r.SetID + ":" + strings.ReplaceAll(name, "/", ":")
	}
	for _, d := range r.Disks {
		add(d.VDev)
		for _, p := range d.Parts {
			add(d.VDev + "/" + p.Name)
		}
	}
	for _, v := range r.Volumes {
		add(v.Name)
	}
	m.sets[r.SetID] = devices
	return m.listLocked(r.SetID), left, after
}

// Unmap implements backend.Mapper. What is not in use is removed also where something is.
func (m *Mapper) Unmap(ctx context.Context, setID string) error {
	after, err := m.enter(ctx, "Unmap", setID)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var busy error
	for _, mp := range m.listLocked(setID) {
		if who := m.busy[setID+" "+mp.Name]; who != "" {
			busy = backend.Because(backend.ErrBusy, "the block device of %s (%s) is in use by %s: end that first", mp.Name, mp.Device, who)
			continue
		}
		delete(m.sets[setID], mp.Name)
	}
	if len(m.sets[setID]) == 0 {
		delete(m.sets, setID)
	}
	if busy != nil {
		return busy
	}
	return after
}

// Mappings implements backend.Mapper.
func (m *Mapper) Mappings(ctx context.Context) (map[string][]backend.Mapping, error) {
	if _, err := m.enter(ctx, "Mappings", ""); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]backend.Mapping{}
	for id := range m.sets {
		out[id] = m.listLocked(id)
	}
	return out, nil
}

func (m *Mapper) listLocked(setID string) []backend.Mapping {
	var out []backend.Mapping
	for name, device := range m.sets[setID] {
		out = append(out, backend.Mapping{SetID: setID, Name: name, Device: device})
	}
	slices.SortFunc(out, func(a, b backend.Mapping) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Mapped are the names of what is mapped of a set, sorted.
func (m *Mapper) Mapped(setID string) (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mp := range m.listLocked(setID) {
		names = append(names, mp.Name)
	}
	return names
}

// Sets counts the sets with mappings.
func (m *Mapper) Sets() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sets)
}

// Requests are what Map was asked for.
func (m *Mapper) Requests() []backend.MapRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.asked)
}

// Use makes somebody use a device; "" ends it.
func (m *Mapper) Use(setID, name, who string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy[setID+" "+name] = who
}

// LeaveOut makes a volume one that cannot be mapped by its nature.
func (m *Mapper) LeaveOut(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left[name] = true
}

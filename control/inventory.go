package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"domfs/backend"
)

// Inventory is one reading of the host. It is never changed once returned.
//
// What cannot be read never hides the rest. Where a whole hypervisor or a store's list of
// snapshots cannot be read, what it said last is shown again, marked Stale: it can be
// looked at, and every change of it is refused. So is what a later hypervisor takes for off, which may run. Disks of a store that cannot be read
// have its error in their Volume.
type Inventory struct {
	Domains   []*Domain      // sorted by name
	Snapshots []*SnapshotDir // sorted by name; one for each domain, and for each that is gone but has snapshots
	Pools     []Pool         // sorted by name

	began  time.Time // when the reading began: it knows nothing later
	took   time.Duration
	byName map[string]*Domain
	byDir  map[string]*SnapshotDir
	byID   map[string]*SnapshotDir // by a set's ID
	hidden []*Set                  // pending: being made, or what a crash left
	failed map[string]error        // stores whose snapshots could not be listed
}

// Domain is one domain of the host with the volumes behind its disks.
type Domain struct {
	backend.Domain // State is running also where somebody holds a disk open, and "" where nobody can say whether it is off
	Holder         string
	Volumes        []backend.Volume // one for each of Disks
	SnapshotDir    string           // name of its directory in snapshots/
	Stale          error            // why this is from an earlier reading; nil if it is not

	hypervisor backend.Hypervisor
	reported   backend.DomainState // what the hypervisor said
	uuidOfRun  bool                // its configuration has no UUID: the toolstack makes one up at each start, and it is gone with the run
}

// lastingUUID is what says that something belongs to the domain, whether or not it runs; "" where only its name does.
func (d *Domain) lastingUUID() string {
	if d.uuidOfRun {
		return ""
	}
	return d.UUID
}

// SnapshotDir is the directory of one domain's snapshots.
type SnapshotDir struct {
	Name   string
	Domain *Domain // nil if the domain is gone
	Sets   []*Set  // sorted by name
}

// Set is a snapshot of all disks of a domain.
type Set struct {
	ID          string
	Name        string
	DomainUUID  string
	DomainName  string // when it was made
	Created     time.Time
	Consistency backend.Consistency
	State       backend.SnapshotState
	Expires     time.Time // zero: never
	Hold        bool
	Mapped      bool               // whether the host has block devices of what is in it: Device
	Disks       []backend.Snapshot // sorted by vdev
	Stale       error              // why this is from an earlier reading; nil if it is not
	Foreign     bool               // not made by domfs: a snapshot of one disk, without a record

	diskCount int               // how many disks the complete set has
	devices   map[string]string // of the host, by path in the set
}

// Domain finds a domain by name, nil if there is none.
func (inv *Inventory) Domain(name string) *Domain { return inv.byName[name] }

// SnapshotDir finds a snapshot directory by name, nil if there is none.
func (inv *Inventory) SnapshotDir(name string) *SnapshotDir { return inv.byDir[name] }

// set finds a set by ID, with its directory; nil if there is none.
func (inv *Inventory) set(id string) (*SnapshotDir, *Set) {
	d := inv.byID[id]
	if d == nil {
		return nil, nil
	}
	for _, s := range d.Sets {
		if s.ID == id {
			return d, s
		}
	}
	return nil, nil
}

// Set finds a set by name, nil if there is none.
func (d *SnapshotDir) Set(name string) *Set {
	for _, s := range d.Sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// domainName is what last_error and events file the directory under.
func (d *SnapshotDir) domainName() string {
	if d.Domain != nil {
		return d.Domain.Name
	}
	return d.Name
}

// Disk finds a disk's index by vdev, -1 if there is none.
func (d *Domain) Disk(vdev string) int {
	return slices.IndexFunc(d.Disks, func(k backend.Disk) bool { return k.VDev == vdev })
}

// Disk finds a disk's snapshot by vdev, nil if there is none.
func (s *Set) Disk(vdev string) *backend.Snapshot {
	for i := range s.Disks {
		if s.Disks[i].Disk.VDev == vdev {
			return &s.Disks[i]
		}
	}
	return nil
}

// isRunning tells whether the domain's disks may change at any time.
func (d *Domain) isRunning() bool { return d.State != backend.StateOff || d.Stale != nil }

// IsOff tells whether the domain's disks stay as they are: no guest has them.
func (d *Domain) IsOff() bool { return !d.isRunning() }

// ageFactor keeps a host that is slow to read from being read all the time: a reading is
// good for so many times as long as it took, but not for longer than maxSlowAge.
const (
	ageFactor  = 5
	maxSlowAge = 10 * time.Second
)

type inventoryCache struct {
	mu      sync.Mutex
	current *Inventory       // guarded by mu
	change  uint64           // guarded by mu; counts invalidations
	flight  *inventoryFlight // guarded by mu; of the present change count
	told    *Inventory       // guarded by mu; the reading up to which OnChange was told what others did
}

type inventoryFlight struct {
	began  time.Time
	done   chan struct{}
	result *Inventory // valid once done is closed
	err    error
}

// Inventory reads the host, or returns a reading not older than Options.MaxAge in which
// every change of this Host that has ended is seen.
func (h *Host) Inventory(ctx context.Context) (*Inventory, error) {
	c := &h.inventory
	c.mu.Lock()
	if c.current != nil && time.Since(c.current.began) <= max(h.o.MaxAge, min(ageFactor*c.current.took, maxSlowAge)) {
		defer c.mu.Unlock()
		return c.current, nil
	}
	f := c.flight
	if f == nil {
		// A reading belongs to all who wait for it, so it ends with none of them.
		end, err := h.begin()
		if err != nil {
			c.mu.Unlock()
			return nil, err
		}
		f = &inventoryFlight{began: time.Now(), done: make(chan struct{})}
		c.flight = f
		change := c.change
		go func() {
			defer end()
			h.fly(f, change)
		}()
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.result, f.err
	case <-ctx.Done():
		return nil, contextError(ctx, "reading the host's domains and disks")
	}
}

func (h *Host) fly(f *inventoryFlight, change uint64) {
	h.stats.add("inventory_reads", 1)
	inv, err := h.read(h.done)
	if h.done.Err() != nil {
		inv, err = nil, errClosing
	}
	c := &h.inventory
	c.mu.Lock()
	if c.change == change {
		c.flight = nil
		if err == nil {
			c.current = inv
		}
	}
	var before *Inventory
	if err == nil && (c.told == nil || inv.began.After(c.told.began)) {
		before, c.told = c.told, inv
	}
	c.mu.Unlock()
	f.result, f.err = inv, err
	var invalid []Change
	if err == nil {
		invalid = h.volumes.check(inv)
	}
	close(f.done)
	h.notify(invalid...)
	if err == nil {
		h.guard.see(inv)
	}
	if before != nil {
		h.notify(difference(before, inv)...)
	}
}

// invalidate makes the next Inventory read the host anew.
func (h *Host) invalidate() {
	c := &h.inventory
	c.mu.Lock()
	c.invalidateLocked()
	c.mu.Unlock()
}

func (c *inventoryCache) invalidateLocked() {
	c.current, c.flight = nil, nil
	c.change++
}

// readSince makes the next Inventory return a reading that began after t, which may be one that there is, or is under way.
func (h *Host) readSince(t time.Time) {
	c := &h.inventory
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.current != nil && c.current.began.After(t):
	case c.flight != nil && c.flight.began.After(t):
		c.current = nil
	default:
		c.invalidateLocked()
	}
}

// latest is the reading that Inventory would return, whatever its age; nil if there is none.
func (c *inventoryCache) latest() *Inventory {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// fresh reads the host now, for a change: it works while the Host is closing, too.
func (h *Host) fresh(ctx context.Context) (*Inventory, error) {
	h.invalidate()
	h.stats.add("inventory_reads", 1)
	inv, err := h.read(ctx)
	if err != nil {
		return nil, err
	}
	if invalid := h.volumes.check(inv); len(invalid) > 0 {
		// The host's lock is held here, with which nobody is to be told anything.
		h.spawn(func() { h.notify(invalid...) })
	}
	return inv, nil
}

// read reads the host.
func (h *Host) read(ctx context.Context) (*Inventory, error) {
	inv := &Inventory{began: time.Now(), failed: map[string]error{}}
	mapped := make(chan map[string][]backend.Mapping, 1)
	go func() { mapped <- h.readMappings(ctx) }()
	err := h.readDomains(ctx, inv)
	if err != nil {
		<-mapped
		return nil, err
	}
	snapshots := h.readVolumes(ctx, inv)
	devices := <-mapped
	if ctx.Err() != nil {
		return nil, contextError(ctx, "reading the host's domains and disks")
	}
	inv.arrange(snapshots, h.making.has)
	inv.showMappings(devices)
	inv.took = time.Since(inv.began)
	h.recordFaults(inv)
	return inv, nil
}

// readDomains asks all hypervisors at once.
func (h *Host) readDomains(ctx context.Context, inv *Inventory) error {
	lists := make([]domainList, len(h.o.Hypervisors))
	var wg sync.WaitGroup
	for i, hv := range h.o.Hypervisors {
		wg.Go(func() {
			key := "hypervisor " + hv.Name()
			ds, err := ask(ctx, h, key, "domains", hv.Domains)
			if err == nil {
				lists[i] = domainList{domains: wrapDomains(hv, ds), known: true}
				h.drivers.rememberDomains(key, lists[i].domains)
				return
			}
			a := &lists[i]
			a.err = fmt.Errorf("%s cannot be asked: %w", key, err)
			var old []*Domain
			old, a.known = h.drivers.lastDomains(key)
			for _, d := range old {
				d := *d
				d.Stale = a.err
				a.domains = append(a.domains, &d)
			}
		})
	}
	wg.Wait()
	var errs []error
	for _, a := range lists {
		if !a.known {
			errs = append(errs, a.err)
		}
	}
	if len(errs) > 0 && len(errs) == len(lists) {
		return fmt.Errorf("no hypervisor can be asked for its domains: %w", errors.Join(errs...))
	}
	inv.merge(lists)
	slices.SortFunc(inv.Domains, func(a, b *Domain) int { return compare(a.Name, b.Name) })
	return nil
}

func wrapDomains(hv backend.Hypervisor, ds []backend.Domain) []*Domain {
	out := make([]*Domain, 0, len(ds))
	for _, d := range ds {
		// The driver's slice must not be appended to.
		d.Warnings = slices.Clip(slices.Clone(d.Warnings))
		if d.State == "" {
			d.State = backend.StateOff
		}
		out = append(out, &Domain{Domain: d, hypervisor: hv, reported: d.State})
	}
	return out
}

// addDomains takes over domains. Where two have one name the first is kept: the name is
// a directory's.
func (inv *Inventory) addDomains(ds []*Domain) {
	if inv.byName == nil {
		inv.byName = map[string]*Domain{}
	}
	for _, d := range ds {
		if first := inv.byName[d.Name]; first != nil {
			if first.hypervisor == d.hypervisor {
				first.Warnings = append(first.Warnings, fmt.Sprintf("%s describes another domain named %s, which is not shown: give it another name", d.where(), d.Name))
			}
			continue
		}
		inv.byName[d.Name] = d
		inv.Domains = append(inv.Domains, d)
	}
}

// diskAt is a disk's place: Domains[domain].Disks[disk].
type diskAt struct {
	domain *Domain
	disk   int
}

// readVolumes asks the stores, in their order, for the volumes behind all disks that no
// store before has claimed; then each for its snapshots and pools, which depend on that.
func (h *Host) readVolumes(ctx context.Context, inv *Inventory) []backend.Snapshot {
	var open []diskAt
	for _, d := range inv.Domains {
		d.Volumes = make([]backend.Volume, len(d.Disks))
		for i, k := range d.Disks {
			switch {
			case k.CDROM && k.Source == "":
				d.Volumes[i].Err = fmt.Errorf("%s of %s: no medium is in the drive: %w", k.VDev, d.Name, backend.ErrNoDevice)
			case k.BackendDomain != "" && k.BackendDomain != "0" && k.BackendDomain != "Domain-0":
				d.Volumes[i].Err = fmt.Errorf("%s of %s is served by the driver domain %s, not by this host: %w", k.VDev, d.Name, k.BackendDomain, backend.ErrUnsupported)
			default:
				open = append(open, diskAt{d, i})
			}
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var snapshots []backend.Snapshot
	failed := map[diskAt]error{} // the first store that could not say
	for _, s := range h.o.Stores {
		open = h.claim(ctx, s, open, failed)
		wg.Go(func() {
			snaps, err := h.readSnapshots(ctx, s)
			pools, _ := ask(ctx, h, "store "+s.Name(), "pools", s.Pools)
			mu.Lock()
			defer mu.Unlock()
			snapshots = append(snapshots, snaps...)
			for _, p := range pools {
				inv.Pools = append(inv.Pools, Pool{Pool: p, Store: s.Name(), Key: p.Name})
			}
			if err != nil {
				inv.failed[s.Name()] = err
			}
		})
	}
	for _, at := range open {
		d, k := at.domain, at.domain.Disks[at.disk]
		err := failed[at]
		if err == nil {
			err = fmt.Errorf("no store here reads %s (%s of %s): %w", describeSource(k), k.VDev, d.Name, backend.ErrUnsupported)
		}
		d.Volumes[at.disk].Err = err
	}
	wg.Wait()
	for _, d := range inv.Domains {
		d.settleState()
	}
	inv.namePools()
	return snapshots
}

// claim asks one store for the volumes of disks, and returns the disks that are not its.
func (h *Host) claim(ctx context.Context, s backend.Store, open []diskAt, failed map[diskAt]error) []diskAt {
	disks := make([]backend.Disk, len(open))
	for i, at := range open {
		disks[i] = at.domain.Disks[at.disk]
	}
	vols, err := ask(ctx, h, "store "+s.Name(), "volumes", func(ctx context.Context) ([]backend.Volume, error) {
		vs, err := s.Volumes(ctx, disks)
		if err == nil && len(vs) != len(disks) {
			err = fmt.Errorf("it answered for %d of %d disks: %w", len(vs), len(disks), backend.ErrIO)
		}
		return vs, err
	})
	if err != nil {
		for _, at := range open {
			if failed[at] == nil {
				failed[at] = fmt.Errorf("store %s cannot be asked: %w", s.Name(), err)
			}
		}
		return open
	}
	rest := open[:0:0]
	for i, at := range open {
		if vols[i].Store == "" {
			rest = append(rest, at)
			continue
		}
		at.domain.Volumes[at.disk] = vols[i]
	}
	return rest
}

func (h *Host) readSnapshots(ctx context.Context, s backend.Store) ([]backend.Snapshot, error) {
	sn, ok := s.(backend.Snapshotter)
	if !ok {
		return nil, nil
	}
	key := "store " + s.Name()
	snaps, err := ask(ctx, h, key, "snapshots", sn.Snapshots)
	if err != nil {
		return h.drivers.lastSnapshots(key), err
	}
	for i := range snaps {
		snaps[i].Volume.Store = s.Name()
	}
	h.drivers.rememberSnapshots(key, snaps)
	return snaps, nil
}

// settleState makes a domain running whose disk somebody holds open for writing.
func (d *Domain) settleState() {
	for i, v := range d.Volumes {
		if v.Holder == "" || d.Disks[i].CDROM || d.Disks[i].Mode == backend.ReadOnly {
			continue
		}
		d.Holder = v.Holder
		if d.State == backend.StateOff || d.State == "" {
			d.State = backend.StateRunning
		}
		return
	}
}

func describeSource(k backend.Disk) string {
	s := k.Source
	if s == "" {
		s = "a disk without a source"
	}
	if k.Script != "" {
		s += " through the block script " + k.Script
	}
	if k.Format != "" {
		s += " of format " + k.Format
	}
	return s
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

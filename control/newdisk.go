package control

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"domfs/backend"
)

// NewDisk is a disk that somebody has begun: it waits for its size, and is no domain's yet.
type NewDisk struct {
	VDev   string
	Source string // the Pool, by its Name, that it is to lie in; empty: beside the domain's first disk
}

// newDisks are those of this process. They are in memory alone: what was made of one is in its store's records.
type newDisks struct {
	h     *Host
	slots chan struct{} // one for each that is being cleared

	mu    sync.Mutex
	disks []*begunDisk // guarded by mu
}

// begunDisk is one of them; all but the constants are guarded by newDisks.mu.
type begunDisk struct {
	domain, vdev string // constant
	source       string
	touched      time.Time
	cancel       context.CancelFunc // ends its making; nil unless it is being made
	done         chan struct{}      // closed when its making has ended; nil unless it is being made
}

// Bounds of disks that wait for their size.
const (
	maxNewDisks       = 64
	maxNewDisksDomain = 16
)

func (t *newDisks) init(h *Host) {
	t.h = h
	t.slots = make(chan struct{}, h.lim.clears)
}

// findLocked forgets what nobody has come back to, and finds a disk.
func (t *newDisks) findLocked(domain, vdev string) *begunDisk {
	now := t.h.now()
	t.disks = slices.DeleteFunc(t.disks, func(n *begunDisk) bool { return n.cancel == nil && now.Sub(n.touched) > t.h.lim.forget })
	for _, n := range t.disks {
		if n.domain == domain && n.vdev == vdev {
			return n
		}
	}
	return nil
}

func (t *newDisks) dropLocked(n *begunDisk) {
	t.disks = slices.DeleteFunc(t.disks, func(o *begunDisk) bool { return o == n })
}

func (t *newDisks) add(domain, vdev string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.findLocked(domain, vdev) != nil {
		return fmt.Errorf("%s of %s was begun already: write its size: %w", vdev, domain, backend.ErrExist)
	}
	own := 0
	for _, n := range t.disks {
		if n.domain == domain {
			own++
		}
	}
	if own >= maxNewDisksDomain || len(t.disks) >= maxNewDisks {
		return fmt.Errorf("%d disks of %s, %d in all, wait for their size already: write it, or remove their directories: %w", own, domain, len(t.disks), backend.ErrBusy)
	}
	t.disks = append(t.disks, &begunDisk{domain: domain, vdev: vdev, touched: t.h.now()})
	return nil
}

// start begins to make a disk, alone; end is to be called with whether the domain has it now.
func (t *newDisks) start(domain, vdev string) (ctx context.Context, source string, end func(attached bool), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.findLocked(domain, vdev)
	switch {
	case n == nil:
		return nil, "", nil, fmt.Errorf("%s has no disk %s: %w", domain, vdev, backend.ErrNotExist)
	case n.cancel != nil:
		return nil, "", nil, errBeingMade(domain, vdev)
	}
	ctx, n.cancel = context.WithCancel(t.h.done)
	n.done = make(chan struct{})
	return ctx, n.source, func(attached bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		n.cancel()
		close(n.done)
		n.cancel, n.done, n.touched = nil, nil, t.h.now()
		if attached {
			t.dropLocked(n)
		}
	}, nil
}

func errBeingMade(domain, vdev string) error {
	return fmt.Errorf("%s of %s is being made: wait, or remove its directory to end that: %w", vdev, domain, backend.ErrBusy)
}

// drop forgets a disk; there tells whether there was one. One that is being made is given up first.
func (t *newDisks) drop(ctx context.Context, domain, vdev string) (there bool, err error) {
	for {
		t.mu.Lock()
		n := t.findLocked(domain, vdev)
		if n == nil || n.cancel == nil {
			if n != nil {
				t.dropLocked(n)
			}
			t.mu.Unlock()
			return n != nil, nil
		}
		n.cancel()
		done := n.done
		t.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return true, contextError(ctx, vdev+" of "+domain+" is being given up")
		}
	}
}

// NewDisks are the disks of a domain that wait for their size, in the order in which they were begun.
func (h *Host) NewDisks(domain string) []NewDisk {
	t := &h.newDisks
	t.mu.Lock()
	defer t.mu.Unlock()
	t.findLocked("", "")
	var out []NewDisk
	for _, n := range t.disks {
		if n.domain == domain {
			out = append(out, NewDisk{VDev: n.vdev, Source: n.source})
		}
	}
	return out
}

// FindNewDisk finds a disk that waits for its size.
func (h *Host) FindNewDisk(domain, vdev string) (NewDisk, bool) {
	t := &h.newDisks
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.findLocked(domain, vdev)
	if n == nil {
		return NewDisk{}, false
	}
	return NewDisk{VDev: n.vdev, Source: n.source}, true
}

// BeginDisk begins a new disk of a running domain: nothing is made until Attach is told its size. It is forgotten after a while, and
// when the daemon ends.
func (h *Host) BeginDisk(ctx context.Context, domain, vdev string) error {
	return h.Failed(domain, "attach", h.beginDisk(ctx, domain, vdev))
}

func (h *Host) beginDisk(ctx context.Context, domain, vdev string) error {
	inv, err := h.Inventory(ctx)
	if err != nil {
		return err
	}
	d := inv.Domain(domain)
	switch {
	case d == nil:
		return fmt.Errorf("there is no domain %s: %w", domain, backend.ErrNotExist)
	case d.Disk(vdev) >= 0:
		return errHasDisk(d, vdev)
	}
	if _, err := d.attacher(); err != nil {
		return err
	}
	if err := checkVDev(vdev); err != nil {
		return err
	}
	return h.newDisks.add(domain, vdev)
}

func errHasDisk(d *Domain, vdev string) error {
	return fmt.Errorf("%s has a disk %s already: %w", d.Name, vdev, backend.ErrExist)
}

// SetSource says which Pool a new disk is to lie in, by its Name: ErrNoDevice if there is none such. Empty is beside the
// domain's first disk again.
func (h *Host) SetSource(ctx context.Context, domain, vdev, value string) error {
	return h.Failed(domain, "source", h.setSource(ctx, domain, vdev, value))
}

func (h *Host) setSource(ctx context.Context, domain, vdev, value string) error {
	inv, err := h.Inventory(ctx)
	if err != nil {
		return err
	}
	if value != "" {
		if _, _, err := h.creatorOf(inv, value); err != nil {
			return err
		}
	}
	t := &h.newDisks
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.findLocked(domain, vdev)
	switch {
	case n == nil:
		return SourceFixed(domain, vdev)
	case n.cancel != nil:
		return errBeingMade(domain, vdev)
	}
	n.source, n.touched = value, h.now()
	return nil
}

// SourceFixed is the error of who writes the source of a disk that there is.
func SourceFixed(domain, vdev string) error {
	return fmt.Errorf("%s of %s is where it is: only the source of a new disk can be written, before its size: %w", vdev, domain, backend.ErrReadOnly)
}

// creatorOf finds the store of a pool, by the pool's name in the tree.
func (h *Host) creatorOf(inv *Inventory, pool string) (backend.Creator, *Pool, error) {
	i := slices.IndexFunc(inv.Pools, func(p Pool) bool { return p.Name == pool })
	if i < 0 {
		return nil, nil, backend.Because(backend.ErrNoDevice, "there is no store %q: write the name of a directory in stores/", oneLine(pool))
	}
	p := &inv.Pools[i]
	cr, ok := h.stores[p.Store].(backend.Creator)
	if !ok {
		return nil, nil, fmt.Errorf("no volumes are made in %s (%s): write a volume group, or a thin pool: %w", pool, p.Driver, backend.ErrUnsupported)
	}
	return cr, p, nil
}

// attacher is the hypervisor that can let disks come and go of the domain as it is now.
func (d *Domain) attacher() (backend.Attacher, error) {
	if d.Stale != nil {
		return nil, fmt.Errorf("the state of %s is not known now: %w", d.Name, d.Stale)
	}
	if d.State == backend.StateOff {
		return nil, fmt.Errorf("%s is off, and its disks are those of its configuration: edit that, or start it first: %w", d.Name, backend.ErrUnsupported)
	}
	a, ok := d.hypervisor.(backend.Attacher)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s cannot give disks to a domain that runs, nor take them: %w", d.hypervisor.Name(), backend.ErrUnsupported)
	case d.reported == backend.StateOff:
		return nil, fmt.Errorf("%s is in use by %s, of which %s knows nothing: %w", d.Name, d.Holder, d.hypervisor.Name(), backend.ErrUnsupported)
	case d.State != backend.StateRunning:
		return nil, fmt.Errorf("%s is %s, and only a guest that runs takes a disk or lets go of it: %w", d.Name, d.State, backend.ErrBusy)
	}
	return a, nil
}

// The names of disks that guests of Xen know (xen-vbd-interface(7)), with their bounds.
var (
	vdevPattern   = regexp.MustCompile(`^(xvd|sd|hd)([a-z]{1,4})([1-9][0-9]{0,2})?$`)
	vdevMaxima    = map[string]struct{ disk, part int }{"xvd": {1<<20 - 1, 255}, "sd": {15, 15}, "hd": {3, 63}}
	errVDevFormat = errors.New("a disk's name is xvda to xvdz and on (xvdaa), sda to sdp or hda to hdd, with the number of a partition after it or not")
)

// checkVDev says whether a new disk can have that name.
func checkVDev(vdev string) error {
	m := vdevPattern.FindStringSubmatch(vdev)
	ok := m != nil
	if ok {
		disk := 0
		for _, letter := range m[2] { // a … z, aa, ab …
			disk = disk*26 + int(letter-'a') + 1
		}
		part, _ := strconv.Atoi(m[3]) // "" is 0: the whole disk
		most := vdevMaxima[m[1]]
		ok = disk-1 <= most.disk && part <= most.part
	}
	if !ok {
		return fmt.Errorf("%q cannot be a disk: %w: %w", oneLine(vdev), errVDevFormat, backend.ErrInvalid)
	}
	return nil
}

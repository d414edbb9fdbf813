package fake

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"domfs/backend"
)

// Hypervisor is a hypervisor as its admin sees it.
type Hypervisor struct {
	faults
	name string

	mu      sync.Mutex
	domains []*domain // guarded by mu
	nextID  int       // guarded by mu
}

type domain struct {
	backend.Domain
	pauses   int              // how often it is paused: it runs at 0
	sizes    map[string]int64 // as told by NotifySize
	everyone int              // how often it was paused, ever
}

// NewHypervisor is a hypervisor without domains.
func NewHypervisor(name string) *Hypervisor {
	return &Hypervisor{name: name, nextID: 1}
}

// Driver is what control sees, with those of Pause, Notify and Attach that caps names.
func (h *Hypervisor) Driver(caps Caps) backend.Hypervisor {
	d, p, n, a := hvDriver{h}, hvPauser{h}, hvNotifier{h}, hvAttacher{h}
	switch caps & (Pause | Notify | Attach) {
	case Pause:
		return struct {
			hvDriver
			hvPauser
		}{d, p}
	case Notify:
		return struct {
			hvDriver
			hvNotifier
		}{d, n}
	case Pause | Notify:
		return struct {
			hvDriver
			hvPauser
			hvNotifier
		}{d, p, n}
	case Attach:
		return struct {
			hvDriver
			hvAttacher
		}{d, a}
	case Pause | Attach:
		return struct {
			hvDriver
			hvPauser
			hvAttacher
		}{d, p, a}
	case Notify | Attach:
		return struct {
			hvDriver
			hvNotifier
			hvAttacher
		}{d, n, a}
	case Pause | Notify | Attach:
		return struct {
			hvDriver
			hvPauser
			hvNotifier
			hvAttacher
		}{d, p, n, a}
	}
	return d
}

func (h *Hypervisor) findLocked(name string) *domain {
	i := slices.IndexFunc(h.domains, func(d *domain) bool { return d.Name == name })
	if i < 0 {
		return nil
	}
	return h.domains[i]
}

func (h *Hypervisor) with(name string, f func(d *domain)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.findLocked(name)
	if d == nil {
		panic("fake: there is no domain " + name)
	}
	f(d)
}

// Add adds a domain.
func (h *Hypervisor) Add(d backend.Domain) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.State == "" {
		d.State = backend.StateOff
	}
	if d.State == backend.StateOff {
		d.ID = -1
	}
	h.domains = append(h.domains, &domain{Domain: d, sizes: map[string]int64{}})
}

// Start starts a domain.
func (h *Hypervisor) Start(name string) {
	h.with(name, func(d *domain) {
		d.State, d.ID = backend.StateRunning, h.nextID
		h.nextID++
	})
}

// Stop shuts a domain down.
func (h *Hypervisor) Stop(name string) {
	h.with(name, func(d *domain) { d.State, d.ID, d.pauses = backend.StateOff, -1, 0 })
}

// Rename renames a domain.
func (h *Hypervisor) Rename(name, to string) { h.with(name, func(d *domain) { d.Name = to }) }

// Change changes a domain's description.
func (h *Hypervisor) Change(name string, f func(d *backend.Domain)) {
	h.with(name, func(d *domain) { f(&d.Domain) })
}

// Remove ends a domain for good.
func (h *Hypervisor) Remove(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.domains = slices.DeleteFunc(h.domains, func(d *domain) bool { return d.Name == name })
}

// PauseByHand pauses a domain as an admin would.
func (h *Hypervisor) PauseByHand(name string) {
	h.with(name, func(d *domain) { d.pauses++; d.State = backend.StatePaused })
}

// Pauses is how often the domain is paused now: 0 means that it runs.
func (h *Hypervisor) Pauses(name string) (n int) {
	h.with(name, func(d *domain) { n = d.pauses })
	return n
}

// EverPaused is how often the domain has been paused.
func (h *Hypervisor) EverPaused(name string) (n int) {
	h.with(name, func(d *domain) { n = d.everyone })
	return n
}

// ToldSize is the size of a disk that the domain was told of last, 0 if none.
func (h *Hypervisor) ToldSize(name, vdev string) (n int64) {
	h.with(name, func(d *domain) { n = d.sizes[vdev] })
	return n
}

type hvDriver struct{ host *Hypervisor }

func (d hvDriver) Name() string { return d.host.name }

func (d hvDriver) Domains(ctx context.Context) ([]backend.Domain, error) {
	after, err := d.host.enter(ctx, "Domains", "")
	if err != nil {
		return nil, err
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	var out []backend.Domain
	for _, dom := range d.host.domains {
		c := dom.Domain
		c.Disks = slices.Clone(c.Disks)
		c.Warnings = slices.Clone(c.Warnings)
		out = append(out, c)
	}
	return out, after
}

type hvPauser struct{ host *Hypervisor }

func (p hvPauser) Pause(ctx context.Context, d backend.Domain) (func(context.Context) error, error) {
	h := p.host
	if _, err := h.enter(ctx, "Pause", d.Name); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	dom := h.findLocked(d.Name)
	if dom == nil || dom.ID != d.ID || dom.State == backend.StateOff {
		return nil, fmt.Errorf("%s does not run: %w", d.Name, backend.ErrNotExist)
	}
	dom.pauses++
	dom.everyone++
	dom.State = backend.StatePaused
	undone := false // guarded by h.mu
	return func(ctx context.Context) error {
		after, err := h.enter(ctx, "Resume", d.Name)
		if err != nil {
			return err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if undone || dom.ID != d.ID {
			return after
		}
		undone = true
		if dom.pauses--; dom.pauses == 0 {
			dom.State = backend.StateRunning
		}
		return after
	}, nil
}

type hvNotifier struct{ host *Hypervisor }

func (n hvNotifier) CanNotify(ctx context.Context, d backend.Domain, vdev string) error {
	_, err := n.host.enter(ctx, "CanNotify", d.Name)
	return err
}

func (n hvNotifier) NotifySize(ctx context.Context, d backend.Domain, vdev string, sizeBytes int64) error {
	if _, err := n.host.enter(ctx, "NotifySize", d.Name); err != nil {
		return err
	}
	n.host.mu.Lock()
	defer n.host.mu.Unlock()
	dom := n.host.findLocked(d.Name)
	if dom == nil {
		return fmt.Errorf("%s is gone: %w", d.Name, backend.ErrNotExist)
	}
	dom.sizes[vdev] = sizeBytes
	return nil
}

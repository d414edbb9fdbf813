package xen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore"
)

const (
	maxReadings = 3 // of xenstored and xl, until they agree
	concurrent  = 8 // domains that are read at once
)

// reader is the store, or a transaction in it.
type reader interface {
	Read(ctx context.Context, path string) (string, error)
	Directory(ctx context.Context, path string) ([]string, error)
	Permissions(ctx context.Context, path string) (xenstore.Permissions, error)
}

// Domains lists the domains, in the order of their numbers.
func (d *Driver) Domains(ctx context.Context) ([]backend.Domain, error) {
	for attempt := 1; ; attempt++ {
		records, err := d.records(ctx)
		if err != nil || len(records) == 0 {
			return nil, err
		}
		states, err := d.states(ctx)
		if err != nil {
			return nil, fmt.Errorf("the states of the domains: %w", err)
		}
		known := map[int]bool{0: true}
		var domains []backend.Domain
		for _, r := range records {
			known[r.ID] = true
			if state, ok := states[r.ID]; ok {
				r.State = state
				domains = append(domains, r)
			}
		}
		missed := false
		for id, state := range states {
			missed = missed || !known[id] && state != backend.StateDying
		}
		if missed && attempt < maxReadings {
			continue // it has begun since xenstored was asked, or is just being made
		}
		slices.SortFunc(domains, func(a, b backend.Domain) int { return cmp.Compare(a.ID, b.ID) })
		distinguish(domains)
		return domains, nil
	}
}

// number reads a number as xenstored's paths have it.
func number(s string, most int) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && n <= most && strconv.Itoa(n) == s
}

// guests are the numbers of the domains that have a directory, without that of domain 0.
func (d *Driver) guests(ctx context.Context) ([]int, error) {
	names, err := d.list(ctx, "/local/domain")
	if errors.Is(err, backend.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, name := range names {
		if id, ok := number(name, maxDomid); ok && id != 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// records are what xenstored has of the domains, without their states.
func (d *Driver) records(ctx context.Context) ([]backend.Domain, error) {
	ids, err := d.guests(ctx)
	if err != nil {
		return nil, err
	}
	found := make([]*backend.Domain, len(ids))
	errs := make([]error, len(ids))
	slots := make(chan struct{}, concurrent)
	var wg sync.WaitGroup
	restless := &atomic.Bool{}
	for i, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if found[i], errs[i] = d.record(ctx, id, restless); errors.Is(errs[i], backend.ErrNotExist) {
				errs[i] = nil // it has ended, or is just being made
			}
		})
	}
	wg.Wait()
	var out []backend.Domain
	for i, one := range found {
		if errs[i] != nil {
			return nil, fmt.Errorf("domain %d: %w", ids[i], errs[i])
		}
		if one != nil {
			out = append(out, *one)
		}
	}
	return out, nil
}

// record reads a domain's record as of one instant. Where the store does not hold still for that, as old versions do
// not while any guest writes, it is read as it comes; restless says so to those that are read after it.
func (d *Driver) record(ctx context.Context, id int, restless *atomic.Bool) (*backend.Domain, error) {
	var found *backend.Domain
	read := func(r reader) error {
		var err error
		found, err = d.readDomain(ctx, r, id)
		return err
	}
	if !restless.Load() {
		err := d.store.Transaction(ctx, func(t *xenstore.Tx) error { return read(t) })
		if !errors.Is(err, backend.ErrBusy) {
			return found, err
		}
		restless.Store(true)
	}
	err := read(d.store)
	return found, err
}

func domainPath(id int) string { return "/local/domain/" + strconv.Itoa(id) }

// only is who may write what is trusted: domain 0, and one more where backend is not 0.
func only(backend int) func(int) bool {
	return func(domain int) bool { return domain == 0 || domain == backend }
}

// guarded tells whether nobody but domain 0, and the domain backend, may write a node.
func guarded(ctx context.Context, r reader, path string, backend int) (bool, error) {
	p, err := r.Permissions(ctx, path)
	return err == nil && !p.WritableBy(only(backend)), err
}

// readDomain reads what xenstored has of a domain. ErrNotExist if it has no name.
func (d *Driver) readDomain(ctx context.Context, r reader, id int) (*backend.Domain, error) {
	home := domainPath(id)
	dom := &backend.Domain{ID: id, State: backend.StateRunning}
	fail := func(sentinel error, format string, args ...any) {
		if dom.Err == nil {
			dom.Err = fmt.Errorf("domain %d: %s: %w", id, fmt.Sprintf(format, args...), sentinel)
		}
	}
	name, err := r.Read(ctx, home+"/name")
	if err != nil {
		return nil, err
	}
	ok, err := guarded(ctx, r, home+"/name", 0)
	if err != nil {
		return nil, err
	}
	if dom.Name = name; !ok {
		dom.Name = "" // distinguish gives it one
		fail(backend.ErrPermission, "it may write its own name, which is not believed")
	}
	if dom.UUID, err = readUUID(ctx, r, home+"/vm"); err != nil {
		return nil, err
	}
	disks := diskReader{d: d, r: r, id: id, warn: func(format string, args ...any) {
		dom.Warnings = append(dom.Warnings, fmt.Sprintf("domain %d: %s", id, fmt.Sprintf(format, args...)))
	}, fail: fail}
	if dom.Disks, err = disks.read(ctx); err != nil {
		return nil, err
	}
	return dom, nil
}

// readUUID is that of the path in a domain's vm, or else of the uuid there; "" where there is none that can be believed.
func readUUID(ctx context.Context, r reader, pointer string) (string, error) {
	path, err := optional(r.Read(ctx, pointer))
	if err != nil || path == "" {
		return "", err
	}
	name, ok := strings.CutPrefix(path, "/vm/")
	if !ok || strings.Contains(name, "/") {
		return "", nil
	}
	ok, err = guarded(ctx, r, pointer, 0)
	if err != nil || !ok {
		return "", err
	}
	if id := normalUUID(name); id != "" {
		return id, nil
	}
	value, err := optional(r.Read(ctx, path+"/uuid"))
	if err != nil || value == "" {
		return "", err
	}
	if ok, err = guarded(ctx, r, path+"/uuid", 0); err != nil || !ok {
		return "", err
	}
	return normalUUID(value), nil
}

// optional makes nothing of a node that is not there, or that has a path that no node can have.
func optional(value string, err error) (string, error) {
	if errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrInvalid) {
		return "", nil
	}
	return value, err
}

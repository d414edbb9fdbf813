package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// makingSets are the sets of this process that are not committed yet: users do not see
// them, whatever their members' state is.
type makingSets struct {
	mu  sync.Mutex
	ids map[string]bool // guarded by mu
}

func (m *makingSets) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ids[id]
}

func (m *makingSets) set(id string, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !on {
		delete(m.ids, id)
		return
	}
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	m.ids[id] = true
}

// Snapshot makes a snapshot of every disk of a domain, CD-ROM drives aside: of all of them
// or, with the reason as the error, of none. A domain that runs is frozen and paused meanwhile, where there is what can do
// that, and never longer than some seconds. Disks that a store has to copy are
// copied after Snapshot has returned: the set's state is filling until then.
func (h *Host) Snapshot(ctx context.Context, dir, name string) error {
	c := &change{op: "snapshot", domain: dir, snapshot: name}
	check := func() error { return checkName(name) }
	var f *fill
	err := h.do(ctx, c, check, func(ctx context.Context, inv *Inventory) error {
		h.settleHidden(ctx, inv)
		d, err := c.findDir(inv, dir)
		if err != nil {
			return err
		}
		m := &maker{h: h, c: c, domain: d.Domain, name: name}
		if err := m.refusal(d); err != nil {
			return err
		}
		f, err = m.make(ctx)
		if f != nil {
			h.running.Add(1) // before this change is counted off: Close waits for the copy, too
		}
		if err == nil {
			c.touched = append(c.touched, Change{Dir: d.Name, SetID: m.id})
			if f == nil {
				err = h.mapNew(ctx, c, m)
			}
		}
		return err
	})
	if f != nil {
		go func() {
			defer h.running.Done()
			f.run()
		}()
	}
	return err
}

// maker makes one set.
type maker struct {
	h      *Host
	c      *change
	domain *Domain
	name   string

	id         string
	created    time.Time
	parts      []*storePart
	reqs       []backend.SnapshotRequest // in the configuration's order
	made       []member
	committing bool // some of made may be marked as good
	fill       *fill
	started    bool // somebody began to use the disks, so the domain was not off throughout
}

// storePart is one store's share.
type storePart struct {
	store backend.Snapshotter
	name  string
	reqs  []backend.SnapshotRequest
	guard backend.Guard
}

type member struct {
	part *storePart
	snap backend.Snapshot
}

// refusal says why no snapshot can be made, as far as the inventory knows.
func (m *maker) refusal(dir *SnapshotDir) error {
	d := m.domain
	if d == nil {
		return fmt.Errorf("only a domain that exists can be snapshotted, and %s is gone: %w", dir.Name, backend.ErrPermission)
	}
	if d.Stale != nil {
		return fmt.Errorf("the state of %s is not known now: %w", d.Name, d.Stale)
	}
	if d.Err != nil {
		return fmt.Errorf("the disks of %s are not all known: %w", d.Name, d.Err)
	}
	if s := dir.Set(m.name); s != nil {
		return fmt.Errorf("%s has a snapshot %s already: remove or rename it, or choose another name: %w", d.Name, m.name, backend.ErrExist)
	}
	return nil
}

// request finds the store of every disk.
func (m *maker) request(ctx context.Context) error {
	d := m.domain
	m.created = m.h.now().UTC().Truncate(time.Second)
	m.id = newSetID(m.h.now())
	for i, k := range d.Disks {
		if k.CDROM {
			continue
		}
		v := d.Volumes[i]
		if v.Err != nil {
			return fmt.Errorf("disk %s of %s: %w", k.VDev, d.Name, v.Err)
		}
		st, ok := m.h.stores[v.Store].(backend.Snapshotter)
		if !ok {
			if err := m.h.excluded(ctx, k); err != nil {
				return fmt.Errorf("disk %s of %s (%s) cannot be snapshotted: %w", k.VDev, d.Name, k.Source, err)
			}
			return fmt.Errorf("disk %s of %s (%s) cannot be snapshotted: its store %s has no snapshots: %w", k.VDev, d.Name, k.Source, v.Store, backend.ErrUnsupported)
		}
		m.reqs = append(m.reqs, backend.SnapshotRequest{Origin: v, Meta: backend.SnapshotMeta{
			Set: m.id, Name: m.name, DomainName: d.Name, DomainUUID: d.lastingUUID(), Disk: k, Created: m.created,
			State: backend.SnapshotPending,
		}})
		if m.part(v.Store) == nil {
			m.parts = append(m.parts, &storePart{store: st, name: v.Store})
		}
	}
	if len(m.reqs) == 0 {
		return fmt.Errorf("%s has no disks to snapshot: %w", d.Name, backend.ErrUnsupported)
	}
	for i := range m.reqs {
		m.reqs[i].Meta.DiskCount = len(m.reqs)
		// What could be promised is known in the end only; until then, the least.
		m.reqs[i].Meta.Consistency = m.consistency(stillness{})
		p := m.part(m.reqs[i].Origin.Store)
		p.reqs = append(p.reqs, m.reqs[i])
	}
	return nil
}

func (m *maker) part(store string) *storePart {
	for _, p := range m.parts {
		if p.name == store {
			return p
		}
	}
	return nil
}

// stillness is what was kept still while the snapshots were made.
type stillness struct{ frozen, paused bool }

func (m *maker) consistency(still stillness) backend.Consistency {
	switch {
	case !m.domain.isRunning() && !m.started:
		return backend.ConsistencyOff
	case still.frozen:
		return backend.ConsistencyFrozen
	case still.paused:
		return backend.ConsistencyPaused
	case len(m.reqs) == 1:
		return backend.ConsistencyCrash
	}
	return backend.ConsistencyCrashPerDisk
}

// make makes the set. The fill is of those disks that are to be copied yet, nil if there
// are none.
func (m *maker) make(ctx context.Context) (*fill, error) {
	if err := m.request(ctx); err != nil {
		return nil, err
	}
	m.h.making.set(m.id, true)
	defer m.h.making.set(m.id, false)
	defer func() {
		if m.fill == nil {
			m.releaseGuards()
		}
	}()
	for _, p := range m.parts {
		fault.Point("control.snapshot.prepare")
		g, err := p.store.Prepare(ctx, p.reqs, m.domain.isRunning())
		if err != nil {
			return nil, m.explain(err)
		}
		p.guard = g
	}
	still, err := m.takeStill(ctx)
	if err == nil {
		err = m.lookAgain(ctx)
	}
	if err == nil {
		err = m.commit(ctx, still)
	}
	if err != nil {
		m.undo(ctx)
		return nil, err
	}
	m.c.message = string(m.consistency(still))
	m.c.extra = []zap.Field{zap.String("consistency", m.c.message), zap.Int("disks", len(m.made)), zap.Bool("filling", m.fill != nil)}
	return m.fill, nil
}

// explain adds who keeps the domain running, where nobody but they can say so.
func (m *maker) explain(err error) error {
	if m.domain.Holder == "" || !errors.Is(err, backend.ErrUnsupported) || strings.Contains(err.Error(), m.domain.Holder) {
		return err
	}
	return fmt.Errorf("%s counts as running, for %s has a disk of it open: %w", m.domain.Name, m.domain.Holder, err)
}

// takeStill makes the snapshots, with the guest frozen and the domain paused where it runs and can be.
func (m *maker) takeStill(ctx context.Context) (still stillness, err error) {
	state := m.domain.reported
	if state != backend.StateRunning && state != backend.StatePaused {
		return stillness{}, m.takeAll(ctx)
	}
	// What the pause needs beforehand comes first: a guest that is frozen waits for everything that follows.
	pauser, release, err := m.preparePause(ctx)
	if err != nil {
		return stillness{}, err
	}
	defer release()
	// A guest that is paused already can do nothing to freeze itself.
	freezer := m.h.o.Freezer
	if freezer == nil || state == backend.StatePaused {
		return m.takePaused(ctx, pauser)
	}
	fault.Point("control.snapshot.freeze")
	k, ctx, err := m.h.freeze(ctx, freezer, m.domain, m.name)
	if err != nil {
		return stillness{}, err
	}
	fault.Point("control.snapshot.frozen")
	still, err = m.takePaused(ctx, pauser)
	keptErr := k.end()
	m.c.frozen = k.lasted
	fault.Point("control.snapshot.thawed")
	if keptErr != nil && (err == nil || k.late) { // else the snapshots failed for a reason of their own
		return stillness{}, keptErr
	}
	still.frozen = true
	return still, err
}

// preparePause is what pauses the domain; nil where nothing can, or nothing is to.
func (m *maker) preparePause(ctx context.Context) (p backend.Pauser, release func(), err error) {
	none := func() {}
	p, ok := m.domain.hypervisor.(backend.Pauser)
	if !ok || m.h.o.NoPause {
		return nil, none, nil
	}
	preparer, ok := p.(backend.PausePreparer)
	if !ok {
		return p, none, nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.h.lim.pause)
	defer cancel()
	p, release, err = preparer.PreparePause(ctx, m.domain.Domain)
	if err != nil {
		return nil, none, fmt.Errorf("%s cannot be paused: %w", m.domain.Name, err)
	}
	return p, release, nil
}

// takePaused makes the snapshots, with the domain paused if there is a pauser.
func (m *maker) takePaused(ctx context.Context, pauser backend.Pauser) (still stillness, err error) {
	if pauser == nil {
		return stillness{}, m.takeAll(ctx)
	}
	fault.Point("control.snapshot.pause")
	k, ctx, err := m.h.pause(ctx, pauser, m.domain)
	if err != nil {
		return stillness{}, err
	}
	fault.Point("control.snapshot.paused")
	err = m.takeAll(ctx)
	keptErr := k.end()
	m.c.paused = k.lasted
	fault.Point("control.snapshot.resumed")
	if keptErr != nil && (err == nil || k.late) { // else the snapshots failed for a reason of their own
		return stillness{}, keptErr
	}
	return stillness{paused: true}, err
}

func (m *maker) takeAll(ctx context.Context) error {
	for _, req := range m.reqs {
		if ctx.Err() != nil {
			return contextError(ctx, "making the snapshots")
		}
		fault.Point("control.snapshot.disk")
		p := m.part(req.Origin.Store)
		sn, err := p.store.Snapshot(ctx, req, p.guard)
		if err != nil {
			return fmt.Errorf("disk %s: %w", req.Meta.Disk.VDev, err)
		}
		sn.Volume.Store = p.name
		m.made = append(m.made, member{p, sn})
	}
	for _, p := range m.parts {
		if err := p.guard.Broken(); err != nil {
			return fmt.Errorf("the disks of %s were not left alone meanwhile: %w", m.domain.Name, err)
		}
	}
	return nil
}

// lookAgain finds out what may have changed until the last disk was taken: whether a domain that was off was so throughout, and
// whether one that had stopped had all of its disks still.
func (m *maker) lookAgain(ctx context.Context) error {
	exclusive := !slices.ContainsFunc(m.parts, func(p *storePart) bool { return !p.guard.Exclusive() })
	mayEnd := m.mayEnd()
	if !mayEnd && (m.domain.isRunning() || exclusive) {
		return nil // or a guard kept everybody from the disks
	}
	inv, err := m.h.read(ctx)
	if err != nil {
		return err
	}
	d := inv.Domain(m.domain.Name)
	if !mayEnd {
		m.started = d == nil || d.UUID != m.domain.UUID || d.isRunning()
		return nil
	}
	if d == nil || d.ID != m.domain.ID || d.Stale != nil || !slices.Equal(d.Disks, m.domain.Disks) {
		return backend.Because(backend.ErrBusy, "%s was %s, and has ended or changed meanwhile, so that it may not have had all of its disks any more: make the snapshot again",
			m.domain.Name, m.domain.reported)
	}
	return nil
}

// mayEnd tells whether a domain that still exists may be on its way to its end: it is paused or has stopped then, and loses its disks one by one.
func (m *maker) mayEnd() bool {
	switch m.domain.reported {
	case backend.StatePaused, backend.StateShutdown, backend.StateCrashed, backend.StateDying:
		return true
	}
	return false
}

// commit makes the set lasting. A copy that is to follow is announced before.
func (m *maker) commit(ctx context.Context, still stillness) error {
	if slices.ContainsFunc(m.made, func(k member) bool { return k.snap.State == backend.SnapshotFilling }) {
		if err := m.announceFill(); err != nil {
			return err
		}
	}
	// Readers go by the first member by vdev, and see no set while one is pending.
	slices.SortStableFunc(m.made, func(a, b member) int { return compare(a.snap.Disk.VDev, b.snap.Disk.VDev) })
	var all []backend.Annotation
	for _, k := range m.made {
		meta := k.snap.SnapshotMeta
		meta.DiskCount = len(m.made)
		meta.Consistency = m.consistency(still)
		if meta.State != backend.SnapshotFilling {
			meta.State = backend.SnapshotActive
		}
		all = append(all, k.snap.With(meta))
	}
	fault.Point("control.snapshot.commit")
	m.committing = true
	if err := m.h.annotateEach(ctx, all); err != nil {
		return err
	}
	for i := range m.made {
		m.made[i].snap.SnapshotMeta = all[i].Meta
	}
	fault.Point("control.snapshot.committed")
	return nil
}

func (m *maker) announceFill() error {
	unlock, err := m.h.lock.lockFill(m.id)
	if err != nil {
		return err
	}
	m.fill = m.h.newFill(m, unlock)
	return nil
}

// undo takes back what was made, last first.
func (m *maker) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.h.lim.undo)
	defer cancel()
	// A set that is committed in part would look whole or damaged after a crash here:
	// marked first, it is known as one to be removed.
	if m.committing {
		var all []backend.Annotation
		for _, k := range m.made {
			meta := k.snap.SnapshotMeta
			meta.State = backend.SnapshotRemoving
			all = append(all, k.snap.With(meta))
		}
		m.h.annotateAsFarAsItGoes(ctx, m.name, "a half-made snapshot could not be marked as such", all)
	}
	for _, k := range slices.Backward(m.made) {
		fault.Point("control.snapshot.undo")
		if err := k.part.store.Remove(ctx, k.snap); err != nil {
			m.h.log.Error("a half-made snapshot is left over; the next start or snapshot removes it", zap.String("domain", m.domain.Name),
				zap.String("snapshot", m.name), zap.String("volume", k.snap.Volume.ID), zap.Error(err))
		}
	}
	if m.fill != nil {
		m.fill.finish(fmt.Errorf("it was never begun: %w", backend.ErrIO))
		m.fill = nil
	}
}

func (m *maker) releaseGuards() {
	for _, p := range m.parts {
		if p.guard != nil {
			p.guard.Release()
		}
	}
}

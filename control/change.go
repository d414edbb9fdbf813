package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// The changes. Each takes the host's lock, acts on a fresh inventory, runs to its end
// whatever becomes of ctx's cancellation, and records a failure in LastErrors, the log and events.
// dir is a SnapshotDir's name; value is what the user wrote, less one newline at its end.

// change is one verb under way.
type change struct {
	h                *Host
	op               string // what events and last_error call it
	domain           string
	snapshot         string
	disk             string
	touched          []Change
	quiet            bool   // nothing was to do: no line, no event
	message          string // for the event of its success
	extra            []zap.Field
	paused, frozen   time.Duration // how long the domain was so for it
	began            time.Time
	ignoreIfNotExist bool // what is to be changed may be gone: no failure
}

// do takes the host's lock, reads the host and runs f on it. check, if not nil, is what can
// be told without either.
func (h *Host) do(ctx context.Context, c *change, check func() error, f func(ctx context.Context, inv *Inventory) error) error {
	c.h, c.began = h, h.now()
	err := h.underLock(ctx, c, check, f)
	return c.finish(err)
}

func (h *Host) underLock(ctx context.Context, c *change, check func() error, f func(ctx context.Context, inv *Inventory) error) error {
	end, err := h.begin()
	if err != nil {
		return err
	}
	defer end()
	if check != nil {
		if err := check(); err != nil {
			return err
		}
	}
	ctx = context.WithoutCancel(ctx)
	what := c.op + " of " + c.domain
	if c.snapshot != "" {
		what += "/" + c.snapshot
	}
	release, err := h.lock.acquire(ctx, what, h.o.LockTimeout)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, h.lim.change)
	defer cancel()
	defer h.invalidate()
	h.resumeAfterDeath(ctx)
	inv, err := h.fresh(ctx)
	if err != nil {
		return err
	}
	return f(ctx, inv)
}

// finish tells of the change's end, with no lock held.
func (c *change) finish(err error) error {
	h := c.h
	h.notify(c.touched...)
	h.kickExpiry()
	h.guard.wake()
	if c.quiet && err == nil {
		return nil
	}
	took := h.now().Sub(c.began)
	if err != nil {
		if c.ignoreIfNotExist && errors.Is(err, backend.ErrNotExist) {
			return err
		}
		h.stats.add("changes_failed", 1)
		if h.record(c.domain, c.op, h.errno(err), err.Error()) {
			h.logFailure(c, took, err)
		}
		h.emit(Event{Event: "error", Domain: c.domain, Snapshot: c.snapshot, Disk: c.disk, Errno: h.errno(err),
			Message: c.op + ": " + oneLine(err.Error()), Took: took.Seconds(), Paused: c.paused.Seconds(), Frozen: c.frozen.Seconds()})
		return err
	}
	h.stats.add("changes_"+c.op, 1)
	h.log.Info("done", append(c.fields(took), c.extra...)...)
	h.emit(Event{Event: c.op, Domain: c.domain, Snapshot: c.snapshot, Disk: c.disk, Message: c.message, Took: took.Seconds(),
		Paused: c.paused.Seconds(), Frozen: c.frozen.Seconds()})
	return nil
}

func (c *change) fields(took time.Duration) []zap.Field {
	fs := []zap.Field{zap.String("op", c.op), zap.String("domain", c.domain)}
	if c.snapshot != "" {
		fs = append(fs, zap.String("snapshot", c.snapshot))
	}
	if c.disk != "" {
		fs = append(fs, zap.String("disk", c.disk))
	}
	if c.frozen > 0 {
		fs = append(fs, zap.Duration("frozen", c.frozen))
	}
	if c.paused > 0 {
		fs = append(fs, zap.Duration("paused", c.paused))
	}
	return append(fs, zap.Duration("took", took))
}

// logFailure logs what the user asked for wrongly as Info, what went wrong as Warn.
func (h *Host) logFailure(c *change, took time.Duration, err error) {
	fs := append(c.fields(took), zap.String("errno", h.errno(err)), zap.Error(err))
	if isRefusal(err) {
		h.log.Info("refused", fs...)
		return
	}
	h.log.Warn("failed", fs...)
}

// isRefusal tells whether an error is an answer to the user rather than a fault of the host.
func isRefusal(err error) bool {
	for _, s := range []error{backend.ErrInvalid, backend.ErrExist, backend.ErrNotExist, backend.ErrPermission, backend.ErrReadOnly, backend.ErrUnsupported, backend.ErrBusy, backend.ErrTooLong} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// findDir finds a snapshot directory for a change, and files the change under its domain.
func (c *change) findDir(inv *Inventory, dir string) (*SnapshotDir, error) {
	d := inv.SnapshotDir(dir)
	if d == nil {
		return nil, fmt.Errorf("there is no domain %s: %w", dir, backend.ErrNotExist)
	}
	c.domain = d.domainName()
	return d, nil
}

// findSet finds a set for a change.
func (c *change) findSet(inv *Inventory, dir, name string) (*SnapshotDir, *Set, error) {
	d, err := c.findDir(inv, dir)
	if err != nil {
		return nil, nil, err
	}
	s := d.Set(name)
	if s == nil {
		return nil, nil, fmt.Errorf("%s has no snapshot %s: %w", d.Name, name, backend.ErrNotExist)
	}
	if s.Stale != nil {
		return nil, nil, fmt.Errorf("snapshot %s of %s cannot be read now, so it is left as it is: %w", name, d.Name, s.Stale)
	}
	return d, s, nil
}

// snapshotterOf is the store of a snapshot.
func (h *Host) snapshotterOf(v backend.Volume) (backend.Snapshotter, error) {
	s, ok := h.stores[v.Store].(backend.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("store %s makes no snapshots: %w", v.Store, backend.ErrUnsupported)
	}
	return s, nil
}

// annotate replaces the meta of all members of a set: all or none. What a crash leaves of it is made equal by the next start.
func (h *Host) annotate(ctx context.Context, s *Set, edit func(m *backend.SnapshotMeta)) error {
	return h.annotateMembers(ctx, s.Name, s.Disks, edit)
}

func (h *Host) annotateMembers(ctx context.Context, set string, members []backend.Snapshot, edit func(m *backend.SnapshotMeta)) error {
	var all []backend.Annotation
	for _, sn := range members {
		m := sn.SnapshotMeta
		edit(&m)
		all = append(all, sn.With(m))
	}
	err := h.annotateEach(ctx, all)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.lim.undo)
	defer cancel()
	var back []backend.Annotation
	for i, a := range all {
		edited := a.Snapshot
		edited.SnapshotMeta = a.Meta
		back = append(back, edited.With(members[i].SnapshotMeta))
	}
	h.annotateAsFarAsItGoes(undo, set, "a snapshot's record could not be put back", back)
	return err
}

// annotateAsFarAsItGoes replaces metas, if not of all together then of each that can be. Those that cannot are told of in the log;
// one that is gone needs no meta.
func (h *Host) annotateAsFarAsItGoes(ctx context.Context, set, otherwise string, all []backend.Annotation) {
	if h.annotateEach(ctx, all) == nil {
		return
	}
	for _, a := range slices.Backward(all) {
		if err := h.annotateEach(ctx, []backend.Annotation{a}); err != nil && !errors.Is(err, backend.ErrNotExist) {
			h.log.Warn(otherwise, zap.String("snapshot", set), zap.String("volume", a.Snapshot.Volume.ID), zap.Error(err))
		}
	}
}

// annotateEach replaces metas, each store's that follow one another at once.
func (h *Host) annotateEach(ctx context.Context, all []backend.Annotation) error {
	for len(all) > 0 {
		n := slices.IndexFunc(all, func(a backend.Annotation) bool { return a.Snapshot.Volume.Store != all[0].Snapshot.Volume.Store })
		if n < 0 {
			n = len(all)
		}
		st, err := h.snapshotterOf(all[0].Snapshot.Volume)
		if err != nil {
			return err
		}
		if err := st.Annotate(ctx, all[:n]...); err != nil {
			return fmt.Errorf("the record of %s: %w", disksOf(all[:n]), err)
		}
		all = all[n:]
	}
	return nil
}

// disksOf names the disks for a message.
func disksOf(all []backend.Annotation) string {
	var vdevs []string
	for _, a := range all {
		vdevs = append(vdevs, a.Snapshot.Disk.VDev)
	}
	if len(vdevs) == 1 {
		return "disk " + vdevs[0]
	}
	return "disks " + strings.Join(vdevs, ", ")
}

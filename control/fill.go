package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// fill is the copying of those disks of a set that a store could only reserve space for.
// It runs without the host's lock, which it takes at its end.
type fill struct {
	h      *Host
	id     string
	domain string
	name   string
	parts  []*storePart
	copies []member
	bytes  []int64 // to copy of each: what its store has reserved, until that says more; of run's goroutine once it runs
	unlock func()  // of the file that tells other daemons

	ctx       context.Context // ends when the copy is to end
	cancel    context.CancelFunc
	abandoned context.Context // ends when somebody else removes the set
	abandonIt context.CancelFunc

	once sync.Once
	done chan struct{}
	err  error // ErrIO: why it failed; ErrNotExist: the set was removed; valid once done is closed
}

// fillTable are the copies of this process, from before their set is committed until
// they have ended.
type fillTable struct {
	mu    sync.Mutex
	fills map[string]*fill // guarded by mu; by set ID
	slots chan struct{}    // one for each copy at work
}

func (t *fillTable) init(slots int) {
	t.fills = map[string]*fill{}
	t.slots = make(chan struct{}, slots)
}

// find finds the copy of a set, nil if this process makes none.
func (t *fillTable) find(setID string) *fill {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fills[setID]
}

func (t *fillTable) count() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int64(len(t.fills))
}

func (t *fillTable) cancelAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.fills {
		f.cancel()
	}
}

// newFill announces the copy of a set that is about to be committed.
func (h *Host) newFill(m *maker, unlock func()) *fill {
	f := &fill{h: h, id: m.id, domain: m.domain.Name, name: m.name, parts: m.parts, unlock: unlock, done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(h.done)
	f.abandoned, f.abandonIt = context.WithCancel(context.Background())
	for _, k := range m.made {
		if k.snap.State == backend.SnapshotFilling {
			f.copies = append(f.copies, k)
			f.bytes = append(f.bytes, toCopy(k.snap))
		}
	}
	h.fills.mu.Lock()
	h.fills.fills[f.id] = f
	h.fills.mu.Unlock()
	return f
}

// toCopy is how many bytes of a snapshot are to be copied, as far as one can say before its store does: those
// of its file, which a guest sees more or fewer of.
func toCopy(snap backend.Snapshot) int64 {
	if snap.UsedBytes > 0 {
		return snap.UsedBytes
	}
	return snap.Volume.SizeBytes
}

// total is how many bytes are to be copied of all disks.
func (f *fill) total() (sum int64) {
	for _, n := range f.bytes {
		sum += n
	}
	return sum
}

// finish ends the fill: whoever waits for it goes on.
func (f *fill) finish(err error) {
	f.once.Do(func() {
		f.err = err
		for _, p := range f.parts {
			p.guard.Release()
		}
		f.unlock()
		f.cancel()
		f.h.fills.mu.Lock()
		delete(f.h.fills.fills, f.id)
		f.h.fills.mu.Unlock()
		close(f.done)
	})
}

// abandon ends the copy and leaves the set to the caller, who has the host's lock.
func (f *fill) abandon() {
	f.abandonIt()
	f.cancel()
	<-f.done
}

func (f *fill) run() {
	began := f.h.now()
	f.h.log.Info("copying begins", zap.String("op", "fill"), zap.String("domain", f.domain), zap.String("snapshot", f.name), zap.Int64("bytes", f.total()))
	err := f.copyAll()
	if err == nil {
		err = f.activate()
	}
	took := f.h.now().Sub(began)
	switch {
	case f.abandoned.Err() != nil:
		f.finish(f.removed())
		return
	case err != nil:
		f.fail(err, took)
		return
	}
	f.finish(nil)
	f.h.stats.add("fills_done", 1)
	f.h.log.Info("done", zap.String("op", "fill"), zap.String("domain", f.domain), zap.String("snapshot", f.name), zap.Duration("took", took))
	f.h.emit(Event{Event: "fill", Domain: f.domain, Snapshot: f.name, Disk: f.lastDisk(), Message: "done", Done: f.total(), Total: f.total(), Took: took.Seconds()})
	f.notify(false)
}

// lastDisk is the disk whose copy ends the set's.
func (f *fill) lastDisk() string { return f.copies[len(f.copies)-1].snap.Disk.VDev }

// copyAll copies one disk after the other.
func (f *fill) copyAll() error {
	select {
	case f.h.fills.slots <- struct{}{}:
		defer func() { <-f.h.fills.slots }()
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
	p := progress{f: f}
	for i, k := range f.copies {
		fault.Point("control.fill.disk")
		filler, ok := k.part.store.(backend.Filler)
		if !ok {
			return fmt.Errorf("disk %s: store %s cannot copy: %w", k.snap.Disk.VDev, k.part.name, backend.ErrUnsupported)
		}
		err := filler.Fill(f.ctx, k.snap, k.part.guard, p.at(i))
		if err == nil {
			err = k.part.guard.Broken()
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", k.snap.Disk.VDev, err)
		}
		p.base += f.bytes[i]
	}
	return nil
}

const (
	progressEvery    = time.Second      // between events
	progressLogEvery = 30 * time.Second // between lines of the log
)

// progress tells of a copy now and then. Its store calls it from one goroutine at a time.
type progress struct {
	f         *fill
	base      int64 // bytes of the disks before
	lastEvent time.Time
	lastLog   time.Time
}

// at is for the disk with the number i.
func (p *progress) at(i int) func(done, total int64) {
	vdev := p.f.copies[i].snap.Disk.VDev
	return func(done, total int64) {
		p.f.bytes[i] = max(total, 0)
		now := time.Now()
		done, total = p.base+min(max(done, 0), p.f.bytes[i]), p.f.total()
		if now.Sub(p.lastEvent) >= progressEvery {
			p.lastEvent = now
			p.f.h.emit(Event{Event: "fill", Domain: p.f.domain, Snapshot: p.f.name, Disk: vdev, Done: done, Total: total})
		}
		if p.lastLog.IsZero() {
			p.lastLog = now
		}
		if now.Sub(p.lastLog) >= progressLogEvery {
			p.lastLog = now
			p.f.h.log.Info("copying", zap.String("op", "fill"), zap.String("domain", p.f.domain), zap.String("snapshot", p.f.name),
				zap.String("disk", vdev), zap.Int64("done", done), zap.Int64("total", total))
		}
	}
}

// activate marks the set as whole. Its record may have changed since the copy began.
func (f *fill) activate() error {
	return f.underLock(f.ctx, f.h.lim.change, func(ctx context.Context, s *Set) error {
		if s == nil || s.State != backend.SnapshotFilling || s.Stale != nil {
			return fmt.Errorf("the snapshot was removed or damaged meanwhile: %w", backend.ErrIO)
		}
		fault.Point("control.fill.activate")
		return f.h.annotate(ctx, s, func(m *backend.SnapshotMeta) { m.State = backend.SnapshotActive })
	})
}

// underLock takes the host's lock, unless unless ends, reads the host, and runs change on the set as
// it is now (nil: it is gone), which may take limit.
func (f *fill) underLock(unless context.Context, limit time.Duration, change func(ctx context.Context, s *Set) error) error {
	release, err := f.lockUnless(unless)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	defer f.h.invalidate()
	inv, err := f.h.fresh(ctx)
	if err != nil {
		return err
	}
	_, s := inv.set(f.id)
	return change(ctx, s)
}

// lockUnless takes the host's lock, however long that takes, unless ctx ends.
func (f *fill) lockUnless(ctx context.Context) (func(), error) {
	for {
		release, err := f.h.lock.acquire(ctx, "fill of "+f.domain+"/"+f.name, f.h.o.LockTimeout)
		if err == nil || ctx.Err() != nil || !errors.Is(err, backend.ErrBusy) {
			return release, err
		}
	}
}

// removed is what those are told who waited for a set that somebody removed.
func (f *fill) removed() error {
	return fmt.Errorf("snapshot %s of %s was removed while it was copied: %w", f.name, f.domain, backend.ErrNotExist)
}

// fail removes the set, and tells why.
func (f *fill) fail(err error, took time.Duration) {
	removeErr := f.removeSet()
	if f.abandoned.Err() != nil {
		f.finish(f.removed())
		return
	}
	if f.h.done.Err() != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("the daemon ended before the copy did, so the snapshot is removed: %w", backend.ErrIO)
	}
	waiters := fmt.Errorf("the copy of snapshot %s of %s failed: %v: %w", f.name, f.domain, err, backend.ErrIO)
	f.h.stats.add("fills_failed", 1)
	err = fmt.Errorf("snapshot %s could not be copied and is removed: %w", f.name, err)
	f.h.record(f.domain, "fill", f.h.errno(err), err.Error())
	f.finish(waiters)
	f.h.log.Warn("failed", zap.String("op", "fill"), zap.String("domain", f.domain), zap.String("snapshot", f.name), zap.Duration("took", took), zap.Error(err))
	if removeErr != nil {
		f.h.log.Error("a half-copied snapshot is left over; the next start removes it", zap.String("domain", f.domain), zap.String("snapshot", f.name), zap.Error(removeErr))
	}
	f.h.emit(Event{Event: "error", Domain: f.domain, Snapshot: f.name, Errno: f.h.errno(err), Message: "fill: " + oneLine(err.Error()), Took: took.Seconds()})
	f.notify(true)
}

func (f *fill) removeSet() error {
	return f.underLock(f.abandoned, f.h.lim.undo, func(ctx context.Context, s *Set) error {
		if s == nil {
			return nil
		}
		return f.h.removeMembers(ctx, s)
	})
}

func (f *fill) notify(gone bool) {
	dir := f.domain
	if inv, err := f.h.Inventory(f.h.done); err == nil {
		if d, _ := inv.set(f.id); d != nil {
			dir = d.Name
		}
	}
	f.h.notify(Change{Dir: dir, SetID: f.id, Gone: gone})
	f.h.kickExpiry()
}

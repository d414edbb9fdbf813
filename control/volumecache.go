package control

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// volumeCache keeps disks open, by what they are in the tree. A disk is open while
// anybody has acquired one of its volumes, and after that until it is closed to make room,
// because it changed, or because nobody has used it for a moment: the filesystem that an image lies
// in could not be unmounted else.
type volumeCache struct {
	h *Host

	mu       sync.Mutex
	disks    map[diskKey]*disk         // guarded by mu; those that may be acquired
	alive    map[*disk]bool            // guarded by mu; all that are open, those that are to be closed on their last Release included
	opening  map[diskKey]chan struct{} // guarded by mu; closed when the opening has ended
	order    *list.List                // guarded by mu; of disks' values, latest used first
	open     int64                     // guarded by mu; devices open, those to be closed on their last Release included
	acquired int64                     // guarded by mu
	blocked  map[string]int            // guarded by mu; sets being removed
	leaving  map[string]int            // guarded by mu; by set: disks to be closed on their last Release
	watching bool                      // guarded by mu; watch is running
	closed   bool                      // guarded by mu
}

// diskKey says which disk: with an empty vdev, the assembly over all of them.
type diskKey struct{ domain, setID, vdev string }

// disk is one open disk with the volumes on it.
type disk struct {
	h     *Host
	key   diskKey
	from  origin
	dev   backend.Device
	whole *Volume   // the disk itself
	all   *assembly // nil but for that

	// guarded by volumeCache.mu
	refs    int
	dead    bool // not to be acquired again
	checked time.Time
	used    time.Time
	place   *list.Element

	invalid atomic.Pointer[error] // why nothing of it is to be read any more; nil while it may be
	doubted atomic.Int64          // when Doubt had the host read last, Unix time in ns

	mu      sync.Mutex
	volumes map[string]*Volume // guarded by mu; by Path
}

func newVolumeCache(h *Host) *volumeCache {
	return &volumeCache{h: h, disks: map[diskKey]*disk{}, alive: map[*disk]bool{}, opening: map[diskKey]chan struct{}{}, order: list.New(), blocked: map[string]int{}, leaving: map[string]int{}}
}

func (c *volumeCache) counts() (open, acquired int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open, c.acquired
}

// acquire opens ref's disk, or takes the one that is open; nil if it is to be tried again.
func (c *volumeCache) acquire(ctx context.Context, ref VolumeRef, where *origin) (*Volume, error) {
	key := diskKey{setID: ref.SetID, vdev: ref.VDev}
	if ref.SetID == "" {
		key.domain = ref.Domain
	}
	c.mu.Lock()
	d := c.disks[key]
	if d != nil && d.outlived() {
		out := c.killLocked(d, nil)
		c.mu.Unlock()
		closeDisks(out)
		return nil, nil
	}
	if d != nil && (d.from.frozen || time.Since(d.checked) <= c.h.lim.recheck) {
		defer c.mu.Unlock()
		c.refLocked(d)
		*where = d.from
		c.h.stats.add("volume_cache_hits", 1)
		return d.whole, nil
	}
	wait := c.opening[key]
	if wait == nil && d == nil {
		wait = make(chan struct{})
		c.opening[key] = wait
		c.mu.Unlock()
		// Nobody else opens it meanwhile; whoever wants to tries again afterwards.
		defer func() {
			c.mu.Lock()
			delete(c.opening, key)
			c.mu.Unlock()
			close(wait)
		}()
		if ref.VDev == "" {
			return c.openAssembly(ctx, key, ref, where)
		}
		return c.openDisk(ctx, key, ref, where)
	}
	c.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
			return nil, nil
		case <-ctx.Done():
			return nil, contextError(ctx, "opening "+ref.disk())
		}
	}
	// A live one that was not looked at for a while: looking closes it if it changed.
	if _, err := c.h.Inventory(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.dead {
		return nil, nil
	}
	c.refLocked(d)
	*where = d.from
	c.h.stats.add("volume_cache_hits", 1)
	return d.whole, nil
}

func (c *volumeCache) openDisk(ctx context.Context, key diskKey, ref VolumeRef, where *origin) (*Volume, error) {
	if err := c.h.resolve(ctx, ref, where); err != nil {
		return nil, err
	}
	st := c.h.stores[where.volume.Store]
	if st == nil {
		return nil, fmt.Errorf("%s: store %q is not known: %w", where.disk, where.volume.Store, backend.ErrUnsupported)
	}
	bounded, cancel := context.WithTimeout(ctx, c.h.lim.open)
	defer cancel()
	dev, err := st.Open(bounded, where.volume)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where.disk, err)
	}
	d := newDisk(c.h, key, *where, dev, ref)
	c.h.stats.add("volume_opens", 1)
	if w, ok := dev.(backend.Warner); ok {
		d.whole.warn("open", w.Warnings())
	}
	return c.insert(d)
}

// newDisk is a disk that is referenced once, and not in the cache.
func newDisk(h *Host, key diskKey, from origin, dev backend.Device, ref VolumeRef) *disk {
	d := &disk{h: h, key: key, from: from, dev: dev, refs: 1, checked: from.read, used: time.Now(), volumes: map[string]*Volume{}}
	ref.Path = ""
	d.whole = &Volume{disk: d, ref: ref, dev: dev}
	d.volumes[""] = d.whole
	return d
}

// insert puts a disk that was opened into the cache; nil if it is to be tried again.
func (c *volumeCache) insert(d *disk) (*Volume, error) {
	c.mu.Lock()
	c.countLocked(d, 1)
	c.acquired++
	c.alive[d] = true
	changed := d.all != nil && slices.ContainsFunc(d.all.members, func(m *Volume) bool { return m.disk.dead })
	if gone := c.closed || c.blocked[d.key.setID] > 0; gone || changed {
		d.dead = true
		c.leaving[d.key.setID]++
		c.mu.Unlock()
		d.whole.Release()
		if !gone {
			return nil, nil
		}
		return nil, unrecorded{fmt.Errorf("%s is gone: %w", d.from.disk, backend.ErrNotExist)}
	}
	c.disks[d.key] = d
	d.place = c.order.PushFront(d)
	evicted := c.makeRoomLocked()
	watch := !c.watching
	if watch {
		c.watching = true
	}
	c.mu.Unlock()
	closeDisks(evicted)
	if watch && c.h.spawn(c.watch) != nil {
		c.mu.Lock()
		c.watching = false
		c.mu.Unlock()
	}
	return d.whole, nil
}

// countLocked counts an open device: an assembly has none.
func (c *volumeCache) countLocked(d *disk, n int64) {
	if d.all == nil {
		c.open += n
	}
}

// refLocked takes a reference to a disk that is not dead.
func (c *volumeCache) refLocked(d *disk) {
	d.refs++
	c.acquired++
	c.order.MoveToFront(d.place)
}

// makeRoomLocked closes the disks that were not used for longest, if there are too many.
// Those in use stay, however many they are.
func (c *volumeCache) makeRoomLocked() []*disk {
	var out []*disk
	for e := c.order.Back(); e != nil && len(c.disks) > c.h.lim.disks; {
		d := e.Value.(*disk)
		e = e.Prev()
		if d.refs == 0 { // and then no assembly reads from it, which would go too
			out = c.killLocked(d, out)
		}
	}
	return out
}

// killLocked makes a disk unfit to be acquired, and adds it to those to be closed now if
// nobody has it.
func (c *volumeCache) killLocked(d *disk, out []*disk) []*disk {
	if d.dead {
		return out
	}
	d.dead = true
	delete(c.disks, d.key)
	c.order.Remove(d.place)
	if over := c.disks[diskKey{domain: d.key.domain, setID: d.key.setID}]; over != nil && over.hasMember(d) {
		out = c.killLocked(over, out)
	}
	if d.refs == 0 {
		c.countLocked(d, -1)
		delete(c.alive, d)
		return append(out, d)
	}
	c.leaving[d.key.setID]++
	return out
}

func (c *volumeCache) killWhere(f func(d *disk) bool) {
	c.mu.Lock()
	var out []*disk
	for _, d := range c.disks {
		if f(d) {
			out = c.killLocked(d, out)
		}
	}
	c.mu.Unlock()
	closeDisks(out)
}

// closeSet closes the disks of a set and keeps them from being opened until reopen is
// called.
func (c *volumeCache) closeSet(setID string) (reopen func()) {
	c.mu.Lock()
	c.blocked[setID]++
	c.mu.Unlock()
	c.killWhere(func(d *disk) bool { return d.key.setID == setID })
	c.awaitClosed(setID)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.blocked[setID]--; c.blocked[setID] == 0 {
			delete(c.blocked, setID)
		}
	}
}

const leavePoll = 5 * time.Millisecond

// awaitClosed waits a moment for what is under way on a set's disks: a store may not be able to
// remove what is open. Whoever has acquired a volume for longer keeps its device, and what
// the store makes of that is the store's answer.
func (c *volumeCache) awaitClosed(setID string) {
	for end := time.Now().Add(c.h.lim.leave); time.Now().Before(end); time.Sleep(leavePoll) {
		c.mu.Lock()
		n := c.leaving[setID]
		c.mu.Unlock()
		if n == 0 {
			return
		}
	}
}

// closeLive closes a live disk.
func (c *volumeCache) closeLive(domain, vdev string) {
	c.killWhere(func(d *disk) bool { return d.key == diskKey{domain: domain, vdev: vdev} })
}

// check closes the disks that are not what the inventory says they should be. Those of snapshots that
// have become invalid are marked so first, for whoever has them: the sets are returned.
func (c *volumeCache) check(inv *Inventory) (invalid []Change) {
	invalid = c.markInvalid(inv)
	c.killWhere(func(d *disk) bool {
		if inv.began.Before(d.checked) {
			return false // it is younger than the reading
		}
		d.checked = inv.began
		if d.all != nil {
			print, err := inv.fingerprint(d.key.domain, d.key.setID)
			return err != nil || print != d.all.print
		}
		if d.from.frozen {
			_, s := inv.set(d.key.setID)
			if s == nil {
				return true
			}
			k := s.Disk(d.key.vdev)
			return s.State == backend.SnapshotRemoving || k == nil || k.State == backend.SnapshotInvalid || k.Volume.ID != d.from.volume.ID
		}
		dom := inv.Domain(d.key.domain)
		if dom == nil || dom.isRunning() != d.from.running {
			return true
		}
		i := dom.Disk(d.key.vdev)
		if i < 0 {
			return true
		}
		v := dom.Volumes[i]
		return v.Err != nil || v.Store != d.from.volume.Store || v.ID != d.from.volume.ID ||
			v.Generation != d.from.volume.Generation || v.SizeBytes != d.from.volume.SizeBytes
	})
	return invalid
}

// watchEvery is how often disks that are open are looked at. While live ones are, the host is read
// as often, so that they are closed soon after their domain starts even if nobody asks for them.
const watchEvery = time.Second

// idleFor is how long the disk stays open though nobody uses it.
func (d *disk) idleFor() time.Duration {
	if d.from.frozen {
		return d.h.lim.rest
	}
	return d.h.lim.idle
}

// watch runs while disks are open.
func (c *volumeCache) watch() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-c.h.done.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		c.killWhere(func(d *disk) bool {
			return d.refs == 0 && now.Sub(d.used) > d.idleFor()
		})
		c.mu.Lock()
		live := false
		for _, d := range c.disks {
			live = live || !d.from.frozen
		}
		if len(c.disks) == 0 {
			c.watching = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if live {
			c.h.Inventory(c.h.done) // checks them
		}
	}
}

// close closes every disk; the error says that some are acquired still.
func (c *volumeCache) close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.killWhere(func(*disk) bool { return true })
	open, acquired := c.counts()
	if open > 0 {
		return fmt.Errorf("%d disks are still in use (acquired %d times): %w", open, acquired, backend.ErrBusy)
	}
	return nil
}

func closeDisks(ds []*disk) {
	for _, d := range ds {
		d.close()
	}
}

// close closes what is on the disk, then the disk. Nobody has a reference. What reads the disk still, and
// does not end that, keeps it open.
func (d *disk) close() {
	d.mu.Lock()
	vs := make([]*Volume, 0, len(d.volumes))
	for _, v := range d.volumes {
		vs = append(vs, v)
	}
	d.mu.Unlock()
	var opening []<-chan struct{}
	for _, v := range vs {
		if ended := v.endOpening(); ended != nil {
			opening = append(opening, ended)
		}
	}
	if len(opening) > 0 && !d.await(opening) {
		go func() {
			for _, ended := range opening {
				<-ended
			}
			d.closeNow(vs)
		}()
		return
	}
	d.closeNow(vs)
}

// openingEnds is how long the close of a disk waits for a filesystem that is being opened to end that: a
// driver that can end is done after one read.
const openingEnds = 2 * time.Second

// await waits for filesystems that are being opened to end that; false if they do not.
func (d *disk) await(opening []<-chan struct{}) bool {
	wait := min(openingEnds, d.h.lim.end)
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for _, ended := range opening {
		select {
		case <-ended:
		case <-limit.C:
			d.h.log.Error("a filesystem is being opened, and does not end that: its disk stays open until then",
				zap.String("volume", d.from.volume.ID), zap.Duration("after", wait))
			return false
		}
	}
	return true
}

func (d *disk) closeNow(vs []*Volume) {
	for _, v := range vs {
		v.closeFS()
	}
	if err := d.dev.Close(); err != nil {
		d.h.log.Warn("a device did not close cleanly", zap.String("volume", d.from.volume.ID), zap.Error(err))
	}
	d.releaseMembers()
}

// Acquire takes another reference; false if the volume was closed or has changed
// underneath, and must be opened anew.
func (v *Volume) Acquire() bool {
	d, c := v.disk, v.disk.h.volumes
	c.mu.Lock()
	if d.dead || d.outlived() {
		c.mu.Unlock()
		return false
	}
	if !d.from.frozen && time.Since(d.checked) > c.h.lim.recheck {
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(c.h.done, c.h.lim.read)
		_, err := c.h.Inventory(ctx) // kills d if it has changed
		cancel()
		if err != nil {
			return false
		}
		c.mu.Lock()
		if d.dead {
			c.mu.Unlock()
			return false
		}
	}
	c.refLocked(d)
	c.mu.Unlock()
	return true
}

// Release gives one reference back. The last one lets the device be closed.
func (v *Volume) Release() { v.release(time.Now()) }

func (v *Volume) release(used time.Time) {
	d, c := v.disk, v.disk.h.volumes
	c.mu.Lock()
	if d.refs == 0 {
		c.mu.Unlock()
		panic("control: a Volume was released more often than acquired")
	}
	d.refs--
	c.acquired--
	if used.After(d.used) {
		d.used = used
	}
	var out []*disk
	switch {
	case d.refs > 0:
	case d.dead:
		c.countLocked(d, -1)
		delete(c.alive, d)
		if c.leaving[d.key.setID]--; c.leaving[d.key.setID] == 0 {
			delete(c.leaving, d.key.setID)
		}
		out = append(out, d)
	default:
		out = c.makeRoomLocked()
	}
	c.mu.Unlock()
	closeDisks(out)
}

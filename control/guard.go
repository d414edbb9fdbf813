package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// guard watches what can overflow: the reserves of thick snapshots, and the thin pools that have snapshots. It
// extends reserves, tells how full they are and when they will be, and what has become invalid.
//
// While there is nothing to watch it sleeps, without a timer. What wakes it: a store's or a hypervisor's event (Watcher), a
// change of this Host, and a reading of the host, for whomever, with something to watch in it. Awake, it reads
// the host every few seconds, the more often the faster something fills.
type guard struct {
	h     *Host
	began time.Time
	clock func() time.Duration // monotonic, since began
	kick  chan struct{}        // one slot: look
	event atomic.Bool          // a store or a hypervisor says that something has happened: look at the host as it is since
	now   atomic.Bool          // likewise, and what has happened is most likely no change of ours
	idle  atomic.Bool          // asleep without a timer

	mu    sync.Mutex
	since time.Time       // guarded by mu; when event was last set
	deaf  map[string]bool // guarded by mu; stores that do not watch
	told  map[string]bool // guarded by mu; what is known to be invalid, by key

	// of the loop's goroutine
	tracks  map[string]*track
	extend  map[string]*extending
	retried map[string]time.Duration // by store: when its Watch was called again
}

// extending is what became of the attempts to extend a reserve.
type extending struct {
	noRoom    bool  // it failed for want of space,
	free      int64 // when its pool had so much
	notBefore time.Duration
	pause     time.Duration
}

func (g *guard) init(h *Host) {
	g.h, g.began = h, time.Now()
	g.clock = func() time.Duration { return time.Since(g.began) }
	g.kick = make(chan struct{}, 1)
	g.deaf, g.told = map[string]bool{}, map[string]bool{}
	g.tracks, g.extend, g.retried = map[string]*track{}, map[string]*extending{}, map[string]time.Duration{}
}

// start begins to watch. It waits for a moment until the stores do, so that one reading of the host tells what may have
// happened before to all of them.
func (g *guard) start() error {
	var begin sync.WaitGroup
	for _, s := range g.h.o.Stores {
		w, ok := s.(backend.Watcher)
		if !ok {
			g.setDeaf(s.Name(), true)
			continue
		}
		begin.Add(1)
		begun := sync.OnceFunc(begin.Done)
		if err := g.h.spawn(func() {
			defer begun()
			g.watch(s.Name(), w, begun)
		}); err != nil {
			return err
		}
	}
	all := make(chan struct{})
	go func() {
		begin.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(g.h.lim.sampleGap):
	}
	for _, hv := range g.h.o.Hypervisors {
		if w, ok := hv.(backend.Watcher); ok {
			if err := g.h.spawn(func() { g.watchDomains(hv.Name(), w) }); err != nil {
				return err
			}
		}
	}
	return g.h.spawn(g.loop)
}

// watchDomains has the host read anew when a hypervisor says that a domain has changed, so that who looks at it is told. One that
// cannot watch now is asked to again after a while; until then a change is seen by whoever reads next.
func (g *guard) watchDomains(hypervisor string, w backend.Watcher) {
	for {
		err := w.Watch(g.h.done, g.happenedNow)
		if g.h.done.Err() != nil {
			return
		}
		if err == nil {
			err = fmt.Errorf("it ended watching: %w", backend.ErrIO)
		}
		fields := []zap.Field{zap.String("hypervisor", hypervisor), zap.Error(err)}
		if errors.Is(err, backend.ErrUnsupported) {
			g.h.log.Debug("a hypervisor has no events on this host", fields...)
			return
		}
		g.h.log.Warn("a hypervisor's events cannot be watched: changes of its domains are seen when somebody looks", fields...)
		timer := time.NewTimer(g.h.lim.retry)
		select {
		case <-timer.C:
		case <-g.h.done.Done():
			timer.Stop()
			return
		}
	}
}

// watch calls begun once it does.
func (g *guard) watch(store string, w backend.Watcher, begun func()) {
	err := w.Watch(g.h.done, func() {
		g.happened()
		begun()
	})
	if g.h.done.Err() != nil {
		return
	}
	if err == nil {
		err = fmt.Errorf("it ended watching: %w", backend.ErrIO)
	}
	g.setDeaf(store, true)
	fields := []zap.Field{zap.String("store", store), zap.Error(err)}
	if errors.Is(err, backend.ErrUnsupported) || errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrNoDevice) {
		g.h.log.Debug("a store has no events on this host", fields...)
	} else {
		g.h.log.Warn("a store's events cannot be watched: its snapshots are looked at every few seconds instead", fields...)
	}
	g.wake()
}

// listens tells whether a store's events are watched. Where they are not, it tries that again now and then: it
// is called while there is something to watch.
func (g *guard) listens(store string) bool {
	g.mu.Lock()
	deaf := g.deaf[store]
	g.mu.Unlock()
	w, ok := g.h.stores[store].(backend.Watcher)
	if last, tried := g.retried[store]; deaf && ok && (!tried || g.clock()-last >= g.h.lim.retry) {
		if g.retried[store] = g.clock(); tried {
			g.setDeaf(store, false)
			g.h.spawn(func() { g.watch(store, w, func() {}) })
		}
	}
	return !deaf
}

func (g *guard) setDeaf(store string, deaf bool) {
	g.mu.Lock()
	g.deaf[store] = deaf
	g.mu.Unlock()
}

// happened is called where something may have happened to a snapshot or a pool. It does not block.
func (g *guard) happened() {
	g.mu.Lock()
	g.since = time.Now()
	g.mu.Unlock()
	g.event.Store(true)
	g.wake()
}

// eventTime is when something was last said to have happened: a reading that began later knows of it.
func (g *guard) eventTime() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.since
}

// happenedNow is happened, of what must not wait for the end of a change.
func (g *guard) happenedNow() {
	g.now.Store(true)
	g.happened()
}

func (g *guard) wake() {
	select {
	case g.kick <- struct{}{}:
	default: // it is going to look anyway
	}
}

// see wakes the guard for what it does not know of yet in a reading.
func (g *guard) see(inv *Inventory) {
	wakes := false
	for s, k := range inv.members() {
		if k.State == backend.SnapshotInvalid && s.Stale == nil && !g.isTold(k) || g.idle.Load() && watched(inv, k) {
			wakes = true
			break
		}
	}
	if wakes {
		g.wake()
	}
}

// members are the disks of all sets.
func (inv *Inventory) members() func(yield func(*Set, *backend.Snapshot) bool) {
	return func(yield func(*Set, *backend.Snapshot) bool) {
		for _, d := range inv.Snapshots {
			for _, s := range d.Sets {
				for i := range s.Disks {
					if !yield(s, &s.Disks[i]) {
						return
					}
				}
			}
		}
	}
}

// watched tells whether a snapshot can overflow, by itself or with its pool.
func watched(inv *Inventory, k *backend.Snapshot) bool {
	if k.State == backend.SnapshotInvalid {
		return false
	}
	p := inv.pool(k.Volume)
	return HasReserve(k) || p != nil && p.isThin()
}

// isThin tells whether a pool is a thin one, which can be full of data or of metadata.
func (p *Pool) isThin() bool { return p.MetadataSizeBytes > 0 }

func keyOf(k *backend.Snapshot) string { return k.Volume.Store + "\x00" + k.Volume.ID }

func (g *guard) isTold(k *backend.Snapshot) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.told[keyOf(k)]
}

func (g *guard) loop() {
	h := g.h
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Duration // when the host was read for an event
	var off putOff
	due := g.clock() + h.lim.sampleHeld // when to look, event or not; 0: no more
	gap := h.lim.sampleGap
	for {
		select {
		case <-h.done.Done():
			return
		case <-timer.C:
		case <-g.kick:
		}
		g.idle.Store(false)
		if h.keeping.Load() > 0 {
			timer.Reset(gap) // a guest waits for what is under way
			continue
		}
		if g.event.Load() {
			changing, most := h.lock.isHeld(), h.lim.sampleOwn
			if g.now.Load() {
				// A host that is slow to read is not read in the midst of each change all the same.
				most = max(h.lim.sampleHeld, min(ageFactor*gap, maxSlowAge))
			}
			left := off.left(g.clock(), changing, most, gap)
			if due > 0 {
				left = min(left, due-g.clock())
			}
			if changing && left > 0 {
				left = min(left, max(gap, h.lim.sampleGap)) // not all who end a change wake the guard
			}
			if last > 0 {
				left = max(left, gap-(g.clock()-last)) // events come in swarms
			}
			if left > 0 {
				timer.Reset(left)
				continue
			}
			last, off = g.clock(), putOff{}
			g.now.Store(false)
			g.event.Store(false)
			h.readSince(g.eventTime())
		}
		inv, err := h.Inventory(h.done)
		wait := h.lim.sampleSlow
		if err == nil {
			wait = g.look(inv)
			// A guest can cause events: a host that is slow to read is not read all the time for them.
			gap = max(h.lim.sampleGap, min(inv.took, maxSlowAge))
		}
		due = 0
		if wait > 0 {
			due = g.clock() + wait
			timer.Reset(wait)
			continue
		}
		timer.Stop()
		g.idle.Store(true)
		// A reading that ended meanwhile found the guard awake.
		if now := h.inventory.latest(); now != nil && now != inv {
			g.see(now)
		}
	}
}

// putOff is a reading that waits for the end of a change: most events during one are its own, and so are those of a moment
// after it, by udev.
type putOff struct {
	since time.Duration // 0: there was no change
	ended time.Duration // 0: the change has not ended
}

// left is how long the reading has to wait, now that a change is under way or not: not longer than most for its end, and then
// rest.
func (p *putOff) left(now time.Duration, changing bool, most, rest time.Duration) time.Duration {
	switch {
	case changing:
		if p.since == 0 {
			p.since = now
		}
		p.ended = 0
		return most - (now - p.since)
	case p.since == 0:
		return 0
	case p.ended == 0:
		p.ended = now
	}
	return rest - (now - p.ended)
}

// look does what is to be done about a reading. It returns when to look again, 0 if there is nothing
// to watch.
func (g *guard) look(inv *Inventory) time.Duration {
	seen := map[string]bool{}
	var wait time.Duration
	sooner := func(d time.Duration) {
		if d > 0 && (wait == 0 || d < wait) {
			wait = d
		}
	}
	pools := map[*Pool][]string{} // the domains whose snapshots are in it
	for _, d := range inv.Snapshots {
		for _, s := range d.Sets {
			for i := range s.Disks {
				k := &s.Disks[i]
				seen[keyOf(k)] = true
				switch {
				case s.Stale != nil || s.State == backend.SnapshotRemoving:
					continue
				case k.State == backend.SnapshotInvalid:
					g.tellInvalid(d, s, k)
					continue
				}
				g.forgive(k)
				if p := inv.pool(k.Volume); p != nil && p.isThin() && !slices.Contains(pools[p], d.domainName()) {
					pools[p] = append(pools[p], d.domainName())
				}
				if HasReserve(k) {
					sooner(g.lookAt(inv, d, s, k))
				}
			}
		}
	}
	for p, domains := range pools {
		for _, space := range p.spaces() {
			key := p.Store + "\x00" + p.Key + "\x00" + space.kind
			seen[key] = true
			sooner(g.lookAtPool(key, p, space, inv.began, domains))
		}
	}
	g.forget(seen)
	return wait
}

// forget drops what is there no more.
func (g *guard) forget(seen map[string]bool) {
	for key := range g.tracks {
		if !seen[key] {
			delete(g.tracks, key)
			delete(g.extend, key)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for key := range g.told {
		if !seen[key] {
			delete(g.told, key)
		}
	}
}

func (g *guard) track(key string) *track {
	t := g.tracks[key]
	if t == nil {
		t = &track{}
		g.tracks[key] = t
	}
	return t
}

// at is when a reading was made, on the guard's clock.
func (g *guard) at(read time.Time) time.Duration { return g.clock() - time.Since(read) }

// lookAt looks at a thick snapshot, and returns when to look at it again, 0 if there is no need.
func (g *guard) lookAt(inv *Inventory, d *SnapshotDir, s *Set, k *backend.Snapshot) time.Duration {
	h := g.h
	key := keyOf(k)
	t := g.track(key)
	used := float64(k.ReserveBytes) * k.FillPercent / 100
	t.observe(g.at(inv.began), used, float64(k.ReserveBytes))
	slow := h.lim.sampleSlow
	deaf := !g.listens(k.Volume.Store)
	if deaf && h.volumes.isOpen(s.ID) {
		slow = h.lim.sampleFast // who reads it must learn within a second that it is lost
	}
	if r, ok := h.stores[k.Volume.Store].(backend.Reserver); ok {
		most := r.MaxReserve(*k)
		switch {
		case k.ReserveBytes >= most && !deaf:
			return 0 // it has room for all that can come: only a fault makes it invalid, which is an event
		case k.ReserveBytes >= most:
			return slow
		}
		if g.mayExtend(inv, s, k) && g.extendNow(d, s, k, most) {
			return time.Millisecond // the reserve is another one now: look at once
		}
	}
	if t.news() {
		g.forewarn([]string{d.domainName()}, s.Name, k.Disk.VDev, fmt.Sprintf(
			"disk %s in snapshot %s: %.0f %% of its reserve of %s are used%s; when it is full, the snapshot is lost: write +SIZE to its reserve, or remove it",
			k.Disk.VDev, s.Name, t.percent(), bytesText(k.ReserveBytes), t.forecast()))
	}
	return t.next(float64(h.o.AutoExtend.ThresholdPercent), h.lim.sampleFast, slow)
}

// mayExtend tells whether a reserve is to be extended now. Those of others' snapshots are theirs to extend.
func (g *guard) mayExtend(inv *Inventory, s *Set, k *backend.Snapshot) bool {
	a := g.h.o.AutoExtend
	if a.ThresholdPercent <= 0 || s.Foreign || k.FillPercent < float64(a.ThresholdPercent) {
		return false
	}
	e := g.extend[keyOf(k)]
	switch {
	case e == nil:
		return true
	case e.noRoom:
		// Trying again is of use only once there is more room than there was.
		p := inv.pool(k.Volume)
		return p != nil && p.FreeBytes > e.free
	}
	return g.clock() >= e.notBefore
}

// Failed extensions are tried again after a while, the later the oftener they have failed.
const (
	extendPauseFirst = time.Second
	extendPauseLast  = time.Minute
)

// extendNow extends a reserve, and tells whether it did.
func (g *guard) extendNow(d *SnapshotDir, s *Set, k *backend.Snapshot, most int64) bool {
	h, key := g.h, keyOf(k)
	if h.done.Err() != nil {
		return false
	}
	c := &change{op: "extend", domain: d.domainName(), snapshot: s.Name, disk: k.Disk.VDev, ignoreIfNotExist: true}
	var free int64
	var noRoom bool
	err := h.do(h.done, c, nil, func(ctx context.Context, inv *Inventory) error {
		d, s := inv.set(s.ID)
		if s == nil || s.Stale != nil {
			return fmt.Errorf("the snapshot is gone: %w", backend.ErrNotExist)
		}
		k := s.Disk(c.disk)
		if k == nil || k.State == backend.SnapshotInvalid || s.State == backend.SnapshotRemoving ||
			k.FillPercent < float64(h.o.AutoExtend.ThresholdPercent) || k.ReserveBytes >= most {
			c.quiet = true
			return nil
		}
		c.snapshot = s.Name
		c.extra = []zap.Field{zap.Float64("fill", k.FillPercent)}
		target := h.o.AutoExtend.target(k, most)
		p := inv.pool(k.Volume)
		if p != nil {
			free = p.FreeBytes
			target = min(target, k.ReserveBytes+free) // all that there is, before nothing
		}
		var err error
		if target > k.ReserveBytes {
			err = h.extend(ctx, c, d, s, k, target)
		} else {
			err = fmt.Errorf("no space is free in %s: %w", k.Volume.Pool, backend.ErrNoSpace)
		}
		if errors.Is(err, backend.ErrNoSpace) {
			noRoom = true
			return backend.Because(backend.ErrNoSpace, "disk %s in snapshot %s is %.0f %% full and cannot be extended: %w; make room in %s, or remove the snapshot before it is lost",
				c.disk, s.Name, k.FillPercent, err, k.Volume.Pool)
		}
		return err
	})
	if err == nil && !c.quiet {
		delete(g.extend, key)
		return true
	}
	e := g.extend[key]
	if e == nil {
		e = &extending{}
		g.extend[key] = e
	}
	e.noRoom, e.free = noRoom, free
	e.pause = min(max(2*e.pause, extendPauseFirst), extendPauseLast)
	e.notBefore = g.clock() + e.pause
	return false
}

// target is what a reserve is to have: as many steps more as take its fill below the threshold.
func (a AutoExtend) target(k *backend.Snapshot, most int64) int64 {
	used := float64(k.ReserveBytes) * k.FillPercent / 100
	size := float64(k.ReserveBytes)
	for size < float64(most) {
		size += max(size*float64(a.StepPercent)/100, 1)
		if used/size*100 < float64(a.ThresholdPercent) {
			break
		}
	}
	if size >= float64(most) {
		return most
	}
	return int64(size)
}

// tellInvalid tells of a snapshot that has become invalid, once.
func (g *guard) tellInvalid(d *SnapshotDir, s *Set, k *backend.Snapshot) {
	key := keyOf(k)
	g.mu.Lock()
	told := g.told[key]
	g.told[key] = true
	g.mu.Unlock()
	if told {
		return
	}
	h := g.h
	sentence := fmt.Sprintf("disk %s in snapshot %s is invalid: %s; what is read of it fails, remove the snapshot", k.Disk.VDev, s.Name, invalidity(k))
	h.stats.add("snapshots_invalid", 1)
	errno := h.errno(backend.ErrIO)
	h.record(d.domainName(), "invalid", errno, sentence)
	h.log.Error("a snapshot has become invalid", zap.String("op", "invalid"), zap.String("domain", d.domainName()), zap.String("snapshot", s.Name),
		zap.String("disk", k.Disk.VDev), zap.String("volume", k.Volume.ID), zap.String("why", oneLine(invalidity(k))))
	h.emit(Event{Event: "invalid", Domain: d.domainName(), Snapshot: s.Name, Disk: k.Disk.VDev, Errno: errno, Message: oneLine(sentence)})
}

// forgive notes that a snapshot is not invalid, or no more: one of an image whose backing file is back.
func (g *guard) forgive(k *backend.Snapshot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.told, keyOf(k))
}

// forewarn tells what will happen if nobody does anything.
func (g *guard) forewarn(domains []string, snapshot, disk, sentence string) {
	h := g.h
	domain := ""
	for _, d := range domains {
		h.record(d, "forecast", "WARNING", sentence)
	}
	if len(domains) == 1 {
		domain = domains[0]
	}
	h.stats.add("forecasts", 1)
	h.log.Warn(oneLine(sentence), zap.String("op", "forecast"), zap.String("domain", strings.Join(domains, ",")), zap.String("snapshot", snapshot), zap.String("disk", disk))
	h.emit(Event{Event: "forecast", Domain: domain, Snapshot: snapshot, Disk: disk, Message: oneLine(sentence)})
}

// space is one of the two things that a thin pool can run out of.
type space struct {
	kind       string
	size, free int64
	option     string // of lvextend(8)
}

func (p *Pool) spaces() []space {
	return []space{
		{"data", p.SizeBytes, p.FreeBytes, "-L"},
		{"metadata", p.MetadataSizeBytes, p.MetadataFreeBytes, "--poolmetadatasize"},
	}
}

// lookAtPool looks at a thin pool's data or metadata. Pools are not extended: what for is their admin's to say.
func (g *guard) lookAtPool(key string, p *Pool, sp space, read time.Time, domains []string) time.Duration {
	t := g.track(key)
	t.observe(g.at(read), float64(sp.size-sp.free), float64(sp.size))
	if t.news() {
		slices.Sort(domains)
		g.forewarn(domains, "", "", fmt.Sprintf("thin pool %s: %.0f %% of its %s of %s are used%s; when they are full, guests' writes fail: lvextend %s +%s %s",
			p.Key, t.percent(), sp.kind, bytesText(sp.size), t.forecast(), sp.option, extentText(sp.size/5), strings.Replace(p.Key, ":", "/", 1)))
	}
	return t.next(0, g.h.lim.sampleFast, g.h.lim.sampleSlow)
}

// bytesText is a number of bytes as one says it.
func bytesText(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	text := strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0")
	return text + " " + units[i]
}

// extentText is a size for a command line, in whole mebibytes or gibibytes.
func extentText(n int64) string {
	const mib, gib = 1 << 20, 1 << 30
	if n >= gib {
		return fmt.Sprintf("%dG", (n+gib-1)/gib)
	}
	return fmt.Sprintf("%dM", max((n+mib-1)/mib, 1))
}

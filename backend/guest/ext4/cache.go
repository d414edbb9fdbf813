package ext4

import (
	"container/list"
	"sync"
	"sync/atomic"
)

const (
	cacheBytes     = 12 << 20 // of metadata held for one filesystem
	allCacheBytes  = 96 << 20 // for all
	readaheadBytes = 64 << 10 // of a directory, in one read
	inodeRunBytes  = 32 << 10 // of an inode table, in one read
	seenRunsBits   = 14       // log2 of the runs of inode tables that are remembered
)

// cacheKey is a run of blocks.
type cacheKey struct {
	block uint64
	n     int
}

// checked says as what a block was found right, so that it is checked once.
type checked struct {
	kind   string
	ino    uint32
	depth  int
	lo, hi uint64
}

// cached is a run of metadata blocks. Its data are never changed, and stay valid after
// the cache has dropped it.
type cached struct {
	key        cacheKey
	data       []byte
	checked    atomic.Pointer[checked]
	prev, next *cached // guarded by cache.mu
}

// rightAs tells whether the block was found right as c before.
func (b *cached) rightAs(c checked) bool {
	p := b.checked.Load()
	return p != nil && *p == c
}

func (b *cached) setRight(c checked) { b.checked.Store(&c) }

// cache holds the metadata blocks that were used last.
type cache struct {
	mu    sync.Mutex
	max   int                  // bytes
	bytes int                  // guarded by mu
	runs  map[cacheKey]*cached // guarded by mu
	ring  cached               // guarded by mu; next is the one used last, prev the one to drop
}

func newCache(maxBytes int) *cache {
	c := &cache{max: maxBytes}
	c.clear()
	return c
}

func (c *cache) clear() {
	budget.mu.Lock()
	defer budget.mu.Unlock()
	if e := budget.place[c]; e != nil {
		budget.order.Remove(e)
		delete(budget.place, c)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	budget.bytes -= c.bytes
	c.bytes, c.runs = 0, map[cacheKey]*cached{}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
}

// lookup returns the run, or nil.
func (c *cache) lookup(key cacheKey) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.runs[key]
	if b != nil && c.ring.next != b {
		b.prev.next, b.next.prev = b.next, b.prev
		c.pushLocked(b)
	}
	return b
}

// insert adds a run, and returns the one that is cached: another one may have been faster.
func (c *cache) insert(key cacheKey, data []byte) *cached {
	b, grown := c.add(key, data)
	budget.charge(c, grown)
	return b
}

// add is insert; grown is by how many bytes the cache grew.
func (c *cache) add(key cacheKey, data []byte) (_ *cached, grown int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.runs[key]; b != nil {
		return b, 0
	}
	before := c.bytes
	b := &cached{key: key, data: data}
	c.runs[key] = b
	c.bytes += len(data)
	c.pushLocked(b)
	for c.bytes > c.max && c.ring.prev != b {
		c.dropLocked(c.ring.prev)
	}
	return b, c.bytes - before
}

func (c *cache) dropLocked(old *cached) {
	old.prev.next, old.next.prev = old.next, old.prev
	old.prev, old.next = nil, nil
	delete(c.runs, old.key)
	c.bytes -= len(old.data)
}

// drop empties the cache but for its users' own references.
func (c *cache) drop() (freed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	freed = c.bytes
	for c.ring.prev != &c.ring {
		c.dropLocked(c.ring.prev)
	}
	return freed
}

// budget bounds what the caches of all filesystems hold together: the one that grew
// longest ago is emptied. Lock order: budget's mu, then a cache's.
var budget = budgetTable{place: map[*cache]*list.Element{}, order: list.New()}

type budgetTable struct {
	mu    sync.Mutex
	bytes int                      // guarded by mu
	place map[*cache]*list.Element // guarded by mu
	order *list.List               // guarded by mu; of *cache, the one that grew last first
}

func (t *budgetTable) charge(c *cache, grown int) {
	if grown == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes += grown
	if e := t.place[c]; e != nil {
		t.order.MoveToFront(e)
	} else {
		t.place[c] = t.order.PushFront(c)
	}
	for t.bytes > allCacheBytes && t.order.Len() > 1 {
		old := t.order.Remove(t.order.Back()).(*cache)
		delete(t.place, old)
		t.bytes -= old.drop()
	}
}

func (c *cache) pushLocked(b *cached) {
	b.prev, b.next = &c.ring, c.ring.next
	b.prev.next, b.next.prev = b, b
}

// seenRuns remembers which runs of inode tables were read already. A run that is missed
// again was evicted: then single blocks are read, as the inodes of a directory larger than the cache
// come in no order, and a whole run for each would be mostly copying. A run whose place another one took counts
// as not seen. It takes memory once a run is read.
type seenRuns struct {
	places atomic.Pointer[[1 << seenRunsBits]atomic.Uint64]
}

// firstTime tells whether a run, by its first block, which is never 0, is new.
func (s *seenRuns) firstTime(block uint64) bool {
	places := s.places.Load()
	if places == nil {
		s.places.CompareAndSwap(nil, new([1 << seenRunsBits]atomic.Uint64))
		places = s.places.Load()
	}
	return places[block*0x9e3779b97f4a7c15>>(64-seenRunsBits)].Swap(block) != block
}

// forget makes all runs new. Nobody reads meanwhile.
func (s *seenRuns) forget() { s.places.Store(nil) }

package qcow2

import (
	"sync"
	"sync/atomic"
)

// What all open images hold together, in bytes.
const (
	tableCacheBytes   = 48 << 20
	clusterCacheBytes = 32 << 20
	blockOverhead     = 160 // of a block's own structures
)

// The caches of all images. A table is small and found again often, a cluster is neither: so that
// a copy of a compressed image does not push the tables out, they are apart.
var (
	tables   = newCache(tableCacheBytes)
	clusters = newCache(clusterCacheBytes)
)

type blockKind uint8

const (
	l1Page  blockKind = iota // key.at: index of the first entry / entries of a page
	l2Slice                  // key.at: guest offset / bytes that a slice maps
	cluster                  // key.at: the L2 entry of a compressed cluster
)

type cacheKey struct {
	image uint64
	at    uint64
	kind  blockKind
}

// block is a piece of a table, or a decompressed cluster. Once loaded it is never changed, and stays
// valid after the cache has dropped it.
type block struct {
	key     cacheKey
	entries []uint64 // of a table
	holds   content  // of an L2 slice
	data    []byte   // of a cluster
	err     error

	loaded     atomic.Bool
	ready      chan struct{} // closed once loaded
	prev, next *block        // guarded by cache.mu; nil while it is loading
}

func (b *block) bytes() int { return len(b.entries)*8 + len(b.data) + blockOverhead }

// cache holds the blocks that were used last.
type cache struct {
	mu     sync.Mutex
	max    int                 // bytes
	bytes  int                 // guarded by mu
	blocks map[cacheKey]*block // guarded by mu
	ring   block               // guarded by mu; next is the one used last, prev the one to drop
}

func newCache(maxBytes int) *cache {
	c := &cache{max: maxBytes, blocks: map[cacheKey]*block{}}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

// lookup returns the block, or nil. If another reader is loading it, it waits.
func (c *cache) lookup(key cacheKey) *block {
	c.mu.Lock()
	b := c.blocks[key]
	if b != nil && b.next != nil && c.ring.next != b {
		b.prev.next, b.next.prev = b.next, b.prev
		c.pushLocked(b)
	}
	c.mu.Unlock()
	if b != nil && !b.loaded.Load() {
		<-b.ready
	}
	return b
}

// load returns the block, and calls fill for it if no other reader has or does. An error is not kept.
func (c *cache) load(key cacheKey, fill func(*block) error) (*block, error) {
	c.mu.Lock()
	if b := c.blocks[key]; b != nil {
		c.mu.Unlock()
		if !b.loaded.Load() {
			<-b.ready
		}
		return b, b.err
	}
	b := &block{key: key, ready: make(chan struct{})}
	c.blocks[key] = b
	c.mu.Unlock()

	b.err = errPanicked
	defer func() {
		b.loaded.Store(true)
		close(b.ready)
		c.mu.Lock()
		defer c.mu.Unlock()
		if b.err != nil {
			delete(c.blocks, key)
			return
		}
		c.bytes += b.bytes()
		c.pushLocked(b)
		for c.bytes > c.max && c.ring.prev != b {
			c.dropLocked(c.ring.prev)
		}
	}()
	b.err = fill(b)
	return b, b.err
}

// forget drops what is held for an image.
func (c *cache) forget(image uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := c.ring.next; b != &c.ring; {
		next := b.next
		if b.key.image == image {
			c.dropLocked(b)
		}
		b = next
	}
}

func (c *cache) dropLocked(b *block) {
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
	delete(c.blocks, b.key)
	c.bytes -= b.bytes()
}

func (c *cache) pushLocked(b *block) {
	b.prev, b.next = &c.ring, c.ring.next
	b.prev.next, b.next.prev = b, b
}

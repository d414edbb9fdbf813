package lvm2

import (
	"errors"
	"sync"
	"sync/atomic"
)

const (
	nodeCacheBytes = 32 << 20 // of the nodes of all thin pools together
	nodeOverhead   = 340      // bytes of a node's own structures
)

// nodes are the nodes of all thin pools that were used last.
var nodes = newNodeCache(nodeCacheBytes)

// metaBuffers are for blocks of metadata that are being decoded.
var metaBuffers = sync.Pool{New: func() any { return new([metaBlockBytes]byte) }}

var errNodePanicked = errors.New("reading the node panicked")

type nodeKey struct {
	pool  uint64
	block uint64
	kind  btreeKind
}

// cachedNode is a node that is cached or being read. Once loaded it is never changed, and stays valid after the
// cache has dropped it.
type cachedNode struct {
	key  nodeKey
	node *btreeNode
	err  error

	loaded     atomic.Bool
	ready      chan struct{} // closed once loaded
	prev, next *cachedNode   // guarded by nodeCache.mu; nil while it is loading
}

func (n *cachedNode) bytes() int { return n.node.bytes() + nodeOverhead }

// nodeCache holds nodes, the last used ones. An error is not kept.
type nodeCache struct {
	mu    sync.Mutex
	max   int                     // bytes
	bytes int                     // guarded by mu
	nodes map[nodeKey]*cachedNode // guarded by mu
	ring  cachedNode              // guarded by mu; next is the one used last, prev the one to drop
}

func newNodeCache(maxBytes int) *nodeCache {
	c := &nodeCache{max: maxBytes, nodes: map[nodeKey]*cachedNode{}}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

// lookup returns the node, or nil. If another reader is reading it, it waits.
func (c *nodeCache) lookup(key nodeKey) *cachedNode {
	c.mu.Lock()
	n := c.nodes[key]
	if n != nil && n.next != nil && c.ring.next != n {
		n.prev.next, n.next.prev = n.next, n.prev
		c.pushLocked(n)
	}
	c.mu.Unlock()
	if n != nil && !n.loaded.Load() {
		<-n.ready
	}
	return n
}

// load returns the node, and calls read for it if no other reader has or does.
func (c *nodeCache) load(key nodeKey, read func() (*btreeNode, error)) (*btreeNode, error) {
	c.mu.Lock()
	if n := c.nodes[key]; n != nil {
		c.mu.Unlock()
		if !n.loaded.Load() {
			<-n.ready
		}
		return n.node, n.err
	}
	n := &cachedNode{key: key, err: errNodePanicked, ready: make(chan struct{})}
	c.nodes[key] = n
	c.mu.Unlock()

	defer func() {
		n.loaded.Store(true)
		close(n.ready)
		c.mu.Lock()
		defer c.mu.Unlock()
		if n.err != nil {
			delete(c.nodes, key)
			return
		}
		c.bytes += n.bytes()
		c.pushLocked(n)
		for c.bytes > c.max && c.ring.prev != n {
			c.dropLocked(c.ring.prev)
		}
	}()
	n.node, n.err = read()
	return n.node, n.err
}

// forget drops what is held of a pool.
func (c *nodeCache) forget(pool uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := c.ring.next; n != &c.ring; {
		next := n.next
		if n.key.pool == pool {
			c.dropLocked(n)
		}
		n = next
	}
}

func (c *nodeCache) dropLocked(n *cachedNode) {
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
	delete(c.nodes, n.key)
	c.bytes -= n.bytes()
}

func (c *nodeCache) pushLocked(n *cachedNode) {
	n.prev, n.next = &c.ring, c.ring.next
	n.prev.next, n.next.prev = n, n
}

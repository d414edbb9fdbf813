package lvm2

import (
	"sync"

	"domfs/backend/lru"
)

const (
	nodeCacheBytes = 32 << 20 // of the nodes of all thin pools together
	nodeOverhead   = 192      // bytes of a btreeNode itself, and those by which its arrays are rounded up
)

// nodes are the nodes of all thin pools that were used last.
var nodes = lru.New[nodeKey, *btreeNode](nodeCacheBytes)

// metaBuffers are for blocks of metadata that are being decoded.
var metaBuffers = sync.Pool{New: func() any { return new([metaBlockBytes]byte) }}

type nodeKey struct {
	pool  uint64
	block uint64
	kind  btreeKind
}

// poolForgetter returns what drops the nodes of a pool from where they are now held.
func poolForgetter() func(pool uint64) {
	held := nodes
	return func(pool uint64) { held.Forget(func(k nodeKey) bool { return k.pool == pool }) }
}

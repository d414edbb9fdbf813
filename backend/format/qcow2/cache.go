package qcow2

import "domfs/backend/lru"

// What all open images hold together, in bytes.
const (
	tableCacheBytes   = 48 << 20
	clusterCacheBytes = 32 << 20
	tableOverhead     = 48 // of a tablePiece itself
)

// The caches of all images. A table is small and found again often, a cluster is neither: so that
// a copy of a compressed image does not push the tables out, they are apart.
var (
	tables   = lru.New[tableKey, *tablePiece](tableCacheBytes)
	clusters = lru.New[clusterKey, []byte](clusterCacheBytes)
)

type tableKind uint8

const (
	l1Page  tableKind = iota // tableKey.at: index of the first entry / entries of a page
	l2Slice                  // tableKey.at: guest offset / bytes that a slice maps
)

type tableKey struct {
	image uint64
	at    uint64
	kind  tableKind
}

// tablePiece is a piece of a table. It is never changed.
type tablePiece struct {
	at      uint64 // as in its key
	entries []uint64
	holds   content // of an L2 slice
}

func (p *tablePiece) bytes() int { return len(p.entries)*8 + tableOverhead }

// clusterKey is of a decompressed cluster.
type clusterKey struct {
	image uint64
	entry uint64 // the L2 entry
}

// forget drops what is held for an image.
func forget(image uint64) {
	tables.Forget(func(k tableKey) bool { return k.image == image })
	clusters.Forget(func(k clusterKey) bool { return k.image == image })
}

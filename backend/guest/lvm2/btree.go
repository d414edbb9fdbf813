package lvm2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"sort"

	"domfs/backend"
)

// The B-trees of device-mapper's persistent-data library (drivers/md/persistent-data/dm-btree-internal.h in Linux).
// A node fills a block of 4 KiB, all of it little-endian:
//
//	 0 u32 checksum    of the rest of the block
//	 4 u32 flags       1 an internal node, 2 a leaf
//	 8 u64 block       where the node is
//	16 u32 entries
//	20 u32 max entries how many keys there is room for: the values begin behind that
//	24 u32 value size
//	32 keys            u64 each, in ascending order
//	   values          of an internal node u64 each: the blocks of its children
//
// The child i of an internal node has the keys from its key i on to below the key i+1.
const (
	metaBlockBytes  = 4096
	btreeHeader     = 32
	btreeKeyBytes   = 8
	btreeInternal   = 1
	btreeLeaf       = 2
	btreeChecksum   = 121107
	btreeChildBytes = 8
	// maxBtreeDepth is of nodes from the root to a leaf. A tree of 2^40 blocks has 7, where each node is a third full, which is
	// the least that the kernel leaves.
	maxBtreeDepth = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// metaChecksum is the checksum of a block of metadata: CRC-32C without the inversion at its end, with a
// constant by the kind of block.
func metaChecksum(block []byte, kind uint32) uint32 {
	return ^crc32.Checksum(block[4:metaBlockBytes], castagnoli) ^ kind
}

// btreeKind is what the leaves of a tree hold.
type btreeKind uint8

const (
	detailsTree  btreeKind = iota // device → details, of which the first 8 bytes are kept
	devicesTree                   // device → root of its mappings
	mappingsTree                  // block of a device → block of data and time
)

// valueBytes is the size of a value in a leaf.
func (k btreeKind) valueBytes() uint32 {
	if k == detailsTree {
		return detailsBytes
	}
	return 8
}

// mapRun is consecutive blocks of a device that lie on consecutive blocks of data. A leaf has few enough
// entries for its length, and a block of data has 40 bits.
type mapRun struct {
	block uint64 // of the device
	at    uint64 // block of data <<24 | length in blocks
}

const (
	mapTimeBits = 24 // below the block of data in a mapping: when it was made
	mapTimeMask = 1<<mapTimeBits - 1
)

func (r mapRun) length() uint64 { return r.at & mapTimeMask }
func (r mapRun) data() uint64   { return r.at >> mapTimeBits }
func (r mapRun) end() uint64    { return r.block + r.length() }

// btreeNode is a decoded node. It is never changed.
type btreeNode struct {
	leaf   bool
	lo, hi uint64   // first and last key, where there are any
	keys   []uint64 // but of a leaf of mappings
	values []uint64 // likewise
	runs   []mapRun // of a leaf of mappings
}

func (n *btreeNode) empty() bool { return len(n.keys) == 0 && len(n.runs) == 0 }

func (n *btreeNode) bytes() int { return 8*(len(n.keys)+len(n.values)) + 16*len(n.runs) + nodeOverhead }

// find is the index of the last key that is not above key, -1 if all are.
func (n *btreeNode) find(key uint64) int {
	return sort.Search(len(n.keys), func(i int) bool { return n.keys[i] > key }) - 1
}

// decodeNode checks and decodes the node that a block holds.
func decodeNode(b []byte, block uint64, kind btreeKind) (*btreeNode, error) {
	le := binary.LittleEndian
	if have, want := le.Uint32(b), metaChecksum(b, btreeChecksum); have != want {
		return nil, fmt.Errorf("its checksum is %#x, and that of its bytes %#x", have, want)
	}
	if at := le.Uint64(b[8:]); at != block {
		return nil, fmt.Errorf("it says that it is block %d", at)
	}
	flags, entries, room, size := le.Uint32(b[4:]), le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
	n := &btreeNode{leaf: flags == btreeLeaf}
	want := uint32(btreeChildBytes)
	switch flags {
	case btreeLeaf:
		want = kind.valueBytes()
	case btreeInternal:
		if entries == 0 {
			return nil, errors.New("it is an internal node without children")
		}
	default:
		return nil, fmt.Errorf("its flags are %#x, which is neither a leaf nor an internal node", flags)
	}
	if size != want {
		return nil, fmt.Errorf("its values have %d bytes each, not %d", size, want)
	}
	if room > (metaBlockBytes-btreeHeader)/(btreeKeyBytes+want) {
		return nil, fmt.Errorf("its %d entries do not fit in a block", room)
	}
	if entries > room {
		return nil, fmt.Errorf("it has %d entries, and room for %d", entries, room)
	}
	keys, values := b[btreeHeader:], b[btreeHeader+btreeKeyBytes*room:]
	for i := range entries {
		key := le.Uint64(keys[btreeKeyBytes*i:])
		if i == 0 {
			n.lo = key
		} else if key <= n.hi {
			return nil, fmt.Errorf("its key %d follows key %d", key, n.hi)
		}
		n.hi = key
	}
	if !n.leaf || kind != mappingsTree {
		both := make([]uint64, 2*entries)
		n.keys, n.values = both[:entries:entries], both[entries:]
		for i := range entries {
			n.keys[i] = le.Uint64(keys[btreeKeyBytes*i:])
			n.values[i] = le.Uint64(values[want*i:])
		}
		return n, nil
	}
	count := 0
	eachRun(keys, values, int(entries), func(mapRun) { count++ })
	n.runs = make([]mapRun, 0, count)
	eachRun(keys, values, int(entries), func(r mapRun) { n.runs = append(n.runs, r) })
	return n, nil
}

// eachRun calls f with the runs of a leaf's mappings in order.
func eachRun(keys, values []byte, entries int, f func(mapRun)) {
	le := binary.LittleEndian
	var r mapRun
	for i := range entries {
		key, data := le.Uint64(keys[8*i:]), le.Uint64(values[8*i:])>>mapTimeBits
		if i > 0 && key == r.end() && data == r.data()+r.length() {
			r.at++
			continue
		}
		if i > 0 {
			f(r)
		}
		r = mapRun{block: key, at: data<<mapTimeBits | 1}
	}
	if entries > 0 {
		f(r)
	}
}

// node returns the decoded node at block.
func (p *thinPool) node(block uint64, kind btreeKind) (*btreeNode, error) {
	key := nodeKey{pool: p.id, block: block, kind: kind}
	if n, ok := nodes.Lookup(key); ok {
		return n, nil
	}
	return nodes.Load(key, func() (*btreeNode, int, error) {
		n, err := p.readNode(block, kind)
		if err != nil {
			return nil, 0, err
		}
		return n, n.bytes(), nil
	})
}

// readNode reads a node past the cache.
func (p *thinPool) readNode(block uint64, kind btreeKind) (*btreeNode, error) {
	if block == 0 || block >= p.metaBlocks {
		return nil, fmt.Errorf("the thin pool's metadata refer to a node in block %d, and have the blocks 1 to %d: %w", block, p.metaBlocks-1, backend.ErrCorrupt)
	}
	b := metaBuffers.Get().(*[metaBlockBytes]byte)
	defer metaBuffers.Put(b)
	if err := readAll(p.meta, b[:], int64(block)*metaBlockBytes); err != nil {
		return nil, fmt.Errorf("block %d of the thin pool's metadata: %w", block, err)
	}
	n, err := decodeNode(b[:], block, kind)
	if err != nil {
		return nil, fmt.Errorf("the node in block %d of the thin pool's metadata is damaged: %w: %w", block, err, backend.ErrCorrupt)
	}
	return n, nil
}

// btreeLeafAt is the leaf that a search ended in, and the keys that only it can have: from lo to below hi. node
// is nil where no leaf can have them.
type btreeLeafAt struct {
	node   *btreeNode
	lo, hi uint64
}

// seek goes from a root to the leaf that has key, if any has.
func (p *thinPool) seek(root, key uint64, kind btreeKind) (btreeLeafAt, error) {
	at, block := btreeLeafAt{hi: math.MaxUint64}, root
	for range maxBtreeDepth {
		n, err := p.node(block, kind)
		if err != nil {
			return btreeLeafAt{}, err
		}
		if !n.empty() && (n.lo < at.lo || n.hi >= at.hi) {
			return btreeLeafAt{}, fmt.Errorf("the node in block %d of the thin pool's metadata has the keys %d to %d, where only those from %d to below %d belong: %w", block, n.lo, n.hi, at.lo, at.hi, backend.ErrCorrupt)
		}
		if n.leaf {
			at.node = n
			return at, nil
		}
		i := n.find(key)
		if i < 0 {
			at.hi = n.lo
			return at, nil
		}
		at.lo = n.keys[i]
		if i+1 < len(n.keys) {
			at.hi = n.keys[i+1]
		}
		block = n.values[i]
	}
	return btreeLeafAt{}, fmt.Errorf("a tree of the thin pool's metadata, whose root is block %d, is deeper than %d nodes: %w", root, maxBtreeDepth, backend.ErrCorrupt)
}

// value is what a tree other than of mappings has for a key.
func (p *thinPool) value(root, key uint64, kind btreeKind) (v uint64, ok bool, err error) {
	at, err := p.seek(root, key, kind)
	if err != nil || at.node == nil {
		return 0, false, err
	}
	i := at.node.find(key)
	if i < 0 || at.node.keys[i] != key {
		return 0, false, nil
	}
	return at.node.values[i], true, nil
}

// readAll fills b from a Device that must have all of it.
func readAll(d backend.Device, b []byte, off int64) error {
	n, err := d.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the device ends at byte %d of %d: %w (%w)", off+int64(n), d.Size(), backend.ErrIO, io.ErrUnexpectedEOF)
	}
	return err
}

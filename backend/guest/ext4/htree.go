package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

const (
	indexRootAt     = 0x20 // of the root's entries, after "." and ".." and the root's own fields
	indexNodeAt     = 8    // after the unused entry that spans an inner block
	indexEntryBytes = 8
	indexTailBytes  = 8
	maxIndexLevels  = 2 // of inner blocks; more than one need the feature large_dir
	indexBlockMask  = 0x0fffffff
)

// errOddIndex is for an htree that is not as the kernel makes it: the directory is
// then read from end to end.
var errOddIndex = errors.New("odd htree")

// indexNode is a block of an htree's index: entries of a hash and the directory's block
// that holds the names from that hash on. The first entry has limit and count in place of its hash.
type indexNode struct {
	b       []byte // the whole block
	entries []byte // from its entries on
	at      int    // the entry taken
}

func (n *indexNode) limit() int { return int(binary.LittleEndian.Uint16(n.entries)) }
func (n *indexNode) count() int { return int(binary.LittleEndian.Uint16(n.entries[2:])) }
func (n *indexNode) hash(i int) uint32 {
	return binary.LittleEndian.Uint32(n.entries[indexEntryBytes*i:])
}

// block is the directory's block that the entry taken leads to.
func (n *indexNode) block() uint64 {
	return uint64(binary.LittleEndian.Uint32(n.entries[indexEntryBytes*n.at+4:]) & indexBlockMask)
}

// take takes the entry for a hash: the first one is for all hashes below the second's.
func (n *indexNode) take(hash uint32) {
	n.at = sort.Search(n.count()-1, func(i int) bool { return n.hash(i+1) > hash })
}

// indexRoom is how many entries a block of an index has room for that begin at a place in it.
func (s *super) indexRoom(at int) int {
	room := s.blockBytes() - at
	if s.roCompat&roCompatMetadataChecksum != 0 {
		room -= indexTailBytes
	}
	return room / indexEntryBytes
}

// looksIndex tells whether a block is an htree's inner one: its only entry is unused.
func (fs *FS) looksIndex(b []byte) bool {
	return binary.LittleEndian.Uint32(b) == 0 && fs.recordBytes(b[4:]) == len(b)
}

// indexAt is where a block's index entries begin.
func (fs *FS) indexAt(b []byte) int {
	if fs.looksIndex(b) {
		return indexNodeAt
	}
	return indexRootAt
}

// checkIndex compares the checksum of an index block, which follows the room for its
// entries.
func (fs *FS) checkIndex(in *inode, b []byte) error {
	le := binary.LittleEndian
	at := fs.indexAt(b)
	limit, count := int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:]))
	tail := at + limit*indexEntryBytes
	if count > limit || tail+indexTailBytes > len(b) {
		return corrupt("%d index entries of at most %d in %d bytes", count, limit, len(b))
	}
	sum := indexSum(in.seed, b, at)
	if stored := le.Uint32(b[tail+4:]); stored != sum {
		return corrupt("index checksum is 0x%08x, computed 0x%08x", stored, sum)
	}
	return nil
}

// indexSum computes the checksum of an index block whose entries begin at a place in it, and whose
// limit and count are right.
func indexSum(seed uint32, b []byte, at int) uint32 {
	n := indexNode{b: b, entries: b[at:]}
	tail := at + n.limit()*indexEntryBytes
	sum := crc32c(seed, b[:at+n.count()*indexEntryBytes])
	sum = crc32c(sum, b[tail:tail+4])
	return crc32c(sum, zeros[:])
}

// index reads an index block.
func (fs *FS) index(in *inode, block uint64) (indexNode, error) {
	b, err := fs.dirBlockAt(in, block)
	if err != nil {
		return indexNode{}, err
	}
	return fs.indexNode(b, block)
}

// indexNode finds the directory's block of an index right.
func (fs *FS) indexNode(b []byte, block uint64) (indexNode, error) {
	at := indexRootAt
	if block != 0 {
		if at = indexNodeAt; !fs.looksIndex(b) {
			return indexNode{}, errOddIndex
		}
	}
	n := indexNode{b: b, entries: b[at:]}
	if n.limit() != fs.sb.indexRoom(at) || n.count() < 1 || n.count() > n.limit() {
		return indexNode{}, errOddIndex
	}
	return n, nil
}

// dirBlockAt reads a directory's block by its number in the directory.
func (fs *FS) dirBlockAt(in *inode, block uint64) ([]byte, error) {
	if block >= fs.dirBlocks(in) {
		return nil, errOddIndex
	}
	r, err := fs.mapRun(in, block)
	if err != nil {
		return nil, err
	}
	if r.state != runWritten {
		return nil, errOddIndex
	}
	return fs.dirBlock(in, block, r.phys+block-r.logical)
}

// indexLevels is how many levels of inner blocks an htree may have.
func (s *super) indexLevels() int {
	if s.incompat&incompatLargeDir != 0 {
		return maxIndexLevels
	}
	return maxIndexLevels - 1
}

// indexRoot reads the root of an htree, and which hash of its names it goes by.
func (fs *FS) indexRoot(in *inode) (root indexNode, version, levels int, err error) {
	if root, err = fs.index(in, 0); err == nil {
		version, levels, err = fs.indexFields(&root, in.hashInEntries())
	}
	return root, version, levels, err
}

// indexFields are what the root of an htree says of it: which hash of its names it goes by, and its levels
// of inner blocks.
func (fs *FS) indexFields(root *indexNode, hashInEntries bool) (version, levels int, err error) {
	// Reserved, hash version, the fields' length, levels.
	version, levels = int(root.b[0x1c]), int(root.b[0x1e])
	if binary.LittleEndian.Uint32(root.b[0x18:]) != 0 || root.b[0x1d] != 8 || levels > fs.sb.indexLevels() ||
		version > hashSip || (version == hashSip) != hashInEntries {
		return 0, 0, errOddIndex
	}
	return fs.sb.hashVersion(version), levels, nil
}

// hashVersion is what a version that the disk says means: of the first three, it does not
// say whether bytes are signed.
func (s *super) hashVersion(version int) int {
	if version < hashUnsigned && s.hashUnsigned {
		version += hashUnsigned
	}
	return version
}

// indexPath is the way from the root of an htree to a leaf.
type indexPath struct {
	nodes  [1 + maxIndexLevels]indexNode
	levels int
	read   func(block uint64) (indexNode, error)
}

// leaf is the directory's block that the way leads to.
func (p *indexPath) leaf() uint64 { return p.nodes[p.levels].block() }

// descend goes the way to the first leaf for a hash.
func (p *indexPath) descend(hash uint32) (err error) {
	for level := 0; ; level++ {
		p.nodes[level].take(hash)
		if level == p.levels {
			return nil
		}
		if p.nodes[level+1], err = p.read(p.nodes[level].block()); err != nil {
			return err
		}
	}
}

// next goes on to the next leaf, if names with the same hash may be there, too.
func (p *indexPath) next(hash uint32) (more bool, err error) {
	level := p.levels
	for level >= 0 && p.nodes[level].at+1 >= p.nodes[level].count() {
		level--
	}
	if level < 0 {
		return false, nil
	}
	n := &p.nodes[level]
	n.at++
	if n.hash(n.at)&^1 != hash {
		return false, nil
	}
	for ; level < p.levels; level++ {
		if p.nodes[level+1], err = p.read(p.nodes[level].block()); err != nil {
			return false, err
		}
	}
	return true, nil
}

// findHashed finds a name through the htree: its inode number, 0 if there is none.
func (fs *FS) findHashed(in *inode, w *wanted) (uint32, error) {
	root, version, levels, err := fs.indexRoot(in)
	if err != nil {
		return 0, err
	}
	hash := w.hashBy(version, fs.sb.hashSeed)
	path := indexPath{levels: levels, read: func(block uint64) (indexNode, error) { return fs.index(in, block) }}
	path.nodes[0] = root
	if err := path.descend(hash); err != nil {
		return 0, err
	}
	for i := range fs.dirBlocks(in) {
		if err := in.interrupted(i); err != nil {
			return 0, err
		}
		if ino, err := fs.findInLeaf(in, path.leaf(), w); err != nil || ino != 0 {
			return ino, err
		}
		if more, err := path.next(hash); !more || err != nil {
			return 0, err
		}
	}
	return 0, errOddIndex
}

func (fs *FS) findInLeaf(in *inode, block uint64, w *wanted) (uint32, error) {
	b, err := fs.dirBlockAt(in, block)
	if err != nil {
		return 0, err
	}
	for at := 0; at < len(b); {
		e, err := fs.dirent(b, at)
		if err != nil {
			return 0, fmt.Errorf("inode %d: the directory's block %d: %w", in.ino, block, err)
		}
		if e.ino != 0 && w.is(e.name) {
			return e.ino, nil
		}
		at += e.length
	}
	return 0, nil
}

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
	entries []byte
	count   int
	at      int // the entry taken
}

func (n *indexNode) hash(i int) uint32 {
	return binary.LittleEndian.Uint32(n.entries[indexEntryBytes*i:])
}

func (n *indexNode) block() uint64 {
	return uint64(binary.LittleEndian.Uint32(n.entries[indexEntryBytes*n.at+4:]) & indexBlockMask)
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
	sum := crc32c(in.seed, b[:at+count*indexEntryBytes])
	sum = crc32c(sum, b[tail:tail+4])
	sum = crc32c(sum, zeros[:])
	if stored := le.Uint32(b[tail+4:]); stored != sum {
		return corrupt("index checksum is 0x%08x, computed 0x%08x", stored, sum)
	}
	return nil
}

// index reads an index block.
func (fs *FS) index(in *inode, block uint64) (indexNode, []byte, error) {
	b, err := fs.dirBlockAt(in, block)
	if err != nil {
		return indexNode{}, nil, err
	}
	at := indexRootAt
	if block != 0 {
		if at = indexNodeAt; !fs.looksIndex(b) {
			return indexNode{}, nil, errOddIndex
		}
	}
	le := binary.LittleEndian
	n := indexNode{entries: b[at:], count: int(le.Uint16(b[at+2:]))}
	room := len(b) - at
	if fs.sb.roCompat&roCompatMetadataChecksum != 0 {
		room -= indexTailBytes
	}
	if limit := int(le.Uint16(b[at:])); limit != room/indexEntryBytes || n.count < 1 || n.count > limit {
		return indexNode{}, nil, errOddIndex
	}
	return n, b, nil
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
	root, b, err := fs.index(in, 0)
	if err != nil {
		return indexNode{}, 0, 0, err
	}
	// The root's own fields: reserved, hash version, their length, levels.
	version, levels = int(b[0x1c]), int(b[0x1e])
	if binary.LittleEndian.Uint32(b[0x18:]) != 0 || b[0x1d] != 8 || levels > fs.sb.indexLevels() ||
		version > hashSip || (version == hashSip) != in.hashInEntries() {
		return indexNode{}, 0, 0, errOddIndex
	}
	return root, fs.sb.hashVersion(version), levels, nil
}

// hashVersion is what a version that the disk says means: of the first three, it does not
// say whether bytes are signed.
func (s *super) hashVersion(version int) int {
	if version < hashUnsigned && s.hashUnsigned {
		version += hashUnsigned
	}
	return version
}

// findHashed finds a name through the htree: its inode number, 0 if there is none.
func (fs *FS) findHashed(in *inode, w *wanted) (uint32, error) {
	root, version, levels, err := fs.indexRoot(in)
	if err != nil {
		return 0, err
	}
	hash := w.hash
	if !w.hashKnown {
		hash, _ = nameHash(w.hashed, version, fs.sb.hashSeed)
	}
	path := [1 + maxIndexLevels]indexNode{root}
	for level := 0; ; level++ {
		n := &path[level]
		// The first entry is for all hashes below the second's.
		n.at = sort.Search(n.count-1, func(i int) bool { return n.hash(i+1) > hash })
		if level == levels {
			break
		}
		if path[level+1], _, err = fs.index(in, n.block()); err != nil {
			return 0, err
		}
	}
	// Names with the same hash may go on in the next leaf.
	for i := range fs.dirBlocks(in) {
		if err := in.interrupted(i); err != nil {
			return 0, err
		}
		ino, err := fs.findInLeaf(in, path[levels].block(), w)
		if err != nil || ino != 0 {
			return ino, err
		}
		level := levels
		for level >= 0 && path[level].at+1 >= path[level].count {
			level--
		}
		if level < 0 {
			return 0, nil
		}
		path[level].at++
		if path[level].hash(path[level].at)&^1 != hash {
			return 0, nil
		}
		for ; level < levels; level++ {
			if path[level+1], _, err = fs.index(in, path[level].block()); err != nil {
				return 0, err
			}
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

package ext4

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// The changes of an htree are the kernel's, block by block: how many blocks a directory
// has is seen in its size.

func (n *indexNode) full() bool     { return n.count() >= n.limit() }
func (n *indexNode) setCount(v int) { binary.LittleEndian.PutUint16(n.entries[2:], uint16(v)) }
func (n *indexNode) setLimit(v int) { binary.LittleEndian.PutUint16(n.entries, uint16(v)) }

// insert adds an entry after the one taken.
func (n *indexNode) insert(hash uint32, block uint64) {
	i, count := n.at+1, n.count()
	copy(n.entries[indexEntryBytes*(i+1):indexEntryBytes*(count+1)], n.entries[indexEntryBytes*i:indexEntryBytes*count])
	binary.LittleEndian.PutUint32(n.entries[indexEntryBytes*i:], hash)
	binary.LittleEndian.PutUint32(n.entries[indexEntryBytes*i+4:], uint32(block))
	n.setCount(count + 1)
}

// entryHash is the hash that an htree has of an entry of a directory with these flags.
func (s *super) entryHash(flags uint32, name string, version int) uint32 {
	if s.folds(flags) {
		if folded, ok := foldName(name); ok {
			name = folded
		}
	}
	hash, _ := nameHash(name, version, s.hashSeed)
	return hash
}

// sealIndex writes the checksum of a block of the index.
func (in *editedInode) sealIndex(n *indexNode) {
	if in.e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return
	}
	at := len(n.b) - len(n.entries)
	binary.LittleEndian.PutUint32(n.b[at+n.limit()*indexEntryBytes+4:], indexSum(in.generationSeed(), n.b, at))
}

// indexAt returns a block of the index, to be changed.
func (in *editedInode) indexAt(block uint64) (indexNode, error) {
	b, err := in.dirBlock(block, true)
	switch {
	case err != nil:
		return indexNode{}, err
	case b == nil:
		return indexNode{}, errOddIndex
	}
	return in.e.fs.indexNode(b, block)
}

// probe goes down an htree to the first leaf for a name, of which it returns the hash and that one's version.
func (in *editedInode) probe(w *wanted) (p *indexPath, hash uint32, version int, err error) {
	p = &indexPath{read: in.indexAt}
	if p.nodes[0], err = in.indexAt(0); err != nil {
		return nil, 0, 0, err
	}
	if version, p.levels, err = in.e.fs.indexFields(&p.nodes[0], false); err != nil {
		return nil, 0, 0, err
	}
	hash = w.hashBy(version, in.e.fs.sb.hashSeed)
	return p, hash, version, p.descend(hash)
}

// indexLeaf returns the leaf that a way leads to.
func (in *editedInode) indexLeaf(p *indexPath) ([]byte, error) {
	b, err := in.dirBlock(p.leaf(), false)
	if err == nil && b == nil {
		err = errOddIndex
	}
	return b, err
}

// lookupHashed finds a name through the htree.
func (in *editedInode) lookupHashed(w *wanted) (place dirPlace, ok bool, err error) {
	p, hash, _, err := in.probe(w)
	for more := true; more && err == nil; more, err = p.next(hash) {
		b, err := in.indexLeaf(p)
		if err != nil {
			return dirPlace{}, false, err
		}
		if place, ok, err = in.lookupIn(in.leafList(b), w); err != nil || ok {
			return place, ok, err
		}
	}
	return dirPlace{}, false, err
}

// addHashed adds an entry to a directory that is indexed.
func (in *editedInode) addHashed(n newName) error {
	// Each round that does not end splits or adds a level of the index.
	for range 2 * (1 + maxIndexLevels) {
		p, hash, version, err := in.probe(n.want)
		if err != nil {
			return err
		}
		path := p.nodes[:p.levels+1]
		last := &path[p.levels]
		leaf, err := in.indexLeaf(p)
		if err != nil {
			return err
		}
		for i := range path {
			if &path[i].b[0] == &leaf[0] {
				return corrupt("inode %d: a block of the directory is of its index, and a leaf", in.ino)
			}
		}
		if done, err := in.addTo(in.leafList(leaf), n); done || err != nil {
			return err
		}
		if last.full() {
			again, err := in.splitIndex(path)
			if err != nil {
				return err
			}
			if again {
				continue
			}
		}
		half, err := in.splitLeaf(leaf, last, hash, version)
		if err != nil {
			return err
		}
		return in.addSurely(half, n)
	}
	return corrupt("inode %d: the directory's index does not grow", in.ino)
}

// splitIndex makes room in the index for one more leaf. again is set if the path has to
// be looked up once more.
func (in *editedInode) splitIndex(path []indexNode) (again bool, err error) {
	level, addLevel := len(path)-1, true
	for level > 0 {
		if !path[level-1].full() {
			addLevel = false
			break
		}
		level--
		again = true
	}
	if addLevel && len(path) == 1+in.e.fs.sb.indexLevels() {
		return false, fmt.Errorf("inode %d: the directory's index: %w", in.ino, errNoRoom)
	}
	l := &path[level]
	count := l.count()
	block, b, err := in.appendBlock()
	if err != nil {
		return false, err
	}
	in.e.fs.putRecordBytes(b[4:], len(b))
	node := indexNode{b: b, entries: b[indexNodeAt:]}
	if addLevel {
		copy(node.entries, l.entries[:indexEntryBytes*count])
		node.setLimit(in.e.fs.sb.indexRoom(indexNodeAt))
		l.setCount(1)
		binary.LittleEndian.PutUint32(l.entries[4:], uint32(block))
		path[0].b[0x1e]++
		in.sealIndex(l)
		in.sealIndex(&node)
		return true, nil
	}
	half := count / 2
	border := l.hash(half)
	copy(node.entries, l.entries[indexEntryBytes*half:indexEntryBytes*count])
	l.setCount(half)
	node.setCount(count - half)
	node.setLimit(in.e.fs.sb.indexRoom(indexNodeAt))
	above := &path[level-1]
	above.insert(border, block)
	in.sealIndex(l)
	in.sealIndex(&node)
	in.sealIndex(above)
	if l.at >= half {
		node.at = l.at - half
		*l = node
	}
	return again, nil
}

// hashedName is an entry of a leaf that is split.
type hashedName struct {
	hash   uint32
	at     int
	length int // of the entry, with the unused bytes after it
	bytes  []byte
}

// splitLeaf moves the upper half of a leaf, by hash, to a new one, and returns the half
// that a hash belongs into.
func (in *editedInode) splitLeaf(leaf []byte, index *indexNode, hash uint32, version int) ([]byte, error) {
	fs := in.e.fs
	var names []hashedName
	err := in.entries(in.leafList(leaf), func(at int, d dirent) bool {
		if d.ino != 0 && len(d.name) > 0 {
			names = append(names, hashedName{
				hash: fs.sb.entryHash(in.flags(), string(d.name), version), at: at, length: d.length,
				bytes: slices.Clone(leaf[at : at+direntBytes(len(d.name))]),
			})
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	byHash := slices.Clone(names)
	slices.SortStableFunc(byHash, func(a, b hashedName) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return 0
	})
	// Neither half becomes more than half full.
	size, split, half := 0, 0, false
	for i := len(byHash) - 1; i >= 0; i-- {
		if size+byHash[i].length/2 > fs.sb.blockBytes()/2 {
			half, split = true, i+1
			break
		}
		size += byHash[i].length
	}
	if !half {
		split = len(byHash) / 2
	}
	if split == 0 || split >= len(byHash) {
		return nil, corrupt("inode %d: a full block of the directory has %d entries", in.ino, len(byHash))
	}
	block, other, err := in.appendBlock()
	if err != nil {
		return nil, err
	}
	border := byHash[split].hash
	continued := uint32(0)
	if border == byHash[split-1].hash {
		continued = 1
	}
	moved := byHash[split:]
	kept := slices.Clone(byHash[:split])
	slices.SortFunc(kept, func(a, b hashedName) int { return a.at - b.at })
	in.packLeaf(other, moved)
	in.packLeaf(leaf, kept)
	index.insert(border+continued, block)
	in.sealIndex(index)
	if hash >= border {
		return other, nil
	}
	return leaf, nil
}

// makeIndex makes an htree of a directory that is a single full block, and adds an entry.
func (in *editedInode) makeIndex(root []byte, n newName) error {
	fs := in.e.fs
	var places []int
	err := in.entries(in.leafList(root), func(at int, d dirent) bool {
		if len(places) < 3 {
			places = append(places, at)
		}
		return true
	})
	if err != nil {
		return err
	}
	if len(places) < 3 || places[1] != direntBytes(1) {
		return corrupt("inode %d: the directory does not begin with . and ..", in.ino)
	}
	version := int(fs.sb.defaultHash)
	if version > hashTEA {
		return unsupported("the superblock asks for hashes of version %d", version)
	}
	block, leaf, err := in.appendBlock()
	if err != nil {
		return err
	}
	in.put32(inodeFlagsAt, in.flags()|inodeIndex)
	in.seal()
	end := len(root) - fs.sb.dirTail()
	copy(leaf, root[places[2]:end])
	clear(root[direntBytes(1)+direntBytes(2):])
	in.stretch(leaf, end-places[2]) // by the room that . and .. had
	in.sealLeaf(leaf)

	fs.putRecordBytes(root[places[1]+4:], len(root)-places[1])
	root[0x1c], root[0x1d] = byte(version), 8
	l := indexNode{b: root, entries: root[indexRootAt:]}
	l.setLimit(fs.sb.indexRoom(indexRootAt))
	l.setCount(1)
	binary.LittleEndian.PutUint32(l.entries[4:], uint32(block))
	in.sealIndex(&l)
	version = fs.sb.hashVersion(version)
	half, err := in.splitLeaf(leaf, &l, n.want.hashBy(version, fs.sb.hashSeed), version)
	if err != nil {
		return err
	}
	return in.addSurely(half, n)
}

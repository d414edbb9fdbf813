package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"domfs/backend"
)

// errExists is for a name that a directory has already.
var errExists = errors.New("the name exists")

// direntBytes is the least length of an entry.
func direntBytes(name int) int { return (direntHeader + name + 3) &^ 3 }

// putRecordBytes sets the length of an entry.
func (fs *FS) putRecordBytes(b []byte, n int) {
	v := uint16(n)
	switch {
	case n >= bigBlockBytes:
		v = bigBlockBytes - 1
	case fs.sb.blockBytes() >= bigBlockBytes:
		v = uint16(n&^3 | n>>16&3)
	}
	binary.LittleEndian.PutUint16(b, v)
}

// dirTail is the room that a leaf's checksum takes.
func (s *super) dirTail() int {
	if s.roCompat&roCompatMetadataChecksum != 0 {
		return direntTail
	}
	return 0
}

// editableDir refuses directories whose entries are of a form that is not changed here.
func (in *editedInode) editableDir() error {
	if in.typ() != backend.TypeDir {
		return corrupt("inode %d is no directory", in.ino)
	}
	for _, f := range []struct {
		flag uint32
		name string
	}{{inodeInlineData, "inline_data"}, {inodeEncrypt, "encrypt"}, {inodeCasefold, "casefold"}} {
		if in.flags()&f.flag != 0 {
			return unsupported("inode %d is a directory that uses %s, which fast commits are not replayed to", in.ino, f.name)
		}
	}
	return nil
}

func (in *editedInode) indexed() bool {
	return in.e.fs.sb.compat&compatDirIndex != 0 && in.flags()&inodeIndex != 0
}

// physical is the block that a file's block is; 0 if there is none.
func (in *editedInode) physical(block uint64) (uint64, error) {
	if in.hasExtents() {
		r, err := in.lookup(block, 1)
		if err != nil || r.state == runHole {
			return 0, err
		}
		return r.phys, nil
	}
	list, rest, levels, ok := in.e.fs.sb.pointerPath(in.root(), block)
	if !ok {
		return 0, corrupt("inode %d has no block %d", in.ino, block)
	}
	for ; ; levels-- {
		p := uint64(binary.LittleEndian.Uint32(list[4*(rest>>(levels*(in.e.fs.sb.blockBits-2))):]))
		if p == 0 {
			return 0, nil
		}
		if !in.e.fs.sb.validRun(p, 1) {
			return 0, corrupt("inode %d: block %d of %d, for the file's block %d", in.ino, p, in.e.fs.sb.blocks, block)
		}
		if levels == 0 {
			return p, nil
		}
		if err := in.e.step(); err != nil {
			return 0, err
		}
		b, err := in.e.view(p)
		if err != nil {
			return 0, fmt.Errorf("inode %d: indirect %w", in.ino, err)
		}
		list = b
		rest &= 1<<(levels*(in.e.fs.sb.blockBits-2)) - 1
	}
}

// dirBlock returns a block of a directory, to be changed: nil where there is a hole.
// index is for one of an htree's own.
func (in *editedInode) dirBlock(block uint64, index bool) ([]byte, error) {
	e := in.e
	if err := e.work(e.fs.sb.blockBytes()); err != nil {
		return nil, err
	}
	if block >= in.size()>>e.fs.sb.blockBits {
		return nil, corrupt("inode %d: the directory has no block %d", in.ino, block)
	}
	phys, err := in.physical(block)
	if err != nil || phys == 0 {
		return nil, err
	}
	known := e.kinds[phys] == kindDirectory
	b, err := e.edit(phys, kindDirectory)
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory %w", in.ino, err)
	}
	if known || e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return b, nil
	}
	parsed := &inode{ino: in.ino, seed: in.generationSeed()}
	if index {
		err = e.fs.checkIndex(parsed, b)
	} else {
		err = e.fs.checkLeaf(parsed, b)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory block %d (the directory's block %d): %w", in.ino, phys, block, err)
	}
	return b, nil
}

// leafEntries calls f with each entry of a leaf until it returns false, and fails where
// the leaf is not right.
func (in *editedInode) leafEntries(b []byte, f func(at int, d dirent) bool) error {
	end := len(b) - in.e.fs.sb.dirTail()
	for at := 0; at < end; {
		d, err := in.e.fs.dirent(b[:end], at)
		if err != nil {
			return fmt.Errorf("inode %d: directory: %w", in.ino, err)
		}
		if !f(at, d) {
			return nil
		}
		at += d.length
	}
	return nil
}

// sealLeaf writes the checksum that a leaf ends with.
func (in *editedInode) sealLeaf(b []byte) {
	tail := in.e.fs.sb.dirTail()
	if tail == 0 {
		return
	}
	t, le := b[len(b)-tail:], binary.LittleEndian
	le.PutUint32(t, 0)
	le.PutUint16(t[4:], direntTail)
	t[6], t[7] = 0, direntTailTag
	le.PutUint32(t[8:], crc32c(in.generationSeed(), b[:len(b)-tail]))
}

// dirPlace is where an entry lies.
type dirPlace struct {
	leaf []byte
	at   int
	ino  uint32
}

// lookupName finds a name; ok is false if there is none.
func (in *editedInode) lookupName(name string) (place dirPlace, ok bool, err error) {
	if in.indexed() && name != "." && name != ".." {
		place, ok, err = in.lookupHashed(name)
		if !errors.Is(err, errOddIndex) {
			return place, ok, err
		}
	}
	for block := range in.size() >> in.e.fs.sb.blockBits {
		b, err := in.dirBlock(block, in.indexed() && block == 0)
		if err != nil {
			return dirPlace{}, false, err
		}
		if b == nil {
			continue
		}
		if place, ok, err = in.lookupInLeaf(b, name); err != nil || ok {
			return place, ok, err
		}
	}
	return dirPlace{}, false, nil
}

func (in *editedInode) lookupInLeaf(b []byte, name string) (place dirPlace, ok bool, err error) {
	err = in.leafEntries(b, func(at int, d dirent) bool {
		if d.ino != 0 && string(d.name) == name {
			place, ok = dirPlace{b, at, d.ino}, true
		}
		return !ok
	})
	return place, ok, err
}

// removeName makes an entry unused: a part of the one before it, if the block has one.
func (in *editedInode) removeName(p dirPlace) error {
	before := -1
	err := in.leafEntries(p.leaf, func(at int, d dirent) bool {
		if at >= p.at {
			return false
		}
		before = at
		return true
	})
	if err != nil {
		return err
	}
	fs := in.e.fs
	length := fs.recordBytes(p.leaf[p.at+4:])
	if before >= 0 {
		clear(p.leaf[p.at : p.at+length])
		fs.putRecordBytes(p.leaf[before+4:], p.at+length-before)
	} else {
		clear(p.leaf[p.at : p.at+4])
		clear(p.leaf[p.at+6 : p.at+length])
	}
	in.sealLeaf(p.leaf)
	in.touchCtime()
	in.touchMtime()
	in.seal()
	return nil
}

// newName is an entry to be made.
type newName struct {
	name string
	ino  uint32
	kind backend.FileType
}

// addToLeaf puts an entry into the first room for it that a leaf has: false if it has
// none, errExists if a name before the room is the same.
func (in *editedInode) addToLeaf(b []byte, n newName) (bool, error) {
	fs := in.e.fs
	need, found, exists := direntBytes(len(n.name)), -1, false
	var room dirent
	err := in.leafEntries(b, func(at int, d dirent) bool {
		if d.ino != 0 && string(d.name) == n.name {
			exists = true
			return false
		}
		free := d.length
		if d.ino != 0 {
			free -= direntBytes(len(d.name))
		}
		if free >= need {
			found, room = at, d
			return false
		}
		return true
	})
	switch {
	case err != nil:
		return false, err
	case exists:
		return false, fmt.Errorf("inode %d: %q: %w", in.ino, n.name, errExists)
	case found < 0:
		return false, nil
	}
	at, length := found, room.length
	if room.ino != 0 {
		used := direntBytes(len(room.name))
		fs.putRecordBytes(b[at+4:], used)
		at, length = at+used, length-used
	}
	in.putDirent(b[at:at+length], n)
	in.sealLeaf(b)
	in.touchCtime()
	in.touchMtime()
	in.seal()
	return true, nil
}

// putDirent writes an entry that takes all of a place.
func (in *editedInode) putDirent(b []byte, n newName) {
	binary.LittleEndian.PutUint32(b, n.ino)
	in.e.fs.putRecordBytes(b[4:], len(b))
	b[6], b[7] = byte(len(n.name)), 0
	if in.e.fs.sb.incompat&incompatFiletype != 0 {
		b[7] = byte(slices.Index(direntTypes[:], n.kind))
	}
	copy(b[direntHeader:], n.name)
}

// emptyLeaf makes a block one that has an unused entry only.
func (in *editedInode) emptyLeaf(b []byte) {
	clear(b)
	in.e.fs.putRecordBytes(b[4:], len(b)-in.e.fs.sb.dirTail())
}

// appendBlock makes a directory a block longer, of zeros.
func (in *editedInode) appendBlock() (uint64, []byte, error) {
	e := in.e
	block := in.size() >> e.fs.sb.blockBits
	if block >= 1<<31 {
		return 0, nil, corrupt("inode %d: the directory has %d blocks", in.ino, block)
	}
	if phys, err := in.physical(block); err != nil {
		return 0, nil, err
	} else if phys != 0 {
		return 0, nil, corrupt("inode %d: the directory's block %d, after its end, is there already", in.ino, block)
	}
	phys, err := in.nextBlock(block)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case in.hasExtents():
		err = in.insertRun(run{logical: block, blocks: 1, phys: phys, state: runWritten}, true)
	case block < directBlocks:
		binary.LittleEndian.PutUint32(in.root()[4*block:], uint32(phys))
	default:
		err = unsupported("inode %d: a directory with indirect blocks, which fast commits are not replayed to, has to grow", in.ino)
	}
	if err != nil {
		return 0, nil, err
	}
	b, err := e.fresh(phys, kindDirectory)
	if err != nil {
		return 0, nil, err
	}
	in.setSize((block + 1) << e.fs.sb.blockBits)
	in.seal()
	return block, b, nil
}

// nextBlock takes the block for a directory's next one: in the cluster that it has already, if
// that is not full.
func (in *editedInode) nextBlock(block uint64) (uint64, error) {
	within := block & (1<<in.e.fs.sb.clusterBits - 1)
	if within != 0 {
		if before, err := in.physical(block - 1); err != nil || before != 0 {
			return before + 1, err
		}
	}
	goal := in.groupGoal()
	if in.hasExtents() {
		path, err := in.find(block)
		if err != nil {
			return 0, err
		}
		goal = in.goal(path, block)
	}
	phys, err := in.e.newBlock(goal - within)
	return phys + within, err
}

// addName adds an entry as the kernel does.
func (in *editedInode) addName(n newName) error {
	if err := in.editableDir(); err != nil {
		return err
	}
	if in.indexed() {
		err := in.addHashed(n)
		if !errors.Is(err, errOddIndex) {
			return err
		}
		if in.e.fs.sb.roCompat&roCompatMetadataChecksum != 0 {
			return corrupt("inode %d: the directory's index is not right", in.ino)
		}
		in.put32(inodeFlagsAt, in.flags()&^inodeIndex)
		in.seal()
		return in.addLinear(n, false)
	}
	return in.addLinear(n, in.e.fs.sb.compat&compatDirIndex != 0)
}

// addLinear adds an entry to a directory that is not indexed. With index, one of a
// single block that is full becomes so.
func (in *editedInode) addLinear(n newName, index bool) error {
	blocks := in.size() >> in.e.fs.sb.blockBits
	for block := range blocks {
		b, err := in.dirBlock(block, false)
		if err != nil {
			return err
		}
		if b == nil {
			return unsupported("inode %d: the directory's block %d is a hole, to which fast commits are not replayed", in.ino, block)
		}
		if done, err := in.addToLeaf(b, n); done || err != nil {
			return err
		}
		if blocks == 1 && index {
			return in.makeIndex(b, n)
		}
	}
	_, b, err := in.appendBlock()
	if err != nil {
		return err
	}
	in.emptyLeaf(b)
	return in.addSurely(b, n)
}

// addSurely adds an entry to a leaf that must have room for it.
func (in *editedInode) addSurely(b []byte, n newName) error {
	done, err := in.addToLeaf(b, n)
	if err == nil && !done {
		err = corrupt("inode %d: a new block of the directory has no room for %q", in.ino, n.name)
	}
	return err
}

// hashLevel is a block of an htree on the way to a leaf.
type hashLevel struct {
	b       []byte
	entries []byte // from the index entries on
	at      int    // the entry taken
}

func (l *hashLevel) limit() int     { return int(binary.LittleEndian.Uint16(l.entries)) }
func (l *hashLevel) count() int     { return int(binary.LittleEndian.Uint16(l.entries[2:])) }
func (l *hashLevel) full() bool     { return l.count() >= l.limit() }
func (l *hashLevel) setCount(n int) { binary.LittleEndian.PutUint16(l.entries[2:], uint16(n)) }
func (l *hashLevel) setLimit(n int) { binary.LittleEndian.PutUint16(l.entries, uint16(n)) }
func (l *hashLevel) hash(i int) uint32 {
	return binary.LittleEndian.Uint32(l.entries[indexEntryBytes*i:])
}
func (l *hashLevel) block(i int) uint64 {
	return uint64(binary.LittleEndian.Uint32(l.entries[indexEntryBytes*i+4:]) & indexBlockMask)
}

// insert adds an entry after the one taken.
func (l *hashLevel) insert(hash uint32, block uint64) {
	i, count := l.at+1, l.count()
	copy(l.entries[indexEntryBytes*(i+1):indexEntryBytes*(count+1)], l.entries[indexEntryBytes*i:indexEntryBytes*count])
	binary.LittleEndian.PutUint32(l.entries[indexEntryBytes*i:], hash)
	binary.LittleEndian.PutUint32(l.entries[indexEntryBytes*i+4:], uint32(block))
	l.setCount(count + 1)
}

// indexRoom is the number of index entries of a block.
func (s *super) indexRoom(at int) int {
	room := s.blockBytes() - at
	if s.roCompat&roCompatMetadataChecksum != 0 {
		room -= indexTailBytes
	}
	return room / indexEntryBytes
}

// sealIndex writes the checksum of a block of the index.
func (in *editedInode) sealIndex(l *hashLevel) {
	if in.e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return
	}
	at := len(l.b) - len(l.entries)
	tail := at + l.limit()*indexEntryBytes
	sum := crc32c(in.generationSeed(), l.b[:at+l.count()*indexEntryBytes])
	sum = crc32c(sum, l.b[tail:tail+4])
	sum = crc32c(sum, zeros[:])
	binary.LittleEndian.PutUint32(l.b[tail+4:], sum)
}

// probe goes down an htree to the entry for a name. version is of its hashes.
func (in *editedInode) probe(name string) (path []hashLevel, hash uint32, version int, err error) {
	fs := in.e.fs
	block, at := uint64(0), indexRootAt
	levels := 0
	for level := 0; level <= levels; level++ {
		b, err := in.dirBlock(block, true)
		if err != nil {
			return nil, 0, 0, err
		}
		if b == nil || level > 0 && !fs.looksIndex(b) {
			return nil, 0, 0, errOddIndex
		}
		if level == 0 {
			version, levels = int(b[0x1c]), int(b[0x1e])
			if binary.LittleEndian.Uint32(b[0x18:]) != 0 || b[0x1d] != 8 || b[0x1f]&1 != 0 || levels > fs.sb.indexLevels() || version > hashTEA {
				return nil, 0, 0, errOddIndex
			}
			if fs.sb.hashUnsigned {
				version += hashUnsigned
			}
			hash = majorHash(name, version, fs.sb.hashSeed)
		}
		l := hashLevel{b: b, entries: b[at:]}
		if l.limit() != fs.sb.indexRoom(at) || l.count() < 1 || l.count() > l.limit() {
			return nil, 0, 0, errOddIndex
		}
		l.at = sort.Search(l.count()-1, func(i int) bool { return l.hash(i+1) > hash })
		path = append(path, l)
		block, at = l.block(l.at), indexNodeAt
	}
	return path, hash, version, nil
}

// lookupHashed finds a name through the htree.
func (in *editedInode) lookupHashed(name string) (place dirPlace, ok bool, err error) {
	path, hash, _, err := in.probe(name)
	if err != nil {
		return dirPlace{}, false, err
	}
	for {
		last := &path[len(path)-1]
		b, err := in.dirBlock(last.block(last.at), false)
		if err != nil {
			return dirPlace{}, false, err
		}
		if b == nil {
			return dirPlace{}, false, errOddIndex
		}
		if place, ok, err = in.lookupInLeaf(b, name); err != nil || ok {
			return place, ok, err
		}
		// Names with the same hash may go on in the next leaf.
		i := len(path) - 1
		for i >= 0 && path[i].at+1 >= path[i].count() {
			i--
		}
		if i < 0 {
			return dirPlace{}, false, nil
		}
		path[i].at++
		if path[i].hash(path[i].at)&^1 != hash {
			return dirPlace{}, false, nil
		}
		for ; i+1 < len(path); i++ {
			b, err := in.dirBlock(path[i].block(path[i].at), true)
			if err != nil {
				return dirPlace{}, false, err
			}
			if b == nil || !in.e.fs.looksIndex(b) {
				return dirPlace{}, false, errOddIndex
			}
			l := hashLevel{b: b, entries: b[indexNodeAt:]}
			if l.limit() != in.e.fs.sb.indexRoom(indexNodeAt) || l.count() < 1 || l.count() > l.limit() {
				return dirPlace{}, false, errOddIndex
			}
			path[i+1] = l
		}
	}
}

// addHashed adds an entry to a directory that is indexed.
func (in *editedInode) addHashed(n newName) error {
	// Each round that does not end splits or adds a level of the index.
	for range 2 * (1 + maxIndexLevels) {
		path, hash, version, err := in.probe(n.name)
		if err != nil {
			return err
		}
		last := &path[len(path)-1]
		leaf, err := in.dirBlock(last.block(last.at), false)
		if err != nil {
			return err
		}
		if leaf == nil {
			return errOddIndex
		}
		for i := range path {
			if &path[i].b[0] == &leaf[0] {
				return corrupt("inode %d: a block of the directory is of its index, and a leaf", in.ino)
			}
		}
		if done, err := in.addToLeaf(leaf, n); done || err != nil {
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
			last = &path[len(path)-1]
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
func (in *editedInode) splitIndex(path []hashLevel) (again bool, err error) {
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
	node := hashLevel{b: b, entries: b[indexNodeAt:]}
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
func (in *editedInode) splitLeaf(leaf []byte, index *hashLevel, hash uint32, version int) ([]byte, error) {
	fs := in.e.fs
	var names []hashedName
	err := in.leafEntries(leaf, func(at int, d dirent) bool {
		if d.ino != 0 && len(d.name) > 0 {
			names = append(names, hashedName{
				hash: majorHash(string(d.name), version, fs.sb.hashSeed), at: at, length: d.length,
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

// packLeaf fills a leaf with entries; the last one takes the rest.
func (in *editedInode) packLeaf(b []byte, names []hashedName) {
	clear(b)
	end := len(b) - in.e.fs.sb.dirTail()
	at := 0
	for i, n := range names {
		copy(b[at:], n.bytes)
		length := len(n.bytes)
		if i == len(names)-1 {
			length = end - at
		}
		in.e.fs.putRecordBytes(b[at+4:], length)
		at += length
	}
	in.sealLeaf(b)
}

// makeIndex makes an htree of a directory that is a single full block, and adds an entry.
func (in *editedInode) makeIndex(root []byte, n newName) error {
	fs := in.e.fs
	var places []int
	err := in.leafEntries(root, func(at int, d dirent) bool {
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
	superblock, err := in.e.superView()
	if err != nil {
		return err
	}
	version := int(superblock[0xfc])
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
	// The last entry takes the room that . and .. had.
	last := 0
	for at := 0; at < end-places[2]; at += fs.recordBytes(leaf[at+4:]) {
		last = at
	}
	fs.putRecordBytes(leaf[last+4:], end-last)
	in.sealLeaf(leaf)

	fs.putRecordBytes(root[places[1]+4:], len(root)-places[1])
	root[0x1c], root[0x1d] = byte(version), 8
	l := hashLevel{b: root, entries: root[indexRootAt:]}
	l.setLimit(fs.sb.indexRoom(indexRootAt))
	l.setCount(1)
	binary.LittleEndian.PutUint32(l.entries[4:], uint32(block))
	in.sealIndex(&l)
	if fs.sb.hashUnsigned {
		version += hashUnsigned
	}
	half, err := in.splitLeaf(leaf, &l, majorHash(n.name, version, fs.sb.hashSeed), version)
	if err != nil {
		return err
	}
	return in.addSurely(half, n)
}

// initDir makes the first block of a new directory.
func (in *editedInode) initDir(parent uint32) error {
	if err := in.editableDir(); err != nil {
		return err
	}
	size := in.size()
	in.setSize(0)
	_, b, err := in.appendBlock()
	if err != nil {
		in.setSize(size)
		in.seal()
		return err
	}
	end := len(b) - in.e.fs.sb.dirTail()
	first := direntBytes(1)
	in.putDirent(b[:first], newName{".", in.ino, backend.TypeDir})
	in.putDirent(b[first:end], newName{"..", parent, backend.TypeDir})
	in.sealLeaf(b)
	in.setLinks(2)
	in.seal()
	return nil
}

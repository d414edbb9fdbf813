package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

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

// entryList is a list of a directory's entries, to be changed.
type entryList struct {
	b    []byte // the entries
	leaf []byte // the block that they, and then their checksum, are; nil for a list in an inode
}

// leafList is the entries of a block.
func (in *editedInode) leafList(b []byte) entryList {
	return entryList{b[:len(b)-in.e.fs.sb.dirTail()], b}
}

// entries calls f with each entry of a list until it returns false, and fails where the
// list is not right.
func (in *editedInode) entries(l entryList, f func(at int, d dirent) bool) error {
	for at := 0; at < len(l.b); {
		d, err := in.e.fs.dirent(l.b, at)
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

// changed ends a change of a list of entries.
func (in *editedInode) changed(l entryList) {
	if l.leaf != nil {
		in.sealLeaf(l.leaf)
	}
	in.touchCtime()
	in.touchMtime()
	in.seal()
}

// dirPlace is where an entry lies.
type dirPlace struct {
	list entryList
	at   int
	ino  uint32
}

// lookupIn finds a name in a list of entries.
func (in *editedInode) lookupIn(l entryList, w *wanted) (place dirPlace, ok bool, err error) {
	err = in.entries(l, func(at int, d dirent) bool {
		if d.ino != 0 && w.is(d.name) {
			place, ok = dirPlace{l, at, d.ino}, true
		}
		return !ok
	})
	return place, ok, err
}

// removeName makes an entry unused: a part of the one before it, if the list has one.
func (in *editedInode) removeName(p dirPlace) error {
	before := -1
	err := in.entries(p.list, func(at int, d dirent) bool {
		if at >= p.at {
			return false
		}
		before = at
		return true
	})
	if err != nil {
		return err
	}
	fs, b := in.e.fs, p.list.b
	length := fs.recordBytes(b[p.at+4:])
	if before >= 0 {
		clear(b[p.at : p.at+length])
		fs.putRecordBytes(b[before+4:], p.at+length-before)
	} else {
		clear(b[p.at : p.at+4])
		clear(b[p.at+6 : p.at+length])
	}
	in.changed(p.list)
	return nil
}

// newName is an entry to be made.
type newName struct {
	name string
	ino  uint32
	kind backend.FileType
	want *wanted // what the directory must not have
}

// addTo puts an entry into the first room for it that a list has: false if it has none,
// errExists if a name before the room is the same.
func (in *editedInode) addTo(l entryList, n newName) (bool, error) {
	fs := in.e.fs
	need, found, exists := direntBytes(len(n.name)), -1, false
	var room dirent
	err := in.entries(l, func(at int, d dirent) bool {
		if d.ino != 0 && n.want.is(d.name) {
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
		fs.putRecordBytes(l.b[at+4:], used)
		at, length = at+used, length-used
	}
	in.putDirent(l.b[at:at+length], n.name, n.ino, n.kind)
	in.changed(l)
	return true, nil
}

// addSurely adds an entry to a leaf that must have room for it.
func (in *editedInode) addSurely(b []byte, n newName) error {
	done, err := in.addTo(in.leafList(b), n)
	if err == nil && !done {
		err = corrupt("inode %d: a new block of the directory has no room for %q", in.ino, n.name)
	}
	return err
}

// putDirent writes an entry that takes all of a place.
func (in *editedInode) putDirent(b []byte, name string, ino uint32, kind backend.FileType) {
	binary.LittleEndian.PutUint32(b, ino)
	in.e.fs.putRecordBytes(b[4:], len(b))
	b[6], b[7] = byte(len(name)), 0
	if in.e.fs.sb.incompat&incompatFiletype != 0 {
		b[7] = byte(slices.Index(direntTypes[:], kind))
	}
	copy(b[direntHeader:], name)
}

// emptyLeaf makes a block one that has an unused entry only.
func (in *editedInode) emptyLeaf(b []byte) {
	clear(b)
	in.e.fs.putRecordBytes(b[4:], len(b)-in.e.fs.sb.dirTail())
}

// stretch makes the last entry before so many bytes go on to a leaf's checksum.
func (in *editedInode) stretch(b []byte, used int) {
	fs, end, last := in.e.fs, len(b)-in.e.fs.sb.dirTail(), 0
	for at := 0; at < used; at += fs.recordBytes(b[at+4:]) {
		last = at
	}
	fs.putRecordBytes(b[last+4:], end-last)
}

// putDots writes the entries "." and ".." of a directory, and returns where they end: the second
// one takes no more than it needs.
func (in *editedInode) putDots(b []byte, parent uint32) int {
	first := direntBytes(1)
	end := first + direntBytes(2)
	in.putDirent(b[:first], ".", in.ino, backend.TypeDir)
	in.putDirent(b[first:end], "..", parent, backend.TypeDir)
	return end
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

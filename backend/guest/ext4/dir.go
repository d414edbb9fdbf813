package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"domfs/backend"
)

// Directories: Documentation/filesystems/ext4/directory.rst. The blocks of an htree's
// index look like ones with unused entries, so that every directory can be read from end to end.
const (
	direntHeader  = 8 // bytes before the name
	direntMin     = 12
	direntTail    = 12
	direntTailTag = 0xde // as the file type of the entry that holds a leaf's checksum
	bigBlockBytes = 1 << 16
)

// direntTypes are the file types of entries.
var direntTypes = [...]backend.FileType{
	1: backend.TypeRegular,
	2: backend.TypeDir,
	3: backend.TypeChar,
	4: backend.TypeBlock,
	5: backend.TypeFIFO,
	6: backend.TypeSocket,
	7: backend.TypeSymlink,
}

// dirent is an entry in a block of a directory.
type dirent struct {
	ino    uint32 // 0: unused
	length int    // bytes to the next one
	name   []byte
	after  []byte // what the entry holds after its name and padding
	kind   backend.FileType
}

// dirent parses the entry at a place in a block, and finds it right.
func (fs *FS) dirent(b []byte, at int) (dirent, error) {
	if len(b)-at < direntMin {
		return dirent{}, corrupt("the entry at byte %d crosses the block's end", at)
	}
	le := binary.LittleEndian
	e := dirent{ino: le.Uint32(b[at:]), length: fs.recordBytes(b[at+4:])}
	name := int(b[at+6])
	switch {
	case e.length%4 != 0 || e.length < direntMin || e.length < direntHeader+name:
		return dirent{}, corrupt("the entry at byte %d has %d bytes for a name of %d", at, e.length, name)
	case e.length > len(b)-at:
		return dirent{}, corrupt("the entry at byte %d crosses the block's end", at)
	case e.ino > fs.sb.inodes:
		return dirent{}, corrupt("the entry at byte %d is of inode %d of %d", at, e.ino, fs.sb.inodes)
	case e.ino != 0 && name == 0:
		return dirent{}, corrupt("the entry at byte %d has no name", at)
	}
	e.name = b[at+direntHeader:][:name]
	e.after = b[min(at+direntHeader+(name+3)&^3, at+e.length) : at+e.length]
	if kind := b[at+7]; fs.sb.incompat&incompatFiletype != 0 && int(kind) < len(direntTypes) {
		e.kind = direntTypes[kind]
	}
	return e, nil
}

// recordBytes is the length of an entry: with blocks of 64 KiB its 16 bits hold more.
func (fs *FS) recordBytes(b []byte) int {
	n := int(binary.LittleEndian.Uint16(b))
	if fs.sb.blockBytes() < bigBlockBytes {
		return n
	}
	if n == 0 || n == bigBlockBytes-1 {
		return bigBlockBytes
	}
	return n&^3 | n&3<<16
}

// directory reads the inode of one.
func (fs *FS) directory(ino uint64, in *inode) error {
	if err := fs.inode(ino, in); err != nil {
		return err
	}
	if in.fileType() != backend.TypeDir {
		return fmt.Errorf("inode %d: %w", ino, backend.ErrNotDir)
	}
	return nil
}

// dirBlocks is the number of a directory's blocks.
func (fs *FS) dirBlocks(in *inode) uint64 {
	return (in.size + uint64(fs.sb.blockBytes()) - 1) >> fs.sb.blockBits
}

// indexed tells whether a directory's inode says that it is an htree.
func (fs *FS) indexed(in *inode) bool {
	return fs.sb.compat&compatDirIndex != 0 && in.flags&inodeIndex != 0 && !in.inline
}

// dirBlock reads a block of a directory and compares its checksum.
func (fs *FS) dirBlock(in *inode, block, phys uint64) ([]byte, error) {
	b, err := fs.blocks(phys, 1)
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory %w", in.ino, err)
	}
	if fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return b.data, nil
	}
	as := checked{kind: "directory", ino: in.ino, lo: block}
	if b.rightAs(as) {
		return b.data, nil
	}
	if fs.indexed(in) && (block == 0 || fs.looksIndex(b.data)) {
		err = fs.checkIndex(in, b.data)
	} else {
		err = fs.checkLeaf(in, b.data)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory block %d (the directory's block %d): %w", in.ino, phys, block, err)
	}
	b.setRight(as)
	return b.data, nil
}

// checkLeaf compares the checksum of a block of entries, which is in its last entry.
func (fs *FS) checkLeaf(in *inode, b []byte) error {
	le := binary.LittleEndian
	tail := b[len(b)-direntTail:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != direntTail || tail[6] != 0 || tail[7] != direntTailTag {
		return corrupt("there is no checksum at its end")
	}
	if stored, sum := le.Uint32(tail[8:]), crc32c(in.seed, b[:len(b)-direntTail]); stored != sum {
		return corrupt("checksum is 0x%08x, computed 0x%08x", stored, sum)
	}
	return nil
}

// walkDir calls f with each entry at or after a place in a directory, "." and ".."
// too, and the place after it, until f returns false. The names of a block are one string.
func (fs *FS) walkDir(in *inode, from uint64, f func(e *dirent, name string, next uint64) bool) error {
	if in.inline {
		return fs.walkInlineDir(in, from, f)
	}
	bits := fs.sb.blockBits
	end := fs.dirBlocks(in)
	var e dirent // one for all entries
	if from >= end<<bits {
		return nil
	}
	for block := from >> bits; block < end; {
		if err := in.interrupted(block); err != nil {
			return err
		}
		r, err := fs.mapRun(in, block)
		if err != nil {
			return err
		}
		if r.state != runWritten {
			block = r.end() // a hole has no entries
			continue
		}
		for ; block < min(r.end(), end); block++ {
			if err := in.interrupted(block); err != nil {
				return err
			}
			phys := r.phys + block - r.logical
			fs.readahead(phys, int(min(r.end(), end, block+readaheadBytes)-block))
			b, err := fs.dirBlock(in, block, phys)
			if err != nil {
				return err
			}
			var names string
			for at := 0; at < len(b); {
				if e, err = fs.dirent(b, at); err != nil {
					return fmt.Errorf("inode %d: directory block %d (the directory's block %d): %w", in.ino, phys, block, err)
				}
				place := block<<bits + uint64(at)
				if e.ino != 0 && place >= from {
					if names == "" {
						names = string(b)
					}
					name := names[at+direntHeader:][:len(e.name)]
					if !f(&e, name, place+uint64(e.length)) {
						return nil
					}
				}
				at += e.length
			}
		}
	}
	return nil
}

// ReadDir lists a directory in the order of its blocks. A cookie is the byte after an
// entry; one that is none goes on with the next entry after it. e and its Attr are valid until emit returns.
func (fs *FS) ReadDir(dir uint64, cookie uint64, attrs bool, emit func(e *backend.DirEntry) bool) error {
	return fs.readDir(nil, dir, cookie, attrs, emit)
}

// until is an FS whose walks end when done is closed.
type until struct {
	*FS
	done <-chan struct{}
}

// Until implements backend.Interruptible.
func (fs *FS) Until(done <-chan struct{}) backend.FS { return until{fs, done} }

func (u until) ReadDir(dir uint64, cookie uint64, attrs bool, emit func(e *backend.DirEntry) bool) error {
	return u.readDir(u.done, dir, cookie, attrs, emit)
}

func (u until) Lookup(dir uint64, name string) (backend.Attr, error) {
	return u.lookup(u.done, dir, name)
}
func (u until) Parent(dir uint64) (uint64, error) { return u.parent(u.done, dir) }

// interruptMask says at which of a directory's blocks a walk looks whether it is to end.
const interruptMask = 1<<8 - 1

func (in *inode) interrupted(block uint64) error {
	if block&interruptMask != 0 {
		return nil
	}
	select {
	case <-in.done:
		return fmt.Errorf("inode %d: the directory's block %d: %w", in.ino, block, context.Canceled)
	default:
		return nil
	}
}

func (fs *FS) readDir(done <-chan struct{}, dir uint64, cookie uint64, attrs bool, emit func(e *backend.DirEntry) bool) error {
	in := inode{done: done}
	if err := fs.directory(dir, &in); err != nil {
		return err
	}
	var entry backend.DirEntry
	var child inode
	shown := fs.shownNames(&in)
	var wrong error
	err := fs.walkDir(&in, cookie, func(e *dirent, name string, next uint64) bool {
		if name == "." || name == ".." {
			return true
		}
		if shown != nil {
			if name, wrong = shown.of(e); wrong != nil {
				return false
			}
		}
		entry = backend.DirEntry{Name: name, Ino: uint64(e.ino), Type: e.kind, Cookie: next}
		if attrs && fs.inode(entry.Ino, &child) == nil {
			entry.Attr = &child.attr
		}
		return emit(&entry)
	})
	if wrong != nil {
		err = fmt.Errorf("inode %d: %w", dir, wrong)
	}
	return err
}

// Lookup finds a name: through the htree where there is one, else from end to end.
func (fs *FS) Lookup(dir uint64, name string) (backend.Attr, error) { return fs.lookup(nil, dir, name) }

func (fs *FS) lookup(done <-chan struct{}, dir uint64, name string) (backend.Attr, error) {
	in := inode{done: done}
	if err := fs.directory(dir, &in); err != nil {
		return backend.Attr{}, err
	}
	if len(name) > nameMax {
		return backend.Attr{}, fmt.Errorf("a name of %d bytes: %w", len(name), backend.ErrTooLong)
	}
	var ino uint32
	if name != "" && name != "." && name != ".." {
		var err error
		if ino, err = fs.findName(&in, name); err != nil {
			return backend.Attr{}, err
		}
	}
	if ino == 0 {
		return backend.Attr{}, fmt.Errorf("inode %d: no entry %q: %w", dir, name, backend.ErrNotExist)
	}
	var child inode
	if err := fs.inode(uint64(ino), &child); errors.Is(err, backend.ErrStale) {
		return backend.Attr{}, corrupt("inode %d: the entry %q leads to inode %d, which is reserved or not in use", dir, name, ino)
	} else if err != nil {
		return backend.Attr{}, fmt.Errorf("inode %d: the entry %q: %w", dir, name, err)
	}
	return child.attr, nil
}

// find is the inode number of the entry that is wanted, 0 if there is none.
func (fs *FS) find(in *inode, w *wanted) (uint32, error) {
	if fs.indexed(in) {
		ino, err := fs.findHashed(in, w)
		if err != nil && !errors.Is(err, errOddIndex) || err == nil && (ino != 0 || fs.sb.hashSignKnown) {
			return ino, err
		}
	}
	var found uint32
	err := fs.walkDir(in, 0, func(e *dirent, _ string, _ uint64) bool {
		if !w.is(e.name) {
			return true
		}
		found = e.ino
		return false
	})
	return found, err
}

// Parent is the inode number of a directory's "..", its second entry, or the inode that
// it has in place of that.
func (fs *FS) Parent(dir uint64) (uint64, error) { return fs.parent(nil, dir) }

func (fs *FS) parent(done <-chan struct{}, dir uint64) (uint64, error) {
	in := inode{done: done}
	if err := fs.directory(dir, &in); err != nil {
		return 0, err
	}
	if in.inline {
		return in.inlineParent(fs.sb)
	}
	var parent uint32
	count := 0
	err := fs.walkDir(&in, 0, func(e *dirent, name string, _ uint64) bool {
		if count++; name == ".." {
			parent = e.ino
		}
		return parent == 0 && count < 2
	})
	if err == nil && parent == 0 {
		err = corrupt("inode %d: the directory has no entry \"..\"", dir)
	}
	return uint64(parent), err
}

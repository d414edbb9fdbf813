package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"domfs/backend"
)

// Orphans: Documentation/filesystems/ext4/orphan.rst. They are the inodes that had no name
// any more but were open, and those that were being truncated: a list through the
// superblock and the inodes, and with the feature orphan_file also a file.
const (
	superStateAt      = 0x3a
	superROCompatAt   = 0x64
	superLastOrphanAt = 0xe8
	superOrphanFileAt = 0x280

	compatOrphanFile      = 0x1000
	roCompatOrphanPresent = 0x10000

	orphanMagic        = 0x0b10ca04
	orphanTail         = 8
	maxOrphanFileBytes = 8 << 20

	// roCompatKnown are the read-only compatible features with which the kernel cleans up.
	roCompatKnown = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x10000
)

// cleanOrphans does in memory what the kernel does with orphans when it mounts the
// filesystem: it deletes those without links and truncates the others.
func (fs *FS) cleanOrphans() error {
	e := newEditor(fs)
	e.counted = true
	err := e.cleanOrphans()
	fs.fcDeleted = nil
	if err == nil {
		e.finish()
		return nil
	}
	e.discard()
	if !told(err) {
		return fmt.Errorf("ext4: orphans: %w", err)
	}
	fs.warn("the guest's deleted files that were open, and its half-done truncations, were left as they are: %v; free space and some sizes are not as the guest's kernel would make them", err)
	return nil
}

// told tells whether an error is of the guest's bytes, which a warning tells of; others
// fail the opening.
func told(err error) bool {
	for _, e := range []error{backend.ErrCorrupt, backend.ErrUnsupported, backend.ErrStale, errTooMuch, errNoRoom, errNotThere, errExists} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (e *editor) cleanOrphans() error {
	sb, le := e.fs.sb, binary.LittleEndian
	b, err := e.superView()
	if err != nil {
		return err
	}
	first := le.Uint32(b[superLastOrphanAt:])
	if first == 0 && sb.compat&compatOrphanFile == 0 {
		return nil
	}
	if sb.roCompat&^roCompatKnown != 0 || sb.state&stateErrors != 0 {
		return nil
	}
	if first != 0 {
		wrong, err := e.cleanList(first)
		if err != nil {
			return err
		}
		if err := e.super(func(b []byte) { le.PutUint32(b[superLastOrphanAt:], 0) }); err != nil {
			return err
		}
		if wrong != nil {
			e.fs.warn("the list of the guest's orphans is wrong, and was not followed further: %v", wrong)
		}
	}
	if sb.compat&compatOrphanFile != 0 {
		return e.cleanFile(le.Uint32(b[superOrphanFileAt:]))
	}
	return nil
}

// cleanList follows the list through the inodes. wrong is why it could not be followed to
// its end.
func (e *editor) cleanList(ino uint32) (wrong, err error) {
	// An inode that was cleaned is no orphan any more, so that a list in a circle ends.
	for ino != 0 {
		if err := e.step(); err != nil {
			return nil, err
		}
		in, err := e.orphan(ino)
		if next, deleted := e.fs.fcDeleted[ino]; deleted && errors.Is(err, errNotThere) {
			delete(e.fs.fcDeleted, ino) // so that this ends, too
			if next > e.fs.sb.inodes {
				return corrupt("inode %d: the next orphan is %d of %d", ino, next, e.fs.sb.inodes), nil
			}
			if next == ino {
				next = 0
			}
			ino = next
			continue
		}
		if err != nil {
			if errors.Is(err, backend.ErrCorrupt) || errors.Is(err, errNotThere) {
				return err, nil
			}
			return nil, err
		}
		next := in.u32(inodeDtimeAt)
		if next > e.fs.sb.inodes {
			return corrupt("inode %d: the next orphan is %d of %d", ino, next, e.fs.sb.inodes), nil
		}
		if next == ino {
			next = 0
		}
		if err := in.cleanUp(); err != nil {
			return nil, err
		}
		e.cleaned++
		ino = next
	}
	return nil, nil
}

// orphan returns an inode that may be one.
func (e *editor) orphan(ino uint32) (*editedInode, error) {
	sb := e.fs.sb
	if ino < sb.firstIno || ino > sb.inodes {
		return nil, corrupt("inode %d of %d is an orphan", ino, sb.inodes)
	}
	if used, err := e.inodeUsed(ino); err != nil {
		return nil, err
	} else if !used {
		return nil, fmt.Errorf("inode %d is an orphan: %w", ino, errNotThere)
	}
	in, err := e.inode(ino, true)
	if err != nil {
		return nil, err
	}
	if in.links() > 0 && !in.canTruncate() {
		return nil, corrupt("inode %d is an orphan with links, and has nothing to be truncated", ino)
	}
	return in, nil
}

// canTruncate tells whether there are blocks that the size decides about.
func (in *editedInode) canTruncate() bool {
	switch in.typ() {
	case backend.TypeRegular, backend.TypeDir:
		return true
	case backend.TypeSymlink:
		return !in.isFastSymlink()
	}
	return false
}

// cleanUp truncates or deletes an orphan.
func (in *editedInode) cleanUp() error {
	if in.links() > 0 {
		in.put32(inodeDtimeAt, 0)
		return in.truncate()
	}
	return in.delete()
}

// truncate frees the blocks after the end.
func (in *editedInode) truncate() error {
	if in.flags()&inodeInlineData == 0 {
		if err := in.zeroTail(); err != nil {
			return err
		}
		if err := in.freeFrom(in.size()); err != nil {
			return err
		}
	}
	in.touchCtime()
	in.touchMtime()
	in.seal()
	return nil
}

// freeFrom frees the blocks after so many bytes.
func (in *editedInode) freeFrom(size uint64) error {
	bits := in.e.fs.sb.blockBits
	first := size >> bits
	if size&(1<<bits-1) != 0 {
		first++
	}
	if in.hasExtents() {
		if first >= maxLogical {
			return nil
		}
		return in.removeRange(first, maxLogical)
	}
	return in.truncatePointers(first)
}

// zeroTail clears what the last block has after the end.
func (in *editedInode) zeroTail() error {
	bits := in.e.fs.sb.blockBits
	size := in.size()
	skip := size & (1<<bits - 1)
	if skip == 0 || in.typ() != backend.TypeRegular || in.flags()&inodeEncrypt != 0 {
		return nil
	}
	if in.hasExtents() {
		r, err := in.lookup(size>>bits, 1)
		if err != nil || r.state != runWritten {
			return err
		}
	}
	phys, err := in.physical(size >> bits)
	if err != nil || phys == 0 {
		return err
	}
	b, err := in.e.edit(phys, kindContent)
	if err != nil {
		return err
	}
	clear(b[skip:])
	return nil
}

// delete frees an inode without links, and all that it has.
func (in *editedInode) delete() error {
	e := in.e
	directory := in.typ() == backend.TypeDir
	if in.isFastSymlink() {
		clear(in.root())
	}
	blocks := in.hasBlocks()
	in.setSize(0)
	if blocks && in.sectors() != 0 {
		if err := in.freeFrom(0); err != nil {
			return err
		}
	}
	if err := in.deleteXattrs(); err != nil {
		return err
	}
	in.setDeleted()
	in.seal()
	return e.freeInode(in.ino, directory)
}

// deleteXattrs lets go of the attributes outside of the inode.
func (in *editedInode) deleteXattrs() error {
	e, le := in.e, binary.LittleEndian
	values, err := in.xattrInodes()
	if err != nil {
		return err
	}
	if block := in.xattrBlock(); block != 0 {
		if !e.fs.sb.validRun(block, 1) {
			return corrupt("inode %d: attribute block %d of %d", in.ino, block, e.fs.sb.blocks)
		}
		b, err := e.edit(block, kindAttributes)
		if err != nil {
			return fmt.Errorf("inode %d: attribute %w", in.ino, err)
		}
		if magic, n := le.Uint32(b), le.Uint32(b[8:]); magic != xattrMagic || n != 1 {
			return corrupt("inode %d: attribute block %d: magic is 0x%x, not 0x%x, or %d blocks, not 1", in.ino, block, magic, uint32(xattrMagic), n)
		}
		list, err := xattrValueInodes(b[xattrBlockHeader:])
		if err != nil {
			return fmt.Errorf("inode %d: attribute block %d: %w", in.ino, block, err)
		}
		if refs := le.Uint32(b[4:]); refs > 1 {
			le.PutUint32(b[4:], refs-1)
			e.sealXattrs(block, b)
		} else {
			values = append(values, list...)
			e.kinds[block] = kindFree
			if err := in.release(block, 1); err != nil {
				return err
			}
		}
		in.put32(inodeXattrAt, 0)
		in.put16(inodeXattrHighAt, 0)
	}
	for _, ino := range values {
		if err := e.dropValue(ino); err != nil {
			return err
		}
	}
	return nil
}

// sealXattrs sets the checksum of a block of attributes.
func (e *editor) sealXattrs(block uint64, b []byte) {
	if e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return
	}
	const at = 0x10
	sum := crc32cUint32(crc32cUint32(e.fs.sb.seed, uint32(block)), uint32(block>>32))
	sum = crc32c(sum, b[:at])
	sum = crc32c(sum, zeros[:])
	binary.LittleEndian.PutUint32(b[at:], crc32c(sum, b[at+4:]))
}

// xattrInodes are the inodes that hold values of the attributes in the inode.
func (in *editedInode) xattrInodes() ([]uint32, error) {
	if in.e.fs.sb.incompat&incompatEAInode == 0 || len(in.raw) <= minInodeBytes {
		return nil, nil
	}
	at := minInodeBytes + int(in.u16(inodeExtraAt))
	if at+xattrInodeHeader > len(in.raw) || binary.LittleEndian.Uint32(in.raw[at:]) != xattrMagic {
		return nil, nil
	}
	list, err := xattrValueInodes(in.raw[at+xattrInodeHeader:])
	if err != nil {
		return nil, fmt.Errorf("inode %d: attributes in the inode: %w", in.ino, err)
	}
	return list, nil
}

// xattrValueInodes are the inodes that a list of attributes has values in.
func xattrValueInodes(list []byte) (inodes []uint32, err error) {
	le := binary.LittleEndian
	for at := 0; ; {
		if len(list)-at < 4 {
			return nil, corrupt("the list of entries has no end")
		}
		if le.Uint32(list[at:]) == 0 {
			return inodes, nil
		}
		size := xattrSize(list[at])
		if len(list)-at < size {
			return nil, corrupt("the entry at byte %d of %d is too long", at, len(list))
		}
		if ino := le.Uint32(list[at+4:]); ino != 0 {
			inodes = append(inodes, ino)
		}
		at += size
	}
}

// dropValue lets go of an inode that holds an attribute's value. Its count of users is
// where other inodes have their ctime and the lower half of their version.
func (e *editor) dropValue(ino uint32) error {
	const low, high = 0x24, 0x0c
	in, err := e.inode(ino, false)
	if err != nil {
		return err
	}
	if in.flags()&inodeEAInode == 0 {
		return corrupt("inode %d does not hold an attribute's value", ino)
	}
	refs := uint64(in.u32(high))<<32 | uint64(in.u32(low))
	if refs > 1 {
		in.put32(high, uint32((refs-1)>>32))
		in.put32(low, uint32(refs-1))
		in.seal()
		return nil
	}
	in.put32(high, 0)
	in.put32(low, 0)
	in.setLinks(0)
	in.setSize(0)
	if in.hasExtents() || in.sectors() != 0 {
		if err := in.freeFrom(0); err != nil {
			return err
		}
	}
	in.setDeleted()
	in.seal()
	return e.freeInode(ino, false)
}

// cleanFile cleans up what the orphan file lists, and empties it.
func (e *editor) cleanFile(ino uint32) error {
	sb, le := e.fs.sb, binary.LittleEndian
	var in inode
	if ino == 0 || ino > sb.inodes {
		return corrupt("the orphan file is inode %d of %d", ino, sb.inodes)
	}
	if err := e.fs.readInode(ino, &in); err != nil {
		return fmt.Errorf("the orphan file: %w", err)
	}
	if in.size > maxOrphanFileBytes {
		return corrupt("inode %d: the orphan file has %d bytes, more than %d", ino, in.size, maxOrphanFileBytes)
	}
	for block := range in.size >> sb.blockBits {
		r, err := e.fs.mapRun(&in, block)
		if err != nil {
			return fmt.Errorf("the orphan file: %w", err)
		}
		if r.state != runWritten {
			return corrupt("inode %d: the orphan file's block %d is a hole", ino, block)
		}
		phys := r.phys + block - r.logical
		b, err := e.view(phys)
		if err != nil {
			return fmt.Errorf("the orphan file: %w", err)
		}
		if err := e.checkOrphans(&in, phys, b); err != nil {
			return err
		}
		end := len(b) - orphanTail
		for at := 0; at+4 <= end; at += 4 {
			orphan := le.Uint32(b[at:])
			if orphan == 0 {
				continue
			}
			if b, err = e.edit(phys, kindOrphans); err != nil {
				return err
			}
			if err := e.cleanEntry(orphan); err != nil {
				return err
			}
			le.PutUint32(b[at:], 0)
		}
		if e.kinds[phys] == kindOrphans {
			le.PutUint32(b[end+4:], e.orphanSum(&in, phys, b))
		}
	}
	if sb.roCompat&roCompatOrphanPresent == 0 {
		return nil
	}
	sb.roCompat &^= roCompatOrphanPresent
	return e.super(func(b []byte) {
		le.PutUint32(b[superROCompatAt:], le.Uint32(b[superROCompatAt:])&^uint32(roCompatOrphanPresent))
	})
}

// cleanEntry cleans up an orphan of the file. One that is none is passed over.
func (e *editor) cleanEntry(ino uint32) error {
	if err := e.step(); err != nil {
		return err
	}
	in, err := e.orphan(ino)
	if _, deleted := e.fs.fcDeleted[ino]; deleted && errors.Is(err, errNotThere) {
		return nil
	}
	if errors.Is(err, backend.ErrCorrupt) || errors.Is(err, errNotThere) {
		if !e.warned {
			e.warned = true
			e.fs.warn("the guest's orphan file lists what is none: %v", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	e.cleaned++
	return in.cleanUp()
}

func (e *editor) orphanSum(in *inode, phys uint64, b []byte) uint32 {
	if e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return binary.LittleEndian.Uint32(b[len(b)-4:])
	}
	sum := crc32cUint32(crc32cUint32(in.seed, uint32(phys)), uint32(phys>>32))
	return crc32c(sum, b[:len(b)-orphanTail])
}

func (e *editor) checkOrphans(in *inode, phys uint64, b []byte) error {
	tail := b[len(b)-orphanTail:]
	if magic := binary.LittleEndian.Uint32(tail); magic != orphanMagic {
		return corrupt("block %d of the orphan file: magic is 0x%x, not 0x%x", phys, magic, orphanMagic)
	}
	if stored, sum := binary.LittleEndian.Uint32(tail[4:]), e.orphanSum(in, phys, b); stored != sum {
		return corrupt("block %d of the orphan file: checksum is 0x%08x, computed 0x%08x", phys, stored, sum)
	}
	return nil
}

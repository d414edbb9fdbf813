package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"domfs/backend"
)

// The copies of the superblock, as mke2fs(8) and e2fsck(8), option -b, place them: at the
// beginning of groups 1, 3, 5, 7, 9, 25, …, of the last one with sparse_super2, or of every one.
const (
	maxBackupReads    = 256
	maxGroupClusters  = 65528 // that mke2fs puts into a group, whatever the block size
	maxBackupClusters = 12    // log2 of the blocks in a cluster, up to which copies are looked for in group 1,
	allBackupClusters = 4     // and up to which in all of sparseGroups
)

// sparseGroups are the groups that copies are looked for in, besides the last ones.
var sparseGroups = []uint64{1, 3, 5, 7, 9, 25, 27, 49}

// readSuper reads the superblock. If it is damaged, a copy of it is read; damage then
// says so.
func readSuper(d backend.Device) (sb *super, damage string, err error) {
	first := make([]byte, superBytes)
	if n, err := d.ReadAt(first, superOffset); n < len(first) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, "", corrupt("ext4: a device of %d bytes has no superblock", d.Size())
		}
		return nil, "", fmt.Errorf("ext4: superblock: %w", err)
	}
	sb, err = parseSuper(first)
	if err == nil || !errors.Is(err, backend.ErrCorrupt) {
		return sb, "", err
	}
	sb, readErr := findBackup(d, first)
	if readErr != nil {
		return nil, "", readErr
	}
	if sb == nil {
		return nil, "", fmt.Errorf("%w; no copy of it was found", err)
	}
	return sb, fmt.Sprintf("the superblock is damaged, and its copy in block group %d was read, which may be older (%v): the guest should run e2fsck", sb.copyOf, err), nil
}

// findBackup looks for a copy of a damaged superblock, nil if there is none. An error is
// one of the device.
func findBackup(d backend.Device, first []byte) (found *super, failed error) {
	tried := map[int64]bool{}
	b := make([]byte, superBytes)
	eachBackup(d.Size(), first, func(off int64) bool {
		if off <= superOffset || off > d.Size()-superBytes || tried[off] || len(tried) >= maxBackupReads {
			return false
		}
		tried[off] = true
		if n, err := d.ReadAt(b, off); n < len(b) {
			if err != nil && !errors.Is(err, io.EOF) {
				failed = fmt.Errorf("ext4: a copy of the superblock at byte %d: %w", off, err)
			}
			return false
		}
		sb, err := parseSuper(b)
		if err != nil {
			return false
		}
		if sb.copyOf = sb.groupAt(off); sb.copyOf == 0 || !sb.replaces(d, first) {
			return false
		}
		found = sb
		return true
	})
	if found != nil {
		return found, nil
	}
	return nil, failed
}

// eachBackup calls try with the places, in bytes, that copies of the superblock may have,
// the likely ones first, until it returns true.
func eachBackup(size int64, first []byte, try func(off int64) bool) {
	le := binary.LittleEndian
	// What is left of the first one may say where.
	if le.Uint16(first[0x38:]) == superMagic {
		groups := append([]uint64{uint64(le.Uint32(first[0x24c:])), uint64(le.Uint32(first[0x250:]))}, sparseGroups...)
		if log := le.Uint32(first[0x18:]); log <= maxLogBlockSize &&
			groupBackups(size, 10+uint(log), uint64(le.Uint32(first[0x14:])), uint64(le.Uint32(first[0x20:])), groups, try) {
			return
		}
	}
	for clusterBits := range uint(maxBackupClusters + 1) {
		groups := sparseGroups
		if clusterBits > allBackupClusters {
			groups = sparseGroups[:1]
		}
		for log := range uint(maxLogBlockSize + 1) {
			blockBits := 10 + log
			perGroup := min(uint64(8)<<blockBits, maxGroupClusters) << clusterBits
			var firstBlock uint64
			if blockBits == 10 && clusterBits == 0 {
				firstBlock = 1
			}
			if groupBackups(size, blockBits, firstBlock, perGroup, groups, try) {
				return
			}
		}
	}
}

// groupBackups calls try with the beginning of groups, and of the last ones on the
// device, until it returns true.
func groupBackups(size int64, blockBits uint, firstBlock, perGroup uint64, groups []uint64, try func(off int64) bool) bool {
	blocks := uint64(size) >> blockBits
	if perGroup == 0 || firstBlock >= blocks {
		return false
	}
	count := (blocks - firstBlock + perGroup - 1) / perGroup
	// mke2fs leaves out a last group that has no room for its tables.
	for _, group := range append(groups[:len(groups):len(groups)], count-1, count-2) {
		if group > 0 && group < count && try(int64(firstBlock+group*perGroup)<<blockBits) {
			return true
		}
	}
	return false
}

// groupAt is the group whose copy of the superblock lies at a place in bytes, 0 for none.
func (s *super) groupAt(off int64) uint64 {
	block := uint64(off) >> s.blockBits
	if off&int64(s.blockBytes()-1) != 0 || block <= uint64(s.firstDataBlock) || (block-uint64(s.firstDataBlock))%uint64(s.blocksPerGroup) != 0 {
		return 0
	}
	group := (block - uint64(s.firstDataBlock)) / uint64(s.blocksPerGroup)
	if group >= s.groups || !s.hasSuper(group) {
		return 0
	}
	return group
}

// replaces tells whether a superblock that was found where the group copyOf has its copy
// is one of the device's damaged first one. If so, it was made fit for use in its stead.
func (s *super) replaces(d backend.Device, first []byte) bool {
	// Number 0 is in the copies of filesystems that older kernels have resized.
	numbered := s.groupNumber == uint16(s.copyOf) || s.copyOf > 0xffff && s.groupNumber == 0xffff
	same := binary.LittleEndian.Uint16(first[0x38:]) == superMagic && [16]byte(first[0x68:0x78]) == s.uuid && s.uuid != [16]byte{}
	if !numbered && !(same && s.groupNumber == 0) {
		return false
	}
	// The filesystem as the copy describes it, without the cache that the open one gets.
	fs := &FS{dev: d, sb: s, cache: newCache(0)}
	defer fs.cache.clear()
	if !same && (int64(s.blocks) > d.Size()>>s.blockBits || !fs.hasRoot()) {
		return false // of a filesystem that was here before
	}
	// Copies say neither whether the filesystem is in use nor whether its journal has to be
	// replayed; the journal itself says the latter.
	s.state = stateClean
	if fs.journalBegun() {
		s.incompat |= incompatRecover
	}
	return true
}

// hasRoot tells whether the root directory's inode is that of a directory, and its first
// entry its own.
func (fs *FS) hasRoot() bool {
	var in inode
	if fs.readInode(rootIno, &in) != nil || in.fileType() != backend.TypeDir {
		return false
	}
	if in.flags&inodeInlineData != 0 {
		return true // has no entry of its own
	}
	r, err := fs.mapRun(&in, 0)
	if err != nil || r.state != runWritten {
		return false
	}
	b, err := fs.dirBlock(&in, 0, r.phys-r.logical)
	if err != nil {
		return false
	}
	e, err := fs.dirent(b, 0)
	return err == nil && e.ino == rootIno && string(e.name) == "."
}

// journalBegun tells whether there is a journal in the filesystem that holds something
// to replay. One whose superblock is damaged counts: recovery says what is wrong with it.
func (fs *FS) journalBegun() bool {
	if fs.sb.compat&compatHasJournal == 0 || fs.sb.journalIno == 0 || fs.sb.journalIno > fs.sb.inodes {
		return false
	}
	var in inode
	if fs.readInode(fs.sb.journalIno, &in) != nil {
		return false
	}
	r, err := fs.mapRun(&in, 0)
	if err != nil || r.state != runWritten {
		return false
	}
	b, err := fs.blocks(r.phys-r.logical, 1)
	if err != nil {
		return false
	}
	j, err := parseJournalSuper(b.data, fs.sb.blockBytes(), in.size>>fs.sb.blockBits)
	if err != nil {
		return binary.BigEndian.Uint32(b.data) == jbd2Magic
	}
	return j.start != 0
}

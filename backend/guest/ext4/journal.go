package ext4

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"domfs/backend"
)

// The journal's superblock: Documentation/filesystems/ext4/journal.rst. Everything in the
// journal is big-endian.
const (
	journalSuperBytes = 1024

	journalDescriptor = 1 // types of the blocks that the journal keeps for itself
	journalCommit     = 2
	journalSuperV1    = 3
	journalSuperV2    = 4
	journalRevoke     = 5

	journalCompatChecksum = 0x1

	journalIncompatRevoke      = 0x1
	journalIncompat64Bit       = 0x2
	journalIncompatAsyncCommit = 0x4
	journalIncompatChecksumV2  = 0x8
	journalIncompatChecksumV3  = 0x10
	journalIncompatFastCommit  = 0x20

	journalIncompatRead = journalIncompatRevoke | journalIncompat64Bit | journalIncompatAsyncCommit |
		journalIncompatChecksumV2 | journalIncompatChecksumV3 | journalIncompatFastCommit

	// minJournalBlocks is what the log has at least, besides the blocks for fast commits.
	minJournalBlocks = 1024
	// defaultFastCommitBlocks is how many blocks fast commits have where the superblock
	// does not say.
	defaultFastCommitBlocks = 256

	jbd2ChecksumCRC32C = 4

	journalBackupBlocks = 1              // type of the copy of the journal's inode in the superblock
	journalBackupBytes  = blockArray + 8 // and the size, its upper half first

	// maxJournalRuns bounds the memory of the journal's map. One of 40 GiB, the largest
	// that mke2fs makes, has a tenth of these with an indirect map and blocks of 1 KiB.
	maxJournalRuns = 1 << 19

	// maxRecoveryBytes bounds what is read of the journal while a filesystem is opened, and so its time.
	// mke2fs makes journals of up to 1 GiB with blocks of 4 KiB unless it is told the size. Such a log is in use as a whole
	// when the guest was busy, and with short transactions it is read three times.
	maxRecoveryBytes = 8 << 30
)

// journalSuper is the journal's superblock.
type journalSuper struct {
	maxlen   uint32 // blocks of the journal, with its superblock
	first    uint32 // block of the log
	sequence uint32 // of the first transaction in the log
	start    uint32 // the log's block that this transaction begins with; 0 if the log is empty
	errno    int32  // what the filesystem had failed with; 0 if it had not
	compat   uint32
	incompat uint32

	// last is the end of the log: the blocks from first on and before it are used in a circle.
	last uint32
	// The blocks that fast commits are in, none without the feature. The kernel leaves the block at
	// last unused.
	fastCommitFirst, fastCommitBlocks uint32

	seed uint32 // what checksums of versions 2 and 3 begin with
}

func (s *journalSuper) has64Bit() bool { return s.incompat&journalIncompat64Bit != 0 }

// checksumsBlocks tells whether each block has a checksum: versions 2 and 3.
func (s *journalSuper) checksumsBlocks() bool {
	return s.incompat&(journalIncompatChecksumV2|journalIncompatChecksumV3) != 0
}

// checksumsTransactions tells whether commit blocks have one of the whole transaction: version 1.
func (s *journalSuper) checksumsTransactions() bool { return s.compat&journalCompatChecksum != 0 }

// parseJournalSuper parses the journal's superblock. length is the length of its file in
// blocks. What it accepts is what the kernel mounts.
func parseJournalSuper(b []byte, blockBytes int, length uint64) (*journalSuper, error) {
	be := binary.BigEndian
	if magic := be.Uint32(b); magic != jbd2Magic {
		return nil, corrupt("journal superblock: magic is 0x%x, not 0x%x", magic, jbd2Magic)
	}
	version := be.Uint32(b[0x4:])
	if version != journalSuperV1 && version != journalSuperV2 {
		return nil, corrupt("journal superblock: block type %d is none of a superblock", version)
	}
	s := &journalSuper{
		maxlen:   be.Uint32(b[0x10:]),
		first:    be.Uint32(b[0x14:]),
		sequence: be.Uint32(b[0x18:]),
		start:    be.Uint32(b[0x1c:]),
		errno:    int32(be.Uint32(b[0x20:])),
	}
	if size := be.Uint32(b[0xc:]); size != uint32(blockBytes) {
		return nil, corrupt("journal superblock: the block size is %d, that of the filesystem %d", size, blockBytes)
	}
	if uint64(s.maxlen) > length {
		return nil, corrupt("journal superblock: %d blocks in a file of %d", s.maxlen, length)
	}
	s.last = s.maxlen
	if version == journalSuperV2 {
		if err := s.parseFeatures(b); err != nil {
			return nil, err
		}
	}
	switch {
	case s.first == 0 || uint64(s.first)+minJournalBlocks > uint64(s.maxlen)+1 || s.first >= s.last:
		return nil, corrupt("journal superblock: the log is from block %d of %d on", s.first, s.last)
	case s.start >= s.last:
		return nil, corrupt("journal superblock: the first transaction is at block %d of %d", s.start, s.last)
	}
	return s, nil
}

// parseFeatures is about what only version 2 of the superblock has.
func (s *journalSuper) parseFeatures(b []byte) error {
	be := binary.BigEndian
	s.compat, s.incompat = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
	if unknown := be.Uint32(b[0x2c:]); unknown != 0 || s.incompat&^journalIncompatRead != 0 {
		return fmt.Errorf("journal superblock: unknown features, incompatible 0x%x and read-only compatible 0x%x: %w",
			s.incompat&^journalIncompatRead, unknown, backend.ErrUnsupported)
	}
	if s.incompat&journalIncompatFastCommit != 0 {
		n := be.Uint32(b[0x54:])
		if n == 0 {
			n = defaultFastCommitBlocks
		}
		if s.maxlen < minJournalBlocks || s.maxlen-minJournalBlocks < n {
			return corrupt("journal superblock: %d of %d blocks are for fast commits", n, s.maxlen)
		}
		s.last -= n
		s.fastCommitFirst, s.fastCommitBlocks = s.last+1, n-1
	}
	v2, v3 := s.incompat&journalIncompatChecksumV2 != 0, s.incompat&journalIncompatChecksumV3 != 0
	if v2 && v3 || (v2 || v3) && s.checksumsTransactions() {
		return corrupt("journal superblock: checksums of several versions, features 0x%x and 0x%x", s.compat, s.incompat)
	}
	if v2 || v3 {
		if kind := b[0x50]; kind != jbd2ChecksumCRC32C {
			return fmt.Errorf("journal superblock: checksum type %d is not known: %w", kind, backend.ErrUnsupported)
		}
		const at = 0xfc
		sum := crc32c(^uint32(0), b[:at])
		sum = crc32c(sum, zeros[:])
		sum = crc32c(sum, b[at+4:journalSuperBytes])
		if stored := be.Uint32(b[at:]); stored != sum {
			return corrupt("journal superblock: checksum is 0x%08x, computed 0x%08x", stored, sum)
		}
		s.seed = crc32c(^uint32(0), b[0x30:0x40])
	}
	return nil
}

// journalRun is a run of the journal's blocks that lie together.
type journalRun struct {
	logical, blocks uint32
	phys            uint64 // block of the filesystem
}

// journal is the journal of a filesystem, on the filesystem's own device.
type journal struct {
	journalSuper
	fs     *FS
	runs   []journalRun // all of its blocks, in their order
	byPhys []journalRun // the same, in the order of the device

	held     int64 // bytes of the budget of all overlays, for the runs
	readLeft int64 // bytes that may still be read

	// nextTID is the transaction after the last one that was replayed, which fast commits
	// are of; set by replay.
	nextTID   uint32
	committed commitMoment // of the last transaction that was replayed; set by replay
}

// openJournal finds the journal's blocks and reads its superblock. Nothing of the
// overlay may be there yet: the journal is read as it lies on the device.
func (fs *FS) openJournal() (*journal, error) {
	var in inode
	j, err := (*journal)(nil), fs.readInode(fs.sb.journalIno, &in)
	if err == nil {
		j, err = fs.journalOf(&in)
	} else {
		err = fmt.Errorf("the journal's %w", err)
	}
	if err == nil {
		return j, nil
	}
	// The superblock has a copy of where the journal lies, which e2fsck uses as well.
	if fs.sb.journalBackup == nil || !unreadable(err) {
		return nil, err
	}
	fs.backupJournalInode(&in)
	j, err2 := fs.journalOf(&in)
	switch {
	case err2 == nil:
		fs.warn("%v; the journal was found by the superblock's copy: the guest should run e2fsck", err)
		return j, nil
	case !unreadable(err2):
		return nil, err2
	}
	return nil, err
}

// backupJournalInode makes the journal's inode of the superblock's copy.
func (fs *FS) backupJournalInode(in *inode) {
	le := binary.LittleEndian
	b := fs.sb.journalBackup
	*in = inode{
		ino:  fs.sb.journalIno,
		mode: uint16(backend.TypeRegular) | 0o600,
		size: uint64(le.Uint32(b[blockArray:]))<<32 | uint64(le.Uint32(b[blockArray+4:])),
		seed: crc32cUint32(crc32cUint32(fs.sb.seed, fs.sb.journalIno), 0),
	}
	copy(in.block[:], b)
	if le.Uint16(b) == extentMagic {
		in.flags = inodeExtents
	}
}

func (fs *FS) journalOf(in *inode) (*journal, error) {
	j := &journal{fs: fs, readLeft: maxRecoveryBytes}
	if err := j.load(in); err != nil {
		j.close()
		return nil, err
	}
	return j, nil
}

// close gives the memory of the journal's map back.
func (j *journal) close() {
	overlays.give(j.held)
	j.held, j.runs, j.byPhys = 0, nil, nil
}

// load maps the journal that an inode is of, and reads its superblock.
func (j *journal) load(in *inode) error {
	if in.fileType() != backend.TypeRegular {
		return corrupt("the journal's inode %d is no regular file", in.ino)
	}
	// In two steps, so that a file larger than the journal in it is mapped no further.
	length := in.size >> j.fs.sb.blockBits
	if err := j.mapBlocks(in, 1); err != nil {
		return err
	}
	b := make([]byte, journalSuperBytes)
	if err := j.read(0, b); err != nil {
		return fmt.Errorf("journal superblock: %w", err)
	}
	s, err := parseJournalSuper(b, j.fs.sb.blockBytes(), length)
	if err != nil {
		return err
	}
	j.journalSuper = *s
	return j.mapBlocks(in, s.maxlen)
}

// mapBlocks finds where the journal's first n blocks lie, all of which there must be.
func (j *journal) mapBlocks(in *inode, n uint32) error {
	j.runs = j.runs[:0]
	for next := uint64(0); next < uint64(n); {
		r, err := j.fs.mapRun(in, next)
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		if r.state != runWritten {
			return corrupt("inode %d: the journal's block %d of %d is not written", in.ino, next, n)
		}
		skip := next - r.logical
		blocks := min(r.blocks-skip, uint64(n)-next)
		if k := len(j.runs) - 1; k >= 0 && j.runs[k].phys+uint64(j.runs[k].blocks) == r.phys+skip {
			j.runs[k].blocks += uint32(blocks)
		} else if len(j.runs) == maxJournalRuns {
			return fmt.Errorf("inode %d: the journal lies in more than %d pieces: %w", in.ino, maxJournalRuns, backend.ErrUnsupported)
		} else if err := j.growRuns(); err != nil {
			return err
		} else {
			j.runs = append(j.runs, journalRun{logical: uint32(next), blocks: uint32(blocks), phys: r.phys + skip})
		}
		next += blocks
	}
	j.byPhys = append(j.byPhys[:0], j.runs...)
	slices.SortFunc(j.byPhys, func(a, b journalRun) int { return cmp.Compare(a.phys, b.phys) })
	for i := 1; i < len(j.byPhys); i++ {
		if a, b := j.byPhys[i-1], j.byPhys[i]; a.phys+uint64(a.blocks) > b.phys {
			return corrupt("inode %d: the journal's blocks %d and %d are both block %d", in.ino, a.logical+uint32(b.phys-a.phys), b.logical, b.phys)
		}
	}
	return nil
}

// growRuns is asked before each run.
func (j *journal) growRuns() error {
	n := len(j.runs)
	if n == 0 || n%journalRunChunk != 0 {
		return nil // the first ones are few
	}
	if err := j.fs.openInterrupted(); err != nil {
		return err
	}
	if err := overlays.take(journalRunChunk * journalRunBytes); err != nil {
		return err
	}
	j.held += journalRunChunk * journalRunBytes
	return nil
}

// read fills p from the beginning of the journal's block n on, which are the journal's
// own numbers. What follows block n on the device need not be the journal's.
func (j *journal) read(n uint32, p []byte) error {
	if err := j.fs.openInterrupted(); err != nil {
		return err
	}
	if j.readLeft -= int64(len(p)); j.readLeft < 0 {
		return fmt.Errorf("its replay reads more than %d GiB of it, which is not done: %w", int64(maxRecoveryBytes)>>30, backend.ErrUnsupported)
	}
	bits := j.fs.sb.blockBits
	for len(p) > 0 {
		r, ok := j.run(n)
		if !ok {
			return corrupt("the journal has no block %d", n)
		}
		skip := n - r.logical
		blocks := r.blocks - skip
		part := p[:min(int64(len(p)), int64(blocks)<<bits)]
		if err := j.fs.readDevice(part, int64(r.phys+uint64(skip))<<bits); err != nil {
			return fmt.Errorf("the journal's block %d: %w", n, err)
		}
		p = p[len(part):]
		n += blocks
	}
	return nil
}

// run is the run that a block of the journal is in.
func (j *journal) run(n uint32) (journalRun, bool) {
	i := sort.Search(len(j.runs), func(i int) bool { return j.runs[i].logical > n }) - 1
	if i < 0 || n-j.runs[i].logical >= j.runs[i].blocks {
		return journalRun{}, false
	}
	return j.runs[i], true
}

// phys is the filesystem's block that a block of the journal is.
func (j *journal) phys(n uint32) (uint64, bool) {
	r, ok := j.run(n)
	return r.phys + uint64(n-r.logical), ok
}

// owns tells whether a block of the filesystem is the journal's.
func (j *journal) owns(block uint64) bool {
	i := sort.Search(len(j.byPhys), func(i int) bool { return j.byPhys[i].phys > block }) - 1
	return i >= 0 && block-j.byPhys[i].phys < uint64(j.byPhys[i].blocks)
}

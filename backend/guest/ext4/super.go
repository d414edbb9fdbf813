package ext4

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"domfs/backend"
)

const (
	superOffset = 1024 // bytes, whatever the block size
	superBytes  = 1024
	superMagic  = 0xef53

	maxLogBlockSize = 6       // 64 KiB
	maxGroups       = 1 << 23 // a PiB with blocks of 4 KiB
	minInodeBytes   = 128
	descBytes32     = 32
	descBytes64     = 64
	maxDescBytes    = 1024

	rootIno          = 2
	firstInoRev0     = 11
	stateClean       = 0x1
	stateErrors      = 0x2
	checksumCRC32C   = 1
	flagUnsignedHash = 0x2
	flagSignedHash   = 0x1
)

// super is the superblock: Documentation/filesystems/ext4/super.rst.
type super struct {
	inodes         uint32
	blocks         uint64
	reservedBlocks uint64
	firstDataBlock uint32
	blockBits      uint // log2 of the block size
	clusterBits    uint // log2 of the blocks in a cluster; 0 without bigalloc
	blocksPerGroup uint32
	inodesPerGroup uint32
	groups         uint64
	state          uint16
	firstIno       uint32 // the first that is not reserved
	inodeBytes     uint32
	descBytes      uint32
	reservedGDT    uint16 // blocks
	compat         uint32
	incompat       uint32
	roCompat       uint32
	uuid           [16]byte
	journalIno     uint32
	journalBackup  []byte // block map and size of the journal's inode; nil without
	hashSeed       [4]uint32
	defaultHash    uint8 // the hash version of directories without an htree of their own
	hashUnsigned   bool
	hashSignKnown  bool      // the superblock says which of both hashes was used
	backupGroups   [2]uint32 // with sparse_super2
	firstMetaBG    uint32    // the first block of the descriptor table that meta_bg places
	groupNumber    uint16    // of the copy
	copyOf         uint64    // the group that a copy was read from; 0 for the first superblock
	overhead       uint32    // clusters, as mke2fs counted them
	hidden         [4]uint32 // inodes of quotas and of the orphan file
	written        int64     // when the superblock was written last, in seconds since 1970
	seed           uint32    // what metadata checksums, and hashes of attribute values, begin with
	encoding       uint16    // of names in case-folded directories
}

func (s *super) blockBytes() int { return 1 << s.blockBits }

// inodeTableBlocks is the length of a group's inode table.
func (s *super) inodeTableBlocks() uint64 {
	return (uint64(s.inodesPerGroup)*uint64(s.inodeBytes) + uint64(s.blockBytes()) - 1) >> s.blockBits
}

// superBlock is the number of the block that the first superblock lies in.
func (s *super) superBlock() uint64 { return superOffset >> s.blockBits }

// descsPerBlock is how many group descriptors a block holds.
func (s *super) descsPerBlock() uint64 { return uint64(s.blockBytes()) / uint64(s.descBytes) }

// groupDescBlocks is the length of the group descriptor table.
func (s *super) groupDescBlocks() uint64 {
	perBlock := s.descsPerBlock()
	return (s.groups + perBlock - 1) / perBlock
}

// groupStart is the first block of a group.
func (s *super) groupStart(group uint64) uint64 {
	return uint64(s.firstDataBlock) + group*uint64(s.blocksPerGroup)
}

func parseSuper(b []byte) (*super, error) {
	le := binary.LittleEndian
	if magic := le.Uint16(b[0x38:]); magic != superMagic {
		return nil, corrupt("ext4: superblock: magic is 0x%x, not 0x%x", magic, superMagic)
	}
	s := &super{
		inodes:         le.Uint32(b[0x0:]),
		blocks:         uint64(le.Uint32(b[0x4:])),
		reservedBlocks: uint64(le.Uint32(b[0x8:])),
		firstDataBlock: le.Uint32(b[0x14:]),
		blocksPerGroup: le.Uint32(b[0x20:]),
		inodesPerGroup: le.Uint32(b[0x28:]),
		state:          le.Uint16(b[0x3a:]),
		firstIno:       firstInoRev0,
		inodeBytes:     minInodeBytes,
		descBytes:      descBytes32,
		reservedGDT:    le.Uint16(b[0xce:]),
		journalIno:     le.Uint32(b[0xe0:]),
		overhead:       le.Uint32(b[0x248:]),
		written:        int64(le.Uint32(b[0x30:])) | int64(b[0x274])<<32,
	}
	// To the kernel, a revision above 1 only forbids writing, and the features count in
	// revision 0, too.
	if rev := le.Uint32(b[0x4c:]); rev > 0 {
		s.firstIno = le.Uint32(b[0x54:])
		s.inodeBytes = uint32(le.Uint16(b[0x58:]))
	}
	s.groupNumber = le.Uint16(b[0x5a:])
	s.compat = le.Uint32(b[0x5c:])
	s.incompat = le.Uint32(b[0x60:])
	s.roCompat = le.Uint32(b[0x64:])
	copy(s.uuid[:], b[0x68:])
	// The checksum first: what it covers may be damaged.
	if s.roCompat&roCompatMetadataChecksum != 0 {
		if kind := b[0x175]; kind != checksumCRC32C {
			return nil, fmt.Errorf("ext4: superblock: checksum type %d is not known: %w", kind, backend.ErrUnsupported)
		}
		if stored, sum := le.Uint32(b[0x3fc:]), crc32c(^uint32(0), b[:0x3fc]); stored != sum {
			return nil, corrupt("ext4: superblock: checksum is 0x%08x, computed 0x%08x", stored, sum)
		}
	}
	if err := checkIncompat(s.incompat); err != nil {
		return nil, err
	}
	s.firstMetaBG = le.Uint32(b[0x104:])
	s.seed = crc32c(^uint32(0), s.uuid[:])
	if s.incompat&incompatChecksumSeed != 0 {
		s.seed = le.Uint32(b[0x270:])
	}
	s.defaultHash = b[0xfc]
	s.encoding = le.Uint16(b[0x27c:])
	if b[0xfd] == journalBackupBlocks {
		s.journalBackup = append([]byte(nil), b[0x10c:][:journalBackupBytes]...)
	}
	for i := range s.hashSeed {
		s.hashSeed[i] = le.Uint32(b[0xec+4*i:])
	}
	flags := le.Uint32(b[0x160:])
	s.hashUnsigned = flags&flagUnsignedHash != 0
	s.hashSignKnown = flags&(flagUnsignedHash|flagSignedHash) != 0
	s.backupGroups = [2]uint32{le.Uint32(b[0x24c:]), le.Uint32(b[0x250:])}
	s.hidden = [4]uint32{le.Uint32(b[0x240:]), le.Uint32(b[0x244:]), le.Uint32(b[0x26c:]), le.Uint32(b[0x280:])}
	if s.incompat&incompat64Bit != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.reservedBlocks |= uint64(le.Uint32(b[0x154:])) << 32
		s.descBytes = uint32(le.Uint16(b[0xfe:]))
	}
	return s, s.parseGeometry(le.Uint32(b[0x18:]), le.Uint32(b[0x1c:]))
}

// parseGeometry sets what depends on the sizes of blocks and clusters, and refuses what
// no filesystem has: every later computation relies on it.
func (s *super) parseGeometry(logBlock, logCluster uint32) error {
	if logBlock > maxLogBlockSize {
		return corrupt("ext4: superblock: the block size is 2^(10+%d) bytes, more than 64 KiB", logBlock)
	}
	s.blockBits = 10 + uint(logBlock)
	if s.roCompat&roCompatBigalloc != 0 {
		if logCluster < logBlock || logCluster-logBlock > 20 {
			return corrupt("ext4: superblock: the cluster size is 2^(10+%d) bytes with blocks of %d", logCluster, s.blockBytes())
		}
		s.clusterBits = uint(logCluster - logBlock)
	}
	block := uint32(s.blockBytes())
	switch {
	case s.inodeBytes < minInodeBytes || s.inodeBytes > block || bits.OnesCount32(s.inodeBytes) != 1:
		return corrupt("ext4: superblock: inode size %d", s.inodeBytes)
	case s.incompat&incompat64Bit != 0 && (s.descBytes < descBytes64 || s.descBytes > maxDescBytes || bits.OnesCount32(s.descBytes) != 1):
		return corrupt("ext4: superblock: group descriptor size %d", s.descBytes)
	case s.blocksPerGroup == 0 || uint64(s.blocksPerGroup) > uint64(block)*8<<s.clusterBits:
		return corrupt("ext4: superblock: %d blocks in a group", s.blocksPerGroup)
	case s.inodesPerGroup == 0 || s.inodesPerGroup > block*8 || s.inodesPerGroup < block/s.inodeBytes:
		return corrupt("ext4: superblock: %d inodes in a group", s.inodesPerGroup)
	case s.blocks > math.MaxInt64>>s.blockBits:
		return corrupt("ext4: superblock: %d blocks of %d bytes", s.blocks, block)
	case uint64(s.firstDataBlock) >= s.blocks || s.firstDataBlock > 1:
		return corrupt("ext4: superblock: the first data block is %d of %d", s.firstDataBlock, s.blocks)
	case s.incompat&incompat64Bit == 0 && s.blocks > math.MaxUint32:
		return corrupt("ext4: superblock: %d blocks without the feature 64bit", s.blocks)
	}
	s.groups = (s.blocks - uint64(s.firstDataBlock) + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
	if s.groups > maxGroups {
		return fmt.Errorf("ext4: superblock: %d block groups, of which at most %d are read: %w", s.groups, maxGroups, backend.ErrUnsupported)
	}
	if s.groups*uint64(s.inodesPerGroup) != uint64(s.inodes) {
		return corrupt("ext4: superblock: %d inodes, but %d groups of %d", s.inodes, s.groups, s.inodesPerGroup)
	}
	if n := s.groupDescBlocks(); s.incompat&incompatMetaBG != 0 && uint64(s.firstMetaBG) > n {
		return corrupt("ext4: superblock: meta_bg begins with block %d of a group descriptor table of %d", s.firstMetaBG, n)
	}
	return nil
}

// validRun tells whether a file's or a table's blocks may lie there.
func (s *super) validRun(block, blocks uint64) bool {
	return block > uint64(s.firstDataBlock) && block < s.blocks && blocks <= s.blocks-block
}

// reserved tells whether no name may lead to the inode.
func (s *super) reserved(ino uint32) bool {
	if ino == rootIno {
		return false
	}
	if ino < s.firstIno {
		return true
	}
	for _, h := range s.hidden {
		if ino == h {
			return true
		}
	}
	return false
}

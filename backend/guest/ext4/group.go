package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"domfs/backend"
)

const (
	maxDescCopies  = 4       // of a group descriptor that are tried
	openCheckBytes = 1 << 20 // of group descriptors, which are checked when the filesystem is opened: 2 TiB's with blocks of 4 KiB
	openDamaged    = 8       // damaged ones, after which that check ends
)

// groupDesc is what is used of a block group's descriptor:
// Documentation/filesystems/ext4/group_descr.rst.
type groupDesc struct {
	blockBitmap  uint64
	inodeBitmap  uint64
	inodeTable   uint64
	freeClusters uint64
	freeInodes   uint64
}

// metaBG tells whether a block of the group descriptor table lies in the groups that it
// describes, not behind the superblock.
func (s *super) metaBG(i uint64) bool {
	return s.incompat&incompatMetaBG != 0 && i >= uint64(s.firstMetaBG)
}

// groupDescBlock is where a block of the group descriptor table lies.
func (s *super) groupDescBlock(i uint64) uint64 {
	if s.metaBG(i) {
		return s.metaDescBlock(i * s.descsPerBlock())
	}
	return s.superBlock() + 1 + i
}

// metaDescBlock is where the descriptors of a meta block group lie in one of its groups.
func (s *super) metaDescBlock(group uint64) uint64 {
	block := s.groupStart(group)
	if s.hasSuper(group) {
		block++
	}
	if group == 0 {
		block = s.superBlock() + 1 // blocks of 1 KiB may be counted from 0
	}
	return block
}

// groupDescRun is how many blocks of the table, from one on, lie together.
func (s *super) groupDescRun(i uint64) uint64 {
	switch {
	case s.metaBG(i):
		return 1
	case s.incompat&incompatMetaBG != 0:
		return uint64(s.firstMetaBG) - i
	}
	return s.groupDescBlocks() - i
}

// descBlocksIn counts the blocks of the group descriptor table, or of a copy of it, that
// a group has.
func (s *super) descBlocksIn(group uint64) uint64 {
	perBlock := s.descsPerBlock()
	switch at := group % perBlock; {
	case s.metaBG(group / perBlock):
		if at == 0 || at == 1 || at == perBlock-1 {
			return 1
		}
		return 0
	case !s.hasSuper(group):
		return 0
	case s.incompat&incompatMetaBG != 0:
		return uint64(s.firstMetaBG)
	}
	return s.groupDescBlocks()
}

// descCopies are the blocks that hold copies of a block of the group descriptor table.
func (s *super) descCopies(i uint64) []uint64 {
	var copies []uint64
	add := func(group, block uint64) {
		if group < s.groups && block < s.blocks && len(copies) < maxDescCopies {
			copies = append(copies, block)
		}
	}
	if perBlock := s.descsPerBlock(); s.metaBG(i) {
		for _, group := range []uint64{i*perBlock + 1, (i+1)*perBlock - 1} {
			if group/perBlock == i {
				add(group, s.metaDescBlock(group))
			}
		}
		return copies
	}
	if s.copyOf != 0 {
		add(s.copyOf, s.groupStart(s.copyOf)+1+i)
	}
	for _, group := range s.copyGroups() {
		if s.hasSuper(group) {
			add(group, s.groupStart(group)+1+i)
		}
	}
	return copies
}

// copyGroups are the groups to look for copies of the superblock in.
func (s *super) copyGroups() []uint64 {
	if s.compat&compatSparseSuper2 == 0 {
		return sparseGroups
	}
	var groups []uint64
	for _, group := range s.backupGroups {
		if group != 0 {
			groups = append(groups, uint64(group))
		}
	}
	return groups
}

// descAt returns the bytes of a group's descriptor in a block of the table or in a copy
// of that.
func (fs *FS) descAt(block, group uint64) ([]byte, error) {
	b, err := fs.blocks(block, 1)
	if err != nil {
		return nil, err
	}
	at := group % fs.sb.descsPerBlock() * uint64(fs.sb.descBytes)
	return b.data[at : at+uint64(fs.sb.descBytes)], nil
}

// rawGroup returns the bytes of a group's descriptor, as they are.
func (fs *FS) rawGroup(group uint64) ([]byte, error) {
	return fs.descAt(fs.sb.groupDescBlock(group/fs.sb.descsPerBlock()), group)
}

func (fs *FS) parseGroup(b []byte) groupDesc {
	le := binary.LittleEndian
	g := groupDesc{
		blockBitmap:  uint64(le.Uint32(b[0x0:])),
		inodeBitmap:  uint64(le.Uint32(b[0x4:])),
		inodeTable:   uint64(le.Uint32(b[0x8:])),
		freeClusters: uint64(le.Uint16(b[0xc:])),
		freeInodes:   uint64(le.Uint16(b[0xe:])),
	}
	if fs.sb.incompat&incompat64Bit != 0 {
		g.blockBitmap |= uint64(le.Uint32(b[0x20:])) << 32
		g.inodeBitmap |= uint64(le.Uint32(b[0x24:])) << 32
		g.inodeTable |= uint64(le.Uint32(b[0x28:])) << 32
		g.freeClusters |= uint64(le.Uint16(b[0x2c:])) << 16
		g.freeInodes |= uint64(le.Uint16(b[0x2e:])) << 16
	}
	return g
}

// groupChecksum computes a descriptor's checksum; ok is false where the filesystem has
// none.
func (fs *FS) groupChecksum(group uint32, b []byte) (sum uint16, ok bool) {
	const at = 0x1e // of the checksum
	switch {
	case fs.sb.roCompat&roCompatMetadataChecksum != 0:
		crc := crc32cUint32(fs.sb.seed, group)
		crc = crc32c(crc, b[:at])
		crc = crc32c(crc, zeros[:2])
		return uint16(crc32c(crc, b[at+2:])), true
	case fs.sb.roCompat&roCompatGDTChecksum != 0:
		number := [4]byte{byte(group), byte(group >> 8), byte(group >> 16), byte(group >> 24)}
		crc := crc16(^uint16(0), fs.sb.uuid[:])
		crc = crc16(crc, number[:])
		crc = crc16(crc, b[:at])
		return crc16(crc, b[at+2:]), true
	}
	return 0, false
}

// tableIn returns the first block of a group's inode table by a descriptor in a block of
// the table or in a copy of that.
func (fs *FS) tableIn(block, group uint64) (uint64, error) {
	b, err := fs.descAt(block, group)
	if err != nil {
		return 0, err
	}
	if sum, ok := fs.groupChecksum(uint32(group), b); ok {
		if stored := binary.LittleEndian.Uint16(b[0x1e:]); stored != sum {
			return 0, corrupt("group %d: descriptor: checksum is 0x%04x, computed 0x%04x", group, stored, sum)
		}
	}
	table := fs.parseGroup(b).inodeTable
	if !fs.sb.validRun(table, fs.sb.inodeTableBlocks()) {
		return 0, corrupt("group %d: the inode table at block %d is outside of the filesystem of %d blocks", group, table, fs.sb.blocks)
	}
	return table, nil
}

// inodeTable returns the first block of a group's inode table. Where the descriptor is
// damaged, a copy says it.
func (fs *FS) inodeTable(group uint64) (uint64, error) {
	i := group / fs.sb.descsPerBlock()
	table, err := fs.tableIn(fs.sb.groupDescBlock(i), group)
	if err == nil || !errors.Is(err, backend.ErrCorrupt) {
		return table, err
	}
	for _, block := range fs.sb.descCopies(i) {
		if table, err := fs.tableIn(block, group); err == nil {
			return table, nil
		}
	}
	return 0, err
}

// groupWarning says that group descriptors are damaged, "" if none of the first
// openCheckBytes are.
func (fs *FS) groupWarning() string {
	var damaged, lost, first uint64
	for g := range min(fs.sb.groups, openCheckBytes/uint64(fs.sb.descBytes)) {
		i := g / fs.sb.descsPerBlock()
		if g%fs.sb.descsPerBlock() == 0 {
			fs.readahead(fs.sb.groupDescBlock(i), int(min(fs.sb.groupDescRun(i), readaheadBytes)))
		}
		if _, err := fs.tableIn(fs.sb.groupDescBlock(i), g); !errors.Is(err, backend.ErrCorrupt) {
			if err != nil {
				return "" // reading tells
			}
			continue
		}
		if damaged++; damaged == 1 {
			first = g
		}
		if _, err := fs.inodeTable(g); err != nil {
			lost++
		}
		if damaged == openDamaged {
			break
		}
	}
	switch {
	case damaged == 0:
		return ""
	case lost == 0:
		return fmt.Sprintf("at least %d group descriptors are damaged, the first that of group %d: their copies are used; the guest should run e2fsck", damaged, first)
	}
	return fmt.Sprintf("at least %d group descriptors are damaged, the first that of group %d: %d of them have no copy that is right, and the files of these groups cannot be read; the guest should run e2fsck", damaged, first, lost)
}

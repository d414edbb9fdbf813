package ext4

import "encoding/binary"

// groupDesc is what is used of a block group's descriptor:
// Documentation/filesystems/ext4/group_descr.rst.
type groupDesc struct {
	blockBitmap  uint64
	inodeBitmap  uint64
	inodeTable   uint64
	freeClusters uint64
	freeInodes   uint64
}

// groupDescBlock is where a block of the group descriptor table lies.
func (fs *FS) groupDescBlock(i uint64) uint64 { return fs.sb.superBlock() + 1 + i }

// rawGroup returns the bytes of a group's descriptor.
func (fs *FS) rawGroup(group uint64) ([]byte, error) {
	perBlock := uint64(fs.sb.blockBytes()) / uint64(fs.sb.descBytes)
	b, err := fs.blocks(fs.groupDescBlock(group/perBlock), 1)
	if err != nil {
		return nil, err
	}
	at := group % perBlock * uint64(fs.sb.descBytes)
	return b.data[at : at+uint64(fs.sb.descBytes)], nil
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

// inodeTable returns the first block of a group's inode table.
func (fs *FS) inodeTable(group uint64) (uint64, error) {
	b, err := fs.rawGroup(group)
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

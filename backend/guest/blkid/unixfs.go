package blkid

import (
	"encoding/binary"
	"hash/crc32"

	"domfs/backend"
)

// probeXFS reads XFS's superblock (fs/xfs/libxfs/xfs_format.h), which is big-endian.
func probeXFS(r *reader) (backend.Content, bool) {
	b := r.at(0, 512)
	if b == nil || string(b[:4]) != "XFSB" || !validXFS(b) {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[108:120]), UUID: uuid(b[32:48])}, true
}

// validXFS checks that the sizes in a superblock agree with one another.
func validXFS(b []byte) bool {
	blockSize, blocks := be.Uint32(b[4:]), be.Uint64(b[8:])
	rtExtent, agBlocks, agCount := be.Uint32(b[80:]), uint64(be.Uint32(b[84:])), uint64(be.Uint32(b[88:]))
	sectorSize, inodeSize := uint32(be.Uint16(b[102:])), uint32(be.Uint16(b[104:]))
	blockLog, sectorLog, inodeLog, perBlockLog, percent := b[120], b[121], b[122], b[123], b[127]
	rtExtentBytes := rtExtent * blockSize // wraps
	const minAGBlocks = 64
	return agCount > 0 &&
		sectorLog >= 9 && sectorLog <= 15 && sectorSize == 1<<sectorLog &&
		blockLog >= 9 && blockLog <= 16 && blockSize == 1<<blockLog &&
		inodeLog >= 8 && inodeLog <= 11 && inodeSize == 1<<inodeLog &&
		int(blockLog)-int(inodeLog) == int(perBlockLog) &&
		rtExtentBytes >= 4<<10 && rtExtentBytes <= 1<<30 && percent <= 100 &&
		blocks != 0 && blocks <= agCount*agBlocks && blocks >= (agCount-1)*agBlocks+minAGBlocks
}

// probeBtrfs reads the first superblock of btrfs (uapi/linux/btrfs_tree.h).
func probeBtrfs(r *reader) (backend.Content, bool) {
	const off = 64 << 10
	if !r.has(off+0x40, "_BHRfS_M") {
		return backend.Content{}, false
	}
	b := r.at(off, 4096)
	if b == nil || le.Uint32(b[0x90:]) == 0 {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[0x12b:][:256]), UUID: uuid(b[0x20:0x30])}, true
}

// probeReiserFS reads the superblock of reiserfs 3 (fs/reiserfs), in one of its two places. An
// old one may lie in the journal of a newer one: that is at the other place.
func probeReiserFS(r *reader) (backend.Content, bool) {
	for _, at := range []struct {
		off, magicOff int64
		magic         string
	}{
		{8 << 10, 0x34, "ReIsErFs"},
		{64 << 10, 0x34, "ReIsEr2Fs"},
		{64 << 10, 0x34, "ReIsEr3Fs"},
		{64 << 10, 0x34, "ReIsErFs"},
		{8 << 10, 20, "ReIsErFs"},
	} {
		if !r.has(at.off+at.magicOff, at.magic) {
			continue
		}
		b := r.at(at.off, 128)
		if b == nil {
			return backend.Content{}, false
		}
		sectors := uint32(le.Uint16(b[44:])) / 512
		if sectors == 0 || uint32(at.off>>10)/sectors > le.Uint32(b[12:])/2 {
			return backend.Content{}, false
		}
		if len(at.magic) == len("ReIsErFs") {
			return backend.Content{}, true // 3.5 had neither
		}
		return backend.Content{Label: label(b[100:116]), UUID: uuid(b[84:100])}, true
	}
	return backend.Content{}, false
}

func probeReiser4(r *reader) (backend.Content, bool) {
	const off = 64 << 10
	b := r.at(off, 64)
	if b == nil || string(b[:7]) != "ReIsEr4" || b[19] < 2 {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[36:52]), UUID: uuid(b[20:36])}, true
}

// probeJFS reads JFS's superblock (fs/jfs/jfs_superblock.h).
func probeJFS(r *reader) (backend.Content, bool) {
	const off = 32 << 10
	b := r.at(off, 184)
	if b == nil || string(b[:4]) != "JFS1" {
		return backend.Content{}, false
	}
	log, factor, physLog := le.Uint16(b[20:]), le.Uint16(b[22:]), le.Uint16(b[28:])
	if log > 31 || physLog > 31 || le.Uint32(b[16:]) != 1<<log || le.Uint32(b[24:]) != 1<<physLog ||
		log-physLog != factor {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[152:168]), UUID: uuid(b[136:152])}, true
}

// probeNILFS2 reads the newer of NILFS2's two superblocks (uapi/linux/nilfs2_ondisk.h).
func probeNILFS2(r *reader) (backend.Content, bool) {
	const size = 1024
	valid := func(b []byte) bool {
		if b == nil || le.Uint16(b[6:]) != 0x3434 {
			return false
		}
		n := le.Uint16(b[8:])
		const sum = 16
		if n < sum+4 || n > size {
			return false
		}
		crc := ^le.Uint32(b[12:]) // the kernel's crc32 is not inverted, Go's is
		crc = crc32.Update(crc, crc32.IEEETable, b[:sum])
		crc = crc32.Update(crc, crc32.IEEETable, make([]byte, 4))
		crc = crc32.Update(crc, crc32.IEEETable, b[sum+4:n])
		return ^crc == le.Uint32(b[sum:])
	}
	first := r.at(1024, size)
	backup := r.at((r.size/512-8)*512, size)
	firstOK := valid(first)
	backupOK := valid(backup) && le.Uint64(backup[32:]) == uint64(r.size)
	b := first
	switch {
	case backupOK && (!firstOK || le.Uint64(first[56:]) > le.Uint64(backup[56:])):
		b = backup
	case !firstOK:
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[168:248]), UUID: uuid(b[152:168])}, true
}

// probeF2FS reads F2FS's first superblock (include/linux/f2fs_fs.h).
func probeF2FS(r *reader) (backend.Content, bool) {
	const off = 1024
	b := r.at(off, 0x47c)
	if b == nil || le.Uint32(b) != 0xF2F52010 {
		return backend.Content{}, false
	}
	if le.Uint16(b[4:]) == 1 && le.Uint16(b[6:]) == 0 {
		return backend.Content{}, true // the fields of 1.0 are not known
	}
	return backend.Content{Label: wideLabel(b[0x7c:], le), UUID: uuid(b[0x6c:0x7c])}, true
}

// probeEROFS reads EROFS's superblock (fs/erofs/erofs_fs.h).
func probeEROFS(r *reader) (backend.Content, bool) {
	const off = 1024
	b := r.at(off, 128)
	if b == nil || le.Uint32(b) != 0xE0F5E1E2 || b[12] < 9 || b[12] > 16 {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[64:80]), UUID: uuid(b[48:64])}, true
}

// probeSquashfs reads the superblock of squashfs 4.
func probeSquashfs(r *reader) (backend.Content, bool) {
	b := r.at(0, 96)
	return backend.Content{}, b != nil && string(b[:4]) == "hsqs" && le.Uint16(b[28:]) >= 4
}

// probeSquashfs3 reads the superblock of squashfs 3, in either byte order.
func probeSquashfs3(r *reader) (backend.Content, bool) {
	b := r.at(0, 96)
	if b == nil {
		return backend.Content{}, false
	}
	var order binary.ByteOrder
	switch string(b[:4]) {
	case "hsqs":
		order = le
	case "sqsh":
		order = be
	default:
		return backend.Content{}, false
	}
	return backend.Content{}, order.Uint16(b[28:]) <= 3
}

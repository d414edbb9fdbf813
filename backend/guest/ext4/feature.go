package ext4

import (
	"fmt"
	"strings"

	"domfs/backend"
)

// Compatible features, superblock offset 0x5c.
const (
	compatHasJournal   = 0x4
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200
)

// Incompatible features, superblock offset 0x60.
const (
	incompatCompression  = 0x1
	incompatFiletype     = 0x2
	incompatRecover      = 0x4
	incompatJournalDev   = 0x8
	incompatMetaBG       = 0x10
	incompatExtents      = 0x40
	incompat64Bit        = 0x80
	incompatMMP          = 0x100
	incompatFlexBG       = 0x200
	incompatEAInode      = 0x400
	incompatDirdata      = 0x1000
	incompatChecksumSeed = 0x2000
	incompatLargeDir     = 0x4000
	incompatInlineData   = 0x8000
	incompatEncrypt      = 0x10000
	incompatCasefold     = 0x20000
)

// Read-only compatible features, superblock offset 0x64. None of the others changes how
// a filesystem is read, unknown ones included: the kernel mounts these read-only.
const (
	roCompatSparseSuper      = 0x1
	roCompatHugeFile         = 0x8
	roCompatGDTChecksum      = 0x10
	roCompatBigalloc         = 0x200
	roCompatMetadataChecksum = 0x400
)

// incompatRead are the incompatible features that are read. The block that mmp guards
// is for those who write.
const incompatRead = incompatFiletype | incompatRecover | incompatExtents | incompat64Bit |
	incompatMMP | incompatFlexBG | incompatChecksumSeed | incompatMetaBG | incompatLargeDir |
	incompatEAInode | incompatInlineData | incompatEncrypt | incompatCasefold

// incompatNames are the names that mke2fs and dumpe2fs use.
var incompatNames = map[uint32]string{
	incompatCompression: "compression",
	incompatDirdata:     "dirdata",
}

// checkIncompat refuses the features that are not read, all of them by name.
func checkIncompat(features uint32) error {
	if features&incompatJournalDev != 0 {
		return fmt.Errorf("ext4: this is the external journal of a filesystem on another device (feature journal_dev) and holds no files: %w", backend.ErrUnsupported)
	}
	var names []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if features&^uint32(incompatRead)&bit == 0 {
			continue
		}
		name, known := incompatNames[bit]
		if !known {
			name = fmt.Sprintf("the unknown incompatible feature 0x%x", bit)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil
	}
	verb := "is"
	if len(names) > 1 {
		verb = "are"
	}
	return fmt.Errorf("ext4: this filesystem uses %s, which %s not read: %w", strings.Join(names, ", "), verb, backend.ErrUnsupported)
}

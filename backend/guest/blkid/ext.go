package blkid

import "domfs/backend"

// ext's feature flags and limits (fs/ext4/ext4.h).
const (
	extOffset = 1024
	extSize   = 1024
	extMagic  = 0xEF53

	extCompatJournal      = 0x0004
	extIncompatFiletype   = 0x0002
	extIncompatRecover    = 0x0004
	extIncompatJournalDev = 0x0008
	extIncompatMetaBG     = 0x0010
	extROSparseSuper      = 0x0001
	extROLargeFile        = 0x0002
	extROBtreeDir         = 0x0004
	extFlagTestFS         = 0x0004

	ext2Incompat = extIncompatFiletype | extIncompatMetaBG
	ext3Incompat = ext2Incompat | extIncompatRecover
	ext23RO      = extROSparseSuper | extROLargeFile | extROBtreeDir
)

// extProbe makes the probe of one of ext's names.
func extProbe(name string) func(r *reader) (backend.Content, bool) {
	return func(r *reader) (backend.Content, bool) {
		b := r.at(extOffset, extSize)
		if b == nil || extName(b) != name {
			return backend.Content{}, false
		}
		return backend.Content{Label: label(b[120:136]), UUID: uuid(b[104:120])}, true
	}
}

// extName says which of its names a superblock of ext goes by, "" if it is none. Its
// checksum is the filesystem driver's to verify, who can say what is wrong.
func extName(b []byte) string {
	if le.Uint16(b[56:]) != extMagic {
		return ""
	}
	compat, incompat, ro := le.Uint32(b[92:]), le.Uint32(b[96:]), le.Uint32(b[100:])
	journal := compat&extCompatJournal != 0
	switch {
	case incompat&extIncompatJournalDev != 0:
		return "jbd"
	case le.Uint32(b[352:])&extFlagTestFS != 0:
		return "ext4dev"
	case ro&^ext23RO != 0 || incompat&^ext3Incompat != 0:
		return "ext4"
	case journal:
		return "ext3"
	case incompat&^ext2Incompat != 0:
		return "" // to be recovered, but from no journal
	}
	return "ext2"
}

package blkid

import "domfs/backend"

// luks2Secondaries are the offsets where the second header of LUKS2 may be, for a
// device whose first one is gone (LUKS2 On-Disk Format, 2.1).
var luks2Secondaries = []int64{
	0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000,
}

// luksHeaderSize is the binary header of LUKS2, up to its JSON area's padding.
const luksHeaderSize = 512

// probeLUKS reads a LUKS header of either version.
func probeLUKS(r *reader) (backend.Content, bool) {
	if c, ok := readLUKS(r, 0, "LUKS\xba\xbe"); ok {
		return c, true
	}
	for _, off := range luks2Secondaries {
		if c, ok := readLUKS(r, off, "SKUL\xba\xbe"); ok {
			return c, true
		}
	}
	return backend.Content{}, false
}

func readLUKS(r *reader, off int64, magic string) (backend.Content, bool) {
	if !r.has(off, magic) {
		return backend.Content{}, false
	}
	b := r.at(off, luksHeaderSize)
	if b == nil {
		return backend.Content{}, false
	}
	var c backend.Content
	switch be.Uint16(b[6:]) {
	case 1:
		c.UUID = label(b[168:208])
	case 2:
		if be.Uint64(b[256:]) != uint64(off) {
			return backend.Content{}, false
		}
		c.UUID = label(b[168:208])
		c.Label = label(b[24:72])
	}
	return c, true
}

// bitLockerKind finds the boot sector of a BitLocker volume and where its metadata is: 0
// where that is not said.
func bitLockerKind(r *reader) (metadata int64, ok bool) {
	b := r.at(0, 512)
	if b == nil {
		return 0, false
	}
	var off uint64
	switch string(b[:11]) {
	case "\xeb\x52\x90-FVE-FS-": // Windows Vista
		return 0, true
	case "\xeb\x58\x90-FVE-FS-": // since Windows 7
		off = le.Uint64(b[176:])
	case "\xeb\x58\x90MSWIN4.1": // BitLocker To Go, which looks like FAT
		off = le.Uint64(b[440:])
	default:
		return 0, false
	}
	if off == 0 || off%64 != 0 || off > uint64(r.size) {
		return 0, false
	}
	return int64(off), true
}

// isBitLocker tells whether the device is a BitLocker volume.
func isBitLocker(r *reader) bool {
	off, ok := bitLockerKind(r)
	return ok && (off == 0 || r.at(off, 112) != nil && r.has(off, "-FVE-FS-"))
}

func probeBitLocker(r *reader) (backend.Content, bool) {
	return backend.Content{}, isBitLocker(r)
}

// probeVerity reads the superblock of a dm-verity hash device (cryptsetup's veritysetup).
func probeVerity(r *reader) (backend.Content, bool) {
	if !r.has(0, "verity\x00\x00") {
		return backend.Content{}, false
	}
	b := r.at(0, 512)
	if b == nil || le.Uint32(b[8:]) != 1 {
		return backend.Content{}, false
	}
	return backend.Content{UUID: uuid(b[16:32])}, true
}

// probeIntegrity reads the superblock of dm-integrity.
func probeIntegrity(r *reader) (backend.Content, bool) {
	b := r.at(0, 32)
	return backend.Content{}, b != nil && string(b[:8]) == "integrt\x00" && b[8] != 0
}

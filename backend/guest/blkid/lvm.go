package blkid

import (
	"hash/crc32"

	"domfs/backend"
)

const (
	lvmLabelSize = 512 // a label fills its sector
	lvmCRCSeed   = 0xf597a6cf
)

// probeLVM2 reads the label of an LVM2 physical volume (lib/label/label.h), in one of
// the first four sectors.
func probeLVM2(r *reader) (backend.Content, bool) {
	for _, at := range []struct{ base, typeOff int64 }{{0, 0x218}, {0, 0x018}, {1024, 0x018}, {1024, 0x218}} {
		if r.has(at.base+at.typeOff, "LVM2 001") {
			return readLVM2Label(r, at.base)
		}
	}
	return backend.Content{}, false
}

// readLVM2Label reads the label in one of the two sectors at base.
func readLVM2Label(r *reader, base int64) (backend.Content, bool) {
	two := r.at(base, 2*lvmLabelSize)
	if two == nil {
		return backend.Content{}, false
	}
	b, sector := two[:lvmLabelSize], uint64(base/lvmLabelSize)
	if string(b[:8]) != "LABELONE" {
		b, sector = two[lvmLabelSize:], sector+1
	}
	if string(b[:8]) != "LABELONE" || le.Uint64(b[8:]) != sector ||
		^crc32.Update(^uint32(lvmCRCSeed), crc32.IEEETable, b[20:]) != le.Uint32(b[16:]) {
		return backend.Content{}, false
	}
	return backend.Content{UUID: lvmUUID(b[32:64])}, true
}

// lvmUUID formats the 32 characters of an LVM UUID in groups of 6-4-4-4-4-4-6.
func lvmUUID(b []byte) string {
	if isZero(b) {
		return ""
	}
	var out []byte
	for i, c := range b {
		if i >= 6 && i <= 26 && (i-6)%4 == 0 {
			out = append(out, '-')
		}
		out = append(out, c)
	}
	return label(out)
}

func probeLVM1(r *reader) (backend.Content, bool) {
	b := r.at(0, 76)
	if b == nil || string(b[:2]) != "HM" || le.Uint16(b[2:]) < 1 || le.Uint16(b[2:]) > 2 {
		return backend.Content{}, false
	}
	return backend.Content{UUID: lvmUUID(b[44:76])}, true
}

// probeSnapshotCOW looks for the exception store of device-mapper's snapshot target
// (drivers/md/dm-snap-persistent.c).
func probeSnapshotCOW(r *reader) (backend.Content, bool) {
	return backend.Content{}, r.has(0, "SnAp")
}

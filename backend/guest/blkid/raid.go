package blkid

import (
	"domfs/backend"
)

const (
	mdMagic = 0xa92b4efc
	// md0Reserved is the alignment and the space of a 0.90 superblock at the device's end.
	md0Reserved = 64 << 10
)

// probeMD looks for a member of an md array, by any of the places of its superblock
// (uapi/linux/raid/md_p.h): 0.90 and 1.0 at the end, 1.1 at the start, 1.2 4 KiB from it.
func probeMD(r *reader) (backend.Content, bool) {
	if r.size > md0Reserved {
		if c, ok := probeMD0(r, r.size&^(md0Reserved-1)-md0Reserved); ok {
			return c, true
		}
		if c, ok := probeMD1(r, r.size&^0xfff-0x2000); ok {
			return c, true
		}
	}
	for _, off := range []int64{0, 0x1000} {
		if c, ok := probeMD1(r, off); ok {
			return c, true
		}
	}
	return backend.Content{}, false
}

// probeMD0 reads a 0.90 superblock, which is in the byte order of the machine that made it.
func probeMD0(r *reader, off int64) (backend.Content, bool) {
	b := r.at(off, 64)
	if b == nil {
		return backend.Content{}, false
	}
	field := func(i int) uint32 { return le.Uint32(b[4*i:]) }
	if field(0) != mdMagic {
		field = func(i int) uint32 { return be.Uint32(b[4*i:]) }
		if field(0) != mdMagic {
			return backend.Content{}, false
		}
	}
	sizeBytes := int64(field(8)) << 10
	if sizeBytes > off || r.size < sizeBytes+md0Reserved {
		return backend.Content{}, false
	}
	// The superblock has no address of its own: at the end of a disk it may be that
	// of the disk's last partition.
	if coveredByTable(r, off-sizeBytes, sizeBytes+md0Reserved) {
		return backend.Content{}, false
	}
	var id [16]byte
	be.PutUint32(id[0:], field(5))
	if field(2) >= 90 {
		be.PutUint32(id[4:], field(13))
		be.PutUint32(id[8:], field(14))
		be.PutUint32(id[12:], field(15))
	}
	return backend.Content{UUID: uuid(id[:])}, true
}

// probeMD1 reads a 1.x superblock, which says where it should be.
func probeMD1(r *reader, off int64) (backend.Content, bool) {
	b := r.at(off, 256)
	if b == nil || le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 1 ||
		le.Uint64(b[144:]) != uint64(off>>9) {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[32:64]), UUID: uuid(b[16:32])}, true
}

// probeBcache reads the superblock of a bcache cache or backing device, 4 KiB from the start.
func probeBcache(r *reader) (backend.Content, bool) {
	const off = 4096
	const magic = "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"
	if !r.has(off+24, magic) {
		return backend.Content{}, false
	}
	b := r.at(off, 208)
	if b == nil || le.Uint64(b[8:]) != off/512 {
		return backend.Content{}, false
	}
	return backend.Content{Label: label(b[72:104]), UUID: uuid(b[40:56])}, true
}

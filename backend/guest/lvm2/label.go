package lvm2

import (
	"errors"
	"fmt"
	"hash/crc32"

	"domfs/backend"
)

const (
	labelSectors = 4   // where a label may be
	labelSize    = 512 // it fills a sector
	labelHeader  = 32  // bytes before the physical volume's header
	uuidLen      = 32
	locnSize     = 16
	maxDataAreas = 8
	crcSeed      = 0xf597a6cf // LVM's initial value of its CRC-32
	extUsed      = 1          // PV_EXT_USED: the physical volume belongs to a group
)

// errNoLabel is that of a member without a label.
var errNoLabel = errors.New("no label of an LVM2 physical volume in the first four sectors")

// crc is LVM's checksum: CRC-32 without the inversions, from a value of its own.
func crc(b []byte) uint32 { return ^crc32.Update(^uint32(crcSeed), crc32.IEEETable, b) }

// location is a disk_locn: bytes of a physical volume.
type location struct{ offset, size int64 }

// label is what the label sector of a physical volume says (struct label_header, struct pv_header
// and struct pv_header_extension).
type label struct {
	uuid       string // 32 characters, without hyphens
	sizeBytes  uint64
	data       []location // where extents are; metadata has pe_start, which counts
	metadata   []location
	bootloader []location
	used       bool // said by the extension
}

// readLabel finds the label, which may be in any of the first sectors. The first intact one counts.
func readLabel(d backend.Device) (label, error) {
	n := min(d.Size(), labelSectors*labelSize)
	b, err := readFull(d, 0, n-n%labelSize)
	if err != nil {
		return label{}, fmt.Errorf("read the label: %w", err)
	}
	fault := fmt.Errorf("%w: %w", errNoLabel, backend.ErrCorrupt)
	for s := 0; s < len(b)/labelSize; s++ {
		sector := b[s*labelSize : (s+1)*labelSize]
		if string(sector[:8]) != "LABELONE" {
			continue
		}
		l, err := parseLabel(sector, uint64(s))
		if err == nil {
			return l, nil
		}
		fault = fmt.Errorf("label in sector %d: %w", s, err)
	}
	return label{}, fault
}

// parseLabel reads a sector that begins with LABELONE.
func parseLabel(b []byte, sector uint64) (label, error) {
	if got := le.Uint64(b[8:]); got != sector {
		return label{}, fmt.Errorf("it says that it is in sector %d: %w", got, backend.ErrCorrupt)
	}
	if crc(b[20:]) != le.Uint32(b[16:]) {
		return label{}, fmt.Errorf("its checksum is wrong: %w", backend.ErrCorrupt)
	}
	if t := string(b[24:32]); t != "LVM2 001" {
		return label{}, fmt.Errorf("its type is %s, not LVM2 001: %w", quoted(t), backend.ErrUnsupported)
	}
	off := le.Uint32(b[20:])
	if off < labelHeader || off > labelSize-uuidLen-8 {
		return label{}, fmt.Errorf("its header is at byte %d: %w", off, backend.ErrCorrupt)
	}
	b = b[off:]
	l := label{uuid: string(b[:uuidLen]), sizeBytes: le.Uint64(b[uuidLen:])}
	if !validUUID(l.uuid) {
		return label{}, fmt.Errorf("its UUID %s has characters that LVM does not use: %w", quoted(l.uuid), backend.ErrCorrupt)
	}
	b = b[uuidLen+8:]
	var err error
	if l.data, b, err = readLocations(b); err != nil {
		return label{}, fmt.Errorf("list of data areas: %w", err)
	}
	if l.metadata, b, err = readLocations(b); err != nil {
		return label{}, fmt.Errorf("list of metadata areas: %w", err)
	}
	if len(b) < 8 || le.Uint32(b) == 0 {
		return l, nil // made before there was the extension
	}
	l.used = le.Uint32(b[4:])&extUsed != 0
	if l.bootloader, _, err = readLocations(b[8:]); err != nil {
		return label{}, fmt.Errorf("list of boot loader areas: %w", err)
	}
	return l, nil
}

// readLocations reads a list of disk_locn that ends with an offset of 0, and returns what follows it.
func readLocations(b []byte) ([]location, []byte, error) {
	var list []location
	for {
		if len(b) < locnSize {
			return nil, nil, fmt.Errorf("it does not end: %w", backend.ErrCorrupt)
		}
		offset, size := le.Uint64(b), le.Uint64(b[8:])
		b = b[locnSize:]
		if offset == 0 {
			return list, b, nil
		}
		if len(list) == maxDataAreas || offset > maxVolumeBytes || size > maxVolumeBytes {
			return nil, nil, fmt.Errorf("entry %d (%d bytes at byte %d) is out of range: %w", len(list), size, offset, backend.ErrCorrupt)
		}
		list = append(list, location{offset: int64(offset), size: int64(size)})
	}
}

// validUUID tells whether s is 32 characters of those that LVM makes UUIDs of.
func validUUID(s string) bool {
	if len(s) != uuidLen {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '!' || c == '#') {
			return false
		}
	}
	return true
}

// hyphenated is the form of a UUID that LVM prints: groups of 6-4-4-4-4-4-6.
func hyphenated(uuid string) string {
	if len(uuid) != uuidLen {
		return uuid
	}
	return uuid[:6] + "-" + uuid[6:10] + "-" + uuid[10:14] + "-" + uuid[14:18] + "-" + uuid[18:22] + "-" + uuid[22:26] + "-" + uuid[26:]
}

// unhyphenated is the inverse, ok where s is a UUID in that form.
func unhyphenated(s string) (uuid string, ok bool) {
	if len(s) != uuidLen+6 {
		return "", false
	}
	out := make([]byte, 0, uuidLen)
	for i := range len(s) {
		if s[i] != '-' {
			out = append(out, s[i])
		}
	}
	uuid = string(out)
	return uuid, validUUID(uuid) && hyphenated(uuid) == s
}

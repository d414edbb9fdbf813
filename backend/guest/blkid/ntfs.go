package blkid

import (
	"fmt"

	"domfs/backend"
)

// NTFS's structures, after the linux-ntfs documentation.
const (
	ntfsMaxCluster   = 2 << 20
	ntfsMaxRecord    = 64 << 10 // the tools make 1 or 4 KiB
	ntfsVolumeRecord = 3        // $Volume
	ntfsAttrHeader   = 24
	ntfsAttrName     = 0x60
	ntfsAttrEnd      = 0xffffffff
	ntfsMaxAttrs     = 1024
)

// isNTFS tells whether a boot sector that ends like an MBR is that of an NTFS.
func isNTFS(r *reader) bool {
	_, ok := ntfsVolume(r)
	return ok
}

func probeNTFS(r *reader) (backend.Content, bool) {
	record, ok := ntfsVolume(r)
	if !ok {
		return backend.Content{}, false
	}
	c := backend.Content{Label: ntfsLabel(record)}
	if serial := le.Uint64(r.at(0, 512)[72:]); serial != 0 {
		c.UUID = fmt.Sprintf("%016X", serial)
	}
	return c, true
}

// ntfsVolume checks the boot sector and returns the $Volume record of the MFT.
func ntfsVolume(r *reader) ([]byte, bool) {
	b := r.at(0, 512)
	if b == nil || string(b[3:11]) != "NTFS    " {
		return nil, false
	}
	sectorSize := uint32(le.Uint16(b[11:]))
	if sectorSize < 256 || sectorSize > 4096 || !isPowerOf2(sectorSize) {
		return nil, false
	}
	clusterSectors := uint32(b[13])
	switch {
	case clusterSectors >= 240 && clusterSectors <= 249:
		clusterSectors = 1 << (256 - clusterSectors)
	case clusterSectors > 128 || !isPowerOf2(clusterSectors):
		return nil, false
	}
	clusterBytes := sectorSize * clusterSectors
	// Fields of FAT's boot sector that NTFS has no use for are zero.
	if clusterBytes > ntfsMaxCluster || le.Uint16(b[14:]) != 0 || b[16] != 0 || le.Uint16(b[17:]) != 0 ||
		le.Uint16(b[19:]) != 0 || le.Uint16(b[22:]) != 0 || le.Uint32(b[32:]) != 0 {
		return nil, false
	}
	var recordBytes int64
	switch n := int8(b[64]); {
	case n > 0 && n <= 64 && isPowerOf2(uint32(n)): // clusters
		recordBytes = int64(n) * int64(clusterBytes)
	case n <= -9 && n >= -31: // a power of two
		recordBytes = 1 << -n
	default:
		return nil, false
	}
	clusters := le.Uint64(b[40:]) / uint64(clusterSectors)
	mft, mirror := le.Uint64(b[48:]), le.Uint64(b[56:])
	if mft > clusters || mirror > clusters || mft > uint64(r.size)/uint64(clusterBytes) {
		return nil, false
	}
	off := int64(mft) * int64(clusterBytes)
	if recordBytes > ntfsMaxRecord || !r.has(off, "FILE") {
		return nil, false
	}
	record := r.at(off+ntfsVolumeRecord*recordBytes, recordBytes)
	if record == nil || string(record[:4]) != "FILE" {
		return nil, false
	}
	return record, true
}

// ntfsLabel finds the $VOLUME_NAME attribute in the $Volume record.
func ntfsLabel(record []byte) string {
	off, used := uint64(le.Uint16(record[20:])), uint64(le.Uint32(record[28:]))
	for i := 0; i < ntfsMaxAttrs && off+ntfsAttrHeader <= uint64(len(record)) && off <= used; i++ {
		attr := record[off:]
		kind, length := le.Uint32(attr), uint64(le.Uint32(attr[4:]))
		if length == 0 || kind == ntfsAttrEnd {
			break
		}
		if kind == ntfsAttrName {
			valueLen, valueOff := uint64(le.Uint32(attr[16:])), uint64(le.Uint16(attr[20:]))
			if valueOff > uint64(len(attr)) || valueLen > uint64(len(attr))-valueOff {
				break
			}
			return wideLabel(attr[valueOff:valueOff+valueLen], le)
		}
		off += length
	}
	return ""
}

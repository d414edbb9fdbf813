package blkid

import (
	"fmt"
	"hash/crc32"
	"math"

	"domfs/backend"
)

// The partition table of an MBR, and GPT (UEFI 2.10, 5.2 and 5.3).
const (
	mbrTable      = 446
	mbrEntrySize  = 16
	mbrProtective = 0xEE

	gptMinHeader  = 92
	gptMinEntry   = 128
	gptMaxEntry   = 4096
	gptMaxEntries = 1024
)

// probeTable finds a partition table. off is where in the device its signature is.
func probeTable(r *reader, sig *signature) (c backend.Content, off int64, ok bool) {
	b := r.at(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xAA {
		return c, 0, false
	}
	if protectiveMBR(b) {
		if t, ok := readGPT(r); ok {
			return backend.Content{Type: "gpt", UUID: t.guid}, t.off, true
		}
		return backend.Content{Type: "PMBR"}, math.MaxInt64, true
	}
	if !validMBR(b) || isFAT(r) || isExFAT(r) || isNTFS(r) {
		return c, 0, false
	}
	// LVM volumes can be booted from: their MBR has a boot loader and no partitions.
	if sig != nil && sig.name == "LVM2_member" && len(mbrRanges(b)) == 0 {
		return c, 0, false
	}
	c.Type = "dos"
	if id := le.Uint32(b[440:]); id != 0 {
		c.UUID = fmt.Sprintf("%08x", id)
	}
	return c, mbrTable, true
}

// validMBR tells whether the entries of an MBR look like such: boot sectors of all
// kinds end in 55 AA, too.
func validMBR(b []byte) bool {
	const aix = "\xc9\xc2\xd4\xc1"
	if string(b[:4]) == aix {
		return false
	}
	for i := range 4 {
		if boot := b[mbrTable+i*mbrEntrySize]; boot != 0 && boot != 0x80 {
			return false
		}
	}
	return true
}

// protectiveMBR tells whether an MBR, alone or beside others, has the partition that stands for a GPT.
func protectiveMBR(b []byte) bool {
	for i := range 4 {
		if b[mbrTable+i*mbrEntrySize+4] == mbrProtective {
			return true
		}
	}
	return false
}

// byteRange is part of a device.
type byteRange struct{ start, end int64 }

// mbrRanges are the primary partitions of an MBR, an extended one as a whole.
func mbrRanges(b []byte) []byteRange {
	var out []byteRange
	for i := range 4 {
		e := b[mbrTable+i*mbrEntrySize:]
		start, n := int64(le.Uint32(e[8:]))*512, int64(le.Uint32(e[12:]))*512
		if n > 0 {
			out = append(out, byteRange{start, start + n})
		}
	}
	return out
}

// coveredByTable tells whether the n bytes at off lie in one partition of a table on the device,
// all of whose partitions lie on it.
func coveredByTable(r *reader, off, n int64) bool {
	b := r.at(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xAA {
		return false
	}
	var parts []byteRange
	if protectiveMBR(b) {
		t, _ := readGPT(r)
		parts = t.parts
	} else if validMBR(b) && !isFAT(r) && !isExFAT(r) && !isNTFS(r) {
		parts = mbrRanges(b)
	}
	covered := false
	for _, p := range parts {
		if p.end > r.size {
			return false
		}
		covered = covered || off >= p.start && off+n <= p.end
	}
	return covered
}

// gptTable is what is needed of a GPT here.
type gptTable struct {
	guid  string
	off   int64 // of its header
	parts []byteRange
}

// readGPT reads a GPT by its first intact header: primary, then backup, for sectors
// of 512 bytes and of 4096.
func readGPT(r *reader) (gptTable, bool) {
	for _, sector := range []int64{512, 4096} {
		if t, ok := readGPTAt(r, sector, 1); ok {
			return t, true
		}
	}
	for _, sector := range []int64{512, 4096} {
		last := r.size/sector - 1
		if t, ok := readGPTAt(r, sector, last); ok {
			return t, true
		}
		// On a disk that has grown the backup is where it was. What the primary says of it
		// is only a hint, for the header there must prove itself.
		if b := r.at(sector, gptMinHeader); b != nil && string(b[:8]) == "EFI PART" {
			if lba := le.Uint64(b[32:]); lba > 1 && lba < uint64(last) {
				if t, ok := readGPTAt(r, sector, int64(lba)); ok {
					return t, true
				}
			}
		}
	}
	return gptTable{}, false
}

// readGPTAt reads the GPT whose header is in sector lba, if both it and its entries are
// intact.
func readGPTAt(r *reader, sector, lba int64) (gptTable, bool) {
	var t gptTable
	b := r.at(lba*sector, sector)
	if lba < 1 || b == nil || string(b[:8]) != "EFI PART" {
		return t, false
	}
	size := int64(le.Uint32(b[12:]))
	if size < gptMinHeader || size > sector || le.Uint64(b[24:]) != uint64(lba) {
		return t, false
	}
	crc := crc32.ChecksumIEEE(b[:16])
	crc = crc32.Update(crc, crc32.IEEETable, make([]byte, 4))
	if crc32.Update(crc, crc32.IEEETable, b[20:size]) != le.Uint32(b[16:]) {
		return t, false
	}
	n, entrySize := int64(le.Uint32(b[80:])), int64(le.Uint32(b[84:]))
	if n < 1 || n > gptMaxEntries || entrySize < gptMinEntry || entrySize > gptMaxEntry || entrySize%8 != 0 {
		return t, false
	}
	first := le.Uint64(b[72:])
	if first > uint64(r.size/sector) {
		return t, false
	}
	crc = 0
	for off, left := int64(first)*sector, n*entrySize; left > 0; {
		// In pieces, of whole entries, that fit into one read.
		piece := min(left, maxReadSize/entrySize*entrySize)
		e := r.at(off, piece)
		if e == nil {
			return gptTable{}, false
		}
		crc = crc32.Update(crc, crc32.IEEETable, e)
		for ; len(e) >= gptMinEntry; e = e[min(entrySize, int64(len(e))):] {
			start, end := le.Uint64(e[32:]), le.Uint64(e[40:])
			if !isZero(e[:16]) && start <= end && end < math.MaxInt64/uint64(sector) {
				t.parts = append(t.parts, byteRange{int64(start) * sector, (int64(end) + 1) * sector})
			}
		}
		off, left = off+piece, left-piece
	}
	if crc != le.Uint32(b[88:]) {
		return gptTable{}, false
	}
	t.guid, t.off = guid(b[56:72]), lba*sector
	return t, true
}

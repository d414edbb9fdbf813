package blkid

import "domfs/backend"

// Limits of FAT (Microsoft FAT specification, 3.5), and of walking it here.
const (
	fat12MaxClusters = 0xFF4
	fat16MaxClusters = 0xFFF4
	fat32MaxClusters = 0x0FFFFFF6
	fatEntrySize     = 32
	// fatMaxRootClusters is how many clusters of a FAT32 root directory are looked
	// through for the label.
	fatMaxRootClusters = 99
)

// fatBoot is what counts of a FAT boot sector. Arithmetic on it wraps, as a hostile
// one makes it.
type fatBoot struct {
	b              []byte // the sector
	sectorSize     uint32
	clusterSectors uint32
	reserved       uint32 // sectors
	fatSectors     uint32 // of all FATs
	rootEntries    uint32 // FAT12 and FAT16
	fat32          bool
}

// readFATBoot reads and checks a FAT boot sector.
func readFATBoot(r *reader) (fatBoot, bool) {
	var f fatBoot
	b := r.at(0, 512)
	if b == nil {
		return f, false
	}
	signed := b[510] == 0x55 && b[511] == 0xAA
	named := hasAny(b[0x52:], "MSWIN", "FAT32   ") ||
		hasAny(b[0x36:], "MSDOS", "FAT16   ", "FAT12   ", "FAT     ")
	// JFS and HPFS of OS/2 have boot sectors that look like FAT's but for the name.
	if !named && (!signed || hasAny(b[0x36:], "JFS     ", "HPFS    ")) {
		return f, false
	}
	f = fatBoot{
		b:              b,
		sectorSize:     uint32(le.Uint16(b[0x0b:])),
		clusterSectors: uint32(b[0x0d]),
		reserved:       uint32(le.Uint16(b[0x0e:])),
		rootEntries:    uint32(le.Uint16(b[0x11:])),
	}
	fats, media := uint32(b[0x10]), b[0x15]
	if fats == 0 || f.reserved == 0 || media < 0xf8 && media != 0xf0 ||
		!isPowerOf2(f.clusterSectors) ||
		!isPowerOf2(f.sectorSize) || f.sectorSize < 512 || f.sectorSize > 4096 {
		return f, false
	}
	sectors := uint32(le.Uint16(b[0x13:]))
	if sectors == 0 {
		sectors = le.Uint32(b[0x20:])
	}
	perFAT := uint32(le.Uint16(b[0x16:]))
	f.fat32 = perFAT == 0 && le.Uint32(b[0x24:]) != 0
	if perFAT == 0 {
		perFAT = le.Uint32(b[0x24:])
	}
	f.fatSectors = perFAT * fats
	rootSectors := (f.rootEntries*fatEntrySize + f.sectorSize - 1) / f.sectorSize
	clusters := (sectors - (f.reserved + f.fatSectors + rootSectors)) / f.clusterSectors
	limit := uint32(fat12MaxClusters)
	switch {
	case f.fat32:
		limit = fat32MaxClusters
	case clusters > fat12MaxClusters:
		limit = fat16MaxClusters
	}
	return f, clusters <= limit && !isBitLocker(r)
}

func hasAny(b []byte, names ...string) bool {
	for _, n := range names {
		if string(b[:len(n)]) == n {
			return true
		}
	}
	return false
}

// isFAT tells whether a boot sector that ends like an MBR is that of a FAT filesystem.
func isFAT(r *reader) bool {
	_, ok := readFATBoot(r)
	return ok
}

// probeVFAT reads a FAT filesystem of any width. Its label is the one in the root
// directory; that in the boot sector is not kept up to date by anybody.
func probeVFAT(r *reader) (backend.Content, bool) {
	f, ok := readFATBoot(r)
	if !ok {
		return backend.Content{}, false
	}
	var c backend.Content
	switch {
	case le.Uint16(f.b[0x16:]) != 0: // FAT12, FAT16
		root := (int64(f.reserved) + int64(f.fatSectors)) * int64(f.sectorSize)
		c.Label, _ = fatLabel(r, root, int64(f.rootEntries))
		if sign := f.b[0x26]; sign == 0x28 || sign == 0x29 {
			c.UUID = serial(f.b[0x27:0x2b])
		}
	case f.fat32:
		if !validFSInfo(r, f) {
			return backend.Content{}, false
		}
		c.Label = fat32Label(r, f)
		c.UUID = serial(f.b[0x43:0x47])
	}
	return c, true
}

// validFSInfo checks the FSInfo sector of FAT32, whose signatures some tools leave zero.
func validFSInfo(r *reader, f fatBoot) bool {
	sector := int64(le.Uint16(f.b[0x30:]))
	if sector == 0 {
		return true
	}
	b := r.at(sector*int64(f.sectorSize), 512)
	return b != nil &&
		hasAny(b, "RRaA", "RRdA", "\x00\x00\x00\x00") &&
		hasAny(b[484:], "rrAa", "\x00\x00\x00\x00")
}

// fat32Label follows the root directory's clusters.
func fat32Label(r *reader, f fatBoot) string {
	clusterBytes := int64(f.clusterSectors) * int64(f.sectorSize)
	entries := uint32(uint64(le.Uint32(f.b[0x24:])) * uint64(f.sectorSize) / 4)
	next := le.Uint32(f.b[0x2c:])
	for i := 0; i < fatMaxRootClusters && next != 0 && next < entries; i++ {
		off := (int64(f.reserved+f.fatSectors) + int64((next-2)*f.clusterSectors)) * int64(f.sectorSize)
		if name, ok := fatLabel(r, off, clusterBytes/fatEntrySize); ok {
			return name
		}
		link := r.at(int64(f.reserved)*int64(f.sectorSize)+int64(next)*4, 4)
		if link == nil {
			break
		}
		next = le.Uint32(link) & 0x0fffffff
	}
	return ""
}

// fatLabel finds the volume label among the entries of a directory at off.
func fatLabel(r *reader, off, entries int64) (string, bool) {
	b := r.at(off, entries*fatEntrySize)
	for ; len(b) >= fatEntrySize && b[0] != 0; b = b[fatEntrySize:] {
		const (
			volumeID = 0x08
			dir      = 0x10
			longName = 0x0f
			mask     = 0x3f
			deleted  = 0xe5
		)
		attr := b[11]
		if b[0] == deleted || attr&mask == longName || attr&(volumeID|dir) != volumeID ||
			le.Uint16(b[20:]) != 0 || le.Uint16(b[26:]) != 0 {
			continue
		}
		name := append([]byte(nil), b[:11]...)
		if name[0] == 0x05 { // stands for 0xe5, which would mean deleted
			name[0] = 0xe5
		}
		return label(name), true
	}
	return "", false
}

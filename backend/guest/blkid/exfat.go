package blkid

import "domfs/backend"

const (
	exFATEntrySize = 32
	// exFATMaxClusters and exFATMaxDirBytes bound how far the root directory is looked
	// through for the label, which formatting puts first.
	exFATMaxClusters = 64
	exFATMaxDirBytes = 1 << 20
)

// isExFAT tells whether the main boot sector is exFAT's (Microsoft exFAT specification, 3.1), by its
// name. The rest is for a driver to verify.
func isExFAT(r *reader) bool {
	b := r.at(0, 512)
	return b != nil && string(b[3:11]) == "EXFAT   "
}

func probeExFAT(r *reader) (backend.Content, bool) {
	if !isExFAT(r) {
		return backend.Content{}, false
	}
	b := r.at(0, 512)
	return backend.Content{Label: exFATLabel(r, b), UUID: serial(b[100:104])}, true
}

// exFATLabel finds the volume label entry in the root directory (7.3).
func exFATLabel(r *reader, boot []byte) string {
	sectorShift, clusterShift := boot[108], boot[109]
	fat := int64(le.Uint32(boot[80:])) << sectorShift
	heap := int64(le.Uint32(boot[88:])) << sectorShift
	cluster := le.Uint32(boot[96:])
	if sectorShift > 12 || clusterShift > 25-sectorShift { // 32 MiB is the largest cluster
		return ""
	}
	clusterBytes := int64(1) << (sectorShift + clusterShift)
	piece := min(clusterBytes, exFATMaxDirBytes)
	for i := 0; i < exFATMaxClusters && cluster >= 2 && cluster <= 0xffffff6; i++ {
		off := heap + int64(cluster-2)*clusterBytes
		for b := r.at(off, min(piece, r.size-off)); len(b) >= exFATEntrySize; b = b[exFATEntrySize:] {
			switch b[0] {
			case 0x00: // the end of the directory
				return ""
			case 0x83: // the label
				return wideLabel(b[2:2+min(2*int(b[1]), 22)], le)
			}
		}
		link := r.at(fat+int64(cluster)*4, 4)
		if link == nil {
			break
		}
		cluster = le.Uint32(link)
	}
	return ""
}

package lvm2

import (
	"encoding/binary"
	"fmt"
	"math"

	"domfs/backend"
)

const (
	maxMembers   = 1024     // members that are looked at
	maxAreas     = 2        // metadata areas of one member: LVM makes no more
	maxTextBytes = 8 << 20  // metadata of one group; LVM's default area holds 1 MiB
	maxTextTotal = 64 << 20 // text read of all areas of a guest; each MiB takes about 50 ms and 2 MiB of memory
	maxGroups    = 256

	maxNodes     = 600_000 // keys and values of one text
	maxTextDepth = 8       // LVM nests 4 deep: group, logical_volumes, volume, segment

	maxPVs      = 4096
	maxLVs      = 16384
	maxSegments = 65536 // of one group
	maxAreasLV  = 1024  // stripes or legs of one segment; the kernel's md has 253
	maxNesting  = 8     // volumes on volumes
	// maxCost is how many reads of members a small read of a volume may come to where legs fail or have to be made
	// up: legs of legs multiply. Volumes of LVM's making cost no more than they have legs, times 9 if they are thin.
	maxCost = 1024
	// maxHoleSteps is how many devices a search for data or holes of a volume may ask, and maxPartSteps of what a part
	// of another volume lies on: such a search goes on behind the part's end. Beyond that a volume has no holes.
	maxHoleSteps = 1 << 16
	maxPartSteps = 256
	// thinNodes are the nodes of a pool's B-trees on the way to a chunk.
	thinNodes = 8

	maxExtents     = math.MaxUint32 // LVM counts extents in 32 bits
	maxExtentBytes = 1 << 40
	maxVolumeBytes = 1 << 62

	maxWarnings = 32 // sentences of one group, and of those that belong to none
	maxQuoted   = 64 // bytes of a guest's word in a message

	sectorBytes = 512 // LVM2's unit, whatever the disk's sectors are
)

var le = binary.LittleEndian

// readFull reads n bytes at off. That d has no such bytes is ErrCorrupt; other errors are d's own.
func readFull(d backend.Device, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > d.Size() || n > d.Size()-off {
		return nil, fmt.Errorf("%d bytes at byte %d are outside of a device of %d bytes: %w", n, off, d.Size(), backend.ErrCorrupt)
	}
	b := make([]byte, n)
	if err := readAll(d, b, off); err != nil {
		return nil, err
	}
	return b, nil
}

// quoted is a guest's word for a message.
func quoted(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// warnings are sentences, a bounded number of them, each once.
type warnings struct {
	list []string
	more int
}

func (w *warnings) add(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	for _, old := range w.list {
		if old == s {
			return
		}
	}
	if len(w.list) == maxWarnings {
		w.more++
		return
	}
	w.list = append(w.list, s)
}

func (w *warnings) sentences() []string {
	if w.more == 0 {
		return w.list
	}
	return append(w.list[:len(w.list):len(w.list)], fmt.Sprintf("and %d more", w.more))
}

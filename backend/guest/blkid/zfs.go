package blkid

import (
	"strconv"

	"domfs/backend"
)

const (
	zfsLabelSize = 256 << 10
	zfsListOff   = 16 << 10 // of the name-value list in a label
	zfsListSize  = 112 << 10
	zfsMaxPairs  = 1024
	zfsMaxName   = 256
)

// probeZFS looks for one of the four labels of a ZFS vdev ("ZFS On-Disk Specification", 1.2):
// two at the start, two at the end. A label is a name-value list in XDR.
func probeZFS(r *reader) (backend.Content, bool) {
	end := r.size &^ (zfsLabelSize - 1)
	for _, off := range []int64{0, zfsLabelSize, end - 2*zfsLabelSize, end - zfsLabelSize} {
		off += zfsListOff
		head := r.at(off, 16)
		const xdr = 1
		if head == nil || head[0] != xdr || head[1] > 1 || be.Uint32(head[12:]) == 0 {
			continue
		}
		if coveredByTable(r, off, zfsListSize) {
			continue // a label of the last partition
		}
		if c, ok := readZFSLabel(r.at(off, zfsListSize)); ok {
			return c, true
		}
	}
	return backend.Content{}, false
}

// readZFSLabel reads the pool's name and GUID from the top level of the list.
func readZFSLabel(b []byte) (backend.Content, bool) {
	const (
		pairHead  = 12 // encoded size, decoded size, length of the name
		typeU64   = 8
		typeStr   = 9
		typeList  = 19
		stateL2   = 4
		stateSpar = 3
		stateMax  = 7
	)
	if len(b) < 12 {
		return backend.Content{}, false
	}
	var c backend.Content
	var guid, txg, pool uint64
	state := ^uint64(0)
	depth := 0
	b = b[12:]
	for i := 0; i < zfsMaxPairs && len(b) > pairHead+4; i++ {
		size := uint64(be.Uint32(b))
		if size == 0 {
			if depth == 0 {
				break
			}
			depth--
			b = b[8:]
			continue
		}
		nameLen := uint64(be.Uint32(b[8:]))
		padded := (nameLen + 3) &^ 3
		if size > uint64(len(b)) || nameLen > zfsMaxName || pairHead+padded+8 > size {
			return backend.Content{}, false
		}
		name := label(b[pairHead:][:nameLen])
		value := b[pairHead+padded : size]
		kind := be.Uint32(value)
		next := size
		switch {
		case kind == typeList:
			if len(value) < 16 {
				return backend.Content{}, false
			}
			depth++
			next = pairHead + padded + 16
		case depth > 0:
		case kind == typeU64 && len(value) >= 16:
			n := be.Uint64(value[8:])
			switch name {
			case "guid":
				guid = n
			case "pool_guid":
				pool = n
			case "state":
				state = n
			case "txg":
				txg = n
			}
		case kind == typeStr && len(value) >= 12 && name == "name":
			if n := uint64(be.Uint32(value[8:])); n <= uint64(len(value)-12) {
				c.Label = label(value[12:][:n])
			}
		}
		b = b[next:]
	}
	if pool != 0 {
		c.UUID = strconv.FormatUint(pool, 10)
	}
	return c, guid != 0 && state <= stateMax && (txg > 0 || state == stateL2 || state == stateSpar)
}

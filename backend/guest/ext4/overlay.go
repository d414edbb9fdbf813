package ext4

import (
	"encoding/binary"
	"slices"
	"sort"
)

// jbd2Magic begins each block that the journal keeps for itself. A block of the
// filesystem that begins so, too, is kept in the journal with zeros in its place: it is escaped.
const jbd2Magic = 0xc03b3998 // big-endian

// overlay is what lies over the blocks of the device: what the journal holds of them, and
// over that what recovery changed in memory. It is built while the filesystem is opened, and never
// changed after but to be dropped. Nothing of it is ever written.
type overlay struct {
	replayed []replayedBlock   // ascending, each block once
	edited   map[uint64][]byte // whole blocks
	order    []uint64          // of edited, ascending; set by seal
	held     int64             // bytes of the budget of all overlays
}

// replayedBlock says where the journal keeps a block. The bytes stay on the device, so
// that the largest journal takes 16 bytes of memory a block.
type replayedBlock struct {
	block   uint64 // of the filesystem
	journal uint64 // the block of the filesystem that the copy is in, and escapedBlock
}

// escapedBlock is the bit of replayedBlock.journal of a block that is escaped.
const escapedBlock = 1 << 63

// seal ends the building.
func (o *overlay) seal() {
	o.order = o.order[:0]
	for block := range o.edited {
		o.order = append(o.order, block)
	}
	slices.Sort(o.order)
	o.settle()
}

func (o *overlay) empty() bool { return len(o.replayed) == 0 && len(o.edited) == 0 }

// next is the first block from one on that the overlay holds; end if there is none before end.
func (o *overlay) next(block, end uint64) uint64 {
	if i := o.search(block); i < len(o.replayed) {
		end = min(end, o.replayed[i].block)
	}
	if i, _ := slices.BinarySearch(o.order, block); i < len(o.order) {
		end = min(end, o.order[i])
	}
	return end
}

// search is the index of the first of replayed from a block on.
func (o *overlay) search(block uint64) int {
	return sort.Search(len(o.replayed), func(i int) bool { return o.replayed[i].block >= block })
}

// find says what the overlay holds of a block: its bytes, or the block of the device that
// the journal keeps it in.
func (o *overlay) find(block uint64) (edited []byte, journal uint64, escaped, ok bool) {
	if b := o.edited[block]; b != nil {
		return b, 0, false, true
	}
	if i := o.search(block); i < len(o.replayed) && o.replayed[i].block == block {
		j := o.replayed[i].journal
		return nil, j &^ escapedBlock, j&escapedBlock != 0, true
	}
	return nil, 0, false, false
}

// patch lays the overlay over p, which holds the device's bytes at off.
func (fs *FS) patch(p []byte, off int64) error {
	bits := fs.sb.blockBits
	end := uint64(off+int64(len(p))+int64(fs.sb.blockBytes())-1) >> bits
	for block := fs.over.next(uint64(off)>>bits, end); block < end; block = fs.over.next(block+1, end) {
		edited, journal, escaped, _ := fs.over.find(block)
		// The part of the block that p has, from the block's byte skip on.
		at := int64(block)<<bits - off
		skip := max(0, -at)
		part := p[at+skip : min(int64(len(p)), at+int64(fs.sb.blockBytes()))]
		if edited != nil {
			copy(part, edited[skip:])
			continue
		}
		if err := fs.readDevice(part, int64(journal)<<bits+skip); err != nil {
			return err
		}
		if escaped {
			var magic [4]byte
			binary.BigEndian.PutUint32(magic[:], jbd2Magic)
			if skip < int64(len(magic)) {
				copy(part, magic[skip:])
			}
		}
	}
	return nil
}

// unpatched is how many of length bytes at off the overlay leaves as they are on the
// device; where it holds the first of them, the offset on the device that they are at then, if they lie there.
func (fs *FS) unpatched(off, length int64) (at, n int64, ok bool) {
	bits := fs.sb.blockBits
	block := uint64(off) >> bits
	end := uint64(off+length-1)>>bits + 1
	if first := fs.over.next(block, end); first > block {
		return off, min(length, int64(first)<<bits-off), true
	}
	edited, journal, escaped, _ := fs.over.find(block)
	if edited != nil || escaped {
		return 0, 0, false
	}
	skip := off - int64(block)<<bits
	return int64(journal)<<bits + skip, min(length, int64(fs.sb.blockBytes())-skip), true
}

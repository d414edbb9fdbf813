package ext4

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Flags of a group: its bitmap was never written.
const (
	groupInodeUninit = 0x1
	groupBlockUninit = 0x2
)

// editedGroup is a group whose descriptor or bitmaps changed.
type editedGroup struct {
	desc   []byte // to be changed
	blocks []byte // the bitmap, to be changed; nil if it was not needed
	inodes []byte
}

// groupClusters is the number of clusters in a group: the last one may be shorter.
func (s *super) groupClusters(group uint64) uint64 {
	blocks := uint64(s.blocksPerGroup)
	if group == s.groups-1 {
		blocks = s.blocks - uint64(s.firstDataBlock) - group*blocks
	}
	return (blocks + 1<<s.clusterBits - 1) >> s.clusterBits
}

// groupView is a group's descriptor as it is now.
func (e *editor) groupView(n uint64) (groupDesc, error) {
	sb := e.fs.sb
	b, err := e.view(sb.groupDescBlock(n / sb.descsPerBlock()))
	if err != nil {
		return groupDesc{}, fmt.Errorf("group %d: descriptor: %w", n, err)
	}
	return e.fs.parseGroup(b[n%sb.descsPerBlock()*uint64(sb.descBytes):][:sb.descBytes]), nil
}

// group returns a group to be changed.
func (e *editor) group(n uint64) (*editedGroup, error) {
	if g := e.groups[n]; g != nil {
		return g, nil
	}
	sb := e.fs.sb
	b, err := e.edit(sb.groupDescBlock(n/sb.descsPerBlock()), kindDescriptors)
	if err != nil {
		return nil, fmt.Errorf("group %d: descriptor: %w", n, err)
	}
	desc := b[n%sb.descsPerBlock()*uint64(sb.descBytes):][:sb.descBytes]
	if sum, ok := e.fs.groupChecksum(uint32(n), desc); ok {
		if stored := binary.LittleEndian.Uint16(desc[0x1e:]); stored != sum {
			return nil, corrupt("group %d: descriptor: checksum is 0x%04x, computed 0x%04x", n, stored, sum)
		}
	}
	g := &editedGroup{desc: desc}
	e.groups[n] = g
	return g, nil
}

func (e *editor) hasGroupChecksum() bool {
	return e.fs.sb.roCompat&(roCompatMetadataChecksum|roCompatGDTChecksum) != 0
}

// field is a number of a descriptor in two parts, of which the upper is there with the
// feature 64bit only.
func (e *editor) field(desc []byte, lo, hi int) uint32 {
	le := binary.LittleEndian
	v := uint32(le.Uint16(desc[lo:]))
	if e.fs.sb.descBytes >= descBytes64 {
		v |= uint32(le.Uint16(desc[hi:])) << 16
	}
	return v
}

func (e *editor) setField(desc []byte, lo, hi int, v uint32) {
	le := binary.LittleEndian
	le.PutUint16(desc[lo:], uint16(v))
	if e.fs.sb.descBytes >= descBytes64 {
		le.PutUint16(desc[hi:], uint16(v>>16))
	}
}

// The fields of a descriptor that change, by their lower and upper parts.
func (e *editor) addFreeClusters(desc []byte, n int) {
	e.setField(desc, 0x0c, 0x2c, uint32(int(e.field(desc, 0x0c, 0x2c))+n))
}
func (e *editor) addFreeInodes(desc []byte, n int) {
	e.setField(desc, 0x0e, 0x2e, uint32(int(e.field(desc, 0x0e, 0x2e))+n))
}
func (e *editor) addUsedDirs(desc []byte, n int) {
	e.setField(desc, 0x10, 0x30, uint32(int(e.field(desc, 0x10, 0x30))+n))
}

func bitmapBit(b []byte, i uint64) bool { return b[i/8]&(1<<(i%8)) != 0 }

// setBits sets or clears bits, and returns how many of them it changed.
func setBits(b []byte, from, n uint64, on bool) (changed uint64) {
	for i := from; i < from+n; {
		mask := byte(0xff)
		step := uint64(8)
		if i%8 != 0 || from+n-i < 8 {
			step = min(8-i%8, from+n-i)
			mask = byte(1<<step-1) << (i % 8)
		}
		old := b[i/8]
		if on {
			b[i/8] |= mask
		} else {
			b[i/8] &^= mask
		}
		changed += uint64(bits.OnesCount8(old ^ b[i/8]))
		i += step
	}
	return changed
}

// blockBitmap returns a group's block bitmap to be changed.
func (e *editor) blockBitmap(n uint64) (*editedGroup, error) {
	g, err := e.group(n)
	if err != nil || g.blocks != nil {
		return g, err
	}
	sb, le := e.fs.sb, binary.LittleEndian
	at := e.fs.parseGroup(g.desc).blockBitmap
	if !sb.validRun(at, 1) {
		return nil, corrupt("group %d: the block bitmap is block %d of %d", n, at, sb.blocks)
	}
	if e.hasGroupChecksum() && le.Uint16(g.desc[0x12:])&groupBlockUninit != 0 {
		b, err := e.fresh(at, kindBitmap)
		if err != nil {
			return nil, err
		}
		if err := e.initBlockBitmap(n, b); err != nil {
			return nil, err
		}
		le.PutUint16(g.desc[0x12:], le.Uint16(g.desc[0x12:])&^groupBlockUninit)
		free := uint32(0)
		for i := range sb.groupClusters(n) {
			if !bitmapBit(b, i) {
				free++
			}
		}
		e.setField(g.desc, 0x0c, 0x2c, free)
		g.blocks = b
		return g, nil
	}
	b, err := e.edit(at, kindBitmap)
	if err != nil {
		return nil, fmt.Errorf("group %d: block bitmap: %w", n, err)
	}
	if err := e.checkBitmap(n, g.desc, b, e.blockBitmapBytes(), 0x18, 0x38, "block"); err != nil {
		return nil, err
	}
	g.blocks = b
	return g, nil
}

func (e *editor) blockBitmapBytes() int {
	return int(e.fs.sb.blocksPerGroup>>e.fs.sb.clusterBits) / 8
}
func (e *editor) inodeBitmapBytes() int { return int(e.fs.sb.inodesPerGroup+7) / 8 }

func (e *editor) checkBitmap(n uint64, desc, b []byte, size, lo, hi int, what string) error {
	if e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return nil
	}
	stored, sum := e.field(desc, lo, hi), crc32c(e.fs.sb.seed, b[:min(size, len(b))])
	if e.fs.sb.descBytes < descBytes64 {
		sum &= 0xffff
	}
	if stored != sum {
		return corrupt("group %d: %s bitmap: checksum is 0x%08x, computed 0x%08x", n, what, stored, sum)
	}
	return nil
}

// initBlockBitmap makes the bitmap of a group in which there is nothing but the
// filesystem's own tables.
func (e *editor) initBlockBitmap(n uint64, b []byte) error {
	sb := e.fs.sb
	start, clusters := sb.groupStart(n), sb.groupClusters(n)
	use := func(block, blocks uint64) {
		first, last := max(block, start), min(block+blocks, start+uint64(sb.blocksPerGroup))
		if first >= last || blocks > sb.blocks || block > sb.blocks {
			return
		}
		c := (first - start) >> sb.clusterBits
		if end := min((last-1-start)>>sb.clusterBits+1, clusters); c < end {
			setBits(b, c, end-c, true)
		}
	}
	use(start, sb.superBlocks(n))
	// With flexible groups the tables of one group lie in another.
	first, last := n, n
	if sb.incompat&incompatFlexBG != 0 {
		size := uint64(1) << min(e.flexBits(), 16)
		first = n / size * size
		last = min(first+size, sb.groups) - 1
	}
	for i := first; i <= last; i++ {
		if err := e.step(); err != nil {
			return err
		}
		d, err := e.groupView(i)
		if err != nil {
			return err
		}
		use(d.blockBitmap, 1)
		use(d.inodeBitmap, 1)
		use(d.inodeTable, sb.inodeTableBlocks())
	}
	setBits(b, clusters, uint64(len(b))*8-clusters, true)
	return nil
}

// flexBits is log2 of the groups whose tables lie together.
func (e *editor) flexBits() uint8 {
	b, err := e.superView()
	if err != nil {
		return 0
	}
	return b[0x174]
}

// inodeBitmap returns a group's inode bitmap to be changed.
func (e *editor) inodeBitmap(n uint64) (*editedGroup, error) {
	g, err := e.group(n)
	if err != nil || g.inodes != nil {
		return g, err
	}
	sb, le := e.fs.sb, binary.LittleEndian
	at := e.fs.parseGroup(g.desc).inodeBitmap
	if !sb.validRun(at, 1) {
		return nil, corrupt("group %d: the inode bitmap is block %d of %d", n, at, sb.blocks)
	}
	if e.hasGroupChecksum() && le.Uint16(g.desc[0x12:])&groupInodeUninit != 0 {
		b, err := e.fresh(at, kindBitmap)
		if err != nil {
			return nil, err
		}
		setBits(b, uint64(sb.inodesPerGroup), uint64(len(b))*8-uint64(sb.inodesPerGroup), true)
		g.inodes = b
		return g, nil
	}
	b, err := e.edit(at, kindBitmap)
	if err != nil {
		return nil, fmt.Errorf("group %d: inode bitmap: %w", n, err)
	}
	if err := e.checkBitmap(n, g.desc, b, e.inodeBitmapBytes(), 0x1a, 0x3a, "inode"); err != nil {
		return nil, err
	}
	g.inodes = b
	return g, nil
}

// sealGroup sets the checksums of a group's bitmaps and of its descriptor.
func (e *editor) sealGroup(n uint64, g *editedGroup) {
	sb := e.fs.sb
	if sb.roCompat&roCompatMetadataChecksum != 0 {
		if b := g.blocks; b != nil {
			e.setField(g.desc, 0x18, 0x38, crc32c(sb.seed, b[:min(e.blockBitmapBytes(), len(b))]))
		}
		if b := g.inodes; b != nil && binary.LittleEndian.Uint16(g.desc[0x12:])&groupInodeUninit == 0 {
			e.setField(g.desc, 0x1a, 0x3a, crc32c(sb.seed, b[:min(e.inodeBitmapBytes(), len(b))]))
		}
	}
	if sum, ok := e.fs.groupChecksum(uint32(n), g.desc); ok {
		binary.LittleEndian.PutUint16(g.desc[0x1e:], sum)
	}
}

// mark makes the clusters of a run of blocks used or free, whatever they were.
func (e *editor) mark(block, blocks uint64, used bool) error {
	sb := e.fs.sb
	if blocks == 0 {
		return nil
	}
	if !sb.validRun(block, blocks) {
		return corrupt("blocks %d+%d of %d cannot be used or freed", block, blocks, sb.blocks)
	}
	for blocks > 0 {
		if err := e.work(int(min(blocks, uint64(sb.blocksPerGroup)) / 8)); err != nil {
			return err
		}
		group := (block - uint64(sb.firstDataBlock)) / uint64(sb.blocksPerGroup)
		skip := block - sb.groupStart(group)
		n := min(blocks, uint64(sb.blocksPerGroup)-skip)
		g, err := e.blockBitmap(group)
		if err != nil {
			return err
		}
		first, last := skip>>sb.clusterBits, (skip+n-1)>>sb.clusterBits
		if changed := int(setBits(g.blocks, first, last-first+1, used)); used {
			e.addFreeClusters(g.desc, -changed)
		} else {
			e.addFreeClusters(g.desc, changed)
			e.full = e.full && changed == 0
		}
		block, blocks = block+n, blocks-n
	}
	return nil
}

// newBlock takes the first free block from goal on, and after the last group from the
// first. None is taken from what the journal says is in use.
func (e *editor) newBlock(goal uint64) (uint64, error) {
	if e.full {
		return 0, errFull
	}
	sb := e.fs.sb
	if goal < uint64(sb.firstDataBlock) || goal >= sb.blocks {
		goal = uint64(sb.firstDataBlock)
	}
	first := (goal - uint64(sb.firstDataBlock)) / uint64(sb.blocksPerGroup)
	from := (goal - sb.groupStart(first)) >> sb.clusterBits
	for i, c := uint64(0), from; i < sb.groups; i, c = i+1, 0 {
		group := (first + i) % sb.groups
		block, ok, err := e.freeBlock(group, c, sb.groupClusters(group))
		if err != nil {
			return 0, err
		}
		if ok {
			return block, e.mark(block, 1, true)
		}
	}
	// The kernel takes none of what is before the goal in its group, but may for another goal.
	_, ok, err := e.freeBlock(first, 0, from)
	if err != nil {
		return 0, err
	}
	e.full = !ok
	return 0, errFull
}

var errFull = fmt.Errorf("%w: no block is free", errNoRoom)

// freeBlock is the first block that can be taken of some of a group's clusters.
func (e *editor) freeBlock(group, from, end uint64) (block uint64, ok bool, err error) {
	if err := e.step(); err != nil {
		return 0, false, err
	}
	d, err := e.groupView(group)
	if err != nil || d.freeClusters == 0 || from >= end {
		return 0, false, err
	}
	g, err := e.blockBitmap(group)
	if err != nil {
		return 0, false, err
	}
	if err := e.work(len(g.blocks)); err != nil {
		return 0, false, err
	}
	bits, start := e.fs.sb.clusterBits, e.fs.sb.groupStart(group)
	for c := clearBit(g.blocks, from, end); c < end; c = clearBit(g.blocks, c, end) {
		block := start + c<<bits
		// What is being changed is in use, whatever its bitmap says.
		excluded := e.exclude.end(block)
		if excluded == block && e.kinds[block] == kindFree {
			return block, true, nil
		}
		if err := e.work(passedBytes); err != nil {
			return 0, false, err
		}
		c = max(c+1, (excluded-start+1<<bits-1)>>bits)
	}
	return 0, false, nil
}

// passedBytes is what passing over a block that is free and must not be taken counts as; see work.
const passedBytes = 1 << 10

// clearBit is the first bit from one on and before end that is 0; end if there is none.
func clearBit(b []byte, from, end uint64) uint64 {
	for i := from; i < end; {
		if i%64 == 0 && i+64 <= end {
			if w := ^binary.LittleEndian.Uint64(b[i/8:]); w != 0 {
				return i + uint64(bits.TrailingZeros64(w))
			}
			i += 64
			continue
		}
		if !bitmapBit(b, i) {
			return i
		}
		i++
	}
	return end
}

// excludeRun keeps new blocks out of a run of blocks.
func (e *editor) excludeRun(block, blocks uint64) error {
	if e.exclude.add(block, blocks); e.exclude.runs() > maxExcludedRuns {
		return fmt.Errorf("%w: more than %d runs of blocks must not be taken", errTooMuch, maxExcludedRuns)
	}
	return nil
}

// useInode marks an inode used.
func (e *editor) useInode(ino uint32) error {
	sb, le := e.fs.sb, binary.LittleEndian
	if ino < sb.firstIno || ino > sb.inodes {
		return corrupt("inode %d of %d cannot be used", ino, sb.inodes)
	}
	group, bit := uint64(ino-1)/uint64(sb.inodesPerGroup), uint64(ino-1)%uint64(sb.inodesPerGroup)
	g, err := e.inodeBitmap(group)
	if err != nil || bitmapBit(g.inodes, bit) {
		return err
	}
	setBits(g.inodes, bit, 1, true)
	if e.hasGroupChecksum() {
		if le.Uint16(g.desc[0x12:])&groupBlockUninit != 0 {
			if _, err := e.blockBitmap(group); err != nil {
				return err
			}
		}
		initialized := int64(sb.inodesPerGroup) - int64(e.field(g.desc, 0x1c, 0x32))
		if le.Uint16(g.desc[0x12:])&groupInodeUninit != 0 {
			le.PutUint16(g.desc[0x12:], le.Uint16(g.desc[0x12:])&^groupInodeUninit)
			initialized = 0
		}
		if int64(bit) >= initialized {
			e.setField(g.desc, 0x1c, 0x32, sb.inodesPerGroup-uint32(bit)-1)
		}
	}
	e.addFreeInodes(g.desc, -1)
	return nil
}

// inodeUsed tells whether an inode is marked used.
func (e *editor) inodeUsed(ino uint32) (bool, error) {
	group, bit := uint64(ino-1)/uint64(e.fs.sb.inodesPerGroup), uint64(ino-1)%uint64(e.fs.sb.inodesPerGroup)
	g, err := e.inodeBitmap(group)
	if err != nil {
		return false, err
	}
	return bitmapBit(g.inodes, bit), nil
}

// freeInode marks an inode free. One that is free already is left so.
func (e *editor) freeInode(ino uint32, directory bool) error {
	sb := e.fs.sb
	if ino < sb.firstIno || ino > sb.inodes {
		return corrupt("inode %d of %d cannot be freed", ino, sb.inodes)
	}
	group, bit := uint64(ino-1)/uint64(sb.inodesPerGroup), uint64(ino-1)%uint64(sb.inodesPerGroup)
	g, err := e.inodeBitmap(group)
	if err != nil {
		return err
	}
	if setBits(g.inodes, bit, 1, false) == 0 {
		return nil
	}
	e.addFreeInodes(g.desc, 1)
	if directory && e.field(g.desc, 0x10, 0x30) > 0 {
		e.addUsedDirs(g.desc, -1)
	}
	return nil
}

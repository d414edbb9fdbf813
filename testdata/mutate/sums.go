package main

import "slices"

// fix makes the checksums of what was touched fit, as far as the structures still say where
// they are: those of directories and extents first, as an inode's do not depend on them.
func (g *geometry) fix(c *changed, s *seed) error {
	units := touchedUnits(c, s.unit)
	for _, n := range units {
		if err := g.fixBlock(c, n, s.owners[n]); err != nil {
			return err
		}
	}
	if err := g.fixQuick(c, units); err != nil {
		return err
	}
	for _, page := range c.touched() {
		if err := g.fixPage(c, page*pageBytes); err != nil {
			return err
		}
	}
	return nil
}

// touchedUnits are the numbers of the units that were changed.
func touchedUnits(c *changed, unit int64) []int64 {
	var units []int64
	for _, page := range c.touched() {
		for n := page * pageBytes / unit; n*unit < (page+1)*pageBytes; n++ {
			units = append(units, n)
		}
	}
	return slices.Compact(units)
}

// fixBlock makes the checksum within a block of an inode's or of the journal fit.
func (g *geometry) fixBlock(c *changed, n int64, o owner) error {
	b, err := c.get(n*g.block, int(g.block))
	if err != nil {
		return err
	}
	switch o.area {
	case "directories", "extents":
		seed, err := g.inodeSeed(c, int64(o.ino))
		if err != nil {
			return err
		}
		fixOwned(b, seed)
	case "attributes":
		if le.Uint32(b) != xattrMagic { // a value in an inode of its own
			return nil
		}
		number := append(u32(n), u32(n>>32)...)
		le.PutUint32(b[0x10:], crc(crc(g.seed, number), without(b, span{0x10, 0x14})))
	case logArea:
		g.fixLog(c, b)
	default:
		return nil
	}
	return c.put(n*g.block, b)
}

// inodeSeed is what the checksums of an inode's blocks begin with.
func (g *geometry) inodeSeed(c *changed, ino int64) (uint32, error) {
	generation, err := c.get(g.inode(ino)+0x64, 4)
	return crc(crc(g.seed, u32(ino)), generation), err
}

// fixOwned does a block of an inode's: a node of its extents, or a directory's.
func fixOwned(b []byte, seed uint32) {
	if le.Uint16(b) == extentMagic {
		if at := 12 + 12*int(le.Uint16(b[4:])); at+4 <= len(b) {
			le.PutUint32(b[at:], crc(seed, b[:at]))
		}
	} else if at, ok := indexAt(b); ok {
		fixIndex(b, at, seed)
	} else {
		fixLeaf(b, seed)
	}
}

// fixLeaf does a block of entries, which ends in an entry that holds the checksum.
func fixLeaf(b []byte, seed uint32) {
	le.PutUint32(b[len(b)-4:], crc(seed, b[:len(b)-12]))
}

// indexAt is where the index of a directory begins in one of its blocks; not ok for a block of entries. An inner
// one is an unused entry as long as the block, and the root's ".." goes on to the block's end, where other blocks
// have their checksum. What follows the index need not tell: the root keeps there what it had as a block of entries.
func indexAt(b []byte) (at int, ok bool) {
	switch {
	case le.Uint32(b) == 0 && int(le.Uint16(b[4:])) == len(b):
		return 8, true
	case le.Uint16(b[4:]) == 12 && int(le.Uint16(b[16:])) == len(b)-12:
		return 0x20, true
	}
	return 0, false
}

// fixIndex does a block of a directory's index, whose checksum follows the room for its entries.
func fixIndex(b []byte, at int, seed uint32) {
	limit, count := int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:]))
	tail := at + 8*limit
	if count > limit || tail+8 > len(b) {
		return
	}
	sum := crc(seed, b[:at+8*count])
	sum = crc(crc(sum, b[tail:tail+4]), make([]byte, 4))
	le.PutUint32(b[tail+4:], sum)
}

// fixLog does a block of the journal's own: its superblock, a list of blocks, a commit.
// Documentation/filesystems/ext4/journal.rst has them; the numbers are big-endian.
func (g *geometry) fixLog(c *changed, b []byte) {
	head, err := c.get(g.journal[0]*g.block, 1024)
	if err != nil || be.Uint32(head[0x28:])&0x18 == 0 { // neither csum v2 nor v3
		return
	}
	seed := crc(^uint32(0), head[0x30:0x40])
	switch be.Uint32(b[4:]) {
	case logSuperV1, logSuperV2:
		be.PutUint32(b[0xfc:], crc(^uint32(0), without(b[:1024], span{0xfc, 0x100})))
	case logDescriptor, logRevoke:
		end := len(b) - 4
		be.PutUint32(b[end:], crc(seed, without(b, span{end, end + 4})))
	case logCommit:
		be.PutUint32(b[0x10:], crc(seed, without(b, span{0x10, 0x14})))
	}
}

// fixQuick makes the checksums of fast commits fit: each ends in a tag that has the sum of all
// tags since the last one (struct ext4_fc_tl and ext4_fc_tail; little-endian).
func (g *geometry) fixQuick(c *changed, units []int64) error {
	quick := g.journal[len(g.journal)-g.quick:]
	if !slices.ContainsFunc(quick, func(n int64) bool { return slices.Contains(units, n) }) {
		return nil
	}
	var sum uint32
	for _, n := range quick {
		b, err := c.get(n*g.block, int(g.block))
		if err != nil {
			return err
		}
		for at := 0; at+4 <= len(b); {
			kind, length := le.Uint16(b[at:]), int(le.Uint16(b[at+2:]))
			end := at + 4 + length
			if kind == 0 || kind > 9 || end > len(b) {
				return nil // the last one, or one that leads nowhere
			}
			if kind != quickTail {
				sum = crc(sum, b[at:end])
				at = end
				continue
			}
			if length < 8 {
				return nil
			}
			le.PutUint32(b[at+8:], crc(sum, b[at:at+8]))
			sum = 0
			at = end
		}
		if err := c.put(n*g.block, b); err != nil {
			return err
		}
	}
	return nil
}

// fixPage makes the checksums of inodes, group descriptors and the superblock in a page fit.
func (g *geometry) fixPage(c *changed, off int64) error {
	for group, table := range g.tables {
		from, to := table*g.block, table*g.block+g.inodesPerGroup*g.inodeBytes
		for at := max(from, off-off%g.inodeBytes); at < min(to, off+pageBytes); at += g.inodeBytes {
			if err := g.fixInode(c, int64(group)*g.inodesPerGroup+(at-from)/g.inodeBytes+1, at); err != nil {
				return err
			}
		}
	}
	sb, err := c.get(superAt, superLen)
	if err != nil {
		return err
	}
	for group := range g.groups {
		at := g.descriptor(group, sb)
		if at+g.descBytes <= off || at >= off+pageBytes || at < superAt+superLen {
			continue
		}
		b, err := c.get(at, int(g.descBytes))
		if err != nil {
			return err
		}
		le.PutUint16(b[0x1e:], uint16(crc(crc(g.seed, u32(group)), without(b, span{0x1e, 0x20}))))
		if err := c.put(at, b); err != nil {
			return err
		}
	}
	if off > superAt+superLen || off+pageBytes <= superAt {
		return nil
	}
	return c.put(superAt+0x3fc, u32(int64(crc(^uint32(0), sb[:0x3fc]))))
}

func (g *geometry) fixInode(c *changed, ino, at int64) error {
	b, err := c.get(at, int(g.inodeBytes))
	if err != nil || le.Uint16(b) == 0 { // not in use
		return err
	}
	places := []span{{0x7c, 0x7e}}
	wide := len(b) > 128 && le.Uint16(b[0x80:]) >= 4
	if wide {
		places = append(places, span{0x82, 0x84})
	}
	sum := crc(crc(crc(g.seed, u32(ino)), b[0x64:0x68]), without(b, places...))
	le.PutUint16(b[0x7c:], uint16(sum))
	if wide {
		le.PutUint16(b[0x82:], uint16(sum>>16))
	}
	return c.put(at, b)
}

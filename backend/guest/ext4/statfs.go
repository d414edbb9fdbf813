package ext4

import (
	"fmt"
	"sort"

	"domfs/backend"
)

const (
	nameMax = 255 // bytes

	// maxSpanGroups bounds the memory of bigallocOverhead: 64 bytes for a group. A PiB
	// with clusters of 64 KiB has half as many.
	maxSpanGroups = 1 << 20

	// The kernel keeps 2 % of the clusters, at most 4096, for writes that cannot fail.
	reservedClustersMax   = 4096
	reservedClustersShare = 50
)

// StatFS is what statfs(2) says of the kernel's mount. The first call reads the group
// descriptors, the later ones nothing.
func (fs *FS) StatFS() (backend.FSStat, error) {
	fs.statMu.Lock()
	defer fs.statMu.Unlock()
	if fs.stat == nil {
		s, err := fs.computeStat()
		if err != nil {
			return backend.FSStat{}, err
		}
		fs.stat = &s
	}
	return *fs.stat, nil
}

func (fs *FS) computeStat() (backend.FSStat, error) {
	sb := fs.sb
	overhead, err := fs.overhead() // first: it refuses before all descriptors are read
	if err != nil {
		return backend.FSStat{}, err
	}
	var freeClusters, freeInodes uint64
	for g := range sb.groups {
		if perBlock := sb.descsPerBlock(); g%perBlock == 0 {
			i := g / perBlock
			fs.readahead(sb.groupDescBlock(i), int(min(sb.groupDescRun(i), readaheadBytes)))
		}
		b, err := fs.rawGroup(g)
		if err != nil {
			return backend.FSStat{}, err
		}
		desc := fs.parseGroup(b)
		freeClusters += desc.freeClusters
		freeInodes += desc.freeInodes
	}
	s := backend.FSStat{
		BlockSize:  uint32(sb.blockBytes()),
		BlocksFree: min(freeClusters<<sb.clusterBits, sb.blocks),
		Files:      uint64(sb.inodes),
		FilesFree:  min(freeInodes, uint64(sb.inodes)),
		NameLen:    nameMax,
	}
	if overhead <= sb.blocks {
		s.Blocks = sb.blocks - overhead
	}
	kept := min(sb.reservedBlocks, sb.blocks)
	if sb.incompat&incompatExtents != 0 {
		kept += min(sb.blocks>>sb.clusterBits/reservedClustersShare, reservedClustersMax) << sb.clusterBits
	}
	if s.BlocksFree > kept {
		s.BlocksAvail = s.BlocksFree - kept
	}
	return s, nil
}

// overhead counts the blocks that no file can have, as the kernel does.
func (fs *FS) overhead() (uint64, error) {
	sb := fs.sb
	var clusters uint64
	switch {
	case sb.clusterBits == 0:
		clusters = uint64(sb.firstDataBlock)
		for g := range sb.groups {
			clusters += sb.inodeTableBlocks() + 2 + sb.superBlocks(g)
		}
	case sb.overhead != 0 && uint64(sb.overhead) <= sb.blocks:
		return uint64(sb.overhead) << sb.clusterBits, nil
	case sb.groups > maxSpanGroups:
		return 0, fmt.Errorf("statfs: a superblock that does not say its overhead, with %d groups, of which at most %d are counted: %w", sb.groups, maxSpanGroups, backend.ErrUnsupported)
	default:
		n, err := fs.bigallocOverhead()
		if err != nil {
			return 0, err
		}
		clusters = n
	}
	if sb.compat&compatHasJournal != 0 && sb.journalIno != 0 && sb.journalIno <= sb.inodes {
		var in inode
		if err := fs.readInode(sb.journalIno, &in); err == nil {
			blocks := in.size >> sb.blockBits
			clusters += (blocks + 1<<sb.clusterBits - 1) >> sb.clusterBits
		}
	}
	return clusters << sb.clusterBits, nil
}

// superBlocks counts a group's blocks of superblock, descriptors and the room kept for
// more of these.
func (s *super) superBlocks(group uint64) uint64 {
	n := s.descBlocksIn(group)
	if s.hasSuper(group) {
		n += 1 + uint64(s.reservedGDT)
	}
	return n
}

// hasSuper tells whether a group begins with a copy of the superblock.
func (s *super) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return group == uint64(s.backupGroups[0]) || group == uint64(s.backupGroups[1])
	case group == 1 || s.roCompat&roCompatSparseSuper == 0:
		return true
	case group%2 == 0:
		return false
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// bigallocOverhead counts the clusters that metadata lie in, for a superblock that does
// not say.
func (fs *FS) bigallocOverhead() (uint64, error) {
	sb := fs.sb
	type span struct{ first, last uint64 } // clusters
	var spans []span
	add := func(block, blocks uint64) {
		if blocks > 0 && block < sb.blocks {
			spans = append(spans, span{block >> sb.clusterBits, (block + blocks - 1) >> sb.clusterBits})
		}
	}
	for g := range sb.groups {
		b, err := fs.rawGroup(g)
		if err != nil {
			return 0, err
		}
		desc := fs.parseGroup(b)
		add(desc.blockBitmap, 1)
		add(desc.inodeBitmap, 1)
		add(desc.inodeTable, sb.inodeTableBlocks())
		// The kernel does not count the room for more descriptors here.
		supers := sb.descBlocksIn(g)
		if sb.hasSuper(g) {
			supers++
		}
		add(sb.groupStart(g), min(supers, uint64(sb.blocksPerGroup)))
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i].first < spans[j].first })
	var count, next uint64
	for _, s := range spans {
		if first := max(s.first, next); s.last >= first {
			count += s.last - first + 1
			next = s.last + 1
		}
	}
	return count, nil
}

package ext4

import (
	"encoding/binary"
	"fmt"
	"math"

	"domfs/backend"
)

// Flags of an inode: Documentation/filesystems/ext4/inodes.rst, i_flags.
const (
	inodeEncrypt    = 0x800
	inodeIndex      = 0x1000
	inodeHugeFile   = 0x40000
	inodeExtents    = 0x80000
	inodeEAInode    = 0x200000
	inodeInlineData = 0x10000000
	inodeCasefold   = 0x40000000
)

const (
	typeMask   = 0o170000
	blockArray = 60 // bytes of i_block

	nsecMax = 999_999_999
)

// inode is a parsed inode.
type inode struct {
	ino        uint32
	seed       uint32 // what the checksums of its blocks begin with
	generation uint32
	mode       uint16
	links      uint16
	flags      uint32
	size       uint64 // bytes, less than 1<<63
	blocks512  int64
	xattrBlock uint64
	extra      int // bytes beyond the first 128 that are fields
	block      [blockArray]byte
	attr       backend.Attr
	inline     bool            // its content is in the inode, in block and inlineRest
	inlineRest []byte          // of raw
	raw        []byte          // of the cache: not to be changed
	done       <-chan struct{} // ends a walk of the directory; nil for never
}

func (in *inode) fileType() backend.FileType { return backend.FileType(in.mode & typeMask) }

// checkIno refuses numbers that no name leads to.
func (fs *FS) checkIno(ino uint64) (uint32, error) {
	if ino == 0 || ino > uint64(fs.sb.inodes) {
		return 0, fmt.Errorf("inode %d: the filesystem has inodes 1 to %d: %w", ino, fs.sb.inodes, backend.ErrStale)
	}
	if fs.sb.reserved(uint32(ino)) {
		return 0, fmt.Errorf("inode %d is reserved: %w", ino, backend.ErrStale)
	}
	return uint32(ino), nil
}

// inode reads an inode that a user asks for.
func (fs *FS) inode(ino uint64, in *inode) error {
	n, err := fs.checkIno(ino)
	if err != nil {
		return err
	}
	if err := fs.readInode(n, in); err != nil {
		return err
	}
	if in.flags&inodeEAInode != 0 {
		return corrupt("inode %d holds the value of an extended attribute, and is no file", ino)
	}
	return nil
}

// rawInode returns the bytes of an inode. Whole runs of the inode table are read, so
// that a directory's inodes take few reads.
func (fs *FS) rawInode(ino uint32) ([]byte, error) {
	sb := fs.sb
	table, err := fs.inodeTable(uint64(ino-1) / uint64(sb.inodesPerGroup))
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	at := uint64(ino-1) % uint64(sb.inodesPerGroup) * uint64(sb.inodeBytes)
	block := at >> sb.blockBits
	run := uint64(max(1, inodeRunBytes>>sb.blockBits))
	first := block / run * run
	key := cacheKey{table + first, int(min(run, sb.inodeTableBlocks()-first))}
	b := fs.cache.lookup(key)
	if b == nil && key.n > 1 {
		if whole := fs.runs.firstTime(key.block); whole {
			b, _ = fs.blocks(key.block, key.n)
		}
		if b == nil {
			// Read before, or part of it cannot be read.
			first, key = block, cacheKey{table + block, 1}
		}
	}
	if b == nil {
		if b, err = fs.blocks(key.block, key.n); err != nil {
			return nil, fmt.Errorf("inode %d: %w", ino, err)
		}
	}
	at -= first << sb.blockBits
	return b.data[at : at+uint64(sb.inodeBytes)], nil
}

// readInode parses an inode, which may be a reserved one. One that is not in use is
// ErrStale.
func (fs *FS) readInode(ino uint32, in *inode) error {
	b, err := fs.rawInode(ino)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	sb := fs.sb
	in.ino, in.raw = ino, b
	in.mode, in.links = le.Uint16(b[0x0:]), le.Uint16(b[0x1a:])
	if in.mode == 0 || in.links == 0 {
		return fmt.Errorf("inode %d is not in use: %w", ino, backend.ErrStale)
	}
	switch in.fileType() {
	case backend.TypeFIFO, backend.TypeChar, backend.TypeDir, backend.TypeBlock, backend.TypeRegular, backend.TypeSymlink, backend.TypeSocket:
	default:
		return corrupt("inode %d: mode 0%o has no file type", ino, in.mode)
	}
	in.generation = le.Uint32(b[0x64:])
	in.extra = 0
	if len(b) > minInodeBytes {
		in.extra = int(le.Uint16(b[0x80:]))
		if in.extra%4 != 0 || in.extra > len(b)-minInodeBytes {
			return corrupt("inode %d: %d bytes of fields in an inode of %d bytes", ino, in.extra, len(b))
		}
	}
	if sb.roCompat&roCompatMetadataChecksum != 0 {
		in.seed = crc32cUint32(crc32cUint32(sb.seed, ino), in.generation)
		if err := in.verify(b); err != nil {
			return err
		}
	}
	in.flags = le.Uint32(b[0x20:])
	copy(in.block[:], b[0x28:])
	in.size = uint64(le.Uint32(b[0x4:]))
	if in.fileType() == backend.TypeRegular || sb.incompat&incompatLargeDir != 0 {
		in.size |= uint64(le.Uint32(b[0x6c:])) << 32
		if in.size > math.MaxInt64 {
			return corrupt("inode %d: size %d", ino, in.size)
		}
	}
	in.xattrBlock = uint64(le.Uint32(b[0x68:]))
	if sb.incompat&incompat64Bit != 0 {
		in.xattrBlock |= uint64(le.Uint16(b[0x76:])) << 32
	}
	in.blocks512 = int64(le.Uint32(b[0x1c:]))
	if sb.roCompat&roCompatHugeFile != 0 {
		in.blocks512 |= int64(le.Uint16(b[0x74:])) << 32
		if in.flags&inodeHugeFile != 0 {
			in.blocks512 <<= sb.blockBits - 9
		}
	}
	if in.flags&inodeCasefold != 0 && sb.incompat&incompatCasefold == 0 {
		return corrupt("inode %d has the flag casefold, in a filesystem without that feature", ino)
	}
	if err := fs.parseInline(in); err != nil {
		return err
	}
	in.parseAttr(b)
	return nil
}

// verify compares the inode's checksum.
func (in *inode) verify(b []byte) error {
	const lo, hi = 0x7c, 0x82
	le := binary.LittleEndian
	sum := crc32c(in.seed, b[:lo])
	sum = crc32c(sum, zeros[:2])
	sum = crc32c(sum, b[lo+2:minInodeBytes])
	stored, mask := uint32(le.Uint16(b[lo:])), uint32(0xffff)
	if len(b) > minInodeBytes {
		sum = crc32c(sum, b[minInodeBytes:hi])
		rest := hi
		if minInodeBytes+in.extra >= hi+2 {
			sum = crc32c(sum, zeros[:2])
			rest += 2
			stored, mask = stored|uint32(le.Uint16(b[hi:]))<<16, 0xffffffff
		}
		sum = crc32c(sum, b[rest:])
	}
	if stored != sum&mask {
		return corrupt("inode %d: checksum is 0x%08x, computed 0x%08x", in.ino, stored, sum&mask)
	}
	return nil
}

// parseAttr sets what stat(2) says.
func (in *inode) parseAttr(b []byte) {
	le := binary.LittleEndian
	in.attr = backend.Attr{
		Ino:        uint64(in.ino),
		Generation: uint64(in.generation),
		Type:       in.fileType(),
		Mode:       uint32(in.mode) & 0o7777,
		Nlink:      uint32(in.links),
		UID:        uint32(le.Uint16(b[0x2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:        uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7a:]))<<16,
		SizeBytes:  int64(in.size),
		Blocks512:  in.blocks512,
		Ctime:      in.time(b, 0x0c, 0x84),
		Mtime:      in.time(b, 0x10, 0x88),
		Atime:      in.time(b, 0x08, 0x8c),
	}
	switch {
	case in.inline && in.attr.Type == backend.TypeRegular:
		// So that no tool takes the file for one hole.
		in.attr.Blocks512 += int64((in.size + 511) / 512)
	case in.flags&inodeEncrypt != 0 && in.attr.Type == backend.TypeSymlink:
		in.attr.SizeBytes = noKeyTargetBytes(in.size)
	}
	if t := in.attr.Type; t == backend.TypeChar || t == backend.TypeBlock {
		if old := le.Uint32(in.block[0:]); old != 0 {
			in.attr.RdevMajor, in.attr.RdevMinor = old>>8&0xff, old&0xff
		} else {
			dev := le.Uint32(in.block[4:])
			in.attr.RdevMajor, in.attr.RdevMinor = dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
		}
	}
}

// time reads a time stamp: signed seconds, and where the inode has room for them two
// more bits of the seconds below 30 bits of nanoseconds.
func (in *inode) time(b []byte, at, extraAt int) backend.Time {
	le := binary.LittleEndian
	t := backend.Time{Sec: int64(int32(le.Uint32(b[at:])))}
	// Without fields of its own counted, a large inode has them all to the kernel.
	if fields := minInodeBytes + in.extra; len(b) > minInodeBytes && (in.extra == 0 && len(b) >= extraAt+4 || fields >= extraAt+4) {
		extra := le.Uint32(b[extraAt:])
		t.Sec += int64(extra&3) << 32
		t.Nsec = min(extra>>2, nsecMax)
	}
	return t
}

// Attr is stat.
func (fs *FS) Attr(ino uint64) (backend.Attr, error) {
	var in inode
	if err := fs.inode(ino, &in); err != nil {
		return backend.Attr{}, err
	}
	return in.attr, nil
}

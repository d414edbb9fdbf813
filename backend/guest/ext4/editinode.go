package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"domfs/backend"
)

// Offsets in an inode: Documentation/filesystems/ext4/inodes.rst.
const (
	inodeModeAt       = 0x0
	inodeSizeAt       = 0x4
	inodeDtimeAt      = 0x14
	inodeLinksAt      = 0x1a
	inodeBlocksAt     = 0x1c
	inodeFlagsAt      = 0x20
	inodeBlockAt      = 0x28
	inodeGenerationAt = 0x64
	inodeXattrAt      = 0x68
	inodeSizeHighAt   = 0x6c
	inodeBlocksHighAt = 0x74
	inodeXattrHighAt  = 0x76
	inodeChecksumAt   = 0x7c
	inodeExtraAt      = 0x80
	inodeCtimeAt      = 0xc
	inodeCtimeExtraAt = 0x84
)

// maxDirLinks is the number of links from which on a directory's are not counted.
const maxDirLinks = 65000

// errNotThere is for an inode that is not in use.
var errNotThere = errors.New("it is not in use")

// editedInode is an inode to be changed.
type editedInode struct {
	e   *editor
	ino uint32
	raw []byte // of the inode table's block
}

func (in *editedInode) u16(at int) uint16      { return binary.LittleEndian.Uint16(in.raw[at:]) }
func (in *editedInode) u32(at int) uint32      { return binary.LittleEndian.Uint32(in.raw[at:]) }
func (in *editedInode) put16(at int, v uint16) { binary.LittleEndian.PutUint16(in.raw[at:], v) }
func (in *editedInode) put32(at int, v uint32) { binary.LittleEndian.PutUint32(in.raw[at:], v) }
func (in *editedInode) root() []byte           { return in.raw[inodeBlockAt:][:blockArray] }
func (in *editedInode) flags() uint32          { return in.u32(inodeFlagsAt) }
func (in *editedInode) links() uint16          { return in.u16(inodeLinksAt) }
func (in *editedInode) typ() backend.FileType {
	return backend.FileType(in.u16(inodeModeAt) & typeMask)
}
func (in *editedInode) setLinks(n uint16) { in.put16(inodeLinksAt, n) }
func (in *editedInode) hasExtents() bool  { return in.flags()&inodeExtents != 0 }
func (in *editedInode) generationSeed() uint32 {
	return crc32cUint32(crc32cUint32(in.e.fs.sb.seed, in.ino), in.u32(inodeGenerationAt))
}

func (in *editedInode) size() uint64 {
	n := uint64(in.u32(inodeSizeAt))
	if in.typ() == backend.TypeRegular {
		n |= uint64(in.u32(inodeSizeHighAt)) << 32
	}
	return n
}

func (in *editedInode) setSize(n uint64) {
	in.put32(inodeSizeAt, uint32(n))
	if in.typ() == backend.TypeRegular {
		in.put32(inodeSizeHighAt, uint32(n>>32))
	}
}

func (in *editedInode) xattrBlock() uint64 {
	n := uint64(in.u32(inodeXattrAt))
	if in.e.fs.sb.incompat&incompat64Bit != 0 {
		n |= uint64(in.u16(inodeXattrHighAt)) << 32
	}
	return n
}

// sectors is i_blocks in units of 512 bytes.
func (in *editedInode) sectors() uint64 {
	n := uint64(in.u32(inodeBlocksAt))
	if in.e.fs.sb.roCompat&roCompatHugeFile != 0 {
		n |= uint64(in.u16(inodeBlocksHighAt)) << 32
		if in.flags()&inodeHugeFile != 0 {
			n <<= in.e.fs.sb.blockBits - 9
		}
	}
	return n
}

func (in *editedInode) setSectors(n uint64) {
	flags := in.flags() &^ inodeHugeFile
	if n > math.MaxUint32 && in.e.fs.sb.roCompat&roCompatHugeFile != 0 {
		if n >= 1<<48 {
			n >>= in.e.fs.sb.blockBits - 9
			flags |= inodeHugeFile
		}
	}
	in.put32(inodeFlagsAt, flags)
	in.put32(inodeBlocksAt, uint32(n))
	if in.e.fs.sb.roCompat&roCompatHugeFile != 0 {
		in.put16(inodeBlocksHighAt, uint16(n>>32))
	}
}

// setDeleted sets the time of the deletion. One of 0 were that of an inode in use.
func (in *editedInode) setDeleted() { in.put32(inodeDtimeAt, uint32(max(1, in.e.now.Unix()))) }

// addSectors changes i_blocks, which does not become negative.
func (in *editedInode) addSectors(n int64) {
	old := int64(min(in.sectors(), math.MaxInt64>>1))
	in.setSectors(uint64(max(0, old+n)))
}

// setTime sets a time stamp: its seconds and, where the inode has room for them, its
// nanoseconds.
func (in *editedInode) setTime(t time.Time, at, extraAt int) {
	in.put32(at, uint32(t.Unix()))
	if len(in.raw) > minInodeBytes && minInodeBytes+int(in.u16(inodeExtraAt)) >= extraAt+4 {
		in.put32(extraAt, uint32((t.Unix()-int64(int32(t.Unix())))>>32)&3|uint32(t.Nanosecond())<<2)
	}
}

func (in *editedInode) touchCtime() { in.setTime(in.e.now, inodeCtimeAt, inodeCtimeExtraAt) }
func (in *editedInode) touchMtime() { in.setTime(in.e.now, 0x10, 0x88) }

// seal sets the inode's checksum. It follows each change.
func (in *editedInode) seal() {
	if in.e.fs.sb.roCompat&roCompatMetadataChecksum == 0 {
		return
	}
	const hi = 0x82
	in.put16(inodeChecksumAt, 0)
	high := len(in.raw) > minInodeBytes && minInodeBytes+int(in.u16(inodeExtraAt)) >= hi+2
	if high {
		in.put16(hi, 0)
	}
	sum := crc32c(in.generationSeed(), in.raw)
	in.put16(inodeChecksumAt, uint16(sum))
	if high {
		in.put16(hi, uint16(sum>>16))
	}
}

// rawInode returns an inode's place in the inode table, whatever is in it.
func (e *editor) rawInode(ino uint32) (*editedInode, error) {
	sb := e.fs.sb
	if ino == 0 || ino > sb.inodes || sb.reserved(ino) {
		return nil, corrupt("inode %d of %d is none of a file", ino, sb.inodes)
	}
	group := uint64(ino-1) / uint64(sb.inodesPerGroup)
	d, err := e.groupView(group)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	table := d.inodeTable
	if !sb.validRun(table, sb.inodeTableBlocks()) {
		return nil, corrupt("group %d: the inode table at block %d is outside of the filesystem of %d blocks", group, table, sb.blocks)
	}
	at := uint64(ino-1) % uint64(sb.inodesPerGroup) * uint64(sb.inodeBytes)
	b, err := e.edit(table+at>>sb.blockBits, kindInodes)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	return &editedInode{e: e, ino: ino, raw: b[at&uint64(sb.blockBytes()-1):][:sb.inodeBytes]}, nil
}

// inode returns an inode that is in use, to be changed: as the kernel's iget, without
// which nothing is done to a file. orphan also allows one without links.
func (e *editor) inode(ino uint32, orphan bool) (*editedInode, error) {
	in, err := e.rawInode(ino)
	if err != nil {
		return nil, err
	}
	if mode := in.u16(inodeModeAt); in.links() == 0 && (!orphan || mode == 0) {
		return nil, fmt.Errorf("inode %d: %w", ino, errNotThere)
	}
	switch in.typ() {
	case backend.TypeFIFO, backend.TypeChar, backend.TypeDir, backend.TypeBlock, backend.TypeRegular, backend.TypeSymlink, backend.TypeSocket:
	default:
		return nil, corrupt("inode %d: mode 0%o has no file type", ino, in.u16(inodeModeAt))
	}
	parsed := inode{ino: ino, seed: in.generationSeed()}
	if len(in.raw) > minInodeBytes {
		parsed.extra = int(in.u16(inodeExtraAt))
		if parsed.extra%4 != 0 || parsed.extra > len(in.raw)-minInodeBytes {
			return nil, corrupt("inode %d: %d bytes of fields in an inode of %d bytes", ino, parsed.extra, len(in.raw))
		}
	}
	if e.fs.sb.roCompat&roCompatMetadataChecksum != 0 {
		if err := parsed.verify(in.raw); err != nil {
			return nil, err
		}
	}
	if in.size() > math.MaxInt64 {
		return nil, corrupt("inode %d: size %d", ino, in.size())
	}
	return in, nil
}

// isFastSymlink tells whether a symbolic link's target is in the inode.
func (in *editedInode) isFastSymlink() bool {
	return in.typ() == backend.TypeSymlink && in.size() < blockArray && !in.hasExtents()
}

// hasBlocks tells whether the inode maps blocks of its own.
func (in *editedInode) hasBlocks() bool {
	switch in.typ() {
	case backend.TypeRegular, backend.TypeDir:
	case backend.TypeSymlink:
		if in.isFastSymlink() {
			return false
		}
	default:
		return false
	}
	return in.flags()&inodeInlineData == 0
}

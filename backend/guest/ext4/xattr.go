package ext4

import (
	"encoding/binary"
	"fmt"

	"domfs/backend"
)

// Extended attributes: Documentation/filesystems/ext4/attributes.rst.
const (
	xattrMagic       = 0xea020000
	xattrInodeHeader = 4  // bytes
	xattrBlockHeader = 32 // bytes
	xattrEntryBytes  = 16 // without the name

	// xattrDiskMax is the size of the largest value, xattrShownMax that of the largest one that
	// Linux shows.
	xattrDiskMax  = 1 << 24 // bytes
	xattrShownMax = 1 << 16 // bytes

	xattrACLAccess  = 2
	xattrACLDefault = 3
)

// xattrPrefixes are the prefixes of names by e_name_index. What is not here the kernel
// does not show: Lustre's, inline data, the context of an encrypted file.
var xattrPrefixes = map[uint8]string{
	1:               "user.",
	xattrACLAccess:  "system.posix_acl_access",
	xattrACLDefault: "system.posix_acl_default",
	4:               "trusted.",
	6:               "security.",
	8:               "system.richacl",
	11:              "gnu.",
}

// xattr is one attribute; its slices are of the cache.
type xattr struct {
	index uint8
	name  []byte // without the prefix
	value []byte // if it is with the entry
	size  uint32 // of the value, in bytes
	inum  uint32 // of the inode that the value is in; 0 if it is with the entry
	hash  uint32 // of name and value
}

// fullName is empty for an attribute that is not shown.
func (x *xattr) fullName() string {
	prefix := xattrPrefixes[x.index]
	if prefix == "" {
		return ""
	}
	return prefix + string(x.name)
}

// ListXattr lists those in the inode, then those in the block.
func (fs *FS) ListXattr(ino uint64) ([]string, error) {
	var in inode
	if err := fs.inode(ino, &in); err != nil {
		return nil, err
	}
	var names []string
	err := fs.xattrs(&in, func(x *xattr) (bool, error) {
		if name := x.fullName(); name != "" {
			names = append(names, name)
		}
		return true, nil
	})
	return names, err
}

// Xattr is the value of one.
func (fs *FS) Xattr(ino uint64, name string) ([]byte, error) {
	var in inode
	if err := fs.inode(ino, &in); err != nil {
		return nil, err
	}
	var value []byte
	found := false
	err := fs.xattrs(&in, func(x *xattr) (bool, error) {
		if x.fullName() != name || name == "" {
			return true, nil
		}
		var err error
		if value = x.value; x.inum != 0 {
			value, err = fs.eaValue(&in, x)
		}
		switch {
		case err != nil:
		case x.index == xattrACLAccess || x.index == xattrACLDefault:
			value, err = convertACL(value)
		default:
			value = append([]byte{}, value...)
		}
		found = err == nil
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		return false, err
	})
	if err == nil && !found {
		err = fmt.Errorf("inode %d: %q: %w", ino, name, backend.ErrNoAttr)
	}
	return value, err
}

// xattrs calls f with each attribute until it returns false.
func (fs *FS) xattrs(in *inode, f func(x *xattr) (bool, error)) error {
	if body := in.xattrBody(); body != nil {
		more, err := fs.sb.walkXattrs(body, body, f)
		if err != nil {
			return fmt.Errorf("inode %d: attributes in the inode: %w", in.ino, err)
		}
		if !more {
			return nil
		}
	}
	if in.xattrBlock == 0 {
		return nil
	}
	b, err := fs.xattrBlock(in)
	if err != nil {
		return err
	}
	if _, err := fs.sb.walkXattrs(b[xattrBlockHeader:], b, f); err != nil {
		return fmt.Errorf("inode %d: attribute block %d: %w", in.ino, in.xattrBlock, err)
	}
	return nil
}

// xattrBody is the attributes in the inode, nil if there are none.
func (in *inode) xattrBody() []byte {
	at := minInodeBytes + in.extra
	if in.extra == 0 || at+xattrInodeHeader > len(in.raw) || binary.LittleEndian.Uint32(in.raw[at:]) != xattrMagic {
		return nil
	}
	return in.raw[at+xattrInodeHeader:]
}

func (fs *FS) xattrBlock(in *inode) ([]byte, error) {
	if !fs.sb.validRun(in.xattrBlock, 1) {
		return nil, corrupt("inode %d: attribute block %d of %d", in.ino, in.xattrBlock, fs.sb.blocks)
	}
	b, err := fs.blocks(in.xattrBlock, 1)
	if err != nil {
		return nil, fmt.Errorf("inode %d: attribute %w", in.ino, err)
	}
	as := checked{kind: "attributes"}
	if b.rightAs(as) {
		return b.data, nil
	}
	le := binary.LittleEndian
	if magic, n := le.Uint32(b.data), le.Uint32(b.data[8:]); magic != xattrMagic || n != 1 {
		return nil, corrupt("inode %d: attribute block %d: magic is 0x%x, not 0x%x, or %d blocks, not 1", in.ino, in.xattrBlock, magic, uint32(xattrMagic), n)
	}
	if fs.sb.roCompat&roCompatMetadataChecksum != 0 {
		const at = 0x10
		sum := crc32cUint32(crc32cUint32(fs.sb.seed, uint32(in.xattrBlock)), uint32(in.xattrBlock>>32))
		sum = crc32c(sum, b.data[:at])
		sum = crc32c(sum, zeros[:])
		sum = crc32c(sum, b.data[at+4:])
		if stored := le.Uint32(b.data[at:]); stored != sum {
			return nil, corrupt("inode %d: attribute block %d: checksum is 0x%08x, computed 0x%08x", in.ino, in.xattrBlock, stored, sum)
		}
	}
	b.setRight(as)
	return b.data, nil
}

// walkXattrs calls f with each of a list of entries. Their values lie in values, which
// the list is the end of, or in inodes of their own.
func (s *super) walkXattrs(list, values []byte, f func(x *xattr) (bool, error)) (more bool, err error) {
	le := binary.LittleEndian
	// Where the list ends, so that no value can reach into it.
	end := 0
	for {
		if len(list)-end < 4 {
			return false, corrupt("the list of entries has no end")
		}
		if le.Uint32(list[end:]) == 0 {
			break
		}
		size := xattrSize(list[end])
		if len(list)-end < size {
			return false, corrupt("the entry at byte %d of %d is too long", end, len(list))
		}
		end += size
	}
	firstValue := uint64(len(values)-len(list)) + uint64(end) + 4
	var x xattr
	for at := 0; at < end; at += xattrSize(list[at]) {
		e := list[at:]
		offset, inum, size := uint64(le.Uint16(e[2:])), le.Uint32(e[4:]), uint64(le.Uint32(e[8:]))
		x = xattr{index: e[1], name: e[xattrEntryBytes:][:e[0]], size: uint32(size), inum: inum, hash: le.Uint32(e[12:])}
		switch {
		case inum != 0 && s.incompat&incompatEAInode == 0:
			return false, corrupt("the entry at byte %d has its value in inode %d, without the feature ea_inode", at, inum)
		case inum != 0 && (inum == rootIno || inum > s.inodes || s.reserved(inum)):
			return false, corrupt("the entry at byte %d has its value in inode %d of %d", at, inum, s.inodes)
		case size > xattrDiskMax:
			return false, corrupt("the entry at byte %d has a value of %d bytes", at, size)
		case inum == 0 && size > 0:
			if offset < firstValue || size > uint64(len(values)) || offset > uint64(len(values))-size {
				return false, corrupt("the entry at byte %d has its value at %d+%d of %d", at, offset, size, len(values))
			}
			x.value = values[offset : offset+size]
		}
		if more, err := f(&x); !more || err != nil {
			return more, err
		}
	}
	return true, nil
}

// xattrSize is the length of an entry, from that of its name.
func xattrSize(nameBytes byte) int { return (xattrEntryBytes + int(nameBytes) + 3) &^ 3 }

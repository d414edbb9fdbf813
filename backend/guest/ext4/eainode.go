package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"domfs/backend"
)

// Values in inodes of their own, the feature ea_inode: Documentation/filesystems/ext4/eainode.rst.
// Such an inode holds the value's hash in place of its atime; or, made by Lustre, no hash, but its owner's
// number in place of its mtime, and its owner's generation.

// eaValue reads the value of an attribute that has it in an inode.
func (fs *FS) eaValue(owner *inode, x *xattr) ([]byte, error) {
	if x.size > xattrShownMax {
		return nil, fmt.Errorf("a value of %d bytes, where Linux shows at most %d: %w", x.size, xattrShownMax, backend.ErrUnsupported)
	}
	var in inode
	if err := fs.readInode(x.inum, &in); errors.Is(err, backend.ErrStale) {
		return nil, corrupt("its value is in inode %d, which is not in use", x.inum)
	} else if err != nil {
		return nil, err
	}
	switch {
	case in.flags&inodeEAInode == 0 || in.fileType() != backend.TypeRegular || in.ino == owner.ino:
		return nil, corrupt("its value is in inode %d, which is not for that", x.inum)
	case in.xattrBody() != nil || in.xattrBlock != 0:
		return nil, corrupt("its value is in inode %d, which has attributes itself", x.inum)
	case in.size != uint64(x.size):
		return nil, corrupt("its value of %d bytes is in inode %d, which has %d", x.size, x.inum, in.size)
	}
	value := make([]byte, x.size)
	bits := fs.sb.blockBits
	for at := uint64(0); at < in.size; {
		r, err := fs.mapRun(&in, at>>bits)
		if err != nil {
			return nil, err
		}
		if r.state != runWritten {
			return nil, corrupt("its value is in inode %d, whose block %d was not written", x.inum, at>>bits)
		}
		end := min(in.size, r.end()<<bits)
		if err := fs.readAt(value[at:end], int64((r.phys+at>>bits-r.logical)<<bits)); err != nil {
			return nil, fmt.Errorf("inode %d: %w", x.inum, err)
		}
		at = end
	}
	const atime, mtime = 0x8, 0x10
	le := binary.LittleEndian
	stored := le.Uint32(in.raw[atime:])
	if x.hash != stored && le.Uint32(in.raw[mtime:]) == owner.ino && in.generation == owner.generation {
		return value, nil // of Lustre
	}
	hash := crc32c(fs.sb.seed, value)
	if hash != stored {
		return nil, corrupt("its value is in inode %d, which has the hash 0x%08x, computed 0x%08x", x.inum, stored, hash)
	}
	// Kernels of old took the bytes of names for signed.
	if of := xattrHash(x.name, hash, false); of != x.hash && xattrHash(x.name, hash, true) != x.hash {
		return nil, corrupt("its entry has the hash 0x%08x, computed 0x%08x", x.hash, of)
	}
	return value, nil
}

// xattrHash is what an entry has of its name and of its value's hash.
func xattrHash(name []byte, value uint32, signed bool) (hash uint32) {
	for _, c := range name {
		hash = hash<<5 ^ hash>>27 ^ nameByte(c, signed)
	}
	return hash<<16 ^ hash>>16 ^ value
}

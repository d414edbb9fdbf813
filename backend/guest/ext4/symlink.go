package ext4

import (
	"bytes"
	"fmt"

	"domfs/backend"
)

// Readlink is the target of a symbolic link: ErrInvalid for what is none.
func (fs *FS) Readlink(ino uint64) ([]byte, error) {
	var in inode
	if err := fs.inode(ino, &in); err != nil {
		return nil, err
	}
	if in.fileType() != backend.TypeSymlink {
		return nil, fmt.Errorf("inode %d is not a symbolic link: %w", ino, backend.ErrInvalid)
	}
	if err := in.readable(); err != nil {
		return nil, err
	}
	// A short target lies in the inode. It has no blocks then, but that of its attributes.
	var xattrBlocks512 int64
	if in.xattrBlock != 0 {
		xattrBlocks512 = 1 << (fs.sb.blockBits + fs.sb.clusterBits - 9)
	}
	var target []byte
	if in.blocks512 == xattrBlocks512 {
		if in.size == 0 || in.size >= blockArray {
			return nil, corrupt("inode %d: a symbolic link of %d bytes in an inode that has room for %d", ino, in.size, blockArray-1)
		}
		target = in.block[:in.size]
	} else {
		if in.size == 0 || in.size >= uint64(fs.sb.blockBytes()) {
			return nil, corrupt("inode %d: a symbolic link of %d bytes in a block of %d", ino, in.size, fs.sb.blockBytes())
		}
		r, err := fs.mapRun(&in, 0)
		if err != nil {
			return nil, err
		}
		if r.state != runWritten || r.logical != 0 {
			return nil, corrupt("inode %d: the symbolic link has no block", ino)
		}
		b, err := fs.blocks(r.phys, 1)
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", ino, err)
		}
		target = b.data[:in.size]
	}
	if i := bytes.IndexByte(target, 0); i >= 0 {
		return nil, corrupt("inode %d: the symbolic link has a NUL at byte %d of %d", ino, i, in.size)
	}
	return bytes.Clone(target), nil
}

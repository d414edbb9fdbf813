package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"domfs/backend"
)

// Readlink is the target of a symbolic link: ErrInvalid for what is none. One that is
// encrypted is shown as the kernel does without its key.
func (fs *FS) Readlink(ino uint64) ([]byte, error) {
	var in inode
	if err := fs.inode(ino, &in); err != nil {
		return nil, err
	}
	if in.fileType() != backend.TypeSymlink {
		return nil, fmt.Errorf("inode %d is not a symbolic link: %w", ino, backend.ErrInvalid)
	}
	room, err := fs.targetRoom(&in)
	if err != nil {
		return nil, err
	}
	if in.size == 0 || in.size >= uint64(len(room)) {
		return nil, corrupt("inode %d: a symbolic link of %d bytes where there is room for %d", ino, in.size, len(room)-1)
	}
	target := room[:in.size]
	if in.flags&inodeEncrypt != 0 {
		return in.noKeyTarget(target)
	}
	if i := bytes.IndexByte(target, 0); i >= 0 {
		return nil, corrupt("inode %d: the symbolic link has a NUL at byte %d of %d", ino, i, in.size)
	}
	return bytes.Clone(target), nil
}

// targetRoom is where a target lies, with a byte more than it can have.
func (fs *FS) targetRoom(in *inode) ([]byte, error) {
	switch {
	case in.inline:
		return append(in.inlineData(), 0), nil
	case fs.shortTarget(in):
		return in.block[:], nil
	}
	r, err := fs.mapRun(in, 0)
	if err != nil {
		return nil, err
	}
	if r.state != runWritten || r.logical != 0 {
		return nil, corrupt("inode %d: the symbolic link has no block", in.ino)
	}
	b, err := fs.blocks(r.phys, 1)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", in.ino, err)
	}
	return b.data, nil
}

// shortTarget tells whether a target lies in the inode's i_block.
func (fs *FS) shortTarget(in *inode) bool {
	if fs.sb.incompat&incompatEAInode != 0 {
		// The inodes of its attributes count as blocks, too.
		return in.size > 0 && in.size < blockArray
	}
	// It has no blocks then, but that of its attributes.
	var xattrBlocks512 int64
	if in.xattrBlock != 0 {
		xattrBlocks512 = 1 << (fs.sb.blockBits + fs.sb.clusterBits - 9)
	}
	return in.blocks512 == xattrBlocks512
}

// noKeyTarget is what is shown of an encrypted target: a length, and the ciphertext.
func (in *inode) noKeyTarget(target []byte) ([]byte, error) {
	if len(target) < targetHeader+minCipherBytes || int(binary.LittleEndian.Uint16(target)) != len(target)-targetHeader {
		return nil, corrupt("inode %d: an encrypted symbolic link of %d bytes that does not hold so many", in.ino, len(target))
	}
	return []byte(noKeyName(0, 0, target[targetHeader:])), nil
}

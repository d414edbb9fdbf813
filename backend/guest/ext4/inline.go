package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"domfs/backend"
)

// Inline data: Documentation/filesystems/ext4/inlinedata.rst. Content begins in i_block, and goes on
// in the value of the attribute system.data in the inode.
const (
	xattrSystem    = 7 // the index of system.data, which is not shown
	inlineDataName = "data"
	inlineDotDot   = 4 // bytes of a directory's parent, before its entries in i_block
)

// parseInline finds the content that is in the inode. As to the kernel, an inode with the
// flag but without the attribute has its content in blocks.
func (fs *FS) parseInline(in *inode) error {
	in.inline, in.inlineRest = false, nil
	if in.flags&inodeInlineData == 0 {
		return nil
	}
	if in.flags&inodeExtents != 0 {
		return corrupt("inode %d has the flags of both inline data and extents", in.ino)
	}
	body := in.xattrBody()
	if body == nil {
		return nil
	}
	_, err := fs.sb.walkXattrs(body, body, func(x *xattr) (bool, error) {
		if x.index != xattrSystem || string(x.name) != inlineDataName {
			return true, nil
		}
		if x.inum != 0 {
			return false, corrupt("inline data in inode %d", x.inum)
		}
		in.inline, in.inlineRest = true, x.value
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("inode %d: attributes in the inode: %w", in.ino, err)
	}
	return nil
}

// inlineData is a copy of an inline file's or symbolic link's content, at most its size.
func (in *inode) inlineData() []byte {
	data := bytes.Join([][]byte{in.block[:], in.inlineRest}, nil)
	return data[:min(uint64(len(data)), in.size)]
}

// readInline is ReadAt of an inline file.
func (f *file) readInline(p []byte, off int64) (n int, err error) {
	if off >= f.Size() {
		return 0, io.EOF
	}
	if rest := f.Size() - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	if off < int64(len(f.data)) {
		n = copy(p, f.data[off:])
	}
	clear(p[n:])
	return len(p), err
}

// seekInline finds data and holes of an inline file: what is in the inode is data. After that
// lseek(2) of some kernels fails with ENOENT.
func (f *file) seekInline(off int64, data bool) (int64, error) {
	end := int64(len(f.data))
	switch {
	case !data:
		return max(off, end), nil
	case off < end:
		return off, nil
	}
	return 0, backend.ErrRange
}

// inlineParent is the parent of an inline directory, which has no entries "." and "..".
func (in *inode) inlineParent(sb *super) (uint64, error) {
	parent := binary.LittleEndian.Uint32(in.block[:])
	if parent == 0 || parent > sb.inodes {
		return 0, corrupt("inode %d: the directory's parent is inode %d of %d", in.ino, parent, sb.inodes)
	}
	return uint64(parent), nil
}

// walkInlineDir is walkDir of an inline directory. A place is that in i_block and the
// attribute's value together; no entry is part of both.
func (fs *FS) walkInlineDir(in *inode, from uint64, f func(e *dirent, name string, next uint64) bool) error {
	var e dirent
	for _, part := range []struct {
		start uint64
		b     []byte
	}{{inlineDotDot, in.block[inlineDotDot:]}, {blockArray, in.inlineRest}} {
		for at := 0; at < len(part.b); at += e.length {
			var err error
			if e, err = fs.dirent(part.b, at); err != nil {
				return fmt.Errorf("inode %d: inline directory, from its byte %d on: %w", in.ino, part.start, err)
			}
			place := part.start + uint64(at)
			if e.ino != 0 && place >= from && !f(&e, string(e.name), place+uint64(e.length)) {
				return nil
			}
		}
	}
	return nil
}

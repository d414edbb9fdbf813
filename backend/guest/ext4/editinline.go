package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"domfs/backend"
)

// Directories in their inodes: they are changed as the kernel does it, list by list, and
// move to a block when they have no more room.

// attrs is the inode as its attributes are read: inlineRest and xattrBody are of raw, and can be changed.
func (in *editedInode) attrs() (*inode, error) {
	x := &inode{ino: in.ino, flags: in.flags(), raw: in.raw}
	if len(in.raw) > minInodeBytes {
		x.extra = int(in.u16(inodeExtraAt))
	}
	return x, in.e.fs.parseInline(x)
}

// inlineLists are the entries of a directory that has them in the inode; ok is false for others.
func (in *editedInode) inlineLists() (lists [2]entryList, ok bool, err error) {
	x, err := in.attrs()
	if err != nil || !x.inline {
		return lists, false, err
	}
	return [2]entryList{{b: in.root()[inlineDotDot:]}, {b: x.inlineRest}}, true, in.e.step()
}

// addInline adds an entry to a directory that is in the inode: first to the list in i_block, then
// to that in the attribute, which is made as large as can be when it is first needed. done is false
// for a directory that has blocks, or has got one now.
func (in *editedInode) addInline(n newName) (done bool, err error) {
	lists, ok, err := in.inlineLists()
	if err != nil || !ok {
		return false, err
	}
	if done, err = in.addTo(lists[0], n); done || err != nil {
		return done, err
	}
	if len(lists[1].b) == 0 {
		if lists[1].b, err = in.growInline(); err != nil {
			return false, err
		}
	}
	if len(lists[1].b) != 0 {
		if done, err = in.addTo(lists[1], n); done || err != nil {
			return done, err
		}
	}
	return false, in.moveToBlock()
}

// inlineAttr is where the attribute of inline data lies in an inode's attributes.
type inlineAttr struct {
	body      []byte
	at        int // of its entry
	end       int // of the list of entries, which 4 bytes of zeros follow
	lowest    int // of all values
	valueAt   int
	valueSize int // with its padding
}

// inlineAttr finds it. All attributes are found right first.
func (in *editedInode) inlineAttr() (a inlineAttr, err error) {
	x, err := in.attrs()
	if err != nil {
		return a, err
	}
	a.body = x.xattrBody()
	if _, err := in.e.fs.sb.walkXattrs(a.body, a.body, func(*xattr) (bool, error) { return true, nil }); err != nil {
		return a, fmt.Errorf("inode %d: attributes in the inode: %w", in.ino, err)
	}
	le, found := binary.LittleEndian, false
	a.lowest = len(a.body)
	for ; le.Uint32(a.body[a.end:]) != 0; a.end += xattrSize(a.body[a.end]) {
		e := a.body[a.end:]
		offset, size := int(le.Uint16(e[2:])), int(le.Uint32(e[8:]))
		if le.Uint32(e[4:]) == 0 && size > 0 {
			a.lowest = min(a.lowest, offset)
		}
		if !found && e[1] == xattrSystem && string(e[xattrEntryBytes:][:e[0]]) == inlineDataName {
			found, a.at = true, a.end
			if size > 0 {
				a.valueAt, a.valueSize = offset, (size+3)&^3
			}
		}
	}
	if !found || a.valueAt+a.valueSize > len(a.body) {
		return a, corrupt("inode %d: the attribute of inline data is not right", in.ino)
	}
	return a, nil
}

// growInline gives the attribute, whose value is empty, all the room that the inode has, and
// returns that with an unused entry in it: nothing if there is too little.
func (in *editedInode) growInline() ([]byte, error) {
	a, err := in.inlineAttr()
	if err != nil {
		return nil, err
	}
	room := (a.lowest - a.end - 4) &^ 3
	if room <= direntMin || a.valueSize != 0 {
		return nil, nil
	}
	le := binary.LittleEndian
	value := a.body[a.lowest-room : a.lowest]
	clear(value)
	in.e.fs.putRecordBytes(value[4:], room)
	le.PutUint16(a.body[a.at+2:], uint16(a.lowest-room))
	le.PutUint32(a.body[a.at+8:], uint32(room))
	in.setSize(uint64(blockArray + room))
	in.seal()
	return value, nil
}

// dropInline takes the attribute away, and the flag.
func (in *editedInode) dropInline() error {
	a, err := in.inlineAttr()
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if a.valueSize > 0 {
		copy(a.body[a.lowest+a.valueSize:], a.body[a.lowest:a.valueAt])
		clear(a.body[a.lowest : a.lowest+a.valueSize])
		for at := 0; at < a.end; at += xattrSize(a.body[at]) {
			e := a.body[at:]
			if offset := int(le.Uint16(e[2:])); le.Uint32(e[4:]) == 0 && le.Uint32(e[8:]) > 0 && offset < a.valueAt {
				le.PutUint16(e[2:], uint16(offset+a.valueSize))
			}
		}
	}
	size := xattrSize(a.body[a.at])
	copy(a.body[a.at:a.end], a.body[a.at+size:a.end])
	clear(a.body[a.end-size : a.end])
	if le.Uint32(a.body) == 0 { // there are no others
		clear(in.raw[minInodeBytes+int(in.u16(inodeExtraAt)):][:xattrInodeHeader])
	}
	clear(in.root())
	flags := in.flags() &^ inodeInlineData
	if in.e.fs.sb.incompat&incompatExtents != 0 {
		flags |= inodeExtents
		extentNode(in.root()).init(extentRootRoom, 0)
	}
	in.put32(inodeFlagsAt, flags)
	in.seal()
	return nil
}

// moveToBlock moves the entries of a directory from the inode to a block.
func (in *editedInode) moveToBlock() error {
	x, err := in.attrs()
	if err != nil {
		return err
	}
	data := bytes.Join([][]byte{in.root(), x.inlineRest}, nil)
	parent, list := binary.LittleEndian.Uint32(data), data[inlineDotDot:]
	if err := in.entries(entryList{b: list}, func(int, dirent) bool { return true }); err != nil {
		return err
	}
	if direntBytes(1)+direntBytes(2)+len(list) > in.e.fs.sb.blockBytes()-in.e.fs.sb.dirTail() {
		return corrupt("inode %d: an inline directory of %d bytes", in.ino, len(data))
	}
	if err := in.dropInline(); err != nil {
		return err
	}
	in.setSize(0)
	_, b, err := in.appendBlock()
	if err != nil {
		return err
	}
	at := in.putDots(b, parent)
	in.stretch(b, at+copy(b[at:], list))
	in.sealLeaf(b)
	return nil
}

// initInlineDir makes a new directory empty that is in the inode; done is false for others.
func (in *editedInode) initInlineDir(parent uint32) (done bool, err error) {
	lists, ok, err := in.inlineLists()
	if err != nil || !ok || in.typ() != backend.TypeDir {
		return false, err
	}
	binary.LittleEndian.PutUint32(in.root(), parent)
	clear(lists[0].b)
	in.e.fs.putRecordBytes(lists[0].b[4:], len(lists[0].b))
	in.setLinks(2)
	in.setSize(blockArray)
	in.seal()
	return true, nil
}

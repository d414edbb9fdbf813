package main

import "fmt"

// The structures of ext2, ext3 and ext4 as the kernel's Documentation/filesystems/ext4 has them.
var (
	superParts = []part{
		{"inodes count", 0, 4}, {"blocks count", 4, 4}, {"first data block", 0x14, 4}, {"block size", 0x18, 4}, {"cluster size", 0x1c, 4},
		{"blocks per group", 0x20, 4}, {"clusters per group", 0x24, 4}, {"inodes per group", 0x28, 4}, {"magic", 0x38, 2}, {"state", 0x3a, 2},
		{"revision", 0x4c, 4}, {"first inode", 0x54, 4}, {"inode size", 0x58, 2}, {"compatible features", 0x5c, 4},
		{"incompatible features", 0x60, 4}, {"read-only features", 0x64, 4}, {"reserved descriptors", 0xce, 2}, {"journal inode", 0xe0, 4},
		{"last orphan", 0xe8, 4}, {"hash version", 0xfc, 1}, {"descriptor size", 0xfe, 2}, {"first meta_bg", 0x104, 4}, {"blocks count, high", 0x150, 4},
		{"least extra size", 0x15c, 2}, {"wanted extra size", 0x15e, 2}, {"flags", 0x160, 4}, {"groups per flex_bg", 0x174, 1},
		{"checksum type", 0x175, 1}, {"backup group", 0x24c, 4}, {"checksum seed", 0x270, 4}, {"encoding", 0x27c, 2}, {"orphan file", 0x280, 4},
	}
	descriptorParts = []part{
		{"block bitmap", 0, 4}, {"inode bitmap", 4, 4}, {"inode table", 8, 4}, {"free inodes", 0xe, 2}, {"flags", 0x12, 2}, {"unused inodes", 0x1c, 2},
		{"block bitmap, high", 0x20, 4}, {"inode table, high", 0x28, 4},
	}
	inodeParts = []part{
		{"mode", 0, 2}, {"size", 4, 4}, {"removal", 0x14, 4}, {"links", 0x1a, 2}, {"blocks", 0x1c, 4}, {"flags", 0x20, 4}, {"attribute block", 0x68, 4},
		{"size, high", 0x6c, 4}, {"blocks, high", 0x74, 2}, {"attribute block, high", 0x76, 2}, {"extra size", 0x80, 2},
	}
	extentHeadParts = []part{{"magic", 0, 2}, {"entries", 2, 2}, {"max", 4, 2}, {"depth", 6, 2}}
	extentParts     = []part{{"first block", 0, 4}, {"length", 4, 2}, {"place, high", 6, 2}, {"place", 8, 4}}
	extentIdxParts  = []part{{"first block", 0, 4}, {"child", 4, 4}, {"child, high", 8, 2}}
	direntParts     = []part{{"inode", 0, 4}, {"rec_len", 4, 2}, {"name_len", 6, 1}, {"type", 7, 1}}
	indexRootParts  = []part{{"hash version", 0x1c, 1}, {"info length", 0x1d, 1}, {"levels", 0x1e, 1}, {"flags", 0x1f, 1}}
	indexHeadParts  = []part{{"limit", 0, 2}, {"count", 2, 2}, {"first child", 4, 4}}
	indexParts      = []part{{"hash", 0, 4}, {"child", 4, 4}}
	xattrHeadParts  = []part{{"magic", 0, 4}, {"references", 4, 4}, {"blocks", 8, 4}}
	xattrParts      = []part{{"name_len", 0, 1}, {"name index", 1, 1}, {"value place", 2, 2}, {"value inode", 4, 4}, {"value size", 8, 4}, {"hash", 12, 4}}
)

const (
	xattrMagic  = 0xea020000
	extentMagic = 0xf30a
	inlineFlag  = 0x10000000
	extentsFlag = 0x80000
)

// extFields finds the structures in the blocks of an ext filesystem that were read.
func (g *geometry) extFields(t *tracer, f *finder) error {
	sb, err := get(t.Device, superAt, superLen)
	if err != nil {
		return err
	}
	f.parts("superblock", superParts, superAt, superLen, false)
	for group := range g.groups {
		f.parts("group descriptor", descriptorParts, g.descriptor(group, sb), int(g.descBytes), false)
	}
	if err := g.findHomes(t.Device); err != nil {
		return err
	}
	for n, o := range t.owners {
		b, err := get(t.Device, n*g.block, int(g.block))
		if err != nil {
			return err
		}
		off, what := n*g.block, ""
		if o.area == "journal" {
			// A copy of a block that was read instead of that.
			o, what = t.roles[n], " in the journal"
			if label := t.label[g.homes[n]]; label != "" {
				o.area = label
			}
		}
		switch o.area {
		case "inodes":
			for at := int64(0); at+g.inodeBytes <= g.block; at += g.inodeBytes {
				f.inode(b[at:at+g.inodeBytes], off+at, what)
			}
		case "directories":
			f.directory(b, off, what)
			f.extentNode(b, off, "extent node"+what)
			if g.isIndirect(t, o.ino) {
				f.indirect(b, off, what)
			}
		case "extents":
			f.extentNode(b, off, "extent node"+what)
			if g.isIndirect(t, o.ino) {
				f.indirect(b, off, what)
			}
		case "attributes":
			if le.Uint32(b) == xattrMagic {
				f.parts("attribute block"+what, xattrHeadParts, off, len(b), false)
				f.xattrs(b, 32, 0, off, "attribute"+what)
			}
		case logArea:
			if err := g.logFields(t, f, b, off); err != nil {
				return err
			}
		case "group descriptors":
			if what != "" {
				for at := int64(0); at+g.descBytes <= g.block; at += g.descBytes {
					f.parts("group descriptor"+what, descriptorParts, off+at, int(g.descBytes), false)
				}
			}
		case "superblock":
			if what != "" {
				f.parts("superblock"+what, superParts, off+superAt%g.block, superLen, false)
			}
		}
	}
	return g.quickFields(t, f)
}

// isIndirect tells whether an inode has block numbers in place of extents.
func (g *geometry) isIndirect(t *tracer, ino uint64) bool {
	b, err := get(t.Device, g.inode(int64(ino)), 128)
	return err == nil && le.Uint32(b[0x20:])&(extentsFlag|inlineFlag) == 0
}

// indirect adds a block of block numbers, and not one of a directory's entries.
func (f *finder) indirect(b []byte, off int64, what string) {
	if isDirectory(b) {
		return
	}
	for at := 0; at+4 <= len(b); at += 4 {
		if le.Uint32(b[at:]) != 0 {
			f.add("indirect block"+what, "block", off+int64(at), 4, false)
		}
	}
}

// isDirectory tells whether a block's entries lead to its end.
func isDirectory(b []byte) bool {
	at := 0
	for at+8 <= len(b) {
		length := recLen(b[at:], len(b))
		if length < 8 || length%4 != 0 {
			return false
		}
		at += length
	}
	return at == len(b)
}

// recLen is an entry's length. One of 64 KiB does not fit, and is written as what no other is.
func recLen(entry []byte, block int) int {
	length := int(le.Uint16(entry[4:]))
	if block == 1<<16 && (length == 0xffff || length == 0) {
		return block
	}
	return length
}

func (f *finder) inode(b []byte, off int64, what string) {
	mode, flags := le.Uint16(b), le.Uint32(b[0x20:])
	if mode == 0 {
		return
	}
	f.parts("inode"+what, inodeParts, off, len(b), false)
	area := b[0x28 : 0x28+60]
	kind := mode >> 12
	switch {
	case flags&inlineFlag != 0:
		if kind == 4 {
			f.add("inline directory"+what, "parent", off+0x28, 4, false)
			f.entries(area[4:], off+0x28+4, "inline directory"+what)
		}
	case flags&extentsFlag != 0:
		f.extentNode(area, off+0x28, "extents of an inode"+what)
	case kind == 4 || kind == 8:
		for i := range 15 {
			name := "block"
			if i >= 12 {
				name = fmt.Sprintf("indirect block %d", i-11)
			}
			if le.Uint32(area[4*i:]) != 0 || i >= 12 {
				f.add("blocks of an inode"+what, name, off+0x28+4*int64(i), 4, false)
			}
		}
	}
	if len(b) <= 128 {
		return
	}
	if at := 128 + int(le.Uint16(b[0x80:])); at+8 <= len(b) && le.Uint32(b[at:]) == xattrMagic {
		f.add("attributes in an inode"+what, "magic", off+int64(at), 4, false)
		f.xattrs(b, at+4, at+4, off, "attributes in an inode"+what)
	}
}

// xattrs adds the attributes from at on; their values' places count from base.
func (f *finder) xattrs(b []byte, at, base int, off int64, name string) {
	for at+16 <= len(b) && le.Uint32(b[at:]) != 0 {
		length := int(b[at])
		if next := at + 16 + (length+3)/4*4; next+4 > len(b) || le.Uint32(b[next:]) == 0 {
			name += ", last"
		}
		f.parts(name, xattrParts, off+int64(at), len(b)-at, false)
		// system.data: the rest of a file, or of a directory.
		place, size := base+int(le.Uint16(b[at+2:])), int(le.Uint32(b[at+8:]))
		if b[at+1] == 7 && length == 4 && place+size <= len(b) {
			f.entries(b[place:place+size], off+int64(place), "inline directory")
		}
		at += 16 + (length+3)/4*4
	}
}

// extentNode adds a node's head and entries.
func (f *finder) extentNode(b []byte, off int64, name string) {
	if le.Uint16(b) != extentMagic {
		return
	}
	f.parts(name, extentHeadParts, off, len(b), false)
	entry, parts := name+", extent", extentParts
	if le.Uint16(b[6:]) > 0 {
		entry, parts = name+", child", extentIdxParts
	}
	for i := range int(le.Uint16(b[2:])) {
		if at := 12 + 12*i; at+12 <= len(b) {
			f.parts(entry, parts, off+int64(at), 12, false)
		}
	}
}

// directory adds a block of a directory's entries or of its index.
func (f *finder) directory(b []byte, off int64, what string) {
	if at, ok := indexAt(b); ok {
		if limit, count := int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:])); count <= limit && at+8*limit <= len(b) && count > 0 {
			if at > 8 {
				f.parts("directory index"+what, indexRootParts, off, len(b), false)
			}
			f.parts("directory index"+what, indexHeadParts, off+int64(at), 8, false)
			for i := 1; i < count; i++ {
				f.parts("directory index, entry"+what, indexParts, off+int64(at+8*i), 8, false)
			}
		}
	}
	if isDirectory(b) {
		f.entries(b, off, "directory"+what)
	}
}

// entries adds the entries as far as they lead. The last one is a structure of its own, as what it says leads
// out of the block; behind it there may be a checksum that looks like an entry.
func (f *finder) entries(b []byte, off int64, name string) {
	for at := 0; at+8 <= len(b); {
		length := recLen(b[at:], len(b))
		switch rest := len(b) - at; {
		case rest == 12 && length == 12 && le.Uint32(b[at:]) == 0:
			name = "directory checksum"
		case rest-length <= 12:
			name += ", last"
		}
		f.parts(name, direntParts, off+int64(at), len(b)-at, false)
		if length < 8 {
			return
		}
		at += length
	}
}

package ext4

// wanted is the entry that a lookup looks for.
type wanted struct {
	name  string                 // as on disk
	match func(name []byte) bool // tells whether an entry's name is it; nil: if it equals name
	// What the htree knows it by: the hash of a name, which need not be the entry's, or one that is known.
	hashed    string
	hash      uint32
	hashKnown bool
}

func (w *wanted) is(name []byte) bool {
	if w.match != nil {
		return w.match(name)
	}
	return string(name) == w.name
}

// exactly wants a name as it is.
func exactly(name string) *wanted { return &wanted{name: name, hashed: name} }

// findName is the inode number that a name leads to, 0 if there is none.
func (fs *FS) findName(in *inode, name string) (uint32, error) {
	switch {
	case in.flags&inodeEncrypt != 0:
		w, ok := wantNoKey(in, name)
		if !ok {
			return 0, nil
		}
		return fs.find(in, &w)
	case in.flags&inodeCasefold != 0 && fs.sb.encoding == encodingUTF8:
		return fs.findFolded(in, name)
	}
	return fs.find(in, exactly(name))
}

// findFolded finds a name in a case-folded directory: as it is, else one that is equal
// but for its case.
func (fs *FS) findFolded(in *inode, name string) (uint32, error) {
	folded, ok := foldName(name)
	if !ok {
		return fs.find(in, exactly(name))
	}
	ino, err := fs.find(in, &wanted{name: name, hashed: folded})
	if ino != 0 || err != nil {
		return ino, err
	}
	return fs.find(in, &wanted{hashed: folded, match: func(b []byte) bool {
		other, ok := foldName(string(b))
		return ok && other == folded
	}})
}

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

// hashBy is the hash that the htree knows it by.
func (w *wanted) hashBy(version int, seed [4]uint32) uint32 {
	if w.hashKnown {
		return w.hash
	}
	hash, _ := nameHash(w.hashed, version, seed)
	return hash
}

// exactly wants a name as it is.
func exactly(name string) *wanted { return &wanted{name: name, hashed: name} }

// folded wants a name that is equal but for its case: exactly it where it is not UTF-8.
func folded(name string) *wanted {
	f, ok := foldName(name)
	if !ok {
		return exactly(name)
	}
	return &wanted{hashed: f, match: func(b []byte) bool {
		other, ok := foldName(string(b))
		return ok && other == f
	}}
}

// folds tells whether a directory with these flags has names for the same that differ in their case only.
func (s *super) folds(flags uint32) bool {
	return flags&inodeCasefold != 0 && s.encoding == encodingUTF8
}

// findName is the inode number that a name leads to, 0 if there is none.
func (fs *FS) findName(in *inode, name string) (uint32, error) {
	switch {
	case in.flags&inodeEncrypt != 0:
		w, ok := wantNoKey(in, name)
		if !ok {
			return 0, nil
		}
		return fs.find(in, &w)
	case fs.sb.folds(in.flags):
		return fs.findFolded(in, name)
	}
	return fs.find(in, exactly(name))
}

// findFolded finds a name in a case-folded directory: as it is, else one that is equal
// but for its case.
func (fs *FS) findFolded(in *inode, name string) (uint32, error) {
	anyCase := folded(name)
	ino, err := fs.find(in, &wanted{name: name, hashed: anyCase.hashed})
	if ino != 0 || err != nil || anyCase.match == nil {
		return ino, err
	}
	return fs.find(in, anyCase)
}

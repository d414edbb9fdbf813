package ext4

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
)

// What the kernel shows of encrypted names and targets without their key, "no-key names": two hashes
// of the name, its ciphertext up to a length, and a SHA-256 of the rest if there is one, in
// base64 with the URL's alphabet and no padding. Documentation/filesystems/fscrypt.rst, fs/crypto/fname.c.
const (
	noKeyHashBytes   = 8
	noKeyCipherBytes = 149
	noKeyBytes       = noKeyHashBytes + noKeyCipherBytes + sha256.Size
	// minCipherBytes is the length of the shortest ciphertext: that of a block of the cipher.
	minCipherBytes = 16
	// targetHeader is the length of an encrypted target's length, before it.
	targetHeader = 2
)

var noKeyEncoding = base64.RawURLEncoding.Strict()

// noKeyName is the form of a ciphertext of at least minCipherBytes.
func noKeyName(hash, minor uint32, cipher []byte) string {
	le := binary.LittleEndian
	b := make([]byte, 0, noKeyBytes)
	b = le.AppendUint32(b, hash)
	b = le.AppendUint32(b, minor)
	b = append(b, cipher[:min(len(cipher), noKeyCipherBytes)]...)
	if len(cipher) > noKeyCipherBytes {
		sum := sha256.Sum256(cipher[noKeyCipherBytes:])
		b = append(b, sum[:]...)
	}
	return noKeyEncoding.EncodeToString(b)
}

// noKeyTargetBytes is the length of the form of a symbolic link's target, from the size of the
// link's inode; that size where no target fits in it.
func noKeyTargetBytes(size uint64) int64 {
	if size < targetHeader+minCipherBytes {
		return int64(size)
	}
	n := noKeyBytes
	if cipher := size - targetHeader; cipher <= noKeyCipherBytes {
		n = noKeyHashBytes + int(cipher)
	}
	return int64(noKeyEncoding.EncodedLen(n))
}

// wantNoKey is the entry that a name in this form is of; ok is false for a name that no
// entry has.
func wantNoKey(in *inode, name string) (w wanted, ok bool) {
	if len(name) > noKeyEncoding.EncodedLen(noKeyBytes) || strings.ContainsAny(name, "\r\n") { // base64 skips these
		return wanted{}, false
	}
	b, err := noKeyEncoding.DecodeString(name)
	if err != nil || len(b) <= noKeyHashBytes || len(b) > noKeyHashBytes+noKeyCipherBytes && len(b) != noKeyBytes {
		return wanted{}, false
	}
	w.hash = binary.LittleEndian.Uint32(b)
	cipher := b[noKeyHashBytes:]
	if len(b) < noKeyBytes {
		w.name = string(cipher)
		w.hashed, w.hashKnown = w.name, in.hashInEntries()
		return w, true
	}
	start, sum := string(cipher[:noKeyCipherBytes]), [sha256.Size]byte(cipher[noKeyCipherBytes:])
	w.hashKnown = true
	w.match = func(name []byte) bool {
		return len(name) > noKeyCipherBytes && string(name[:noKeyCipherBytes]) == start && sha256.Sum256(name[noKeyCipherBytes:]) == sum
	}
	return w, true
}

// hashInEntries tells whether a directory's entries hold their hashes, which depend on the
// key.
func (in *inode) hashInEntries() bool {
	const both = inodeEncrypt | inodeCasefold
	return in.flags&both == both
}

// shownNames is how the names of an encrypted directory are shown.
type shownNames struct {
	inEntries bool // the hashes are
	version   int  // of the hash; -1: it is 0
	seed      [4]uint32
}

// shownNames is nil for a directory whose names are shown as they are.
func (fs *FS) shownNames(in *inode) *shownNames {
	if in.flags&inodeEncrypt == 0 {
		return nil
	}
	s := &shownNames{inEntries: in.hashInEntries(), version: -1, seed: fs.sb.hashSeed}
	switch {
	case fs.indexed(in):
		// One that is odd, the kernel reads as if it had no htree.
		if _, version, _, err := fs.indexRoot(in); err == nil {
			s.version = version
		}
	case fs.sb.compat&compatDirIndex != 0 && (in.inline || in.size>>fs.sb.blockBits == 1):
		s.version = fs.sb.hashVersion(int(fs.sb.defaultHash))
	}
	return s
}

// of is an entry's name.
func (s *shownNames) of(e *dirent) (string, error) {
	if len(e.name) < minCipherBytes {
		return "", corrupt("an encrypted directory has an entry of %d bytes, less than %d", len(e.name), minCipherBytes)
	}
	var hash, minor uint32
	switch {
	case s.inEntries:
		if len(e.after) < noKeyHashBytes {
			return "", corrupt("an entry of an encrypted, case-folded directory has %d bytes for its hash", len(e.after))
		}
		hash, minor = binary.LittleEndian.Uint32(e.after), binary.LittleEndian.Uint32(e.after[4:])
	case s.version >= 0 && s.version < hashSip:
		hash, minor = nameHash(string(e.name), s.version, s.seed)
	}
	return noKeyName(hash, minor, e.name), nil
}

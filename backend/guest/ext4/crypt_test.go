package ext4

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// ioctl calls an ioctl of a file that takes a structure.
func ioctl(path string, request uintptr, arg unsafe.Pointer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// encryptDir encrypts an empty directory, by a key that the mount has until it ends.
func encryptDir(t testing.TB, dir string, flags uint8) {
	t.Helper()
	key := struct {
		unix.FscryptAddKeyArg
		raw [64]byte
	}{}
	key.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	key.Raw_size = uint32(len(key.raw))
	copy(key.raw[:], content(99, len(key.raw)))
	if err := ioctl(dir, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&key)); err != nil {
		testneed.Missing(t, "a kernel with fscrypt: "+err.Error())
	}
	policy := unix.FscryptPolicyV2{
		Version:                   unix.FSCRYPT_POLICY_V2,
		Contents_encryption_mode:  unix.FSCRYPT_MODE_AES_256_XTS,
		Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS,
		Flags:                     flags,
	}
	copy(policy.Master_key_identifier[:], key.Key_spec.U[:])
	must(t, ioctl(dir, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy)))
}

// fillEncrypted fills an encrypted directory; large is how many names a large one has.
func fillEncrypted(t testing.TB, dir string, large int) {
	path := func(name ...string) string { return filepath.Join(append([]string{dir}, name...)...) }
	for i, n := range []int{1, 2, 15, 16, 17, 32, 100, 144, 145, 149, 150, 160, 200, 240, 241, 255} {
		must(t, os.WriteFile(path(strings.Repeat("n", n)), content(uint64(n), 100*n), 0o640))
		must(t, os.WriteFile(path(strings.Repeat("n", n-1)+"\xff"), nil, 0o600))
		must(t, os.Mkdir(path(fmt.Sprintf("%d%s", i, strings.Repeat("d", n))[:n]), 0o750))
	}
	for _, n := range []int{1, 2, 16, 17, 31, 32, 33, 57, 58, 59, 60, 61, 100, 148, 149, 150, 160, 161, 500, 1000} {
		must(t, os.Symlink(content7(n), path(fmt.Sprintf("link of %d", n))))
	}
	must(t, os.Mkdir(path("below"), 0o755))
	must(t, os.Mkdir(path("below", "below"), 0o755))
	must(t, os.WriteFile(path("below", "below", "file"), []byte("file"), 0o644))
	must(t, os.Link(path("below", "below", "file"), path("below", "hard link")))
	must(t, unix.Mkfifo(path("fifo"), 0o600))
	must(t, unix.Mknod(path("device"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 1))))
	must(t, os.WriteFile(path("sparse"), nil, 0o600))
	must(t, os.Truncate(path("sparse"), 10<<20))
	for _, name := range []string{"below", "sparse", "link of 1", "link of 500"} {
		must(t, unix.Lsetxattr(path(name), "trusted.attribute", content(1, 300), 0))
	}
	must(t, unix.Lsetxattr(path("sparse"), "user.attribute", content(1, 30), 0))
	must(t, os.Mkdir(path("large"), 0o755))
	for i := range large {
		name := fmt.Sprintf("%d %s", i, strings.Repeat("long", i%64))
		must(t, unix.Mknod(path("large", name[:min(len(name), 255)]), unix.S_IFREG|0o600, 0))
	}
	must(t, os.Mkdir(path("removed"), 0o755))
	for i := range 30 {
		must(t, os.WriteFile(path("removed", fmt.Sprint(i)), nil, 0o600))
	}
	for i := 0; i < 30; i += 2 {
		must(t, os.Remove(path("removed", fmt.Sprint(i))))
	}
}

func TestEncrypted_EqualsTheKernelsMountWithoutTheKey(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "tune2fs")
	for _, v := range []struct {
		name   string
		args   []string
		hash   string
		sign   string
		policy uint8
	}{
		{"half_md4", []string{"-b", "4096"}, "half_md4", "1", unix.FSCRYPT_POLICY_FLAGS_PAD_32},
		{"half_md4 unsigned", []string{"-b", "4096"}, "half_md4", "2", unix.FSCRYPT_POLICY_FLAGS_PAD_4},
		{"tea", []string{"-b", "4096"}, "tea", "1", unix.FSCRYPT_POLICY_FLAGS_PAD_4},
		{"legacy unsigned", []string{"-b", "4096"}, "legacy", "2", unix.FSCRYPT_POLICY_FLAGS_PAD_16},
		{"without dir_index", []string{"-b", "4096", "-O", "^dir_index"}, "half_md4", "1", unix.FSCRYPT_POLICY_FLAGS_PAD_8},
		{"inline_data and ea_inode", []string{"-b", "4096", "-O", "inline_data,ea_inode"}, "tea", "2", unix.FSCRYPT_POLICY_FLAGS_PAD_4},
		{"1 KiB blocks", []string{"-b", "1024"}, "half_md4", "1", unix.FSCRYPT_POLICY_FLAGS_PAD_32},
		{"ext2's map of blocks", []string{"-b", "4096", "-O", "^extents,^64bit"}, "tea", "1", unix.FSCRYPT_POLICY_FLAGS_PAD_32},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := mkfs(t, 64, false, append([]string{"-t", "ext4", "-N", "4096", "-O", "encrypt"}, v.args...)...)
			command(t, "tune2fs", "-E", "hash_alg="+v.hash, path)
			debugfs(t, path, "set_super_value flags "+v.sign)
			populate(t, path, func(dir string) {
				must(t, os.Mkdir(filepath.Join(dir, "encrypted"), 0o755))
				must(t, os.WriteFile(filepath.Join(dir, "plain"), []byte("plain"), 0o644))
				encryptDir(t, filepath.Join(dir, "encrypted"), v.policy)
				fillEncrypted(t, filepath.Join(dir, "encrypted"), 700)
			})
			stats := compareWithKernel(t, path)
			t.Logf("%+v", stats)
			if stats.Locked < 700 || stats.Files == 0 {
				t.Errorf("too little was compared: %+v", stats)
			}
			fs, _ := openImage(t, path)
			indexed := false
			dir := lookup(t, fs, "encrypted").Ino
			must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
				var in inode
				indexed = indexed || e.Type == backend.TypeDir && fs.directory(e.Ino, &in) == nil && fs.indexed(&in)
				return true
			}))
			if indexed != !strings.Contains(v.name, "without dir_index") {
				t.Errorf("there is a directory with an htree: %v", indexed)
			}
			backendtest.Filesystem(t, fs)
			compareOddNames(t, path, fs, dir)
		})
	}
}

// compareOddNames looks for names that are not listed but near to those that are, as the
// kernel does.
func compareOddNames(t *testing.T, path string, fs *FS, dir uint64) {
	root, _ := mount(t, path, "ro")
	var names []string
	must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
		n := e.Name
		zeros, other := []byte(n), []byte(n)
		copy(zeros, "AAAAAAAAAA")
		other[len(n)-1] ^= 1
		names = append(names, string(zeros), string(other), n[1:], n[:len(n)-1], n[:len(n)/2], n+"A", n+"AA", n+"AAAA", n+"=", n+"\n", n[:8]+"\n"+n[8:], strings.ToLower(n))
		return true
	}))
	names = append(names, "n", "nn", "large", "A", "AAAAAAAAAAA", "AAAAAAAAAAAA", strings.Repeat("A", 251), strings.Repeat("A", 252), strings.Repeat("A", 253), strings.Repeat("A", 255))
	found := 0
	for _, name := range names {
		// With one letter too much, an A, a name is taken for the one without it by some kernels.
		if len(name) > nameMax || len(name)%4 == 1 {
			continue
		}
		var st unix.Stat_t
		kernelErr := unix.Lstat(filepath.Join(root, "encrypted", name), &st)
		a, err := fs.Lookup(dir, name)
		switch {
		case kernelErr == nil && (err != nil || a.Ino != st.Ino):
			t.Errorf("%q: inode %d, %v; the kernel: inode %d", name, a.Ino, err, st.Ino)
		case kernelErr != nil && !(errors.Is(kernelErr, unix.ENOENT) && errors.Is(err, backend.ErrNotExist)):
			t.Errorf("%q: inode %d, %v; the kernel: %v", name, a.Ino, err, kernelErr)
		case kernelErr == nil:
			found++
		}
	}
	if found == 0 || found == len(names) {
		t.Errorf("%d of %d odd names were found", found, len(names))
	}
}

// patchDir lays entries over the blocks of an image's directory, whose map is not changed:
// blocks[i] is what the directory's block i becomes.
func patchDir(t testing.TB, image []byte, ino uint64, flags uint32, blocks ...[]byte) []byte {
	t.Helper()
	image = slices.Clone(image)
	fs, err := New().Open(inMemory(image))
	must(t, err)
	x := fs.(*FS)
	var in inode
	must(t, x.inode(ino, &in))
	for i, b := range blocks {
		r, err := x.mapRun(&in, uint64(i))
		must(t, err)
		if r.state != runWritten || len(b) != x.sb.blockBytes() {
			t.Fatalf("block %d of %d bytes", i, len(b))
		}
		copy(image[(r.phys+uint64(i)-r.logical)<<x.sb.blockBits:], b)
	}
	at := inodeOffset(t, fs, ino)
	binary.LittleEndian.PutUint32(image[at+0x20:], flags)
	binary.LittleEndian.PutUint32(image[at+0x4:], uint32(len(blocks)*x.sb.blockBytes()))
	return image
}

// hashedEntry is an entry as encrypted, case-folded directories have them.
type hashedEntry struct {
	name        []byte
	hash, minor uint32
}

// dirBlock is a block of entries of one inode, each with its hash after its name.
func dirBlock(ino uint32, start []byte, entries ...hashedEntry) []byte {
	le := binary.LittleEndian
	b := slices.Clone(start)
	for i, e := range entries {
		n := (direntHeader+len(e.name)+3)&^3 + 8
		if i == len(entries)-1 {
			n = 1024 - len(b)
		}
		at := len(b)
		b = append(b, make([]byte, n)...)
		le.PutUint32(b[at:], ino)
		le.PutUint16(b[at+4:], uint16(n))
		b[at+6], b[at+7] = byte(len(e.name)), 1
		copy(b[at+direntHeader:], e.name)
		le.PutUint32(b[at+(direntHeader+len(e.name)+3)&^3:], e.hash)
		le.PutUint32(b[at+(direntHeader+len(e.name)+3)&^3+4:], e.minor)
	}
	return b
}

// foldedCryptImage is an image with an encrypted, case-folded directory of two leaves below an
// htree of SipHashes: no machine without its key can compute them.
func foldedCryptImage(t testing.TB) (image []byte, dir, file uint64, leaves [2][]hashedEntry, root []byte) {
	t.Helper()
	image = smallImage(t, "-O", "^metadata_csum,casefold,encrypt")
	fs, err := New().Open(inMemory(image))
	must(t, err)
	dir, file = lookup(t, fs, "dir").Ino, lookup(t, fs, "fragmented").Ino
	for i, n := range []int{16, 17, 149, 150, 255} {
		leaves[i%2] = append(leaves[i%2], hashedEntry{content(uint64(n), n), uint32(i%2)<<31 + uint32(n)<<8, uint32(n)})
	}
	le := binary.LittleEndian
	// "." and "..", then the root's own fields and its two entries.
	root = make([]byte, 1024)
	le.PutUint32(root[0:], uint32(dir))
	copy(root[4:], "\x0c\x00\x01\x02.")
	le.PutUint32(root[12:], rootIno)
	copy(root[16:], "\xf4\x03\x02\x02..")
	copy(root[0x18:], []byte{0, 0, 0, 0, hashSip, 8, 0, 0})
	le.PutUint16(root[indexRootAt:], (1024-indexRootAt)/indexEntryBytes)
	le.PutUint16(root[indexRootAt+2:], 2)
	le.PutUint32(root[indexRootAt+4:], 1)
	le.PutUint32(root[indexRootAt+8:], 1<<31)
	le.PutUint32(root[indexRootAt+12:], 2)
	image = patchDir(t, image, dir, inodeExtents|inodeIndex|inodeEncrypt|inodeCasefold, root, dirBlock(uint32(file), nil, leaves[0]...), dirBlock(uint32(file), nil, leaves[1]...))
	return
}

func TestEncrypted_CaseFoldedDirectoriesTakeHashesOfTheirEntries(t *testing.T) {
	image, dir, file, leaves, _ := foldedCryptImage(t)
	fs, err := New().Open(inMemory(image))
	must(t, err)
	want := map[string]bool{}
	for _, leaf := range leaves {
		for _, e := range leaf {
			b := binary.LittleEndian.AppendUint32(nil, e.hash)
			b = binary.LittleEndian.AppendUint32(b, e.minor)
			if b = append(b, e.name[:min(149, len(e.name))]...); len(e.name) > 149 {
				sum := sha256.Sum256(e.name[149:])
				b = append(b, sum[:]...)
			}
			want[base64.RawURLEncoding.EncodeToString(b)] = true
		}
	}
	n := 0
	var in inode
	must(t, fs.(*FS).directory(dir, &in))
	must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
		n++
		if !want[e.Name] || e.Ino != file {
			t.Errorf("%q of inode %d", e.Name, e.Ino)
		}
		if a, err := fs.Lookup(dir, e.Name); err != nil || a.Ino != file {
			t.Errorf("%q: %+v, %v", e.Name, a, err)
		}
		w, ok := wantNoKey(&in, e.Name)
		if ino, err := fs.(*FS).findHashed(&in, &w); !ok || err != nil || uint64(ino) != file {
			t.Errorf("%q in the htree: inode %d, %v", e.Name, ino, err)
		}
		// A hash that leads to the other leaf.
		b := []byte(e.Name)
		if b[4] = 'A'; e.Name[4] < 'g' {
			b[4] = 'g'
		}
		if a, err := fs.Lookup(dir, string(b)); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("%q, which is %q with another hash: %+v, %v", b, e.Name, a, err)
		}
		return true
	}))
	if n != len(want) {
		t.Errorf("%d names, not %d", n, len(want))
	}
}

func TestEncrypted_RefusesWrongEntriesAndTargets(t *testing.T) {
	image, dir, file, leaves, root := foldedCryptImage(t)
	const all = inodeExtents | inodeIndex | inodeEncrypt | inodeCasefold
	leaf := func(entries ...hashedEntry) []byte { return dirBlock(uint32(file), nil, entries...) }
	good := leaf(leaves[1]...)
	noRoom := leaf(append(leaves[0], hashedEntry{content(1, 16), 1, 1})...)
	last := bytes.LastIndex(noRoom, content(1, 16)) - direntHeader
	binary.LittleEndian.PutUint16(noRoom[last+4:], 28)
	copy(noRoom[last+28:], leaf(hashedEntry{content(1, 16), 1, 1}))
	binary.LittleEndian.PutUint16(noRoom[last+28+4:], uint16(1024-last-28))
	otherRoot := slices.Clone(root)
	otherRoot[0x1c] = hashHalfMD4
	for _, v := range []struct {
		what  string
		image []byte
		ok    bool
	}{
		{"nothing", image, true},
		{"a ciphertext of 15 bytes", patchDir(t, image, dir, all, root, leaf(hashedEntry{content(1, 15), 1, 1}), good), false},
		{"a ciphertext of 1 byte", patchDir(t, image, dir, all, root, leaf(hashedEntry{[]byte("x"), 1, 1}), good), false},
		{"no room for a hash", patchDir(t, image, dir, all, root, noRoom, good), false},
		{"a hash that needs no key", patchDir(t, image, dir, all, otherRoot, leaf(leaves[0]...), good), true},
		{"a hash that needs a key, without case-folding", patchDir(t, image, dir, all&^inodeCasefold, root, leaf(leaves[0]...), good), true},
	} {
		fs, err := New().Open(inMemory(v.image))
		must(t, err)
		var names []string
		err = fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool { names = append(names, e.Name); return true })
		if v.ok && (err != nil || len(names) != 5) || !v.ok && (!errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprint("inode ", dir))) {
			t.Errorf("%s: %q, %v", v.what, names, err)
		}
		for _, name := range names {
			if _, err := fs.Lookup(dir, name); err != nil {
				t.Errorf("%s: %q: %v", v.what, name, err)
			}
		}
	}

	fs, err := New().Open(inMemory(image))
	must(t, err)
	at := inodeOffset(t, fs, lookup(t, fs, "link").Ino)
	le := binary.LittleEndian
	for _, v := range []struct {
		size uint32
		len  uint16
		ok   bool
	}{{18, 16, true}, {59, 57, true}, {17, 15, false}, {2, 0, false}, {1, 0, false}, {0, 0, false}, {18, 17, false}, {18, 15, false}, {18, 0xffff, false}, {60, 58, false}} {
		b := slices.Clone(image)
		le.PutUint32(b[at+0x20:], inodeEncrypt)
		le.PutUint32(b[at+0x4:], v.size)
		le.PutUint16(b[at+0x28:], v.len)
		fs, err := New().Open(inMemory(b))
		must(t, err)
		a := lookup(t, fs, "link")
		got, err := fs.Readlink(a.Ino)
		if v.ok && (err != nil || int64(len(got)) != a.SizeBytes) || !v.ok && !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("a target of %d bytes in %d: %q, %v; size %d", v.len, v.size, got, err, a.SizeBytes)
		}
	}
}

func FuzzNoKeyName(f *testing.F) {
	for _, n := range []int{16, 17, 148, 149, 150, 255} {
		c := content(uint64(n), n)
		f.Add(c, uint32(n), noKeyName(uint32(n), 1, c))
	}
	f.Fuzz(func(t *testing.T, cipher []byte, hash uint32, name string) {
		if len(cipher) >= minCipherBytes && len(cipher) <= nameMax {
			shown := noKeyName(hash, ^hash, cipher)
			w, ok := wantNoKey(&inode{flags: inodeEncrypt | inodeCasefold}, shown)
			if !ok || !w.is(cipher) || !w.hashKnown || w.hash != hash {
				t.Errorf("%x is shown as %q, which is %+v, %v", cipher, shown, w, ok)
			}
			if n := noKeyTargetBytes(uint64(targetHeader + len(cipher))); n != int64(len(shown)) {
				t.Errorf("%d bytes, not %d", len(shown), n)
			}
			if w.is(append(cipher[:len(cipher):len(cipher)], 0)) {
				t.Errorf("%q is a longer name, too", shown)
			}
		}
		if w, ok := wantNoKey(&inode{flags: inodeEncrypt}, name); ok && w.match == nil && (w.name == "" || len(w.name) > noKeyCipherBytes) {
			t.Errorf("%q is %q", name, w.name)
		}
	})
}

func TestOpenFile_OfEncryptedFilesIsWithoutKey(t *testing.T) {
	image := smallImage(t, "-O", "^metadata_csum,encrypt")
	fs, err := New().Open(inMemory(image))
	must(t, err)
	ino := lookup(t, fs, "fragmented").Ino
	binary.LittleEndian.PutUint32(image[inodeOffset(t, fs, ino)+0x20:], inodeExtents|inodeEncrypt)
	fs, err = New().Open(inMemory(image))
	must(t, err)
	if f, err := fs.OpenFile(ino); !errors.Is(err, backend.ErrNoKey) || f != nil {
		t.Errorf("%v, %v", f, err)
	}
	a, err := fs.Attr(ino)
	if err != nil || a.SizeBytes != 149*4096+4 {
		t.Errorf("%+v, %v", a, err)
	}
	if v, err := fs.Xattr(ino, "user.one"); err != nil || !bytes.Equal(v, content(1, 50)) {
		t.Errorf("%d bytes, %v", len(v), err)
	}
}

package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// equalHashes makes n names of 250 bytes whose legacy hashes are equal: the last byte is
// computed, the two before it are tried.
func equalHashes(n int) []string {
	last := map[uint32]byte{}
	for c := 1; c < 256; c++ {
		if c != '/' {
			last[nameByte(byte(c), true)*7152373] = byte(c)
		}
	}
	step := func(h0, h1 uint32, c byte) (uint32, uint32) {
		h := h1 + (h0 ^ nameByte(c, true)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7fffffff
		}
		return h, h0
	}
	const target = 0x12345678 >> 1
	var names []string
	for i := 0; len(names) < n; i++ {
		prefix := fmt.Sprintf("%0248d", i)
		h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
		for j := range len(prefix) {
			h0, h1 = step(h0, h1, prefix[j])
		}
		for c := 1; c < 256; c++ {
			a0, a1 := step(h0, h1, byte(c))
			if end, found := last[(target-a1)^a0]; found && c != '/' {
				names = append(names, prefix+string([]byte{byte(c), end}))
				break
			}
		}
	}
	return names
}

func TestLookup_FollowsEqualHashesIntoTheNextLeaf(t *testing.T) {
	testneed.Loop(t)
	names := equalHashes(10)
	for _, name := range names {
		if legacyHash(name, true) != legacyHash(names[0], true) {
			t.Fatalf("%q hashes differently", name)
		}
	}
	path := mkfs(t, 16, false, "-t", "ext4", "-b", "1024")
	command(t, "tune2fs", "-E", "hash_alg=legacy", path)
	populate(t, path, func(dir string) {
		for i := range 100 {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("another name ", i)), nil, 0o600))
		}
		for _, name := range names {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		}
	})
	fs, _ := openImage(t, path)
	blocks := map[uint64]bool{}
	must(t, fs.ReadDir(rootIno, 0, false, func(e *backend.DirEntry) bool {
		if slices.Contains(names, e.Name) {
			blocks[(e.Cookie-1)>>10] = true
		}
		return true
	}))
	if len(blocks) < 3 {
		t.Fatalf("the names lie in %d blocks only", len(blocks))
	}
	var in inode
	must(t, fs.directory(rootIno, &in))
	for _, name := range names {
		if ino, err := fs.findHashed(&in, exactly(name)); err != nil || ino == 0 {
			t.Errorf("%q: %d, %v", name, ino, err)
		}
	}
	if ino, err := fs.findHashed(&in, exactly(equalHashes(11)[10])); err != nil || ino != 0 {
		t.Errorf("a name of that hash that is not there: %d, %v", ino, err)
	}
}

func TestLookup_WithoutTheSignOfHashesReadsEverything(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 16, false, "-t", "ext4", "-b", "1024")
	debugfs(t, path, "set_super_value flags 2") // unsigned
	var names []string
	populate(t, path, func(dir string) {
		for i := range 200 {
			names = append(names, fmt.Sprintf("\xff\x80\xfe %d", i))
			must(t, os.WriteFile(filepath.Join(dir, names[i]), nil, 0o600))
		}
	})
	debugfs(t, path, "set_super_value flags 0") // unknown: taken for signed
	fs, _ := openImage(t, path)
	for _, name := range names {
		lookup(t, fs, name)
	}
	if _, err := fs.Lookup(rootIno, "not there"); !errors.Is(err, backend.ErrNotExist) {
		t.Error(err)
	}
}

func TestConvertACL_RefusesWrongForms(t *testing.T) {
	le := binary.LittleEndian
	acl := func(version uint32, fields ...uint16) []byte {
		b := le.AppendUint32(nil, version)
		for _, f := range fields {
			b = le.AppendUint16(b, f)
		}
		return b
	}
	for what, b := range map[string][]byte{
		"nothing":                  nil,
		"half a version":           {1, 0},
		"another version":          acl(2, aclUserObj, 6),
		"an unknown tag":           acl(1, aclUserObj, 6, 3, 6),
		"a short entry cut":        acl(1, aclUserObj),
		"a long entry cut":         acl(1, aclUser, 6),
		"a long entry cut in half": acl(1, aclUserObj, 6, aclGroup, 6, 1),
	} {
		if got, err := convertACL(b); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%s: %x, %v", what, got, err)
		}
	}
}

func TestWalkXattrs_RefusesWhatReachesOut(t *testing.T) {
	// One entry "user.name" with the value "value" at byte 60 of 64, then the end.
	good := make([]byte, 64)
	copy(good, "\x04\x01\x3b\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00name")
	copy(good[0x3b:], "value")
	names := func(b []byte) (string, error) {
		var all []string
		_, err := (&super{}).walkXattrs(b, b, func(x *xattr) (bool, error) {
			all = append(all, x.fullName()+"="+string(x.value))
			return true, nil
		})
		return strings.Join(all, " "), err
	}
	if got, err := names(good); err != nil || got != "user.name=value" {
		t.Fatalf("%q, %v", got, err)
	}
	for what, change := range map[string]func(b []byte) []byte{
		"a value past the end":        func(b []byte) []byte { b[2] = 0x3c; return b },
		"a value in the entries":      func(b []byte) []byte { b[2] = 20; return b },
		"a value of 4 GiB":            func(b []byte) []byte { copy(b[8:], "\xff\xff\xff\xff"); return b },
		"a value in an inode":         func(b []byte) []byte { b[4] = 12; return b },
		"a name past the end":         func(b []byte) []byte { b[0] = 49; return b },
		"no end":                      func(b []byte) []byte { return b[:20] },
		"an end that is cut":          func(b []byte) []byte { return b[:22] },
		"a second entry that is wide": func(b []byte) []byte { b[20] = 0xff; return b },
		"nothing":                     func([]byte) []byte { return nil },
	} {
		if got, err := names(change(bytes.Clone(good))); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

func TestReadlink_RefusesWrongLengths(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 16, false, "-t", "ext4", "-b", "1024")
	populate(t, path, func(dir string) {
		for _, name := range []string{"none", "long", "nul", "good"} {
			must(t, os.Symlink("target", filepath.Join(dir, name)))
		}
		for _, name := range []string{"slow none", "slow long", "slow nul", "slow hole"} {
			must(t, os.Symlink(strings.Repeat("target", 100), filepath.Join(dir, name)))
		}
		must(t, unix.Lsetxattr(filepath.Join(dir, "good"), "trusted.big", content(1, 500), 0))
	})
	debugfs(t, path, "sif none size 0", "sif long size 60", "sif nul size 9",
		`sif "slow none" size 0`, `sif "slow long" size 1024`, `sif "slow nul" size 601`, `sif "slow hole" block[2] 0`, `sif "slow hole" block[1] 0`, `sif "slow hole" block[0] 0x0000f30a`, `sif "slow hole" block[1] 0x4`)
	fs, _ := openImage(t, path)
	for _, name := range []string{"none", "long", "nul", "slow none", "slow long", "slow nul", "slow hole"} {
		if got, err := fs.Readlink(lookup(t, fs, name).Ino); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := fs.Readlink(lookup(t, fs, "good").Ino); err != nil || string(got) != "target" {
		t.Errorf("one with a block of attributes: %q, %v", got, err)
	}
}

func TestLocate_FindsWrittenBlocksOnly(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 32, false, "-t", "ext4", "-b", "4096")
	populate(t, path, func(dir string) {
		f, err := os.Create(filepath.Join(dir, "file"))
		must(t, err)
		defer f.Close()
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, 8192))
		_, err = f.WriteAt(content(1, 5000), 65536)
		must(t, err)
	})
	fs, d := openImage(t, path)
	f, err := fs.OpenFile(lookup(t, fs, "file").Ino)
	must(t, err)
	l := f.(backend.Locator)
	for _, v := range []struct{ off, n, want int64 }{
		{0, 100, 0}, {4096, 100, 0}, {10_000, 100, 0}, {65535, 100, 0}, {65536, 100, 100}, {65536, 1 << 20, 5000}, {70_000, 1000, 536},
		{70_536, 1, 0}, {-1, 1, 0}, {65536, 0, 0}, {65536, -1, 0}, {1 << 62, 1, 0},
	} {
		loc, ok := l.Locate(v.off, v.n)
		if ok != (v.want > 0) || loc.Length != v.want || ok && loc.FD != d.Fd() {
			t.Errorf("Locate(%d, %d): %+v, %v", v.off, v.n, loc, ok)
		}
	}
	// A device that locates nothing.
	b, err := os.ReadFile(path)
	must(t, err)
	plain, err := New().Open(inMemory(b))
	must(t, err)
	f, err = plain.OpenFile(lookup(t, plain, "file").Ino)
	must(t, err)
	if loc, ok := f.(backend.Locator).Locate(65536, 1); ok {
		t.Errorf("%+v", loc)
	}
}

// failing is a device whose reads fail from an offset on.
type failing struct {
	backend.Device
	from int64
}

var errBroken = errors.New("broken")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errBroken
	}
	return f.Device.ReadAt(p, off)
}

func TestFS_PassesOnTheDevicesErrors(t *testing.T) {
	image := smallImage(t)
	for from := int64(0); from < int64(len(image)); from += 7 * 1024 {
		fs, err := New().Open(failing{inMemory(image), from})
		if err == nil {
			_, _, err = walk(fs, 1000, mib)
			if _, serr := fs.StatFS(); serr != nil && !errors.Is(serr, errBroken) {
				t.Errorf("reads fail from byte %d: StatFS: %v", from, serr)
			}
		}
		if err != nil && !errors.Is(err, errBroken) {
			t.Errorf("reads fail from byte %d: %v", from, err)
		}
		if err == nil && from < 8192 {
			t.Errorf("reads fail from byte %d: no error", from)
		}
	}
}

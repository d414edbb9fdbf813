package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

func TestOpen_RefusesFeaturesByName(t *testing.T) {
	for _, v := range []struct{ feature, args string }{
		{"journal_dev", "-O journal_dev"},
	} {
		t.Run(v.feature, func(t *testing.T) {
			path := mkfs(t, 32, false, append([]string{"-t", "ext4"}, strings.Fields(v.args)...)...)
			_, err := New().Open(openDevice(t, path))
			if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), v.feature) {
				t.Errorf("%v", err)
			}
		})
	}
	// mke2fs makes none of these.
	path := mkfs(t, 16, false, "-t", "ext4", "-O", "^metadata_csum")
	good, err := os.ReadFile(path)
	must(t, err)
	for bit, want := range map[uint32]string{0x1: "compression", 0x1000: "dirdata", 0x20: "0x20", 0x800: "0x800", 0x40000: "0x40000", 0x80000000: "0x80000000"} {
		b := append([]byte(nil), good...)
		at := superOffset + 0x60
		binary.LittleEndian.PutUint32(b[at:], binary.LittleEndian.Uint32(b[at:])|bit)
		_, err := New().Open(inMemory(b))
		if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("feature 0x%x: %v", bit, err)
		}
	}
}

// One group: there are no copies.
func TestOpen_RefusesCorruptSuperblocks(t *testing.T) {
	path := mkfs(t, 16, false, "-t", "ext4", "-b", "4096", "-O", "^metadata_csum")
	good, err := os.ReadFile(path)
	must(t, err)
	for _, v := range []struct {
		at, n int
		value uint64
	}{
		{0x38, 2, 0}, {0x18, 4, 7}, {0x18, 4, 0xffffffff}, {0x58, 2, 0}, {0x58, 2, 255}, {0x58, 2, 0x8000}, {0xfe, 2, 1}, {0xfe, 2, 48},
		{0xfe, 2, 0x8000}, {0x20, 4, 0}, {0x20, 4, 0xffffffff}, {0x28, 4, 0}, {0x28, 4, 0xfffffff0}, {0x00, 4, 1}, {0x14, 4, 0xffff},
		{0x14, 4, 2}, {0x04, 4, 0}, {0x150, 4, 0xffffffff},
	} {
		b := append([]byte(nil), good...)
		for i := range v.n {
			b[superOffset+v.at+i] = byte(v.value >> (8 * i))
		}
		if _, err := New().Open(inMemory(b)); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("0x%x at 0x%x: %v", v.value, v.at, err)
		}
	}
	for _, n := range []int{0, 1023, 1024, 2047} {
		if _, err := New().Open(inMemory(good[:n])); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	path = mkfs(t, 16, false, "-t", "ext4", "-b", "4096")
	good, err = os.ReadFile(path)
	must(t, err)
	good[superOffset+0x78] ^= 1 // of the label
	if _, err := New().Open(inMemory(good)); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "checksum is 0x") {
		t.Errorf("a label changed: %v", err)
	}
}

// copyFile copies an image as a snapshot would: whatever it is in the middle of.
func copyFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	to := filepath.Join(imageDir(t), "copy")
	must(t, os.WriteFile(to, b, 0o600))
	return to
}

func TestWarnings_SayThatTheJournalWasNotReplayed(t *testing.T) {
	path := mkfs(t, 32, false, "-t", "ext4")
	dir, umount := mount(t, path, "rw")
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))
	syncFS(t, dir)
	dirty := copyFile(t, path)
	umount()
	if fs, _ := openImage(t, dirty); len(fs.Warnings()) != 0 {
		t.Errorf("dirty: %q", fs.Warnings())
	}
	b := mustRead(t, dirty)
	b[journalSuperAt(t, b)] = 0
	fs, err := New().Open(inMemory(b))
	must(t, err)
	if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], "journal was not replayed") {
		t.Errorf("dirty, and without the journal's superblock: %q", w)
	}
	if _, err := fs.Attr(fs.Root()); err != nil {
		t.Error(err)
	}
	if fs, _ := openImage(t, path); len(fs.Warnings()) != 0 {
		t.Errorf("clean: %q", fs.Warnings())
	}

	path = mkfs(t, 32, false, "-t", "ext2")
	dir, umount = mount(t, path, "rw")
	syncFS(t, dir)
	dirty = copyFile(t, path)
	umount()
	if fs, _ := openImage(t, dirty); len(fs.Warnings()) != 1 || !strings.Contains(fs.Warnings()[0], "not unmounted cleanly") {
		t.Errorf("without a journal: %q", fs.Warnings())
	}
	debugfs(t, path, "set_super_value state 3")
	if fs, _ := openImage(t, path); len(fs.Warnings()) != 1 || !strings.Contains(fs.Warnings()[0], "found errors") {
		t.Errorf("with errors: %q", fs.Warnings())
	}
}

func TestFS_ReadsWhatATruncatedImageHas(t *testing.T) {
	path := mkfs(t, 32, false, "-t", "ext4", "-b", "4096")
	populate(t, path, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "first"), content(1, 5000), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "second"), content(2, 5000), 0o600))
	})
	fs, _ := openImage(t, path)
	var first, second inode
	must(t, fs.inode(lookup(t, fs, "first").Ino, &first))
	must(t, fs.inode(lookup(t, fs, "second").Ino, &second))
	a, err := fs.mapRun(&first, 0)
	must(t, err)
	b, err := fs.mapRun(&second, 0)
	must(t, err)
	if a.phys > b.phys {
		first, second, b = second, first, a
	}
	must(t, os.Truncate(path, int64(b.phys)*4096+100))
	fs, _ = openImage(t, path)
	if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], "cannot be read") {
		t.Errorf("%q", w)
	}
	buf := make([]byte, 5000)
	f, err := fs.OpenFile(uint64(first.ino))
	must(t, err)
	if n, err := f.ReadAt(buf, 0); n < 5000 {
		t.Errorf("what is there: %d, %v", n, err)
	}
	f, err = fs.OpenFile(uint64(second.ino))
	must(t, err)
	if _, err := f.ReadAt(buf, 0); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("what is not: %v", err)
	}
}

func TestAttr_IsStaleForInodesNotInUse(t *testing.T) {
	path := mkfs(t, 32, true, "-t", "ext4", "-O", "quota", "-E", "lazy_itable_init=1")
	fs, _ := openImage(t, path)
	// 1 bad blocks, 3 and 4 quotas, 8 the journal; 12 was never used.
	for _, ino := range []uint64{0, 1, 3, 4, 7, 8, 10, 12, uint64(fs.sb.inodes) + 1, 1 << 32, 1<<32 + 2} {
		if a, err := fs.Attr(ino); !errors.Is(err, backend.ErrStale) {
			t.Errorf("inode %d: %+v, %v", ino, a, err)
		}
	}
	if _, err := fs.Attr(11); err != nil {
		t.Errorf("lost+found: %v", err)
	}
}

func TestFS_EqualsTheKernelAfterOddFields(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 64, false, "-t", "ext4", "-O", "huge_file")
	populate(t, path, func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "many"), 0o755))
		must(t, os.Mkdir(filepath.Join(dir, "many", "below"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "huge"), content(1, 10_000), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "high"), content(1, 10_000), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "nsec"), nil, 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "narrow"), nil, 0o644))
	})
	debugfs(t, path,
		"sif many links_count 1", // more than 65,000
		"sif huge flags 0xc0000", // blocks counted in the filesystem's, not in 512 bytes
		"sif high blocks_hi 3",
		"sif nsec atime_extra 0xee6b27fe", // 999,999,999 and two years' worth of epochs
		"sif nsec mtime_extra 0x3",
		"sif narrow extra_isize 4", // no room for the time stamps' extra fields
		"sif narrow mtime_extra 0x3")
	stats := compareWithKernel(t, path)
	if stats.Entries < 7 {
		t.Errorf("%+v", stats)
	}
	fs, _ := openImage(t, path)
	if a := lookup(t, fs, "many"); a.Nlink != 1 {
		t.Errorf("nlink %d", a.Nlink)
	}
	if a := lookup(t, fs, "huge"); a.Blocks512 <= 24 {
		t.Errorf("%d blocks of 512", a.Blocks512)
	}
	if a := lookup(t, fs, "nsec"); a.Mtime.Sec < 3<<32 || a.Atime.Nsec != 999_999_999 {
		t.Errorf("times %+v", a)
	}
}

func TestStatFS_CountsBigallocOverheadItself(t *testing.T) {
	testneed.Loop(t)
	for _, args := range [][]string{{"-C", "65536"}, {"-b", "1024", "-C", "16384", "-O", "bigalloc,^has_journal"}} {
		path := mkfs(t, 300, false, append([]string{"-t", "ext4", "-O", "bigalloc"}, args...)...)
		debugfs(t, path, "set_super_value overhead_clusters 0")
		compareWithKernel(t, path)
	}
}

// largeDirectory makes an image with a directory of n names.
func largeDirectory(t testing.TB, n int, args ...string) string {
	path := mkfs(t, 16+n/200, false, append([]string{"-t", "ext4", "-N", fmt.Sprint(n + 2000)}, args...)...)
	populate(t, path, func(dir string) { fillLarge(t, filepath.Join(dir, "large"), n) })
	return path
}

func TestLookup_ReadsFewBlocksOfLargeDirectories(t *testing.T) {
	testneed.Loop(t)
	const names = 20_000
	for _, hash := range []string{"half_md4", "tea", "legacy"} {
		for _, sign := range []string{"1", "2"} { // signed, unsigned
			t.Run(hash+sign, func(t *testing.T) {
				// What the kernel will hash by must be set while the directory is small.
				path := mkfs(t, 64, false, "-t", "ext4", "-b", "1024", "-N", "24000")
				command(t, "tune2fs", "-E", "hash_alg="+hash, path)
				debugfs(t, path, "set_super_value flags "+sign)
				populate(t, path, func(dir string) {
					must(t, os.Mkdir(filepath.Join(dir, "large"), 0o755))
					for i := range names / 10 {
						must(t, unix.Mknod(filepath.Join(dir, "large", fmt.Sprintf("n\xff\xfeame %d \xc3\xbc and more than 32 bytes", i)), unix.S_IFREG, 0))
					}
				})
				fs, d := openImage(t, path)
				dir := lookup(t, fs, "large").Ino
				var in inode
				must(t, fs.directory(dir, &in))
				if !fs.indexed(&in) {
					t.Fatal("the kernel made no htree")
				}
				for i := 0; i < names/10; i += 7 {
					name := fmt.Sprintf("n\xff\xfeame %d \xc3\xbc and more than 32 bytes", i)
					if ino, err := fs.findHashed(&in, exactly(name)); err != nil || ino == 0 {
						t.Fatalf("%q: %d, %v", name, ino, err)
					}
				}
				fs.cache.clear()
				before := d.reads.Load()
				lookup(t, fs, "large", "n\xff\xfeame 1234 \xc3\xbc and more than 32 bytes")
				_, err := fs.Lookup(dir, "not there")
				if !errors.Is(err, backend.ErrNotExist) {
					t.Error(err)
				}
				if n := d.reads.Load() - before; n > 12 {
					t.Errorf("two lookups took %d reads", n)
				}
			})
		}
	}
}

// debugfs knows the signed hashes only: that the others are right shows in
// TestLookup_ReadsFewBlocksOfLargeDirectories.
func TestNameHash_EqualsDebugfs(t *testing.T) {
	testneed.Tools(t, "debugfs")
	seed := [4]uint32{}
	const uuid = "01020304-a5a6-b7b8-c9ca-dbdcdddedff0"
	for i, w := range []string{"01020304", "a5a6b7b8", "c9cadbdc", "dddedff0"} {
		var b [4]byte
		fmt.Sscanf(w, "%02x%02x%02x%02x", &b[0], &b[1], &b[2], &b[3])
		seed[i] = binary.LittleEndian.Uint32(b[:])
	}
	names := []string{"a", "abc", "name", "0123456789abcdef", "0123456789abcdefg", strings.Repeat("x", 31), strings.Repeat("x", 32),
		strings.Repeat("xyz", 11), strings.Repeat("long", 63), "\xc3\xbcml\xc3\xa4ut", "\xff\xfe\x80"}
	for version, alg := range []string{"legacy", "half_md4", "tea"} {
		for _, name := range names {
			for _, s := range []string{"", uuid} {
				args, with := "", [4]uint32{}
				if s != "" {
					args, with = " -s "+s, seed
				}
				out, err := exec.Command("debugfs", "-R", "dx_hash -h "+alg+args+" "+name).Output()
				must(t, err)
				i := strings.LastIndex(string(out), " is 0x")
				if i < 0 {
					t.Fatalf("debugfs: %q", out)
				}
				var want, wantMinor uint32
				_, err = fmt.Sscanf(string(out)[i:], " is 0x%x (minor 0x%x)", &want, &wantMinor)
				must(t, err)
				if got, minor := nameHash(name, version, with); got != want&^1 || minor != wantMinor {
					t.Errorf("%s of %q with seed %q: 0x%08x and 0x%08x, debugfs says 0x%08x and 0x%08x", alg, name, s, got, minor, want, wantMinor)
				}
			}
		}
	}
}

func TestLookup_FallsBackWhereTheHtreeIsOdd(t *testing.T) {
	testneed.Loop(t)
	path := largeDirectory(t, 1000, "-b", "1024", "-O", "^metadata_csum")
	fs, _ := openImage(t, path)
	var in inode
	must(t, fs.directory(lookup(t, fs, "large").Ino, &in))
	r, err := fs.mapRun(&in, 0)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	const name = "321 a name in a large directory"
	for _, v := range []struct {
		at    int
		value byte
	}{{0x1c, 6}, {0x1c, 99}, {0x1d, 9}, {0x1e, 2}, {0x20, 1}, {0x22, 0}, {0x22, 255}, {0x27, 0x0f}, {0x26, 0xff}} {
		odd := append([]byte(nil), b...)
		odd[int(r.phys)*1024+v.at] = v.value
		fs, err := New().Open(inMemory(odd))
		must(t, err)
		if _, err := fs.Lookup(uint64(in.ino), name); err != nil && v.at < 0x24 {
			t.Errorf("0x%x at 0x%x of the root: %v", v.value, v.at, err)
		}
		if _, err := fs.Lookup(uint64(in.ino), "not there"); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("0x%x at 0x%x of the root, and a name that is not there: %v", v.value, v.at, err)
		}
	}
}

func TestReadDir_MemoryIsBounded(t *testing.T) {
	testneed.Loop(t)
	path := largeDirectory(t, 20_000)
	fs, d := openImage(t, path)
	fs.cache.max = 256 << 10
	dir := lookup(t, fs, "large").Ino
	before, n := d.reads.Load(), 0
	must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
		if e.Attr == nil {
			t.Fatalf("%q has no Attr", e.Name)
		}
		n++
		return true
	}))
	if n != 20_000 {
		t.Errorf("%d entries", n)
	}
	if fs.cache.bytes > fs.cache.max {
		t.Errorf("the cache holds %d bytes of at most %d", fs.cache.bytes, fs.cache.max)
	}
	t.Logf("%d reads", d.reads.Load()-before)
}

func TestReadDir_AllocatesNothingPerEntry(t *testing.T) {
	testneed.Loop(t)
	path := largeDirectory(t, 5000)
	fs, _ := openImage(t, path)
	dir := lookup(t, fs, "large").Ino
	list := func() { must(t, fs.ReadDir(dir, 0, true, func(*backend.DirEntry) bool { return true })) }
	list()
	if n := testing.AllocsPerRun(5, list); n > 500 {
		t.Errorf("%v allocations for 5000 entries", n)
	}
}

// The oracle of the other tests must see what differs.
func TestDifferences_AreReported(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "setfacl")
	path := mkfs(t, 64, false, "-t", "ext4")
	populate(t, path, func(dir string) { fillTree(t, dir, 100) })
	changed := copyFile(t, path)
	fs, _ := openImage(t, path)
	changes := map[string]func(dir string){
		"ReadDir lacks it":             func(d string) { must(t, os.WriteFile(d+"/new", nil, 0o600)) },
		"the kernel does not list it":  func(d string) { must(t, os.Remove(d+"/names/tab\t")) },
		"Attr is":                      func(d string) { must(t, os.Chmod(d+"/kinds/fifo", 0o777)) },
		"byte 30000 is":                func(d string) { writeAt(t, d+"/content/bytes-65536", 30_000) },
		"NextData(":                    func(d string) { writeAt(t, d+"/content/sparse", 20<<20) },
		"Xattr of user.one":            func(d string) { must(t, unix.Lsetxattr(d+"/xattrs/small", "user.one", []byte("x"), 0)) },
		"ListXattr is":                 func(d string) { must(t, unix.Lremovexattr(d+"/xattrs/big", "user.big")) },
		"Xattr of system.posix_acl_ac": func(d string) { command(t, "setfacl", "-m", "u:1:w", d+"/xattrs/acl") },
		"Readlink is": func(d string) {
			must(t, os.Remove(d+"/kinds/link 58"))
			must(t, os.Symlink("elsewhere", d+"/kinds/link 58"))
		},
		"StatFS is": func(d string) { must(t, os.WriteFile(d+"/more", content(1, 100_000), 0o600)) },
	}
	populate(t, changed, func(dir string) {
		for _, change := range changes {
			change(dir)
		}
	})
	dir, _ := mount(t, changed, "ro")
	differences, _ := fstree.Differences(fs, dir)
	all := strings.Join(differences, "\n")
	for want := range changes {
		if !strings.Contains(all, want) {
			t.Errorf("no difference says %q:\n%s", want, all)
		}
	}
}

func writeAt(t testing.TB, path string, off int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("changed"), off)
	must(t, err)
}

func TestOpen_RefusesARootThatIsNoDirectory(t *testing.T) {
	good := smallImage(t, "-O", "^metadata_csum,^uninit_bg")
	opened, err := New().Open(inMemory(good))
	must(t, err)
	fs := opened.(*FS)
	table, err := fs.inodeTable(0)
	must(t, err)
	at := table<<fs.sb.blockBits + (rootIno-1)*uint64(fs.sb.inodeBytes)
	for name, mode := range map[string]uint16{"unused": 0, "regular": 0o100644} {
		b := append([]byte(nil), good...)
		binary.LittleEndian.PutUint16(b[at:], mode)
		if _, err := New().Open(inMemory(b)); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "inode 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

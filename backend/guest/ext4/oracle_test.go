package ext4

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest"
	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// content is n bytes that are never zero for long, and differ by seed.
func content(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	b := make([]byte, n)
	r.Read(b)
	return b
}

// optional ignores what a variant of the filesystem cannot do.
func optional(t testing.TB, err error) bool {
	t.Helper()
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false
	}
	must(t, err)
	return true
}

// fillTree makes one of everything that a filesystem can hold; large is how many names
// its large directory has.
func fillTree(t testing.TB, dir string, large int) {
	t.Helper()
	fillContents(t, filepath.Join(dir, "content"))
	fillNames(t, filepath.Join(dir, "names"))
	fillTimes(t, filepath.Join(dir, "times"))
	fillKinds(t, filepath.Join(dir, "kinds"))
	fillXattrs(t, filepath.Join(dir, "xattrs"))
	fillLarge(t, filepath.Join(dir, "large"), large)
}

func fillContents(t testing.TB, dir string) {
	must(t, os.Mkdir(dir, 0o755))
	for _, n := range []int{0, 1, 59, 60, 511, 1023, 1024, 1025, 4095, 4096, 4097, 65536, 300_001} {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("bytes-%d", n)), content(uint64(n), n), 0o644))
	}
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		return f
	}
	at := func(f *os.File, off int64, n int) {
		_, err := f.WriteAt(content(uint64(off)%251, n), off)
		must(t, err)
	}

	f := create("sparse")
	at(f, 1<<20, 5000)
	at(f, 40<<20, 1)
	must(t, f.Truncate(41<<20+123))
	f.Close()
	f = create("only a hole")
	must(t, f.Truncate(3<<20+1))
	f.Close()
	f = create("huge")
	at(f, 0, 100)
	at(f, 3<<30, 70_000)
	at(f, 15<<30, 4096)
	f.Close()

	f = create("punched")
	at(f, 0, 1<<20)
	if optional(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100_000, 200_000)) {
		must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 65536))
	}
	f.Close()

	// Written, deleted and allocated again: the old bytes must not come back.
	f = create("old")
	for i := range 4 {
		at(f, int64(i)<<20, 1<<20)
	}
	must(t, f.Sync())
	f.Close()
	must(t, os.Remove(filepath.Join(dir, "old")))
	syncFS(t, dir)
	f = create("unwritten")
	if optional(t, unix.Fallocate(int(f.Fd()), 0, 0, 8<<20)) {
		at(f, 1<<20, 10_000)
		at(f, 5<<20+77, 1)
	}
	f.Close()
	f = create("unwritten past the end")
	at(f, 0, 1000)
	optional(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20))
	f.Close()
	f = create("unwritten only")
	if optional(t, unix.Fallocate(int(f.Fd()), 0, 0, 1<<20)) {
		must(t, f.Truncate(1<<20-5))
	}
	f.Close()

	f = create("fragmented")
	for i := range int64(3000) {
		at(f, i*8192, 100)
	}
	f.Close()
}

func fillNames(t testing.TB, dir string) {
	must(t, os.Mkdir(dir, 0o711))
	names := []string{"new\nline", `back\slash`, "\xff", "not \xc3\x28 UTF-8", strings.Repeat("x", 255), strings.Repeat("\xfe", 255),
		" ", "-", "...", "%2F", "ümlaut", "tab\t", "\x01", "'\"*?"}
	for i, name := range names {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte{byte(i)}, 0o600))
	}
	for i := range 40 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("removed %d", i)), nil, 0o600))
	}
	for i := range 40 {
		if i%3 != 0 {
			must(t, os.Remove(filepath.Join(dir, fmt.Sprintf("removed %d", i))))
		}
	}
}

func fillTimes(t testing.TB, dir string) {
	must(t, os.Mkdir(dir, 0o755))
	for i, sec := range []int64{-1 << 31, -1<<31 + 1, -1, 0, 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1<<31, 1<<33 + 5, 3<<32 - 1,
		3<<32 + 1<<31 - 1, 3<<32 + 1<<31, 1 << 40} {
		path := filepath.Join(dir, fmt.Sprint(sec))
		must(t, os.WriteFile(path, nil, 0o644))
		ts := []unix.Timespec{{Sec: sec, Nsec: 999_999_999}, {Sec: sec, Nsec: int64(i)}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0))
	}
}

func fillKinds(t testing.TB, dir string) {
	must(t, os.Mkdir(dir, 0o1777))
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, unix.Mkfifo(path("fifo"), 0o640))
	must(t, unix.Mknod(path("socket"), unix.S_IFSOCK|0o600, 0))
	for _, d := range [][2]uint32{{1, 3}, {8, 255}, {255, 255}, {256, 0}, {8, 256}, {259, 0xfffff}, {4095, 1}, {0, 0}} {
		name := fmt.Sprintf("%d:%d", d[0], d[1])
		must(t, unix.Mknod(path("char "+name), unix.S_IFCHR|0o666, int(unix.Mkdev(d[0], d[1]))))
		must(t, unix.Mknod(path("block "+name), unix.S_IFBLK|0o660, int(unix.Mkdev(d[0], d[1]))))
	}
	for _, n := range []int{1, 58, 59, 60, 61, 500, 1023} {
		must(t, os.Symlink(strings.Repeat("s/\xff\n", n)[:n], path(fmt.Sprintf("link %d", n))))
	}
	must(t, os.WriteFile(path("one"), []byte("linked"), 0o644))
	for i := range 5 {
		must(t, os.Link(path("one"), path(fmt.Sprintf("another %d", i))))
	}
	must(t, os.Link(path("fifo"), path("fifo too")))
	for i, mode := range []uint32{0, 0o4755, 0o2755, 0o1644, 0o7777} {
		name := path(fmt.Sprintf("mode %04o", mode))
		must(t, os.WriteFile(name, nil, 0o600))
		must(t, os.Chown(name, 65535+i, 70000*(i+1)))
		must(t, unix.Chmod(name, mode))
	}
	must(t, os.Lchown(path("link 60"), 4_000_000_000, 65536))
	deep := dir
	for i := range 20 {
		deep = filepath.Join(deep, fmt.Sprintf("below %d", i))
		must(t, os.Mkdir(deep, 0o2750))
	}
}

func fillXattrs(t testing.TB, dir string) {
	must(t, os.Mkdir(dir, 0o755))
	set := func(name, attr string, value []byte) error {
		return unix.Lsetxattr(filepath.Join(dir, name), attr, value, 0)
	}
	for _, name := range []string{"small", "big", "many", "acl", "shared 1", "shared 2", "empty value"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o640))
	}
	must(t, os.Symlink("target", filepath.Join(dir, "link")))
	must(t, os.Symlink(strings.Repeat("t", 200), filepath.Join(dir, "slow link")))
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o750))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for _, name := range []string{"small", "dir"} {
		must(t, set(name, "user.one", []byte("1\x00\xff")))
		must(t, set(name, "trusted.two", []byte("2")))
		must(t, set(name, "security.three", []byte("3")))
	}
	must(t, set("empty value", "user.empty", nil))
	must(t, set("big", "user.big", content(7, 700)))
	must(t, set("big", "trusted."+strings.Repeat("n", 200), content(8, 40)))
	for _, name := range []string{"link", "slow link", "fifo"} {
		must(t, set(name, "trusted.on "+name, content(9, 300)))
	}
	for _, name := range []string{"shared 1", "shared 2"} {
		must(t, set(name, "user.shared", content(10, 600)))
	}
	for i := 0; ; i++ {
		if err := set("many", fmt.Sprintf("user.number-%d", i), content(uint64(i), i%50)); err != nil {
			if !errors.Is(err, unix.ENOSPC) || i < 10 {
				t.Fatalf("attribute %d: %v", i, err)
			}
			break
		}
	}
	command(t, "setfacl", "-m", "u:1:r,u:70000:rw,g:5:x,g:4000000000:rwx,m:rx", filepath.Join(dir, "acl"))
	command(t, "setfacl", "-m", "u:1:r,g:2:w,d:u:3:rwx,d:g:4:r,d:m:rw", filepath.Join(dir, "dir"))
	must(t, os.WriteFile(filepath.Join(dir, "dir", "inherits"), nil, 0o666))
	must(t, os.Mkdir(filepath.Join(dir, "dir", "inherits too"), 0o777))
}

func fillLarge(t testing.TB, dir string, n int) {
	must(t, os.Mkdir(dir, 0o755))
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("%d a name in a large directory", i))
		if i%10 == 0 {
			must(t, os.WriteFile(name, []byte(name[:20]), 0o644))
		} else {
			must(t, unix.Mknod(name, unix.S_IFREG|0o600, 0))
		}
	}
}

// compareWithKernel compares an image with the kernel's mount of it.
func compareWithKernel(t testing.TB, path string) fstree.Stats {
	t.Helper()
	dir, umount := mount(t, path, "ro")
	defer umount()
	fs, _ := openImage(t, path)
	if w := fs.Warnings(); len(w) != 0 {
		t.Errorf("warnings about a clean image: %q", w)
	}
	return fstree.Compare(t, fs, dir)
}

func TestTree_EqualsTheKernelsMount(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "setfacl")
	for _, v := range []struct {
		name  string
		large int
		args  []string
		tune  []string // tune2fs's, once the image is filled
	}{
		{"default", 20_000, []string{"-t", "ext4"}, nil},
		{"1 KiB blocks", 2000, []string{"-t", "ext4", "-b", "1024"}, nil},
		{"2 KiB blocks", 500, []string{"-t", "ext4", "-b", "2048"}, nil},
		{"inodes of 128 bytes", 500, []string{"-t", "ext4", "-b", "4096", "-I", "128"}, nil},
		{"inodes of 1024 bytes", 500, []string{"-t", "ext4", "-I", "1024"}, nil},
		{"32-bit with uninit_bg", 500, []string{"-t", "ext4", "-O", "^64bit,^metadata_csum,uninit_bg"}, nil},
		{"64-bit with uninit_bg", 500, []string{"-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-b", "1024"}, nil},
		{"without checksums", 500, []string{"-t", "ext4", "-O", "^metadata_csum"}, nil},
		{"without dir_index", 500, []string{"-t", "ext4", "-O", "^dir_index"}, nil},
		{"without extents", 500, []string{"-t", "ext4", "-O", "^extents,^64bit"}, nil},
		{"without a journal", 500, []string{"-t", "ext4", "-O", "^has_journal"}, nil},
		{"metadata_csum_seed", 500, []string{"-t", "ext4", "-O", "metadata_csum_seed"}, nil},
		{"many features", 500, []string{"-t", "ext4", "-b", "1024", "-O", "orphan_file,sparse_super2,^resize_inode,verity,^flex_bg"}, []string{"-O", "quota,project,mmp"}},
		{"bigalloc", 500, []string{"-t", "ext4", "-O", "bigalloc", "-C", "65536"}, nil},
		{"inline_data", 500, []string{"-t", "ext4", "-O", "inline_data"}, nil},
		{"inline_data in inodes of 1024 bytes", 500, []string{"-t", "ext4", "-I", "1024", "-O", "inline_data,^metadata_csum,^dir_index"}, nil},
		{"inline_data and ea_inode", 500, []string{"-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode,^has_journal"}, nil},
		{"lazy", 500, []string{"-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1"}, nil},
		{"ext3", 500, []string{"-t", "ext3"}, nil},
		{"ext2", 500, []string{"-t", "ext2", "-b", "1024"}, nil},
		{"ext2 of revision 0", 300, []string{"-t", "ext2", "-r", "0"}, nil},
		{"ext2 without names' types", 300, []string{"-t", "ext2", "-O", "^filetype,^sparse_super,^large_file,^dir_index,^ext_attr,^resize_inode"}, nil},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := mkfs(t, 192, v.large > 1000, v.args...)
			populate(t, path, func(dir string) { fillTree(t, dir, v.large) })
			if v.tune != nil {
				command(t, "tune2fs", append(v.tune, path)...)
			}
			stats := compareWithKernel(t, path)
			t.Logf("%+v", stats)
			if stats.Entries < v.large || stats.Located == 0 || stats.Xattrs < 30 || stats.Segments < 3000 {
				t.Errorf("too little was compared: %+v", stats)
			}
			switch v.name {
			case "default", "1 KiB blocks", "inodes of 128 bytes", "without dir_index", "without extents", "inline_data", "inline_data and ea_inode":
				fs, _ := openImage(t, path)
				backendtest.Filesystem(t, fs)
			}
		})
	}
}

// A file of one extent of 32768 blocks, which as a length is the last that is not
// unwritten.
func TestOpenFile_ReadsExtentOf32768Blocks(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 700, false, "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^has_journal")
	chunk := content(1, mib)
	populate(t, path, func(dir string) {
		f, err := os.Create(filepath.Join(dir, "file"))
		must(t, err)
		defer f.Close()
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, 200*mib))
		for i := range int64(160) {
			copy(chunk, fmt.Sprintf("%10d", i))
			_, err := f.WriteAt(chunk, i*mib)
			must(t, err)
			must(t, f.Sync()) // one after the other, each is added to the extent before it as long as that is not full
		}
	})
	fs, _ := openImage(t, path)
	var in inode
	must(t, fs.inode(lookup(t, fs, "file").Ino, &in))
	found := map[runState]bool{}
	for block := uint64(0); block < in.size>>fs.sb.blockBits; {
		r, err := fs.mapRun(&in, block)
		must(t, err)
		if r.state == runUnwritten || r.blocks == maxExtentLength {
			found[r.state] = true
		}
		block = r.end()
	}
	if !found[runWritten] || !found[runUnwritten] {
		t.Errorf("the kernel made no extent of %d blocks and an unwritten one: %v", maxExtentLength, found)
	}
	dir, _ := mount(t, path, "ro")
	fstree.Compare(t, fs, dir)
}

func TestMapRun_ReadsDeepTrees(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 64, false, "-t", "ext4", "-b", "1024")
	populate(t, path, func(dir string) { fillContents(t, filepath.Join(dir, "content")) })
	fs, _ := openImage(t, path)
	var in inode
	must(t, fs.inode(lookup(t, fs, "content", "fragmented").Ino, &in))
	if depth := extentNode(in.block[:]).depth(); depth < 2 {
		t.Errorf("the tree of the fragmented file is only %d deep", depth)
	}
	compareWithKernel(t, path)
}

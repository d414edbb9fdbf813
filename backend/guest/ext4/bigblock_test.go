package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// debugfsTypes are the words of debugfs' stat.
var debugfsTypes = map[string]backend.FileType{
	"regular": backend.TypeRegular, "directory": backend.TypeDir, "symlink": backend.TypeSymlink, "FIFO": backend.TypeFIFO,
	"socket": backend.TypeSocket, "character special": backend.TypeChar, "block special": backend.TypeBlock,
}

var (
	debugfsStat = regexp.MustCompile(`Inode: (\d+) +Type: ([a-zA-Z ]+?) +Mode: +(\d+) [^\n]*
Generation: (\d+)[^\n]*
User: +(\d+) +Group: +(\d+) [^\n]*Size: (\d+)
[^\n]*
Links: (\d+) +Blockcount: (\d+)
[^\n]*
 ?ctime: 0x([0-9a-f]+):?([0-9a-f]*)[^\n]*
 ?atime: 0x([0-9a-f]+):?([0-9a-f]*)[^\n]*
 ?mtime: 0x([0-9a-f]+):?([0-9a-f]*)`)
	debugfsDevice = regexp.MustCompile(`Device major/minor number: (\d+):(\d+)`)
)

// debugfsAttr parses what debugfs' stat says.
func debugfsAttr(t testing.TB, out string) backend.Attr {
	t.Helper()
	m := debugfsStat.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("debugfs: %q", out)
	}
	number := func(i, base int) int64 {
		if m[i] == "" {
			return 0 // inodes of 128 bytes have no fractions of seconds
		}
		n, err := strconv.ParseInt(m[i], base, 64)
		must(t, err)
		return n
	}
	time := func(i int) backend.Time {
		extra := uint32(number(i+1, 16))
		return backend.Time{Sec: int64(int32(uint32(number(i, 16)))) + int64(extra&3)<<32, Nsec: extra >> 2}
	}
	a := backend.Attr{
		Ino: uint64(number(1, 10)), Type: debugfsTypes[m[2]], Mode: uint32(number(3, 8)), Generation: uint64(number(4, 10)),
		UID: uint32(number(5, 10)), GID: uint32(number(6, 10)), SizeBytes: number(7, 10), Nlink: uint32(number(8, 10)), Blocks512: number(9, 10),
		Ctime: time(10), Atime: time(12), Mtime: time(14),
	}
	if d := debugfsDevice.FindStringSubmatch(out); d != nil {
		m = append(m, d[1:]...)
		a.RdevMajor, a.RdevMinor = uint32(number(len(m)-2, 10)), uint32(number(len(m)-1, 10))
	}
	return a
}

// compareWithDebugfs compares an image with what debugfs reads of it: each inode's stat,
// and the names, the content and the links that it dumps. It returns how many entries there were.
func compareWithDebugfs(t testing.TB, path string) int {
	t.Helper()
	fs, _ := openImage(t, path)
	dump := imageDir(t)
	command(t, "debugfs", "-R", "rdump / "+dump, path)
	attrs := map[uint64]backend.Attr{}
	entries := 0
	var compare func(dir uint64, host string)
	compare = func(dir uint64, host string) {
		rest := map[string]bool{}
		list, err := os.ReadDir(host)
		must(t, err)
		for _, e := range list {
			rest[e.Name()] = true
		}
		must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
			entries++
			a := *e.Attr
			attrs[e.Ino] = a
			if found, err := fs.Lookup(dir, e.Name); err != nil || found != a {
				t.Errorf("%q: Lookup says %+v, %v, ReadDir %+v", e.Name, found, err, a)
			}
			at := filepath.Join(host, e.Name)
			switch a.Type {
			case backend.TypeDir:
				compare(e.Ino, at)
			case backend.TypeRegular:
				want, err := os.ReadFile(at)
				must(t, err)
				f, err := fs.OpenFile(e.Ino)
				must(t, err)
				got := make([]byte, f.Size())
				_, err = f.ReadAt(got, 0)
				if err != nil && len(got) > 0 || !bytes.Equal(got, want) {
					t.Errorf("%q: %d bytes differ from the %d of the dump, %v", e.Name, len(got), len(want), err)
				}
			case backend.TypeSymlink:
				want, err := os.Readlink(at)
				must(t, err)
				if got, err := fs.Readlink(e.Ino); err != nil || string(got) != want {
					t.Errorf("%q: %q, %v, not %q", e.Name, got, err, want)
				}
			default:
				return true // not dumped
			}
			if !rest[e.Name] {
				t.Errorf("%q is not in the dump", at)
			}
			delete(rest, e.Name)
			return true
		}))
		for name := range rest {
			t.Errorf("ReadDir lacks %q of %q", name, host)
		}
	}
	compare(fs.Root(), dump)
	var requests []string
	for ino := range attrs {
		requests = append(requests, fmt.Sprintf("stat <%d>", ino))
	}
	said := strings.Split(debugfs(t, path, requests...), "debugfs: stat ")[1:]
	for _, out := range said {
		want := debugfsAttr(t, out)
		if got := attrs[want.Ino]; got != want {
			t.Errorf("Attr is\n %+v, debugfs says\n %+v", got, want)
		}
		delete(attrs, want.Ino)
	}
	if len(attrs) != 0 {
		t.Errorf("debugfs says nothing of %d inodes", len(attrs))
	}
	return entries
}

// longName is a name of 240 bytes: few of these fill a block of 64 KiB.
func longName(i int) string { return fmt.Sprintf("%0230d %9d", i*7919, i) }

func fillLong(t testing.TB, dir string, n int) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	for i := range n {
		must(t, os.WriteFile(filepath.Join(dir, longName(i)), []byte(longName(i)[:i%40]), 0o644))
	}
}

// bigBlockSource is a tree for mke2fs to make an image of.
func bigBlockSource(t testing.TB) string {
	t.Helper()
	source := imageDir(t)
	fillNames(t, filepath.Join(source, "names"))
	fillChurn(t, filepath.Join(source, "churn"))
	fillLong(t, filepath.Join(source, "large"), 450)
	for _, n := range []int{0, 1, 65535, 65536, 65537, 300_000} {
		must(t, os.WriteFile(filepath.Join(source, fmt.Sprint(n)), content(uint64(n), n), 0o644))
	}
	f, err := os.Create(filepath.Join(source, "sparse"))
	must(t, err)
	for i := range int64(50) {
		_, err := f.WriteAt([]byte("data"), i*3*65536)
		must(t, err)
	}
	must(t, f.Close())
	must(t, os.Symlink(strings.Repeat("l", 3000), filepath.Join(source, "link")))
	must(t, os.Symlink("short", filepath.Join(source, "short link")))
	must(t, unix.Mkfifo(filepath.Join(source, "fifo"), 0o600))
	must(t, unix.Mknod(filepath.Join(source, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(300, 70_000))))
	must(t, unix.Lsetxattr(filepath.Join(source, "300000"), "user.one", content(1, 50), 0))
	must(t, unix.Lsetxattr(filepath.Join(source, "300000"), "user.two", content(1, 3500), 0))
	must(t, unix.Lsetxattr(filepath.Join(source, "names"), "user.three", content(1, 1500), 0))
	return source
}

// What the kernel's mount of a machine with pages of 4 KiB cannot read is compared with
// debugfs, and with what the image was made of.
func TestTree_EqualsDebugfsForEachBlockSize(t *testing.T) {
	testneed.Tools(t, "mke2fs", "e2fsck", "debugfs")
	testneed.Root(t)
	source := bigBlockSource(t)
	for _, v := range []struct {
		name string
		args []string
	}{
		{"4 KiB", []string{"-t", "ext4", "-b", "4096"}},
		{"8 KiB", []string{"-t", "ext4", "-b", "8192"}},
		{"16 KiB", []string{"-t", "ext4", "-b", "16384"}},
		{"32 KiB", []string{"-t", "ext4", "-b", "32768"}},
		{"64 KiB", []string{"-t", "ext4", "-b", "65536"}},
		{"8 KiB, meta_bg", []string{"-t", "ext4", "-b", "8192", "-g", "256", "-O", "meta_bg,^resize_inode,large_dir"}},
		{"16 KiB, indirect", []string{"-t", "ext4", "-b", "16384", "-O", "^extents,^64bit,^metadata_csum"}},
		{"64 KiB, indirect", []string{"-t", "ext4", "-b", "65536", "-O", "^extents,^64bit,^dir_index"}},
		{"64 KiB, 32-bit with uninit_bg", []string{"-t", "ext4", "-b", "65536", "-O", "^64bit,^metadata_csum,uninit_bg"}},
		{"64 KiB, ext2", []string{"-t", "ext2", "-b", "65536", "-r", "0"}},
		{"32 KiB, bigalloc", []string{"-t", "ext4", "-b", "32768", "-O", "bigalloc", "-C", "131072"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := mkfs(t, 200, false, append([]string{"-N", "8192", "-d", source}, v.args...)...)
			requests := []string{"rm churn/fragmented", "unlink churn/fragmented", "mkdir new", "ln 65537 new/linked", "symlink new/link target", "punch 300000 1 2"}
			for i := range 50 {
				requests = append(requests, fmt.Sprintf(`rm "large/%s"`, longName(3*i)))
			}
			debugfs(t, path, requests...)
			command(t, "sh", "-c", `e2fsck -fyD "$1"; test $? -le 1`, "sh", path)
			checkClean(t, path)
			if n := compareWithDebugfs(t, path); n < 500 {
				t.Errorf("only %d entries", n)
			}
			fs, _ := openImage(t, path)
			if a := lookup(t, fs, "large"); a.SizeBytes < 65536 {
				t.Errorf("the large directory has %d bytes only", a.SizeBytes)
			}
			for _, name := range []string{"300000", "names"} {
				a := lookup(t, fs, name)
				names, err := fs.ListXattr(a.Ino)
				must(t, err)
				if has := len(names) > 0; has != (fs.sb.compat&0x8 != 0) { // ext_attr
					t.Errorf("%s has attributes: %v", name, has)
				}
				for _, attr := range names {
					want := make([]byte, 1<<16)
					n, err := unix.Lgetxattr(filepath.Join(source, name), attr, want)
					must(t, err)
					if got, err := fs.Xattr(a.Ino, attr); err != nil || !bytes.Equal(got, want[:n]) {
						t.Errorf("%s of %s: %x, %v", attr, name, got, err)
					}
				}
			}
			s, err := fs.StatFS()
			must(t, err)
			out := command(t, "debugfs", "-R", "stats -h", path)
			for field, want := range map[string]uint64{
				"Free blocks":  s.BlocksFree,
				"Free inodes":  s.FilesFree,
				"Inode count":  s.Files,
				"Block size":   uint64(s.BlockSize),
				"Block count":  fs.sb.blocks,
				"Reserved blo": fs.sb.reservedBlocks,
			} {
				m := regexp.MustCompile(field + `[^:\n]*: +(\d+)`).FindStringSubmatch(out)
				if m == nil || m[1] != fmt.Sprint(want) {
					t.Errorf("%s: %q, not %d", field, m, want)
				}
			}
			backendtest.Filesystem(t, fs)
		})
	}
}

// The length of an entry that fills a block of 64 KiB does not fit in its 16 bits.
func TestReadDir_RecordsOf64KiB(t *testing.T) {
	path := mkfs(t, 32, false, "-t", "ext4", "-b", "65536", "-N", "64", "-O", "^metadata_csum,^has_journal,^resize_inode")
	x, image := openImage(t, path)
	var root inode
	must(t, x.inode(rootIno, &root))
	r, err := x.mapRun(&root, 0)
	must(t, err)
	at := int64(r.phys) * 65536
	list := func(change []byte) (n int, err error) {
		fs, err := New().Open(damaged{image, at, change})
		must(t, err)
		defer fs.Close()
		return n, fs.ReadDir(rootIno, 0, true, func(*backend.DirEntry) bool { n++; return true })
	}
	good := make([]byte, 24) // "." and ".."
	_, err = image.ReadAt(good, at)
	must(t, err)
	le := binary.LittleEndian
	for _, v := range []struct {
		name   string
		first  uint16 // length of the block's first entry
		unused bool
		bad    bool
	}{
		{"0 is all", 0, true, false},
		{"65535 is all", 65535, true, false},
		{"65532 leaves 4 bytes", 65532, true, true},
		{"1 is all: the low bits are the length's high ones", 1, true, false},
		{"3", 3, true, true},
		{"65534", 65534, true, true},
		{"all, in use", 0, false, false},
	} {
		b := bytes.Clone(good)
		le.PutUint16(b[4:], v.first)
		if v.unused {
			le.PutUint32(b, 0)
		}
		n, err := list(b)
		if v.bad != errors.Is(err, backend.ErrCorrupt) || !v.bad && (err != nil || n != 0) {
			t.Errorf("%s: %d entries, %v", v.name, n, err)
		}
		// 0 and 65535 behind the first entry cross the block's end.
		b = bytes.Clone(good)
		le.PutUint16(b[12+4:], v.first)
		if _, err := list(b); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%s, of the second entry: %v", v.name, err)
		}
	}
}

func TestFS_SurvivesChangesOf64KiBBlocks(t *testing.T) {
	testneed.Tools(t, "mke2fs", "e2fsck")
	const blockBytes = 65536
	source := imageDir(t)
	fillLong(t, filepath.Join(source, "large"), 700)
	fillNames(t, filepath.Join(source, "names"))
	path := mkfs(t, 80, false, "-t", "ext4", "-b", "65536", "-N", "1500", "-O", "^metadata_csum,^has_journal,^resize_inode", "-d", source)
	command(t, "sh", "-c", `e2fsck -fyD "$1"; test $? -le 1`, "sh", path)
	x, image := openImage(t, path)
	var dir inode
	must(t, x.inode(lookup(t, x, "large").Ino, &dir))
	if n := x.dirBlocks(&dir); n < 3 {
		t.Fatalf("the large directory has %d blocks", n)
	}
	var places []int64
	for block := range x.dirBlocks(&dir) {
		r, err := x.mapRun(&dir, block)
		must(t, err)
		places = append(places, int64(r.phys+block-r.logical)*blockBytes)
	}
	r := rand.New(rand.NewPCG(3, 4))
	failed := 0
	for i := range 100 {
		at := places[r.IntN(len(places))]
		b := make([]byte, blockBytes)
		_, err := image.ReadAt(b, at)
		must(t, err)
		// The lengths of entries, or what an htree has there.
		for range 1 + i%3 {
			entry := 0
			for range r.IntN(6) {
				if e, err := x.dirent(b, entry); err == nil && entry+e.length < blockBytes {
					entry += e.length
				}
			}
			binary.LittleEndian.PutUint16(b[min(entry+4*(1+i%2*r.IntN(9)), blockBytes-4):], []uint16{0, 65535, 65532, 1, 2, 3, 12, uint16(r.Uint32())}[r.IntN(8)])
		}
		if err := walkBounded(t, i, damaged{image, at, b}); err != nil {
			failed++
			if !knownError(err) {
				t.Errorf("change %d: an error of no kind: %v", i, err)
			}
		}
	}
	if failed < 20 {
		t.Errorf("only %d of 100 changes were errors", failed)
	}
}

package ext4

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/cputime"
	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"
)

// damaged is a device with changes over it.
type damaged struct {
	backend.Device
	at    int64
	bytes []byte
}

func (d damaged) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Device.ReadAt(p, off)
	if from, to := max(off, d.at), min(off+int64(n), d.at+int64(len(d.bytes))); from < to {
		copy(p[from-off:to-off], d.bytes[from-d.at:to-d.at])
	}
	return n, err
}

// zeroed has zeros over a part of a device.
func zeroed(d backend.Device, at, n int64) backend.Device {
	return damaged{d, at, make([]byte, n)}
}

// tree is what a filesystem holds: the attributes and the content below each path.
func tree(t testing.TB, fs backend.FS) map[string]string {
	t.Helper()
	all := map[string]string{}
	var walk func(dir uint64, path string)
	walk = func(dir uint64, path string) {
		must(t, fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
			if e.Attr == nil {
				_, err := fs.Attr(e.Ino)
				t.Errorf("%s/%q: %v", path, e.Name, err)
				return true
			}
			sum := sha256.New()
			switch e.Attr.Type {
			case backend.TypeRegular:
				f, err := fs.OpenFile(e.Ino)
				must(t, err)
				_, err = io.Copy(sum, io.NewSectionReader(f, 0, f.Size()))
				must(t, err)
			case backend.TypeDir:
				walk(e.Ino, path+"/"+e.Name)
			}
			all[path+"/"+e.Name] = fmt.Sprintf("%+v %x", *e.Attr, sum.Sum(nil))
			return true
		}))
	}
	walk(fs.Root(), "")
	s, err := fs.StatFS()
	must(t, err)
	all["statfs"] = fmt.Sprintf("%+v", s)
	return all
}

// sameTree opens a device, whose tree must be the one wanted, and which warns of a damage.
func sameTree(t testing.TB, what string, d backend.Device, want map[string]string, says string) {
	t.Helper()
	fs, err := New().Open(d)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer fs.Close()
	if w := fs.Warnings(); len(w) != 1 || !strings.Contains(w[0], says) {
		t.Errorf("%s: warnings %q, not one that says %q", what, w, says)
	}
	if got := tree(t, fs); !maps.Equal(got, want) {
		t.Errorf("%s: the tree differs: %d entries of %d, %s and %s", what, len(got), len(want), got["statfs"], want["statfs"])
	}
}

// backupSource is a small tree for images.
func backupSource(t testing.TB) string {
	t.Helper()
	source := imageDir(t)
	fillNames(t, filepath.Join(source, "names"))
	must(t, os.WriteFile(filepath.Join(source, "file"), content(1, 30_000), 0o644))
	return source
}

func TestOpen_ReadsACopyOfADamagedSuperblock(t *testing.T) {
	testneed.Root(t)
	source := backupSource(t)
	for _, v := range []struct {
		name    string
		sizeMiB int
		args    string
		custom  bool // where the copies are is said by the first superblock only
		last    bool // lose the copy in group 1
		kernel  int  // where the kernel is told to look, in KiB
	}{
		{"1 KiB", 40, "-b 1024", false, false, 8193},
		{"1 KiB, without checksums", 40, "-b 1024 -O ^metadata_csum", false, true, 24577},
		{"2 KiB", 120, "-b 2048", false, false, 32768},
		{"4 KiB", 300, "-b 4096", false, false, 131072},
		{"4 KiB, a journal", 300, "-b 4096 -O has_journal -J size=4", false, false, 131072},
		{"8 KiB", 1200, "-b 8192", false, false, 0},
		{"16 KiB", 2100, "-b 16384", false, false, 0},
		{"32 KiB", 4200, "-b 32768", false, false, 0},
		{"64 KiB", 8400, "-b 65536", false, false, 0},
		{"sparse_super2, in the last group", 60, "-b 1024 -O sparse_super2,^resize_inode", false, true, 0},
		{"sparse_super2, 4 KiB", 700, "-b 4096 -O sparse_super2,^resize_inode", false, true, 0},
		{"without sparse_super", 40, "-b 1024 -O ^sparse_super,^resize_inode", false, false, 16385},
		{"bigalloc, 1 KiB", 300, "-b 1024 -O bigalloc -C 16384", false, false, 131072},
		{"bigalloc, 4 KiB", 9000, "-b 4096 -O bigalloc -C 65536", false, false, 0},
		{"meta_bg", 40, "-b 1024 -g 1024 -O meta_bg,^resize_inode", true, false, 0},
		{"small groups", 40, "-b 4096 -g 512", true, false, 2048},
		{"ext2 of revision 0", 40, "-t ext2 -r 0 -b 1024", false, false, 8193},
		{"ext3", 40, "-t ext3 -b 1024", false, false, 8193},
	} {
		t.Run(v.name, func(t *testing.T) {
			args := strings.Fields("-N 512 -E lazy_itable_init=1 -m 1 -d " + source + " " + v.args)
			if !strings.Contains(v.args, "journal") && !strings.Contains(v.args, "-t ") {
				args = append(args, "-t", "ext4", "-O", "^has_journal")
			} else if !strings.Contains(v.args, "-t ") {
				args = append(args, "-t", "ext4")
			}
			path := mkfs(t, v.sizeMiB, false, joinFeatures(args)...)
			fs, d := openImage(t, path)
			want := tree(t, fs)
			super := superAt(t, d, superOffset)
			lose := func(dev backend.Device) backend.Device {
				if v.last {
					return zeroed(dev, int64(fs.sb.groupStart(1))<<fs.sb.blockBits, 65536)
				}
				return dev
			}
			checksum := "checksum"
			if fs.sb.roCompat&roCompatMetadataChecksum == 0 {
				checksum = "" // nothing tells
			}
			for _, damage := range []struct {
				name, says string
				at         int64
				bytes      []byte
				custom     bool // can be found where v.custom
			}{
				{"zeros", "magic", 0, make([]byte, superBytes), false},
				{"its magic", "magic", 0x38, []byte{0, 0}, false},
				{"its label", checksum, 0x78, []byte("another"), true},
				{"its block size", "superblock", 0x18, []byte{200}, false},
				{"its groups", "superblock", 0x28, []byte{0, 0, 0, 0}, true},
				{"its UUID and inodes", "superblock", 0x0, append(append([]byte{1, 2, 3}, super[3:0x68]...), 9, 9, 9, 9), true},
			} {
				if damage.says == "" {
					continue
				}
				dev := lose(damaged{d, superOffset + damage.at, damage.bytes})
				if v.custom && !damage.custom {
					if _, err := New().Open(dev); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "no copy of it was found") {
						t.Errorf("%s: %v", damage.name, err)
					}
					continue
				}
				sameTree(t, damage.name, dev, want, "the superblock is damaged, and its copy in block group")
			}
			if v.kernel != 0 {
				testneed.Loop(t)
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				must(t, err)
				_, err = f.WriteAt(make([]byte, 8), superOffset+0x28) // the counts in a group
				must(t, err)
				must(t, f.Close())
				dir, _ := mount(t, path, fmt.Sprintf("ro,sb=%d", v.kernel))
				fs, _ := openImage(t, path)
				fstree.Compare(t, fs, dir)
			}
		})
	}
}

// joinFeatures makes one option -O of several, as mke2fs takes the last one only.
func joinFeatures(args []string) []string {
	var rest, features []string
	for i := 0; i < len(args); i++ {
		if args[i] == "-O" {
			i++
			features = append(features, args[i])
			continue
		}
		rest = append(rest, args[i])
	}
	if features == nil {
		return rest
	}
	return append(rest, "-O", strings.Join(features, ","))
}

// Copies do not say that the journal has to be replayed: it does so itself.
func TestReadSuper_SeesInTheJournalThatItIsToBeReplayed(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 40, false, "-t", "ext4", "-b", "1024")
	dir, umount := mount(t, path, "rw")
	must(t, os.WriteFile(filepath.Join(dir, "file"), content(1, 10_000), 0o600))
	syncFS(t, dir)
	dirty := copyFile(t, path)
	umount()
	for _, v := range []struct {
		path string
		want bool
	}{{dirty, true}, {path, false}} {
		sb, damage, err := readSuper(zeroed(openDevice(t, v.path), superOffset, superBytes))
		must(t, err)
		if got := sb.incompat&incompatRecover != 0; got != v.want || damage == "" {
			t.Errorf("to be replayed: %v, not %v; %q", got, v.want, damage)
		}
		if sb.state&stateClean == 0 {
			t.Error("a copy says that it is not clean")
		}
	}
}

func TestInodeTable_ReadsCopiesOfDamagedDescriptors(t *testing.T) {
	testneed.Root(t)
	source := imageDir(t)
	for i := range 30 {
		must(t, os.MkdirAll(filepath.Join(source, fmt.Sprint("dir ", i), "below"), 0o755))
		must(t, os.WriteFile(filepath.Join(source, fmt.Sprint("dir ", i), "file"), content(uint64(i), 10_000), 0o644))
	}
	for _, v := range []struct{ name, args string }{
		{"metadata_csum", "-O metadata_csum"},
		{"uninit_bg", "-O ^metadata_csum,uninit_bg"},
		{"without checksums", "-O ^metadata_csum,^uninit_bg"},
		{"meta_bg", "-O meta_bg,^resize_inode"},
		{"meta_bg, 32-bit", "-O meta_bg,^resize_inode,^64bit"},
		{"sparse_super2", "-O sparse_super2,^resize_inode"},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := mkfs(t, 48, false, append(strings.Fields(v.args), "-t", "ext4", "-b", "1024", "-g", "1024", "-N", "768", "-d", source)...)
			fs, d := openImage(t, path)
			want := tree(t, fs)
			table := func(i uint64) int64 { return int64(fs.sb.groupDescBlock(i)) << fs.sb.blockBits }
			open := func(dev backend.Device) *FS {
				x, err := New().Open(dev)
				must(t, err)
				t.Cleanup(func() { x.Close() })
				return x.(*FS)
			}
			// Free counts are those of the damaged table, as to the kernel.
			equal := func(what string, dev backend.Device) {
				t.Helper()
				x := open(dev)
				got := tree(t, x)
				got["statfs"] = want["statfs"]
				if !maps.Equal(got, want) {
					t.Errorf("%s: the tree differs", what)
				}
				if w := x.Warnings(); len(w) != 1 || !strings.Contains(w[0], "group descriptors are damaged") || strings.Contains(w[0], "no copy") {
					t.Errorf("%s: warnings %q", what, w)
				}
			}
			equal("zeros", zeroed(d, table(0), 1024))
			equal("the table's number", damaged{d, table(0) + 8, []byte{0xff, 0xff, 0xff, 0x7f}})
			var all backend.Device = zeroed(d, table(0), 1024)
			for i := range fs.sb.groupDescBlocks() {
				all = zeroed(all, table(i), 1024)
			}
			equal("all of the table", all)
			if fs.sb.compat&compatSparseSuper2 == 0 {
				// The first copy is damaged, too.
				equal("and a copy", zeroed(all, int64(fs.sb.descCopies(0)[0])<<fs.sb.blockBits, 1024))
			}
			// With the superblock: both are read from copies.
			x := open(zeroed(all, superOffset+0x28, 4))
			got := tree(t, x)
			got["statfs"] = want["statfs"]
			if w := x.Warnings(); len(w) != 2 || !maps.Equal(got, want) {
				t.Errorf("with the superblock: warnings %q; or the tree differs", w)
			}
			for i := range fs.sb.groupDescBlocks() {
				for _, block := range fs.sb.descCopies(i) {
					all = zeroed(all, int64(block)<<fs.sb.blockBits, 1024)
				}
			}
			x = open(all)
			if w := x.Warnings(); len(w) != 1 || !strings.Contains(w[0], "no copy that is right") {
				t.Errorf("without copies: %q", w)
			}
			if _, err := x.Attr(rootIno); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "inode 2") {
				t.Errorf("without copies: %v", err)
			}
		})
	}
}

// What is where a copy would be, but is not one of this filesystem's.
func TestOpen_RefusesCopiesThatLie(t *testing.T) {
	testneed.Root(t)
	path := mkfs(t, 40, false, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^has_journal,^resize_inode,sparse_super2", "-E", "num_backup_sb=1")
	const copyAt = 8193 << 10
	le := binary.LittleEndian
	image := openDevice(t, path)
	changed := func(change func(first, second []byte)) backend.Device {
		first, second := superAt(t, image, superOffset), superAt(t, image, copyAt)
		le.PutUint32(first[0x28:], 0) // damaged, but its magic and its UUID stand
		if change != nil {
			change(first, second)
		}
		return damaged{damaged{image, superOffset, first}, copyAt, second}
	}
	for _, v := range []struct {
		name   string
		change func(first, second []byte)
	}{
		{"the number of another group", func(_, b []byte) { le.PutUint16(b[0x5a:], 3) }},
		{"number 0, of another filesystem", func(_, b []byte) { le.PutUint16(b[0x5a:], 0); b[0x68] ^= 1 }},
		{"groups of another length", func(_, b []byte) { le.PutUint32(b[0x20:], 4096) }},
		{"another block size", func(_, b []byte) { le.PutUint32(b[0x18:], 2) }},
		{"no copy in group 1", func(_, b []byte) { le.PutUint32(b[0x250:], 2) }},
		{"larger than the device, of another filesystem", func(_, b []byte) {
			b[0x68] ^= 1
			le.PutUint32(b[4:], 8192*100)
			le.PutUint32(b[0:], 100*le.Uint32(b[0x28:]))
		}},
		{"no inodes", func(_, b []byte) { le.PutUint32(b[0x28:], 0) }},
		{"a block size of 2^4294967295", func(_, b []byte) { le.PutUint32(b[0x18:], 1<<32-1) }},
		{"an unknown feature", func(_, b []byte) { le.PutUint32(b[0x60:], 1<<31) }},
		{"no root directory, of another filesystem", func(_, b []byte) { b[0x68] ^= 1; le.PutUint16(b[0x58:], 128) }},
	} {
		if _, err := New().Open(changed(v.change)); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "no copy") {
			t.Errorf("%s: %v", v.name, err)
		}
	}
	if fs, err := New().Open(changed(nil)); err != nil || len(fs.Warnings()) != 1 {
		t.Errorf("the copy as it was: %v", err)
	}
	if _, err := New().Open(changed(func(_, b []byte) { le.PutUint16(b[0x5a:], 0) })); err != nil {
		t.Errorf("number 0, as older kernels leave it: %v", err)
	}
	// A read that fails is not the lack of a copy.
	if _, err := New().Open(failing{changed(nil), 1 << 20}); !errors.Is(err, errBroken) {
		t.Errorf("the device fails: %v", err)
	}
}

// superAt reads a superblock.
func superAt(t testing.TB, d backend.Device, off int64) []byte {
	t.Helper()
	b := make([]byte, superBytes)
	_, err := d.ReadAt(b, off)
	must(t, err)
	return b
}

// everywhere is a device of one superblock's repetitions.
type everywhere struct {
	super []byte
	size  int64
	reads int
}

func (d *everywhere) Size() int64  { return d.size }
func (d *everywhere) Close() error { return nil }
func (d *everywhere) ReadAt(p []byte, off int64) (int, error) {
	d.reads++
	for n := 0; n < len(p); {
		n += copy(p[n:], d.super[(off+int64(n))%superBytes:])
	}
	return len(p), nil
}

func TestOpen_LooksForCopiesInFewPlaces(t *testing.T) {
	path := mkfs(t, 40, false, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum")
	super := superAt(t, openDevice(t, path), superOffset)
	le := binary.LittleEndian
	broken := func(at int, value uint32) []byte {
		s := bytes.Clone(super)
		le.PutUint32(s[at:], value)
		return s
	}
	for name, s := range map[string][]byte{
		"zeros":                      make([]byte, superBytes),
		"a geometry that is none":    broken(0x28, 0),
		"groups of one block":        broken(0x20, 1),
		"groups of 2^32-1 blocks":    broken(0x20, 1<<32-1),
		"copies in group 2^32-1":     broken(0x24c, 1<<32-1),
		"the first block is 2^32-1":  broken(0x14, 1<<32-1),
		"more inodes than there are": broken(0, 77),
	} {
		for _, size := range []int64{2048, 2049, 1 << 20, 1 << 40, 1<<62 + 12345, 1<<63 - 1} {
			d := &everywhere{super: s, size: size}
			start := cputime.Now()
			_, err := New().Open(d)
			if err == nil || !knownError(err) {
				if name != "copies in group 2^32-1" {
					t.Errorf("%s, %d bytes: %v", name, size, err)
				}
			}
			// A copy costs a read, and a few more where it looks like one.
			if took := start.Used(); d.reads > 8*maxBackupReads || took > time.Second {
				t.Errorf("%s, %d bytes: %d reads, %v", name, size, d.reads, took)
			}
		}
	}
}

// FuzzReadSuper has a first superblock and what lies at the place of a copy changed.
func FuzzReadSuper(f *testing.F) {
	const (
		size   = 40 << 20
		copyAt = 8193 << 10
	)
	for _, args := range []string{
		"-O ^metadata_csum", "-t ext4 -O metadata_csum,sparse_super2", "-O meta_bg,^resize_inode,^metadata_csum,uninit_bg", "-t ext4 -O bigalloc,^metadata_csum -C 4096",
		"-O large_dir,quota,^has_journal", "-r 0 -t ext2",
	} {
		d := openDevice(f, mkfs(f, size>>20, false, append([]string{"-b", "1024"}, strings.Fields(args)...)...))
		first, second := superAt(f, d, superOffset), superAt(f, d, copyAt)
		f.Add(first, second)
		f.Add(make([]byte, superBytes), second)
		f.Add(append(bytes.Clone(first[:0x28]), append(make([]byte, 4), first[0x2c:]...)...), second)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := &everywhere{super: make([]byte, superBytes), size: size}
		over := damaged{damaged{d, superOffset, first}, copyAt, second}
		sb, damage, err := readSuper(over)
		switch {
		case err != nil:
			if !knownError(err) {
				t.Errorf("an error of no kind: %v", err)
			}
		case damage != "" && (sb.copyOf == 0 || sb.copyOf >= sb.groups):
			t.Errorf("%q, group %d", damage, sb.copyOf)
		default:
			// What every later computation relies on.
			for _, i := range []uint64{0, sb.groupDescBlocks() / 2, sb.groupDescBlocks() - 1} {
				if at := sb.groupDescBlock(i); at > sb.groupStart(sb.groups) {
					t.Errorf("block %d of the descriptors is %d", i, at)
				}
				for _, at := range sb.descCopies(i) {
					if at >= sb.blocks {
						t.Errorf("a copy of block %d of the descriptors is %d of %d", i, at, sb.blocks)
					}
				}
			}
		}
		if d.reads > 8*maxBackupReads {
			t.Errorf("%d reads", d.reads)
		}
	})
}

package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// fillChurn makes files and directories, and renames and removes part of them.
func fillChurn(t testing.TB, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	file := func(i int) string { return filepath.Join(dir, fmt.Sprintf("file %d", i)) }
	for i := range 150 {
		must(t, os.WriteFile(file(i), content(uint64(i), i*37), 0o644))
	}
	for i := range 20 {
		must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprintf("dir %d", i), "below"), 0o755))
	}
	for i := range 150 {
		switch i % 5 {
		case 0:
			must(t, os.Remove(file(i)))
		case 1:
			must(t, os.Rename(file(i), filepath.Join(dir, fmt.Sprintf("dir %d", i%20), "below", strings.Repeat("renamed", i%30))+"!"))
		case 2:
			must(t, os.Rename(file(i), file(i+1))) // over another one
		}
	}
	for i := range 10 {
		must(t, os.Rename(filepath.Join(dir, fmt.Sprintf("dir %d", i)), filepath.Join(dir, fmt.Sprintf("dir %d", i+10), "moved")))
	}
	must(t, os.RemoveAll(filepath.Join(dir, "dir 15")))
	f, err := os.Create(filepath.Join(dir, "fragmented"))
	must(t, err)
	defer f.Close()
	for i := range int64(200) {
		_, err := f.WriteAt(content(uint64(i), 700), i*9000)
		must(t, err)
	}
}

// fillLayout is a smaller fillTree, for what changes where things lie, not what they are.
func fillLayout(t testing.TB, dir string) {
	t.Helper()
	fillNames(t, filepath.Join(dir, "names"))
	fillKinds(t, filepath.Join(dir, "kinds"))
	fillXattrs(t, filepath.Join(dir, "xattrs"))
	fillChurn(t, filepath.Join(dir, "churn"))
	fillLarge(t, filepath.Join(dir, "large"), 300)
}

// checkClean fails where a recipe made what e2fsck finds fault with.
func checkClean(t testing.TB, path string) {
	t.Helper()
	command(t, "e2fsck", "-fn", path)
}

func TestTree_EqualsTheKernelsMountForEachLayout(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "e2fsck", "setfacl", "tune2fs", "resize2fs", "debugfs")
	const small = 96 // MiB
	type step func(t testing.TB, path string)
	tool := func(name string, args ...string) step {
		return func(t testing.TB, path string) { command(t, name, append(args, path)...) }
	}
	resize := func(options []string, size ...string) step {
		return func(t testing.TB, path string) {
			command(t, "e2fsck", "-fy", path)
			command(t, "resize2fs", append(append(options, path), size...)...)
		}
	}
	feature := func(names string) step {
		return func(t testing.TB, path string) { debugfs(t, path, "feature "+names) }
	}
	type variant struct {
		name    string
		sizeMiB int
		args    string
		firstBG string // first_meta_bg
		then    step   // once the image is filled
		odd     bool   // e2fsck does not know it
	}
	variants := []variant{
		{name: "meta_bg", args: "-b 1024 -g 1024 -O meta_bg,^resize_inode"},
		{name: "meta_bg, 32-bit", args: "-b 1024 -g 512 -N 4096 -O meta_bg,^resize_inode,^64bit"},
		{name: "meta_bg, 4 KiB blocks", sizeMiB: 300, args: "-b 4096 -g 256 -N 4096 -O meta_bg,^resize_inode,^metadata_csum,uninit_bg"},
		{name: "meta_bg from the third block on", args: "-b 1024 -g 1024 -O meta_bg,^resize_inode", firstBG: "2"},
		{name: "meta_bg from the fourth block on, 32-bit", args: "-b 1024 -g 512 -N 4096 -O meta_bg,^resize_inode,^64bit,^flex_bg", firstBG: "3"},
		{name: "meta_bg, grown", args: "-b 1024 -g 1024 -O meta_bg,^resize_inode", then: resize(nil, "150M")},
		{name: "meta_bg and sparse_super2", args: "-b 1024 -g 1024 -O meta_bg,^resize_inode,sparse_super2"},
		{name: "meta_bg without sparse_super", args: "-b 1024 -g 1024 -O meta_bg,^resize_inode,^sparse_super"},
		{name: "meta_bg and bigalloc", sizeMiB: 160, args: "-b 1024 -g 1024 -C 2048 -O meta_bg,^resize_inode,bigalloc"},
		{name: "meta_bg, room for descriptors kept", args: "-b 1024 -g 1024", then: func(t testing.TB, path string) {
			// As an online growth leaves it that takes to meta_bg with the next block.
			debugfs(t, path, "feature -resize_inode meta_bg", fmt.Sprint("set_super_value first_meta_bg ", small/16))
		}, odd: true},
		{name: "sparse_super2, both", args: "-b 1024 -O sparse_super2"},
		{name: "sparse_super2, one", args: "-b 1024 -O sparse_super2 -E num_backup_sb=1"},
		{name: "sparse_super2, none", args: "-b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=0"},
		{name: "sparse_super2, grown", args: "-b 1024 -O sparse_super2", then: resize(nil, "150M")},
		{name: "without sparse_super", args: "-b 1024 -O ^sparse_super,^resize_inode"},
		{name: "without flex_bg", args: "-b 1024 -g 4096 -O ^flex_bg"},
		{name: "flex_bg of 4", args: "-b 1024 -g 4096 -G 4"},
		{name: "room to grow", args: "-b 1024 -E resize=4000000"},
		{name: "grown", args: "-b 1024", then: resize(nil, "200M")},
		{name: "shrunk", args: "-b 1024 -g 4096", then: resize(nil, "60M")},
		{name: "made 64bit", args: "-O ^64bit,^metadata_csum -b 1024", then: resize([]string{"-b"})},
		{name: "made 32-bit", args: "-O 64bit,^metadata_csum -b 1024", then: resize([]string{"-s"})},
		{name: "checksums added", args: "-O ^metadata_csum -b 1024", then: tool("tune2fs", "-O", "metadata_csum")},
		{name: "another UUID and a seed", args: "-b 1024 -O metadata_csum_seed", then: tool("tune2fs", "-U", "5eed5eed-0000-4000-8000-000000000002")},
		{name: "directories optimized", args: "-b 1024", then: func(t testing.TB, path string) {
			command(t, "e2fsck", "-fyD", path)
		}},
		{name: "stable_inodes", args: "-O stable_inodes,verity"},
		{name: "orphan_file", args: "-O orphan_file"},
		{name: "orphan_present", args: "-O orphan_file", then: feature("orphan_present"), odd: true},
		{name: "shared_blocks", then: feature("shared_blocks")},
		{name: "read-only", then: tool("tune2fs", "-O", "read-only")},
		{name: "quota and project", args: "-I 256", then: tool("tune2fs", "-O", "quota,project", "-Q", "usrquota,grpquota,prjquota")},
		{name: "project without quota", then: tool("tune2fs", "-O", "project")},
		{name: "dir_nlink and extra_isize are off", args: "-O ^dir_nlink,^extra_isize,^huge_file,^large_file"},
		{name: "extents without filetype", args: "-O ^filetype"},
		{name: "fast_commit", args: "-O fast_commit"},
		{name: "unknown compatible features", args: "-O ^metadata_csum", then: func(t testing.TB, path string) {
			patchSuper(t, path, 0x64, 0xfff00000|le32(t, path, 0x64)) // unknown read-only compatible features
			patchSuper(t, path, 0x5c, 0xffff0000|le32(t, path, 0x5c)) // unknown compatible ones
		}, odd: true},
		{name: "revision 9", args: "-O ^metadata_csum", then: func(t testing.TB, path string) { patchSuper(t, path, 0x4c, 9) }, odd: true},
		{name: "features in revision 0", args: "-O ^metadata_csum -I 128 -b 1024", then: func(t testing.TB, path string) { patchSuper(t, path, 0x4c, 0) }, odd: true},
		{name: "mmp in use", args: "-O ^metadata_csum", then: func(t testing.TB, path string) {
			command(t, "tune2fs", "-O", "mmp", path)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			const seq = 4 // of the mmp block
			_, err = f.WriteAt([]byte{1, 2, 3, 4}, int64(le32(t, path, 0x168))*int64(1024<<le32(t, path, 0x18))+seq)
			must(t, err)
		}, odd: true},
	}
	for cluster := 8192; cluster <= mib; cluster *= 2 {
		variants = append(variants, variant{name: fmt.Sprintf("bigalloc of %d KiB", cluster>>10), sizeMiB: cluster * 800 / mib, args: fmt.Sprintf("-O bigalloc -b 4096 -C %d", cluster)})
	}
	variants = append(variants,
		variant{name: "bigalloc, 1 KiB blocks", args: "-O bigalloc -b 1024 -C 4096"},
		variant{name: "bigalloc, its overhead counted", sizeMiB: 300, args: "-O bigalloc,meta_bg,^resize_inode -b 1024 -g 1024 -C 4096", then: func(t testing.TB, path string) {
			debugfs(t, path, "set_super_value overhead_clusters 0")
		}},
		variant{name: "bigalloc grown", args: "-O bigalloc -b 1024 -C 4096", then: resize([]string{"-f"}, "150M"), odd: true}, // resize2fs counts free blocks wrong,
	)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			if v.firstBG != "" {
				t.Setenv("MKE2FS_FIRST_META_BG", v.firstBG)
			}
			path := mkfs(t, max(v.sizeMiB, small), false, append([]string{"-t", "ext4"}, strings.Fields(v.args)...)...)
			populate(t, path, func(dir string) { fillLayout(t, dir) })
			if v.then != nil {
				v.then(t, path)
			}
			if !v.odd {
				checkClean(t, path)
			}
			fs, _ := openImage(t, path)
			if v.firstBG != "" && fmt.Sprint(fs.sb.firstMetaBG) != v.firstBG {
				t.Errorf("first_meta_bg is %d", fs.sb.firstMetaBG)
			}
			if n := fs.sb.groupDescBlocks(); strings.Contains(v.args, "meta_bg,") && n < 4 {
				t.Errorf("only %d blocks of descriptors", n)
			}
			if stats := compareWithKernel(t, path); stats.Entries < 500 || stats.Xattrs < 30 || stats.Segments < 200 {
				t.Errorf("too little was compared: %+v", stats)
			}
		})
	}
}

// le32 is a field of the superblock, patchSuper sets one.
func le32(t testing.TB, path string, at int64) uint32 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	var b [4]byte
	_, err = f.ReadAt(b[:], superOffset+at)
	must(t, err)
	return binary.LittleEndian.Uint32(b[:])
}

func patchSuper(t testing.TB, path string, at int64, value uint32) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(binary.LittleEndian.AppendUint32(nil, value), superOffset+at)
	must(t, err)
}

// Names of 255 bytes are three to a block of 1 KiB, and half of that after a split: so
// few names take three levels of an htree.
func TestLargeDir_HtreeOfThreeLevelsEqualsTheKernels(t *testing.T) {
	testneed.Loop(t)
	const names = 25_000
	path := mkfs(t, 64, false, "-t", "ext4", "-b", "1024", "-N", "1024", "-O", "large_dir,^has_journal")
	name := func(i int) string { return fmt.Sprintf("%0255d", i) }
	populate(t, path, func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "large"), 0o755))
		one := filepath.Join(dir, "one")
		must(t, os.WriteFile(one, []byte("linked"), 0o644))
		d, err := os.Open(filepath.Join(dir, "large"))
		must(t, err)
		defer d.Close()
		for i := range names {
			must(t, unix.Linkat(unix.AT_FDCWD, one, int(d.Fd()), name(i), 0))
		}
		for i := 0; i < names; i += 1000 {
			must(t, unix.Unlinkat(int(d.Fd()), name(i), 0))
		}
	})
	checkClean(t, path)
	fs, d := openImage(t, path)
	var in inode
	must(t, fs.directory(lookup(t, fs, "large").Ino, &in))
	root, err := fs.index(&in, 0)
	must(t, err)
	if levels := root.b[0x1e]; levels != maxIndexLevels {
		t.Fatalf("the htree has %d inner levels", levels)
	}
	for i := 1; i < names; i += 999 {
		if ino, err := fs.findHashed(&in, exactly(name(i))); (ino != 0) != (i%1000 != 0) || err != nil {
			t.Fatalf("name %d: %d, %v", i, ino, err)
		}
	}
	fs.cache.clear()
	before := d.reads.Load()
	lookup(t, fs, "large", name(12_345))
	if n := d.reads.Load() - before; n > 12 {
		t.Errorf("a lookup took %d reads", n)
	}
	stats := compareWithKernel(t, path)
	if stats.Entries < names*999/1000 {
		t.Errorf("too little was compared: %+v", stats)
	}
	// Without the feature the kernel takes such an index for a corrupt one, and reads all.
	debugfs(t, path, "feature -large_dir")
	fs, _ = openImage(t, path)
	must(t, fs.directory(uint64(in.ino), &in))
	if _, err := fs.findHashed(&in, exactly(name(1))); !errors.Is(err, errOddIndex) {
		t.Errorf("three levels without large_dir: %v", err)
	}
	lookup(t, fs, "large", name(12_345))
}

// The upper half of a directory's size counts with large_dir only.
func TestLargeDir_SizeHas64Bits(t *testing.T) {
	const far = 5 << 22 // blocks of 1 KiB: the names lie at 20 GiB
	image := longDir(t, 0, func(_ *FS, dirBlock func(i int) []byte) {
		b := dirBlock(0)
		le := binary.LittleEndian
		le.PutUint32(b, 11)
		b[6], b[7] = 3, 2
		copy(b[direntHeader:], "far")
	})
	fs, err := New().Open(inMemory(image))
	must(t, err)
	x := fs.(*FS)
	table, err := x.inodeTable(0)
	must(t, err)
	le := binary.LittleEndian
	in := image[table*1024+(rootIno-1)*uint64(x.sb.inodeBytes):]
	le.PutUint16(in[0x28+2:], 1) // extent
	le.PutUint32(in[0x28+12:], far)
	size := uint64(far+aliasBlocks) * 1024
	le.PutUint32(in[4:], uint32(size))
	le.PutUint32(in[0x6c:], uint32(size>>32))
	incompat := image[superOffset+0x60:]
	for _, large := range []bool{false, true} {
		if large {
			le.PutUint32(incompat, le.Uint32(incompat)|incompatLargeDir)
		}
		fs, err := New().Open(inMemory(image))
		must(t, err)
		a, err := fs.Attr(rootIno)
		must(t, err)
		_, err = fs.Lookup(rootIno, "far")
		if large && (a.SizeBytes != int64(size) || err != nil) || !large && (a.SizeBytes != int64(uint32(size)) || !errors.Is(err, backend.ErrNotExist)) {
			t.Errorf("large_dir %v: %d bytes, %v", large, a.SizeBytes, err)
		}
	}
}

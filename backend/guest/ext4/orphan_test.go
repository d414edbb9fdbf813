package ext4

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

var orphanCases = []struct {
	name string
	mkfs []string
	kind string // of what the superblock or the orphan file must list
}{
	{"list, 1 KiB blocks", []string{"-t", "ext4", "-b", "1024", "-O", "^orphan_file"}, "list"},
	{"list, 4 KiB blocks", []string{"-t", "ext4", "-b", "4096", "-O", "^orphan_file"}, "list"},
	{"list, without checksums", []string{"-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,^orphan_file"}, "list"},
	{"list, checksums of groups, 2 KiB blocks", []string{"-t", "ext4", "-b", "2048", "-O", "^metadata_csum,uninit_bg,^orphan_file"}, "list"},
	{"list, indirect maps", []string{"-t", "ext3", "-b", "1024"}, "list"},
	{"list, clusters", []string{"-t", "ext4", "-b", "1024", "-O", "bigalloc,^orphan_file", "-C", "16384"}, "list"},
	{"list, inline data, values in inodes", []string{"-t", "ext4", "-b", "1024", "-O", "inline_data,ea_inode,^orphan_file"}, "list"},
	{"file, inline data, values in inodes", []string{"-t", "ext4", "-b", "4096", "-O", "inline_data,ea_inode,orphan_file"}, "file"},
	{"file", []string{"-t", "ext4", "-b", "1024", "-O", "orphan_file"}, "file"},
	{"file, without checksums, 4 KiB blocks", []string{"-t", "ext4", "-b", "4096", "-O", "orphan_file,^metadata_csum"}, "file"},
}

// orphans leaves open files without names in a mounted filesystem, and returns what
// closes them.
func orphans(t testing.TB, dir string) (closeAll func()) {
	t.Helper()
	var open []*os.File
	keep := func(f *os.File) { open = append(open, f) }
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("file-%d", i)) }
	for i := range 30 {
		f, err := os.Create(path(i))
		must(t, err)
		switch i % 5 {
		case 0:
			_, err = f.Write(content(uint64(i), 1+i*5000))
		case 1: // many extents, or blocks of pointers at all levels
			for k := range int64(200) {
				if _, err = f.WriteAt([]byte("sparse"), k*k*k<<11); err != nil {
					break
				}
			}
		case 2:
			err = unix.Fallocate(int(f.Fd()), 0, 0, int64(i)*10_000)
			if err == unix.EOPNOTSUPP {
				err = nil
			}
		case 3:
			_, err = f.Write([]byte("attributes"))
			must(t, unix.Fsetxattr(int(f.Fd()), "trusted.long", content(1, 700), 0))
			// Values that two files share, where they lie in inodes of their own; one of the files may stay.
			for _, size := range []int{6000, 40_000} {
				if err := unix.Fsetxattr(int(f.Fd()), fmt.Sprint("trusted.", size), content(uint64(i/10), size), 0); err != nil && err != unix.ENOSPC && err != unix.E2BIG {
					t.Fatal(err)
				}
			}
		}
		must(t, err)
		if i%2 == 0 || i == 1 || i == 11 || i == 13 {
			keep(f)
			must(t, os.Remove(path(i)))
		} else {
			must(t, f.Close())
		}
	}
	// A long symbolic link, a directory and a pipe.
	must(t, os.Symlink(strings.Repeat("x", 200), filepath.Join(dir, "link")))
	fd, err := unix.Open(filepath.Join(dir, "link"), unix.O_PATH|unix.O_NOFOLLOW, 0)
	must(t, err)
	keep(os.NewFile(uintptr(fd), "link"))
	must(t, os.Remove(filepath.Join(dir, "link")))
	must(t, os.Mkdir(filepath.Join(dir, "gone"), 0o700))
	d, err := os.Open(filepath.Join(dir, "gone"))
	must(t, err)
	keep(d)
	must(t, os.Remove(filepath.Join(dir, "gone")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	p, err := os.OpenFile(filepath.Join(dir, "pipe"), os.O_RDWR, 0)
	must(t, err)
	keep(p)
	must(t, os.Remove(filepath.Join(dir, "pipe")))
	syncFS(t, dir)
	return func() {
		for _, f := range open {
			f.Close()
		}
	}
}

// changeInodes changes inodes of an image that is not mounted.
func changeInodes(t testing.TB, image string, change func(e *editor)) {
	t.Helper()
	fs, _ := openImage(t, image)
	e := newEditor(fs)
	change(e)
	e.finish()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for block, b := range fs.over.edited {
		_, err := f.WriteAt(b, int64(block)<<fs.sb.blockBits)
		must(t, err)
	}
}

// inodeOf returns the inode at a path, to be changed.
func inodeOf(t testing.TB, e *editor, names ...string) *editedInode {
	t.Helper()
	in, err := e.inode(uint32(lookup(t, e.fs, names...).Ino), false)
	must(t, err)
	return in
}

// checkOrphans compares what is left of an image's orphans with what the kernel leaves.
func checkOrphans(t testing.TB, image string) *FS {
	t.Helper()
	since := time.Now()
	fs, _ := openImage(t, image)
	if w := fs.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	recovered := clone(t, image, image+".kernel")
	dir, umount, err := mountRecovering(t, recovered, "rw,noatime")
	must(t, err)
	stats := compareRecovered(t, fs, since, dir)
	umount()
	out := writeOut(t, fs, image, image+".out")
	recount(t, out)
	ours, theirs := faults(t, out), faults(t, recovered)
	t.Logf("%d edited blocks, %d faults of e2fsck, %+v", len(fs.over.edited), len(ours), stats)
	for _, f := range ours {
		if !slices.Contains(theirs, f) {
			t.Errorf("e2fsck: %s", f)
		}
	}
	return fs
}

func TestOrphans_AreDeletedAsTheKernelDoes(t *testing.T) {
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck")
	dir := reflinkDir(t)
	for i, c := range orphanCases {
		t.Run(c.name, func(t *testing.T) {
			image := filepath.Join(dir, fmt.Sprintf("image-%d", i))
			must(t, os.WriteFile(image, nil, 0o600))
			must(t, os.Truncate(image, 64*mib))
			command(t, "mke2fs", append(append([]string{"-q", "-F"}, c.mkfs...), image)...)
			mounted, umount := mount(t, image, "rw")
			closeAll := orphans(t, mounted)
			cut := clone(t, image, image+".cut")
			closeAll()
			umount()
			b := make([]byte, superBytes)
			f, err := os.Open(cut)
			must(t, err)
			_, err = f.ReadAt(b, superOffset)
			must(t, err)
			must(t, f.Close())
			fs := checkOrphans(t, cut)
			if len(fs.over.edited) == 0 {
				t.Error("there were no orphans")
			}
			if (c.kind == "file") != (binary.LittleEndian.Uint32(b[superROCompatAt:])&roCompatOrphanPresent != 0) {
				t.Errorf("the orphans are not in the %s", c.kind)
			}
		})
	}
}

// TestOrphans_AreTruncatedAsTheKernelDoes makes the sizes of files smaller than what they have, as a
// truncation that was cut off does.
func TestOrphans_AreTruncatedAsTheKernelDoes(t *testing.T) {
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck")
	dir := reflinkDir(t)
	for i, c := range orphanCases {
		if c.kind == "file" || strings.Contains(c.name, "inline") {
			continue // these files are too large for an inode
		}
		t.Run(c.name, func(t *testing.T) {
			image := filepath.Join(dir, fmt.Sprintf("image-%d", i))
			must(t, os.WriteFile(image, nil, 0o600))
			must(t, os.Truncate(image, 64*mib))
			command(t, "mke2fs", append(append([]string{"-q", "-F"}, c.mkfs...), image)...)
			sizes := []uint64{0, 1, 500, 1024, 1025, 4096, 12 << 10, 12<<10 + 1, 30_000, 268 << 10, 300_000, 64<<20 + 5, 70 << 20, 1 << 30}
			populate(t, image, func(dir string) {
				for i := range sizes {
					f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
					must(t, err)
					_, err = f.Write(content(uint64(i), 600_000))
					must(t, err)
					for k := range int64(40) {
						_, err = f.WriteAt([]byte("sparse"), 600_000+k*k*k*k<<10)
						must(t, err)
					}
					must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 40_000, 100_000))
					must(t, f.Close())
				}
			})
			changeInodes(t, image, func(e *editor) {
				next := uint32(0)
				for i, size := range sizes {
					in := inodeOf(t, e, fmt.Sprint(i))
					in.setSize(size)
					in.put32(inodeDtimeAt, next)
					in.seal()
					next = in.ino
				}
				must(t, e.super(func(b []byte) { binary.LittleEndian.PutUint32(b[superLastOrphanAt:], next) }))
			})
			fs := checkOrphans(t, image)
			for i, size := range sizes {
				a := lookup(t, fs, fmt.Sprint(i))
				if a.SizeBytes != int64(size) || size == 0 && a.Blocks512 != 0 {
					t.Errorf("file %d of %d bytes: %+v", i, size, a)
				}
			}
		})
	}
}

// TestOrphans_StayWhereTheKernelLeavesThem is about filesystems with errors, and lists that are wrong.
func TestOrphans_StayWhereTheKernelLeavesThem(t *testing.T) {
	testneed.Tools(t, "mke2fs", "e2fsck", "mkfs.xfs")
	dir := reflinkDir(t)
	image := filepath.Join(dir, "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16*mib))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^orphan_file", image)
	populate(t, image, func(dir string) {
		for _, name := range []string{"a", "b", "c"} {
			must(t, os.WriteFile(filepath.Join(dir, name), content(1, 50_000), 0o600))
		}
		must(t, os.Symlink("fast", filepath.Join(dir, "link")))
	})
	le := binary.LittleEndian
	for _, c := range []struct {
		name   string
		change func(e *editor)
		blocks [3]bool // which of the files lose blocks
		warns  string
	}{
		{"errors were found", func(e *editor) {
			must(t, e.super(func(b []byte) { le.PutUint16(b[superStateAt:], stateClean|stateErrors) }))
		}, [3]bool{}, "errors"},
		{"an unknown feature", func(e *editor) {
			must(t, e.super(func(b []byte) { le.PutUint32(b[superROCompatAt:], le.Uint32(b[superROCompatAt:])|1<<30) }))
		}, [3]bool{}, ""},
		{"a circle", func(e *editor) {
			in := inodeOf(t, e, "c")
			in.put32(inodeDtimeAt, inodeOf(t, e, "a").ino)
			in.seal()
		}, [3]bool{true, true, true}, ""},
		{"one that is free", func(e *editor) {
			in := inodeOf(t, e, "b")
			in.put32(inodeDtimeAt, 1000)
			in.seal()
		}, [3]bool{true, true, false}, "orphan"},
		{"a symbolic link", func(e *editor) {
			in := inodeOf(t, e, "a")
			in.put32(inodeDtimeAt, inodeOf(t, e, "link").ino)
			in.seal()
		}, [3]bool{true, false, false}, "orphan"},
		{"one that is reserved", func(e *editor) {
			in := inodeOf(t, e, "a")
			in.put32(inodeDtimeAt, 7)
			in.seal()
		}, [3]bool{true, false, false}, "orphan"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cut := clone(t, image, image+".cut")
			changeInodes(t, cut, func(e *editor) {
				next := uint32(0)
				for _, name := range []string{"c", "b", "a"} {
					in := inodeOf(t, e, name)
					in.setSize(1000)
					in.put32(inodeDtimeAt, next)
					in.seal()
					next = in.ino
				}
				must(t, e.super(func(b []byte) { le.PutUint32(b[superLastOrphanAt:], next) }))
				c.change(e)
			})
			since := time.Now()
			fs, _ := openImage(t, cut)
			options := "rw,noatime"
			if c.warns == "" && c.blocks == [3]bool{} {
				options = "ro" // the feature allows no more
			}
			mounted, umount, err := mountRecovering(t, cut, options)
			must(t, err)
			compareRecovered(t, fs, since, mounted)
			umount()
			for i, name := range []string{"a", "b", "c"} {
				if a := lookup(t, fs, name); (a.Blocks512 == 2) != c.blocks[i] {
					t.Errorf("%s: %+v", name, a)
				}
			}
			if w := strings.Join(fs.Warnings(), " "); (w == "") != (c.warns == "") || !strings.Contains(w, c.warns) {
				t.Errorf("warnings: %q", w)
			}
		})
	}
}

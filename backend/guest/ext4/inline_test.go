package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// fillInline makes files and directories that begin in their inodes: of sizes about those where
// they cannot stay there.
func fillInline(t testing.TB, dir string, cuts ...int64) {
	for i := range 260 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file %d", i)), content(uint64(i), i), 0o644))
	}
	for _, size := range append(cuts, 0, 1, 59, 60) {
		for _, was := range []int{0, 1, 60, 61, 120} {
			name := filepath.Join(dir, fmt.Sprintf("file of %d cut at %d", was, size))
			must(t, os.WriteFile(name, content(uint64(was)+1, was), 0o644))
			must(t, os.Truncate(name, size))
		}
	}
	for i := range 12 {
		name := filepath.Join(dir, fmt.Sprintf("with attributes %d", i))
		must(t, os.WriteFile(name, content(uint64(i), 10*i), 0o644))
		must(t, unix.Lsetxattr(name, "user.a", content(1, 5*i), 0))
		must(t, unix.Lsetxattr(name, "user.b", content(2, 50*(i%3)), 0))
		must(t, os.WriteFile(name, content(uint64(i)+1, 8*i), 0o644))
	}
	for i := range 16 {
		below := filepath.Join(dir, fmt.Sprintf("dir %d", i))
		must(t, os.Mkdir(below, 0o755))
		for j := range i {
			must(t, os.WriteFile(filepath.Join(below, fmt.Sprintf("%d%s", j, strings.Repeat("x", j*i%20))), nil, 0o600))
		}
		must(t, os.Mkdir(filepath.Join(below, "a dir below"), 0o700))
		for j := range i {
			if (i+j)%3 == 0 {
				must(t, os.Remove(filepath.Join(below, fmt.Sprintf("%d%s", j, strings.Repeat("x", j*i%20)))))
			}
		}
		must(t, os.WriteFile(filepath.Join(below, "last"), []byte("last"), 0o600))
	}
	must(t, os.Rename(filepath.Join(dir, "dir 3"), filepath.Join(dir, "dir 4", "moved")))
}

func TestInlineData_EqualsTheKernelsMount(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs")
	// The kernel makes no symbolic links with inline data, mke2fs does.
	source := t.TempDir()
	for i := 55; i < 180; i += 3 {
		must(t, os.Symlink(content7(i), filepath.Join(source, fmt.Sprintf("link %d", i))))
	}
	must(t, os.Mkdir(filepath.Join(source, "by mke2fs"), 0o755))
	fillInline(t, filepath.Join(source, "by mke2fs"))
	for _, v := range []struct {
		name string
		args []string
	}{
		{"inodes of 256 bytes", nil},
		{"inodes of 512 bytes", []string{"-I", "512"}},
		{"inodes of 4096 bytes", []string{"-b", "4096", "-I", "4096"}},
		{"without dir_index and filetype", []string{"-O", "^dir_index,^filetype,^metadata_csum"}},
		{"without extents", []string{"-O", "^extents,^64bit", "-b", "1024"}},
		{"with ea_inode", []string{"-O", "ea_inode"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			path := mkfs(t, 64, false, append([]string{"-t", "ext4", "-N", "4096", "-O", "inline_data", "-d", source}, v.args...)...)
			populate(t, path, func(dir string) {
				must(t, os.Mkdir(filepath.Join(dir, "by the kernel"), 0o755))
				fillInline(t, filepath.Join(dir, "by the kernel"), 61, 100, 4096, 5000, 1<<20, 1<<30+1)
			})
			stats := compareWithKernel(t, path)
			t.Logf("%+v", stats)
			fs, _ := openImage(t, path)
			found := map[backend.FileType]int{}
			for ino := uint64(11); ino < 2000; ino++ {
				var in inode
				if fs.inode(ino, &in) == nil && in.inline {
					found[in.fileType()]++
					if len(in.inlineRest) > 0 {
						found[in.fileType()]++
					}
				}
			}
			if found[backend.TypeRegular] < 150 || found[backend.TypeDir] < 20 || found[backend.TypeSymlink] < 20 && !strings.Contains(v.name, "ea_inode") {
				t.Errorf("too few inodes with inline data: %v", found)
			}
			backendtest.Filesystem(t, fs)
		})
	}
}

// mke2fs makes such files: they are longer than what their inode has room for.
func TestInlineData_EndsInAHole(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs")
	source := t.TempDir()
	const size = 10_000
	must(t, os.WriteFile(filepath.Join(source, "file"), nil, 0o644))
	must(t, os.Truncate(filepath.Join(source, "file"), size))
	path := mkfs(t, 16, false, "-t", "ext4", "-O", "inline_data", "-d", source)
	debugfs(t, path, "sif file block[0] 0x64636261")
	dir, _ := mount(t, path, "ro")
	want, err := os.ReadFile(filepath.Join(dir, "file"))
	must(t, err)
	fs, _ := openImage(t, path)
	f, err := fs.OpenFile(lookup(t, fs, "file").Ino)
	must(t, err)
	got := bytes.Repeat([]byte{1}, size+1)
	if n, err := f.ReadAt(got, 0); n != size || err != io.EOF || !bytes.Equal(got[:n], want) || !bytes.HasPrefix(got, []byte("abcd\x00")) {
		t.Errorf("ReadAt: %d, %v, %q…", n, err, got[:10])
	}
	for _, v := range []struct{ off, data, hole int64 }{{0, 0, 60}, {59, 59, 60}, {60, -1, 60}, {61, -1, 61}, {size - 1, -1, size - 1}, {size, -1, -1}} {
		for _, seek := range []struct {
			name string
			f    func(int64) (int64, error)
			want int64
		}{{"NextData", f.(backend.Sparse).NextData, v.data}, {"NextHole", f.(backend.Sparse).NextHole, v.hole}} {
			if at, err := seek.f(v.off); seek.want >= 0 && (at != seek.want || err != nil) || seek.want < 0 && !errors.Is(err, backend.ErrRange) {
				t.Errorf("%s(%d): %d, %v, want %d", seek.name, v.off, at, err, seek.want)
			}
		}
	}
}

// content7 is a target of n bytes.
func content7(n int) string { return strings.Repeat("target/", n)[:n] }

// The cookies of an inline directory lead on after each entry.
func TestReadDir_OfInlineDirectoriesGoesOnAfterEachEntry(t *testing.T) {
	testneed.Loop(t)
	path := mkfs(t, 16, false, "-t", "ext4", "-I", "512", "-O", "inline_data")
	populate(t, path, func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
		for i := range 9 {
			must(t, os.WriteFile(filepath.Join(dir, "d", fmt.Sprintf("name %d", i)), nil, 0o600))
		}
	})
	fs, _ := openImage(t, path)
	ino := lookup(t, fs, "d").Ino
	var in inode
	must(t, fs.directory(ino, &in))
	if !in.inline || len(in.inlineRest) == 0 {
		t.Fatal("the directory is not in its inode")
	}
	var all []backend.DirEntry
	list := func(cookie uint64, max int) (found []backend.DirEntry) {
		must(t, fs.ReadDir(ino, cookie, false, func(e *backend.DirEntry) bool {
			found = append(found, *e)
			return len(found) < max
		}))
		return found
	}
	if all = list(0, 100); len(all) != 9 {
		t.Fatalf("%d entries", len(all))
	}
	for i, e := range all {
		rest := list(e.Cookie, 100)
		if fmt.Sprint(rest) != fmt.Sprint(all[i+1:]) {
			t.Errorf("after %q: %v, not %v", e.Name, rest, all[i+1:])
		}
		if one := list(e.Cookie, 1); len(all) > i+1 && (len(one) != 1 || one[0] != all[i+1]) {
			t.Errorf("the one after %q: %v", e.Name, one)
		}
	}
	if _, err := fs.Lookup(ino, "name 9"); !errors.Is(err, backend.ErrNotExist) {
		t.Error(err)
	}
}

// inlineImage is an image with an inline file, directory and symbolic link that fill more
// than i_block.
func inlineImage(t testing.TB) []byte {
	t.Helper()
	testneed.Loop(t)
	source := t.TempDir()
	must(t, os.Symlink(content7(120), filepath.Join(source, "link"))) // the kernel makes none
	path := mkfs(t, 8, false, "-t", "ext4", "-b", "1024", "-N", "64", "-I", "256", "-O", "inline_data,^metadata_csum,^has_journal,^resize_inode", "-d", source)
	populate(t, path, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "file"), content(1, 120), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "blocks"), content(2, 5000), 0o644))
		must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o755))
		for i := range 5 {
			must(t, os.WriteFile(filepath.Join(dir, "dir", fmt.Sprintf("name %d", i)), nil, 0o644))
		}
	})
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

func TestInlineData_RefusesWhatIsWrong(t *testing.T) {
	good := inlineImage(t)
	const fileAttr = minInodeBytes + 32 + xattrInodeHeader // of the entry of system.data
	le := binary.LittleEndian
	stat := func(fs backend.FS, ino uint64) error { _, err := fs.Attr(ino); return err }
	list := func(fs backend.FS, ino uint64) error {
		return fs.ReadDir(ino, 0, true, func(*backend.DirEntry) bool { return true })
	}
	for _, v := range []struct {
		what, name string
		change     func(in []byte)
		do         func(fs backend.FS, ino uint64) error
	}{
		{"extents, too", "file", func(in []byte) { le.PutUint32(in[0x20:], inodeInlineData|inodeExtents) }, stat},
		{"a value past the end", "file", func(in []byte) { le.PutUint16(in[fileAttr+2:], 200) }, stat},
		{"a value of 4 GiB", "file", func(in []byte) { le.PutUint32(in[fileAttr+8:], 0xffffffff) }, stat},
		{"a value in an inode", "file", func(in []byte) { le.PutUint32(in[fileAttr+4:], 12) }, stat},
		{"a name past the end", "file", func(in []byte) { in[fileAttr] = 0xff }, stat},
		{"a value past the end", "dir", func(in []byte) { le.PutUint16(in[fileAttr+2:], 90) }, list},
		{"a parent of 0", "dir", func(in []byte) { le.PutUint32(in[0x28:], 0) }, func(fs backend.FS, ino uint64) error { _, err := fs.Parent(ino); return err }},
		{"a parent past the end", "dir", func(in []byte) { le.PutUint32(in[0x28:], 65) }, func(fs backend.FS, ino uint64) error { _, err := fs.Parent(ino); return err }},
		{"an entry across its part", "dir", func(in []byte) { le.PutUint16(in[0x28+4+4:], 60) }, list},
		{"an entry of no length", "dir", func(in []byte) { le.PutUint16(in[0x28+4+4:], 0) }, list},
		{"an entry of no inode", "dir", func(in []byte) { le.PutUint32(in[0x28+4:], 1<<20) }, list},
		{"a target longer than its value", "link", func(in []byte) { le.PutUint32(in[0x4:], 121) }, func(fs backend.FS, ino uint64) error { _, err := fs.Readlink(ino); return err }},
		{"an empty target", "link", func(in []byte) { le.PutUint32(in[0x4:], 0) }, func(fs backend.FS, ino uint64) error { _, err := fs.Readlink(ino); return err }},
	} {
		fs, err := New().Open(inMemory(good))
		must(t, err)
		ino := lookup(t, fs, v.name).Ino
		if err := v.do(fs, ino); err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
		b := bytes.Clone(good)
		v.change(b[inodeOffset(t, fs, ino):])
		fs, err = New().Open(inMemory(b))
		must(t, err)
		if err := v.do(fs, ino); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprint("inode ", ino)) {
			t.Errorf("%s with %s: %v", v.name, v.what, err)
		}
	}
}

// What the kernel says of flags that do not fit.
func TestAttr_OfOddFlagsIsWhatTheKernelSays(t *testing.T) {
	good := inlineImage(t)
	for _, v := range []struct {
		name  string
		flags uint32
	}{
		{"file", inodeInlineData}, {"file", inodeInlineData | inodeExtents}, {"dir", inodeInlineData | inodeIndex}, {"dir", inodeInlineData | inodeExtents},
		{"blocks", inodeExtents}, {"blocks", inodeExtents | inodeInlineData}, {"file", inodeInlineData | inodeCasefold}, {"dir", inodeInlineData | inodeCasefold},
		{"file", inodeInlineData | inodeEAInode},
	} {
		t.Run(fmt.Sprintf("%s 0x%x", v.name, v.flags), func(t *testing.T) {
			fs, err := New().Open(inMemory(good))
			must(t, err)
			b := bytes.Clone(good)
			binary.LittleEndian.PutUint32(b[inodeOffset(t, fs, lookup(t, fs, v.name).Ino)+0x20:], v.flags)
			path := filepath.Join(imageDir(t), "image")
			must(t, os.WriteFile(path, b, 0o600))
			dir, _ := mount(t, path, "ro")
			var st unix.Stat_t
			kernelErr := unix.Lstat(filepath.Join(dir, v.name), &st)
			if kernelErr == nil && v.name != "dir" {
				_, kernelErr = os.ReadFile(filepath.Join(dir, v.name))
			}
			changed, err := New().Open(inMemory(b))
			must(t, err)
			a, err := changed.Lookup(changed.Root(), v.name)
			if (err == nil) != (kernelErr == nil) || kernelErr != nil && (!errors.Is(kernelErr, unix.EUCLEAN) || !errors.Is(err, backend.ErrCorrupt)) {
				t.Errorf("%+v, %v; the kernel: %v", a, err, kernelErr)
			}
			t.Logf("%v; the kernel: %v", err, kernelErr)
		})
	}
}

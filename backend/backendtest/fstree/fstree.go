// Package fstree compares a guest's filesystem, as a driver reads it, with the kernel's
// own mount of the same bytes.
package fstree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

const (
	maxDifferences = 20 // reported
	maxDepth       = 64 // of directories
)

// Stats says how much was compared, so that a test can tell that it was all of a tree.
type Stats struct {
	Entries  int
	Files    int   // regular files whose content was compared
	Bytes    int64 // of content compared
	Segments int   // of data, between holes
	Located  int   // segments compared through Locate
	Xattrs   int
	Locked   int // regular files that are encrypted, without a key to either side
}

// Compare reports up to 20 differences between fs and what the kernel shows at
// mountDir: names, types, each field of stat(2), content, holes, symbolic links, extended attributes and ACLs,
// and statfs(2). The mount must be fresh: what is in the kernel's cache counts as data to SEEK_DATA.
func Compare(t testing.TB, fs backend.FS, mountDir string) Stats {
	t.Helper()
	differences, stats := Differences(fs, mountDir)
	for i, d := range differences {
		if i == maxDifferences {
			t.Errorf("… and %d more differences", len(differences)-i)
			break
		}
		t.Error(d)
	}
	return stats
}

// Differences lists all differences.
func Differences(fs backend.FS, mountDir string) ([]string, Stats) {
	c := &comparer{fs: fs, content: map[uint64]bool{}}
	c.statfs(mountDir)
	root := fs.Root()
	c.object(mountDir, "/", root, root)
	return c.differences, c.stats
}

type comparer struct {
	fs          backend.FS
	differences []string
	stats       Stats
	content     map[uint64]bool // inodes whose content was compared
}

func (c *comparer) differ(path, format string, args ...any) {
	c.differences = append(c.differences, fmt.Sprintf("%q: %s", path, fmt.Sprintf(format, args...)))
}

// failed reports an error that only one side should have.
func (c *comparer) failed(path, what string, err error) bool {
	if err == nil {
		return false
	}
	c.differ(path, "%s: %v", what, err)
	return true
}

func (c *comparer) statfs(mountDir string) {
	var k unix.Statfs_t
	if c.failed("/", "the kernel's statfs", unix.Statfs(mountDir, &k)) {
		return
	}
	got, err := c.fs.StatFS()
	if c.failed("/", "StatFS", err) {
		return
	}
	want := backend.FSStat{BlockSize: uint32(k.Bsize), Blocks: k.Blocks, BlocksFree: k.Bfree, BlocksAvail: k.Bavail,
		Files: k.Files, FilesFree: k.Ffree, NameLen: uint32(k.Namelen)}
	if got != want {
		c.differ("/", "StatFS is %+v, the kernel says %+v", got, want)
	}
}

// object compares an inode, and what is below it.
func (c *comparer) object(host, path string, ino, parent uint64) {
	c.stats.Entries++
	var st unix.Stat_t
	if c.failed(path, "the kernel's lstat", unix.Lstat(host, &st)) {
		return
	}
	attr, err := c.fs.Attr(ino)
	if c.failed(path, "Attr", err) {
		return
	}
	c.attr(path, "Attr", attr, &st)
	c.xattrs(host, path, ino)
	switch attr.Type {
	case backend.TypeDir:
		if p, err := c.fs.Parent(ino); !c.failed(path, "Parent", err) && p != parent {
			c.differ(path, "Parent is %d, not %d", p, parent)
		}
		c.directory(host, path, ino)
	case backend.TypeSymlink:
		c.symlink(host, path, ino)
	case backend.TypeRegular:
		if !c.content[ino] {
			c.content[ino] = true
			c.file(host, path, ino)
		}
	}
}

// attr compares what stat(2) says, but for the generation, which it does not.
func (c *comparer) attr(path, what string, a backend.Attr, st *unix.Stat_t) {
	want := backend.Attr{
		Ino:        st.Ino,
		Generation: a.Generation,
		Type:       backend.FileType(st.Mode & unix.S_IFMT),
		Mode:       st.Mode & 0o7777,
		Nlink:      uint32(st.Nlink),
		UID:        st.Uid,
		GID:        st.Gid,
		SizeBytes:  st.Size,
		Blocks512:  st.Blocks,
		Atime:      backend.Time{Sec: st.Atim.Sec, Nsec: uint32(st.Atim.Nsec)},
		Mtime:      backend.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
		Ctime:      backend.Time{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)},
	}
	if want.Type == backend.TypeChar || want.Type == backend.TypeBlock {
		want.RdevMajor, want.RdevMinor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if a != want {
		c.differ(path, "%s is\n %+v, the kernel says\n %+v", what, a, want)
	}
}

type entry struct {
	ino  uint64
	kind backend.FileType
	attr *backend.Attr
}

func (c *comparer) directory(host, path string, ino uint64) {
	d, err := os.Open(host)
	if c.failed(path, "the kernel's open", err) {
		return
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if c.failed(path, "the kernel's readdir", err) {
		return
	}
	sort.Strings(names)
	entries := map[string]entry{}
	err = c.fs.ReadDir(ino, 0, true, func(e *backend.DirEntry) bool {
		if _, twice := entries[e.Name]; twice {
			c.differ(path, "ReadDir lists %q twice", e.Name)
		}
		n := entry{ino: e.Ino, kind: e.Type}
		if e.Attr != nil {
			a := *e.Attr
			n.attr = &a
		}
		entries[e.Name] = n
		return true
	})
	if c.failed(path, "ReadDir", err) {
		return
	}
	for _, name := range names {
		below := filepath.Join(path, name)
		e, found := entries[name]
		if !found {
			c.differ(below, "ReadDir lacks it")
			continue
		}
		delete(entries, name)
		c.entry(host+"/"+name, below, ino, name, e)
	}
	for name := range entries {
		c.differ(filepath.Join(path, name), "the kernel does not list it")
	}
}

func (c *comparer) entry(host, path string, dir uint64, name string, e entry) {
	var st unix.Stat_t
	if c.failed(path, "the kernel's lstat", unix.Lstat(host, &st)) {
		return
	}
	if e.kind != 0 && uint32(e.kind) != st.Mode&unix.S_IFMT {
		c.differ(path, "ReadDir says type 0%o, the kernel 0%o", e.kind, st.Mode&unix.S_IFMT)
	}
	if e.attr == nil {
		c.differ(path, "ReadDir gives no Attr")
	} else {
		c.attr(path, "ReadDir's Attr", *e.attr, &st)
	}
	if a, err := c.fs.Lookup(dir, name); !c.failed(path, "Lookup", err) {
		c.attr(path, "Lookup's Attr", a, &st)
	}
	if depth := bytes.Count([]byte(path), []byte("/")); depth > maxDepth {
		c.differ(path, "more than %d directories deep: not compared", maxDepth)
		return
	}
	c.object(host, path, e.ino, dir)
}

func (c *comparer) symlink(host, path string, ino uint64) {
	want := make([]byte, 1<<16)
	n, err := unix.Readlink(host, want)
	if c.failed(path, "the kernel's readlink", err) {
		return
	}
	if got, err := c.fs.Readlink(ino); !c.failed(path, "Readlink", err) && !bytes.Equal(got, want[:n]) {
		c.differ(path, "Readlink is %q, the kernel says %q", got, want[:n])
	}
}

func (c *comparer) xattrs(host, path string, ino uint64) {
	list := make([]byte, 1<<16)
	n, err := unix.Llistxattr(host, list)
	if c.failed(path, "the kernel's listxattr", err) {
		return
	}
	var want []string
	for _, name := range bytes.Split(list[:n], []byte{0}) {
		if len(name) > 0 {
			want = append(want, string(name))
		}
	}
	got, err := c.fs.ListXattr(ino)
	if c.failed(path, "ListXattr", err) {
		return
	}
	got = append([]string(nil), got...)
	sort.Strings(want)
	sort.Strings(got)
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		c.differ(path, "ListXattr is %q, the kernel says %q", got, want)
		return
	}
	value := make([]byte, 1<<16)
	for _, name := range want {
		c.stats.Xattrs++
		n, err := unix.Lgetxattr(host, name, value)
		if c.failed(path, "the kernel's getxattr of "+name, err) {
			continue
		}
		if v, err := c.fs.Xattr(ino, name); !c.failed(path, "Xattr of "+name, err) && !bytes.Equal(v, value[:n]) {
			c.differ(path, "Xattr of %s is %q, the kernel says %q", name, v, value[:n])
		}
	}
	if _, err := c.fs.Xattr(ino, "user.no such attribute"); !errors.Is(err, backend.ErrNoAttr) {
		c.differ(path, "Xattr of a name that is not there: %v, not ErrNoAttr", err)
	}
}

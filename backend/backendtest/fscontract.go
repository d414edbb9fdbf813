package backendtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"testing"

	"domfs/backend"
)

const (
	fsMaxEntries   = 30_000 // of the tree that are visited
	fsMaxResumed   = 150    // entries of a directory that is resumed at each cookie
	fsPage         = 97     // entries of a page of a larger one
	fsMaxFileBytes = 1 << 20
	fsMaxFiles     = 400 // whose content is read
	fsReaders      = 8   // at once
)

// Filesystem checks what every backend.FS must hold, on a filesystem that has some
// directories, files and, best, links and holes in it.
func Filesystem(t *testing.T, fs backend.FS) {
	t.Helper()
	tree := fsWalk(t, fs)
	t.Run("ReadDir_ResumesAtEachCookie", func(t *testing.T) { fsResume(t, fs, tree) })
	t.Run("Lookup_AgreesWithReadDir", func(t *testing.T) { fsLookup(t, fs, tree) })
	t.Run("Errors_AreTheSentinels", func(t *testing.T) { fsErrors(t, fs, tree) })
	t.Run("File_EndsAndSeeksAsAFile", func(t *testing.T) { fsFiles(t, fs, tree) })
	t.Run("Concurrent_UseAgrees", func(t *testing.T) { fsConcurrent(t, fs, tree) })
	if i, ok := fs.(backend.Interruptible); ok {
		t.Run("Until_IsTheSameUntilDone", func(t *testing.T) { fsUntil(t, fs, i, tree) })
	}
}

// fsDir is a directory of the tree with its entries, copied.
type fsDir struct {
	ino     uint64
	entries []backend.DirEntry
}

// fsTree is what a first walk has found.
type fsTree struct {
	dirs  []fsDir
	files []backend.Attr // regular ones
	kinds map[backend.FileType]backend.Attr
}

func fsWalk(t *testing.T, fs backend.FS) *fsTree {
	t.Helper()
	root, err := fs.Attr(fs.Root())
	if err != nil || root.Type != backend.TypeDir || root.Ino != fs.Root() {
		t.Fatalf("Attr of the root: %+v, %v", root, err)
	}
	tree := &fsTree{kinds: map[backend.FileType]backend.Attr{}}
	queue := []uint64{root.Ino}
	count := 0
	for len(queue) > 0 && count < fsMaxEntries {
		dir := fsDir{ino: queue[0]}
		queue = queue[1:]
		err := fs.ReadDir(dir.ino, 0, true, func(e *backend.DirEntry) bool {
			count++
			entry := *e
			if e.Attr == nil {
				t.Errorf("directory %d: %q has no Attr", dir.ino, e.Name)
				return true
			}
			a := *e.Attr
			entry.Attr = &a
			dir.entries = append(dir.entries, entry)
			if a.Ino != e.Ino || e.Type != 0 && e.Type != a.Type {
				t.Errorf("directory %d: %q: Ino %d and Type 0%o, but its Attr is %+v", dir.ino, e.Name, e.Ino, e.Type, a)
			}
			if e.Cookie == 0 {
				t.Errorf("directory %d: the cookie of %q is 0, which is the start", dir.ino, e.Name)
			}
			switch a.Type {
			case backend.TypeDir:
				queue = append(queue, a.Ino)
			case backend.TypeRegular:
				tree.files = append(tree.files, a)
			}
			if _, found := tree.kinds[a.Type]; !found {
				tree.kinds[a.Type] = a
			}
			return true
		})
		if err != nil {
			t.Fatalf("ReadDir of %d: %v", dir.ino, err)
		}
		tree.dirs = append(tree.dirs, dir)
	}
	tree.files = slices.DeleteFunc(tree.files, func(a backend.Attr) bool {
		_, err := fs.OpenFile(a.Ino)
		return errors.Is(err, backend.ErrNoKey) // nobody can read it
	})
	if count == 0 {
		t.Fatal("the filesystem is empty: nothing to check")
	}
	return tree
}

// fsNames lists up to max names after a cookie.
func fsNames(fs backend.FS, dir, cookie uint64, max int) (names []string, next uint64, err error) {
	next = cookie
	err = fs.ReadDir(dir, cookie, false, func(e *backend.DirEntry) bool {
		names = append(names, e.Name)
		next = e.Cookie
		return len(names) < max
	})
	return names, next, err
}

func fsResume(t *testing.T, fs backend.FS, tree *fsTree) {
	for _, d := range tree.dirs {
		var want []string
		seen := map[string]bool{}
		for _, e := range d.entries {
			if seen[e.Name] || e.Name == "" || e.Name == "." || e.Name == ".." {
				t.Errorf("directory %d: a name %q that is empty, itself, its parent, or there twice", d.ino, e.Name)
			}
			seen[e.Name] = true
			want = append(want, e.Name)
		}
		for page := range []int{1, fsPage} {
			if len(want) > fsMaxResumed && page == 0 {
				continue
			}
			size := []int{1, fsPage}[page]
			var got []string
			for cookie := uint64(0); len(got) <= len(want); {
				names, next, err := fsNames(fs, d.ino, cookie, size)
				if err != nil {
					t.Fatalf("ReadDir of %d at cookie %d: %v", d.ino, cookie, err)
				}
				if len(names) == 0 {
					break
				}
				got, cookie = append(got, names...), next
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
				t.Errorf("directory %d in pages of %d: %d names differ from the %d of one call", d.ino, size, len(got), len(want))
			}
		}
		if len(d.entries) <= fsMaxResumed {
			for i, e := range d.entries {
				got, _, err := fsNames(fs, d.ino, e.Cookie, math.MaxInt)
				if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want[i+1:]) {
					t.Errorf("directory %d from cookie %d after %q: %q, %v", d.ino, e.Cookie, e.Name, got, err)
				}
			}
		}
		// Any cookie ends, with names of the directory or an error.
		for _, cookie := range []uint64{1, 3, 1 << 20, 1<<31 - 1, 1 << 32, 1<<63 - 1, 1 << 63, math.MaxUint64} {
			names, _, _ := fsNames(fs, d.ino, cookie, len(want)+1)
			for _, name := range names {
				if !seen[name] {
					t.Errorf("directory %d at cookie %d: %q is not in it", d.ino, cookie, name)
				}
			}
		}
	}
}

func fsLookup(t *testing.T, fs backend.FS, tree *fsTree) {
	if p, err := fs.Parent(fs.Root()); err != nil || p != fs.Root() {
		t.Errorf("Parent of the root: %d, %v", p, err)
	}
	for _, d := range tree.dirs {
		for _, e := range d.entries {
			a, err := fs.Lookup(d.ino, e.Name)
			if err != nil || a != *e.Attr {
				t.Errorf("Lookup of %q in %d: %+v, %v; ReadDir says %+v", e.Name, d.ino, a, err, *e.Attr)
			}
			if b, err := fs.Attr(e.Ino); err != nil || b != *e.Attr {
				t.Errorf("Attr of %d: %+v, %v; ReadDir says %+v", e.Ino, b, err, *e.Attr)
			}
			if a.Type == backend.TypeDir {
				if p, err := fs.Parent(a.Ino); err != nil || p != d.ino {
					t.Errorf("Parent of %d: %d, %v; it is in %d", a.Ino, p, err, d.ino)
				}
			}
		}
		for _, name := range []string{"there is no such name", "", ".", "..", "\x00", "a/b", "\xff\xfe no"} {
			if a, err := fs.Lookup(d.ino, name); !errors.Is(err, backend.ErrNotExist) {
				t.Errorf("Lookup of %q in %d: %+v, %v; not ErrNotExist", name, d.ino, a, err)
			}
		}
	}
}

func fsErrors(t *testing.T, fs backend.FS, tree *fsTree) {
	expect := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v; not %v", what, err, want)
		}
	}
	for kind, a := range tree.kinds {
		what := fmt.Sprintf("of an inode of type 0%o", kind)
		if kind != backend.TypeDir {
			_, err := fs.Lookup(a.Ino, "x")
			expect("Lookup "+what, err, backend.ErrNotDir)
			err = fs.ReadDir(a.Ino, 0, true, func(*backend.DirEntry) bool { t.Error("an entry " + what); return true })
			expect("ReadDir "+what, err, backend.ErrNotDir)
			_, err = fs.Parent(a.Ino)
			expect("Parent "+what, err, backend.ErrNotDir)
		}
		if kind != backend.TypeSymlink {
			_, err := fs.Readlink(a.Ino)
			expect("Readlink "+what, err, backend.ErrInvalid)
		}
		switch kind {
		case backend.TypeRegular:
		case backend.TypeDir:
			_, err := fs.OpenFile(a.Ino)
			expect("OpenFile "+what, err, backend.ErrIsDirectory)
		default:
			_, err := fs.OpenFile(a.Ino)
			expect("OpenFile "+what, err, backend.ErrInvalid)
		}
		_, err := fs.Xattr(a.Ino, "user.there is no such attribute")
		expect("Xattr "+what, err, backend.ErrNoAttr)
		names, err := fs.ListXattr(a.Ino)
		if err != nil {
			t.Errorf("ListXattr %s: %v", what, err)
		}
		for _, name := range names {
			if _, err := fs.Xattr(a.Ino, name); err != nil {
				t.Errorf("Xattr of %q, which ListXattr lists: %v", name, err)
			}
		}
	}
	for _, ino := range []uint64{0, math.MaxUint32, 1 << 40, 1 << 63, math.MaxUint64} {
		_, err := fs.Attr(ino)
		expect(fmt.Sprintf("Attr of %d", ino), err, backend.ErrStale)
		_, err = fs.OpenFile(ino)
		expect(fmt.Sprintf("OpenFile of %d", ino), err, backend.ErrStale)
	}
	if _, err := fs.StatFS(); err != nil {
		t.Errorf("StatFS: %v", err)
	}
}

func fsFiles(t *testing.T, fs backend.FS, tree *fsTree) {
	for i, a := range tree.files[:min(len(tree.files), fsMaxFiles)] {
		f, err := fs.OpenFile(a.Ino)
		if err != nil {
			t.Errorf("OpenFile of %d: %v", a.Ino, err)
			continue
		}
		if f.Size() != a.SizeBytes {
			t.Errorf("file %d: Size is %d, not %d", a.Ino, f.Size(), a.SizeBytes)
		}
		fsEnd(t, f, a)
		fsHoles(t, f, a)
		if i%10 == 0 {
			fsParts(t, f, a)
		}
		if err := f.Close(); err != nil {
			t.Errorf("file %d: Close: %v", a.Ino, err)
		}
	}
}

// fsEnd checks reads about a file's end.
func fsEnd(t *testing.T, f backend.File, a backend.Attr) {
	size := f.Size()
	buf := make([]byte, 100)
	for _, off := range []int64{0, size - 1, size - 99, size - 100, size - 101, size, size + 1, math.MaxInt64 - 50} {
		if off < 0 {
			continue
		}
		want := int(max(0, min(100, size-off)))
		n, err := f.ReadAt(buf, off)
		if n != want || err != nil && err != io.EOF || n < len(buf) && err != io.EOF {
			t.Errorf("file %d of %d bytes: ReadAt of 100 at %d: %d, %v", a.Ino, size, off, n, err)
		}
	}
	if n, err := f.ReadAt(buf, -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("file %d: ReadAt at -1: %d, %v", a.Ino, n, err)
	}
	if n, err := f.ReadAt(nil, 0); n != 0 || err != nil && err != io.EOF {
		t.Errorf("file %d: ReadAt of nothing: %d, %v", a.Ino, n, err)
	}
}

// fsHoles checks that data and holes alternate up to the end, and that holes are zeros.
func fsHoles(t *testing.T, f backend.File, a backend.Attr) {
	size := f.Size()
	for _, off := range []int64{-1, size, size + 1, math.MaxInt64} {
		if n, err := backend.NextData(f, off); !errors.Is(err, backend.ErrRange) {
			t.Errorf("file %d: NextData(%d): %d, %v; not ErrRange", a.Ino, off, n, err)
		}
		if n, err := backend.NextHole(f, off); !errors.Is(err, backend.ErrRange) {
			t.Errorf("file %d: NextHole(%d): %d, %v; not ErrRange", a.Ino, off, n, err)
		}
	}
	buf := make([]byte, 4096)
	for off, i := int64(0), 0; off < size && i < 1000; i++ {
		data, err := backend.NextData(f, off)
		if errors.Is(err, backend.ErrRange) {
			data, err = size, nil
		}
		if err != nil || data < off || data > size {
			t.Errorf("file %d of %d bytes: NextData(%d): %d, %v", a.Ino, size, off, data, err)
			return
		}
		if hole := data - off; hole > 0 {
			for _, at := range []int64{off, off + hole/2, data - min(hole, 10)} {
				part := buf[:min(int64(len(buf)), data-at)]
				if n, err := f.ReadAt(part, at); n < len(part) || bytes.Count(part, []byte{0}) != len(part) {
					t.Errorf("file %d: the hole at %d is not zeros at %d: %d, %v", a.Ino, off, at, n, err)
				}
			}
		}
		if data == size {
			return
		}
		hole, err := backend.NextHole(f, data)
		if err != nil || hole <= data || hole > size {
			t.Errorf("file %d of %d bytes: NextHole(%d), where data are: %d, %v", a.Ino, size, data, hole, err)
			return
		}
		off = hole
	}
}

// fsParts checks that reads in odd parts give what one read gives.
func fsParts(t *testing.T, f backend.File, a backend.Attr) {
	n := min(f.Size(), fsMaxFileBytes)
	whole := make([]byte, n)
	if got, err := f.ReadAt(whole, 0); int64(got) < n || err != nil && err != io.EOF {
		t.Errorf("file %d: ReadAt of %d: %d, %v", a.Ino, n, got, err)
		return
	}
	for _, size := range []int64{511, 4097, 70_001} {
		part := make([]byte, size)
		for off := int64(0); off < n; off += size {
			got, err := f.ReadAt(part[:min(size, n-off)], off)
			if err != nil && err != io.EOF || !bytes.Equal(part[:got], whole[off:min(off+size, n)]) {
				t.Errorf("file %d: ReadAt of %d at %d: %d bytes that differ from those of one read, %v", a.Ino, size, off, got, err)
				return
			}
		}
	}
}

// fsDigest sums up what a reader sees of a tree, beginning at one of its directories
// so that readers differ in their order.
func fsDigest(fs backend.FS, tree *fsTree, from int) ([sha256.Size]byte, error) {
	sums := make([][sha256.Size]byte, len(tree.dirs)+1)
	for i := range tree.dirs {
		at := (from + i) % len(tree.dirs)
		h := sha256.New()
		err := fs.ReadDir(tree.dirs[at].ino, 0, at%2 == 0, func(e *backend.DirEntry) bool {
			fmt.Fprintf(h, "%q %d %d\n", e.Name, e.Ino, e.Cookie)
			return true
		})
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		h.Sum(sums[at][:0])
	}
	h := sha256.New()
	buf := make([]byte, fsMaxFileBytes)
	for _, a := range tree.files[:min(len(tree.files), fsMaxFiles/8)] {
		f, err := fs.OpenFile(a.Ino)
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		n, err := f.ReadAt(buf[:min(a.SizeBytes, fsMaxFileBytes)], 0)
		if cerr := f.Close(); err == nil || err == io.EOF {
			err = cerr
		}
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		h.Write(buf[:n])
		names, err := fs.ListXattr(a.Ino)
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		fmt.Fprintf(h, "%q\n", names)
	}
	h.Sum(sums[len(tree.dirs)][:0])
	all := sha256.New()
	for _, s := range sums {
		all.Write(s[:])
	}
	return [sha256.Size]byte(all.Sum(nil)), nil
}

func fsConcurrent(t *testing.T, fs backend.FS, tree *fsTree) {
	want, err := fsDigest(fs, tree, 0)
	if err != nil {
		t.Fatal(err)
	}
	// One file is shared, too.
	var shared backend.File
	var whole []byte
	for _, a := range tree.files {
		if a.SizeBytes > int64(len(whole)) && a.SizeBytes <= fsMaxFileBytes {
			if f, err := fs.OpenFile(a.Ino); err == nil {
				if shared != nil {
					shared.Close()
				}
				shared, whole = f, make([]byte, a.SizeBytes)
			}
		}
	}
	if shared != nil {
		defer shared.Close()
		if n, err := shared.ReadAt(whole, 0); n < len(whole) {
			t.Fatal(n, err)
		}
	}
	var wg sync.WaitGroup
	for i := range fsReaders {
		wg.Go(func() {
			got, err := fsDigest(fs, tree, i*len(tree.dirs)/fsReaders)
			if err != nil || got != want {
				t.Errorf("reader %d: %x, %v; alone it was %x", i, got, err, want)
			}
			if shared == nil {
				return
			}
			part := make([]byte, 999)
			for off := i; off < len(whole); off += 999 * fsReaders / 2 {
				n, err := shared.ReadAt(part, int64(off))
				if err != nil && err != io.EOF || !bytes.Equal(part[:n], whole[off:min(off+len(part), len(whole))]) {
					t.Errorf("reader %d: other bytes at %d, %v", i, off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// fsUntil checks that what Until returns is the filesystem itself until done is closed,
// that its walks either end or are whole after that, and that this concerns no one else.
func fsUntil(t *testing.T, fs backend.FS, i backend.Interruptible, tree *fsTree) {
	want, err := fsDigest(fs, tree, 0)
	if err != nil {
		t.Fatal(err)
	}
	done, other := make(chan struct{}), make(chan struct{})
	until, apart := i.Until(done), i.Until(other)
	defer close(other)
	same := func(what string, fs backend.FS) {
		t.Helper()
		if got, err := fsDigest(fs, tree, 0); err != nil || got != want {
			t.Errorf("%s: %x, %v; the filesystem itself says %x", what, got, err, want)
		}
		fsLookup(t, fs, tree)
	}
	same("before done is closed", until)
	if until.Root() != fs.Root() {
		t.Errorf("the root is %d, not %d", until.Root(), fs.Root())
	}
	close(done)
	for _, d := range tree.dirs {
		n := 0
		switch err := until.ReadDir(d.ino, 0, false, func(*backend.DirEntry) bool { n++; return true }); {
		case errors.Is(err, context.Canceled):
		case err != nil || n != len(d.entries):
			t.Errorf("ReadDir of %d after the end: %d of %d entries, %v; neither whole nor context.Canceled", d.ino, n, len(d.entries), err)
		}
		for _, e := range d.entries {
			if a, err := until.Lookup(d.ino, e.Name); !errors.Is(err, context.Canceled) && (err != nil || a != *e.Attr) {
				t.Errorf("Lookup of %q in %d after the end: %+v, %v", e.Name, d.ino, a, err)
			}
			if e.Attr.Type != backend.TypeDir {
				continue
			}
			if p, err := until.Parent(e.Ino); !errors.Is(err, context.Canceled) && (err != nil || p != d.ino) {
				t.Errorf("Parent of %d after the end: %d, %v", e.Ino, p, err)
			}
		}
		if a, err := until.Lookup(d.ino, "there is no such name"); !errors.Is(err, context.Canceled) && !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("Lookup of no name in %d after the end: %+v, %v", d.ino, a, err)
		}
	}
	if a, err := until.Attr(until.Root()); err != nil || a.Type != backend.TypeDir {
		t.Errorf("Attr of the root after the end: %+v, %v", a, err)
	}
	same("another one", apart)
	same("the filesystem itself", fs)
}

package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"

	"domfs/backend"
	"domfs/backend/all"
	"domfs/vfs"

	"golang.org/x/sys/unix"
)

// What is read of one image. No seed holds as much.
const (
	maxEntries  = 20_000   // of all directories
	maxRead     = 32 << 20 // bytes, of all files and raw disks
	maxExtents  = 2_000    // of one file
	maxXattrs   = 1_000    // of one inode
	maxDepth    = 4        // of partition tables, as control has it
	maxProblems = 8
	batch       = 60 // entries in one reply to the kernel, or so
)

// report is what a walk has found.
type report struct {
	Problems []problem
	Faults   int      // errors, those that are as they should be
	First    string   // the first of them
	Refused  string   // why a filesystem was not opened
	Files    int      // inodes read
	Read     int64    // bytes
	Kinds    []string // contents found, in order
	PeakKiB  int64
}

// problem is something that should not be.
type problem struct {
	What string // kind of finding
	Text string
}

type walker struct {
	report
	prober      backend.Prober
	layouts     []backend.Layout
	filesystems []backend.Filesystem
	entries     int
}

func newWalker() *walker {
	return &walker{prober: all.Prober(), layouts: all.Layouts(), filesystems: all.Filesystems()}
}

func (w *walker) problem(what, format string, args ...any) {
	if len(w.Problems) < maxProblems {
		w.Problems = append(w.Problems, problem{what, fmt.Sprintf(format, args...)})
	}
}

var (
	inFilesystem = regexp.MustCompile(`(?i)\b(inode|block|group) \d|superblock|journal`)
	inFile       = regexp.MustCompile(`(?i)\b(inode|block|cluster|table|header|sector|partition|entry|group|superblock|refcount|L1|L2)\b`)
	anywhere     = regexp.MustCompile(``)
)

// check tells whether there was no error, and whether one is as it should be: of the
// right class, or one of those also expected, and saying where.
func (w *walker) check(op string, where *regexp.Regexp, err error, expected ...error) bool {
	if err == nil {
		return true
	}
	for _, e := range expected {
		if errors.Is(err, e) {
			return false
		}
	}
	w.Faults++
	if w.First == "" {
		w.First = op + ": " + err.Error()
	}
	switch errno, known := vfs.Errno(err); {
	case !known || errno != unix.EUCLEAN && errno != unix.EIO:
		w.problem("an error that is neither EUCLEAN nor EIO", "%s: %v", op, err)
	case !where.MatchString(err.Error()):
		w.problem("an error that does not say where", "%s: %v", op, err)
	}
	return false
}

// device looks at a disk or a partition as domfs does.
func (w *walker) device(d backend.Device, depth int) {
	c, err := w.prober.Probe(d)
	if !w.check("probe", inFile, err) {
		return
	}
	w.Kinds = append(w.Kinds, c.Type)
	if c.Type == "" {
		return
	}
	for _, l := range w.layouts {
		if depth < maxDepth && slices.Contains(l.Types(), c.Type) {
			w.parts(l, d, depth)
			return
		}
	}
	for _, f := range w.filesystems {
		if slices.Contains(f.Types(), c.Type) {
			w.open(f, d)
			return
		}
	}
}

func (w *walker) parts(l backend.Layout, d backend.Device, depth int) {
	parts, err := l.Parts(d)
	if !w.check("partitions", inFile, err) {
		return
	}
	if warner, ok := l.(backend.PartWarner); ok {
		warner.Warnings(d)
	}
	for _, p := range parts {
		if w.check(fmt.Sprintf("partition %d", p.Number), inFile, p.Err) {
			w.device(p.Device, depth+1)
		}
	}
}

func (w *walker) open(f backend.Filesystem, d backend.Device) {
	fs, err := f.Open(d)
	if errors.Is(err, backend.ErrUnsupported) {
		w.Refused = err.Error()
		return
	}
	if !w.check("open", inFilesystem, err) {
		return
	}
	defer fs.Close()
	if g, ok := fs.(backend.Interruptible); ok {
		fs = g.Until(make(chan struct{}))
	}
	for _, warning := range fs.Warnings() {
		if len(warning) > 4096 {
			w.problem("a long warning", "%d bytes: %.200s", len(warning), warning)
		}
	}
	_, err = fs.StatFS()
	w.check("statfs", inFilesystem, err)
	w.tree(fs)
}

// tree reads each inode that a name leads to, once.
func (w *walker) tree(fs backend.FS) {
	root, err := fs.Attr(fs.Root())
	if !w.check("the root's attributes", inFilesystem, err) {
		return
	}
	seen := map[uint64]bool{root.Ino: true}
	w.inode(fs, root)
	if root.Type != backend.TypeDir {
		w.problem("a root that is no directory", "it is of type 0%o, and opened", root.Type)
		return
	}
	for queue := []uint64{root.Ino}; len(queue) > 0 && w.entries < maxEntries; queue = queue[1:] {
		dir := queue[0]
		_, err := fs.Parent(dir)
		w.check("parent", inFilesystem, err)
		w.list(fs, dir, func(e *backend.DirEntry) {
			a, err := fs.Lookup(dir, e.Name)
			// What a damaged index leads past is not there for the kernel either.
			if !w.check("lookup", inFilesystem, err, backend.ErrNotExist) || seen[a.Ino] {
				return
			}
			seen[a.Ino] = true
			w.inode(fs, a)
			if a.Type == backend.TypeDir {
				queue = append(queue, a.Ino)
			}
		})
	}
}

// list calls f for the entries of a directory, a reply's worth of them at a time.
func (w *walker) list(fs backend.FS, dir uint64, f func(e *backend.DirEntry)) {
	var cookie uint64
	cookies := map[uint64]bool{}
	for {
		var entries []backend.DirEntry
		err := fs.ReadDir(dir, cookie, true, func(e *backend.DirEntry) bool {
			if len(entries) == batch {
				return false
			}
			entries = append(entries, backend.DirEntry{Name: e.Name, Ino: e.Ino, Cookie: e.Cookie})
			return true
		})
		for i := range entries {
			e := &entries[i]
			if e.Cookie == 0 || e.Cookie >= 1<<62 {
				w.problem("a cookie out of bounds", "inode %d: %q has %#x", dir, e.Name, e.Cookie)
				return
			}
			if cookies[e.Cookie] {
				w.problem("a directory without end", "inode %d: %q has the cookie %#x, as an earlier entry", dir, e.Name, e.Cookie)
				return
			}
			cookies[e.Cookie] = true
			if w.entries++; w.entries >= maxEntries {
				return
			}
			f(e)
			cookie = e.Cookie
		}
		if !w.check("readdir", inFilesystem, err) || len(entries) == 0 {
			return
		}
	}
}

// inode reads all that an inode has.
func (w *walker) inode(fs backend.FS, a backend.Attr) {
	w.Files++
	_, err := fs.Attr(a.Ino)
	w.check("attributes", inFilesystem, err)
	names, err := fs.ListXattr(a.Ino)
	w.check("listxattr", inFilesystem, err)
	for _, name := range names[:min(len(names), maxXattrs)] {
		_, err := fs.Xattr(a.Ino, name)
		w.check("getxattr", inFilesystem, err)
	}
	switch a.Type {
	case backend.TypeSymlink:
		_, err := fs.Readlink(a.Ino)
		w.check("readlink", inFilesystem, err)
	case backend.TypeRegular:
		file, err := fs.OpenFile(a.Ino)
		if errno, _ := vfs.Errno(err); errno == unix.ENOKEY {
			return // encrypted: there is no more to it
		}
		if !w.check("open of a file", inFilesystem, err) {
			return
		}
		w.content(fmt.Sprintf("inode %d", a.Ino), file, inFilesystem)
		file.Close()
	}
}

// content reads a file or a disk by its extents, and a little at its end.
func (w *walker) content(what string, f backend.File, where *regexp.Regexp) {
	buf := make([]byte, 64<<10)
	size := f.Size()
	backend.Allocated(f)
	if size > 0 {
		_, err := f.ReadAt(buf[:16], max(0, size-8))
		if errors.Is(err, io.EOF) {
			err = nil
		}
		w.check("read at the end", where, err)
	}
	var off int64
	for range maxExtents {
		data, err := backend.NextData(f, off)
		if !w.check("next data", where, err, backend.ErrRange) {
			return
		}
		hole, err := backend.NextHole(f, data)
		if !w.check("next hole", where, err) {
			return
		}
		if data < off || hole <= data || hole > size {
			w.problem("extents that do not go on", "%s of %d bytes: from %d on, data at %d to %d", what, size, off, data, hole)
			return
		}
		w.locate(what, f, data, hole-data)
		for off = data; off < hole; {
			if w.Read >= maxRead {
				return
			}
			n, err := f.ReadAt(buf[:min(int64(len(buf)), hole-off)], off)
			w.Read += int64(n)
			if errors.Is(err, io.EOF) && off+int64(n) == size {
				err = nil
			}
			if !w.check("read", where, err) {
				break // and see what follows
			}
			if n == 0 {
				w.problem("a read of nothing", "%s at %d of %d", what, off, size)
				return
			}
			off += int64(n)
		}
		off = hole
	}
}

func (w *walker) locate(what string, f backend.File, off, length int64) {
	l, ok := f.(backend.Locator)
	if !ok {
		return
	}
	if at, ok := l.Locate(off, length); ok && (at.Length <= 0 || at.Length > length || at.Offset < 0) {
		w.problem("a location that is none", "%s: %d bytes at %d lie at %d, %d of them", what, length, off, at.Offset, at.Length)
	}
}

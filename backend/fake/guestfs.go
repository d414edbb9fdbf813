package fake

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"domfs/backend"
)

// Content types that Guests.Probe finds.
const (
	GuestFSType    = "memfs"    // a Guest
	GuestTableType = "memtable" // a partition table
)

// maxHeader is how long the text at the beginning of a device is, in bytes.
const maxHeader = 4096

// Guests is what a test's guests hold: a backend.Prober, and a backend.Filesystem whose
// trees are in memory. Which tree a device holds is written on the device (Header), so that it goes
// along with a snapshot, and changes where the bytes do.
type Guests struct {
	mu   sync.Mutex
	byID map[string]*Guest // guarded by mu
	open atomic.Int64
}

// NewGuests has no filesystems yet.
func NewGuests() *Guests { return &Guests{byID: map[string]*Guest{}} }

// Add takes over a filesystem under its ID, in place of the one that had it before.
func (gs *Guests) Add(g *Guest) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.byID[g.ID] = g
}

// Open filesystems, not yet closed.
func (gs *Guests) OpenCount() int64 { return gs.open.Load() }

// Header is what the first bytes of a device with g on it are.
func (g *Guest) Header() []byte {
	return []byte(fmt.Sprintf("%s %q %q %q\n", GuestFSType, g.ID, g.Label, g.UUID))
}

// TablePart is one partition of a TableHeader, in bytes.
type TablePart struct {
	Number              int
	OffsetBytes, Length int64
}

// TableHeader is what the first bytes of a device with partitions are.
func TableHeader(parts ...TablePart) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %q %q %q\n", GuestTableType, "", "", "7ab1e000")
	for _, p := range parts {
		fmt.Fprintf(&b, "%d %d %d\n", p.Number, p.OffsetBytes, p.Length)
	}
	return b.Bytes()
}

func header(d backend.Device) (lines []string, err error) {
	buf := make([]byte, min(maxHeader, d.Size()))
	n, err := d.ReadAt(buf, 0)
	if err != nil && n < len(buf) {
		return nil, err
	}
	text, _, _ := bytes.Cut(buf[:n], []byte{0})
	return strings.Split(string(text), "\n"), nil
}

// fields of a header's first line.
func fields(line string) (kind, id, label, uuid string) {
	if n, err := fmt.Sscanf(line, "%s %q %q %q", &kind, &id, &label, &uuid); n != 4 || err != nil {
		return "", "", "", ""
	}
	return kind, id, label, uuid
}

// Probe finds what Header, TableHeader and PVHeader wrote.
func (gs *Guests) Probe(d backend.Device) (backend.Content, error) {
	lines, err := header(d)
	if err != nil {
		return backend.Content{}, err
	}
	kind, _, label, uuid := fields(lines[0])
	if kind != GuestFSType && kind != GuestTableType && kind != GuestPVType {
		return backend.Content{}, nil
	}
	return backend.Content{Type: kind, Label: label, UUID: uuid}, nil
}

// Types of filesystems.
func (gs *Guests) Types() []string { return []string{GuestFSType} }

// Open finds the filesystem that the device names.
func (gs *Guests) Open(d backend.Device) (backend.FS, error) {
	lines, err := header(d)
	if err != nil {
		return nil, err
	}
	_, id, _, _ := fields(lines[0])
	gs.mu.Lock()
	g := gs.byID[id]
	gs.mu.Unlock()
	if g == nil {
		return nil, fmt.Errorf("no filesystem %q: %w", id, backend.ErrCorrupt)
	}
	if err := g.fault("mount", 0); err != nil {
		return nil, err
	}
	gs.open.Add(1)
	return &guestFS{g: g, d: d, gs: gs}, nil
}

// Use tells what SetUse set.
func (gs *Guests) Use(d backend.Device) (backend.Use, string, error) {
	lines, err := header(d)
	if err != nil {
		return backend.UseUnknown, "", err
	}
	_, id, _, _ := fields(lines[0])
	gs.mu.Lock()
	g := gs.byID[id]
	gs.mu.Unlock()
	if g == nil {
		return backend.UseUnknown, "is not known", nil
	}
	u := backend.Use(g.use.Load())
	return u, map[backend.Use]string{backend.InUse: "is mounted", backend.UseUnknown: "has a superblock that is not understood"}[u], nil
}

// Table is the backend.Layout for TableHeader.
type Table struct{}

// Types of partition tables.
func (Table) Types() []string { return []string{GuestTableType} }

// Parts reads the table. A line that is none is ErrCorrupt.
func (Table) Parts(d backend.Device) ([]backend.Part, error) {
	lines, err := header(d)
	if err != nil {
		return nil, err
	}
	var parts []backend.Part
	for _, line := range lines[1:] {
		if line == "" {
			continue
		}
		var p backend.Part
		var off, length int64
		if n, err := fmt.Sscanf(line, "%d %d %d", &p.Number, &off, &length); n != 3 || err != nil {
			return nil, fmt.Errorf("%q is no partition: %w", line, backend.ErrCorrupt)
		}
		p.Device, p.Err = backend.Section(d, off, length)
		parts = append(parts, p)
	}
	return parts, nil
}

// Guest is a guest's filesystem, to be built by a test and not changed once it is added.
type Guest struct {
	ID, Label, UUID string
	Stat            backend.FSStat
	// Warnings are the open filesystem's.
	Warnings []string

	root   *GuestNode
	nodes  map[uint64]*GuestNode
	next   uint64
	faults atomic.Pointer[func(op string, ino uint64) error]
	walks  atomic.Pointer[func(op string, done <-chan struct{}) error]
	use    atomic.Int64 // a backend.Use
}

// SetUse sets what Guests.Use tells of the filesystem: backend.Unused at first.
func (g *Guest) SetUse(u backend.Use) { g.use.Store(int64(u)) }

// GuestNode is an inode. A test may change all of it before the Guest is added.
type GuestNode struct {
	backend.Attr
	Target string            // of a symlink
	Xattrs map[string]string // by name
	// Of a regular file: Data, or Runs in a file of SizeBytes, holes between them, or Extent: bytes of the
	// device itself.
	Data   []byte
	Runs   []GuestRun
	Extent *TablePart

	parent *GuestNode
	names  []string // in the directory's order
	kids   map[string]*GuestNode
}

// GuestRun is data at an offset of a sparse file.
type GuestRun struct {
	OffsetBytes int64
	Data        []byte
}

// NewGuest is an empty filesystem. Its root has the inode number 2.
func NewGuest(id string) *Guest {
	g := &Guest{ID: id, nodes: map[uint64]*GuestNode{}, next: 2,
		Stat: backend.FSStat{BlockSize: 4096, Blocks: 1000, BlocksFree: 400, BlocksAvail: 300, Files: 500, FilesFree: 200, NameLen: 255}}
	g.SetUse(backend.Unused)
	g.root = g.node(backend.TypeDir, 0o755)
	g.root.parent = g.root
	return g
}

// SetFault makes every call of a method (in lower case; mount for Open) on an inode ask f
// for its error first; nil ends that.
func (g *Guest) SetFault(f func(op string, ino uint64) error) {
	if f == nil {
		g.faults.Store(nil)
		return
	}
	g.faults.Store(&f)
}

// SetWalk makes readdir, lookup and parent ask f first, with what ends them; nil ends that.
func (g *Guest) SetWalk(f func(op string, done <-chan struct{}) error) {
	if f == nil {
		g.walks.Store(nil)
		return
	}
	g.walks.Store(&f)
}

func (g *Guest) fault(op string, ino uint64) error {
	if f := g.faults.Load(); f != nil {
		return (*f)(op, ino)
	}
	return nil
}

func (g *Guest) node(t backend.FileType, mode uint32) *GuestNode {
	n := &GuestNode{Attr: backend.Attr{Ino: g.next, Type: t, Mode: mode, Nlink: 1,
		Atime: backend.Time{Sec: 1_600_000_000, Nsec: 1}, Mtime: backend.Time{Sec: 1_600_000_001, Nsec: 2}, Ctime: backend.Time{Sec: 1_600_000_002, Nsec: 3}}}
	if t == backend.TypeDir {
		n.Nlink, n.SizeBytes, n.kids = 2, 4096, map[string]*GuestNode{}
	}
	g.nodes[n.Ino] = n
	g.next++
	return n
}

// Root is the root directory.
func (g *Guest) Root() *GuestNode { return g.root }

// Dir finds a directory by its path, making those that are not there.
func (g *Guest) Dir(path string) *GuestNode {
	d := g.root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		kid := d.kids[name]
		if kid == nil {
			kid = g.node(backend.TypeDir, 0o755)
			kid.parent = d
			d.Nlink++
			d.add(name, kid)
		}
		d = kid
	}
	return d
}

func (d *GuestNode) add(name string, n *GuestNode) {
	if _, ok := d.kids[name]; !ok {
		d.names = append(d.names, name)
	}
	d.kids[name] = n
}

func (g *Guest) at(path string) (dir *GuestNode, name string) {
	i := strings.LastIndexByte(path, '/')
	return g.Dir(path[:max(i, 0)]), path[i+1:]
}

// File makes a regular file.
func (g *Guest) File(path string, data []byte) *GuestNode {
	d, name := g.at(path)
	n := g.node(backend.TypeRegular, 0o644)
	n.Data, n.SizeBytes, n.Blocks512 = data, int64(len(data)), int64(len(data)+4095)/4096*8
	d.add(name, n)
	return n
}

// Symlink makes a symbolic link.
func (g *Guest) Symlink(path, target string) *GuestNode {
	d, name := g.at(path)
	n := g.node(backend.TypeSymlink, 0o777)
	n.Target, n.SizeBytes = target, int64(len(target))
	d.add(name, n)
	return n
}

// Special makes a device, FIFO or socket.
func (g *Guest) Special(path string, t backend.FileType, major, minor uint32) *GuestNode {
	d, name := g.at(path)
	n := g.node(t, 0o600)
	n.RdevMajor, n.RdevMinor = major, minor
	d.add(name, n)
	return n
}

// Link gives an inode another name, in the directory d: any bytes.
func (g *Guest) Link(d *GuestNode, name string, n *GuestNode) {
	if n.parent == nil && slices.ContainsFunc(g.all(), func(o *GuestNode) bool { return o == n }) {
		n.Nlink++
	}
	d.add(name, n)
}

// all are the inodes that have a name.
func (g *Guest) all() []*GuestNode {
	var out []*GuestNode
	for _, n := range g.nodes {
		for _, kid := range n.kids {
			out = append(out, kid)
		}
	}
	return out
}

// Lookup finds an inode by path, nil if there is none.
func (g *Guest) Lookup(path string) *GuestNode {
	d := g.root
	for name := range strings.SplitSeq(path, "/") {
		if d = d.kids[name]; d == nil {
			return nil
		}
	}
	return d
}

// guestFS is an open Guest.
type guestFS struct {
	g      *Guest
	d      backend.Device
	gs     *Guests
	closed atomic.Bool
}

// until is a guestFS whose walks know what ends them.
type until struct {
	*guestFS
	done <-chan struct{}
}

// Until implements backend.Interruptible.
func (f *guestFS) Until(done <-chan struct{}) backend.FS { return until{f, done} }

func (u until) walk(op string) error {
	if f := u.g.walks.Load(); f != nil {
		return (*f)(op, u.done)
	}
	return nil
}

func (u until) Lookup(dir uint64, name string) (backend.Attr, error) {
	if err := u.walk("lookup"); err != nil {
		return backend.Attr{}, err
	}
	return u.guestFS.Lookup(dir, name)
}

func (u until) ReadDir(dir uint64, cookie uint64, attrs bool, emit func(e *backend.DirEntry) bool) error {
	if err := u.walk("readdir"); err != nil {
		return err
	}
	return u.guestFS.ReadDir(dir, cookie, attrs, emit)
}

func (u until) Parent(dir uint64) (uint64, error) {
	if err := u.walk("parent"); err != nil {
		return 0, err
	}
	return u.guestFS.Parent(dir)
}

func (f *guestFS) node(op string, ino uint64) (*GuestNode, error) {
	if f.closed.Load() {
		return nil, fmt.Errorf("%s of inode %d: the filesystem was closed: %w", op, ino, backend.ErrIO)
	}
	if err := f.g.fault(op, ino); err != nil {
		return nil, err
	}
	n := f.g.nodes[ino]
	if n == nil {
		return nil, fmt.Errorf("inode %d is not in use: %w", ino, backend.ErrStale)
	}
	return n, nil
}

func (f *guestFS) dir(op string, ino uint64) (*GuestNode, error) {
	n, err := f.node(op, ino)
	if err == nil && n.Type != backend.TypeDir {
		err = fmt.Errorf("inode %d: %w", ino, backend.ErrNotDir)
	}
	return n, err
}

func (f *guestFS) Root() uint64                    { return f.g.root.Ino }
func (f *guestFS) Warnings() []string              { return f.g.Warnings }
func (f *guestFS) StatFS() (backend.FSStat, error) { return f.g.Stat, nil }

func (f *guestFS) Attr(ino uint64) (backend.Attr, error) {
	n, err := f.node("attr", ino)
	if err != nil {
		return backend.Attr{}, err
	}
	return n.Attr, nil
}

func (f *guestFS) Lookup(dir uint64, name string) (backend.Attr, error) {
	d, err := f.dir("lookup", dir)
	if err != nil {
		return backend.Attr{}, err
	}
	if len(name) > int(f.g.Stat.NameLen) {
		return backend.Attr{}, fmt.Errorf("a name of %d bytes: %w", len(name), backend.ErrTooLong)
	}
	n := d.kids[name]
	if n == nil {
		return backend.Attr{}, fmt.Errorf("%q: %w", name, backend.ErrNotExist)
	}
	return n.Attr, nil
}

// Cookies are positions in the directory, plus 1.
func (f *guestFS) ReadDir(dir uint64, cookie uint64, attrs bool, emit func(e *backend.DirEntry) bool) error {
	d, err := f.dir("readdir", dir)
	if err != nil {
		return err
	}
	for i := cookie; i < uint64(len(d.names)); i++ {
		n := d.kids[d.names[i]]
		e := backend.DirEntry{Name: d.names[i], Ino: n.Ino, Type: n.Type, Cookie: i + 1}
		if attrs && f.g.fault("attr", n.Ino) == nil {
			a := n.Attr
			e.Attr = &a
		}
		if !emit(&e) {
			return nil
		}
	}
	return nil
}

func (f *guestFS) Parent(dir uint64) (uint64, error) {
	d, err := f.dir("parent", dir)
	if err != nil {
		return 0, err
	}
	return d.parent.Ino, nil
}

func (f *guestFS) Readlink(ino uint64) ([]byte, error) {
	n, err := f.node("readlink", ino)
	if err != nil {
		return nil, err
	}
	if n.Type != backend.TypeSymlink {
		return nil, backend.ErrInvalid
	}
	return []byte(n.Target), nil
}

func (f *guestFS) ListXattr(ino uint64) ([]string, error) {
	n, err := f.node("listxattr", ino)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(n.Xattrs))
	for name := range n.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (f *guestFS) Xattr(ino uint64, name string) ([]byte, error) {
	n, err := f.node("xattr", ino)
	if err != nil {
		return nil, err
	}
	v, ok := n.Xattrs[name]
	if !ok {
		return nil, fmt.Errorf("%s of inode %d: %w", strconv.Quote(name), ino, backend.ErrNoAttr)
	}
	return []byte(v), nil
}

func (f *guestFS) OpenFile(ino uint64) (backend.File, error) {
	n, err := f.node("openfile", ino)
	if err != nil {
		return nil, err
	}
	switch {
	case n.Type == backend.TypeDir:
		return nil, backend.ErrIsDirectory
	case n.Type != backend.TypeRegular:
		return nil, backend.ErrInvalid
	case n.Extent != nil:
		return backend.Section(f.d, n.Extent.OffsetBytes, n.Extent.Length)
	case n.Runs != nil:
		return &guestFile{f: f, ino: ino, runs: n.Runs, size: n.SizeBytes, blocks: n.Blocks512}, nil
	}
	return &guestFile{f: f, ino: ino, runs: []GuestRun{{Data: n.Data}}, size: n.SizeBytes, blocks: n.Blocks512}, nil
}

func (f *guestFS) Close() error {
	if f.closed.Swap(true) {
		return fmt.Errorf("filesystem %s was closed twice: %w", f.g.ID, backend.ErrInvalid)
	}
	f.gs.open.Add(-1)
	return nil
}

// guestFile is an open regular file.
type guestFile struct {
	f      *guestFS
	ino    uint64
	runs   []GuestRun // in order, not empty but for that of an empty file
	size   int64
	blocks int64
}

func (o *guestFile) Size() int64      { return o.size }
func (o *guestFile) Allocated() int64 { return o.blocks * 512 }
func (o *guestFile) Close() error     { return nil }

func (o *guestFile) ReadAt(p []byte, off int64) (int, error) {
	if _, err := o.f.node("read", o.ino); err != nil {
		return 0, err
	}
	if off >= o.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), o.size-off)
	clear(p[:n])
	for _, r := range o.runs {
		from, to := max(off, r.OffsetBytes), min(off+n, r.OffsetBytes+int64(len(r.Data)))
		if from < to {
			copy(p[from-off:to-off], r.Data[from-r.OffsetBytes:])
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (o *guestFile) NextData(off int64) (int64, error) {
	for _, r := range o.runs {
		if end := r.OffsetBytes + int64(len(r.Data)); off < end && off < o.size {
			return max(off, r.OffsetBytes), nil
		}
	}
	return 0, backend.ErrRange
}

func (o *guestFile) NextHole(off int64) (int64, error) {
	if off < 0 || off >= o.size {
		return 0, backend.ErrRange
	}
	for _, r := range o.runs {
		if off >= r.OffsetBytes && off < r.OffsetBytes+int64(len(r.Data)) {
			off = r.OffsetBytes + int64(len(r.Data))
		}
	}
	return min(off, o.size), nil
}

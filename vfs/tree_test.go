package vfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden file; read it over then")

func TestWriteTree_IsThePublishedTree(t *testing.T) {
	var b bytes.Buffer
	if err := WriteTree(&b); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/tree.golden"
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the tree is another than its golden file:\n%s", b.Bytes())
	}
}

// walker compares a live mount with the literal.
type walker struct {
	t    *testing.T
	seen map[*entry]int
	bad  map[string]syscall.Errno // directories of volumes that cannot be read, and how their values fail
	dirs int
}

// childFor is the entry that a name in a directory is of, nil if none.
func childFor(e *entry, name string) *entry {
	var many *entry
	for _, k := range e.children() {
		if k.placeholder() {
			many = k
		} else if k.name == name {
			return k
		}
	}
	return many
}

func (w *walker) walk(path string, e *entry) {
	w.t.Helper()
	w.dirs++
	list, err := os.ReadDir(path)
	if err != nil {
		w.t.Errorf("%s: %v", path, err)
		return
	}
	names := map[string]bool{}
	for _, d := range list {
		if names[d.Name()] {
			w.t.Errorf("%s lists %s twice", path, d.Name())
		}
		names[d.Name()] = true
		k := childFor(e, d.Name())
		if k == nil {
			w.t.Errorf("%s has %s, which the tree does not", path, d.Name())
			continue
		}
		w.seen[k]++
		w.node(filepath.Join(path, d.Name()), k, d)
	}
	for _, k := range e.children() {
		if !k.placeholder() && k.when == nil && !names[k.name] {
			w.t.Errorf("%s has no %s", path, k.name)
		}
	}
}

func (w *walker) node(path string, k *entry, d os.DirEntry) {
	w.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		w.t.Errorf("%s: %v", path, err)
		return
	}
	if got, want := backend.FileType(st.Mode&unix.S_IFMT), k.fileType(); got != want {
		w.t.Errorf("%s is of type %o, want %o", path, got, want)
	}
	want := k.perm()
	if k.name == "source" {
		want = 0o444 // only a new disk's can be written, and there is none
	}
	if perm := st.Mode & 0o7777; !k.files && !k.root && perm != want {
		w.t.Errorf("%s has mode %o, want %o", path, perm, want)
	}
	if k.perm()&0o222 != 0 && k.set == nil && k.mkdir == nil && k.link == nil && k.mode != gateMode {
		w.t.Errorf("%s says that it can be written, and cannot", path)
	}
	if k.mode == gateMode && st.Gid != 4242 {
		w.t.Errorf("%s has group %d, want 4242", path, st.Gid)
	}
	if i, ok := inode(d); !ok || i != st.Ino {
		w.t.Errorf("%s: readdir says inode %d, stat %d", path, i, st.Ino)
	}
	switch {
	case w.bad[filepath.Dir(path)] != 0:
		if _, err := os.ReadFile(path); !errors.Is(err, w.bad[filepath.Dir(path)]) {
			w.t.Errorf("%s of a volume that cannot be read: %v, want %v", path, err, w.bad[filepath.Dir(path)])
		}
	case k.root: // its names are the guest's
	case k.isDir():
		w.walk(path, k)
	case k.show != nil:
		content, err := os.ReadFile(path)
		if err != nil {
			w.t.Errorf("%s: %v", path, err)
		}
		if k.name != "stats" && int64(len(content)) != st.Size {
			w.t.Errorf("%s: st_size %d, content of %d bytes", path, st.Size, len(content))
		}
		if s := string(content); s != "" && (!strings.HasSuffix(s, "\n") || s == "\n") {
			w.t.Errorf("%s: %q is not empty, and not lines", path, s)
		}
	case k.raw:
		size, err := os.ReadFile(filepath.Join(filepath.Dir(path), "size"))
		if err != nil || strconv.FormatInt(st.Size, 10)+"\n" != string(size) {
			w.t.Errorf("%s: st_size %d, and size says %q (%v)", path, st.Size, size, err)
		}
	case k.events:
		if st.Size != 0 {
			w.t.Errorf("%s: st_size %d, want 0", path, st.Size)
		}
	}
}

func TestTree_ShowsEachNodeOfTheLiteralAndNothingElse(t *testing.T) {
	testneed.Root(t) // to see the gid
	r := newRig(t)
	r.addLVM("lvm01")
	r.Store.SetReserve(MiB)
	r.Store.AddPool(backend.Pool{Name: "vg0:thin", Driver: "lvm-thin", SizeBytes: 1 << 30, FreeBytes: 1 << 29, MetadataSizeBytes: 1 << 20, MetadataFreeBytes: 1 << 19})
	r.mkdir("snapshots", "web01", "nightly")
	r.mkdir("snapshots", "db01", "hourly")
	r.mkdir("snapshots", "lvm01", "nightly")
	if err := os.WriteFile(r.path("snapshots/web01/nightly/mapped"), []byte("1\n"), 0); err != nil {
		t.Fatal(err)
	}
	// web01's third partition reaches past the end of its disk; lvm01's srv lacks a physical volume.
	w := &walker{t: t, seen: map[*entry]int{}, bad: map[string]syscall.Errno{
		r.path("xenstore/web01/disks/xvda/p3"): unix.EUCLEAN, r.path("snapshots/web01/nightly/disks/xvda/p3"): unix.EUCLEAN,
		r.path("xenstore/lvm01/lvm/vg0/srv"): unix.ENODEV, r.path("snapshots/lvm01/nightly/lvm/vg0/srv"): unix.ENODEV}}
	w.walk(r.mnt, &tree)
	var check func(es []entry)
	check = func(es []entry) {
		for i := range es {
			if w.seen[&es[i]] == 0 {
				t.Errorf("%s (%s) is in the tree, and nowhere on the mount", es[i].name, es[i].doc)
			}
			check(es[i].kids)
		}
	}
	check(tree.kids)
	for i := range volume {
		if w.seen[&volume[i]] == 0 {
			t.Errorf("VOLUME's %s is nowhere on the mount", volume[i].name)
		}
	}
	if w.dirs < 25 {
		t.Errorf("only %d directories were walked", w.dirs)
	}
}

func inode(d os.DirEntry) (uint64, bool) {
	info, err := d.Info()
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Ino, true
}

func TestTree_ReaddirAndStatGiveTheSameInodeNumbers(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots", "web01", "nightly")
	for _, dir := range []string{"", "xenstore/web01", "xenstore/web01/disks/xvdb", "snapshots/web01/nightly/disks/xvda/p1", "snapshots/web01/nightly/disks/xvda/p1/files"} {
		for name, ino := range rawDirents(t, r.path(dir)) {
			if name == "." || name == ".." {
				continue
			}
			if st := r.stat(dir, name); st.Ino != ino {
				t.Errorf("%s/%s: readdir says inode %d, stat %d", dir, name, ino, st.Ino)
			}
		}
	}
}

// rawDirents are the names and d_ino of a directory, from getdents(2) itself.
func rawDirents(t *testing.T, path string) map[string]uint64 {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out := map[string]uint64{}
	for _, e := range getdents(t, fd, 0) {
		out[e.name] = e.ino
	}
	return out
}

type dirent struct {
	name string
	ino  uint64
	off  int64
	kind byte
}

// getdents reads a directory from where the descriptor is, to its end or for limit entries or a few more.
func getdents(t *testing.T, fd, limit int) []dirent {
	t.Helper()
	var out []dirent
	buf := make([]byte, 4096)
	for limit == 0 || len(out) < limit {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatalf("getdents: %v", err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			length := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := bytes.Cut(b[19:length], []byte{0})
			out = append(out, dirent{string(name), binary.NativeEndian.Uint64(b), int64(binary.NativeEndian.Uint64(b[8:])), b[18]})
			b = b[length:]
		}
	}
	return out
}

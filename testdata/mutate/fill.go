package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// filler fills a filesystem with something of everything that has a structure of its own.
type filler struct {
	dir     string
	block   int64
	plain   bool // a folder to be copied: nothing that a copy loses
	encrypt bool
	large   bool // attributes larger than a block
	quick   bool // what a fast commit can hold
}

func (f *filler) path(name ...string) string {
	return filepath.Join(append([]string{f.dir}, name...)...)
}

const longName = "a name that is long enough to fill the blocks of a directory soon "

// fill makes the tree.
func (f *filler) fill() error {
	for _, dir := range []string{"many", "few", "deep/deeper/deepest"} {
		if err := os.MkdirAll(f.path(dir), 0o755); err != nil {
			return err
		}
	}
	first := f.path("few", "first")
	if err := os.WriteFile(first, []byte("small\n"), 0o644); err != nil {
		return err
	}
	// Links take no inodes, and fill a directory as well.
	for i := range 4 * int(f.block) / 100 {
		if i == 300 {
			break
		}
		if err := os.Link(first, f.path("many", fmt.Sprint(longName, i))); err != nil {
			return err
		}
	}
	for i, size := range []int64{0, 1, 40, 100, 150, f.block - 1, f.block, 3*f.block + 1} {
		if err := os.WriteFile(f.path("few", fmt.Sprint(size)), bytes.Repeat([]byte{byte('a' + i)}, int(size)), 0o640); err != nil {
			return err
		}
	}
	if err := f.pieces("fragmented", 90); err != nil {
		return err
	}
	for name, target := range map[string]string{"link": "few/first", "long link": strings.Repeat("target/", 30)} {
		if err := os.Symlink(target, f.path(name)); err != nil {
			return err
		}
	}
	if err := errors.Join(unix.Mkfifo(f.path("fifo"), 0o600), unix.Mknod(f.path("device"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 300)))); err != nil {
		return err
	}
	return errors.Join(f.attributes(), f.unwritten(), f.secret())
}

// pieces writes a file of so many blocks, each with a hole after it.
func (f *filler) pieces(name string, blocks int64) error {
	out, err := os.Create(f.path(name))
	if err != nil {
		return err
	}
	defer out.Close()
	for i := range blocks {
		if _, err := out.WriteAt([]byte("a piece"), 2*i*f.block); err != nil {
			return err
		}
	}
	return out.Close()
}

func (f *filler) attributes() error {
	values := []struct {
		name  string
		bytes int
	}{{"user.short", 20}, {"user.longer", 300}, {"trusted.empty", 0}, {"security.some", 30}}
	for _, name := range []string{"fragmented", "few", "link"} {
		for _, v := range values {
			if name == "link" && strings.HasPrefix(v.name, "user.") {
				continue
			}
			if err := unix.Lsetxattr(f.path(name), v.name, bytes.Repeat([]byte("v"), v.bytes), 0); err != nil {
				return fmt.Errorf("%s of %s: %w", v.name, name, err)
			}
		}
	}
	// An ACL as setxattr(2) takes it: version 2; the owner rwx, user 1000 r, the group and mask r-x, others nothing.
	acl := le.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 4, 1000}, {4, 5, ^uint32(0)}, {16, 5, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		acl = le.AppendUint32(le.AppendUint16(le.AppendUint16(acl, uint16(e[0])), uint16(e[1])), e[2])
	}
	if !f.plain {
		if err := unix.Setxattr(f.path("few"), "system.posix_acl_access", acl, 0); err != nil {
			return fmt.Errorf("an ACL: %w", err)
		}
	}
	if f.large {
		return unix.Setxattr(f.path("fragmented"), "user.large", bytes.Repeat([]byte("large"), 2000), 0)
	}
	return nil
}

// unwritten makes a file with space that was never written, where the filesystem can.
func (f *filler) unwritten() error {
	if f.plain {
		return nil
	}
	out, err := os.Create(f.path("unwritten"))
	if err != nil {
		return err
	}
	defer out.Close()
	if err := unix.Fallocate(int(out.Fd()), 0, 0, 20*f.block); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	_, err = out.WriteAt([]byte("in the middle"), 7*f.block)
	return err
}

// work goes on with what is there, so that the journal holds changes that are nowhere else yet.
// The files that it returns are removed, and stay until they are closed.
func (f *filler) work() (open []*os.File, err error) {
	for round := range 6 {
		tag := fmt.Sprint("round ", round)
		if err := f.round(tag); err != nil {
			return open, fmt.Errorf("%s: %w", tag, err)
		}
		orphan, err := os.Create(f.path("few", tag+" orphan"))
		if err != nil {
			return open, err
		}
		open = append(open, orphan)
		if _, err := orphan.Write(bytes.Repeat([]byte("o"), int(2*f.block))); err != nil {
			return open, err
		}
		if err := os.Remove(orphan.Name()); err != nil {
			return open, err
		}
		// A commit, of which only the journal knows.
		if err := writeSynced(f.path("deep", tag), bytes.Repeat([]byte(tag), 50)); err != nil {
			return open, err
		}
	}
	if f.quick {
		err = f.small()
	}
	return open, err
}

// small goes on with changes that fast commits hold, each of a few bytes in the journal.
func (f *filler) small() error {
	for i := range 12 {
		name := f.path("few", fmt.Sprint("quick ", i))
		steps := []func() error{
			func() error { return writeSynced(name, bytes.Repeat([]byte("quick"), 100*i)) },
			func() error { return os.Link(name, name+" link") },
			func() error { return os.Rename(name, name+" moved") },
			func() error { return os.Truncate(name+" link", int64(i)) },
			func() error { return writeSynced(name, []byte("again")) },
			func() error { return os.Remove(name + " link") },
			func() error { return writeSynced(name, nil) },
		}
		for j, step := range steps {
			if err := step(); err != nil {
				return fmt.Errorf("small step %d of %d: %w", j, i, err)
			}
		}
	}
	return nil
}

func (f *filler) round(tag string) error {
	dir := f.path("deep", tag+" dir")
	moved := dir + " moved"
	steps := []func() error{
		func() error { return os.Mkdir(dir, 0o755) },
		func() error { return os.WriteFile(dir+"/a", bytes.Repeat([]byte("a"), int(f.block)+17), 0o644) },
		func() error { return os.Link(dir+"/a", dir+"/b") },
		func() error { return os.Symlink(strings.Repeat("x", 70), dir+"/s") },
		func() error { return os.Rename(dir, moved) },
		func() error { return os.Remove(moved + "/a") },
		func() error { return unix.Setxattr(moved+"/b", "user.round", []byte(tag), 0) },
		func() error { return os.Truncate(moved+"/b", f.block/2) },
		func() error { return f.pieces("deep/"+tag+" pieces", 12) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	names, err := os.ReadDir(f.path("many"))
	if err != nil {
		return err
	}
	for i := 0; i < len(names); i += 7 {
		if err := os.Rename(f.path("many", names[i].Name()), f.path("many", tag+names[i].Name())); err != nil {
			return err
		}
	}
	return os.Remove(f.path("deep", tag+" pieces"))
}

func writeSynced(path string, b []byte) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.Write(b); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}

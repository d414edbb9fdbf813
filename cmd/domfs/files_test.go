package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// file is all that can be told of a file from outside, but for its inode's number, of
// which links keeps who shares it.
type file struct {
	stat   string
	target string // of a symbolic link
	sum    string // of a regular file's bytes
	holes  string // where its data begins and ends
	xattrs string
	links  string // the first name, in order, with the same inode
}

// readTree reads everything below root.
func readTree(t *testing.T, root string) map[string]file {
	t.Helper()
	tree := map[string]file{}
	first := map[[2]uint64]string{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		f := file{stat: fmt.Sprintf("mode %o nlink %d uid %d gid %d rdev %x size %d blocks %d blksize %d atime %v mtime %v ctime %v",
			st.Mode, st.Nlink, st.Uid, st.Gid, st.Rdev, st.Size, st.Blocks, st.Blksize, st.Atim, st.Mtim, st.Ctim)}
		inode := [2]uint64{uint64(st.Dev), st.Ino}
		if first[inode] == "" {
			first[inode] = name
		}
		f.links = first[inode]
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if f.target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFREG:
			if f.sum, f.holes, err = readContent(path); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if f.xattrs, err = readXattrs(path); err != nil {
			return fmt.Errorf("xattrs of %s: %w", path, err)
		}
		tree[name] = f
		return nil
	}))
	return tree
}

func readContent(path string) (sum, holes string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	// Holes first: what was read is in the page cache, and counts as data.
	var b strings.Builder
	for off := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return "", "", fmt.Errorf("SEEK_DATA at %d: %w", off, err)
		}
		if off, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return "", "", fmt.Errorf("SEEK_HOLE at %d: %w", data, err)
		}
		fmt.Fprintf(&b, "%d-%d ", data, off)
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(f, 0, math.MaxInt64)}, make([]byte, 1<<20)); err != nil {
		return "", "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), b.String(), nil
}

func readXattrs(path string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return "", err
	}
	names := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&b, "%s=%x ", name, value[:n])
	}
	return b.String(), nil
}

func TestFiles_AreWhatTheKernelsOwnMountShows(t *testing.T) {
	testneed.Loop(t)
	h := sampleHost(t)
	kernel := filepath.Join(h.dir, "kernel")
	must(t, os.Mkdir(kernel, 0o755))
	h.enrich(kernel)
	m := h.mount()
	for _, domain := range []string{"web01", "db01", "mail01"} {
		m.snapshot(domain, "s")
	}
	filesystems := []struct {
		disk, image string
		offset      int64
	}{
		{"web01/s/disks/xvda/p2", "web01.img", 65 << 20},
		{"db01/s/disks/hda/p1", "db01.img", 1 << 20},
		{"db01/s/disks/hda/p6", "db01.img", 268 << 20},
		{"db01/s/disks/hdb", "db01-data.img", 0},
		{"mail01/s/disks/sda1", "mail01-root.img", 0},
	}
	for _, fs := range filesystems {
		t.Run(fs.disk, func(t *testing.T) {
			must(t, h.loopMount(kernel, fs.image, fs.offset, "ro"))
			defer h.loopUnmount(t, kernel)
			want := readTree(t, kernel)
			got := readTree(t, m.at("snapshots", fs.disk, "files"))
			if len(want) < 3 { // the root, lost+found and something in it
				t.Fatalf("the kernel shows only %d files", len(want))
			}
			differences := 0
			for _, name := range slices.Sorted(maps.Keys(want)) {
				g, ok := got[name]
				if !ok {
					t.Errorf("%q is missing", name)
				} else if g != want[name] {
					t.Errorf("%q\n   kernel %+v\n   domfs  %+v", name, want[name], g)
				} else {
					continue
				}
				if differences++; differences > 10 {
					t.Fatal("and so on")
				}
			}
			for name := range got {
				if _, ok := want[name]; !ok {
					t.Errorf("%q is too many", name)
				}
			}
			var a, b unix.Statfs_t
			must(t, unix.Statfs(kernel, &a))
			must(t, unix.Statfs(m.at("snapshots", fs.disk, "files"), &b))
			if a.Blocks != b.Blocks || a.Bfree != b.Bfree || a.Files != b.Files || a.Namelen != b.Namelen {
				t.Logf("statfs differs, as there is one for a mount: kernel %+v, domfs %+v", a, b)
			}
		})
	}
	m.stop()
}

// enrich lets the kernel write what mke2fs cannot: fragments, holes, unwritten extents, large
// directories, odd names and times.
func (h *host) enrich(at string) {
	h.t.Helper()
	must(h.t, h.loopMount(at, "web01.img", 65<<20, "rw"))
	defer h.loopUnmount(h.t, at)
	dir := at + "/srv/kernel"
	must(h.t, os.MkdirAll(dir+"/many", 0o2775))
	for i := range 3000 {
		must(h.t, os.WriteFile(fmt.Sprintf("%s/many/a name of some length %d", dir, i), nil, 0o600))
	}
	f, err := os.Create(dir + "/holes")
	must(h.t, err)
	for i := range int64(300) {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(i)}, 5000), i*17_000)
		must(h.t, err)
	}
	must(h.t, f.Truncate(20<<20))
	must(h.t, f.Close())
	f, err = os.Create(dir + "/unwritten")
	must(h.t, err)
	must(h.t, unix.Fallocate(int(f.Fd()), 0, 0, 4<<20))
	_, err = f.WriteAt([]byte("in the middle"), 1<<20)
	must(h.t, err)
	must(h.t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 2<<20, 1<<20))
	must(h.t, f.Close())
	for _, name := range []string{"\xff\xfe", `back\slash`, strings.Repeat("n", 255), "new\nline"} {
		must(h.t, os.WriteFile(dir+"/"+name, []byte(name), 0o644))
	}
	must(h.t, unix.Mkfifo(dir+"/fifo", 0o600))
	must(h.t, unix.Mknod(dir+"/device", unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70_000))))
	must(h.t, unix.Setxattr(dir+"/holes", "user.long", bytes.Repeat([]byte("x"), 3000), 0))
	must(h.t, unix.Setxattr(dir+"/holes", "trusted.x", []byte{0, 1, 2}, 0))
	must(h.t, unix.Setxattr(dir+"/holes", "security.x", nil, 0))
	command(h.t, "setfacl", "-m", "u:1234:rw,g:5678:r", dir+"/holes")
	for name, sec := range map[string]int64{"before 1970": -1_000_000_000, "after 2038": 5_000_000_000, "1901": -2147483648} {
		path := dir + "/" + name
		must(h.t, os.WriteFile(path, nil, 0o644))
		must(h.t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: sec, Nsec: 123456789}, {Sec: sec, Nsec: 987654321}}, 0))
	}
}

func (h *host) loopMount(at, image string, offset int64, how string) error {
	out, err := exec.Command("mount", "-t", "ext4", "-o", fmt.Sprintf("loop,offset=%d,%s", offset, how), filepath.Join(h.images, image), at).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount %s: %w: %s", image, err, out)
	}
	return nil
}

func (h *host) loopUnmount(t testing.TB, at string) {
	t.Helper()
	eventually(t, endLimit, "the kernel's mount ends", func() bool { return exec.Command("umount", at).Run() == nil })
	// The loop device ends a little later; while it is there the image is in use.
	eventually(t, endLimit, "the loop device ends", func() bool {
		out, err := exec.Command("losetup", "-a").Output()
		return err == nil && !strings.Contains(string(out), h.images)
	})
}

func TestRaw_IsTheDisk(t *testing.T) {
	h := sampleHost(t)
	m := h.mount()
	m.snapshot("mail01", "s")
	want := command(t, "sh", "-c", `sha256sum < "$1"`, "sh", h.images+"/mail01-root.img")
	for _, path := range []string{"xenstore/mail01/disks/sda1/raw", "snapshots/mail01/s/disks/sda1/raw"} {
		sum, holes, err := readContent(m.at(path))
		must(t, err)
		if !strings.HasPrefix(want, sum) {
			t.Errorf("%s has other bytes than the image", path)
		}
		if strings.Count(holes, "-") < 2 {
			t.Errorf("%s has lost its holes: %s", path, holes)
		}
		var st unix.Stat_t
		must(t, unix.Stat(m.at(path), &st))
		if st.Size != 200<<20 || st.Blocks*512 > st.Size/2 {
			t.Errorf("%s has %d bytes and takes %d blocks", path, st.Size, st.Blocks)
		}
	}
	// A partition is the bytes between its ends.
	part := make([]byte, 64<<20)
	f, err := os.Open(h.images + "/db01.img")
	must(t, err)
	_, err = f.ReadAt(part, 202<<20)
	must(t, err)
	must(t, f.Close())
	if got := readFile(t, m.at("xenstore/db01/disks/hda/p5/raw")); got != string(part) {
		t.Error("a logical partition has other bytes than the image")
	}
	m.stop()
}

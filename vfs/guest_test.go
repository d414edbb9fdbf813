package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/fake"

	"golang.org/x/sys/unix"
)

const webFiles = "snapshots/web01/one/disks/xvda/p1/files"

func guestRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.mkdir("snapshots/web01/one")
	return r
}

func TestGuest_ShowsWhatStatSays(t *testing.T) {
	r := guestRig(t)
	g := fake.NewGuest("web-root")
	fillGuest(g)
	for _, p := range []string{"etc/hostname", "hard/one", "hard/two", "etc/three", "links/absolute", "links/long", "dev/null", "dev/wide", "dev/sda1",
		"run/pipe", "run/socket", "times/old", "times/far", "modes/setuid", "modes/sticky", "modes/secret", "data/big", "data/sparse", "data/hole"} {
		n := g.Lookup(p)
		st := r.stat(webFiles, p)
		if st.Mode != uint32(n.Type)|n.Mode || uint64(st.Nlink) != uint64(n.Nlink) || st.Uid != n.UID || st.Gid != n.GID || st.Size != n.SizeBytes || st.Blocks != n.Blocks512 {
			t.Errorf("%s: %+v, want %+v", p, st, n.Attr)
		}
		if n.Type == backend.TypeChar || n.Type == backend.TypeBlock {
			if unix.Major(st.Rdev) != n.RdevMajor || unix.Minor(st.Rdev) != n.RdevMinor {
				t.Errorf("%s: device %d:%d, want %d:%d", p, unix.Major(st.Rdev), unix.Minor(st.Rdev), n.RdevMajor, n.RdevMinor)
			}
		}
		for _, c := range []struct {
			name string
			got  unix.Timespec
			want backend.Time
		}{{"atime", st.Atim, n.Atime}, {"mtime", st.Mtim, n.Mtime}, {"ctime", st.Ctim, n.Ctime}} {
			if c.got.Sec != c.want.Sec || uint32(c.got.Nsec) != c.want.Nsec {
				t.Errorf("%s: %s is %+v, want %+v", p, c.name, c.got, c.want)
			}
		}
		if n.Type == backend.TypeSymlink {
			if target, err := os.Readlink(r.path(webFiles, p)); err != nil || target != n.Target {
				t.Errorf("%s points to %q, %v", p, target, err)
			}
		}
	}
	one, two, three := r.stat(webFiles, "hard/one"), r.stat(webFiles, "hard/two"), r.stat(webFiles, "etc/three")
	if one.Ino != two.Ino || one.Ino != three.Ino || one.Nlink != 3 {
		t.Errorf("hard links have inodes %d, %d, %d and %d links", one.Ino, two.Ino, three.Ino, one.Nlink)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(r.path(webFiles), &fs); err != nil || fs.Blocks != 1000 || fs.Bfree != 400 || fs.Bavail != 300 || fs.Files != 500 || fs.Ffree != 200 || fs.Namelen != 255 {
		t.Errorf("statfs: %+v, %v", fs, err)
	}
}

func TestGuest_HasTheSameInodeNumbersAfterARestart(t *testing.T) {
	a := guestRig(t)
	b := newRigWith(t, rigOptions{world: a})
	for _, p := range []string{webFiles, webFiles + "/etc", webFiles + "/hard/one", "snapshots/web01/one", "snapshots/web01/one/disks/xvda/raw", "xenstore/web01/name"} {
		if x, y := a.stat(p), b.stat(p); x.Ino != y.Ino {
			t.Errorf("%s has inode %d and then %d", p, x.Ino, y.Ino)
		}
	}
	x, y := a.stat(webFiles, "etc/hostname"), a.stat("snapshots/web01/one/disks/xvdb/files/version")
	if x.Ino == y.Ino || x.Dev != y.Dev {
		t.Errorf("two filesystems give inode %d and %d", x.Ino, y.Ino)
	}
}

func TestGuest_ShowsXattrs(t *testing.T) {
	r := guestRig(t)
	p := r.path(webFiles, "etc/hostname")
	want := "security.capability\x00user.big\x00user.empty\x00user.note\x00"
	buf := make([]byte, 100)
	if n, err := unix.Listxattr(p, nil); n != len(want) || err != nil {
		t.Errorf("listxattr says %d, %v, want %d", n, err, len(want))
	}
	if n, err := unix.Listxattr(p, buf); err != nil || string(buf[:n]) != want {
		t.Errorf("listxattr: %q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Listxattr(p, buf[:10]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("listxattr into 10 bytes: %v", err)
	}
	for name, want := range map[string]string{"user.note": "hello", "user.empty": "", "user.big": strings.Repeat("x", 60000)} {
		if n, err := unix.Getxattr(p, name, nil); n != len(want) || err != nil {
			t.Errorf("%s has %d bytes, %v", name, n, err)
		}
		b := make([]byte, len(want)+1)
		if n, err := unix.Getxattr(p, name, b); err != nil || string(b[:n]) != want {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
	if _, err := unix.Getxattr(p, "user.note", buf[:4]); !errors.Is(err, unix.ERANGE) {
		t.Errorf("getxattr into 4 bytes: %v", err)
	}
	if _, err := unix.Getxattr(p, "user.none", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("getxattr of none: %v", err)
	}
	if _, err := unix.Getxattr(r.path("xenstore/web01/name"), "user.none", buf); !errors.Is(err, unix.ENODATA) {
		t.Errorf("getxattr of a value file: %v", err)
	}
	if n, err := unix.Listxattr(r.path("xenstore/web01"), buf); n != 0 || err != nil {
		t.Errorf("listxattr of a domain: %d, %v", n, err)
	}
}

func TestGuest_SeeksDataAndHoles(t *testing.T) {
	r := guestRig(t)
	f, err := os.Open(r.path(webFiles, "data/sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 5*MiB + 17
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
		errno  error
	}{
		{0, unix.SEEK_DATA, MiB, nil}, {MiB, unix.SEEK_DATA, MiB, nil}, {MiB + 1, unix.SEEK_DATA, MiB + 1, nil}, {MiB + 4096, unix.SEEK_DATA, 3 * MiB, nil},
		{3*MiB + 8192, unix.SEEK_DATA, 0, unix.ENXIO}, {size, unix.SEEK_DATA, 0, unix.ENXIO}, {0, unix.SEEK_HOLE, 0, nil}, {MiB, unix.SEEK_HOLE, MiB + 4096, nil},
		{3 * MiB, unix.SEEK_HOLE, 3*MiB + 8192, nil}, {size - 1, unix.SEEK_HOLE, size - 1, nil}, {size, unix.SEEK_HOLE, 0, unix.ENXIO}, {0, io.SeekEnd, size, nil},
	} {
		got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
		if !errors.Is(err, c.errno) || err == nil && got != c.want {
			t.Errorf("lseek(%d, %d) = %d, %v, want %d, %v", c.off, c.whence, got, err, c.want, c.errno)
		}
	}
	want := make([]byte, size)
	copy(want[MiB:], pattern(4096, 2))
	copy(want[3*MiB:], pattern(8192, 3))
	equalFile(t, f, 0, want)
	if out, exit := sh(t, `cd "$2" && tar -cSf sparse.tar -C "$1" sparse hole && [ $(stat -c %s sparse.tar) -lt 100000 ] && tar -xf sparse.tar && cmp sparse "$1/sparse" && [ $(stat -c %s hole) = 1099511627776 ]`, r.path(webFiles, "data"), t.TempDir()); exit != 0 {
		t.Errorf("tar -S: %s", out)
	}
}

func TestGuest_ReadsAtEveryAlignment(t *testing.T) {
	r := guestRig(t)
	for name, size := range map[string]int{"data/big": 3*MiB + 123, "data/on-disk": 300<<10 + 5} {
		want := pattern(size, 1)
		if name == "data/on-disk" {
			want = make([]byte, size)
		}
		var wg sync.WaitGroup
		for reader := range 3 {
			wg.Go(func() {
				f, err := os.Open(r.path(webFiles, name))
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				for _, off := range []int{0, 1, 511, 512, 4095, 4096, 4097, 65535, 131072, 262145, size - 4097, size - 1} {
					for _, n := range []int{1, 2, 511, 4096, 4097, 16383, 16384, 65537, 262144} {
						off := off + reader
						if n = min(n, size-off); n > 0 {
							equalFile(t, f, int64(off), want[off:off+n])
						}
					}
				}
				if n, err := f.ReadAt(make([]byte, 10), int64(size)); n != 0 || err != io.EOF {
					t.Errorf("%s: read at the end: %d, %v", name, n, err)
				}
			})
		}
		wg.Wait()
		if got := r.read(webFiles, name); got != string(want) {
			t.Errorf("%s: %d other bytes", name, len(got))
		}
	}
}

func TestGuest_ShowsNamesAsBytesAndEscapesWhatLinuxCannotHold(t *testing.T) {
	r := guestRig(t)
	listed := map[string]bool{}
	for _, name := range r.list(webFiles, "odd") {
		listed[name] = true
	}
	for _, name := range oddNames {
		b, err := os.ReadFile(r.path(webFiles, "odd") + "/" + name)
		if !listed[name] || err != nil || string(b) != name {
			t.Errorf("%q: listed %v, holds %q, %v", name, listed[name], b, err)
		}
	}
	if len(listed) != len(oddNames) {
		t.Errorf("%d names are listed, want %d", len(listed), len(oddNames))
	}
	for name, want := range map[string]string{"a%2Fb": "slash", "nul%00byte": "nul", "%2F": "root"} {
		if got := r.read(webFiles, "damaged", name); got != want {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if got := r.list(webFiles, "damaged"); len(got) != 3 {
		t.Errorf("damaged lists %q", got)
	}
}

func TestGuest_ResumesABigDirectory(t *testing.T) {
	r := newRig(t)
	g := fake.NewGuest("data-big")
	const count = 20000
	for i := range count {
		g.File(fmt.Sprintf("many/f%05d", i), nil)
	}
	r.guests.Add(g)
	disk := make([]byte, MiB)
	copy(disk, g.Header())
	r.Store.Write("/images/web01-xvdb", 0, disk)
	r.mkdir("snapshots/web01/one")
	dir := r.path("snapshots/web01/one/disks/xvdb/files/many")
	for round := range 2 {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		all := getdents(t, fd, 0)
		seen := map[string]bool{}
		for _, e := range all {
			seen[e.name] = true
		}
		if len(all) != count+2 || len(seen) != count+2 || all[0].name != "." || all[1].name != ".." {
			t.Errorf("round %d: %d entries, %d names", round, len(all), len(seen))
		}
		for _, i := range []int{0, 1, 2, 5000, count - 1, count + 1} {
			if _, err := unix.Seek(fd, all[i].off, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			rest := getdents(t, fd, 1)
			switch {
			case i == count+1 && len(rest) != 0:
				t.Errorf("after the end: %v", rest[0])
			case i < count+1 && (len(rest) == 0 || rest[0].name != all[i+1].name):
				t.Errorf("seekdir after %s gives something else than %s", all[i].name, all[i+1].name)
			}
		}
		unix.Seek(fd, 0, io.SeekStart)
		if again := getdents(t, fd, 0); len(again) != len(all) {
			t.Errorf("rewinddir gives %d entries", len(again))
		}
		unix.Close(fd)
	}
}

func TestGuest_SaysEUCLEANAndRecordsDamage(t *testing.T) {
	r := guestRig(t)
	g := fake.NewGuest("web-root")
	fillGuest(g)
	corrupt, dir := g.Lookup("data/corrupt").Ino, g.Lookup("corrupt-dir").Ino
	g.SetFault(func(op string, ino uint64) error {
		if ino == corrupt && op == "read" || ino == dir && op == "readdir" || ino == g.Lookup("etc/hostname").Ino && op == "xattr" {
			return fmt.Errorf("inode %d, block 77: %s: %w", ino, op, backend.ErrCorrupt)
		}
		return nil
	})
	r.guests.Add(g)
	_, err := os.ReadFile(r.path(webFiles, "data/corrupt"))
	if !errors.Is(err, unix.EUCLEAN) && !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v, want EUCLEAN", err)
	}
	_, err = os.ReadDir(r.path(webFiles, "corrupt-dir"))
	wantErrno(t, "readdir", err, unix.EUCLEAN)
	_, err = unix.Getxattr(r.path(webFiles, "etc/hostname"), "user.note", make([]byte, 10))
	wantErrno(t, "getxattr", err, unix.EUCLEAN)
	errs := r.read("xenstore/web01/last_error")
	for _, want := range []string{"read EUCLEAN xvda/p1: ", "readdir EUCLEAN xvda/p1: ", "getxattr EUCLEAN xvda/p1: ", "block 77"} {
		if !strings.Contains(errs, want) {
			t.Errorf("last_error has no %q:\n%s", want, errs)
		}
	}
	if got := r.read(webFiles, "hard/one"); got != "linked\n" {
		t.Errorf("the rest: %q", got)
	}
}

const liveFiles = "xenstore/web01/disks/xvdb/files"

func TestGuest_OfALiveDiskIsGoneOnceItsDomainRuns(t *testing.T) {
	r := newRig(t)
	if got := r.read(liveFiles, "version"); got != "data-1\n" {
		t.Fatalf("version is %q", got)
	}
	open, err := os.Open(r.path(liveFiles, "version"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	dir, err := os.Open(r.path(liveFiles))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r.Hypervisor.Start("web01")
	r.Store.Write("/images/web01-xvdb", 0, dataDisk(r.guests, "data-2"))
	within(t, time.Second, "files is gone", func() bool { _, err := os.Stat(r.path(liveFiles)); return errors.Is(err, syscall.ENOENT) })
	fd, err := unix.Openat(int(dir.Fd()), "version", unix.O_RDONLY, 0)
	if err == nil {
		unix.Close(fd)
	}
	if !errors.Is(err, syscall.ESTALE) && !errors.Is(err, syscall.ENOENT) {
		t.Errorf("open below the old directory: %v", err)
	}
	if n, err := open.ReadAt(make([]byte, 10), 0); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("read through the old handle: %d, %v, want ESTALE", n, err)
	}
	r.Hypervisor.Stop("web01")
	eventually(t, "files is back", func() bool {
		b, err := os.ReadFile(r.path(liveFiles, "version"))
		return err == nil && string(b) == "data-2\n"
	})
}

func TestGuest_IsForgottenWithTheKernelsCaches(t *testing.T) {
	testneed.Root(t)
	r := guestRig(t)
	sh(t, `find "$1" > /dev/null`, r.path(webFiles))
	if n := r.stats("fuse_guests"); n == 0 {
		t.Error("no guest is known after a walk")
	}
	eventually(t, "the guests and nodes are forgotten", func() bool {
		dropCaches(t)
		return r.stats("fuse_guests") == 0 && r.stats("fuse_nodes") < 10 && r.stats("fuse_open_files") <= 1
	})
	if got := r.read(webFiles, "etc/hostname"); got != "web01\n" {
		t.Errorf("afterwards: %q", got)
	}
}

func TestRaw_IsTheDisksBytes(t *testing.T) {
	r := guestRig(t)
	want := webDisk(fake.NewGuests())
	for _, p := range []string{"snapshots/web01/one/disks/xvda/raw", "xenstore/web01/disks/xvda/raw"} {
		if got := r.read(p); !bytes.Equal([]byte(got), want) {
			t.Errorf("%s: %d other bytes", p, len(got))
		}
	}
	if got := r.read("snapshots/web01/one/disks/xvda/p1/raw"); !bytes.Equal([]byte(got), want[MiB:2*MiB]) {
		t.Error("p1/raw has other bytes")
	}
}

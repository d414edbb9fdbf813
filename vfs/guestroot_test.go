package vfs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"

	"golang.org/x/sys/unix"
)

// addRoot adds lvm01, whose root is a logical volume, with home on another, /boot on a partition and
// /srv on a volume that cannot be read. It is off.
func (r *rig) addRoot() (root, home, boot *fake.Guest) {
	r.t.Helper()
	root, home, boot = fake.NewGuest("root"), fake.NewGuest("home"), fake.NewGuest("boot")
	boot.UUID, boot.Stat.Blocks = "b007", 77
	root.File("etc/hostname", []byte("lvm01\n"))
	root.File("etc/fstab", []byte("/dev/mapper/vg0-root / memfs errors=remount-ro 0 1\nUUID=b007 /boot memfs\n/dev/vg0/home /home memfs\n/dev/vg0/srv /srv memfs\n/home/alice /mnt none bind\n"))
	root.File("home/below", []byte("under the mount\n"))
	for _, dir := range []string{"boot", "srv", "mnt", "usr"} {
		root.Dir(dir)
	}
	root.Root().Mode, root.Root().UID, root.Root().Xattrs = 0o751, 77, map[string]string{"user.of": "the root"}
	home.Root().Mode, home.Root().GID = 0o711, 50
	one := home.File("alice/one", []byte("of alice\n"))
	home.Link(home.Dir("alice"), "two", one)
	home.Link(home.Dir("bob"), "three", one)
	boot.File("vmlinuz", []byte("a kernel\n"))
	r.addLVMOf("lvm01", root, home, boot)
	return root, home, boot
}

func TestRoot_ShowsTheGuestsFilesAsItMountsThem(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	r.mkdir("snapshots/lvm01/n")
	for _, top := range []string{"xenstore/lvm01", "snapshots/lvm01/n"} {
		root := top + "/root"
		for dir, want := range map[string]string{"": "[boot etc home mnt srv usr]", "home": "[alice bob]", "home/alice": "[one two]", "boot": "[vmlinuz]", "mnt": "[one two]", "srv": "[]"} {
			got := r.list(root, dir)
			slices.Sort(got)
			if fmt.Sprint(got) != want {
				t.Errorf("%s/%s lists %s, want %s", root, dir, got, want)
			}
		}
		for name, want := range map[string]string{"etc/hostname": "lvm01\n", "home/alice/one": "of alice\n", "mnt/two": "of alice\n", "boot/vmlinuz": "a kernel\n"} {
			if got := r.read(root, name); got != want {
				t.Errorf("%s/%s is %q, want %q", root, name, got, want)
			}
		}
		// The directories that are shown are those of what is mounted.
		if st := r.stat(root); st.Mode != syscall.S_IFDIR|0o751 || st.Uid != 77 {
			t.Errorf("%s has mode %o, uid %d", root, st.Mode, st.Uid)
		}
		if st := r.stat(root, "home"); st.Mode != syscall.S_IFDIR|0o711 || st.Gid != 50 {
			t.Errorf("%s/home has mode %o, gid %d", root, st.Mode, st.Gid)
		}
		value := make([]byte, 100)
		if n, err := unix.Getxattr(r.path(root), "user.of", value); err != nil || string(value[:max(0, n)]) != "the root" {
			t.Errorf("user.of of %s: %q, %v", root, value[:max(0, n)], err)
		}
		if n, err := unix.Listxattr(r.path(root), value); err != nil || string(value[:max(0, n)]) != "user.of\x00" {
			t.Errorf("xattrs of %s: %q, %v", root, value[:max(0, n)], err)
		}
		var fs unix.Statfs_t
		for dir, want := range map[string]uint64{"": 1000, "home": 1000, "boot": 77, "boot/vmlinuz": 77} {
			if err := unix.Statfs(r.path(root, dir), &fs); err != nil || fs.Blocks != want {
				t.Errorf("statfs of %s/%s: %d blocks, want %d (%v)", root, dir, fs.Blocks, want, err)
			}
		}
		// What is mounted shows in root/ only.
		if got, want := r.read(top, "lvm/vg0/root/files/home/below"), "under the mount\n"; got != want {
			t.Errorf("files/home/below is %q", got)
		}
		_, err := os.Lstat(r.path(root, "home/below"))
		wantErrno(t, "home/below", err, unix.ENOENT)
	}
	last := r.read("xenstore/lvm01/last_error")
	if want := "/dev/vg0/srv, which its /etc/fstab mounts at /srv, is not shown there"; strings.Count(last, want) != 2 {
		t.Errorf("last_error does not say %q, of the disks and of the snapshot:\n%s", want, last)
	}
}

func TestRoot_InodeNumbersAreOneFilesystemsAndStable(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	r.mkdir("snapshots/lvm01/n")
	root := "snapshots/lvm01/n/root"
	for _, dir := range []string{"snapshots/lvm01/n", root, root + "/home", root + "/home/alice", root + "/mnt"} {
		for name, ino := range rawDirents(t, r.path(dir)) {
			if name != "." && name != ".." && r.stat(dir, name).Ino != ino {
				t.Errorf("%s/%s: readdir says inode %d, stat %d", dir, name, ino, r.stat(dir, name).Ino)
			}
		}
		if self := rawDirents(t, r.path(dir))["."]; self != r.stat(dir).Ino {
			t.Errorf("%s: its own entry says inode %d, stat %d", dir, self, r.stat(dir).Ino)
		}
	}
	one := r.stat(root, "home/alice/one").Ino
	for _, other := range []string{"home/alice/two", "home/bob/three", "mnt/one"} {
		if r.stat(root, other).Ino != one {
			t.Errorf("%s is another inode than its link", other)
		}
	}
	if r.stat("snapshots/lvm01/n/lvm/vg0/home/files/alice/one").Ino == one {
		t.Error("a file in files/ is the same inode as one in root/")
	}
	seen := map[uint64]string{}
	for _, name := range []string{"", "etc", "home", "home/alice", "boot", "boot/vmlinuz", "etc/hostname", "usr"} {
		ino := r.stat(root, name).Ino
		if seen[ino] != "" {
			t.Errorf("%s and %s have the same inode number", name, seen[ino])
		}
		seen[ino] = name
	}
	// Another daemon on the same host.
	again := newRigWith(t, rigOptions{world: r})
	if got := again.stat(root, "home/alice/one").Ino; got != one {
		t.Errorf("inode %d, and %d after a restart", one, got)
	}
}

func TestRoot_ListingASnapshotReadsNoDisk(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	r.mkdir("snapshots/lvm01/n")
	opens := r.Store.Calls("Open")
	for _, top := range []string{"xenstore/lvm01", "snapshots/lvm01/n"} {
		if got := rawDirents(t, r.path(top)); got["root"] == 0 || got["lvm"] == 0 {
			t.Errorf("%s lists %v", top, got)
		}
	}
	if n := r.Store.Calls("Open") - opens; n != 0 {
		t.Errorf("%d disks were opened", n)
	}
}

func TestRoot_OfASnapshotBeingCopiedWaitsAndItsStatDoesNot(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	r.Store.SetCopies(true)
	wait := make(chan struct{})
	r.Store.Plant(fake.Fault{Op: "Fill", ID: "/images/lvm01-xvda", Hang: wait})
	r.mkdir("snapshots/lvm01/n")
	eventually(t, "the copy has begun", func() bool { return r.Store.Calls("Fill") > 0 })
	stat := async(func() uint32 { return r.stat("snapshots/lvm01/n/root").Mode })
	if mode := receive(t, "stat", stat); mode != syscall.S_IFDIR|0o555 {
		t.Errorf("root has mode %o", mode)
	}
	read := async(func() string { return r.read("snapshots/lvm01/n/root/etc/hostname") })
	list := async(func() []string { return r.list("snapshots/lvm01/n/root") })
	stillWaits(t, "a file in it", read)
	stillWaits(t, "readdir", list)
	close(wait)
	if got := receive(t, "read", read); got != "lvm01\n" {
		t.Errorf("hostname is %q", got)
	}
	if got := receive(t, "readdir", list); len(got) != 6 {
		t.Errorf("root lists %v", got)
	}
	eventually(t, "root has the guest's mode", func() bool { return r.stat("snapshots/lvm01/n/root").Mode == syscall.S_IFDIR|0o751 })
}

func TestRoot_IsEmptyWhereNoneIsFound(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/n")
	for _, root := range []string{"xenstore/web01/root", "snapshots/web01/n/root"} {
		if got := r.list(root); len(got) != 0 {
			t.Errorf("%s lists %v", root, got)
		}
		_, err := os.Lstat(r.path(root, "etc"))
		wantErrno(t, root+"/etc", err, unix.ENOENT)
		if st := r.stat(root); st.Mode != syscall.S_IFDIR|0o555 {
			t.Errorf("%s has mode %o", root, st.Mode)
		}
	}
	if last := r.read("xenstore/web01/last_error"); strings.Count(last, "no root filesystem was found: none of these is it, or more than one may be: xvda/p1 (memfs), xvdb (memfs)") != 2 {
		t.Errorf("last_error: %s", last)
	}
}

func TestRoot_OfALiveDomainGoesWhenItStarts(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	dir, err := os.Open(r.path("xenstore/lvm01/root/home"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := os.Open(r.path("xenstore/lvm01/root/home/alice/one"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.Hypervisor.Start("lvm01")
	eventually(t, "root is gone", func() bool {
		_, err := os.Lstat(r.path("xenstore/lvm01/root"))
		return os.IsNotExist(err)
	})
	_, err = f.ReadAt(make([]byte, 4), 0)
	wantErrno(t, "read of a file that was open", err, unix.ESTALE)
	var st unix.Stat_t
	wantErrno(t, "a name in a directory that was open", unix.Fstatat(int(dir.Fd()), "bob", &st, 0), unix.ESTALE)
}

func TestRoot_OfALiveDomainFollowsItsDisks(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	dir, err := os.Open(r.path("xenstore/lvm01/root/boot"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// Not the disk with /boot changes, but what is mounted may be another.
	r.Store.Write("/images/lvm01-xvdb", MiB-1, []byte{1})
	var st unix.Stat_t
	eventually(t, "what was seen before is stale", func() bool {
		return unix.Fstatat(int(dir.Fd()), "vmlinuz", &st, 0) == unix.ESTALE
	})
	if got := r.read("xenstore/lvm01/root/boot/vmlinuz"); got != "a kernel\n" {
		t.Errorf("vmlinuz is %q", got)
	}
}

func TestRoot_AnOpenFileOfAnyMountKeepsTheSnapshot(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	r.mkdir("snapshots/lvm01/n")
	for _, name := range []string{"etc/hostname", "home/alice/one", "boot/vmlinuz"} {
		f, err := os.Open(r.path("snapshots/lvm01/n/root", name))
		if err != nil {
			t.Fatal(err)
		}
		wantErrno(t, "rmdir with "+name+" open", unix.Rmdir(r.path("snapshots/lvm01/n")), unix.EBUSY)
		f.Close()
	}
	dir, err := os.Open(r.path("snapshots/lvm01/n/root/home"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r.rmdir("snapshots/lvm01/n")
	if _, err := dir.Readdirnames(-1); err == nil {
		t.Error("a directory of a snapshot that was removed is listed")
	}
	if n := r.Store.OpenDevices(); n != 0 {
		t.Errorf("%d devices are open", n)
	}
}

func TestRoot_TheKernelForgetsItsFilesystems(t *testing.T) {
	r := newRig(t)
	r.addRoot()
	r.mkdir("snapshots/lvm01/n")
	r.read("snapshots/lvm01/n/root/home/alice/one")
	r.read("snapshots/lvm01/n/root/boot/vmlinuz")
	r.read("snapshots/lvm01/n/root/etc/hostname")
	if n := r.stats("fuse_guests"); n != 3 {
		t.Errorf("%d filesystems are known, want root, home and boot", n)
	}
	dropCaches(t)
	eventually(t, "all are forgotten", func() bool { return r.stats("fuse_guests") == 0 })
	if got := r.read("snapshots/lvm01/n/root/home/alice/one"); got != "of alice\n" {
		t.Errorf("then %q is read", got)
	}
}

func TestRoot_AMountThatCannotBeReadNowIsAnErrorNotAnEmptyDirectory(t *testing.T) {
	r := newRig(t)
	_, home, _ := r.addRoot()
	home.SetFault(func(op string, _ uint64) error {
		if op == "mount" {
			return fmt.Errorf("a cable is loose: %w", backend.ErrIO)
		}
		return nil
	})
	r.mkdir("snapshots/lvm01/n")
	root := "snapshots/lvm01/n/root"
	_, err := os.ReadDir(r.path(root, "home"))
	wantErrno(t, "home", err, unix.EIO)
	if got := r.read(root, "etc/hostname"); got != "lvm01\n" {
		t.Errorf("hostname is %q", got)
	}
	if got := r.list(root); !slices.Contains(got, "home") {
		t.Errorf("root lists %v", got)
	}
	home.SetFault(nil)
	within(t, 20*time.Second, "home is there", func() bool {
		_, err := os.Lstat(r.path(root, "home/alice/one"))
		return err == nil
	})
}

func TestRoot_OfAnInvalidSnapshotIsAnError(t *testing.T) {
	r := newRigWith(t, rigOptions{loses: true})
	r.addRoot()
	r.mkdir("snapshots/lvm01/n")
	r.read("snapshots/lvm01/n/root/etc/hostname")
	inv, err := r.ctl.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.Store.Invalidate(inv.SnapshotDir("lvm01").Set("n").ID, "xvda")
	eventually(t, "a listing fails", func() bool {
		_, err := os.ReadDir(r.path("snapshots/lvm01/n/root"))
		return err != nil && strings.Contains(err.Error(), "input/output error")
	})
	_, err = os.ReadFile(r.path("snapshots/lvm01/n/root/etc/hostname"))
	wantErrno(t, "a file", err, unix.EIO)
	_, err = os.ReadFile(r.path("snapshots/lvm01/n/lvm/vg0/root/files/etc/hostname"))
	wantErrno(t, "a file of the volume", err, unix.EIO)
}

package labxen

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"domfs/backend/backendtest/labneed"
)

// Layout is what a guest's first disk is made up of. Its filesystem holds RootRecords.
type Layout int

// The layouts.
const (
	// Bare is a filesystem on a disk without partitions, which is the guest's xvda1.
	Bare Layout = iota
	// Whole is a filesystem on a disk without partitions, xvda.
	Whole
	// GPT is a partition, xvda1 of xvda.
	GPT
	// LVM is a volume group on such a partition, with the filesystem on its volume root.
	LVM
)

// Where records are in the guest's filesystems.
const (
	RootRecords = "srv/records"
	DataRecords = "records"
)

// Group is the volume group of an LVM layout.
const Group = "labguest"

const mib = 1 << 20

// root is how the guest finds its root, and on which disk's volume group.
func (l Layout) root() (device, disk string) {
	switch l {
	case Whole:
		return "/dev/xvda", ""
	case LVM:
		return "/dev/" + Group + "/root", "xvda1"
	default:
		return "/dev/xvda1", ""
	}
}

// vdev is what the guest calls its disk number i.
func (l Layout) vdev(i int) string {
	if l == Bare && i == 0 {
		return "xvda1"
	}
	return "xvd" + string(rune('a'+i))
}

// RootOffset is where the root filesystem begins, in bytes.
func (l Layout) RootOffset() int64 {
	switch l {
	case GPT:
		return mib
	case LVM:
		return 2 * mib // the group's first extent is 1 MiB into the partition
	default:
		return 0
	}
}

// MakeRoot makes a guest's first disk of a volume or a file, which are zeroes: 64 MiB of root filesystem. One of the same layout and size is the same,
// with its UUIDs.
func MakeRoot(t testing.TB, target string, l Layout) {
	t.Helper()
	roots.mu.Lock()
	defer roots.mu.Unlock()
	like := rootKind{l, sizeBytes(t, target)}
	if _, made := roots.made[like]; !made {
		file := labneed.File(t, like.sizeBytes)
		makeRoot(t, file, l)
		roots.made[like] = readImage(t, file)
	}
	roots.made[like].write(t, target)
}

// roots are the disks that were made: to make one takes an emulated processor seconds.
var roots = struct {
	mu   sync.Mutex
	made map[rootKind]image // guarded by mu
}{made: map[rootKind]image{}}

type rootKind struct {
	layout    Layout
	sizeBytes int64
}

func makeRoot(t testing.TB, target string, l Layout) {
	t.Helper()
	tree := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "dev", "proc", "sys", "tmp", "srv", "data", "mnt", "etc"} {
		if err := os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	labneed.Run(t, "cp", "/bin/busybox", filepath.Join(tree, "bin/busybox"))
	labneed.Run(t, "cp", Program(t), filepath.Join(tree, "sbin/init"))
	for name := range strings.FieldsSeq(labneed.Run(t, "busybox", "--list")) {
		if err := os.Symlink("/bin/busybox", filepath.Join(tree, "bin", name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"poweroff", "reboot"} { // where the kernel looks for them
		if err := os.Symlink("/bin/busybox", filepath.Join(tree, "sbin", name)); err != nil {
			t.Fatal(err)
		}
	}
	if l == GPT || l == LVM {
		partition := []string{"sgdisk", "--new=1:2048:0", "--typecode=1:8300", target}
		if l == LVM {
			partition[2] = "--typecode=1:8e00"
		}
		labneed.Run(t, partition...)
	}
	if l == LVM {
		makeGroup(t, target)
	}
	makeExt4(t, target, l.RootOffset(), "-d", tree)
}

// MakeData makes a guest's second disk of a volume or a file: a filesystem.
func MakeData(t testing.TB, target string) {
	t.Helper()
	makeExt4(t, target, 0)
}

func makeExt4(t testing.TB, target string, offset int64, options ...string) {
	t.Helper()
	argv := append([]string{"mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,offset=" + itoa(offset)}, options...)
	labneed.Run(t, append(argv, target, "64M")...)
}

// makeGroup makes the volume group of a disk's only partition, without a device of the partition that the host's
// LVM would find: the metadata is made elsewhere, and is copied.
func makeGroup(t testing.TB, target string) {
	t.Helper()
	partition := labneed.File(t, partitionBytes(t, target))
	loop := labneed.Hidden(t, partition)
	lvm := func(command string, args ...string) {
		t.Helper()
		labneed.Run(t, append([]string{command, "--quiet", "--driverloaded", "n", "--devices", loop, "--config", "backup { backup=0 archive=0 } activation { udev_sync=0 udev_rules=0 }"}, args...)...)
	}
	lvm("pvcreate", loop)
	lvm("vgcreate", Group, loop)
	lvm("lvcreate", "-an", "-Zn", "-Wn", "-L", "64M", "-n", "root", Group)
	labneed.Detach(t, loop)
	labneed.Run(t, "dd", "if="+partition, "of="+target, "bs=1M", "count=1", "seek=1", "conv=notrunc,fsync", "status=none")
}

// partitionBytes is the size of the partition of a disk that sgdisk has made, or a little less.
func partitionBytes(t testing.TB, target string) int64 {
	t.Helper()
	return sizeBytes(t, target)/mib*mib - 2*mib
}

// Records are what is in a file of the filesystem that begins at an offset of a disk, whose guest does not run: as
// the kernel reads it, with the journal replayed.
func Records(t testing.TB, target string, offset int64, path string) []byte {
	t.Helper()
	loop := labneed.Attach(t, target, "--offset", itoa(offset))
	defer labneed.Detach(t, loop)
	dir := t.TempDir()
	labneed.Run(t, "mount", "-t", "ext4", loop, dir)
	defer labneed.Run(t, "umount", dir)
	text, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// says checks that a domain's last failure has an errno and words.
func (m *mount) says(domain string, errno unix.Errno, words string) {
	m.t.Helper()
	name := unix.ErrnoName(errno)
	if errno == unix.EOPNOTSUPP { // one number, two names
		name = "EOPNOTSUPP"
	}
	line := m.lastError(domain)
	fields := strings.SplitN(line, " ", 5)
	if len(fields) != 5 || fields[3] != name || !strings.Contains(fields[4], words) {
		m.t.Errorf("last_error says %q, want %s and %q", line, name, words)
	}
}

func TestSize_RefusesBadValues(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	tests := []struct {
		value string
		errno unix.Errno
		words string
	}{
		{"", unix.EINVAL, "not a size"},
		{" ", unix.EINVAL, "not a size"},
		{"-1", unix.EINVAL, `"-1"`},
		{"10X", unix.EINVAL, `"10X"`},
		{"99999999999999999999", unix.EINVAL, "99999999999999999999"},
		{"1.5.2G", unix.EINVAL, `"1.5.2G"`},
		{"0x1000", unix.EINVAL, `"0x1000"`},
		{"1G\n2G", unix.EINVAL, "not a size"},
		{"++1", unix.EINVAL, `"++1"`},
		{"0", unix.EPERM, "smaller"},
		{"1M", unix.EPERM, "smaller"},
	}
	for _, test := range tests {
		t.Run(test.value, func(t *testing.T) {
			wantErrno(t, "write", m.set("xenstore/vm/disks/xvda/size", test.value), test.errno)
			m.says("vm", test.errno, test.words)
			if got := m.read("xenstore/vm/disks/xvda/size"); got != "8388608" {
				t.Errorf("the size is now %s", got)
			}
		})
	}
	if line := m.lastError("vm"); !strings.HasPrefix(line, strconv.Itoa(len(tests))+" ") {
		t.Errorf("after %d failures the last is %q", len(tests), line)
	}
	m.stop()
}

func TestSize_TakesGoodValues(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	size := int64(8 << 20)
	for _, test := range []struct {
		value string
		want  int64
	}{
		{"8388608", 8 << 20}, {"8M", 8 << 20}, {"9MiB", 9 << 20}, {"10mb", 10 << 20}, {"+1M", 11 << 20}, {"+1024k", 12 << 20}, {"0.5G", 512 << 20}, {"+0", 512 << 20},
	} {
		if err := m.set("xenstore/vm/disks/xvda/size", test.value); err != nil {
			t.Errorf("%s: %v: %s", test.value, err, m.lastError("vm"))
		}
		size = test.want
		if got := m.read("xenstore/vm/disks/xvda/size"); got != fmt.Sprint(size) {
			t.Errorf("after %s the size is %s, want %d", test.value, got, size)
		}
		info, err := os.Stat(m.at("xenstore/vm/disks/xvda/raw"))
		must(t, err)
		if info.Size() != size {
			t.Errorf("after %s raw has %d bytes, want %d", test.value, info.Size(), size)
		}
	}
	m.stop()
}

func TestSnapshot_RefusesBadNames(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	tests := []struct {
		what, name string
		errno      unix.Errno
		words      string // "": the kernel answers by itself, and we never hear of it
	}{
		{"control bytes", "a\x01b", unix.EINVAL, "control character"},
		{"a newline", "a\nb", unix.EINVAL, "control character"},
		{"not UTF-8", "a\xffb", unix.EINVAL, "UTF-8"},
		{"256 bytes", strings.Repeat("n", 256), unix.EINVAL, "255 is the most"},
		{"dots", "..", unix.EEXIST, ""},
		{"a dot", ".", unix.EEXIST, ""},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			// Not os.Mkdir nor filepath.Join: they would tidy the name.
			wantErrno(t, "mkdir", unix.Mkdir(m.at("snapshots/vm")+"/"+test.name, 0o755), test.errno)
			if test.words != "" {
				m.says("vm", test.errno, test.words)
			}
		})
	}
	must(t, unix.Mkdir(m.at("snapshots/vm")+"/"+strings.Repeat("n", 255), 0o755))
	m.snapshot("vm", "taken")
	wantErrno(t, "mkdir of what is there", unix.Mkdir(m.at("snapshots/vm/taken"), 0o755), unix.EEXIST)
	wantErrno(t, "mv over another", os.Rename(m.at("snapshots/vm/taken"), m.at("snapshots/vm", strings.Repeat("n", 255))), unix.EEXIST)
	wantErrno(t, "mkdir for no domain", unix.Mkdir(m.at("snapshots/none/x"), 0o755), unix.ENOENT)
	wantErrno(t, "mkdir of a domain", unix.Mkdir(m.at("snapshots/none"), 0o755), unix.EROFS)
	m.stop()
}

func TestTree_IsReadOnlyElsewhere(t *testing.T) {
	h := tinyHost(t)
	m := h.mount()
	m.snapshot("vm", "s")
	files := m.at("snapshots/vm/s/disks/xvda/files")
	wantErrno(t, "write to a name", m.set("xenstore/vm/name", "other"), unix.EROFS)
	wantErrno(t, "write to a snapshot's size", m.set("snapshots/vm/s/disks/xvda/size", "1G"), unix.EROFS)
	_, err := os.OpenFile(m.at("xenstore/vm/disks/xvda/raw"), os.O_RDWR, 0)
	wantErrno(t, "write to raw", err, unix.EROFS)
	wantErrno(t, "make a guest's file", os.WriteFile(files+"/new", nil, 0o644), unix.EROFS)
	wantErrno(t, "write to a guest's file", os.WriteFile(files+"/etc/hostname", nil, 0o644), unix.EROFS)
	wantErrno(t, "remove a guest's file", unix.Unlink(files+"/etc/hostname"), unix.EROFS)
	wantErrno(t, "remove a guest's folder", unix.Rmdir(files+"/lost+found"), unix.EROFS)
	wantErrno(t, "rename a guest's file", os.Rename(files+"/etc/hostname", files+"/etc/other"), unix.EROFS)
	wantErrno(t, "link a guest's file", os.Link(files+"/etc/hostname", files+"/etc/other"), unix.EROFS)
	wantErrno(t, "a symbolic link", os.Symlink("x", files+"/x"), unix.EROFS)
	wantErrno(t, "chmod of a guest's file", os.Chmod(files+"/etc/hostname", 0o600), unix.EROFS)
	wantErrno(t, "remove a domain", unix.Rmdir(m.at("xenstore/vm")), unix.EROFS)
	wantErrno(t, "truncate a size to what it is not", os.Truncate(m.at("xenstore/vm/disks/xvda/size"), 5), unix.EINVAL)
	must(t, os.Truncate(m.at("xenstore/vm/disks/xvda/size"), 0))
	m.stop()
}

func TestImage_ThatIsNoGoodSaysSo(t *testing.T) {
	h := sampleHost(t)
	must(t, os.Mkdir(h.images+"/dir.img", 0o755))
	h.config("missing", "file:"+h.images+"/none.img,xvda,w")
	h.config("directory", "file:"+h.images+"/dir.img,xvda,w")
	// A partition table that promises more than there is, tables and filesystems that are
	// not what they were.
	for _, name := range []string{"cut", "nogpt", "nosuper", "nocopy"} {
		command(t, "cp", "--sparse=always", h.images+"/web01.img", h.images+"/"+name+".img")
		h.config(name, "file:"+h.images+"/"+name+".img,xvda,w")
	}
	must(t, os.Truncate(h.images+"/cut.img", 100<<20)) // in the middle of the root
	scribble(t, h.images+"/nogpt.img", 512+88, 4)      // CRC of the entries, first header
	scribble(t, h.images+"/nogpt.img", 1<<30-512+88, 4)
	const root = 65 << 20
	for _, name := range []string{"nosuper", "nocopy"} {
		scribble(t, h.images+"/"+name+".img", root+1024+0x3fc, 4) // checksum of the superblock
	}
	scribbleSuperCopies(t, h.images+"/nocopy.img", root)
	m := h.mount()

	tests := []struct {
		domain, path string
		errno        unix.Errno
		words        string
	}{
		{"missing", "disks/xvda/raw", unix.ENOENT, "none.img"},
		{"missing", "disks/xvda/content", unix.ENOENT, "none.img"},
		{"directory", "disks/xvda/raw", unix.EISDIR, "dir.img"},
		{"cut", "disks/xvda/p3/raw", unix.EUCLEAN, "truncated"},
		{"cut", "disks/xvda/p2/content", unix.EUCLEAN, "truncated"},
		{"nogpt", "disks/xvda/p1", unix.EUCLEAN, "GPT"},
		{"nocopy", "disks/xvda/p2/files", unix.EUCLEAN, "superblock"},
	}
	for _, test := range tests {
		t.Run(test.domain+" "+test.path, func(t *testing.T) {
			err := readAny(m.at("xenstore", test.domain, test.path))
			wantErrno(t, "read", err, test.errno)
			m.says(test.domain, test.errno, test.words)
		})
	}
	t.Run("a damaged superblock that has copies", func(t *testing.T) {
		if names, err := os.ReadDir(m.at("xenstore/nosuper/disks/xvda/p2/files/etc")); err != nil || len(names) == 0 {
			t.Errorf("%d names, %v", len(names), err)
		}
		if said := m.read("xenstore/nosuper/last_error"); !strings.Contains(said, "WARNING") || !strings.Contains(said, "copy") {
			t.Errorf("last_error says %q", said)
		}
	})
	t.Run("a snapshot of a missing image", func(t *testing.T) {
		wantErrno(t, "mkdir", os.Mkdir(m.at("snapshots/missing/s"), 0o755), unix.ENOENT)
		m.says("missing", unix.ENOENT, "none.img")
	})
	t.Run("growth of a missing image", func(t *testing.T) {
		wantErrno(t, "write", m.set("xenstore/missing/disks/xvda/size", "+1G"), unix.ENOENT)
		m.says("missing", unix.ENOENT, "none.img")
	})
	t.Run("a corrupt GPT", func(t *testing.T) {
		if names := m.names("xenstore/nogpt/disks/xvda"); strings.Contains(fmt.Sprint(names), "p1") {
			t.Errorf("it has partitions all the same: %q", names)
		}
	})
	t.Run("others are not hidden", func(t *testing.T) {
		if got := m.read("xenstore/web01/disks/xvda/p2/files/etc/hostname"); got != "web01" {
			t.Errorf("hostname %q", got)
		}
	})
	m.stop()
}

func TestConfig_ThatIsBrokenIsADomainWithItsError(t *testing.T) {
	h := tinyHost(t)
	must(t, os.WriteFile(h.xl+"/broken.cfg", []byte("name = \"broken\"\ndisk = [ 'file:/x,xvda,w'\nmemory = ]\n"), 0o644))
	m := h.mount()
	line := m.lastError("broken")
	if !strings.Contains(line, "broken.cfg") {
		t.Errorf("last_error of the broken one: %q", line)
	}
	if got := m.read("xenstore/vm/disks/xvda/label"); got != "tiny" {
		t.Errorf("the other one: label %q", got)
	}
	wantErrno(t, "mkdir", os.Mkdir(m.at("snapshots/broken/s"), 0o755), unix.EINVAL)
	m.stop()
}

func TestImage_ThatMayNotBeRead(t *testing.T) {
	testneed.Root(t)
	testneed.Tools(t, "fusermount3", "setpriv")
	h := tinyHost(t)
	for dir := h.dir; len(dir) > 1; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		must(t, err)
		if info.Mode().Perm()&0o005 != 0o005 {
			must(t, os.Chmod(dir, info.Mode().Perm()|0o005))
		}
	}
	const nobody = 65534
	must(t, os.Chmod(h.images+"/a.img", 0o600))
	must(t, os.Chmod(h.images+"/b.img", 0o644))
	must(t, os.Chown(h.mnt, nobody, nobody))
	lock := filepath.Join(h.dir, "nobody")
	must(t, os.Mkdir(lock, 0o755))
	must(t, os.Chown(lock, nobody, nobody))
	as := func(args ...string) *exec.Cmd {
		return exec.Command("setpriv", append([]string{fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "--"}, args...)...)
	}
	t.Cleanup(func() { _ = as("fusermount3", "-uz", h.mnt).Run() })
	out, err := as(binary, "mount", "--daemon", "--xl-config="+h.xl, "--lock-file="+lock+"/lock", h.mnt).CombinedOutput()
	if err != nil {
		t.Fatalf("mount as nobody: %v: %s", err, out)
	}
	out, err = as("cat", h.mnt+"/xenstore/vm/disks/xvda/raw").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("an image of root's: %v: %.200s", err, out)
	}
	out, err = as("tail", "-n", "1", h.mnt+"/xenstore/vm/last_error").CombinedOutput()
	if err != nil || !strings.Contains(string(out), " EACCES ") || !strings.Contains(string(out), "a.img") {
		t.Errorf("last_error: %v: %s", err, out)
	}
	out, err = as("head", "-c", "12", h.mnt+"/xenstore/vm/disks/xvdb/raw").CombinedOutput()
	if err != nil || string(out) != "second disk " {
		t.Errorf("an image that may be read: %v: %q", err, out)
	}
	if out, err = as(binary, "mount", "--allow-other", "--xl-config="+h.xl, "--lock-file="+lock+"/lock", h.mnt).CombinedOutput(); err == nil || !strings.Contains(string(out), "user_allow_other") {
		t.Errorf("--allow-other as nobody: %v: %s", err, out)
	}
	if out, err := as(binary, "umount", h.mnt).CombinedOutput(); err != nil || isMounted(t, h.mnt) {
		t.Errorf("umount as nobody: %v: %s", err, out)
	}
}

func TestSnapshot_OnAFullDiskLeavesNothing(t *testing.T) {
	h := loopHost(t, "mke2fs", 24, "-q", "-F", "-t", "ext4", "-m", "0")
	h.tinyDisks()
	fill := make([]byte, 1<<20)
	for i := range fill {
		fill[i] = 'x'
	}
	// Two disks full of data, and room for one of them.
	for _, name := range []string{"a.img", "b.img"} {
		f, err := os.Create(filepath.Join(h.images, name))
		must(t, err)
		for range 7 {
			_, err := f.Write(fill)
			must(t, err)
		}
		must(t, f.Close())
	}
	m := h.mount()
	before := m.descriptors()
	wantErrno(t, "mkdir", os.Mkdir(m.at("snapshots/vm/s"), 0o755), unix.ENOSPC)
	m.says("vm", unix.ENOSPC, "bytes")
	if names, litter := m.names("snapshots/vm"), h.litter(); len(names)+len(litter) != 0 {
		t.Errorf("left: %q %q", names, litter)
	}
	if got := m.read("xenstore/vm/disks/xvda/size"); got != fmt.Sprint(7<<20) {
		t.Errorf("the image has %s bytes", got)
	}
	m.leaves(before)
	m.stop()
}

// loopHost is an empty host whose images lie on a filesystem of their own.
func loopHost(t *testing.T, mkfs string, mib int, args ...string) *host {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, mkfs)
	h := emptyHost(t)
	disk := filepath.Join(h.dir, "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, int64(mib)<<20))
	command(t, mkfs, append(args, disk)...)
	command(t, "mount", "-o", "loop", disk, h.images)
	t.Cleanup(func() {
		eventually(t, endLimit, "the filesystem of images is unmounted", func() bool { return exec.Command("umount", h.images).Run() == nil })
	})
	must(t, os.RemoveAll(h.images+"/lost+found"))
	return h
}

// scribbleSuperCopies damages the checksum of each copy of the superblock of the ext4
// filesystem at a place of a file: they lie at the beginning of groups.
func scribbleSuperCopies(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	super := make([]byte, 1024)
	_, err = f.ReadAt(super, at+1024)
	must(t, err)
	field := func(at int) int64 { // of 32 bits, little-endian
		return int64(super[at]) | int64(super[at+1])<<8 | int64(super[at+2])<<16 | int64(super[at+3])<<24
	}
	block := int64(1024) << field(0x18)
	group, first := field(0x20)*block, field(0x14)*block
	copies := 0
	for off := at + first + group; ; off += group {
		b := make([]byte, 1024)
		if _, err := f.ReadAt(b, off); err != nil {
			break
		}
		if bytes.Equal(b[0x68:0x78], super[0x68:0x78]) { // the UUID
			scribble(t, path, off+0x3fc, 4)
			copies++
		}
	}
	if copies == 0 {
		t.Fatal("the superblock has no copies")
	}
}

// scribble changes some bytes of a file.
func scribble(t *testing.T, path string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, off)
	must(t, err)
	for i := range b {
		b[i] ^= 0x5a
	}
	_, err = f.WriteAt(b, off)
	must(t, err)
}

// readAny reads the beginning of a file, or lists a directory.
func readAny(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		_, err = f.Readdirnames(-1)
		return err
	}
	_, err = f.Read(make([]byte, 4096))
	return err
}

// A volume group may be on a disk that is not attached yet.
func TestMount_WarnsOfAVolumeGroupThatIsNotThere(t *testing.T) {
	h := tinyHost(t)
	m := h.mount("--vg=no-such-vg", "--log-format=json")
	m.names("xenstore/vm/disks/xvda")
	m.stop()
	warned := false
	for line := range strings.Lines(m.log.String()) {
		warned = warned || strings.Contains(line, "no-such-vg") && strings.Contains(line, "volume group") && strings.Contains(line, `"warn"`)
	}
	if !warned {
		t.Errorf("no warning in the log:\n%s", m.log)
	}
}

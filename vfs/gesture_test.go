package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
	"domfs/control"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const diskA = "xenstore/web01/disks/xvda/size"

func TestWrite_TakesAShellsRedirection(t *testing.T) {
	r := newRig(t)
	size := func() string { return strings.TrimSpace(r.read(diskA)) }
	for _, c := range []struct {
		script string
		want   string // size afterwards
		exit   int
		says   string
	}{
		{`echo 5M > "$1"`, "5242880", 0, ""},
		{`echo +1M > "$1"`, "6291456", 0, ""},
		{`printf 7M > "$1"`, "7340032", 0, ""},
		{`echo 7340032 > "$1"`, "7340032", 0, ""},
		{`echo 1M > "$1"`, "7340032", 1, "not permitted"},
		{`echo 10X > "$1"`, "7340032", 1, "Invalid argument"},
		{`echo > "$1"`, "7340032", 1, "Invalid argument"},
		{`: > "$1"`, "7340032", 0, ""},
		{`echo +1M >> "$1"`, "7340032", 1, "Invalid argument"},
		{`echo 99P > "$1"`, "7340032", 1, "No space left"},
		{`truncate -s 0 "$1"`, "7340032", 0, ""},
		{`truncate -s 10M "$1"`, "7340032", 1, "Invalid argument"},
		{`truncate -s +10M "$1"`, "7340032", 1, "Invalid argument"},
		{`cat "$1" > /dev/null && dd if=/dev/zero of="$1" bs=5000 count=1 2>&1`, "7340032", 1, "Invalid argument"},
		{`dd if=/dev/zero of="$1" bs=1 seek=1 count=1 conv=notrunc 2>&1`, "7340032", 1, "Invalid argument"},
		{`{ printf +1M; printf 5; } > "$1"`, "8388608", 1, "Invalid argument"},
	} {
		out, exit := sh(t, c.script, r.path(diskA))
		if (exit == 0) != (c.exit == 0) || !strings.Contains(out, c.says) {
			t.Errorf("%s: exit status %d, says %q, want %d and %q", c.script, exit, out, c.exit, c.says)
		}
		if got := size(); got != c.want {
			t.Errorf("%s: size is %s, want %s", c.script, got, c.want)
		}
	}
	errs := r.read("xenstore/web01/last_error")
	for _, want := range []string{"EPERM", "EINVAL", "ENOSPC", `"10X" is not a size`} {
		if !strings.Contains(errs, want) {
			t.Errorf("last_error has no %s:\n%s", want, errs)
		}
	}
	if got := r.Store.Size("/images/web01-xvda"); got != 8388608 {
		t.Errorf("the volume has %d bytes", got)
	}
}

func openWrite(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWrite_TakesOneValueFromOneHandle(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/one")
	hold := r.path("snapshots/web01/one/hold")
	f := openWrite(t, hold, os.O_RDWR)
	if _, err := f.WriteAt([]byte("1"), 1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("write at offset 1: %v, want EINVAL", err)
	}
	if _, err := f.WriteAt([]byte("1\n"), 0); err != nil {
		t.Errorf("the first write: %v", err)
	}
	if _, err := f.WriteAt([]byte("0\n"), 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("the second write: %v, want EINVAL", err)
	}
	if _, err := f.WriteAt(make([]byte, 4097), 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a value of 4097 bytes: %v, want EINVAL", err)
	}
	b := make([]byte, 10)
	if n, err := f.ReadAt(b, 0); string(b[:n]) != "1\n" {
		t.Errorf("the same handle reads %q, %v after the write", b[:n], err)
	}
	f.Close()
	if got := r.read("snapshots/web01/one/hold"); got != "1\n" {
		t.Errorf("hold is %q", got)
	}
	g := openWrite(t, hold, os.O_WRONLY|os.O_TRUNC)
	if _, err := g.Write([]byte("2")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("hold = 2: %v, want EINVAL", err)
	}
	if _, err := g.Write([]byte("0")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("another try through the same handle: %v, want EINVAL", err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("close after a write that failed: %v", err)
	}
	if err := os.Truncate(hold, 1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("truncate to 1: %v, want EINVAL", err)
	}
	if err := os.Truncate(hold, 0); err != nil {
		t.Errorf("truncate to 0: %v", err)
	}
	if got := r.read("snapshots/web01/one/hold"); got != "1\n" {
		t.Errorf("hold is %q after a truncation", got)
	}
}

func TestWrite_SetsExpiresAndHold(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/one")
	sh(t, `echo +7d > "$1"`, r.path("snapshots/web01/one/expires"))
	when, err := time.Parse(time.RFC3339, strings.TrimSpace(r.read("snapshots/web01/one/expires")))
	if err != nil || time.Until(when) < 167*time.Hour || time.Until(when) > 168*time.Hour {
		t.Errorf("expires +7d reads %v, %v", when, err)
	}
	if st := r.stat("snapshots/web01/one/expires"); st.Size != 21 {
		t.Errorf("expires has st_size %d", st.Size)
	}
	sh(t, `echo > "$1"`, r.path("snapshots/web01/one/expires"))
	if got := r.read("snapshots/web01/one/expires"); got != "" {
		t.Errorf("expires reads %q after it was cleared", got)
	}
	sh(t, `echo 1 > "$1"`, r.path("snapshots/web01/one/hold"))
	wantErrno(t, "rmdir of a held snapshot", syscall.Rmdir(r.path("snapshots/web01/one")), syscall.EPERM)
	sh(t, `echo 0 > "$1"`, r.path("snapshots/web01/one/hold"))
	r.rmdir("snapshots/web01/one")
}

func TestWrite_GrowsARunningDomainsDiskAndTellsIt(t *testing.T) {
	r := newRig(t)
	if out, exit := sh(t, `echo +1M > "$1"`, r.path("xenstore/db01/disks/vda/size")); exit != 0 {
		t.Fatal(out)
	}
	if got := r.Hypervisor.ToldSize("db01", "vda"); got != 2*MiB {
		t.Errorf("the domain was told of %d bytes", got)
	}
	if st := r.stat("xenstore/db01/disks/vda/raw"); st.Size != 2*MiB {
		t.Errorf("raw has %d bytes", st.Size)
	}
}

func TestTree_RefusesAllOtherChanges(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/one")
	at := func(p string) string { return r.path(p) }
	file, dir := at("xenstore/web01/name"), at("xenstore/web01")
	guest := at("snapshots/web01/one/disks/xvda/p1/files")
	for what, f := range map[string]func() error{
		"create in the root":           func() error { return create(at("new")) },
		"create in a domain":           func() error { return create(at("xenstore/web01/new")) },
		"create in a snapshot dir":     func() error { return create(at("snapshots/web01/new")) },
		"create in a snapshot":         func() error { return create(at("snapshots/web01/one/new")) },
		"create in a guest":            func() error { return create(guest + "/etc/new") },
		"tmpfile in a guest":           func() error { return tmpfile(guest) },
		"tmpfile in a domain":          func() error { return tmpfile(dir) },
		"mknod":                        func() error { return unix.Mknod(at("new"), unix.S_IFIFO|0o600, 0) },
		"unlink of a value":            func() error { return unix.Unlink(file) },
		"unlink of a guest's file":     func() error { return unix.Unlink(guest + "/etc/hostname") },
		"unlink of a link":             func() error { return unix.Unlink(dir + "/snapshots") },
		"mkdir in xenstore":            func() error { return unix.Mkdir(at("xenstore/new"), 0o755) },
		"mkdir of a domain":            func() error { return unix.Mkdir(at("snapshots/new"), 0o755) },
		"mkdir in a snapshot":          func() error { return unix.Mkdir(at("snapshots/web01/one/new"), 0o755) },
		"mkdir in a disk":              func() error { return unix.Mkdir(at("xenstore/web01/disks/xvda/new"), 0o755) },
		"mkdir of a snapshot's disk":   func() error { return unix.Mkdir(at("snapshots/web01/one/disks/xvdz"), 0o755) },
		"mkdir in a guest":             func() error { return unix.Mkdir(guest+"/new", 0o755) },
		"rmdir of a domain":            func() error { return unix.Rmdir(dir) },
		"rmdir of a domain's":          func() error { return unix.Rmdir(at("snapshots/web01")) },
		"rmdir of a snapshot's disk":   func() error { return unix.Rmdir(at("snapshots/web01/one/disks/xvda")) },
		"rmdir of a partition":         func() error { return unix.Rmdir(at("xenstore/web01/disks/xvda/p1")) },
		"rmdir of files":               func() error { return unix.Rmdir(guest) },
		"rmdir in a guest":             func() error { return unix.Rmdir(guest + "/etc") },
		"chmod":                        func() error { return unix.Chmod(file, 0o600) },
		"chmod of a writable value":    func() error { return unix.Chmod(at(diskA), 0o666) },
		"chmod of a domain":            func() error { return unix.Chmod(dir, 0o777) },
		"chmod in a guest":             func() error { return unix.Chmod(guest+"/etc/hostname", 0o600) },
		"chown":                        func() error { return unix.Chown(file, 1, 1) },
		"chown in a guest":             func() error { return unix.Lchown(guest+"/links/absolute", 1, 1) },
		"utimes":                       func() error { return os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0)) },
		"utimes of a writable value":   func() error { return os.Chtimes(at(diskA), time.Unix(1, 0), time.Unix(1, 0)) },
		"utimes in a guest":            func() error { return os.Chtimes(guest+"/etc", time.Unix(1, 0), time.Unix(1, 0)) },
		"truncate of a value":          func() error { return os.Truncate(file, 0) },
		"truncate of raw":              func() error { return os.Truncate(at("xenstore/web01/disks/xvda/raw"), 0) },
		"truncate of a guest's file":   func() error { return os.Truncate(guest+"/etc/hostname", 0) },
		"setxattr":                     func() error { return unix.Setxattr(file, "user.x", []byte("y"), 0) },
		"setxattr in a guest":          func() error { return unix.Setxattr(guest+"/etc/hostname", "user.x", []byte("y"), 0) },
		"removexattr in a guest":       func() error { return unix.Removexattr(guest+"/etc/hostname", "user.note") },
		"symlink":                      func() error { return unix.Symlink("x", at("xenstore/web01/new")) },
		"symlink in a snapshot dir":    func() error { return unix.Symlink("x", at("snapshots/web01/new")) },
		"link":                         func() error { return unix.Link(file, dir+"/new") },
		"link of a guest's file":       func() error { return unix.Link(guest+"/etc/hostname", guest+"/new") },
		"link of a guest's file out":   func() error { return unix.Link(guest+"/etc/hostname", at("snapshots/web01/new")) },
		"open for writing":             func() error { return openFor(file, os.O_WRONLY) },
		"open for reading and writing": func() error { return openFor(file, os.O_RDWR) },
		"open of raw for writing":      func() error { return openFor(at("snapshots/web01/one/disks/xvda/raw"), os.O_WRONLY) },
		"open of events for writing":   func() error { return openFor(at(".domfs/events"), os.O_RDWR) },
		"open of a guest's file":       func() error { return openFor(guest+"/etc/hostname", os.O_RDWR) },
		"open with O_TRUNC":            func() error { return openFor(guest+"/etc/hostname", os.O_RDONLY|os.O_TRUNC) },
		"rename in xenstore":           func() error { return os.Rename(dir, at("xenstore/other")) },
		"rename of a domain's":         func() error { return os.Rename(at("snapshots/web01"), at("snapshots/other")) },
		"rename of a value":            func() error { return os.Rename(file, dir+"/other") },
		"rename in a guest":            func() error { return os.Rename(guest+"/etc/hostname", guest+"/etc/other") },
		"rename out of a guest":        func() error { return os.Rename(guest+"/etc", at("snapshots/web01/etc")) },
		"rename of a disk":             func() error { return os.Rename(at("xenstore/web01/disks/xvda"), at("xenstore/web01/disks/xvdz")) },
	} {
		wantErrno(t, what, f(), syscall.EROFS)
	}
	if n := len(r.Store.All()); n != 2 {
		t.Errorf("%d snapshot volumes are there afterwards, want 2", n)
	}
}

func create(path string) error { return openFor(path, os.O_CREATE|os.O_WRONLY) }

func tmpfile(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func openFor(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o600)
	if err == nil {
		f.Close()
	}
	return err
}

func TestModes_DecideWithAllowOther(t *testing.T) {
	testneed.Root(t)
	testneed.Tools(t, "setpriv")
	r := newRigWith(t, rigOptions{allowOther: true})
	r.mkdir("snapshots/web01/one")
	// The test's own folders are for root alone.
	for p := r.mnt; strings.Contains(p, t.Name()); p = filepath.Dir(p) {
		if p != r.mnt {
			os.Chmod(p, 0o755)
		}
	}
	as := func(ids, script string, args ...string) (string, int) {
		return sh(t, "exec setpriv "+ids+` --clear-groups sh -c '`+script+`' sh "$@"`, args...)
	}
	stranger, member := "--reuid 12345 --regid 12345", "--reuid 12345 --regid 4242"
	if out, exit := as(stranger, `ls "$1"`, r.path("snapshots/web01")); exit == 0 || !strings.Contains(out, "Permission denied") {
		t.Errorf("a stranger lists a domain's snapshots: %s", out)
	}
	if out, exit := as(stranger, `cat "$1"`, r.path("xenstore/web01/name")); exit == 0 {
		t.Errorf("a stranger reads a domain's name: %s", out)
	}
	if out, exit := as(member, `cat "$1"`, r.path("snapshots/web01/one/disks/xvda/p1/files/etc/hostname")); exit != 0 || out != "web01\n" {
		t.Errorf("a member of the group reads a guest's file: %s", out)
	}
	if out, exit := as(member, `cat "$1"`, r.path("snapshots/web01/one/disks/xvda/p1/files/modes/secret")); exit == 0 || !strings.Contains(out, "Permission denied") {
		t.Errorf("a member of the group reads a guest's secret: %s", out)
	}
	if out, exit := as(member, `echo 9M > "$1"`, r.path(diskA)); exit == 0 || !strings.Contains(out, "ermission denied") {
		t.Errorf("a member of the group resizes a disk: %s", out)
	}
	if out, exit := as(member, `mkdir "$1"`, r.path("snapshots/web01/two")); exit == 0 {
		t.Errorf("a member of the group makes a snapshot: %s", out)
	}
}

func TestMount_IsNosuidNodevAndOfItsOwnType(t *testing.T) {
	newRig(t)
	lines := mounts()
	if len(lines) != 1 || !strings.Contains(lines[0], "nosuid") || !strings.Contains(lines[0], "nodev") || !strings.Contains(lines[0], " - fuse.domfs "+testFSName()+" ") {
		t.Errorf("mounted as %q", lines)
	}
}

func TestMount_FailsWhereItCannot(t *testing.T) {
	testneed.FUSE(t)
	checkLeaks(t)
	host := control.New(control.Options{}) // not started: Mount sets what it calls
	for what, path := range map[string]string{"missing": t.TempDir() + "/missing", "a file": create2(t)} {
		s, err := Mount(Options{Host: host, Log: zap.NewNop(), Mountpoint: path, FSName: testFSName()})
		if err == nil {
			s.Unmount()
			t.Errorf("a mountpoint that is %s was mounted on", what)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v does not name the mountpoint", what, err)
		}
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
}

func create2(t *testing.T) string {
	path := t.TempDir() + "/file"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

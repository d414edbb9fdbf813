package vfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func TestMkdir_MakesASnapshotOfAllDisks(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/nightly")
	if got := r.list("snapshots/web01/nightly/disks"); !slices.Equal(got, []string{"xvda", "xvdb"}) {
		t.Errorf("disks are %q", got)
	}
	for name, want := range map[string]string{"state": "active\n", "consistency": "off\n", "hold": "0\n", "expires": ""} {
		if got := r.read("snapshots/web01/nightly", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	r.mkdir("snapshots/db01/nightly")
	if got := r.read("snapshots/db01/nightly/consistency"); got != "paused\n" {
		t.Errorf("consistency of a running domain's snapshot is %q", got)
	}
	if got := r.read("xenstore/web01/snapshots/nightly/disks/xvdb/files/version"); got != "data-1\n" {
		t.Errorf("through the link: %q", got)
	}
	r.rmdir("snapshots/web01/nightly")
	if got := r.list("snapshots/web01"); len(got) != 0 {
		t.Errorf("after rmdir: %q", got)
	}
	if n := len(r.Store.All()); n != 1 {
		t.Errorf("%d snapshot volumes are left, want db01's", n)
	}
}

func TestMkdir_RefusesWhatTheTreeSays(t *testing.T) {
	r := newRig(t)
	r.Store.SetUnit(1)
	r.mkdir("snapshots/web01/one")
	long := strings.Repeat("n", 255)
	wantErrno(t, "a name of 255 bytes", unix.Mkdir(r.path("snapshots/web01", long), 0o755), 0)
	if got := r.list("snapshots/web01"); !slices.Contains(got, long) {
		t.Errorf("the long name is not listed: %q", got)
	}
	for name, want := range map[string]syscall.Errno{
		"one":                    syscall.EEXIST,
		strings.Repeat("n", 256): syscall.EINVAL,
		"new\nline":              syscall.EINVAL,
		"tab\t":                  syscall.EINVAL,
		"del\x7f":                syscall.EINVAL,
		"esc\x1b[2J":             syscall.EINVAL,
		"\xff":                   syscall.EINVAL,
		"..":                     syscall.EEXIST,
		"blank and -dash":        0,
		"日本":                     0,
	} {
		wantErrno(t, fmt.Sprintf("mkdir %.30q", name), unix.Mkdir(r.path("snapshots/web01")+"/"+name, 0o755), want)
	}
	for _, want := range []string{"EINVAL", "256 bytes"} {
		if errs := r.read("xenstore/web01/last_error"); !strings.Contains(errs, want) {
			t.Errorf("last_error has no %s:\n%s", want, errs)
		}
	}
	wantErrno(t, "mkdir below no domain", unix.Mkdir(r.path("snapshots/none/x"), 0o755), syscall.ENOENT)
	defer r.Store.Fail("Prepare", fmt.Errorf("pool is full: %w", backend.ErrNoSpace))()
	wantErrno(t, "mkdir in a full store", unix.Mkdir(r.path("snapshots/web01/full"), 0o755), syscall.ENOSPC)
	r.Store.SetCopies(true)
	defer r.Store.Fail("Prepare", fmt.Errorf("can only be copied: %w", backend.ErrUnsupported))()
	wantErrno(t, "mkdir where the second fault comes first or not", unix.Mkdir(r.path("snapshots/web01/full"), 0o755), syscall.ENOSPC)
}

func TestMkdir_IsUnsupportedWhereTheStoreMustCopyARunningDomain(t *testing.T) {
	r := newRig(t)
	r.Store.SetCopies(true)
	wantErrno(t, "mkdir", unix.Mkdir(r.path("snapshots/db01/x"), 0o755), syscall.EOPNOTSUPP)
	if errs := r.read("xenstore/db01/last_error"); !strings.Contains(errs, "EOPNOTSUPP") || !strings.Contains(errs, "/images/db01-vda can only be copied") {
		t.Errorf("last_error does not say which disk and why:\n%s", errs)
	}
}

func TestRename_RenamesWithinADomainOnly(t *testing.T) {
	r := newRig(t)
	for _, s := range []string{"web01/a", "web01/b", "db01/a"} {
		r.mkdir("snapshots", s)
	}
	at := func(p string) string { return r.path("snapshots", p) }
	before := r.stat("snapshots/web01/a")
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to), flags)
	}
	wantErrno(t, "onto another", rename("web01/a", "web01/b", 0), syscall.EEXIST)
	wantErrno(t, "onto another with NOREPLACE", rename("web01/a", "web01/b", unix.RENAME_NOREPLACE), syscall.EEXIST)
	wantErrno(t, "exchange", rename("web01/a", "web01/b", unix.RENAME_EXCHANGE), syscall.EINVAL)
	wantErrno(t, "to another domain", rename("web01/a", "db01/c", 0), syscall.EPERM)
	wantErrno(t, "to another domain with NOREPLACE", rename("web01/a", "db01/c", unix.RENAME_NOREPLACE), syscall.EPERM)
	wantErrno(t, "into a snapshot", rename("web01/a", "web01/b/a", 0), syscall.EPERM)
	wantErrno(t, "into another domain's snapshot", rename("web01/a", "db01/a/disks/x", 0), syscall.EPERM)
	wantErrno(t, "to a bad name", rename("web01/a", "web01/a\nb", 0), syscall.EINVAL)
	wantErrno(t, "to a name of 256 bytes", rename("web01/a", "web01/"+strings.Repeat("x", 256), 0), syscall.EINVAL)
	wantErrno(t, "of nothing", rename("web01/none", "web01/c", 0), syscall.ENOENT)
	wantErrno(t, "out of snapshots", unix.Rename(at("web01/a"), r.path("xenstore/web01/a")), syscall.EPERM)
	if out, exit := sh(t, `mv "$1" "$2"`, at("web01/a"), at("db01/c")); exit == 0 || !strings.Contains(out, "not permitted") {
		t.Errorf("mv to another domain: %d, %s", exit, out)
	}
	if out, exit := sh(t, `mv "$1" "$2"`, at("web01/a"), at("web01/b")); exit == 0 || !strings.Contains(out, "not permitted") {
		t.Errorf("mv into a snapshot: %d, %s", exit, out)
	}
	if a, b := r.list("snapshots/web01"), r.list("snapshots/db01"); !slices.Equal(a, []string{"a", "b"}) || !slices.Equal(b, []string{"a"}) {
		t.Errorf("after refusals: %q and %q", a, b)
	}
	if out, exit := sh(t, `cd "$1" && mv -T a c && ls && cat c/state && [ ! -e a ]`, at("web01")); exit != 0 || out != "b\nc\nactive\n" {
		t.Errorf("mv: %d, %s", exit, out)
	}
	if after := r.stat("snapshots/web01/c"); after.Ino != before.Ino || after.Mtim != before.Mtim {
		t.Errorf("the renamed snapshot has inode %d and mtime %v, had %d and %v", after.Ino, after.Mtim, before.Ino, before.Mtim)
	}
	if errs := r.read("xenstore/web01/last_error"); !strings.Contains(errs, "EPERM") || !strings.Contains(errs, "EINVAL") {
		t.Errorf("last_error:\n%s", errs)
	}
}

func TestRename_LeavesOpenFilesAndCwdUsable(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	f, err := os.Open(r.path("snapshots/web01/a/disks/xvda/p1/files/etc/hostname"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cd := startSh(t, `cd "$1" && echo in && read -r line && cat state disks/xvdb/files/version && echo end`, r.path("snapshots/web01/a"))
	cd.expect("in")
	if err := os.Rename(r.path("snapshots/web01/a"), r.path("snapshots/web01/b")); err != nil {
		t.Fatal(err)
	}
	equalFile(t, f, 0, []byte("web01\n"))
	time.Sleep(2 * cachedFor)
	cd.send("go")
	cd.expect("active", "data-1", "end")
}

func TestRmdir_IsNotBlockedByContents(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	if out, exit := sh(t, `find "$1" -type f ! -path '*/p3/*' ! -path '*/corrupt' -size -8M -exec cat {} + > /dev/null && ls -lR "$1" > /dev/null && rmdir "$1"`, r.path("snapshots/web01/a")); exit != 0 {
		t.Errorf("find, ls and rmdir: %d: %s", exit, out)
	}
	if n := len(r.Store.All()); n != 0 {
		t.Errorf("%d snapshot volumes are left", n)
	}
}

func TestRmdir_SaysWhoHasAFileOpen(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"disks/xvda/p1/files/data/big", "disks/xvda/p1/raw"} {
		r.mkdir("snapshots/web01/a")
		tail := startSh(t, `exec 3< "$1"; echo open; read -r line`, r.path("snapshots/web01/a", name))
		tail.expect("open")
		began := time.Now()
		wantErrno(t, "rmdir with "+name+" open", unix.Rmdir(r.path("snapshots/web01/a")), syscall.EBUSY)
		if took := time.Since(began); took > drainFor+time.Second {
			t.Errorf("the refusal took %s", took)
		}
		if errs, want := r.read("xenstore/web01/last_error"), fmt.Sprintf("bash (pid %d)", tail.cmd.Process.Pid); !strings.Contains(errs, want) {
			t.Errorf("last_error does not name %s:\n%s", want, errs)
		}
		// The refused removal leaves all as it was.
		if got := r.read("snapshots/web01/a/disks/xvdb/files/version"); got != "data-1\n" {
			t.Errorf("after the refusal: %q", got)
		}
		tail.send("close")
		tail.wait()
		r.rmdir("snapshots/web01/a")
	}
}

func TestRmdir_WorksRightAfterAFileIsClosed(t *testing.T) {
	r := newRig(t)
	for range 5 {
		r.mkdir("snapshots/web01/a")
		f, err := os.Open(r.path("snapshots/web01/a/disks/xvda/p1/files/data/big"))
		if err != nil {
			t.Fatal(err)
		}
		f.Read(make([]byte, 1<<16))
		f.Close()
		r.rmdir("snapshots/web01/a")
	}
}

func TestRmdir_WorksWithOnlyAWorkingDirectoryInside(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	cd := startSh(t, `cd "$1" && echo in; read -r line; cat hostname 2>&1; ls 2>&1; cat /proc/self/cwd/hostname 2>&1; echo end`, r.path("snapshots/web01/a/disks/xvda/p1/files/etc"))
	cd.expect("in")
	r.rmdir("snapshots/web01/a")
	cd.send("go")
	out := cd.until("end")
	if strings.Contains(out, "web01\n") || strings.Count(out, "No such file")+strings.Count(out, "Stale file handle") < 2 {
		t.Errorf("from a removed snapshot:\n%s", out)
	}
}

func TestRmdir_ANewSnapshotOfTheSameNameShowsNothingOfTheOldOne(t *testing.T) {
	r := newRig(t)
	const file, raw = "snapshots/web01/a/disks/xvdb/files/version", "snapshots/web01/a/disks/xvdb/raw"
	for i := 1; i <= 4; i++ {
		if i > 1 {
			r.Store.Write("/images/web01-xvdb", 0, dataDisk(r.guests, fmt.Sprintf("data-%d", i)))
		}
		r.mkdir("snapshots/web01/a")
		before := r.stat("snapshots/web01/a/disks/xvdb")
		// By a directory that stays open, through the page cache, and by mmap.
		dir, err := os.Open(r.path("snapshots/web01/a/disks/xvdb"))
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("data-%d\n", i)
		for range 2 {
			if got := r.read(file); got != want {
				t.Errorf("round %d: %q", i, got)
			}
			if got := r.read(raw); !strings.Contains(got[:100], fmt.Sprintf("%q", fmt.Sprintf("data-%d", i))) {
				t.Errorf("round %d: raw begins with %q", i, got[:60])
			}
		}
		r.rmdir("snapshots/web01/a")
		for _, name := range []string{"files/version", "raw", "size", "content"} {
			fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY, 0)
			if err == nil {
				unix.Close(fd)
			}
			if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ESTALE) {
				t.Errorf("open of %s below a removed snapshot: %v", name, err)
			}
		}
		dir.Close()
		if _, err := os.Stat(r.path(file)); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("stat below a removed snapshot: %v", err)
		}
		if i < 4 {
			r.mkdir("snapshots/web01/a")
			if after := r.stat("snapshots/web01/a/disks/xvdb"); after.Ino == before.Ino {
				t.Error("the new snapshot's disk has the old one's inode number")
			}
			r.rmdir("snapshots/web01/a")
		}
	}
}

func TestRmdir_DoesNotGoOnWithoutItsSnapshot(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	clear := r.Store.Fail("Remove", fmt.Errorf("the volume does not go: %w", backend.ErrIO))
	wantErrno(t, "rmdir", unix.Rmdir(r.path("snapshots/web01/a")), syscall.EIO)
	if got := r.read("snapshots/web01/a/state"); got != "removing\n" {
		t.Errorf("state is %q", got)
	}
	_, err := os.ReadFile(r.path("snapshots/web01/a/disks/xvda/raw"))
	wantErrno(t, "raw of a snapshot that is removed in part", err, syscall.ENOENT)
	clear()
	r.rmdir("snapshots/web01/a")
}

func TestSnapshots_OfADomainThatIsGoneStay(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/a")
	r.Hypervisor.Rename("web01", "www")
	eventually(t, "the domain has its new name", func() bool { return slices.Equal(r.list("xenstore"), []string{"db01", "www"}) })
	if got := r.read("xenstore/www/snapshots/a/disks/xvdb/files/version"); got != "data-1\n" {
		t.Errorf("after the renaming: %q", got)
	}
	r.Hypervisor.Remove("www")
	eventually(t, "the domain is gone", func() bool { return slices.Equal(r.list("xenstore"), []string{"db01"}) })
	if got := r.read("snapshots/web01/a/disks/xvdb/files/version"); got != "data-1\n" {
		t.Errorf("after the domain's end: %q", got)
	}
	wantErrno(t, "a snapshot of a domain that is gone", unix.Mkdir(r.path("snapshots/web01/b"), 0o755), syscall.EPERM)
	r.rmdir("snapshots/web01/a")
	eventually(t, "the directory goes with the last snapshot", func() bool { return slices.Equal(r.list("snapshots"), []string{"db01"}) })
}

// shell is a shell that a test talks with.
type shell struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    *os.File
	mu    sync.Mutex
	out   strings.Builder // guarded by mu
	ended chan struct{}
}

func startSh(t *testing.T, script string, args ...string) *shell {
	t.Helper()
	s := &shell{t: t, ended: make(chan struct{})}
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = w
	s.cmd = exec.Command("bash", append([]string{"-c", script, "bash"}, args...)...)
	s.cmd.Env = append(os.Environ(), "LC_ALL=C")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = in, s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	go func() {
		s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.in.Close()
		select {
		case <-s.ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%s does not end", script)
			s.cmd.Process.Kill()
			<-s.ended
		}
	})
	return s
}

func (s *shell) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *shell) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

func (s *shell) send(line string) { fmt.Fprintln(s.in, line) }

func (s *shell) until(line string) string {
	s.t.Helper()
	within(s.t, 10*time.Second, "the shell says "+line, func() bool { return strings.Contains("\n"+s.text(), "\n"+line+"\n") })
	return s.text()
}

// expect waits for lines, in that order.
func (s *shell) expect(lines ...string) {
	s.t.Helper()
	want := strings.Join(lines, "\n") + "\n"
	within(s.t, 10*time.Second, fmt.Sprintf("the shell says %q", want), func() bool { return strings.Contains(s.text(), want) })
}

func (s *shell) wait() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		s.t.Fatal("the shell does not end")
	}
}

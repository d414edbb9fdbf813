package vfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/fake"
	"domfs/control"

	"github.com/hanwen/go-fuse/v2/splice"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// childEnv makes the test program do one thing as a process of its own.
const childEnv = "DOMFS_VFS_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		os.Exit(child(what, os.Args[len(os.Args)-1]))
	}
	code := m.Run()
	if left := mounts(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "the tests left mounts behind:", left)
		code = 1
	}
	os.Exit(code)
}

func child(what, path string) int {
	var err error
	switch what {
	case "mkdir":
		err = os.Mkdir(path, 0o755)
	case "rmdir":
		err = syscall.Rmdir(path)
	case "stat":
		_, err = os.Lstat(path)
	case "mapped":
		err = mapped(path)
	case "list":
		_, err = os.ReadDir(path)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// startChild runs what on path in a process of its own.
func startChild(t *testing.T, what, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], path)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd
}

// mounts are the domfs mounts of this test program that are there.
func mounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.Contains(s.Text(), testFSName()) {
			out = append(out, s.Text())
		}
	}
	return out
}

func testFSName() string { return "domfs-test-" + strconv.Itoa(os.Getpid()) }

// rig is a mounted fake host.
type rig struct {
	loses bool
	*fake.Host
	t      *testing.T
	guests *fake.Guests
	mapper *fake.Mapper
	ctl    *control.Host
	srv    *Server
	mnt    string
	logs   *observer.ObservedLogs
}

type rigOptions struct {
	world      *rig // mount the same host again
	caps       fake.Caps
	store      func(s backend.Store) backend.Store
	allowOther bool
	lock       string
	noPass     bool
	reserve    int64 // of snapshots: they can overflow
	foreign    bool  // others' snapshots may be removed
	loses      bool  // a snapshot becomes invalid: that an error says so is no fault
}

// The guests of every rig: web01 is off, with a partitioned xvda and a filesystem right on xvdb;
// db01 runs.
const (
	webUUID = "11111111-2222-3333-4444-555555555555"
	dbUUID  = "99999999-2222-3333-4444-555555555555"
	MiB     = 1 << 20
)

func webDisk(guests *fake.Guests) []byte {
	root := fake.NewGuest("web-root")
	root.Label, root.UUID = "rootfs", "0a0b0c0d-1111-2222-3333-444455556666"
	fillGuest(root)
	guests.Add(root)
	disk := make([]byte, 4*MiB)
	copy(disk, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: MiB, Length: MiB},
		fake.TablePart{Number: 2, OffsetBytes: 2 * MiB, Length: MiB}, fake.TablePart{Number: 3, OffsetBytes: 3 * MiB, Length: 9 * MiB},
		fake.TablePart{Number: 5, OffsetBytes: 3 * MiB, Length: MiB / 2}))
	copy(disk[MiB:], root.Header())
	copy(disk[2*MiB:], fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 4096, Length: 8192}))
	return disk
}

func dataDisk(guests *fake.Guests, id string) []byte {
	g := fake.NewGuest(id)
	g.Label = "data"
	g.File("version", []byte(id+"\n"))
	guests.Add(g)
	disk := make([]byte, MiB)
	copy(disk, g.Header())
	return disk
}

func newRig(t *testing.T) *rig { return newRigWith(t, rigOptions{}) }

func newRigWith(t *testing.T, o rigOptions) *rig {
	t.Helper()
	testneed.FUSE(t)
	if o.caps == 0 {
		o.caps = fake.All
	}
	if o.world == nil { // else the first one's check covers both
		checkLeaks(t)
	}
	r := &rig{t: t}
	if o.world != nil {
		r.Host, r.guests, r.mapper = o.world.Host, o.world.guests, o.world.mapper
	} else {
		r.Host, r.guests, r.mapper = fake.NewHost(), fake.NewGuests(), fake.NewMapper()
		r.AddDomain("web01", webUUID, map[string][]byte{"xvda": webDisk(r.guests), "xvdb": dataDisk(r.guests, "data-1")}, "xvda", "xvdb")
		r.AddDomain("db01", dbUUID, map[string][]byte{"vda": dataDisk(r.guests, "db-1")}, "vda")
		r.Hypervisor.Start("db01")
	}
	if o.reserve > 0 {
		r.Store.SetReserve(o.reserve)
	}
	core, logs := observer.New(zap.DebugLevel)
	r.logs = logs
	store := r.Store.Driver(o.caps)
	if o.store != nil {
		store = o.store(store)
	}
	r.ctl = control.New(control.Options{
		Hypervisors: []backend.Hypervisor{r.Hypervisor.Driver(o.caps)}, Stores: []backend.Store{store},
		Prober: r.guests, Layouts: []backend.Layout{fake.Table{}}, Filesystems: []backend.Filesystem{r.guests},
		Assemblers: []backend.Assembler{&fake.Assembler{}}, Mapper: r.mapper,
		Log: zap.New(core), LockFile: o.lock, ErrnoName: ErrnoName, Foreign: o.foreign,
	})
	r.loses = o.loses
	r.mnt = t.TempDir()
	srv, err := Mount(Options{Host: r.ctl, Log: zap.New(core), Mountpoint: r.mnt, AllowOther: o.allowOther, GID: 4242, Version: "1.2.3", FSName: testFSName()})
	if err != nil {
		t.Fatal(err)
	}
	r.srv = srv
	srv.fs.noPass.Store(o.noPass)
	if err := r.ctl.Start(context.Background()); err != nil {
		t.Error(err)
	}
	t.Cleanup(r.end)
	return r
}

// end unmounts, and looks for what is left.
func (r *rig) end() {
	r.t.Helper()
	if r.srv != nil {
		if err := r.srv.Unmount(); err != nil {
			r.t.Errorf("unmount: %v; %s", err, fuser(r.mnt))
			r.srv.Detach()
		}
		r.srv.Wait()
		if n := len(r.srv.fs.handles); n != 0 {
			r.t.Errorf("%d handles are left after unmount", n)
		}
		r.srv = nil
	}
	if err := r.ctl.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
	for _, e := range r.logs.FilterLevelExact(zap.ErrorLevel).All() {
		if r.loses && e.Message == "a snapshot has become invalid" {
			continue
		}
		r.t.Errorf("an error was logged: %s %v", e.Message, e.ContextMap())
	}
}

func fuser(path string) string {
	out, _ := exec.Command("sh", "-c", `for p in /proc/[0-9]*; do ls -l $p/fd $p/cwd 2>/dev/null | grep -F -- "$1" && cat $p/comm; done`, "sh", path).CombinedOutput()
	return string(out)
}

// checkLeaks compares descriptors, goroutines and open devices at the test's end.
func checkLeaks(t *testing.T) {
	t.Helper()
	splice.ClearSplicePool()
	fds, goroutines := descriptors(), runtime.NumGoroutine()
	t.Cleanup(func() {
		var after []string
		now := 0
		for range 100 {
			splice.ClearSplicePool()
			after, now = descriptors(), runtime.NumGoroutine()
			if len(after) <= len(fds) && now <= goroutines {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		if len(after) > len(fds) {
			t.Errorf("descriptors before: %v\nafter: %v", fds, after)
		}
		if now > goroutines {
			stacks := make([]byte, 1<<20)
			t.Errorf("%d goroutines before, %d after:\n%s", goroutines, now, stacks[:runtime.Stack(stacks, true)])
		}
	})
}

func descriptors() []string {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range names {
		if target, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil && !strings.Contains(target, "anon_inode") && target != os.DevNull { // splice keeps one of those
			out = append(out, n.Name()+" "+target)
		}
	}
	return out
}

func (r *rig) path(elems ...string) string {
	return filepath.Join(append([]string{r.mnt}, elems...)...)
}

func (r *rig) read(elems ...string) string {
	r.t.Helper()
	b, err := os.ReadFile(r.path(elems...))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func (r *rig) list(elems ...string) []string {
	r.t.Helper()
	es, err := os.ReadDir(r.path(elems...))
	if err != nil {
		r.t.Fatal(err)
	}
	names := []string{}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func (r *rig) mkdir(elems ...string) {
	r.t.Helper()
	if err := syscall.Mkdir(r.path(elems...), 0o755); err != nil {
		r.t.Fatalf("mkdir %v: %v; %s", elems, err, r.ctl.LastErrors(elems[1]))
	}
}

func (r *rig) rmdir(elems ...string) {
	r.t.Helper()
	if err := syscall.Rmdir(r.path(elems...)); err != nil {
		r.t.Fatalf("rmdir %v: %v; %s", elems, err, r.ctl.LastErrors(elems[1]))
	}
}

func (r *rig) stat(elems ...string) unix.Stat_t {
	r.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(r.path(elems...), &st); err != nil {
		r.t.Fatalf("stat %v: %v", elems, err)
	}
	return st
}

// stats is one number of .domfs/stats.
func (r *rig) stats(name string) int64 {
	r.t.Helper()
	for line := range strings.Lines(r.read(".domfs", "stats")) {
		if n, v, _ := strings.Cut(strings.TrimSpace(line), " "); n == name {
			i, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				r.t.Fatal(err)
			}
			return i
		}
	}
	r.t.Fatalf("no %s in stats", name)
	return 0
}

// sh runs a shell command with $1, $2, … set and wants this output and exit status. The shell does what
// users do: its redirections are part of the test.
func sh(t *testing.T, script string, args ...string) (string, int) {
	t.Helper()
	testneed.Tools(t, "bash") // dash calls every failed write an I/O error
	cmd := exec.Command("bash", append([]string{"-c", script, "bash"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// wantErrno fails unless err is the errno.
func wantErrno(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if want == 0 {
		if err != nil {
			t.Errorf("%s: %v, want success", what, err)
		}
		return
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// eventually waits for f, 5 s at most.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	within(t, 5*time.Second, what, f)
}

func within(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	if !f() {
		t.Fatalf("not within %s: %s", limit, what)
	}
}

// done runs f in a goroutine; its result arrives on the channel.
func async[T any](f func() T) <-chan T {
	c := make(chan T, 1)
	go func() { c <- f() }()
	return c
}

func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("%s hangs", what)
		panic("unreachable")
	}
}

func stillWaits[T any](t *testing.T, what string, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("%s did not wait: %v", what, v)
	case <-time.After(150 * time.Millisecond):
	}
}

func dropCaches(t *testing.T) {
	t.Helper()
	testneed.Root(t)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
		testneed.Missing(t, "drop_caches: "+err.Error())
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7/3) ^ byte(i>>12) ^ seed
	}
	return b
}

func equalFile(t *testing.T, f io.ReaderAt, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := f.ReadAt(got, off)
	if err != nil && !(errors.Is(err, io.EOF) && n == len(want)) {
		t.Errorf("read of %d bytes at %d: %d, %v", len(want), off, n, err)
		return
	}
	if !bytes.Equal(got, want) {
		t.Errorf("read of %d bytes at %d: other bytes than were written", len(want), off)
	}
}

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// The real program, built once for all tests, and the sample host that tests copy.
var (
	built  string // folder of both
	binary string
)

const (
	startLimit = 60 * time.Second // under the race detector, on a busy machine
	endLimit   = 60 * time.Second
	seenLimit  = time.Second // within which a change is seen by others
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "domfs-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Tests run the program as another user, too.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built, binary = dir, filepath.Join(dir, "domfs")
	// The lab's machine has the program, and no Go.
	if program := os.Getenv("DOMFS_PROGRAM"); program != "" {
		binary = program
		return m.Run()
	}
	args := []string{"build", "-tags", "faults", "-o", binary}
	if underRace {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, ".")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
		return 1
	}
	return m.Run()
}

// host is a folder with configurations, images and a mountpoint.
type host struct {
	t      testing.TB
	dir    string
	xl     string // folder of configurations
	images string
	mnt    string
}

func emptyHost(t testing.TB) *host {
	t.Helper()
	testneed.FUSE(t)
	dir := t.TempDir()
	h := &host{t: t, dir: dir, xl: filepath.Join(dir, "xen"), images: filepath.Join(dir, "images"), mnt: filepath.Join(dir, "mnt")}
	for _, d := range []string{h.xl, h.images, h.mnt} {
		must(t, os.Mkdir(d, 0o755))
	}
	return h
}

var makeSample = sync.OnceValue(func() error {
	out, err := exec.Command("../../testdata/sample-host", filepath.Join(built, "sample"), "small").CombinedOutput()
	if err != nil {
		return fmt.Errorf("sample-host: %w\n%s", err, out)
	}
	return nil
})

// sampleHost is a copy of the demonstration's host, without its programs.
func sampleHost(t testing.TB) *host {
	t.Helper()
	testneed.Tools(t, "mke2fs", "sfdisk", "mkfs.vfat", "mcopy", "mkswap", "setfattr", "setfacl", "qemu-img")
	h := emptyHost(t)
	if err := makeSample(); err != nil {
		t.Fatal(err)
	}
	sample := filepath.Join(built, "sample")
	command(t, "cp", "-a", "--sparse=always", "-T", sample+"/images", h.images)
	configs, err := filepath.Glob(sample + "/etc/xen/*.cfg")
	must(t, err)
	for _, config := range configs {
		text := readFile(t, config)
		text = strings.ReplaceAll(text, sample+"/images", h.images)
		text = strings.ReplaceAll(text, "../../images", "../images")
		must(t, os.WriteFile(filepath.Join(h.xl, filepath.Base(config)), []byte(text), 0o644))
	}
	return h
}

// tinyHost is one domain "vm" with two small disks, the first an ext4.
func tinyHost(t testing.TB) *host {
	t.Helper()
	testneed.Tools(t, "mke2fs")
	h := emptyHost(t)
	h.tinyDisks()
	return h
}

func (h *host) tinyDisks() {
	h.t.Helper()
	tree := filepath.Join(h.dir, "tree")
	must(h.t, os.MkdirAll(tree+"/etc/more", 0o755))
	must(h.t, os.WriteFile(tree+"/etc/hostname", []byte("vm\n"), 0o644))
	for i := range 20 {
		must(h.t, os.WriteFile(fmt.Sprintf("%s/etc/more/%d", tree, i), bytes.Repeat([]byte{byte(i)}, 1000*i), 0o644))
	}
	command(h.t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "tiny", "-d", tree, h.images+"/a.img", "8M")
	second := bytes.Repeat([]byte("second disk "), 100_000)
	must(h.t, os.WriteFile(h.images+"/b.img", second[:1<<20], 0o644))
	h.config("vm", "file:"+h.images+"/a.img,xvda,w", "file:"+h.images+"/b.img,xvdb,w")
}

// config writes a domain's configuration.
func (h *host) config(name string, disks ...string) {
	h.t.Helper()
	id := fnv.New64a()
	io.WriteString(id, name)
	text := fmt.Sprintf("name = %q\nuuid = \"00000000-0000-4000-8000-%012x\"\nmemory = 64\ndisk = [\n", name, id.Sum64()>>16)
	for _, d := range disks {
		text += fmt.Sprintf("    '%s',\n", d)
	}
	must(h.t, os.WriteFile(filepath.Join(h.xl, name+".cfg"), []byte(text+"]\n"), 0o644))
}

// mount is a running program and its mount.
type mount struct {
	t    testing.TB
	host *host
	path string
	cmd  *exec.Cmd
	line string // what it said when it was ready
	log  *lockedBuffer
	done chan struct{} // closed when the program has ended
	err  error         // how it ended, once done is closed
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// mount starts the program on the host's own mountpoint.
func (h *host) mount(args ...string) *mount {
	h.t.Helper()
	m, err := h.start(nil, h.mnt, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return m
}

// start starts the program and waits until its mount is there.
func (h *host) start(env []string, mountpoint string, args ...string) (*mount, error) {
	h.t.Helper()
	return h.startProgram(binary, env, mountpoint, args...)
}

func (h *host) startProgram(binary string, env []string, mountpoint string, args ...string) (*mount, error) {
	h.t.Helper()
	m := &mount{t: h.t, host: h, path: mountpoint, log: &lockedBuffer{}, done: make(chan struct{})}
	m.cmd = exec.Command(binary, append(append([]string{"mount", "--xl-config=" + h.xl, "--lock-file=" + filepath.Join(h.dir, "lock")}, args...), mountpoint)...)
	// The race detector would have the program sleep for a second at its end.
	m.cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...)
	m.cmd.Stderr = m.log
	stdout, err := m.cmd.StdoutPipe()
	must(h.t, err)
	must(h.t, m.cmd.Start())
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- line
		_, _ = io.Copy(io.Discard, stdout)
		m.err = m.cmd.Wait()
		close(m.done)
	}()
	h.t.Cleanup(m.clear)
	select {
	case m.line = <-ready:
	case <-time.After(startLimit):
		h.t.Fatalf("no mount after %v:\n%s", startLimit, m.log)
	}
	if m.line == "" {
		<-m.done
		return nil, fmt.Errorf("%w: %s", m.err, m.log)
	}
	return m, nil
}

// clear makes sure that a failed test leaves nothing behind.
func (m *mount) clear() {
	select {
	case <-m.done:
	default:
		_ = unix.Kill(m.cmd.Process.Pid, unix.SIGKILL)
		<-m.done
	}
	for isMounted(m.t, m.path) {
		if unix.Unmount(m.path, unix.MNT_DETACH) != nil {
			if exec.Command("fusermount3", "-uz", m.path).Run() != nil {
				break
			}
		}
	}
	if m.t.Failed() {
		m.t.Logf("log of domfs on %s:\n%s", m.path, m.log)
	}
	if strings.Contains(m.log.String(), "DATA RACE") {
		m.t.Errorf("data race:\n%s", m.log)
	}
}

// stop ends the mount by SIGTERM, and checks that it ended well.
func (m *mount) stop() {
	m.t.Helper()
	must(m.t, m.cmd.Process.Signal(unix.SIGTERM))
	m.ended()
}

// ended waits for the program's end, and checks that it ended well and left no mount.
func (m *mount) ended() {
	m.t.Helper()
	select {
	case <-m.done:
	case <-time.After(endLimit):
		_ = m.cmd.Process.Signal(unix.SIGQUIT) // its goroutines go into the log
		select {
		case <-m.done:
		case <-time.After(endLimit):
		}
		m.t.Fatalf("domfs has not ended after %v", endLimit)
	}
	if m.err != nil {
		m.t.Errorf("domfs ended with %v:\n%s", m.err, m.log)
	}
	if isMounted(m.t, m.path) {
		m.t.Errorf("%s is still mounted", m.path)
	}
}

// at is a path in the mount.
func (m *mount) at(path ...string) string { return filepath.Join(append([]string{m.path}, path...)...) }

// read is a file's content, without its newline.
func (m *mount) read(path string) string {
	m.t.Helper()
	return strings.TrimSuffix(readFile(m.t, m.at(path)), "\n")
}

// set writes a value as a shell's echo does.
func (m *mount) set(path, value string) error {
	f, err := os.OpenFile(m.at(path), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// lastError is the last line of a domain's last_error.
func (m *mount) lastError(domain string) string {
	m.t.Helper()
	lines := strings.Split(m.read("xenstore/"+domain+"/last_error"), "\n")
	return lines[len(lines)-1]
}

// snapshot makes a snapshot and waits until it is active.
func (m *mount) snapshot(domain, name string) {
	m.t.Helper()
	must(m.t, os.Mkdir(m.at("snapshots", domain, name), 0o755))
	m.waitActive(domain, name)
}

func (m *mount) waitActive(domain, name string) {
	m.t.Helper()
	eventually(m.t, endLimit, "the snapshot is active", func() bool {
		state, err := os.ReadFile(m.at("snapshots", domain, name, "state"))
		return err == nil && string(state) == "active\n"
	})
}

// names lists a directory of the mount.
func (m *mount) names(path string) []string {
	m.t.Helper()
	entries, err := os.ReadDir(m.at(path))
	must(m.t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// descriptors lists what the program has open, files in proc and the runtime's own aside.
func (m *mount) descriptors() []string {
	m.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	must(m.t, err)
	var open []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		// go-fuse keeps pipes for splicing in a pool, and /dev/null to empty them into.
		if err != nil || target == os.DevNull || strings.HasPrefix(target, "pipe:") || strings.HasPrefix(target, "anon_inode:") {
			continue
		}
		open = append(open, target)
	}
	slices.Sort(open)
	return open
}

// leaves checks that the program has open what it had before, once it has had time to
// close what it no longer needs.
func (m *mount) leaves(before []string) {
	m.t.Helper()
	var now []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		now = m.descriptors()
		if len(now) <= len(before) {
			return
		}
	}
	m.t.Errorf("descriptors leak: before\n    %s\nnow\n    %s", strings.Join(before, "\n    "), strings.Join(now, "\n    "))
}

// litter lists what lies in the folder of images beside the images themselves.
func (h *host) litter() []string {
	h.t.Helper()
	found := []string{}
	must(h.t, filepath.WalkDir(h.images, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(h.images, path)
		if !d.IsDir() && (strings.HasPrefix(name, ".domfs/") || filepath.Ext(name) != ".img" && filepath.Ext(name) != ".qcow2") {
			found = append(found, name)
		}
		return nil
	}))
	return found
}

func isMounted(t testing.TB, path string) bool {
	t.Helper()
	_, mounted, err := topMount(path)
	must(t, err)
	return mounted
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until something holds.
func eventually(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func wantErrno(t testing.TB, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %s", what, err, unix.ErrnoName(want))
	}
}

package vfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

const lostDir = "snapshots/web01/s"

// lossRig has a snapshot "s" of web01 that can overflow.
func lossRig(t *testing.T, o rigOptions) *rig {
	o.reserve, o.loses = 64<<10, true
	r := newRigWith(t, o)
	r.mkdir(lostDir)
	return r
}

// lose makes the snapshot of xvda invalid. The store gives its bytes all the same: only domfs itself
// keeps them from the reader.
func (r *rig) lose() {
	r.t.Helper()
	r.Store.Invalidate(r.setID("web01", "s"), "xvda")
	r.Store.Happen()
	within(r.t, time.Second, "state says invalid", func() bool { return r.read(lostDir, "state") == "invalid\n" })
}

// openAll opens files that are closed at the test's end, all together.
func (r *rig) openAll(paths ...string) []*os.File {
	r.t.Helper()
	var out []*os.File
	r.t.Cleanup(func() {
		for _, f := range out {
			f.Close()
		}
		r.allReleased()
	})
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

func TestInvalid_EveryReadOfWhatIsOpenFails(t *testing.T) {
	r := lossRig(t, rigOptions{})
	files := r.path(lostDir, "disks/xvda/p1/files")
	names := []string{"disks/xvda/raw", "disks/xvda/p1/raw", "data/big", "hard/one", "data/on-disk", "directory"}
	open := r.openAll(r.path(lostDir, names[0]), r.path(lostDir, names[1]), files+"/data/big", files+"/hard/one", files+"/data/on-disk", files)
	dir := open[len(open)-1]
	open = open[:len(open)-1]
	for i, f := range open {
		if _, err := io.Copy(io.Discard, f); err != nil { // all of it is in the kernel's cache
			t.Fatal(names[i], err)
		}
	}
	before := getdents(t, int(dir.Fd()), 0)
	r.lose()
	buf := make([]byte, 1<<20)
	for i, f := range open {
		name := names[i]
		eventually(t, name+" cannot be read any more", func() bool {
			n, err := f.ReadAt(buf[:1], 0)
			return n == 0 && errors.Is(err, unix.EIO)
		})
		for _, off := range []int64{0, 1, 4096} {
			if n, err := f.ReadAt(buf, off); n != 0 || !errors.Is(err, unix.EIO) && !errors.Is(err, io.EOF) {
				t.Errorf("%s at %d: %d bytes, %v", name, off, n, err)
			}
		}
		if _, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); name != "hard/one" && !errors.Is(err, unix.EIO) {
			t.Errorf("%s: SEEK_HOLE: %v", name, err)
		}
	}
	if len(before) < 3 {
		t.Fatalf("the directory had %d entries", len(before))
	}
	eventually(t, "the open directory cannot be read any more", func() bool {
		unix.Seek(int(dir.Fd()), 0, io.SeekStart)
		n, err := unix.Getdents(int(dir.Fd()), buf)
		return n <= 0 && errors.Is(err, unix.EIO)
	})
}

// Who is in the directory already goes through no name that is looked up again at once.
func TestInvalid_WhatLiesOverTheDiskIsLostWithIt(t *testing.T) {
	r := newRigWith(t, rigOptions{reserve: 64 << 10, loses: true})
	r.addLVM("lvm01")
	r.mkdir("snapshots/lvm01/s")
	inv, err := r.ctl.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := inv.SnapshotDir("lvm01").Set("s").ID
	at := func(name string) string { return r.path("snapshots/lvm01/s/lvm/vg0", name) }
	names := []string{"root/raw", "root/files/etc/hostname", "home/files/alice"}
	open := r.openAll(at(names[0]), at(names[1]), at(names[2]))
	for i, f := range open {
		if _, err := io.Copy(io.Discard, f); err != nil {
			t.Fatal(names[i], err)
		}
	}
	r.Store.Invalidate(id, "xvda")
	r.Store.Happen()
	within(t, time.Second, "state says invalid", func() bool { return r.read("snapshots/lvm01/s", "state") == "invalid\n" })
	b := make([]byte, 1)
	for i, f := range open {
		eventually(t, names[i]+" cannot be read any more", func() bool {
			n, err := f.ReadAt(b, 0)
			return n == 0 && errors.Is(err, unix.EIO)
		})
	}
}

func TestInvalid_NamesAndAttributesAreForgottenInADirectoryThatIsOpen(t *testing.T) {
	r := lossRig(t, rigOptions{})
	open := r.openAll(r.path(lostDir, "disks/xvda/p1/files/etc"), r.path(lostDir, "disks/xvda/p1/files/links"))
	etc, links := open[0], open[1]
	buf := make([]byte, 4096)
	var st unix.Stat_t
	gestures := map[string]func() error{
		"stat":     func() error { return unix.Fstatat(int(etc.Fd()), "hostname", &st, 0) },
		"negative": func() error { return ignore(unix.Fstatat(int(etc.Fd()), "nothing", &st, 0), unix.ENOENT) },
		"readlink": func() error { _, err := unix.Readlinkat(int(links.Fd()), "relative", buf); return err },
		"open": func() error {
			fd, err := unix.Openat(int(etc.Fd()), "hostname", unix.O_RDONLY, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
		"getxattr": func() error {
			_, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d/hostname", etc.Fd()), "user.note", buf)
			return err
		},
		"listxattr": func() error {
			_, err := unix.Listxattr(fmt.Sprintf("/proc/self/fd/%d/hostname", etc.Fd()), buf)
			return err
		},
		"opendir": func() error {
			fd, err := unix.Openat(int(etc.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
	}
	for name, f := range gestures {
		if err := f(); err != nil {
			t.Fatalf("%s before: %v", name, err)
		}
	}
	r.lose()
	for name, f := range gestures {
		within(t, 5*time.Second, name+" fails", func() bool { return errors.Is(f(), unix.EIO) })
	}
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

func TestInvalid_IsToldToWhoOpensItAndCanBeRemoved(t *testing.T) {
	r := lossRig(t, rigOptions{})
	if got := r.read(lostDir, "disks/xvda/p1/files/etc/hostname"); got != "web01\n" {
		t.Fatalf("%q", got)
	}
	r.lose()
	for _, path := range []string{"raw", "content", "p1/raw", "p1/files/etc/hostname", "p1/label"} {
		within(t, time.Second, path+" fails", func() bool {
			_, err := os.ReadFile(r.path(lostDir, "disks/xvda", path))
			return errors.Is(err, unix.EIO)
		})
	}
	eventually(t, "last_error says so", func() bool {
		return strings.Contains(r.read("xenstore/web01/last_error"), "invalid EIO disk xvda in snapshot s is invalid: its copy-on-write space has filled up")
	})
	for _, file := range []string{"created", "consistency", "expires", "hold", "disks/xvda/driver", "disks/xvda/size", "disks/xvda/used", "disks/xvda/reserve", "disks/xvda/fill"} {
		r.read(lostDir, file)
	}
	// The other disk is as good as before.
	if got := r.read(lostDir, "disks/xvdb/files/version"); got != "data-1\n" {
		t.Errorf("the other disk: %q", got)
	}
	if out, status := sh(t, `echo +1M > "$1"`, r.path(lostDir, "disks/xvda/reserve")); status == 0 || !strings.Contains(out, "Input/output error") {
		t.Errorf("reserve: %d, %s", status, out)
	}
	r.rmdir(lostDir)
}

func TestInvalid_StaysInvalidAfterARestart(t *testing.T) {
	first := lossRig(t, rigOptions{})
	first.Store.Use(first.setID("web01", "s"), "xvda", 64<<10)
	within(t, time.Second, "state says invalid", func() bool { return first.read(lostDir, "state") == "invalid\n" })
	if got := first.read(lostDir, "disks/xvda/fill"); got != "100\n" {
		t.Errorf("fill is %q", got)
	}
	first.end()
	r := newRigWith(t, rigOptions{world: first, loses: true})
	if got := r.read(lostDir, "state"); got != "invalid\n" {
		t.Errorf("state is %q", got)
	}
	_, err := os.ReadFile(r.path(lostDir, "disks/xvda/raw"))
	wantErrno(t, "raw", err, unix.EIO)
	r.rmdir(lostDir)
}

// What the kernel reads of the host's file by itself is out of our hands.
func TestInvalid_NothingOfASnapshotThatCanOverflowIsPassedThroughOrSpliced(t *testing.T) {
	path := t.TempDir() + "/image"
	if err := os.WriteFile(path, pattern(4*MiB, 9), 0o600); err != nil {
		t.Fatal(err)
	}
	r := lossRig(t, rigOptions{store: func(s backend.Store) backend.Store { return allStore{s.(fullStore), path} }})
	f := r.open(r.path(lostDir, "disks/xvda/raw"))
	equalFile(t, f, 5, pattern(4*MiB, 9)[5:3*MiB])
	handles := 0
	r.srv.fs.handleMu.RLock()
	for _, h := range r.srv.fs.handles {
		if h.data == nil {
			continue
		}
		handles++
		if h.data.backing != nil && h.data.backing.backing.id != 0 || h.data.splices() {
			t.Error("it is passed through, or spliced")
		}
	}
	r.srv.fs.handleMu.RUnlock()
	if handles != 1 {
		t.Errorf("%d files are open", handles)
	}
	r.Store.Invalidate(r.setID("web01", "s"), "xvda") // the events' look finds it by itself
	r.Store.Happen()
	eventually(t, "it cannot be read any more", func() bool {
		n, err := f.ReadAt(make([]byte, MiB), 7)
		return n == 0 && errors.Is(err, unix.EIO)
	})
}

// gateDevice lets a test stop a read.
type gateDevice struct {
	*bytes.Reader
	size    int64
	mu      sync.Mutex
	waiting chan struct{} // guarded by mu; closed when a read waits
	gate    chan struct{} // guarded by mu; nil: open
}

func (d *gateDevice) Size() int64  { return d.size }
func (d *gateDevice) Close() error { return nil }

func (d *gateDevice) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	gate, waiting := d.gate, d.waiting
	if gate != nil && waiting != nil {
		close(waiting)
		d.waiting = nil
	}
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return d.Reader.ReadAt(p, off)
}

// shut makes the next reads wait until open is called.
func (d *gateDevice) shut() (waiting <-chan struct{}, open func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	gate, w := make(chan struct{}), make(chan struct{})
	d.gate, d.waiting = gate, w
	return w, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.gate == gate {
			d.gate = nil
			close(gate)
		}
	}
}

func TestInvalid_AReadThatBeganBeforeFails(t *testing.T) {
	r := newRigWith(t, rigOptions{reserve: 64 << 10, loses: true})
	dev := &gateDevice{Reader: bytes.NewReader(webDisk(r.guests)), size: 4 * MiB}
	r.Store.AddDevice("/images/web01-xvda", dev)
	r.mkdir(lostDir)
	f := r.open(r.path(lostDir, "disks/xvda/raw"))
	waiting, open := dev.shut()
	defer open()
	read := async(func() error {
		n, err := f.ReadAt(make([]byte, 8192), MiB)
		if n != 0 {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		return err
	})
	receive(t, "the read", waiting)
	r.Store.Invalidate(r.setID("web01", "s"), "xvda")
	r.Store.Happen()
	within(t, 2*time.Second, "state says invalid", func() bool { return r.read(lostDir, "state") == "invalid\n" })
	stillWaits(t, "the read", read) // the kernel is being told to drop the very page: that must not stop us
	open()
	if err := receive(t, "the read", read); err != unix.EIO && !errors.Is(err, unix.EIO) {
		t.Errorf("the read: %v", err)
	}
}

// In a process of its own: a page fault stops the thread, and with it whoever serves the fault here.
func TestInvalid_AMappingIsASignal(t *testing.T) {
	r := lossRig(t, rigOptions{})
	cmd := exec.Command(os.Args[0], r.path(lostDir, "disks/xvda/p1/files/data/big"))
	cmd.Env = append(os.Environ(), childEnv+"=mapped")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); r.allReleased() })
	lines := bufio.NewScanner(out)
	touch := func() string {
		if _, err := io.WriteString(in, "\n"); err != nil || !lines.Scan() {
			t.Fatalf("the child is gone: %v", err)
		}
		return lines.Text()
	}
	if got, want := touch(), fmt.Sprint(pattern(3*MiB, 1)[4096]); got != want {
		t.Fatalf("before: %s, want %s", got, want)
	}
	r.lose()
	eventually(t, "the page is gone", func() bool { return touch() == "fault" })
}

// mapped maps a file, and touches its second page for each line of its input.
func mapped(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 64<<10, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	debug.SetPanicOnFault(true)
	touch := func() (text string) {
		defer func() {
			if recover() != nil {
				text = "fault"
			}
		}()
		return fmt.Sprint(m[4096])
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(touch())
	}
	return nil
}

func TestInvalid_ATarUnderWayFails(t *testing.T) {
	testneed.Tools(t, "tar")
	r := lossRig(t, rigOptions{})
	cmd := exec.Command("tar", "-C", r.path(lostDir, "disks/xvda/p1/files/data"), "-cf", "-", "big", "on-disk")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 10<<10)); err != nil {
		t.Fatal(err)
	}
	r.lose() // it waits for the pipe, in the middle of a file
	_, readErr := io.Copy(io.Discard, out)
	err = cmd.Wait()
	if err == nil || readErr != nil || !strings.Contains(stderr.String(), "Input/output error") {
		t.Errorf("tar: %v, %v\n%s", err, readErr, &stderr)
	}
	r.allReleased()
}

// Opens and reads of many at the time of the loss: right bytes, or EIO, and nothing but EIO in the end.
func TestInvalid_ReadersAtThatMomentGetTheirBytesOrAnError(t *testing.T) {
	r := lossRig(t, rigOptions{})
	path := r.path(lostDir, "disks/xvda/p1/files/data/big")
	want := pattern(3*MiB+123, 1)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			buf := make([]byte, 200_000)
			for n := i * 50_000; ; n = (n*7 + 4099) % len(want) {
				select {
				case <-stop:
					return
				default:
				}
				f, err := os.Open(path)
				if err != nil {
					if !errors.Is(err, unix.EIO) {
						t.Error(err)
					}
					continue
				}
				got, err := f.ReadAt(buf, int64(n))
				if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				if !bytes.Equal(buf[:got], want[n:n+got]) || errors.Is(err, io.EOF) && n+got != len(want) {
					t.Errorf("%d bytes at %d are others, or short (%v)", got, n, err)
				}
				f.Close()
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	r.lose()
	time.Sleep(50 * time.Millisecond)
	close(stop)
	wg.Wait()
	_, err := os.ReadFile(path)
	wantErrno(t, "read in the end", err, unix.EIO)
	r.allReleased()
}

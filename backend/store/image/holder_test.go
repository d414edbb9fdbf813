package image

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// lockHelper takes locks as QEMU does for a guest that may write: shared locks on the
// bytes of its permissions and of those that it does not share. With "posix" they belong to the process,
// with "read" there is no permission to write.
func lockHelper(args []string) error {
	kind, path := args[0], args[1]
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	cmd, offsets := unix.F_OFD_SETLK, []int64{100, 101, 103, 201, 203}
	switch kind {
	case "posix":
		cmd = unix.F_SETLK
	case "read":
		offsets = []int64{100, 203}
	}
	for _, off := range offsets {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: off, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), cmd, &lk); err != nil {
			return err
		}
	}
	fmt.Println("locked")
	_, err = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(f)
	return err
}

// dropOverride takes from this thread, for the rest of the test, root's right to read any file.
func dropOverride(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data, without [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	without = data
	without[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &without[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Error(err) // the thread stays locked, and ends with the test
			return
		}
		runtime.UnlockOSThread()
	})
}

func TestVolumes_NamesWhoHoldsQEMUsLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New(nil, nil, nil)
	for _, kind := range []string{"ofd", "posix"} {
		cmd := startHelper(t, true, "lock", kind, path)
		want := fmt.Sprintf("(pid %d)", cmd.Process.Pid)
		for range 3 { // found, and then remembered
			if v := volumeOf(t, s, path); !strings.Contains(v.Holder, want) || v.Err != nil {
				t.Errorf("%s: Holder = %q, want it with %q", kind, v.Holder, want)
			}
		}
		stopHelper(cmd)
		if v := volumeOf(t, s, path); v.Holder != "" {
			t.Errorf("%s: Holder = %q after it ended", kind, v.Holder)
		}
	}
	startHelper(t, true, "lock", "read", path)
	if v := volumeOf(t, s, path); v.Holder != "" {
		t.Errorf("Holder = %q of a reader", v.Holder)
	}
}

func TestVolumes_FindsTheNextHolderOfALock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New(nil, nil, nil)
	first := startHelper(t, true, "lock", "ofd", path)
	volumeOf(t, s, path)
	second := startHelper(t, true, "lock", "ofd", path) // shared locks do not exclude one another
	stopHelper(first)
	want := fmt.Sprintf("(pid %d)", second.Process.Pid)
	if v := volumeOf(t, s, path); !strings.Contains(v.Holder, want) {
		t.Errorf("Holder = %q, want it with %q", v.Holder, want)
	}
}

// qemuIO keeps an image open with QEMU's own tool.
func qemuIO(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	testneed.Tools(t, "qemu-io")
	cmd := exec.Command("qemu-io", args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	// It answers once the image is open.
	fmt.Fprintln(stdin, "length")
	if _, err := stdout.Read(make([]byte, 1000)); err != nil {
		t.Fatalf("qemu-io: %v", err)
	}
	return cmd
}

func TestVolumes_NamesARealQEMU(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20)
	s := New(nil, nil, nil)
	reader := qemuIO(t, "-r", "-f", "raw", path)
	if v := volumeOf(t, s, path); v.Holder != "" {
		t.Errorf("Holder = %q of a QEMU that only reads", v.Holder)
	}
	reader.Process.Kill()
	reader.Wait()
	writer := qemuIO(t, "-f", "raw", path)
	want := fmt.Sprintf("qemu-io (pid %d)", writer.Process.Pid)
	if v := volumeOf(t, s, path); v.Holder != want {
		t.Errorf("Holder = %q, want %q", v.Holder, want)
	}
}

func TestVolumes_NamesAWritableLoopDevice(t *testing.T) {
	testneed.Loop(t)
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20)
	link := filepath.Join(folder, "link.img") // the device is set up by another name
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	s := New(nil, nil, nil)
	for _, test := range []struct {
		args []string
		want bool
	}{{nil, true}, {[]string{"-r"}, false}, {nil, true}} {
		device := strings.TrimSpace(loop.Command(t, "losetup", append(test.args, "--find", "--show", link)...))
		for range 2 {
			want := ""
			if test.want {
				want = "loop device " + device
			}
			if v := volumeOf(t, s, path); v.Holder != want {
				t.Errorf("losetup %v: Holder = %q, want %q", test.args, v.Holder, want)
			}
		}
		loop.Retry(t, "losetup", "-d", device)
		if v := volumeOf(t, s, path); v.Holder != "" {
			t.Errorf("losetup %v: Holder = %q after it was detached", test.args, v.Holder)
		}
	}
}

func BenchmarkVolumes(b *testing.B) {
	folder := b.TempDir()
	s := New(nil, nil, nil)
	var disks []string
	for i := range 40 {
		path := filepath.Join(folder, strconv.Itoa(i))
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			b.Fatal(err)
		}
		disks = append(disks, path)
	}
	start := time.Now()
	for b.Loop() {
		if _, err := s.Volumes(b.Context(), rawDisks(disks)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/float64(b.N)/float64(len(disks)), "µs/disk")
}

package hostdev

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

func TestEscape_IsUndone(t *testing.T) {
	for in, want := range map[string]string{
		"xvda/p2": "xvda:p2", "lvm/vg-0/a_b+c.d": "lvm:vg-0:a_5fb+c.d", "a b": "a_20b", ":": "_3a", "_3a": "_5f3a", "\x00\xff": "_00_ff", "": "",
	} {
		got := Escape(in)
		if got != want || Unescape(got) != in {
			t.Errorf("%q becomes %q, and that %q", in, got, Unescape(got))
		}
		if word := EscapeWord(in); strings.Contains(word, ":") || Unescape(word) != in {
			t.Errorf("%q becomes the word %q, and that %q", in, word, Unescape(word))
		}
	}
}

func TestHasPVLabel_LooksWhereLVMDoes(t *testing.T) {
	for at, want := range map[int]bool{0: true, 512: true, 1024: true, 1536: true, 2048: false, 1: false, 520: false} {
		disk := make([]byte, 8192)
		copy(disk[4096+at:], "LABELONE")
		got, err := HasPVLabel(bytes.NewReader(disk), 4096, 4096)
		if err != nil || got != want {
			t.Errorf("a label at %d: %v, %v", at, got, err)
		}
	}
	disk := append(make([]byte, 512), "LABELONE"...)
	for length, want := range map[int64]bool{0: false, 512: false, 519: false, 520: true, 4096: true, -1: false} {
		if got, err := HasPVLabel(bytes.NewReader(disk), 0, length); err != nil || got != want {
			t.Errorf("%d bytes: %v, %v", length, got, err)
		}
	}
}

// attach makes a loop device for the test.
func attach(t *testing.T, l Loop) *os.File {
	t.Helper()
	f, err := l.Attach()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		if err := Detach(f.Name(), l.Name); err != nil {
			t.Error(err)
		}
	})
	return f
}

func imageFile(t *testing.T) (path string, bytes []byte) {
	t.Helper()
	bytes = make([]byte, 64<<10)
	for i := range bytes {
		bytes[i] = byte(i / 512)
	}
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, bytes
}

func TestAttach_ShowsARangeReadOnly(t *testing.T) {
	testneed.Root(t)
	testneed.Loop(t)
	path, image := imageFile(t)
	f := attach(t, Loop{Path: path, Offset: 4096, Bytes: 8192, Name: "domfs-test:a"})
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, image[4096:4096+8192]) {
		t.Errorf("it shows %d bytes, %v", len(got), err)
	}
	if w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0); err == nil {
		if _, err = w.Write(image[:512]); err == nil {
			err = w.Sync()
		}
		w.Close()
		if err == nil {
			t.Error("it can be written to")
		}
	}
	loops := Host{}.Loops("domfs-test:a")
	if len(loops) != 1 {
		t.Fatalf("found %+v", loops)
	}
	rdev, err := Rdev(f.Name())
	if l := loops[0]; err != nil || l != (AttachedLoop{Device: f.Name(), Rdev: rdev, Name: "domfs-test:a", Offset: 4096, SizeLimit: 8192, ReadOnly: true}) {
		t.Errorf("found %+v", l)
	}
	if err := Detach(f.Name(), "another name"); err != nil || !(Host{}).IsAttached(filepath.Base(f.Name())) {
		t.Errorf("a device of another name was detached: %v", err)
	}
}

func TestAttach_VanishesWithItsLastUserWhereItIsToldTo(t *testing.T) {
	testneed.Root(t)
	testneed.Loop(t)
	path, _ := imageFile(t)
	f := attach(t, Loop{Path: path, Name: "domfs-test:b", AutoClear: true})
	if !(Host{}).IsAttached(filepath.Base(f.Name())) {
		t.Fatal("it is not there")
	}
	f.Close()
	if loops := (Host{}).Loops("domfs-test:b"); len(loops) != 0 {
		t.Errorf("it is there after its last user: %+v", loops)
	}
}

func TestAttach_SaysWhatIsWrong(t *testing.T) {
	testneed.Root(t)
	testneed.Loop(t)
	if _, err := (Loop{Path: t.TempDir() + "/none", Name: "domfs-test:c"}).Attach(); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := (Loop{Path: os.DevNull, Name: strings.Repeat("n", 64)}).Attach(); !errors.Is(err, backend.ErrTooLong) {
		t.Errorf("a long name: %v", err)
	}
}

func TestHolder_NamesWhoUsesADevice(t *testing.T) {
	testneed.Root(t)
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mount")
	path, _ := imageFile(t)
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-F", path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f := attach(t, Loop{Path: path, Name: "domfs-test:d"})
	rdev, err := Rdev(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	holder := func(words ...string) {
		t.Helper()
		got := Host{}.Holder(rdev)
		for _, w := range words {
			if !strings.Contains(got, w) {
				t.Errorf("its holder is %q, want %q in it", got, w)
			}
		}
		if len(words) == 0 && got != "" {
			t.Errorf("its holder is %q", got)
		}
	}
	holder("hostdev", "(pid ")
	f.Close()
	holder()
	dir := t.TempDir() + "/a b"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(f.Name(), dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	holder("mount on " + dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	above := attach(t, Loop{Path: f.Name(), Name: "domfs-test:e"})
	holder("loop device " + above.Name())
}

func TestHolder_ReadsTheTablesOfTheHost(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := Host{Proc: root + "/proc", Sys: root + "/sys"}
	rdev := unix.Mkdev(254, 3)
	if got := h.Holder(rdev); got != "" {
		t.Errorf("nobody: %q", got)
	}
	write("proc/self/mountinfo", "36 35 98:0 / /other rw - ext3 /dev/root rw\n37 35 254:3 / /mnt\\040x ro,noatime - ext4 /dev/dm-3 ro\nshort\n")
	if got := h.Holder(rdev); got != "mount on /mnt x" {
		t.Errorf("a mount: %q", got)
	}
	write("sys/dev/block/254:3/holders/dm-7", "")
	write("sys/block/dm-7/dm/name", "crypt\n")
	if got := h.Holder(rdev); got != "device /dev/mapper/crypt" {
		t.Errorf("a device above: %q", got)
	}
}

func TestDetach_WaitsForWhoOnlyLooks(t *testing.T) {
	testneed.Root(t)
	testneed.Loop(t)
	path, _ := imageFile(t)
	f := attach(t, Loop{Path: path, Name: "domfs-test:d"})
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		time.Sleep(100 * time.Millisecond)
		f.Close()
	}()
	if err := Detach(f.Name(), "domfs-test:d"); err != nil {
		t.Error(err)
	}
	if loops := (Host{}).Loops("domfs-test:d"); len(loops) != 0 {
		t.Errorf("it is still there: %+v", loops)
	}
	<-looked
}

package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestName_IsOneLineWhateverTheProcessCallsItself(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "7"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "7", "comm"), []byte("a\nb\x1b[31m\xff\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := Name(root, "7"), "a?b?[31m? (pid 7)"; got != want {
		t.Errorf("Name = %q, want %q", got, want)
	}
	if got, want := Name(root, "8"), "process 8"; got != want {
		t.Errorf("Name = %q, want %q", got, want)
	}
	if got := Name(Root, "self"); !strings.Contains(got, "proc.test") {
		t.Errorf("our own name is %q", got)
	}
}

func TestList_IsBounded(t *testing.T) {
	if got := List(Root, 2); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if got := List("/nonexistent", 2); got != nil {
		t.Errorf("%q", got)
	}
}

func TestOpenFile_SaysWhatADescriptorIsOpenOn(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	got, ok := OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	want := File{Dev: st.Dev, Ino: st.Ino, Rdev: st.Rdev, Mode: st.Mode & unix.S_IFMT}
	got.Mode &= unix.S_IFMT
	if !ok || got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if _, ok := OpenFile("/proc/self/fd/9999"); ok {
		t.Error("a descriptor that is not open")
	}
}

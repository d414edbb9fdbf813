package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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

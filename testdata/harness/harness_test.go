package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCommands_AreSplitAtDashes(t *testing.T) {
	got := commands([]string{"--", "a", "b", "--", "c"})
	want := [][]string{{"a", "b"}, {"c"}}
	if !slices.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Errorf("commands: %q, want %q", got, want)
	}
}

func TestRun_AdoptsDaemons(t *testing.T) {
	// A shell that ends leaves its child to us.
	script := `setsid sleep 47 >/dev/null 2>&1 & exit 0`
	harness := filepath.Join(t.TempDir(), "harness")
	if out, err := exec.Command("go", "build", "-o", harness, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(harness, "--", "sh", "-c", script).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "sleep 47") {
		t.Errorf("a daemon left behind: %v\n%s", err, out)
	}
	if !strings.HasSuffix(string(out), "\n0 passed, 0 failed, 0 skipped\n") {
		t.Errorf("last line of:\n%s", out)
	}
	out, err = exec.Command(harness, "--", "true").CombinedOutput()
	if err != nil {
		t.Errorf("nothing left behind: %v\n%s", err, out)
	}
}

package leftover

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMachine_NamesWhatIsLeft(t *testing.T) {
	dir := t.TempDir()
	scope := Scope{Temp: dir, Reap: true}
	before := scope.Read()
	if left := before.Left(scope.Read()); slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, dir) }) {
		t.Fatalf("left before anything was done: %q", left)
	}
	if err := os.WriteFile(filepath.Join(dir, "litter"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(before.Left(scope.Read()), "\n")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for _, want := range []string{filepath.Join(dir, "litter"), "sleep 60"} {
		if !strings.Contains(left, want) {
			t.Errorf("what is left lacks %q:\n%s", want, left)
		}
	}
}

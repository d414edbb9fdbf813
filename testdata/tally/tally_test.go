package tally

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTally_CountsLeaves(t *testing.T) {
	tests := []struct {
		name                    string
		source                  string
		passed, failed, skipped int
		shows                   string
	}{
		{"plain", `func TestA(t *testing.T) {}; func TestB(t *testing.T) { t.Fatal("no good") }; func TestC(t *testing.T) { t.Skip("no tool") }`, 1, 1, 1, "no good"},
		{"subtests are counted, their parent is not", `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Run("y", func(t *testing.T) {}) }`, 2, 0, 0, ""},
		{"a failed subtest fails once", `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) { t.Error("wrong") }); t.Run("y", func(t *testing.T) {}) }`, 1, 1, 0, "wrong"},
		{"a parent that fails by itself counts", `func TestA(t *testing.T) { t.Run("x", func(t *testing.T) {}); t.Error("parent") }`, 1, 1, 0, "parent"},
		{"a panic fails what was running", `func TestA(t *testing.T) { panic("boom") }; func TestB(t *testing.T) {}`, 0, 1, 0, "boom"},
		{"an exit fails what was running", `func TestA(t *testing.T) { os.Exit(3) }; var _ = os.Exit`, 0, 1, 0, "FAIL"},
		{"what is not built fails", `func TestA(t *testing.T) { nonsense() }`, 0, 1, 0, "nonsense"},
		{"a failure outside of tests fails", `func TestA(t *testing.T) {}; func TestMain(m *testing.M) { m.Run(); os.Exit(1) }`, 1, 1, 0, "FAIL"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "go.mod", "module example\n\ngo 1.25\n")
			write(t, dir, "x_test.go", "package x\n\nimport (\"testing\"; \"os\")\n\nvar _ = os.Args\n\n"+test.source+"\n")
			cmd := exec.Command("go", "test", "-json", "-vet=off", "./...")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
			json, _ := cmd.Output()
			var out bytes.Buffer
			c := New(&out, Brief)
			if err := c.Read(bytes.NewReader(json)); err != nil {
				t.Fatal(err)
			}
			passed, failed, skipped := c.Totals()
			if passed != test.passed || failed != test.failed || skipped != test.skipped {
				t.Errorf("counted %d passed, %d failed, %d skipped; want %d, %d, %d\n%s", passed, failed, skipped, test.passed, test.failed, test.skipped, &out)
			}
			if !strings.Contains(out.String(), test.shows) {
				t.Errorf("output lacks %q:\n%s", test.shows, &out)
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

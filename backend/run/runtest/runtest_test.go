package runtest_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/run/runtest"
)

// spy is a test that may fail.
type spy struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (s *spy) Helper()          {}
func (s *spy) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }
func (s *spy) Errorf(format string, args ...any) {
	s.errors = append(s.errors, fmt.Sprintf(format, args...))
}

func TestRunner_RecordsThenReplaysAndFailsTheTestThatDiffers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "t.json")
	ask := func(words ...string) []string {
		s := &spy{TB: t}
		r := runtest.Runner(s, file)
		for _, w := range words {
			out, err := r.Run(context.Background(), "echo", w)
			if err == nil && string(out) != w+"\n" {
				t.Errorf("echo %s wrote %q", w, out)
			}
		}
		for _, f := range s.cleanups {
			f()
		}
		return s.errors
	}
	t.Setenv("DOMFS_RECORD", "1")
	if errs := ask("a", "b"); len(errs) > 0 {
		t.Fatalf("recording: %q", errs)
	}
	t.Setenv("DOMFS_RECORD", "")
	if errs := ask("a", "b"); len(errs) > 0 {
		t.Errorf("the same again: %q", errs)
	}
	if errs := ask("a"); len(errs) != 1 || !strings.Contains(errs[0], "never asked for: echo b") {
		t.Errorf("a call left out: %q", errs)
	}
	if errs := ask("a", "b", "c"); len(errs) != 1 || !strings.Contains(errs[0], "echo c was called") {
		t.Errorf("a call more: %q", errs)
	}
}

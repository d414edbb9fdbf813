package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

func writePackage(t *testing.T, root, dir string, tests ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "package x\n"
	for _, name := range tests {
		text += "func " + name + "(t *testing.T) {}\n"
	}
	if err := os.WriteFile(filepath.Join(root, dir, "x_test.go"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestShare_GivesEachTestToOneMachine(t *testing.T) {
	root := t.TempDir()
	writePackage(t, root, "a", "TestLab_One", "TestLabTwo", "TestLab_Three", "TestLabel", "TestOther")
	writePackage(t, root, "b", "TestLab_Four")
	packages := []string{"a", "b"}
	for _, machines := range []int{2, 3, 4} {
		s, err := share(root, packages, "^TestLab[_A-Z]", machines)
		if err != nil || s.machines != machines {
			t.Fatalf("%d machines: %d, %v", machines, s.machines, err)
		}
		for _, p := range []struct {
			dir   string
			names []string
		}{{"a", []string{"TestLab_One", "TestLabTwo", "TestLab_Three"}}, {"b", []string{"TestLab_Four"}}} {
			for _, name := range p.names {
				count := 0
				for machine, run := range s.runs[p.dir] {
					if run != "" && regexp.MustCompile(run).MatchString(name) {
						count++
						if !slices.Contains(s.of(machine, packages), p.dir) {
							t.Errorf("machine %d does not know that it runs %s", machine, p.dir)
						}
					}
				}
				if count != 1 {
					t.Errorf("%d of %d machines run %s", count, machines, name)
				}
			}
		}
	}
}

func TestShare_OfSubtestsOrOfHardlyAnyTestIsOneMachines(t *testing.T) {
	root := t.TempDir()
	writePackage(t, root, "a", "TestLab_One", "TestLab_Two")
	for _, run := range []string{"TestLab_One/sub", "TestLab_One"} {
		s, err := share(root, []string{"a"}, run, 2)
		if err != nil || s.machines != 1 || s.runs != nil || !slices.Equal(s.of(0, []string{"a"}), []string{"a"}) {
			t.Errorf("%s: %+v, %v", run, s, err)
		}
	}
	if _, err := share(root, []string{"a"}, "(", 2); err == nil {
		t.Error("( can be run")
	}
}

func TestLines_OfSeveralWritersStayWhole(t *testing.T) {
	var out bytes.Buffer
	l := &lines{out: &out}
	var wg sync.WaitGroup
	for i := range 4 {
		w := l.part()
		wg.Go(func() {
			for k := range 200 {
				fmt.Fprintf(w, "writer %d ", i)
				fmt.Fprintf(w, "says %d\n", k)
			}
		})
	}
	wg.Wait()
	whole := regexp.MustCompile(`^writer \d says \d+$`)
	n := 0
	for line := range strings.Lines(out.String()) {
		n++
		if !whole.MatchString(strings.TrimSuffix(line, "\n")) {
			t.Errorf("a line is %q", line)
		}
	}
	if n != 800 {
		t.Errorf("%d lines", n)
	}
}

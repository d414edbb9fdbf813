package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What every test asks for has to be what make test or make lab-here installs, or a fresh
// machine skips it.
func TestDeps_HaveEveryToolThatTestsAskFor(t *testing.T) {
	text, err := os.ReadFile("../deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"go": true}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && slices.Contains([]string{"run", "demo", "test", "lvm"}, fields[0]) {
			for _, program := range fields[2:] {
				known[program] = true
			}
		}
	}
	call, name := regexp.MustCompile(`testneed\.Tools\(([^)]*)\)`), regexp.MustCompile(`"([^"]+)"`)
	asked := 0
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, c := range call.FindAllStringSubmatch(string(source), -1) {
			for _, n := range name.FindAllStringSubmatch(c[1], -1) {
				if asked++; !known[n[1]] {
					t.Errorf("%s asks for %s, which deps.txt does not have for make test", path, n[1])
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if asked < 10 {
		t.Errorf("only %d tools are asked for: is the pattern right?", asked)
	}
}

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A package has lab tests, or benchmarks, where one of its files has this. (TestLabel is a test of labels.)
var (
	labTest  = regexp.MustCompile(`(?m)^func TestLab[_A-Z]`)
	labBench = regexp.MustCompile(`(?m)^func BenchmarkLab[_A-Z]`)
)

// module is this repository's path in imports.
const module = "domfs"

// skippedDirs hold no source of ours.
var skippedDirs = []string{".git", "bin", ".demo", ".mutate", ".cache"}

// findPackages are the folders below root that have what is looked for, or those that are asked for.
func findPackages(root string, has *regexp.Regexp, only []string) ([]string, error) {
	var found []string
	err := walkSource(root, func(path string, d fs.DirEntry) error {
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		if dir := filepath.Dir(path); has.Match(text) && !slices.Contains(found, dir) {
			found = append(found, dir)
		}
		return nil
	})
	if err != nil || len(only) == 0 {
		return found, err
	}
	var chosen []string
	for _, name := range only {
		dir := filepath.Clean(strings.TrimPrefix(name, module+"/"))
		if !slices.Contains(found, dir) {
			return nil, fmt.Errorf("%s has no file with %s; there are: %s", name, has, strings.Join(found, " "))
		}
		chosen = append(chosen, dir)
	}
	return chosen, nil
}

func importPath(dir string) string { return module + "/" + filepath.ToSlash(dir) }

// walkSource visits the regular files below root, by paths relative to it.
func walkSource(root string, visit func(path string, d fs.DirEntry) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skippedDirs, d.Name()) {
			return fs.SkipDir
		}
		relative, err := filepath.Rel(root, path)
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return visit(relative, d)
	})
}

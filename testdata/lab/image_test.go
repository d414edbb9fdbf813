package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// builder is a source whose build counts how often it ran.
func builder(t *testing.T, script string) (source, count string) {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	source, count = t.TempDir(), filepath.Join(t.TempDir(), "count")
	write(t, filepath.Join(source, "build"), "#!/bin/sh\nset -e\necho once >>"+count+"\nmkdir \"$1\"\n"+script, 0o755)
	write(t, filepath.Join(source, "packages"), "lvm2\n", 0o644)
	return source, count
}

const goodBuild = `sleep 0.2; for f in vmlinuz initrd root.ext4; do echo $f >"$1/$f"; done`

func builds(t *testing.T, count string) int {
	t.Helper()
	text, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "once")
}

func TestImage_IsBuiltOnceForOneContent(t *testing.T) {
	source, count := builder(t, goodBuild)
	done := make(chan error)
	for range 3 { // labs of several worktrees at the same time
		go func() {
			i, err := findImage(context.Background(), source)
			if err == nil {
				_, err = os.Stat(i.root)
			}
			done <- err
		}()
	}
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := builds(t, count); n != 1 {
		t.Errorf("built %d times, want once", n)
	}
	before, err := findImage(context.Background(), source)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(source, "packages"), "lvm2\nxfsprogs\n", 0o644)
	after, err := findImage(context.Background(), source)
	if err != nil {
		t.Fatal(err)
	}
	if n := builds(t, count); n != 2 || before.root == after.root {
		t.Errorf("with another list of packages it is %s after %s, built %d times", after.root, before.root, n)
	}
}

func TestImage_AFailedBuildLeavesNone(t *testing.T) {
	source, count := builder(t, `echo "no such package" >&2; exit 1`)
	for range 2 {
		if _, err := findImage(context.Background(), source); err == nil || !strings.Contains(err.Error(), "no such package") {
			t.Errorf("error: %v", err)
		}
	}
	if n := builds(t, count); n != 2 {
		t.Errorf("built %d times, want at each try", n)
	}
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(cache + "/*"); len(names) != 1 { // the lock
		t.Errorf("the cache holds %q", names)
	}
}

func TestImage_OldOnesGo(t *testing.T) {
	source, _ := builder(t, goodBuild)
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	old, recent := filepath.Join(cache, "old"), filepath.Join(cache, "recent")
	for dir, age := range map[string]time.Duration{old: 2 * forgetAfter, recent: forgetAfter / 2} {
		write(t, filepath.Join(dir, "root.ext4"), "", 0o444)
		then := time.Now().Add(-age)
		if err := os.Chtimes(dir, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := findImage(context.Background(), source); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("an image that nobody used for long is kept")
	}
	if _, err := os.Stat(recent); err != nil {
		t.Error("an image that was used lately is gone")
	}
}

func TestPackages_AreThoseWithLabTests(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"a/a_test.go":       "package a\n\nfunc TestLab_Works(t *testing.T) {}\n",
		"a/more_test.go":    "package a\n\nfunc TestLab_Too(t *testing.T) {}\n",
		"b/b_test.go":       "package b\n\nfunc TestLabel_IsShort(t *testing.T) {}\n",
		"c/c.go":            "package c\n\nfunc TestLab_InNoTest(t *testing.T) {}\n",
		"d/d_test.go":       "package d\n\n// func TestLab_Comment\nvar x = `\n func TestLab_Indented`\n",
		"e/f/f_test.go":     "package f\n\nfunc TestLabSnapshot_Works(t *testing.T) {}\n",
		".demo/x/x_test.go": "package x\n\nfunc TestLab_Works(t *testing.T) {}\n",
	} {
		write(t, filepath.Join(root, path), text, 0o644)
	}
	found, err := findPackages(root, labTest, nil)
	if want := []string{"a", "e/f"}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %q, %v; want %q", found, err, want)
	}
	for _, name := range []string{"./e/f", "e/f/", "domfs/e/f"} {
		chosen, err := findPackages(root, labTest, []string{name})
		if want := []string{"e/f"}; err != nil || !slices.Equal(chosen, want) {
			t.Errorf("%s: %q, %v; want %q", name, chosen, err, want)
		}
	}
	if _, err := findPackages(root, labTest, []string{"b"}); err == nil || !strings.Contains(err.Error(), "a e/f") {
		t.Errorf("a package without lab tests: %v", err)
	}
	write(t, filepath.Join(root, "g/g_test.go"), "package g\n\nfunc BenchmarkLab_Runs(b *testing.B) {}\nfunc BenchmarkLabel(b *testing.B) {}\n", 0o644)
	if found, err := findPackages(root, labBench, nil); err != nil || !slices.Equal(found, []string{"g"}) {
		t.Errorf("with benchmarks: %q, %v", found, err)
	}
}

func TestMake_PassesFlagsWithAnyPattern(t *testing.T) {
	testneed.Tools(t, "make")
	for flags, want := range map[string][]string{
		``:                                  {},
		`-run ^TestLab_(A|B)$$ -brief`:      {"-run", "^TestLab_(A|B)$", "-brief"},
		`-run '^TestLab_(A|B)' -timeout 1m`: {"-run", "^TestLab_(A|B)", "-timeout", "1m"},
		`-run "TestLab_A;x&y*" -pkg=a,b`:    {"-run", "TestLab_A;x&y*", "-pkg=a,b"},
	} {
		for _, target := range []string{"lab", "lab-shell", "bench"} {
			cmd := exec.Command("make", "-n", "-C", "../..", "--no-print-directory", target, "LABFLAGS="+flags)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")} // not those of a make that we are run by
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			args, ok := strings.CutPrefix(lines[len(lines)-1], "bin/lab -go 'go' ")
			if !ok {
				args, ok = strings.CutPrefix(lines[len(lines)-1], "bin/lab -go 'go'")
			}
			shown, err := exec.Command("sh", "-c", `printf '%s\n' `+args).Output()
			got := strings.Fields(string(shown))
			if err != nil || !ok || len(got) < len(want) || !slices.Equal(got[len(got)-len(want):], want) {
				t.Errorf("make %s LABFLAGS=%s runs %q: %q, %v; want %q", target, flags, lines[len(lines)-1], got, err, want)
			}
		}
	}
}

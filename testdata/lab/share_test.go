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
	writePackage(t, root, "a", "TestLab_One", "TestLabTwo", "TestLab_Three", "TestLabel", "TestOther", "TestLabXen_Five")
	writePackage(t, root, "b", "TestLab_Four", "TestLabXenon", "TestLabX")
	writePackage(t, root, "c", "TestLabXen_Six")
	packages := []string{"a", "b", "c"}
	all := map[string]kind{"a TestLab_One": plain, "a TestLabTwo": plain, "a TestLab_Three": plain, "a TestLabXen_Five": withXen,
		"b TestLab_Four": plain, "b TestLabXenon": plain, "b TestLabX": plain, "c TestLabXen_Six": withXen}
	for _, slots := range []int{1, 2, 3, 4} {
		s, err := share(root, packages, testName, "^TestLab[_A-Z]", slots, nil)
		if err != nil || len(s.kinds) > slots+1 || s.kinds[0] != withXen || slices.Contains(s.kinds[1:], withXen) {
			t.Fatalf("%d slots: %v, %v", slots, s.kinds, err)
		}
		for test, kind := range all {
			dir, name, _ := strings.Cut(test, " ")
			count := 0
			for machine, run := range s.runs[dir] {
				if run != "" && regexp.MustCompile(run).MatchString(name) {
					count++
					if s.kinds[machine] != kind || !slices.Contains(s.of(machine, packages), dir) {
						t.Errorf("machine %d, %v, runs %s", machine, s.kinds[machine], name)
					}
				}
			}
			if count != 1 {
				t.Errorf("%d of %d machines run %s", count, len(s.kinds), name)
			}
		}
		for dir, runs := range s.runs {
			if all := strings.Join(runs, ""); strings.Contains(all, "TestLabel") || strings.Contains(all, "Other") {
				t.Errorf("%s: %q", dir, runs)
			}
		}
	}
}

func TestShare_RunsWhatAPatternSelects(t *testing.T) {
	root := t.TempDir()
	writePackage(t, root, "a", "TestLab_One", "TestLab_Two", "TestLabXen_Three", "TestLabXen_Four")
	tests := []struct {
		run   string
		kinds []kind
		runs  []string
	}{
		{"TestLab_One", []kind{plain}, []string{"^(TestLab_One)$"}},
		{"One|Two", []kind{plain, plain}, []string{"^(TestLab_One)$", "^(TestLab_Two)$"}},
		{"TestLabXen_Three", []kind{withXen}, []string{"^(TestLabXen_Three)$"}},
		{"TestLabXen", []kind{withXen}, []string{"^(TestLabXen_Three|TestLabXen_Four)$"}},
		{"Xen.*/phy", []kind{withXen}, []string{"^TestLabXen_Three$/phy|^TestLabXen_Four$/phy"}},
		{"TestLab_One/(a|b)/[/|]", []kind{plain}, []string{"^TestLab_One$/(a|b)/[/|]"}},
		{"One/a|Three/b|Four", []kind{withXen, plain}, []string{"^TestLabXen_Three$/b|^(TestLabXen_Four)$", "^TestLab_One$/a"}},
		{"(One|Three)$", []kind{withXen, plain}, []string{"^(TestLabXen_Three)$", "^(TestLab_One)$"}},
		{"Five", nil, nil},
	}
	for _, test := range tests {
		s, err := share(root, []string{"a"}, testName, test.run, 2, nil)
		if err != nil || !slices.Equal(s.kinds, test.kinds) || !slices.Equal(s.runs["a"], test.runs) {
			t.Errorf("%s: %+v, %v; want %v %q", test.run, s, err, test.kinds, test.runs)
		}
	}
	writePackage(t, root, "b", "BenchmarkLab_One", "BenchmarkLabXen_Two", "TestLabXen_Three")
	if s, err := share(root, []string{"b"}, benchmarkName, "^BenchmarkLab[_A-Z]", 1, nil); err != nil || !slices.Equal(s.kinds, []kind{withXen, plain}) ||
		!slices.Equal(s.runs["b"], []string{"^(BenchmarkLabXen_Two)$", "^(BenchmarkLab_One)$"}) {
		t.Errorf("benchmarks: %+v, %v", s, err)
	}
	if _, err := share(root, []string{"a"}, testName, "(", 2, nil); err == nil {
		t.Error("( can be run")
	}
}

func TestMachine_XenHasItsModules(t *testing.T) {
	i := image{kernel: "/k,1", unpacked: "/u,1", xen: "/x", initrd: "/i", root: "/r"}
	d := disks{payload: "/p", scratches: []string{"/s0", "/s1"}}
	argv := machineCommand(i, d, machineOptions{kind: withXen, memoryMiB: 2560, share: 1, machines: 2})
	value := func(flag string) string { return argv[slices.Index(argv, flag)+1] }
	modules := strings.Split(strings.ReplaceAll(value("-initrd"), ",,", "\x00"), ",")
	if len(modules) != 2 || !strings.HasPrefix(modules[0], "/u\x001 console=hvc0 ") || !strings.Contains(modules[0], "kvm\x00kvm_amd") || modules[1] != "/i" {
		t.Errorf("modules: %q", modules)
	}
	if value("-kernel") != "/x" || !strings.HasSuffix(value("-append"), " dom0_mem=1536M,max:1536M") || value("-smp") != "1" {
		t.Errorf("command: %q", argv)
	}
	argv = machineCommand(i, d, machineOptions{memoryMiB: 2560, machines: 1})
	if value("-kernel") != "/k,1" || value("-initrd") != "/i" || !strings.HasPrefix(value("-append"), "console=ttyS0 ") || value("-smp") != "2" {
		t.Errorf("command: %q", argv)
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

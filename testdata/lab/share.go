package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// shares are the tests that each of several machines runs.
type shares struct {
	kinds []kind              // of the machines, in the order in which they are started
	runs  map[string][]string // by package, by machine: as go test's -run, or -bench; "" for none
}

// kind is what a machine boots.
type kind int

const (
	plain   kind = iota // Debian's kernel
	withXen             // Xen, and that kernel as its dom0
)

// What is dealt out: functions of these names.
var (
	testName      = regexp.MustCompile(`(?m)^func (TestLab[_A-Z]\w*)\(`)
	benchmarkName = regexp.MustCompile(`(?m)^func (BenchmarkLab[_A-Z]\w*)\(`)
	xenName       = regexp.MustCompile(`^(Test|Benchmark)LabXen[_A-Z]`)
)

func kindOf(name string) kind {
	if xenName.MatchString(name) {
		return withXen
	}
	return plain
}

// share deals the functions of packages whose names are such, and which run selects, out to slots, each for one machine at a
// time, so that all are done at about the same time (times): those that need Xen to one machine, others to a machine for
// each slot. Where Xen has a slot of its own, the machine after it is there for what is left when the others have enough.
func share(root string, packages []string, names *regexp.Regexp, run string, slots int, times times) (shares, error) {
	p, err := parsePattern(run)
	if err != nil {
		return shares{}, fmt.Errorf("-run: %w", err)
	}
	found := map[string][]string{} // by package: names
	d := newDeal(slots)
	for _, dir := range packages {
		all, err := functions(root, dir, names)
		if err != nil {
			return shares{}, err
		}
		for _, name := range all {
			if p.selects(name) {
				found[dir] = append(found[dir], name)
				d.add(test{dir, name}, times)
			}
		}
	}
	machineOf, kinds := d.out()
	s := shares{kinds: kinds, runs: map[string][]string{}}
	for _, dir := range packages {
		dealt := make([][]string, len(s.kinds))
		for _, name := range found[dir] {
			machine := machineOf[test{dir, name}]
			dealt[machine] = append(dealt[machine], name)
		}
		for _, names := range dealt {
			s.runs[dir] = append(s.runs[dir], p.only(names))
		}
	}
	return s, nil
}

// functions are a package's of such names.
func functions(root, dir string, names *regexp.Regexp) (found []string, err error) {
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, match := range names.FindAllSubmatch(text, -1) {
			found = append(found, string(match[1]))
		}
	}
	return found, nil
}

// of are the packages of which a machine runs something.
func (s shares) of(machine int, packages []string) []string {
	return slices.DeleteFunc(slices.Clone(packages), func(p string) bool { return s.runs[p][machine] == "" })
}

// pattern is what go test's -run says: alternatives, each of a name and names of subtests.
type pattern []alternative

type alternative struct {
	name *regexp.Regexp
	rest string // "" or from the / on
}

func parsePattern(run string) (pattern, error) {
	var p pattern
	for _, text := range splitPattern(run, '|') {
		first := splitPattern(text, '/')[0]
		name, err := regexp.Compile(first)
		if err != nil {
			return nil, err
		}
		p = append(p, alternative{name: name, rest: text[len(first):]})
	}
	return p, nil
}

// splitPattern splits at a separator that is in no brackets, as the testing package does.
func splitPattern(text string, separator byte) []string {
	var parts []string
	brackets, parentheses, start := 0, 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\':
			i++
		case c == '[':
			brackets++
		case c == ']':
			brackets = max(0, brackets-1)
		case c == '(' && brackets == 0:
			parentheses++
		case c == ')' && brackets == 0:
			parentheses--
		case c == separator && brackets == 0 && parentheses == 0:
			parts = append(parts, text[start:i])
			start = i + 1
		}
	}
	return append(parts, text[start:])
}

func (p pattern) selects(name string) bool {
	return slices.ContainsFunc(p, func(a alternative) bool { return a.name.MatchString(name) })
}

// only is the pattern of these names alone, "" for none.
func (p pattern) only(names []string) string {
	var whole, parts []string
	for _, name := range names {
		for _, a := range p {
			if !a.name.MatchString(name) {
				continue
			}
			if a.rest == "" {
				whole = append(whole, name)
				break
			}
			parts = append(parts, "^"+name+"$"+a.rest)
		}
	}
	if len(whole) > 0 {
		parts = append(parts, "^("+strings.Join(whole, "|")+")$")
	}
	return strings.Join(parts, "|")
}

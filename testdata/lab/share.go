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
	machines int
	runs     map[string][]string // by package, by machine: as go test's -run; nil where there is one machine
}

var testName = regexp.MustCompile(`(?m)^func (TestLab[_A-Z]\w*)\(`)

// share deals the tests of packages that run selects out to machines, one after another. Where run speaks of
// subtests, or of what no machine could share, there is one.
func share(root string, packages []string, run string, machines int) (shares, error) {
	only, err := regexp.Compile(run)
	if err != nil {
		return shares{}, fmt.Errorf("-run: %w", err)
	}
	one := shares{machines: 1}
	if machines < 2 || strings.Contains(run, "/") {
		return one, nil
	}
	s := shares{machines: machines, runs: map[string][]string{}}
	next := 0
	for _, p := range packages {
		files, err := filepath.Glob(filepath.Join(root, p, "*_test.go"))
		if err != nil {
			return shares{}, err
		}
		dealt := make([][]string, machines)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return shares{}, err
			}
			for _, match := range testName.FindAllSubmatch(text, -1) {
				if name := string(match[1]); only.MatchString(name) {
					dealt[next%machines] = append(dealt[next%machines], name)
					next++
				}
			}
		}
		for _, names := range dealt {
			run := ""
			if len(names) > 0 {
				run = "^(" + strings.Join(names, "|") + ")$"
			}
			s.runs[p] = append(s.runs[p], run)
		}
	}
	if next < machines {
		return one, nil
	}
	return s, nil
}

// of are the packages of which a machine runs tests.
func (s shares) of(machine int, packages []string) []string {
	if s.runs == nil {
		return packages
	}
	return slices.DeleteFunc(slices.Clone(packages), func(p string) bool { return s.runs[p][machine] == "" })
}

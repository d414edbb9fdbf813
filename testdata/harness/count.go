package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// event is one line of test2json's output, as `go doc test2json` has it.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output and build-fail
	Test       string
	Output     string
	Elapsed    float64
}

// count follows the tests of one or more runs.
type count struct {
	out     io.Writer
	verbose bool
	results map[string]map[string]string // by package, by test: run, pass, fail, skip
	output  map[string]*bytes.Buffer     // by package and test, while it runs
	passed  int
	failed  int
	skipped int
}

func newCount(out io.Writer, verbose bool) *count {
	return &count{out: out, verbose: verbose, results: map[string]map[string]string{}, output: map[string]*bytes.Buffer{}}
}

// read follows one run to its end. Lines that are not events are shown as they are.
func (c *count) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				c.out.Write(line)
			} else {
				c.event(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *count) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(c.out, e.Output)
	case "run":
		c.set(e.Package, e.Test, "run")
	case "output":
		if c.output[key] == nil {
			c.output[key] = &bytes.Buffer{}
		}
		c.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			c.endPackage(e)
			return
		}
		c.set(e.Package, e.Test, e.Action)
		c.show(e, key)
	}
}

func (c *count) set(pkg, test, result string) {
	if test == "" {
		return
	}
	if c.results[pkg] == nil {
		c.results[pkg] = map[string]string{}
	}
	c.results[pkg][test] = result
}

// show prints the end of a test: in full where it failed or was skipped.
func (c *count) show(e event, key string) {
	out := c.output[key]
	delete(c.output, key)
	if out == nil || (e.Action == "pass" && !c.verbose) {
		return
	}
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(c.out, line)
		}
	}
}

// endPackage counts a package that has ended, and forgets it: the next run may test it
// again.
func (c *count) endPackage(e event) {
	results := c.results[e.Package]
	failedBefore := c.failed
	for test, result := range results {
		below, belowFailed := subtests(results, test)
		switch {
		case result == "run": // the package ended under it: a panic, a timeout
			c.failed++
			fmt.Fprintf(c.out, "--- FAIL: %s did not end\n", test)
			c.show(event{Action: "fail"}, e.Package+" "+test)
		case result == "fail" && !belowFailed:
			c.failed++
		case below:
		case result == "pass":
			c.passed++
		case result == "skip":
			c.skipped++
		}
	}
	delete(c.results, e.Package)
	own := c.output[e.Package+" "]
	delete(c.output, e.Package+" ")
	if e.Action == "fail" && c.failed == failedBefore {
		c.failed++ // it was not built, or failed outside of its tests
	}
	switch {
	case e.Action == "fail":
		if own != nil {
			c.out.Write(own.Bytes())
		}
		fmt.Fprintf(c.out, "FAIL  %s  %.1fs\n", e.Package, e.Elapsed)
	case len(results) > 0:
		fmt.Fprintf(c.out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
	}
}

// subtests tells whether a test has subtests, and whether one of them failed or did
// not end.
func subtests(results map[string]string, test string) (any, failed bool) {
	for other, result := range results {
		if strings.HasPrefix(other, test+"/") {
			any = true
			failed = failed || result == "fail" || result == "run"
		}
	}
	return any, failed
}

func (c *count) totals() (passed, failed, skipped int) { return c.passed, c.failed, c.skipped }

// Package tally follows tests as test2json tells of them: it shows them in a form for
// people, and counts those without subtests of their own.
package tally

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

// Mode is what is shown of a test's output.
type Mode int

const (
	Brief   Mode = iota // of tests that fail or are skipped, when they end
	Verbose             // of each test, when it ends
	Live                // all of it, as it comes
)

// Tally follows the tests of one or more runs.
type Tally struct {
	out     io.Writer
	mode    Mode
	results map[string]map[string]string  // by package, by test: run, pass, fail, skip
	output  map[string]*bytes.Buffer      // by package and test, while it runs
	seconds map[string]map[string]float64 // by package, by test without those below others: of those that passed
	passed  int
	failed  int
	skipped int
}

// New is a tally of nothing, which shows what it follows on out.
func New(out io.Writer, mode Mode) *Tally {
	return &Tally{out: out, mode: mode, results: map[string]map[string]string{}, seconds: map[string]map[string]float64{}, output: map[string]*bytes.Buffer{}}
}

// Read follows one run to its end. Lines that are not events are shown as they are.
func (t *Tally) Read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				t.out.Write(line)
			} else {
				t.event(e)
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

func (t *Tally) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(t.out, e.Output)
	case "run":
		t.set(e.Package, e.Test, "run")
	case "output":
		if t.mode == Live {
			if !strings.HasPrefix(e.Output, "=== ") && (e.Test != "" || !ending(e.Output)) {
				fmt.Fprint(t.out, e.Output)
			}
			return
		}
		if t.output[key] == nil {
			t.output[key] = &bytes.Buffer{}
		}
		t.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(e)
			return
		}
		t.set(e.Package, e.Test, e.Action)
		t.time(e)
		t.show(e, key)
	}
}

// ending tells whether a line is what a test binary or go test end with: we say it in our own way.
func ending(line string) bool {
	return line == "PASS\n" || line == "FAIL\n" || strings.HasPrefix(line, "FAIL\t") || strings.HasPrefix(line, "ok  \t")
}

func (t *Tally) set(pkg, test, result string) {
	if test == "" {
		return
	}
	if t.results[pkg] == nil {
		t.results[pkg] = map[string]string{}
	}
	t.results[pkg][test] = result
}

func (t *Tally) time(e event) {
	if e.Action != "pass" || strings.Contains(e.Test, "/") {
		return
	}
	if t.seconds[e.Package] == nil {
		t.seconds[e.Package] = map[string]float64{}
	}
	t.seconds[e.Package][e.Test] = e.Elapsed
}

// Seconds are how long tests took that passed and are no subtests, by package and name.
func (t *Tally) Seconds() map[string]map[string]float64 { return t.seconds }

// show prints the end of a test: in full where it failed or was skipped.
func (t *Tally) show(e event, key string) {
	out := t.output[key]
	delete(t.output, key)
	if out == nil || (e.Action == "pass" && t.mode == Brief) {
		return
	}
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(t.out, line)
		}
	}
}

// endPackage counts a package that has ended, and forgets it: the next run may test it
// again.
func (t *Tally) endPackage(e event) {
	results := t.results[e.Package]
	failedBefore := t.failed
	for test, result := range results {
		below, belowFailed := subtests(results, test)
		switch {
		case result == "run": // the package ended under it: a panic, a timeout
			t.failed++
			fmt.Fprintf(t.out, "--- FAIL: %s did not end\n", test)
			t.show(event{Action: "fail"}, e.Package+" "+test)
		case result == "fail" && !belowFailed:
			t.failed++
		case below:
		case result == "pass":
			t.passed++
		case result == "skip":
			t.skipped++
		}
	}
	delete(t.results, e.Package)
	own := t.output[e.Package+" "]
	delete(t.output, e.Package+" ")
	if e.Action == "fail" && t.failed == failedBefore {
		t.failed++ // it was not built, or failed outside of its tests
	}
	switch {
	case e.Action == "fail":
		if own != nil {
			t.out.Write(own.Bytes())
		}
		fmt.Fprintf(t.out, "FAIL  %s  %.1fs\n", e.Package, e.Elapsed)
	case len(results) > 0:
		fmt.Fprintf(t.out, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
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

// Fail counts a failure that is no test's, and shows it.
func (t *Tally) Fail(format string, args ...any) {
	t.failed++
	fmt.Fprintf(t.out, "FAIL: "+format+"\n", args...)
}

// Totals counts the tests of the packages that have ended.
func (t *Tally) Totals() (passed, failed, skipped int) { return t.passed, t.failed, t.skipped }

// Last is the line that ends a run of tests.
func (t *Tally) Last() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.passed, t.failed, t.skipped)
}

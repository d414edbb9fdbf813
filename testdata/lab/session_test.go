package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/testdata/lab/report"
	"domfs/testdata/tally"
)

// A machine in these tests is a shell script: standard output is its console, descriptor
// 3 its report.

// helperEnv makes the test binary be a lab that waits for its machine: see TestMain.
const helperEnv = "DOMFS_LAB_TEST_HELPER"

func TestMain(m *testing.M) {
	if script := os.Getenv(helperEnv); script != "" {
		s := newSession(os.Stdout)
		s.run(context.Background(), []string{"sh", "-c", script})
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newSession(out *os.File) *session {
	return &session{goTool: "go", tally: tally.New(out, tally.Brief), out: out, silence: time.Minute, deadline: time.Minute}
}

// play runs a machine that reports lines, after and before pieces of script.
func play(t *testing.T, s *session, lines []report.Line, before, after string) (ok bool, shown string) {
	t.Helper()
	var text bytes.Buffer
	for _, l := range lines {
		if err := json.NewEncoder(&text).Encode(l); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "report")
	if err := os.WriteFile(file, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s.tally, s.out = tally.New(&out, tally.Brief), &out
	if s.silence == 0 {
		s.silence = time.Minute
	}
	if s.deadline == 0 {
		s.deadline = time.Minute
	}
	ok = s.run(context.Background(), []string{"sh", "-c", before + "\ncat " + file + " >&3\n" + after})
	return ok, out.String() + s.tally.Last()
}

// ran is what a machine reports of one package.
func ran(pkg, output string, status int) []report.Line {
	lines := []report.Line{{Kind: report.Begin, Package: pkg}}
	// In pieces, as a pipe has them.
	for i := 0; i < len(output); i += 7 {
		lines = append(lines, report.Line{Kind: report.Output, Package: pkg, Bytes: []byte(output[i:min(i+7, len(output))])})
	}
	return append(lines, report.Line{Kind: report.End, Package: pkg, Status: status, Seconds: 1})
}

const (
	ready = report.Ready
	// As -test.v=test2json has it.
	passed  = "\x16=== RUN   TestLab_A\n\x16--- PASS: TestLab_A (0.01s)\n\x16=== NAME  \n"
	failed  = "\x16=== RUN   TestLab_B\n    b_test.go:1: no good\n\x16--- FAIL: TestLab_B (0.01s)\n\x16=== NAME  \n"
	skip    = "\x16=== RUN   TestLab_C\n    c_test.go:1: not here\n\x16--- SKIP: TestLab_C (0.00s)\n\x16=== NAME  \n"
	running = "\x16=== RUN   TestLab_B\n"
)

// around is a whole report.
func around(lines ...[]report.Line) []report.Line {
	all := []report.Line{{Kind: ready}}
	for _, l := range lines {
		all = append(all, l...)
	}
	return append(all, report.Line{Kind: report.Done})
}

func TestSession_CountsAndTellsTheTruth(t *testing.T) {
	left := func(pkg string) []report.Line {
		lines := ran(pkg, passed+"\x16PASS\n", 0)
		return append(lines[:len(lines)-1], report.Line{Kind: report.Left, Package: pkg, Text: "loop device loop0: /x"}, lines[len(lines)-1])
	}
	tests := []struct {
		name   string
		lines  []report.Line
		after  string // of the machine, once it has reported
		expect []string
		ok     bool
		shows  []string
	}{
		{"all pass", around(ran("domfs/a", passed+skip+"\x16PASS\n", 0), ran("domfs/b", passed+"\x16PASS\n", 0)), "", []string{"domfs/a", "domfs/b"}, true,
			[]string{"not here", "ok    domfs/a", "2 passed, 0 failed, 1 skipped"}},
		{"a test fails", around(ran("domfs/a", passed+failed+"\x16FAIL\n", 1)), "", []string{"domfs/a"}, false,
			[]string{"no good", "1 passed, 1 failed, 0 skipped"}},
		{"a panic", around(ran("domfs/a", running+"panic: boom\n\ngoroutine 1 [running]:\n", 2)), "", []string{"domfs/a"}, false,
			[]string{"boom", "0 passed, 1 failed, 0 skipped"}},
		{"a status without a failed test", around(ran("domfs/a", passed+"\x16PASS\n", 3)), "", []string{"domfs/a"}, false,
			[]string{"1 passed, 1 failed, 0 skipped"}},
		{"killed", around(ran("domfs/a", running, -1)), "", []string{"domfs/a"}, false,
			[]string{"TestLab_B did not end", "0 passed, 1 failed, 0 skipped"}},
		{"something is left", around(left("domfs/a")), "", []string{"domfs/a"}, false,
			[]string{"domfs/a left behind: loop device loop0: /x", "1 passed, 1 failed, 0 skipped"}},
		{"the guest itself fails", []report.Line{{Kind: ready}, {Kind: report.Trouble, Text: "no plan"}, {Kind: report.Done}}, "", []string{"domfs/a"}, false,
			[]string{"no plan", "domfs/a did not run", "0 passed, 1 failed, 0 skipped"}},
		{"a package is missing", around(ran("domfs/a", passed+"\x16PASS\n", 0)), "", []string{"domfs/a", "domfs/b"}, false,
			[]string{"domfs/b did not run", "1 passed, 1 failed, 0 skipped"}},
		{"one of two packages is not well", around(left("domfs/a"), ran("domfs/b", passed+"\x16PASS\n", 0)), "", []string{"domfs/a", "domfs/b"}, false,
			[]string{"FAIL  domfs/a", "ok    domfs/b", "2 passed, 1 failed, 0 skipped"}},
		{"it ends without a word", around(ran("domfs/a", passed, 0)), "", []string{"domfs/a"}, true, []string{"1 passed, 0 failed, 0 skipped"}},
		{"no test of that name", around(ran("domfs/a", "testing: warning: no tests to run\n\x16PASS\n", 0)), "", []string{"domfs/a"}, false,
			[]string{"0 passed, 1 failed, 0 skipped"}},
		{"it ends too early", append([]report.Line{{Kind: ready}}, ran("domfs/a", passed+"\x16PASS\n", 0)...), "", []string{"domfs/a"}, false,
			[]string{"ended before its tests did", "1 passed, 1 failed, 0 skipped"}},
		{"it ends in the midst of a package", []report.Line{{Kind: ready}, {Kind: report.Begin, Package: "domfs/a"}, {Kind: report.Output, Package: "domfs/a", Bytes: []byte(passed + running)}}, "", []string{"domfs/a"}, false,
			[]string{"TestLab_B did not end", "domfs/a did not run to its end", "1 passed, 2 failed, 0 skipped"}},
		{"it does not start", nil, "exit 1", []string{"domfs/a"}, false, []string{"exit status 1", "0 passed, 1 failed, 0 skipped"}},
		{"QEMU fails in the end", around(ran("domfs/a", passed+"\x16PASS\n", 0)), "echo no more; exit 1", []string{"domfs/a"}, false,
			[]string{"exit status 1", "no more", "1 passed, 1 failed, 0 skipped"}},
		{"an oops while it powers off", around(ran("domfs/a", passed+"\x16PASS\n", 0)), "echo '[ 9.1] Oops: 0002 [#1] PREEMPT SMP'", []string{"domfs/a"}, false,
			[]string{"Oops: 0002", "1 passed, 1 failed, 0 skipped"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &session{goTool: "go", expected: test.expect}
			ok, shown := play(t, s, test.lines, "", test.after)
			if ok != test.ok {
				t.Errorf("well: %v, want %v", ok, test.ok)
			}
			for _, want := range test.shows {
				if !strings.Contains(shown, want) {
					t.Errorf("output lacks %q:\n%s", want, shown)
				}
			}
		})
	}
}

func TestSession_ShowsWhatBenchmarksMeasure(t *testing.T) {
	const measured = "goos: linux\nBenchmarkLab_A/thick-2 \t       3\t         1.040 mkdir/bare\n--- BENCH: BenchmarkLab_A/thick-2\n    a_test.go:1: lvcreate\n"
	left := ran("domfs/a", measured+"PASS\n", 0)
	left = append(left[:len(left)-1], report.Line{Kind: report.Left, Package: "domfs/a", Text: "volume a"}, left[len(left)-1])
	tests := []struct {
		name  string
		lines []report.Line
		ok    bool
		shows string
	}{
		{"all is well", around(ran("domfs/a", measured+"PASS\n", 0)), true, measured},
		{"one fails", around(ran("domfs/a", measured+"--- FAIL: BenchmarkLab_B\n    b_test.go:1: no good\nFAIL\n", 1)), false, "no good"},
		{"something is left", around(left), false, "left behind: volume a"},
		{"none of that name", around(ran("domfs/a", "PASS\n", 0)), false, "no benchmark has such a name"},
		{"one that does not end", around(ran("domfs/a", "BenchmarkLab_A-2 \t", -1)), false, "exit status -1"},
		{"the machine ends too early", append([]report.Line{{Kind: ready}}, ran("domfs/a", measured, 0)[:3]...), false, "did not run to its end"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ok, shown := play(t, &session{expected: []string{"domfs/a"}, bench: true}, test.lines, "", "")
			if ok != test.ok || !strings.Contains(shown, test.shows) {
				t.Errorf("well: %v, want %v, and %q in\n%s", ok, test.ok, test.shows, shown)
			}
		})
	}
}

func TestSession_EndsAMachineThatIsNotWell(t *testing.T) {
	oops := "echo '[   31.1] BUG: kernel NULL pointer dereference, address: 0000000000000000'; echo '[   31.2] Call Trace:'"
	tests := []struct {
		name              string
		before, after     string
		lines             []report.Line
		silence, deadline time.Duration
		shows             []string
	}{
		{"an oops", "", oops, []report.Line{{Kind: ready}}, 0, 0, []string{"kernel says", "NULL pointer dereference", "Call Trace"}},
		{"an oops in the midst of tests", "", oops, []report.Line{{Kind: ready}, {Kind: report.Begin, Package: "domfs/a"}, {Kind: report.Output, Package: "domfs/a", Bytes: []byte(running + "half a line")}}, 0, 0,
			[]string{"NULL pointer dereference", "TestLab_B did not end"}},
		{"silence at boot", "", "", nil, 300 * time.Millisecond, 0, []string{"it hangs"}},
		{"silence in the midst", "", "", []report.Line{{Kind: ready}, {Kind: report.Begin, Package: "domfs/a"}}, 300 * time.Millisecond, 0, []string{"it hangs"}},
		{"noise without an end", "while :; do echo '{\"Kind\":\"ready\"}' >&3; sleep 0.1; done &", "", nil, time.Minute, 700 * time.Millisecond, []string{"not done after"}},
		// The console is not the report: a kernel may chatter while its tests hang.
		{"chatter on the console", "while :; do echo chatter; sleep 0.1; done &", "", nil, 700 * time.Millisecond, 0, []string{"it hangs"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			s := &session{goTool: "go", expected: []string{"domfs/a"}, silence: test.silence, deadline: test.deadline}
			start := time.Now()
			ok, shown := play(t, s, test.lines, test.before, test.after+"\nsleep 300 &\necho $! >"+pidFile+"\nwait")
			if ok {
				t.Error("all is said to be well")
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v to see", took)
			}
			for _, want := range append(test.shows, "domfs/a did not run to its end") {
				if !strings.Contains(shown, want) {
					t.Errorf("output lacks %q:\n%s", want, shown)
				}
			}
			ends(t, readPid(t, pidFile))
		})
	}
}

func TestSession_EndsTheMachineWhenInterrupted(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(context.Background())
	var out bytes.Buffer
	s := &session{goTool: "go", tally: tally.New(&out, tally.Brief), out: &out, silence: time.Minute, deadline: time.Minute, onReady: cancel}
	if s.run(ctx, []string{"sh", "-c", "echo $$ >" + pidFile + "; echo '{\"Kind\":\"ready\"}' >&3; exec sleep 300"}) {
		t.Error("all is said to be well")
	}
	if !strings.Contains(out.String(), "interrupted") {
		t.Errorf("output:\n%s", &out)
	}
	ends(t, readPid(t, pidFile))
}

func TestSession_MachineEndsWithTheLab(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	lab := exec.Command(os.Args[0])
	lab.Env = append(os.Environ(), helperEnv+"=echo $$ >"+pidFile+".new; mv "+pidFile+".new "+pidFile+"; exec sleep 300")
	if err := lab.Start(); err != nil {
		t.Fatal(err)
	}
	pid := readPid(t, pidFile)
	if !alive(pid) {
		t.Fatal("the machine has not started")
	}
	if err := lab.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = lab.Wait()
	ends(t, pid)
}

// ends fails the test where a process that was killed goes on.
func ends(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d of the machine outlives it", pid)
		}
	}
}

func readPid(t *testing.T, file string) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(file)
		if err == nil && len(text) > 0 {
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		if time.Now().After(deadline) {
			t.Fatalf("no process told its number: %v", err)
		}
	}
}

// alive tells whether a process runs; one whose status nobody has taken does not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

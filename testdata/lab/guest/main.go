// Command guest runs in the lab's machine: it runs the test binaries that the plan names,
// one by one, and tells the host what they say and what they leave behind.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"domfs/backend/backendtest/leftover"
	"domfs/testdata/lab/report"

	"golang.org/x/sys/unix"
)

const (
	portLimit   = 20 * time.Second // until udev has named the port
	settleLimit = 5 * time.Second  // for what ends by itself after a binary
	killAfter   = 30 * time.Second // past a binary's own timeout
)

func main() {
	if err := run(); err != nil {
		// The console is what is left to say it on.
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	h := &host{out: json.NewEncoder(port)}
	h.say(report.Line{Kind: report.Ready})
	if err := tests(h); err != nil {
		h.say(report.Line{Kind: report.Trouble, Text: err.Error()})
	}
	h.say(report.Line{Kind: report.Done})
	return nil
}

func openPort() (*os.File, error) {
	for deadline := time.Now().Add(portLimit); ; time.Sleep(50 * time.Millisecond) {
		port, err := os.OpenFile(report.Port, os.O_WRONLY, 0)
		if err == nil || time.Now().After(deadline) {
			return port, err
		}
	}
}

func tests(h *host) error {
	// What a test leaves running becomes our child, wherever it was started from.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	text, err := os.ReadFile(report.Plan)
	if err != nil {
		return err
	}
	var plan report.Tests
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("%s: %w", report.Plan, err)
	}
	share, err := shareOf()
	if err != nil {
		return err
	}
	for _, b := range plan.Binaries {
		if b.Runs[share] == "" {
			continue // another machine's
		}
		if err := one(h, plan, b, b.Runs[share]); err != nil {
			return fmt.Errorf("%s: %w", b.Package, err)
		}
	}
	return nil
}

// shareOf is which machine of several this is.
func shareOf() (int, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	for word := range strings.FieldsSeq(string(text)) {
		if number, ok := strings.CutPrefix(word, report.ShareKey+"="); ok {
			return strconv.Atoi(number)
		}
	}
	return 0, nil
}

// one runs a binary's tests, and tells what they leave.
func one(h *host, plan report.Tests, b report.Binary, run string) error {
	temp, err := os.MkdirTemp(report.Temp, "")
	if err != nil {
		return err
	}
	// Tests run programs as other users, who must get in.
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	scope := leftover.Scope{Temp: temp, Volumes: true, Reap: true}
	before := scope.Read()
	h.say(report.Line{Kind: report.Begin, Package: b.Package})
	start := time.Now()
	status, err := execute(h, plan, b, run, temp)
	if err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	left, _ := scope.Settle(before, settleLimit)
	for _, left := range left {
		h.say(report.Line{Kind: report.Left, Package: b.Package, Text: left})
	}
	leftover.EndChildren()
	h.say(report.Line{Kind: report.End, Package: b.Package, Status: status, Seconds: took})
	return nil
}

// execute is the exit status of a binary.
func execute(h *host, plan report.Tests, b report.Binary, run, temp string) (int, error) {
	limit := time.Duration(plan.TimeoutSeconds) * time.Second
	args := []string{"-test.v=test2json", "-test.run=" + run}
	if plan.Bench {
		args = []string{"-test.run=^$", "-test.bench=" + run, "-test.benchtime=3x"}
	}
	args = append(args, "-test.paniconexit0", fmt.Sprintf("-test.timeout=%v", limit))
	cmd := exec.Command(filepath.Join(report.Payload, b.Path), args...)
	cmd.Dir = filepath.Join(report.Source, b.Dir)
	// Everything is there, so nothing may be skipped for want of it.
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "DOMFS_LAB=1", "DOMFS_NEED_ALL=1", "DOMFS_PROGRAM="+report.Program, "DOMFS_LAB_DOMU="+report.DomU)
	cmd.Stdout = output{h, b.Package}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = 5 * time.Second // a daemon that it left may hold its output open
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	kill := time.AfterFunc(limit+killAfter, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	err := cmd.Wait()
	if err != nil && cmd.ProcessState == nil {
		return 0, err
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		return code, nil
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		h.say(report.Line{Kind: report.Left, Package: b.Package, Text: "its output, held open by a process that outlived it"})
		return 0, nil
	}
	return 0, err
}

// host is whom we tell.
type host struct {
	mu  sync.Mutex
	out *json.Encoder // guarded by mu
}

func (h *host) say(l report.Line) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.out.Encode(l); err != nil {
		fmt.Fprintln(os.Stderr, "guest: tell the host:", err)
	}
}

// output tells what a binary writes.
type output struct {
	h   *host
	pkg string
}

var _ io.Writer = output{}

func (o output) Write(p []byte) (int, error) {
	o.h.say(report.Line{Kind: report.Output, Package: o.pkg, Bytes: p})
	return len(p), nil
}

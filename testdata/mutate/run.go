package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	timeLimit = 10 * time.Second
	// dumpTime is what a worker that was asked for its goroutines has to write them.
	dumpTime = 3 * time.Second
	maxStack = 6000 // bytes of a panic that are shown
)

// worker is the program that reads: this one.
var worker = os.Executable

// read has a worker read an image, within timeLimit.
func read(ctx context.Context, j *job, files []*os.File) (*report, error) {
	return readWithin(ctx, timeLimit, j, files)
}

func readWithin(ctx context.Context, limit time.Duration, j *job, files []*os.File) (*report, error) {
	self, err := worker()
	if err != nil {
		return nil, err
	}
	var in, out, stderr bytes.Buffer
	if err := gob.NewEncoder(&in).Encode(j); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(bounded, self, workerArg)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &stderr
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all")
	// A Ctrl-C of the terminal reaches us only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = dumpTime
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil {
		r := &report{}
		if err := json.Unmarshal(out.Bytes(), r); err != nil {
			return nil, fmt.Errorf("the worker's report: %w", err)
		}
		if r.PeakKiB<<10 > memoryLimit {
			r.Problems = append(r.Problems, problem{overrun, fmt.Sprintf("%d KiB at its peak", r.PeakKiB)})
		}
		return r, nil
	}
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) && bounded.Err() == nil {
		return nil, err // it did not begin
	}
	return &report{Problems: []problem{died(bounded.Err() != nil, err, stderr.String())}}, nil
}

const (
	overrun = "too much memory"
	hang    = "no end"
	crash   = "a panic"
)

// died says how a worker ended that has no report.
func died(late bool, err error, said string) problem {
	what := crash
	switch {
	case late:
		what = hang
	case strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory") || strings.Contains(said, "errno=12"):
		what = overrun
	}
	if len(said) > maxStack {
		said = said[:maxStack] + "\n…"
	}
	return problem{what, fmt.Sprintf("%v\n%s", err, said)}
}

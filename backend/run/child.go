package run

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// Self is our own program, whatever has become of its file since it was started.
const Self = "/proc/self/exe"

// maxLine is the longest line, in bytes, that a Child may write.
const maxLine = 64 << 10

// Child is a program that runs beside us and talks to us over its standard input and output, in lines. It has
// the surroundings that Run gives, but for its output: what it writes to standard error goes nowhere. It gets
// the end of its input when we die, however we do.
type Child struct {
	log  *zap.Logger
	argv []string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited

	lines chan string

	inputMu sync.Mutex
	input   *os.File // guarded by inputMu; nil once it is closed

	once sync.Once // the reaping
	err  error     // how it ended; valid once done is closed
}

// Start starts the program name, as Run finds it, with args. What it writes is in Lines, which must be read until it
// is closed. Whoever starts it ends it: by CloseInput, which a well-bred program heeds, or by Kill.
func (r *Runner) Start(name string, args ...string) (*Child, error) {
	c := &Child{log: r.log, argv: append([]string{name}, args...), done: make(chan struct{}), lines: make(chan string, 16)}
	if err := c.start(); err != nil {
		r.log.Debug("start", zap.Strings("argv", c.argv), zap.Error(err))
		return nil, &Error{Argv: c.argv, Exit: -1, Err: err}
	}
	r.log.Debug("start", zap.Strings("argv", c.argv), zap.Int("pid", c.cmd.Process.Pid))
	return c, nil
}

func (c *Child) start() error {
	for _, a := range c.argv {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("the argument %q holds a NUL byte: %w", a, backend.ErrInvalid)
		}
	}
	file, err := lookup(c.argv[0])
	if err != nil {
		return err
	}
	argv := c.argv
	if file == Self {
		argv = append([]string{os.Args[0]}, c.argv[1:]...) // what ps shows
	}
	theirs, input, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w: %w", backend.ErrIO, err)
	}
	defer theirs.Close()
	output, theirOutput, err := os.Pipe()
	if err != nil {
		input.Close()
		return fmt.Errorf("make a pipe: %w: %w", backend.ErrIO, err)
	}
	defer theirOutput.Close()
	closeOnExec()
	c.cmd = &exec.Cmd{
		Path: file, Args: argv, Env: environment, Dir: "/", Stdin: theirs, Stdout: theirOutput,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := c.cmd.Start(); err != nil {
		input.Close()
		output.Close()
		return startError(file, err)
	}
	c.input = input
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		c.listen(output)
	}()
	go func() {
		awaitExit(c.cmd.Process.Pid)
		// What it started may hold its output open: its last words are there by now.
		output.SetReadDeadline(time.Now().Add(pipeGrace))
		<-heard
		output.Close()
		c.reap()
	}()
	return nil
}

// listen hands on the lines that the program writes.
func (c *Child) listen(output *os.File) {
	defer close(c.lines)
	s := bufio.NewScanner(output)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	for s.Scan() {
		c.lines <- s.Text()
	}
	if s.Err() != nil && !errors.Is(s.Err(), os.ErrDeadlineExceeded) {
		io.Copy(io.Discard, output) // too long a line: it is not stopped by that
	}
}

func (c *Child) reap() {
	c.once.Do(func() {
		err := c.cmd.Wait()
		e := &Error{Argv: c.argv, Exit: -1}
		if ps := c.cmd.ProcessState; ps != nil {
			e.Exit = ps.ExitCode()
			if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				e.Signal = ws.Signal()
			}
		}
		if err != nil {
			c.err = e
		}
		c.log.Debug("exec", zap.Strings("argv", c.argv), zap.Int("exit", e.Exit), zap.Error(c.err))
		c.CloseInput()
		close(c.done)
	})
}

// PID is the number of its process.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Lines are what it writes, without line ends; closed when it has exited, or wrote a line of more than 64 KiB.
func (c *Child) Lines() <-chan string { return c.lines }

// Exited is closed when the program has ended; Err says how then: nil for exit status 0, else an *Error.
func (c *Child) Exited() <-chan struct{} { return c.done }

// Err says how the program ended, once Exited is closed.
func (c *Child) Err() error { return c.err }

// Say writes a line to the program.
func (c *Child) Say(line string) error {
	c.inputMu.Lock()
	defer c.inputMu.Unlock()
	if c.input == nil {
		return fmt.Errorf("%s has ended: %w", commandLine(c.argv), backend.ErrIO)
	}
	if _, err := io.WriteString(c.input, line+"\n"); err != nil {
		return fmt.Errorf("write to %s: %w: %w", commandLine(c.argv), backend.ErrIO, err)
	}
	return nil
}

// CloseInput lets the program see the end of its input.
func (c *Child) CloseInput() {
	c.inputMu.Lock()
	defer c.inputMu.Unlock()
	if c.input != nil {
		c.input.Close()
		c.input = nil
	}
}

// Kill kills the program, and not what it started.
func (c *Child) Kill() { _ = c.cmd.Process.Kill() } // it may have ended

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"domfs/testdata/lab/report"
	"domfs/testdata/tally"
)

const (
	faultRest    = 2 * time.Second  // how long a kernel may go on about its fault
	powerOffTime = 60 * time.Second // from the last test to the machine's end
)

// session is one run of the machine.
type session struct {
	goTool            string
	tally             *tally.Tally
	out               io.Writer
	expected          []string // packages
	bench             bool     // they run benchmarks, and no tests
	onReady           func()   // the machine has all its files open; may be nil
	consoleCopy       io.Writer
	silence, deadline time.Duration

	console    *console
	current    listener // to the package whose tests run; nil between them
	currentPkg string
	left       bool     // they left something on the machine
	ended      []string // packages
	measured   int      // benchmarks
}

// run boots the machine and follows it to its end; it tells whether all is well. The
// machine has ended when it returns.
func (s *session) run(ctx context.Context, argv []string) bool {
	s.console = newConsole(s.consoleCopy)
	start := time.Now()
	m, err := startMachine(argv, s.console, nil)
	if err != nil {
		s.tally.Fail("%v", err)
		return false
	}
	why := s.follow(ctx, m, start)
	m.kill()
	<-m.exited
	select {
	case line := <-s.console.fault:
		if why == nil {
			why = fmt.Errorf("its kernel says: %s", line)
		}
	default:
	}
	if s.current != nil {
		if err := s.current.end(false); err != nil {
			s.tally.Fail("%v", err)
		}
	}
	if why != nil {
		s.tally.Fail("the lab: %v", why)
		for _, p := range s.expected {
			if !slices.Contains(s.ended, p) {
				fmt.Fprintf(s.out, "    %s did not run to its end\n", p)
			}
		}
		fmt.Fprintln(s.out, "The end of its console:")
		for _, line := range s.console.last() {
			fmt.Fprintln(s.out, "    "+line)
		}
	}
	passed, failed, skipped := s.tally.Totals()
	if s.bench {
		if failed == 0 && s.measured == 0 {
			s.tally.Fail("no benchmark has such a name")
			return false
		}
		return failed == 0
	}
	if passed+failed+skipped == 0 {
		s.tally.Fail("no test has such a name")
		return false
	}
	return failed == 0
}

// follow shows what the machine reports until it ends; the error is why that is not well.
func (s *session) follow(ctx context.Context, m *machine, start time.Time) error {
	done := false
	var fault error
	var rest <-chan time.Time // until what the kernel says of its fault is complete
	deadline := time.NewTimer(s.deadline)
	defer deadline.Stop()
	silence := time.NewTimer(s.silence)
	defer silence.Stop()
	lines := m.lines
	for {
		select {
		case line, open := <-lines:
			if !open {
				lines = nil // it ends, or says no more
				continue
			}
			if done {
				continue
			}
			silence.Reset(s.silence)
			switch line.Kind {
			case report.Ready:
				fmt.Fprintf(s.out, "lab: booted in %.1f s\n", time.Since(start).Seconds())
				if s.onReady != nil {
					s.onReady()
				}
			case report.Done:
				done = true
				silence.Reset(powerOffTime)
			default:
				if err := s.line(line); err != nil {
					return err
				}
			}
		case line := <-s.console.fault:
			fault = fmt.Errorf("its kernel says: %s", line)
			rest = time.After(faultRest)
		case <-rest:
			return fault
		case <-silence.C:
			if done {
				return errors.New("it does not power off")
			}
			return fmt.Errorf("it hangs: nothing was heard of it for %v", s.silence)
		case <-deadline.C:
			return fmt.Errorf("it is not done after %v", s.deadline)
		case <-ctx.Done():
			return errors.New("interrupted")
		case <-m.exited:
			// What it said last may still be on its way.
			for line := range m.lines {
				if line.Kind == report.Done {
					done = true
				} else if err := s.line(line); err != nil {
					return err
				}
			}
			if fault != nil {
				return fault
			}
			if !done {
				return fmt.Errorf("it ended before its tests did: %v", m.err)
			}
			if len(s.ended) != len(s.expected) {
				return errors.New("it did not run all packages")
			}
			if m.err != nil {
				return fmt.Errorf("QEMU: %w", m.err)
			}
			return nil
		}
	}
}

// line is about a package's tests.
func (s *session) line(l report.Line) error {
	switch l.Kind {
	case report.Begin:
		s.currentPkg = l.Package
		if s.bench {
			s.current = &benchmarks{s: s, pkg: l.Package}
			return nil
		}
		c, err := convert(s.goTool, s.currentPkg, s.tally)
		if err != nil {
			return err
		}
		s.current = c
	case report.Output:
		if s.current != nil {
			s.current.write(l.Bytes)
		}
	case report.Left:
		fmt.Fprintf(s.out, "%s left behind: %s\n", l.Package, l.Text)
		s.left = true
	case report.End:
		if s.current == nil || s.currentPkg != l.Package {
			return fmt.Errorf("%s ended and never began", l.Package)
		}
		if l.Status != 0 {
			fmt.Fprintf(s.out, "%s: exit status %d\n", l.Package, l.Status)
		}
		err := s.current.end(l.Status == 0 && !s.left)
		s.current, s.left = nil, false
		s.ended = append(s.ended, l.Package)
		return err
	case report.Trouble:
		return errors.New(l.Text)
	}
	return nil
}

// listener hears what a test binary writes.
type listener interface {
	write(text []byte)
	// end is told whether all was well, and waits until all is counted.
	end(ok bool) error
}

// benchmarks shows what a binary's benchmarks write, as they do.
type benchmarks struct {
	s    *session
	pkg  string
	part []byte // a line that has not ended
}

// measurement is a line with a benchmark's result: its name, how often it ran, and values. Without -v the name
// comes first, and the rest once it has ended.
var measurement = regexp.MustCompile(`^Benchmark\S+\s+\d+\s+\S`)

func (b *benchmarks) write(text []byte) {
	_, _ = b.s.out.Write(text)
	b.part = append(b.part, text...)
	for {
		line, rest, found := bytes.Cut(b.part, []byte("\n"))
		if !found {
			return
		}
		if measurement.Match(line) {
			b.s.measured++
		}
		b.part = append([]byte(nil), rest...)
	}
}

func (b *benchmarks) end(ok bool) error {
	if !ok {
		b.s.tally.Fail("the benchmarks of %s", b.pkg)
	}
	return nil
}

// What a test binary ends with, in the form that it takes for test2json: the exit status has
// the last word.
var passLine, failLine = []byte("\x16PASS\n"), []byte("\x16FAIL\n")

// converter makes events of a test binary's output, as go test does.
type converter struct {
	in   io.WriteCloser
	done chan error

	midLine bool // what was written last is not a line's end
}

func convert(goTool, pkg string, t *tally.Tally) (*converter, error) {
	cmd := exec.Command(goTool, "tool", "test2json", "-t", "-p", pkg)
	// A Ctrl-C of the terminal is ours alone: the last lines have to be counted.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &converter{in: in, done: make(chan error, 1)}
	go func() {
		err := t.Read(out)
		c.done <- errors.Join(err, cmd.Wait())
	}()
	return c, nil
}

func (c *converter) write(text []byte) {
	if len(text) > 0 && text[0] == failLine[0] && c.midLine {
		_, _ = c.in.Write([]byte("\n"))
	}
	if len(text) > 0 {
		c.midLine = text[len(text)-1] != '\n'
	}
	_, _ = c.in.Write(text)
}

func (c *converter) end(ok bool) error {
	if ok {
		c.write(passLine)
	} else {
		c.write(failLine)
	}
	_ = c.in.Close()
	return <-c.done
}

// machine is a running QEMU.
type machine struct {
	lines  chan report.Line
	exited chan struct{}
	err    error // of its end, once exited is closed
	cmd    *exec.Cmd
}

// startMachine starts QEMU, which ends when we do, however we end. With input it has the
// terminal, and so stays in our process group.
func startMachine(argv []string, console io.Writer, input *os.File) (*machine, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m := &machine{lines: make(chan report.Line), exited: make(chan struct{}), cmd: exec.Command(argv[0], argv[1:]...)}
	m.cmd.Stdout, m.cmd.Stderr = console, console
	m.cmd.ExtraFiles = []*os.File{write}
	m.cmd.WaitDelay = 5 * time.Second
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: input == nil, Pdeathsig: syscall.SIGKILL}
	if input != nil {
		m.cmd.Stdin = input
	}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started it: this one stays.
		runtime.LockOSThread()
		err := m.cmd.Start()
		write.Close()
		started <- err
		if err == nil {
			m.err = m.cmd.Wait()
			close(m.exited)
		}
	}()
	if err := <-started; err != nil {
		read.Close()
		return nil, err
	}
	go func() {
		defer read.Close()
		defer close(m.lines)
		in := bufio.NewReader(read)
		for {
			text, err := in.ReadBytes('\n')
			var line report.Line
			if json.Unmarshal(text, &line) == nil {
				m.lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	return m, nil
}

// kill ends it at once: nothing of it is to be kept.
func (m *machine) kill() {
	select {
	case <-m.exited:
	default:
		_ = m.cmd.Process.Kill()
		if m.cmd.SysProcAttr.Setpgid {
			_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
		}
	}
	go func() {
		for range m.lines { // the reader ends when nobody writes any more
		}
	}()
}

package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// How long a tool has, past its deadline.
const (
	termGrace = 2 * time.Second // from SIGTERM to SIGKILL
	killGrace = 1 * time.Second // from SIGKILL until it is left behind
	pipeGrace = 1 * time.Second // from its exit until a child that holds its output is no longer listened to
)

// environment is all of a tool's.
var environment = []string{"PATH=" + path, "LC_ALL=C", "HOME=/"}

type inheritedKey struct{}

// Inheriting is ctx in which each tool, and what it starts, has f open as descriptor 3: a lock that f holds lasts
// until they have all ended, whatever becomes of us.
func Inheriting(ctx context.Context, f *os.File) context.Context {
	return context.WithValue(ctx, inheritedKey{}, f)
}

// execute runs a tool.
func execute(ctx context.Context, argv []string) outcome {
	failed := func(err error) outcome { return outcome{exit: -1, err: err} }
	if ctx.Err() != nil {
		return failed(ended(ctx))
	}
	for _, a := range argv {
		if strings.ContainsRune(a, 0) {
			return failed(fmt.Errorf("the argument %q holds a NUL byte: %w", a, backend.ErrInvalid))
		}
	}
	file, err := lookup(argv[0])
	if err != nil {
		return failed(err)
	}
	overflow := make(chan struct{}, 2)
	stdout, err := newSink(maxStdout, overflow)
	if err != nil {
		return failed(err)
	}
	defer stdout.close()
	stderr, err := newSink(maxStderr, overflow)
	if err != nil {
		return failed(err)
	}
	defer stderr.close()

	closeOnExec()
	cmd := &exec.Cmd{
		Path:        file,
		Args:        argv,
		Env:         environment,
		Dir:         "/",
		Stdout:      stdout.w,
		Stderr:      stderr.w,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, // a process group, too, and no terminal
	}
	if f, ok := ctx.Value(inheritedKey{}).(*os.File); ok {
		cmd.ExtraFiles = []*os.File{f}
	}
	if err := cmd.Start(); err != nil {
		return failed(startError(file, err))
	}
	stdout.listen()
	stderr.listen()

	exited := make(chan struct{})
	go func() {
		awaitExit(cmd.Process.Pid)
		close(exited)
	}()
	var stopped error
	select {
	case <-exited:
	case <-ctx.Done():
		if !await(0, exited) {
			stopped = ended(ctx)
		}
	case <-overflow:
		stopped = fmt.Errorf("it writes more than %d bytes, or %d of errors: %w", maxStdout, maxStderr, backend.ErrIO)
	}
	if stopped != nil && !end(cmd.Process.Pid, exited) {
		go cmd.Wait() // one day
		o := failed(fmt.Errorf("%w (process %d cannot be killed: it waits for a device)", stopped, cmd.Process.Pid))
		o.stdout, o.stderr = stdout.bytes(), stderr.bytes()
		return o
	}
	await(pipeGrace, stdout.done, stderr.done)
	o := outcome{stdout: stdout.bytes(), stderr: stderr.bytes(), err: stopped}
	if o.err == nil && (stdout.over() || stderr.over()) {
		o.err = fmt.Errorf("it wrote more than %d bytes, or %d of errors: %w", maxStdout, maxStderr, backend.ErrIO)
	}
	waitErr := cmd.Wait()
	var exitErr *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exitErr) && o.err == nil {
		o.err = fmt.Errorf("wait for it: %w: %w", backend.ErrIO, waitErr)
	}
	o.exit = -1
	if ps := cmd.ProcessState; ps != nil {
		o.exit = ps.ExitCode()
		if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			o.signal = ws.Signal()
		}
	}
	return o
}

// awaitExit returns when a child has exited, and leaves it to be waited for, so that its
// process group keeps its number until then.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// end ends a process group, and tells whether its leader exited.
func end(pid int, exited <-chan struct{}) bool {
	unix.Kill(-pid, unix.SIGTERM)
	await(termGrace, exited)
	// Also where the leader is gone: what it started may not be.
	unix.Kill(-pid, unix.SIGKILL)
	return await(killGrace, exited)
}

// await waits for all of the channels to be closed, for d altogether.
func await(d time.Duration, chans ...<-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for _, c := range chans {
		select {
		case <-c:
			continue
		default:
		}
		select {
		case <-c:
		case <-timer.C:
			return false
		}
	}
	return true
}

// closeOnExec marks every descriptor of ours but the standard ones: some may have come from
// whoever started us, and lvm complains of each.
func closeOnExec() {
	// Linux 5.11; without it, or without the rights to, tools inherit what we did.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err == nil {
		return
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

func startError(file string, err error) error {
	sentinel := backend.ErrIO
	switch {
	case errors.Is(err, fs.ErrNotExist):
		sentinel = backend.ErrNotExist // its interpreter
	case errors.Is(err, fs.ErrPermission):
		sentinel = backend.ErrAccess
	case errors.Is(err, syscall.E2BIG), errors.Is(err, syscall.ENOEXEC):
		sentinel = backend.ErrInvalid
	}
	return fmt.Errorf("start %s: %w: %w", file, sentinel, err)
}

// sink is a pipe whose bytes are kept, up to a limit.
type sink struct {
	r, w     *os.File
	done     chan struct{}
	limit    int
	overflow chan<- struct{}

	mu   sync.Mutex
	buf  []byte // guarded by mu
	full bool   // guarded by mu
}

func newSink(limit int, overflow chan<- struct{}) (*sink, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w: %w", backend.ErrIO, err)
	}
	return &sink{r: r, w: w, done: make(chan struct{}), limit: limit, overflow: overflow}, nil
}

// listen begins to read; the tool has its own copy of the writing end.
func (s *sink) listen() {
	s.w.Close()
	go func() {
		defer close(s.done)
		io.Copy(s, s.r)
	}()
}

// Write keeps bytes, and fails when there are too many of them.
func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(p), s.limit-len(s.buf))
	s.buf = append(s.buf, p[:n]...)
	if n < len(p) {
		if !s.full {
			s.full = true
			s.overflow <- struct{}{} // room for one of each sink
		}
		return n, io.ErrShortWrite
	}
	return n, nil
}

func (s *sink) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf[:len(s.buf):len(s.buf)]
}

func (s *sink) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

func (s *sink) close() {
	s.r.Close()
	s.w.Close()
}

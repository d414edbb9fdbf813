package run

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// DefaultTimeout is the deadline of a call whose context has none.
const DefaultTimeout = 30 * time.Second

// Limits of a tool's output, in bytes.
const (
	maxStdout = 32 << 20
	maxStderr = 1 << 20
)

// Runner runs tools, or replays a Transcript. It is safe for concurrent use.
type Runner struct {
	log *zap.Logger
	do  func(ctx context.Context, argv []string) outcome
}

// outcome is what came of a call. err says why the tool did not run to its end; exit and
// signal are valid without one.
type outcome struct {
	stdout, stderr []byte
	exit           int
	signal         syscall.Signal
	err            error
}

// New makes a Runner of the host's tools. log may be nil.
func New(log *zap.Logger) *Runner {
	if log == nil {
		log = zap.NewNop()
	}
	return &Runner{log: log, do: execute}
}

// Run runs the program name, found in the fixed PATH or an absolute path, and returns what it
// wrote to standard output, also with an error. An error is an *Error; it wraps
// ErrTimeout when the deadline passed, ErrNotExist when the program is not installed.
func (r *Runner) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	stdout, _, err := r.Both(ctx, name, args...)
	return stdout, err
}

// Both is Run for a tool that says only on standard error that it failed: what it wrote there comes as text on one
// line, also where it exited with 0.
func (r *Runner) Both(ctx context.Context, name string, args ...string) (stdout []byte, stderr string, err error) {
	argv := append([]string{name}, args...)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	began := time.Now()
	o := r.do(ctx, argv)
	r.log.Debug("exec", zap.Strings("argv", argv), zap.Int("exit", o.exit), zap.Duration("took", time.Since(began)), zap.Error(o.err))
	if o.err == nil && o.exit == 0 && o.signal == 0 {
		return o.stdout, oneLine(string(o.stderr)), nil
	}
	return o.stdout, oneLine(string(o.stderr)), &Error{Argv: argv, Exit: o.exit, Signal: o.signal, Stderr: string(o.stderr), Err: o.err}
}

// Error is a tool that failed.
type Error struct {
	Argv   []string
	Exit   int            // -1 if it did not exit by itself
	Signal syscall.Signal // that ended it, 0 if none
	Stderr string
	Err    error // why it could not run to its end; nil if it exited or died by itself
}

// Unwrap gives the sentinel of a tool that could not run to its end.
func (e *Error) Unwrap() error { return e.Err }

// Error is a sentence on one line, with the end of what the tool wrote to standard error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(commandLine(e.Argv))
	switch {
	case e.Err != nil:
		fmt.Fprintf(&b, ": %v", e.Err)
	case e.Signal != 0:
		fmt.Fprintf(&b, ": killed by signal %d (%v)", int(e.Signal), e.Signal)
	default:
		fmt.Fprintf(&b, ": exit status %d", e.Exit)
	}
	if text := oneLine(e.Stderr); text != "" {
		b.WriteString(": " + text)
	}
	return b.String()
}

// maxErrorText is how much of an argument list or of standard error a message holds.
const maxErrorText = 600

func commandLine(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = a
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\'' }) {
			words[i] = fmt.Sprintf("%q", a)
		}
	}
	line := strings.Join(words, " ")
	if len(line) > maxErrorText {
		line = line[:maxErrorText] + "…"
	}
	return line
}

// oneLine joins lines with "; ", without control characters: the end of text, where
// tools say why they failed.
func oneLine(text string) string {
	cut := ""
	if len(text) > maxErrorText {
		text, cut = text[len(text)-maxErrorText:], "…"
	}
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, line)
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return cut + strings.Join(lines, "; ")
}

// ended is the error for a context that ended.
func ended(ctx context.Context) error {
	if err := ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", backend.ErrTimeout, err)
	}
	return ctx.Err()
}

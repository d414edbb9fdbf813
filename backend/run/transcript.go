package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unicode/utf8"

	"domfs/backend"

	"go.uber.org/zap"
)

// Transcript is what tools were asked and what they answered: recorded by Record,
// replayed by Replay. It is kept as JSON.
type Transcript struct {
	// AnyOrder lets calls be replayed in another order than they were recorded in, for drivers
	// that run tools at once. Equal calls are still answered in their order.
	AnyOrder bool   `json:"any_order,omitempty"`
	Calls    []Call `json:"calls"`

	mu       sync.Mutex
	replayed []bool   // guarded by mu; of Calls
	wrong    []string // guarded by mu; calls that were not expected
}

// Call is one call of a tool.
type Call struct {
	Argv   []string       `json:"argv"`
	Exit   int            `json:"exit"`
	Signal syscall.Signal `json:"signal,omitempty"`
	Stdout Text           `json:"stdout,omitempty"`
	Stderr Text           `json:"stderr,omitempty"`
	// Failure is "timeout" or "missing" for a tool that did not run to its end.
	Failure string `json:"failure,omitempty"`
}

var failures = map[string]error{"timeout": backend.ErrTimeout, "missing": backend.ErrNotExist}

// Text is output of a tool. In JSON it is a list of lines, or one base64 string where it is not UTF-8.
type Text []byte

// MarshalJSON writes t.
func (t Text) MarshalJSON() ([]byte, error) {
	if !utf8.Valid(t) {
		return json.Marshal([]byte(t))
	}
	return marshal(slices.Collect(strings.Lines(string(t))), "")
}

// marshal is json.MarshalIndent that leaves < and > readable.
func marshal(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// UnmarshalJSON reads t.
func (t *Text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*[]byte)(t))
	}
	var lines []string
	if err := json.Unmarshal(b, &lines); err != nil {
		return err
	}
	*t = Text(strings.Join(lines, ""))
	return nil
}

// ReadTranscript reads a transcript's file.
func ReadTranscript(file string) (*Transcript, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	t := &Transcript{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("transcript %s: %w", file, err)
	}
	for i, c := range t.Calls {
		if len(c.Argv) == 0 {
			return nil, fmt.Errorf("transcript %s: call %d has no argv", file, i+1)
		}
		if c.Failure != "" && failures[c.Failure] == nil {
			return nil, fmt.Errorf("transcript %s: call %d has the unknown failure %q", file, i+1, c.Failure)
		}
	}
	return t, nil
}

// WriteFile writes a transcript's file.
func (t *Transcript) WriteFile(file string) error {
	t.mu.Lock()
	b, err := marshal(t, "\t")
	t.mu.Unlock()
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

// Record is a Runner that runs what r runs, and adds each call to t.
func (r *Runner) Record(t *Transcript) *Runner {
	return &Runner{log: r.log, do: func(ctx context.Context, argv []string) outcome {
		o := r.do(ctx, argv)
		c := Call{Argv: slices.Clone(argv), Exit: o.exit, Signal: o.signal, Stdout: slices.Clone(o.stdout), Stderr: slices.Clone(o.stderr)}
		for failure, sentinel := range failures {
			if errors.Is(o.err, sentinel) {
				c.Failure = failure
			}
		}
		t.mu.Lock()
		t.Calls = append(t.Calls, c)
		t.mu.Unlock()
		return o
	}}
}

// Replay is a Runner that answers from t, each call once. A call that t does not
// have next fails, and Check tells of it.
func (t *Transcript) Replay() *Runner {
	return &Runner{log: zap.NewNop(), do: func(ctx context.Context, argv []string) outcome {
		if ctx.Err() != nil {
			return outcome{exit: -1, err: ended(ctx)}
		}
		c, err := t.take(argv)
		if err != nil {
			return outcome{exit: -1, err: err}
		}
		o := outcome{stdout: slices.Clone(c.Stdout), stderr: slices.Clone(c.Stderr), exit: c.Exit, signal: c.Signal}
		if c.Failure != "" {
			o.err = failures[c.Failure]
		}
		return o
	}}
}

// take finds the call that answers argv.
func (t *Transcript) take(argv []string) (Call, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.replayed == nil {
		t.replayed = make([]bool, len(t.Calls))
	}
	next := ""
	for i, c := range t.Calls {
		if t.replayed[i] {
			continue
		}
		if slices.Equal(c.Argv, argv) {
			t.replayed[i] = true
			return c, nil
		}
		if next == "" {
			next = commandLine(c.Argv)
		}
		if !t.AnyOrder {
			break
		}
	}
	if next == "" {
		next = "no further call"
	}
	t.wrong = append(t.wrong, fmt.Sprintf("%s was called; the transcript has next: %s", commandLine(argv), next))
	return Call{}, fmt.Errorf("not in the transcript, which has next: %s", next)
}

// Check says what the calls that were replayed differed in: those that were not in the
// transcript, and those of it that were never asked for.
func (t *Transcript) Check() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	faults := slices.Clone(t.wrong)
	for i, c := range t.Calls {
		if t.replayed == nil || !t.replayed[i] {
			faults = append(faults, fmt.Sprintf("call %d was never asked for: %s", i+1, commandLine(c.Argv)))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, "\n"))
}

package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"domfs/backend"
)

// Task is a state of a guest. It is marshalled as JSON on its way to the keeper and into the record; all that
// its methods need is in that, but for what its Kinds gave it.
type Task interface {
	// Prepare looks at what Begin changes, and fails where that is in vain. What it notes in the Task is there for End.
	Prepare(ctx context.Context) error
	// Begin begins the state. unsure is with an error only: whether it has begun is not known, so End is called.
	Begin(ctx context.Context) (unsure bool, err error)
	// End undoes Begin. sure says that Begin has succeeded and nothing that could have undone it was begun; without, End finds out first
	// what there is to undo. unsure is with an error only: whether it is undone is not known. After an
	// error, End is called again; one that is ErrStale is the last word: there was nothing left to undo, for the state had been ended by somebody else. So is
	// one from GiveUp: it was not undone, and trying again is in vain.
	End(ctx context.Context, sure bool) (unsure bool, err error)
}

// GiveUp is an error of Task.End after which it is not called again.
func GiveUp(err error) error { return &gaveUp{err} }

type gaveUp struct{ error }

func (g *gaveUp) Unwrap() error { return g.error }

// isLast tells whether err is the last word of Task.End.
func isLast(err error) bool {
	var g *gaveUp
	return errors.Is(err, backend.ErrStale) || errors.As(err, &g)
}

// Kinds make empty Tasks to read JSON into, by the kind's name.
type Kinds map[string]func() Task

// spec is what the keeper is told first.
type spec struct {
	Kind   string          `json:"kind"`
	Record string          `json:"record"`   // path
	Begin  time.Duration   `json:"begin_ns"` // how long Prepare and Begin may take, each
	Hold   time.Duration   `json:"hold_ns"`  // from the start of Begin until the state is ended whatever happens
	End    time.Duration   `json:"end_ns"`   // how long one try to end it may take
	Task   json.RawMessage `json:"task"`
}

// task reads the Task of a kind.
func (k Kinds) task(kind string, text json.RawMessage) (Task, error) {
	make := k[kind]
	if make == nil {
		return nil, fmt.Errorf("nothing is known of a state %q: %w", kind, backend.ErrInvalid)
	}
	t := make()
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("the description of a state %q: %w: %w", kind, backend.ErrInvalid, err)
	}
	return t, nil
}

// report is a line from the keeper.
type report struct {
	Event string `json:"event"` // one of the words below
	Error string `json:"error,omitempty"`
	Kind  string `json:"error_kind,omitempty"`
	Early string `json:"early,omitempty"` // why it was ended before it was asked to
}

// What the keeper reports, and what it is told, besides the end of its input.
const (
	eventReady  = "ready"  // Prepare has succeeded
	eventBegun  = "begun"  // the state has begun
	eventFailed = "failed" // it has not, or no longer
	eventTrying = "trying" // it could not be ended yet
	eventEnded  = "ended"

	sayBegin = "begin"
	sayEnd   = "end"
)

// kindsOfErrors are the sentinels that survive the pipe.
var kindsOfErrors = map[string]error{
	"not-exist": backend.ErrNotExist, "busy": backend.ErrBusy, "unsupported": backend.ErrUnsupported, "invalid": backend.ErrInvalid,
	"timeout": backend.ErrTimeout, "access": backend.ErrAccess, "permission": backend.ErrPermission, "stale": backend.ErrStale,
	"io": backend.ErrIO, "no-space": backend.ErrNoSpace,
}

func (r report) withError(err error) report {
	r.Error = err.Error()
	for kind, sentinel := range kindsOfErrors {
		// Of several, a timeout is what matters.
		if errors.Is(err, sentinel) && r.Kind != "timeout" {
			r.Kind = kind
		}
	}
	return r
}

// err is the error of a report.
func (r report) err() error {
	sentinel := kindsOfErrors[r.Kind]
	if sentinel == nil {
		sentinel = backend.ErrIO
	}
	return backend.Because(sentinel, "%s", r.Error)
}

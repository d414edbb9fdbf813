package hold

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
)

// Options are what Holds are made with.
type Options struct {
	Runner *run.Runner
	Log    *zap.Logger
	// Records is what the paths of records begin with; their folder exists, and only this user can write to it, or it is sticky.
	Records string
	// Kinds are for ending a state in place of a keeper that was killed.
	Kinds Kinds
	// Keeper is the command line of the keeper, less the two arguments kind and name; nil: our own program's `hold --`.
	Keeper []string
}

// Spec says what is to be held, and for how long.
type Spec struct {
	Kind string // of the Options' Kinds
	Name string // of the guest, for ps
	Task Task
	// Begin is how long the beginning may take; Hold is how long, from when it is begun, until the state is ended whatever
	// happens; End is how long one try to end it may take.
	Begin, Hold, End time.Duration
}

// readyLimit is how long a keeper may take to start, beside what its Task's Prepare takes.
const readyLimit = 10 * time.Second

// Hold is a state that is being held, or is about to be.
type Hold struct {
	o      Options
	child  *run.Child
	record string
	kind   string

	ready, begun chan struct{} // each closed when that is reported, or over is
	over         chan struct{} // closed when nothing is held any more, or nothing can be done about it
	readyOnce    sync.Once
	begunOnce    sync.Once

	mu      sync.Mutex
	asked   bool  // guarded by mu; End was called
	begin   error // guarded by mu; why it did not begin
	early   error // guarded by mu; it was over before End was called: ErrStale
	trying  error // guarded by mu; why it has not ended yet
	stuck   error // guarded by mu; valid once over is closed: nothing more is tried
	started bool  // guarded by mu; it was reported as begun
}

// Start starts a keeper and has it prepare the task. Nothing has begun when it returns.
func Start(ctx context.Context, o Options, s Spec) (*Hold, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	text, err := json.Marshal(s.Task)
	if err != nil {
		return nil, fmt.Errorf("what is to be held: %w: %w", backend.ErrInvalid, err)
	}
	h := &Hold{o: o, kind: s.Kind, record: o.Records + s.Kind + "-" + rand.Text(), ready: make(chan struct{}), begun: make(chan struct{}), over: make(chan struct{})}
	first, err := json.Marshal(spec{Kind: s.Kind, Record: h.record, Begin: s.Begin, Hold: s.Hold, End: s.End, Task: text})
	if err != nil {
		return nil, fmt.Errorf("what is to be held: %w: %w", backend.ErrInvalid, err)
	}
	argv := o.Keeper
	if len(argv) == 0 {
		argv = []string{run.Self, "hold", "--"}
	}
	argv = append(argv[:len(argv):len(argv)], s.Kind, s.Name)
	if h.child, err = o.Runner.Start(argv[0], argv[1:]...); err != nil {
		return nil, err
	}
	go h.listen()
	if err := h.child.Say(string(first)); err != nil {
		h.child.CloseInput()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Begin+readyLimit)
	defer cancel()
	select {
	case <-h.ready:
	case <-ctx.Done():
		h.child.CloseInput()
		h.child.Kill() // nothing has begun
		return nil, fmt.Errorf("what keeps the guest %s does not start: %w", s.Kind, ended(ctx))
	}
	return h, h.failure()
}

func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", backend.ErrTimeout, ctx.Err())
	}
	return ctx.Err()
}

// Begin begins the state. Whatever it returns, End is to be called.
func (h *Hold) Begin(ctx context.Context) error {
	if err := h.child.Say(sayBegin); err != nil {
		<-h.over // it is dead
		if err := h.failure(); err != nil {
			return err
		}
		return err
	}
	select {
	case <-h.begun:
	case <-ctx.Done():
		h.giveUp()
		return fmt.Errorf("the guest is not %s yet: %w", h.kind, ended(ctx))
	}
	return h.failure()
}

func (h *Hold) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.begin
}

// giveUp has the keeper end the state, begun or not.
func (h *Hold) giveUp() {
	h.mu.Lock()
	h.asked = true
	h.mu.Unlock()
	_ = h.child.Say(sayEnd) // it may be dead
	h.child.CloseInput()
}

// End ends the state, or waits for that until ctx ends. ErrStale says that it is over, but was so before End was first
// called. Safe to call more than once.
func (h *Hold) End(ctx context.Context) error {
	h.giveUp()
	select {
	case <-h.over:
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.trying != nil {
			return fmt.Errorf("the guest is still %s: %w: %w", h.kind, ended(ctx), h.trying)
		}
		return fmt.Errorf("the guest is still %s: %w", h.kind, ended(ctx))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stuck != nil {
		return h.stuck
	}
	return h.early
}

// listen follows the keeper to its end, and takes its place where it dies before its time.
func (h *Hold) listen() {
	over := false
	for line := range h.child.Lines() {
		var r report
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			h.o.Log.Warn("what keeps a guest's state says what cannot be read", zap.String("state", h.kind), zap.Error(err))
			continue
		}
		if h.heard(r) && !over {
			over = true
			close(h.over) // before the keeper's own end, for which nobody need wait
			h.readyOnce.Do(func() { close(h.ready) })
			h.begunOnce.Do(func() { close(h.begun) })
		}
	}
	<-h.child.Exited()
	if over {
		return
	}
	h.replace()
	close(h.over)
	h.readyOnce.Do(func() { close(h.ready) })
	h.begunOnce.Do(func() { close(h.begun) })
}

// heard takes in a report, and tells whether it is the last one.
func (h *Hold) heard(r report) (over bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch r.Event {
	case eventReady:
		h.readyOnce.Do(func() { close(h.ready) })
	case eventBegun:
		h.started = true
		h.begunOnce.Do(func() { close(h.begun) })
	case eventFailed:
		h.begin = r.err()
		return true
	case eventTrying:
		h.trying = r.err()
		h.o.Log.Warn("a guest's state cannot be ended; it is tried again", zap.String("state", h.kind), zap.Error(h.trying))
	case eventEnded:
		switch {
		case r.Error != "":
			h.early = r.err()
		case r.Early != "": // though we may have asked for it meanwhile
			h.early = backend.Because(backend.ErrStale, "the guest was no longer %s: %s", h.kind, r.Early)
		}
		return true
	}
	return false
}

// replace ends the state in place of a keeper that died.
func (h *Hold) replace() {
	h.mu.Lock()
	how, started, asked := h.child.Err(), h.started, h.asked
	if how == nil {
		how = errors.New("it ended by itself")
	}
	if !started {
		h.begin = fmt.Errorf("what was to keep the guest %s died: %w: %w", h.kind, backend.ErrIO, how)
	}
	if !asked {
		h.early = backend.Because(backend.ErrStale, "the guest was no longer %s: what kept it so died: %w", h.kind, how)
	}
	h.mu.Unlock()
	if err := release(context.Background(), h.record, time.Time{}, h.o.Kinds, h.o.Log); err != nil {
		h.mu.Lock()
		h.stuck = fmt.Errorf("the guest is still %s: %w", h.kind, err)
		h.mu.Unlock()
		h.o.Log.Error("a guest's state cannot be ended: do it by hand", zap.String("state", h.kind), zap.String("record", h.record), zap.Error(err))
	}
}

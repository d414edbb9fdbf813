package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/backend/run"
	"domfs/backend/run/hold"
)

var _ backend.PausePreparer = (*Driver)(nil)

const (
	// PauseKind is what a pause is called among the states that hold keeps.
	PauseKind = "paused"
	// DefaultRecords is what the paths of records of paused domains begin with, unless Options say otherwise.
	DefaultRecords = "/run/domfs.lock.held-"
	// DefaultPauseTimeout is how long a domain is kept paused, at most, unless Options say otherwise.
	DefaultPauseTimeout = 10 * time.Second
)

// Limits of a pause.
const (
	pauseBegin = 10 * time.Second // for xl to say what the domain is, and to pause it
	pauseGrace = 10 * time.Second // after PauseTimeout, from when xl is told to pause it: then it is resumed, whatever anybody says
	pauseEnd   = 5 * time.Second  // for one try to resume it
)

// Pause pauses a domain by `xl pause`; a process of its own, the keeper, sees to it that `xl unpause` follows. Xen counts
// pauses: one that the admin made stays. ErrNotExist: the domain has ended.
func (d *Driver) Pause(ctx context.Context, dom backend.Domain) (resume func(context.Context) error, err error) {
	p, release, err := d.PreparePause(ctx, dom)
	if err != nil {
		return nil, err
	}
	defer release()
	return p.Pause(ctx, dom)
}

// PreparePause starts the keeper, so that the pause itself is no longer than xl takes.
func (d *Driver) PreparePause(ctx context.Context, dom backend.Domain) (p backend.Pauser, release func(), err error) {
	if dom.ID <= 0 {
		return nil, nil, fmt.Errorf("domain %d is not paused: %w", dom.ID, backend.ErrInvalid) // 0 is this host itself
	}
	h, err := hold.Start(ctx, d.holds, hold.Spec{
		Kind: PauseKind, Name: dom.Name, Task: &pause{XL: d.toolstack, ID: dom.ID},
		Begin: pauseBegin, Hold: d.pauseHold, End: pauseEnd,
	})
	if err != nil {
		return nil, nil, err
	}
	once := &preparedPause{h: h, id: dom.ID}
	return once, once.release, nil
}

// preparedPause is a pause for which a keeper stands ready.
type preparedPause struct {
	h    *hold.Hold
	id   int
	used bool
}

func (p *preparedPause) Pause(ctx context.Context, dom backend.Domain) (func(context.Context) error, error) {
	if p.used || dom.ID != p.id {
		return nil, fmt.Errorf("one pause of domain %d was prepared, not one of %d: %w", p.id, dom.ID, backend.ErrInvalid)
	}
	p.used = true
	return p.h.End, p.h.Begin(ctx)
}

func (p *preparedPause) release() {
	if !p.used {
		p.used = true
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.h.End(ctx) // nothing has begun, so the keeper ends, sooner or later
	}
}

// pause is a domain's pause, as its keeper makes and undoes it.
type pause struct {
	XL     string `json:"xl"` // the program
	ID     int    `json:"domid"`
	Before bool   `json:"before"` // it was paused already
	Boot   string `json:"boot"`   // of this host, as its kernel names it: another boot's domain of that number is another domain

	run *run.Runner
}

// NewPause makes Tasks for PauseKind.
func NewPause(runner *run.Runner) func() hold.Task {
	return func() hold.Task { return &pause{run: runner} }
}

// state is what Xen says of a domain.
type state struct {
	there  bool // and not dying
	paused bool // once or more
}

// look asks Xen for the domain's state.
func (p *pause) look(ctx context.Context) (state, error) {
	out, err := p.run.Run(ctx, p.XL, "list")
	if err != nil {
		return state{}, err
	}
	return stateOf(string(out), p.ID)
}

// stateOf finds a domain in what `xl list` writes.
func stateOf(out string, id int) (found state, err error) {
	host, times := false, 0
	for line := range strings.Lines(out) {
		m := listLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[1])
		host = host || err == nil && n == 0
		if err == nil && n == id {
			found = state{there: m[5] != "d", paused: m[2] == "p"}
			times++
		}
	}
	if times > 1 { // a name of several lines, which whoever may choose a domain's name has made look so
		return state{}, fmt.Errorf("xl list lists domain %d twice: %w", id, backend.ErrCorrupt)
	}
	if !host {
		// Domain 0 is always listed: this is not the list, or not all of it.
		return state{}, fmt.Errorf("xl list does not list this host's own domain: %w", backend.ErrIO)
	}
	return found, nil
}

func (p *pause) gone() error {
	return fmt.Errorf("domain %d has ended: %w", p.ID, backend.ErrNotExist)
}

// Prepare notes whether somebody else has paused the domain.
func (p *pause) Prepare(ctx context.Context) error {
	s, err := p.look(ctx)
	if err != nil {
		return err
	}
	if !s.there {
		return p.gone()
	}
	p.Before, p.Boot = s.paused, boot()
	return nil
}

// boot is the kernel's name for this boot (random(4)), "" where it has none.
func boot() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// call runs xl pause or xl unpause. xl exits with 0 though the hypervisor has refused, and says so on standard error only. unsure is that
// it did not run to its end, so that it may have done it or not.
func (p *pause) call(ctx context.Context, command string) (unsure bool, err error) {
	_, complaint, err := p.run.Both(ctx, p.XL, command, strconv.Itoa(p.ID))
	var e *run.Error
	switch {
	case err == nil && strings.Contains(complaint, "error"):
		return false, fmt.Errorf("xl %s %d: %s: %w", command, p.ID, complaint, backend.ErrIO)
	case errors.As(err, &e) && e.Err == nil && e.Signal == 0, errors.Is(err, backend.ErrNotExist), errors.Is(err, backend.ErrAccess):
		return false, err
	}
	return err != nil, err
}

// Begin pauses the domain.
func (p *pause) Begin(ctx context.Context) (unsure bool, err error) {
	unsure, err = p.call(ctx, "pause")
	if err == nil {
		return false, nil
	}
	if s, lookErr := p.look(ctx); lookErr == nil && !s.there {
		return false, p.gone()
	}
	return unsure, err
}

// End resumes the domain, by one unpause for the one pause.
func (p *pause) End(ctx context.Context, sure bool) (unsure bool, err error) {
	if now := boot(); p.Boot != "" && now != "" && now != p.Boot {
		return false, fmt.Errorf("domain %d was paused before this host was started anew: %w", p.ID, backend.ErrStale)
	}
	if !sure {
		s, err := p.look(ctx)
		switch {
		case err != nil:
			return true, err
		case !s.there || !s.paused:
			return false, nil
		case p.Before:
			return false, fmt.Errorf("domain %d was paused by somebody else before, and whether it is by us as well is not known: it stays paused, once or twice: %w", p.ID, backend.ErrStale)
		}
	}
	unsure, err = p.call(ctx, "unpause")
	if err == nil {
		return false, nil
	}
	s, lookErr := p.look(ctx)
	switch {
	case lookErr != nil || s.there && s.paused:
		return unsure, err
	case unsure || !sure:
		return false, nil // it is done
	case !s.there:
		return false, fmt.Errorf("domain %d has ended while it was paused: %w", p.ID, backend.ErrStale)
	}
	return false, fmt.Errorf("domain %d was resumed by somebody else: %w", p.ID, backend.ErrStale)
}

// Package freeze freezes and thaws guests by two commands of the admin's, which know how to reach a guest: fsfreeze
// over ssh, a guest agent, a database's own backup mode.
package freeze

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"domfs/backend"
	"domfs/backend/run"
	"domfs/backend/run/hold"
)

var _ backend.Freezer = (*Freezer)(nil)

const (
	// Kind is what a frozen guest is called among the states that hold keeps.
	Kind = "frozen"
	// holdLimit is how long a guest stays frozen at most, once it is, before it is thawed whatever anybody says: longer than any
	// caller keeps it so.
	holdLimit = 65 * time.Second
	// maxThaws is how often a thaw command is run that fails.
	maxThaws = 5
)

// Options are what a Freezer is made of.
type Options struct {
	// Freeze and Thaw are shell commands. They run as our user in the root directory with an environment that
	// says for whom: DOMFS_DOMAIN, DOMFS_DOMID, DOMFS_UUID, DOMFS_SNAPSHOT.
	Freeze, Thaw string
	Timeout      time.Duration // for each of them
	Holds        hold.Options
}

// Freezer freezes guests by commands.
type Freezer struct{ o Options }

// New makes a Freezer.
func New(o Options) *Freezer { return &Freezer{o} }

// Freeze runs the freeze command. Once that has been begun, the thaw command is run, whatever becomes of it or of us: a process of its
// own, the keeper, sees to that. One that fails is run again a few times.
func (f *Freezer) Freeze(ctx context.Context, d backend.Domain, snapshot string) (thaw func(context.Context) error, err error) {
	h, err := hold.Start(ctx, f.o.Holds, hold.Spec{
		Kind: Kind, Name: d.Name,
		Task: &task{Freeze: f.o.Freeze, Thaw: f.o.Thaw, Env: []string{
			"DOMFS_DOMAIN=" + d.Name, "DOMFS_DOMID=" + strconv.Itoa(d.ID), "DOMFS_UUID=" + d.UUID, "DOMFS_SNAPSHOT=" + snapshot,
		}},
		Begin: f.o.Timeout, Hold: f.o.Timeout + holdLimit, End: f.o.Timeout,
	})
	if err != nil {
		return nil, err
	}
	return h.End, h.Begin(ctx)
}

// task is a guest's being frozen, as its keeper sees it.
type task struct {
	Freeze string   `json:"freeze"`
	Thaw   string   `json:"thaw"`
	Env    []string `json:"env"`

	run     *run.Runner
	refused bool // the freeze command said itself that it failed
	thaws   int  // how often the thaw command was run
}

// NewTask makes Tasks for Kind.
func NewTask(runner *run.Runner) func() hold.Task {
	return func() hold.Task { return &task{run: runner} }
}

// Prepare has nothing to find out.
func (t *task) Prepare(context.Context) error { return nil }

func (t *task) call(ctx context.Context, command string) error {
	args := append(t.Env[:len(t.Env):len(t.Env)], "/bin/sh", "-c", command)
	_, err := t.run.Run(ctx, "/usr/bin/env", args...)
	var e *run.Error
	if errors.As(err, &e) {
		short := *e
		short.Argv = []string{"sh", "-c", command} // the environment is none of the reader's concern
		return &short
	}
	return err
}

// Begin freezes the guest.
func (t *task) Begin(ctx context.Context) (unsure bool, err error) {
	if err := t.call(ctx, t.Freeze); err != nil {
		var e *run.Error
		t.refused = errors.As(err, &e) && e.Err == nil && e.Signal == 0
		return true, fmt.Errorf("the freeze command: %w", err)
	}
	return false, nil
}

// End thaws the guest.
func (t *task) End(ctx context.Context, sure bool) (unsure bool, err error) {
	t.thaws++
	err = t.call(ctx, t.Thaw)
	if err == nil {
		return false, nil
	}
	err = fmt.Errorf("the thaw command: %w", err)
	if t.refused || t.thaws >= maxThaws {
		return false, hold.GiveUp(err)
	}
	return true, err
}

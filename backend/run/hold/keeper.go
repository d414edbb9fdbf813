package hold

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// keeper is the process that keeps a state.
type keeper struct {
	kinds Kinds
	log   *zap.Logger
	out   io.Writer

	outMu sync.Mutex // one line at a time

	told    chan string    // what we are told; closed at the end of the input
	signals chan os.Signal // to end early

	s      spec
	task   Task
	record *record
}

// Keep is the keeper: it reads what to keep from in and reports to out. It returns when nothing is held any more, or with an
// error if that could not be brought about. It takes the process's signals for itself.
func Keep(in io.Reader, out io.Writer, kinds Kinds, log *zap.Logger) error {
	k := &keeper{kinds: kinds, log: log, out: out, told: make(chan string), signals: make(chan os.Signal, 4)}
	// Our reports may have no reader. (An ignored signal would stay so in the tools that are run, a caught one does not.)
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, unix.SIGPIPE)
	signal.Notify(k.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 2*maxRecord)
	if !lines.Scan() {
		return nil // whoever started us is dead
	}
	if err := json.Unmarshal(lines.Bytes(), &k.s); err != nil {
		return fmt.Errorf("what is to be held: %w: %w", backend.ErrInvalid, err)
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		defer close(k.told)
		for lines.Scan() {
			select {
			case k.told <- lines.Text():
			case <-over:
				return
			}
		}
	}()
	return k.keep()
}

func (k *keeper) say(r report) {
	text, err := json.Marshal(r)
	if err != nil {
		return
	}
	k.outMu.Lock()
	defer k.outMu.Unlock()
	k.out.Write(append(text, '\n')) // nobody may be listening
}

func (k *keeper) fail(err error) error {
	k.say(report{Event: eventFailed}.withError(err))
	return nil
}

func (k *keeper) keep() error {
	if k.s.Begin <= 0 || k.s.Hold <= 0 || k.s.End <= 0 {
		return k.fail(fmt.Errorf("there are no limits for what is to be held: %w", backend.ErrInvalid))
	}
	var err error
	if k.task, err = k.kinds.task(k.s.Kind, k.s.Task); err != nil {
		return k.fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), k.s.Begin)
	err = k.task.Prepare(ctx)
	cancel()
	if err != nil {
		return k.fail(err)
	}
	if k.s.Task, err = json.Marshal(k.task); err != nil {
		return k.fail(fmt.Errorf("%w: %w", backend.ErrInvalid, err))
	}
	if k.record, err = newRecord(k.s); err != nil {
		return k.fail(err)
	}
	k.say(report{Event: eventReady})
	select {
	case word := <-k.told: // "" at the end of the input
		if word != sayBegin {
			k.record.remove()
			return nil
		}
	case <-k.signals:
		k.record.remove()
		return nil
	}
	if err := k.record.set(phaseBegin); err != nil {
		k.record.remove()
		return k.fail(err)
	}
	limit := time.NewTimer(k.s.Hold)
	early, over, unsure, err := k.begin()
	if err != nil && !unsure {
		k.record.remove()
		return k.fail(err)
	}
	if err != nil {
		if endErr := k.end(false); endErr != nil && !isLast(endErr) {
			return endErr
		}
		return k.fail(err)
	}
	_ = k.record.set(phaseHeld) // without, whoever comes after us finds out for itself
	k.say(report{Event: eventBegun})
	if !over {
		early = k.wait(limit.C)
	}
	err = k.end(true)
	switch r := (report{Event: eventEnded, Early: early}); {
	case err == nil:
		k.say(r)
	case isLast(err):
		k.say(r.withError(err))
	default:
		return err
	}
	return nil
}

// Why a state is ended before that was asked for.
const (
	earlyDead = "domfs has ended"
	earlyTime = "its time was over"
)

// begin begins the state, and gives that up where it is not wanted any more: over. early says why, where nobody asked.
func (k *keeper) begin() (early string, over, unsure bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), k.s.Begin)
	defer cancel()
	type result struct {
		unsure bool
		err    error
	}
	done := make(chan result, 1)
	go func() {
		unsure, err := k.task.Begin(run.Inheriting(ctx, k.record.f))
		done <- result{unsure, err}
	}()
	told := k.told
	for {
		select {
		case r := <-done:
			return early, over, r.unsure, r.err
		case word := <-told:
			told = nil
			if word != sayEnd {
				early = earlyDead
			}
		case s := <-k.signals:
			early = "signal " + s.String()
		}
		over = true
		cancel()
	}
}

// wait waits until the state is to be ended; early says why it is, where nobody asked.
func (k *keeper) wait(limit <-chan time.Time) (early string) {
	select {
	case word := <-k.told:
		if word != sayEnd {
			return earlyDead
		}
		return ""
	case s := <-k.signals:
		return "signal " + s.String()
	case <-limit:
		return earlyTime
	}
}

func (k *keeper) end(sure bool) error {
	err := k.record.end(context.Background(), k.task, sure, func(err error) {
		k.say(report{Event: eventTrying}.withError(err))
		k.log.Error("a guest's state cannot be ended; it is tried again", zap.String("state", k.s.Kind), zap.Error(err))
	})
	if err != nil && !errors.Is(err, backend.ErrStale) {
		k.log.Error("a guest's state cannot be ended: do it by hand", zap.String("state", k.s.Kind), zap.String("record", k.s.Record), zap.Error(err))
	}
	return err
}

package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// kept is a domain that this process keeps paused, or its guest frozen, for a moment. The driver has a watchdog of its own, for
// when we are killed or hang.
type kept struct {
	h      *Host
	domain *Domain
	words  *keptWords
	limit  time.Duration
	undo   func(context.Context) error
	cancel context.CancelCauseFunc
	timer  *time.Timer
	began  time.Time // before it was asked for
	once   sync.Once
	done   chan struct{}

	// Valid once done is closed.
	late   bool          // the watchdog came first
	broken error         // it was not kept so until then: ErrStale
	lasted time.Duration // how long it was kept so, with what it took to undo it
}

// keptWords are for messages.
type keptWords struct{ undo, is, undone string }

var (
	pausedWords = &keptWords{undo: "resume", is: "paused", undone: "resumed"}
	frozenWords = &keptWords{undo: "thaw", is: "frozen", undone: "thawed"}
)

var errKeptTooLong = errors.New("the domain was kept paused or frozen for too long")

// Undoing is tried this often, so far apart, before it goes on in the background.
const (
	undoTries   = 3
	undoPause   = 100 * time.Millisecond
	undoRetry   = 2 * time.Second
	undoRetries = 300
)

// pause pauses d, for lim.pause at most: then it is resumed and the context that is
// returned ends.
func (h *Host) pause(ctx context.Context, pauser backend.Pauser, d *Domain) (*kept, context.Context, error) {
	k := &kept{h: h, domain: d, words: pausedWords, limit: h.lim.pause}
	return k.keep(ctx, func(ctx context.Context) (func(context.Context) error, error) {
		ctx, cancel := context.WithTimeout(ctx, h.lim.pause)
		defer cancel()
		return pauser.Pause(ctx, d.Domain)
	})
}

// freeze freezes d's guest for a snapshot, for lim.frozen at most, likewise.
func (h *Host) freeze(ctx context.Context, freezer backend.Freezer, d *Domain, snapshot string) (*kept, context.Context, error) {
	k := &kept{h: h, domain: d, words: frozenWords, limit: h.lim.frozen}
	return k.keep(ctx, func(ctx context.Context) (func(context.Context) error, error) {
		return freezer.Freeze(ctx, d.Domain, snapshot)
	})
}

func (k *kept) keep(ctx context.Context, begin func(context.Context) (func(context.Context) error, error)) (*kept, context.Context, error) {
	k.began = time.Now()
	k.h.keeping.Add(1)
	k.done = make(chan struct{})
	kctx, cancel := context.WithCancelCause(ctx)
	k.cancel = cancel
	undo, err := begin(ctx)
	k.undo = undo
	if err != nil {
		cancel(err)
		if undo != nil {
			k.finish(false)
		} else {
			k.h.keeping.Add(-1)
		}
		return nil, nil, fmt.Errorf("%s cannot be %s: %w", k.domain.Name, k.words.is, err)
	}
	k.timer = time.AfterFunc(k.limit, func() { k.finish(true) })
	return k, kctx, nil
}

// end undoes it; the error says why it was not so until now.
func (k *kept) end() error {
	k.timer.Stop()
	k.finish(false)
	<-k.done
	switch {
	case k.late:
		return fmt.Errorf("%s was %s for %s and the snapshots were still not made, so it was %s and nothing kept: %w", k.domain.Name, k.words.is, k.limit, k.words.undone, backend.ErrTimeout)
	case k.broken != nil:
		// Not as ErrStale: the kernel would repeat a mkdir that fails with ESTALE.
		return fmt.Errorf("%s did not stay %s until the snapshots were made, so nothing of them was kept (%v): %w", k.domain.Name, k.words.is, k.broken, backend.ErrIO)
	}
	return nil
}

func (k *kept) finish(late bool) {
	k.once.Do(func() {
		k.late = late
		k.cancel(errKeptTooLong)
		defer close(k.done)
		defer k.h.keeping.Add(-1)
		defer func() { k.lasted = time.Since(k.began) }()
		// All tries together have one limit: the host's lock is held, and a guest that does not answer is not to keep it from others.
		ctx, cancel := context.WithTimeout(context.Background(), k.limit)
		defer cancel()
		var err error
		for range undoTries {
			if err = k.undo(ctx); err == nil {
				return
			}
			if errors.Is(err, backend.ErrStale) {
				k.broken = err
				return
			}
			if ctx.Err() != nil {
				break
			}
			time.Sleep(undoPause)
		}
		k.h.log.Error("a domain stays "+k.words.is+": "+k.words.undo+" it by hand, until it is tried again", zap.String("domain", k.domain.Name), zap.Error(err))
		k.h.Failed(k.domain.Name, k.words.undo, fmt.Errorf("%s is still %s after its snapshot; it is tried again: %w", k.domain.Name, k.words.is, err))
		k.h.spawn(k.keepTrying)
	})
}

func (k *kept) try() error {
	ctx, cancel := context.WithTimeout(context.Background(), k.limit)
	defer cancel()
	return k.undo(ctx)
}

func (k *kept) keepTrying() {
	for range undoRetries {
		select {
		case <-time.After(undoRetry):
		case <-k.h.done.Done():
			k.try()
			return
		}
		if err := k.try(); err == nil || errors.Is(err, backend.ErrStale) {
			k.h.log.Info("a domain is "+k.words.undone+" at last", zap.String("domain", k.domain.Name))
			return
		}
	}
}

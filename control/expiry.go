package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// kickExpiry makes the expiry look again: something may be due sooner than it knows.
func (h *Host) kickExpiry() {
	select {
	case h.expiryKick <- struct{}{}:
	default: // it is going to look anyway
	}
}

// expiryLoop removes sets when they are due. When that is is in the sets' own records, which
// other daemons change, too: so it looks at them at least once each lim.tick, and activates what has appeared meanwhile.
func (h *Host) expiryLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	notBefore := map[string]time.Time{} // by set ID: failed, to be tried again then
	w := waker{known: map[string]bool{}}
	kicked := false
	for {
		select {
		case <-h.done.Done():
			return
		case <-timer.C:
		case <-h.expiryKick:
			if !kicked {
				kicked = true
				timer.Reset(2 * h.lim.sampleGap) // others read the host after a change, too: that reading does
			}
			continue
		}
		kicked = false
		timer.Reset(h.expire(notBefore, &w))
	}
}

// expire removes what is due, and returns when to look again.
func (h *Host) expire(notBefore map[string]time.Time, w *waker) time.Duration {
	inv, err := h.Inventory(h.done)
	if err != nil {
		return h.lim.tick
	}
	h.adoptOrphans(inv)
	w.look(h, inv)
	wait := h.lim.tick
	for id := range notBefore {
		if inv.byID[id] == nil {
			delete(notBefore, id)
		}
	}
	for _, d := range inv.Snapshots {
		for _, s := range d.Sets {
			if s.Expires.IsZero() || s.Hold || s.Stale != nil || s.Foreign {
				continue
			}
			due := s.Expires
			if t := notBefore[s.ID]; t.After(due) {
				due = t
			}
			if left := due.Sub(h.now()); left > 0 {
				wait = min(wait, left)
				continue
			}
			if h.done.Err() != nil {
				return wait
			}
			if err := h.expireSet(d.Name, s); err != nil && !errors.Is(err, backend.ErrNotExist) {
				notBefore[s.ID] = h.now().Add(h.lim.retry)
				wait = min(wait, h.lim.retry)
			}
		}
	}
	return max(wait, 10*time.Millisecond)
}

// expireSet removes one set that is due, if it still is under the lock. A failure is
// recorded once: the same sentence again is no news.
func (h *Host) expireSet(dir string, seen *Set) error {
	c := &change{op: "expire", domain: dir, snapshot: seen.Name, ignoreIfNotExist: true}
	return h.do(h.done, c, nil, func(ctx context.Context, inv *Inventory) error {
		d, s := inv.set(seen.ID)
		if s == nil {
			return fmt.Errorf("the snapshot is gone: %w", backend.ErrNotExist)
		}
		c.domain, c.snapshot = d.domainName(), s.Name
		if s.Expires.IsZero() || s.Hold || s.Stale != nil || s.Expires.After(h.now()) {
			c.quiet = true
			return nil
		}
		c.extra = []zap.Field{zap.Time("due", s.Expires)}
		err := inv.isDisk(d, s)
		if err == nil {
			err = h.removeSet(ctx, c, d, s)
		}
		if err != nil {
			return fmt.Errorf("snapshot %s is due for removal since %s: %w", s.Name, s.Expires.Format(time.RFC3339), err)
		}
		return nil
	})
}

package control

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// SetExpires sets when the daemon removes a set: "" never, RFC 3339, or a time from now as
// + and a number of minutes, hours, days or weeks (+90m, +12h, +7d, +4w). A time that is past
// already is ErrInvalid: a slip of the pen must not remove a snapshot; rmdir does that.
func (h *Host) SetExpires(ctx context.Context, dir, name, value string) error {
	c := &change{op: "expires", domain: dir, snapshot: name, message: value}
	var when time.Time
	check := func() (err error) {
		when, err = parseExpires(value, h.now())
		return err
	}
	return h.editMeta(ctx, c, dir, name, check, func(m *backend.SnapshotMeta) bool {
		same := m.Expires.Equal(when)
		m.Expires = when
		return !same
	})
}

// SetHold sets or clears a set's hold: "0" or "1".
func (h *Host) SetHold(ctx context.Context, dir, name, value string) error {
	c := &change{op: "hold", domain: dir, snapshot: name, message: value}
	check := func() error {
		if value != "0" && value != "1" {
			return fmt.Errorf("hold is 0 or 1, and %q is neither: %w", value, backend.ErrInvalid)
		}
		return nil
	}
	return h.editMeta(ctx, c, dir, name, check, func(m *backend.SnapshotMeta) bool {
		same := m.Hold == (value == "1")
		m.Hold = value == "1"
		return !same
	})
}

// editMeta changes the record of a set. edit tells whether it changed anything.
func (h *Host) editMeta(ctx context.Context, c *change, dir, name string, check func() error, edit func(m *backend.SnapshotMeta) bool) error {
	return h.do(ctx, c, check, func(ctx context.Context, inv *Inventory) error {
		d, s, err := c.findSet(inv, dir, name)
		if err != nil {
			return err
		}
		if err := s.changeable(d); err != nil {
			return err
		}
		changed := false
		for _, k := range s.Disks {
			m := k.SnapshotMeta
			changed = edit(&m) || changed
		}
		if !changed {
			c.quiet = true
			return nil
		}
		c.touched = append(c.touched, Change{Dir: d.Name, SetID: s.ID})
		c.extra = []zap.Field{zap.String("value", c.message)}
		return h.annotate(ctx, s, func(m *backend.SnapshotMeta) { edit(m) })
	})
}

const maxExpiry = 100 * 366 * 24 * time.Hour

// parseExpires reads what SetExpires describes. The result is in UTC, in whole seconds.
func parseExpires(value string, now time.Time) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	wrong := func(why string) (time.Time, error) {
		return time.Time{}, fmt.Errorf("%q %s; write a time such as 2030-01-31T12:00:00Z, +7d, +12h, or nothing for never: %w", oneLine(value), why, backend.ErrInvalid)
	}
	if value[0] != '+' {
		t, err := time.Parse(time.RFC3339, value)
		switch {
		case err != nil:
			return wrong("is no time")
		case !t.After(now):
			return wrong("is past")
		case t.Sub(now) > maxExpiry:
			return wrong("is more than a hundred years away")
		}
		return t.UTC().Truncate(time.Second), nil
	}
	units := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	unit := units[value[len(value)-1]]
	digits := value[1:max(1, len(value)-1)]
	if unit == 0 || !isDigits(digits) {
		return wrong("is no time")
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err != nil || n > int64(maxExpiry/unit):
		return wrong("is more than a hundred years away")
	case n == 0:
		return wrong("is now")
	}
	return now.Add(time.Duration(n) * unit).UTC().Truncate(time.Second), nil
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

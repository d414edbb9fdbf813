package xen

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
	"domfs/backend/run"
)

// xlTimeout is the deadline of `xl list`: it only asks, and waits for nothing. One that hangs is likely to hang again, while whoever reads
// the tree waits for it: so it gets less after that, but for each one of xlPatience.
const (
	xlTimeout   = 15 * time.Second
	xlImpatient = 2 * time.Second
	xlPatience  = 8
)

// states asks xl for the states of all domains, by number.
func (d *Driver) states(ctx context.Context) (map[int]backend.DomainState, error) {
	limit := xlTimeout
	if d.hangs.Load()%xlPatience != 0 {
		limit = xlImpatient
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := d.xl(limited)
	switch {
	case ctx.Err() != nil: // the caller would not wait
	case errors.Is(err, backend.ErrTimeout):
		d.hangs.Add(1)
	default:
		d.hangs.Store(0)
	}
	if err == nil {
		return parseList(string(out))
	}
	var e *run.Error
	if errors.As(err, &e) && e.Err == nil {
		return nil, fmt.Errorf("%w: %w", err, backend.ErrIO) // it ran, and says why not
	}
	return nil, err
}

// listLine is a line of `xl list`: name, number, megabytes, CPUs, state, seconds. A name may hold anything, so that the line
// is read from its end.
var listLine = regexp.MustCompile(`^.*\s([0-9]{1,5})\s+[0-9]+\s+[0-9]+\s+[r-][b-]([p-])([s-])([-rscwS?])([d-])\s+[0-9]+\.[0-9]+\s*$`)

const maxDomid = 0x7fef // DOMID_FIRST_RESERVED - 1

func parseList(out string) (map[int]backend.DomainState, error) {
	states := map[int]backend.DomainState{}
	head, rest, _ := strings.Cut(out, "\n")
	if !strings.HasPrefix(head, "Name ") || !strings.Contains(head, " ID ") {
		return nil, fmt.Errorf("xl list: its first line is %.80q: %w", head, backend.ErrCorrupt)
	}
	for line := range strings.Lines(rest) {
		m := listLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue // of a name that has several lines
		}
		id, err := strconv.Atoi(m[1])
		if err != nil || id > maxDomid {
			continue
		}
		if _, twice := states[id]; twice {
			return nil, fmt.Errorf("xl list: domain %d is in it twice: %w", id, backend.ErrCorrupt)
		}
		switch {
		case m[5] == "d":
			states[id] = backend.StateDying
		case m[3] == "s" && (m[4] == "c" || m[4] == "w"):
			states[id] = backend.StateCrashed
		case m[3] == "s":
			states[id] = backend.StateShutdown
		case m[2] == "p":
			states[id] = backend.StatePaused
		default:
			states[id] = backend.StateRunning
		}
	}
	if _, ok := states[0]; !ok {
		return nil, fmt.Errorf("xl list: domain 0 is not in it: %w", backend.ErrCorrupt)
	}
	return states, nil
}

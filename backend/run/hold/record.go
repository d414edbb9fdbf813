package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A record is a file that begins with one of these words, each 8 bytes; the spec follows as JSON, its Task as Prepare left it.
const (
	phaseReady  = "ready  \n" // nothing has begun
	phaseBegin  = "begin  \n" // it may have begun
	phaseHeld   = "held   \n" // it has begun, and nothing was done to end it
	phaseEnding = "ending \n" // it may have ended
)

const (
	phaseBytes = 8
	maxRecord  = 64 << 10 // bytes
	maxRecords = 1024     // that Release looks at
)

// record is a record that is locked by us, in two ways: as POSIX has it, for as long as this very process lives, and by flock(2), for as
// long as this process or a tool that it runs does.
type record struct {
	f *os.File
	s spec
}

const (
	// toolLimit is how long a tool of a keeper that was killed is waited for, for what it still does is not to
	// come after what is done in the keeper's place. One that has left something running does not hold that up for ever.
	toolLimit = 15 * time.Second
	// keeperLimit is how long Release waits for keepers that live: one that was killed a moment ago has its
	// locks until the kernel has taken all of it apart, and one whose domfs was killed is about to end what it holds.
	keeperLimit = 2 * time.Second
	lockPause   = 20 * time.Millisecond
)

// errKept says that a keeper lives.
var errKept = fmt.Errorf("a process keeps it: %w", backend.ErrBusy)

// lock locks the record; a keeper that has it is waited for until then. errKept: it still lives.
func (r *record) lock(ctx context.Context, until time.Time) error {
	for unix.FcntlFlock(r.f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}) != nil {
		if ctx.Err() != nil || !time.Now().Before(until) {
			return fmt.Errorf("%s: %w", r.f.Name(), errKept)
		}
		time.Sleep(lockPause)
	}
	for end := time.Now().Add(toolLimit); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(lockPause) {
		if unix.Flock(int(r.f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			break
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(r.f.Fd()), &st); err != nil || st.Nlink == 0 {
		return fmt.Errorf("%s: %w", r.f.Name(), backend.ErrNotExist) // whoever had the lock has removed it
	}
	return nil
}

// newRecord writes the record of what is to be held.
func newRecord(s spec) (*record, error) {
	f, err := os.OpenFile(s.Record, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the record of it: %w: %w", backend.ErrIO, err)
	}
	r := &record{f: f, s: s}
	text, err := json.Marshal(s)
	if err == nil && len(text)+phaseBytes > maxRecord {
		err = fmt.Errorf("%d bytes are too many: %w", len(text), backend.ErrInvalid)
	}
	if err == nil {
		err = r.lock(context.Background(), time.Time{})
	}
	if err == nil {
		_, err = f.Write(append([]byte(phaseReady), text...))
	}
	if err != nil {
		r.remove()
		return nil, fmt.Errorf("the record of it: %w: %w", backend.ErrIO, err)
	}
	return r, nil
}

// openRecord opens a record that nobody has locked; a keeper is waited for until then. errKept: it still lives.
// ErrNotExist: it has ended in good order.
func openRecord(ctx context.Context, path string, until time.Time) (*record, string, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("%s: %w", path, backend.ErrNotExist)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", backend.ErrIO, err)
	}
	r := &record{f: f}
	phase, err := r.read(ctx, path, until)
	if err != nil {
		f.Close()
		return nil, "", err
	}
	return r, phase, nil
}

func (r *record) read(ctx context.Context, path string, until time.Time) (phase string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(r.f.Fd()), &st); err != nil {
		return "", fmt.Errorf("%s: %w: %w", path, backend.ErrIO, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("%s is not a record that this user wrote: %w", path, backend.ErrAccess)
	}
	if err := r.lock(ctx, until); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(r.f, maxRecord))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", path, backend.ErrIO, err)
	}
	if len(text) < phaseBytes {
		return phaseReady, nil // killed as it was made
	}
	if err := json.Unmarshal(text[phaseBytes:], &r.s); err != nil {
		if string(text[:phaseBytes]) == phaseReady {
			r.s.Record = path
			return phaseReady, nil
		}
		return "", fmt.Errorf("%s: %w: %w", path, backend.ErrCorrupt, err)
	}
	r.s.Record = path
	return string(text[:phaseBytes]), nil
}

// set notes a phase.
func (r *record) set(phase string) error {
	if _, err := r.f.WriteAt([]byte(phase), 0); err != nil {
		return fmt.Errorf("the record %s: %w: %w", r.f.Name(), backend.ErrIO, err)
	}
	return nil
}

// remove removes the record, and then its lock.
func (r *record) remove() {
	os.Remove(r.f.Name())
	r.f.Close()
}

// How often, and for how long, it is tried to end a state.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
	maxTrying  = 10 * time.Minute
)

// end ends the state, and removes the record when that is done, or an error is the last word. It tries until ctx ends, for maxTrying at most; each failure is told to trying.
func (r *record) end(ctx context.Context, t Task, sure bool, trying func(error)) error {
	ctx, cancel := context.WithTimeout(ctx, maxTrying)
	defer cancel()
	pause := firstPause
	for {
		// A record that cannot be written to is no reason to leave a guest as it is.
		_ = r.set(phaseEnding)
		try, cancel := context.WithTimeout(ctx, r.s.End)
		unsure, err := t.End(run.Inheriting(try, r.f), sure)
		cancel()
		if err == nil || isLast(err) {
			r.remove()
			return err
		}
		sure = sure && !unsure
		if sure {
			_ = r.set(phaseHeld)
		} else {
			_ = r.set(phaseBegin)
		}
		trying(err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			r.f.Close()
			return err
		}
		pause = min(2*pause, lastPause)
	}
}

// release ends what the record at path names, in place of a keeper that is dead by then; nil where it is done already,
// errKept where the keeper still lives.
func release(ctx context.Context, path string, until time.Time, kinds Kinds, log *zap.Logger) error {
	r, phase, err := openRecord(ctx, path, until)
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if phase == phaseReady {
		r.remove()
		return nil
	}
	t, err := kinds.task(r.s.Kind, r.s.Task)
	if err != nil {
		r.f.Close()
		return err
	}
	log.Warn("what kept a guest in a state is dead: the state is ended in its place", zap.String("state", r.s.Kind), zap.String("record", path))
	err = r.end(ctx, t, phase == phaseHeld, func(err error) {
		log.Error("a guest's state cannot be ended; it is tried again", zap.String("state", r.s.Kind), zap.Error(err))
	})
	if errors.Is(err, backend.ErrStale) {
		return nil
	}
	return err
}

// Release ends all that records name whose keeper is dead: those whose paths begin with prefix. It tries until ctx
// ends; the error is of what could not be ended. Keepers that live are waited for, for two seconds at most: they may be about to die or to
// end what they hold. What one keeps for longer is left to it.
func Release(ctx context.Context, prefix string, kinds Kinds, log *zap.Logger) error {
	dir, base := filepath.Split(prefix)
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("the records of what was held: %w: %w", backend.ErrIO, err)
	}
	var paths []string
	for _, e := range entries {
		if len(e.Name()) > len(base) && e.Name()[:len(base)] == base && len(paths) < maxRecords {
			paths = append(paths, dir+e.Name())
		}
	}
	var errs []error
	// All that need not be waited for comes first.
	for _, wait := range []time.Duration{0, keeperLimit} {
		until := time.Now().Add(wait)
		var kept []string
		for _, path := range paths {
			switch err := release(ctx, path, until, kinds, log); {
			case errors.Is(err, errKept):
				kept = append(kept, path)
			case err != nil:
				errs = append(errs, err)
			}
		}
		paths = kept
	}
	for _, path := range paths {
		log.Info("a guest's state is left to the process that keeps it", zap.String("record", path))
	}
	return errors.Join(errs...)
}

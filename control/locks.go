package control

// Lock order, outermost first. A later one is taken while an earlier one is held, never
// the other way round.
//
//  1. hostLock: one change at a time, on the whole host: its slot (within the process), then
//     the flock (between processes). It alone is held while drivers change something. A copy
//     (fill.go) does not hold it while it copies, only to begin and to end, and neither does Attach while a new volume is cleared.
//  2. the flocks of sets (setLockPath): "this set is being copied", "is mapped"; only ever tried, never waited for.
//  3. rootCell.turn: one at a time finds out how a guest mounts its filesystems, opening them.
//  4. Volume.partsMu, then probeMu: one question about one volume at a time. The
//     driver that answers it is called with them held; it reads the device, and asks no
//     other volume. A filesystem is opened with none of them held.
//  5. every other mutex (inventoryCache, driverStates, volumeCache, mappings, Volume.fsMu, fillTable, makingSets, newDisks,
//     errorLog, eventHub, counters, guard): leaves. None is held while a driver, a
//     callback or another of them is called; eventHub calls its subscribers, which must not
//     block, with its send order held.
//
// A change that has to wait for something that itself wants the hostLock says so to it
// first: Remove abandons the copy that it waits for (fill.abandon).

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"domfs/backend"
)

// hostLock lets one change happen at a time, in this process and between processes.
type hostLock struct {
	path string        // "" for none between processes
	slot chan struct{} // full while a change of this process has the lock

	mu    sync.Mutex
	what  string    // guarded by mu; what the slot is held for
	since time.Time // guarded by mu
	died  string    // guarded by mu; who died with the lock, and in what: until takeDead
}

// takeDead says once who died in the middle of a change, of this or another daemon; "" if nobody has.
func (l *hostLock) takeDead() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	died := l.died
	l.died = ""
	return died
}

func newHostLock(path string) *hostLock {
	return &hostLock{path: path, slot: make(chan struct{}, 1)}
}

const (
	lockPollFirst = 2 * time.Millisecond
	lockPollLast  = 100 * time.Millisecond
	maxOwnerBytes = 256 // of the lock file's content
)

// acquire takes the lock for what, waiting at most wait: then ErrBusy, naming the holder.
func (l *hostLock) acquire(ctx context.Context, what string, wait time.Duration) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errLockWait)
	defer cancel()
	select {
	case l.slot <- struct{}{}:
	default:
		select {
		case l.slot <- struct{}{}:
		case <-ctx.Done():
			l.mu.Lock()
			holder := fmt.Sprintf("this daemon's %s, for %s already", l.what, time.Since(l.since).Round(time.Second))
			l.mu.Unlock()
			return nil, lockError(ctx, wait, holder)
		}
	}
	l.mu.Lock()
	l.what, l.since = what, time.Now()
	l.mu.Unlock()
	if l.path == "" {
		return func() { <-l.slot }, nil
	}
	f, err := lockFile(ctx, l.path, wait)
	if err != nil {
		<-l.slot
		return nil, err
	}
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		l.mu.Lock()
		l.died = readOwner(f)
		l.mu.Unlock()
	}
	writeOwner(f, what)
	return func() {
		f.Truncate(0) // it has ended: whoever finds more than that finds a change that was cut off
		f.Close()     // and with it goes the flock
		<-l.slot
	}, nil
}

// isHeld tells whether a change of this process has the lock, or waits for that of another one.
func (l *hostLock) isHeld() bool { return len(l.slot) > 0 }

var errLockWait = errors.New("waited for another change")

func lockError(ctx context.Context, wait time.Duration, holder string) error {
	if errors.Is(context.Cause(ctx), errLockWait) {
		return fmt.Errorf("another change has kept the host for more than %s (%s): try again later: %w", wait, holder, backend.ErrBusy)
	}
	return contextError(ctx, "waiting for another change")
}

// lockFile opens path, making it and its folder, and takes its flock.
func lockFile(ctx context.Context, path string, wait time.Duration) (*os.File, error) {
	poll := lockPollFirst
	for {
		f, err := openLockFile(path)
		if err != nil {
			return nil, err
		}
		held, err := tryFlock(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		if held && isStillAt(f, path) {
			return f, nil
		}
		owner := readOwner(f)
		f.Close()
		t := time.NewTimer(poll)
		select {
		case <-t.C:
			poll = min(2*poll, lockPollLast)
		case <-ctx.Done():
			t.Stop()
			return nil, lockError(ctx, wait, owner)
		}
	}
}

func openLockFile(path string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fileError("the lock's folder", err)
		}
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return nil, fileError("the lock file", err)
	}
	return f, nil
}

// tryFlock takes the exclusive flock if nobody has it.
func tryFlock(f *os.File) (bool, error) {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		default:
			return false, fileError("locking "+f.Name(), err)
		}
	}
}

// isStillAt tells whether path still names f: somebody may have removed the file between
// its opening and its locking, and a third one locked a new one.
func isStillAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func writeOwner(f *os.File, what string) {
	s := strconv.Itoa(os.Getpid()) + " " + oneLine(what)
	f.Truncate(0)
	f.WriteAt([]byte(s[:min(len(s), maxOwnerBytes-1)]+"\n"), 0)
}

func readOwner(f *os.File) string {
	b := make([]byte, maxOwnerBytes)
	n, _ := f.ReadAt(b, 0)
	pid, what, _ := strings.Cut(strings.TrimSpace(string(b[:n])), " ")
	if pid == "" {
		return "by a process that has not said who it is"
	}
	return "process " + pid + ": " + oneLine(what)
}

// fileError makes a sentence of a failed call on a file.
func fileError(what string, err error) error {
	s := backend.ErrIO
	switch {
	case errors.Is(err, fs.ErrPermission):
		s = backend.ErrAccess
	case errors.Is(err, fs.ErrNotExist):
		s = backend.ErrNotExist
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		s = backend.ErrNoSpace
	}
	return fmt.Errorf("%s: %w: %w", what, err, s)
}

// The kinds of what a daemon does with a set for longer than a change takes.
const (
	copies = "fill"
	mapped = "map"
)

// setLockPath is the file whose flock says that a daemon does it.
func (l *hostLock) setLockPath(kind, setID string) string {
	if !isSetID(setID) { // not made by this program, and no name for a file
		sum := sha256.Sum256([]byte(setID))
		setID = hex.EncodeToString(sum[:16])
	}
	return l.path + "." + kind + "-" + setID
}

// lockFill says to other daemons that this one is copying the set, until release. The host's
// lock is held.
func (l *hostLock) lockFill(setID string) (release func(), err error) {
	if l.path == "" {
		return func() {}, nil
	}
	f, err := l.lockSet(copies, setID)
	if err != nil {
		return nil, err
	}
	writeOwner(f, "copying snapshot "+setID)
	return func() {
		os.Remove(f.Name()) // while it is locked: nobody takes a leftover for a copy under way
		f.Close()
	}, nil
}

// lockMap says to other daemons that this one has mapped the set, or takes over what a dead one left to say so:
// ErrBusy if another has. The file stays where not all mappings are gone. The host's lock is held.
func (l *hostLock) lockMap(setID string) (release func(gone bool), err error) {
	if l.path == "" {
		return func(bool) {}, nil
	}
	f, err := l.lockSet(mapped, setID)
	if err != nil {
		return nil, err
	}
	writeOwner(f, "mapping snapshot "+setID)
	return func(gone bool) {
		if gone {
			os.Remove(f.Name())
		}
		f.Close()
	}, nil
}

func (l *hostLock) lockSet(kind, setID string) (*os.File, error) {
	path := l.setLockPath(kind, setID)
	f, err := openLockFile(path)
	if err != nil {
		return nil, err
	}
	held, err := tryFlock(f)
	if err == nil && !held {
		err = fmt.Errorf("%s is locked by another process: %w", path, backend.ErrBusy)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockDeadMap takes over the lock of a daemon that mapped a set and died; false if it lives, or if none that had this
// lock file mapped it. The host's lock is held.
func (l *hostLock) lockDeadMap(setID string) (release func(gone bool), dead bool) {
	if _, err := os.Lstat(l.setLockPath(mapped, setID)); err != nil && l.path != "" {
		return nil, false
	}
	release, err := l.lockMap(setID)
	return release, err == nil
}

// fillIsOrphaned tells whether no living process copies the set, and removes what a dead
// one left to say so. The host's lock is held.
func (l *hostLock) fillIsOrphaned(setID string) bool {
	if l.path == "" {
		return true
	}
	if !isSetID(setID) {
		return true // not made by this program
	}
	path := l.setLockPath(copies, setID)
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		// Where it cannot be told, the copy is left alone.
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	held, err := tryFlock(f)
	if err != nil || !held {
		return false
	}
	os.Remove(path)
	return true
}

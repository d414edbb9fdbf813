package lvm

import (
	"context"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/devmapper"

	"golang.org/x/sys/unix"
)

// validity tells of one open thick snapshot whether what was just read of it is true.
//
// A read that is under way as the snapshot overflows may bring bytes of the origin that were written
// since. That cannot be kept from happening, but it can be seen afterwards: the kernel lets a write to the origin pass which the
// snapshot has no room for only once the snapshot is marked invalid and the event of that is counted
// (drivers/md/dm-snap.c: __origin_write and pending_complete call invalidate_snapshot, which holds the snapshot's lock
// while __invalidate_snapshot clears valid and calls dm_table_event, and submit or retry the write after it has returned;
// drivers/md/dm.c: event_callback calls dm_issue_global_event, which counts; drivers/md/dm-ioctl.c: dm_poll compares
// that count with the one that DM_DEV_ARM_POLL noted). So where nothing is counted after a read, it is true; where
// something is, of whichever device, the snapshot is asked for its state before anything that was read is given away. What a read left in
// the page cache is covered, too: whoever gets it looks later than that read ended.
//
// A kernel whose control node cannot be waited on (before Linux 4.14) counts nothing: there the state is asked for
// after each read. That is slow, and right.
type validity struct {
	// ask asks device-mapper for the snapshot's state: fault is why it is none any more.
	ask func() (fault string, err error)

	mu     sync.Mutex
	events events    // nil where there are none; guarded by mu
	sure   bool      // the last answer holds unless something has happened since events were armed; guarded by mu
	closed bool      // guarded by mu
	began  time.Time // when it was last asked; guarded by mu
	fault  string    // the last answer, as is err; guarded by mu
	err    error     // guarded by mu
}

// events are what device-mapper counts, of all of its devices.
type events interface {
	// arm forgets what has happened so far.
	arm() error
	// happened tells, without waiting, whether anything has since.
	happened() (bool, error)
	close()
}

// check is called after a read. An error says that it is not known whether the snapshot is valid.
func (v *validity) check() (fault string, err error) {
	ended := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return "", backend.Because(backend.ErrStale, "it was closed meanwhile")
	}
	if v.began.After(ended) { // for another read, and later than this one ended
		return v.fault, v.err
	}
	if v.events == nil {
		v.sure = false
	} else if happened, err := v.events.happened(); err != nil {
		v.dropEventsLocked()
	} else if happened {
		v.sure = false
		// Armed before it is asked: what happens meanwhile is seen by the next.
		if err := v.events.arm(); err != nil {
			v.dropEventsLocked()
		}
	}
	if v.sure {
		return v.fault, nil
	}
	v.began = time.Now()
	v.fault, v.err = v.ask()
	v.sure = v.err == nil
	return v.fault, v.err
}

// dropEventsLocked gives up events that do not work.
func (v *validity) dropEventsLocked() {
	v.events.close()
	v.events, v.sure = nil, false
}

func (v *validity) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	if v.events != nil {
		v.dropEventsLocked()
	}
}

// controlEvents are those of device-mapper's control node.
type controlEvents struct{ fd int }

// openEvents opens and arms a control node.
func openEvents(control string) (events, error) {
	fd, err := unix.Open(control, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, words.Failed("watch", control, err)
	}
	e := controlEvents{fd}
	if err := e.arm(); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e controlEvents) arm() error { return armPoll(e.fd) }

func (e controlEvents) happened() (bool, error) {
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	for {
		switch _, err := unix.Poll(fds, 0); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, words.Failed("watch", devmapper.Node, err)
		case fds[0].Revents&^unix.POLLIN != 0:
			return false, backend.Because(backend.ErrIO, "watch %s: it cannot be waited on any more", devmapper.Node)
		}
		return fds[0].Revents != 0, nil
	}
}

func (e controlEvents) close() { unix.Close(e.fd) }

// askCOW asks device-mapper for the state of one thick snapshot.
func (s *Store) askCOW(uuid string) (fault string, err error) {
	dev, err := s.mapper.StatusOf(context.Background(), uuid)
	switch {
	case err != nil:
		return "", err
	case len(dev.Targets) == 0:
		return "", backend.Because(backend.ErrIO, "its device has no table")
	case len(dev.Targets) > 1 || dev.Targets[0].Type != segSnapshot:
		return "it is no snapshot any more: it was merged, or its device was given another table", nil
	}
	return parseCOW(dev.Targets[0].Status).fault, nil
}

// segSnapshot is the kind of a thick snapshot's target.
const segSnapshot = "snapshot"

// Package devmapper asks the kernel's device-mapper which devices it has, and what the targets of one say, through its control
// node (include/uapi/linux/dm-ioctl.h of Linux; drivers/md/dm-ioctl.c). It changes nothing: that is left to LVM, dmsetup and
// kpartx, which keep udev informed.
//
// What the targets of all devices say is not asked for here: those of a thin pool whose metadata cannot be read or written do not answer,
// and a process with a thread that waits for that in the kernel cannot be ended. dmsetup status can be left behind.
package devmapper

import (
	"context"
	"errors"
	"time"

	"domfs/backend"
	"domfs/backend/syserr"

	"golang.org/x/sys/unix"
)

// Node is the control node.
const Node = "/dev/mapper/control"

// Device is one device of device-mapper.
type Device struct {
	Name, UUID   string // UUID may be empty
	Major, Minor uint32
	Open         int // how many have it open, the kernel's own users included
	Suspended    bool
	Targets      []Target // of its live table; only StatusOf asks for them
}

// Target is one line of a device's table, with its status.
type Target struct {
	StartBytes, SizeBytes int64
	Type                  string // linear, snapshot, snapshot-origin, thin, thin-pool, …
	Status                string // what dmsetup status says after the type
}

const (
	// timeout is how long one question may take: the kernel answers from memory, but the state of a snapshot that is being marked invalid
	// waits until that is written.
	timeout = 20 * time.Second
	// maxAsking is how many questions may be under way. What waits in the kernel cannot be interrupted: more are not begun.
	maxAsking = 16
)

// Control asks through a control node. It is safe for concurrent use.
type Control struct {
	node   string
	asking chan struct{} // one element for each question that is under way
}

// New does not look whether there is such a node.
func New(node string) *Control {
	return &Control{node: node, asking: make(chan struct{}, maxAsking)}
}

// Devices are all devices, without their targets: no device is waited for. Errors: ErrTimeout, ErrAccess for all but root, ErrNotExist or
// ErrNoDevice where the kernel has no device-mapper.
func (c *Control) Devices(ctx context.Context) ([]Device, error) {
	return c.ask(ctx, "list the devices of device-mapper", (*query).all)
}

// StatusOf is the device that has a UUID, with its targets; ErrNoDevice if there is none. It does not wait for one that is suspended.
func (c *Control) StatusOf(ctx context.Context, uuid string) (Device, error) {
	found, err := c.ask(ctx, "ask device-mapper for the state of "+uuid, func(q *query) ([]Device, error) {
		d, err := q.one(unix.DM_TABLE_STATUS, 0, uuid)
		return []Device{d}, err
	})
	if err != nil {
		return Device{}, err
	}
	return found[0], nil
}

var words = syserr.Words{Hints: map[unix.Errno]string{
	unix.EACCES: "run domfs as root",
	unix.EPERM:  "run domfs as root",
}}

// ask runs f where its waiting in the kernel holds up nobody for longer than timeout.
func (c *Control) ask(ctx context.Context, what string, f func(*query) ([]Device, error)) ([]Device, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	late := func() error {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return backend.Because(backend.ErrTimeout, "%s: it does not answer", what)
		}
		return ctx.Err()
	}
	if ctx.Err() != nil {
		return nil, late()
	}
	select {
	case c.asking <- struct{}{}:
	case <-ctx.Done():
		return nil, late()
	}
	type answer struct {
		devices []Device
		err     error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if r := recover(); r != nil {
				a = answer{err: backend.Because(backend.ErrIO, "%s: %v", what, r)}
			}
			<-c.asking
			answered <- a
		}()
		if q, err := openQuery(c.node); err != nil {
			a.err = words.Failed(what+" through", c.node, err)
		} else {
			defer q.close()
			if a.devices, err = f(q); err != nil {
				a.err = words.Failed(what+" through", c.node, err)
			}
		}
	}()
	select {
	case a := <-answered:
		return a.devices, a.err
	case <-ctx.Done():
		return nil, late()
	}
}

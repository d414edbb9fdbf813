package xenstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"domfs/backend"
)

// Limits of one connection.
const (
	maxUnderway  = 256 // requests without an answer, those that nobody waits for any more included
	readBuffered = 64 << 10
)

// transport is a socket or a device.
type transport interface {
	io.ReadWriteCloser
	SetWriteDeadline(time.Time) error
}

// conn is one connection, until it is lost.
type conn struct {
	t       transport
	timeout time.Duration
	event   func(path, token string) // must not block
	lost    chan struct{}            // closed with the connection
	heard   atomic.Int64             // when something came in, in ns since began
	began   time.Time

	writing  chan struct{} // full while a request is being written
	watching chan struct{} // full while a WATCH or UNWATCH is under way

	mu      sync.Mutex
	err     error                 // guarded by mu; why it is lost
	next    uint32                // guarded by mu; the next request's number
	waiting map[uint32]*expecting // guarded by mu
	special *expecting            // guarded by mu; the WATCH or UNWATCH under way
}

// expecting is a request under way.
type expecting struct {
	typ    uint32
	req    uint32
	answer chan message // of one slot
}

func newConn(t transport, timeout time.Duration, event func(path, token string)) *conn {
	c := &conn{t: t, timeout: timeout, event: event, lost: make(chan struct{}), began: time.Now(), next: 1,
		writing: make(chan struct{}, 1), watching: make(chan struct{}, 1), waiting: map[uint32]*expecting{}}
	go c.receive()
	return c
}

// fail ends the connection; the first reason counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	close(c.lost)
	c.t.Close()
}

// why is why the connection is lost.
func (c *conn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *conn) isLost() bool { return c.why() != nil }

func (c *conn) receive() {
	r := bufio.NewReaderSize(c.t, readBuffered)
	for {
		m, err := readMessage(r)
		if err == nil {
			c.heard.Store(int64(time.Since(c.began)))
			err = c.take(m)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("it ended: %w", backend.ErrIO)
		}
		if !errors.Is(err, backend.ErrCorrupt) && !errors.Is(err, backend.ErrIO) {
			err = fmt.Errorf("%w: %w", err, backend.ErrIO)
		}
		c.fail(fmt.Errorf("the connection to xenstored is lost: %w", err))
		return
	}
}

// take gives a message to whom it is for.
func (c *conn) take(m message) error {
	if m.typ == typeWatchEvent { // its numbers mean nothing
		path, token, err := eventOf(m.payload)
		if err == nil {
			c.event(path, token)
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.waiting[m.req]
	if e == nil && m.req == 0 && c.special != nil {
		e = c.special
	}
	switch {
	case e == nil:
		return fmt.Errorf("an answer to request %d, which is not under way: %w", m.req, backend.ErrCorrupt)
	case m.typ != e.typ && m.typ != typeError:
		return fmt.Errorf("an answer of type %d to a request of type %d: %w", m.typ, e.typ, backend.ErrCorrupt)
	}
	delete(c.waiting, e.req)
	if c.special == e {
		c.special = nil
	}
	e.answer <- m // has a slot, and gets one message
	return nil
}

// call sends a request and waits for its answer, at most for the connection's timeout.
func (c *conn) call(ctx context.Context, typ, tx uint32, path string, payload []byte) ([]byte, error) {
	if len(payload) > maxPayload-headerBytes { // the kernel's device counts the header, too
		return nil, fmt.Errorf("a request of %d bytes: %w", len(payload), backend.ErrTooLong)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errSilent)
	defer cancel()
	if typ == typeWatch || typ == typeUnwatch {
		if err := c.enter(ctx, c.watching); err != nil {
			return nil, err
		}
		// Not until it is answered may there be another one: see conn.special.
		defer func() { <-c.watching }()
	}
	sent := time.Since(c.began)
	e, err := c.send(ctx, typ, tx, payload)
	if err != nil {
		return nil, err
	}
	select {
	case m := <-e.answer:
		return answerOf(m, typ, path)
	case <-c.lost:
		select {
		case m := <-e.answer: // came before
			return answerOf(m, typ, path)
		default:
			return nil, c.why()
		}
	case <-ctx.Done():
		err := c.gaveUp(ctx)
		silent := context.Cause(ctx) == errSilent && time.Duration(c.heard.Load()) <= sent
		if silent || typ == typeWatch || typ == typeUnwatch {
			// Whether the watch is set is not known now.
			c.fail(fmt.Errorf("the connection to xenstored is given up: %w", err))
		}
		return nil, err
	}
}

func answerOf(m message, typ uint32, path string) ([]byte, error) {
	if m.typ == typeError {
		return nil, errorOf(typ, path, m.payload)
	}
	return m.payload, nil
}

var errSilent = errors.New("xenstored does not answer")

func (c *conn) gaveUp(ctx context.Context) error {
	err := ctx.Err()
	if context.Cause(ctx) == errSilent {
		return fmt.Errorf("xenstored has not answered within %s: %w", c.timeout, backend.ErrTimeout)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("xenstored has not answered in time: %w: %w", backend.ErrTimeout, err)
	}
	return fmt.Errorf("xenstored was not waited for: %w", err)
}

// enter takes a slot.
func (c *conn) enter(ctx context.Context, slot chan struct{}) error {
	if ctx.Err() != nil {
		return c.gaveUp(ctx)
	}
	select {
	case slot <- struct{}{}:
		return nil
	case <-c.lost:
		return c.why()
	case <-ctx.Done():
		return c.gaveUp(ctx)
	}
}

// send writes a request. One that is written in part ends the connection.
func (c *conn) send(ctx context.Context, typ, tx uint32, payload []byte) (*expecting, error) {
	if err := c.enter(ctx, c.writing); err != nil {
		return nil, err
	}
	defer func() { <-c.writing }()
	e := &expecting{typ: typ, answer: make(chan message, 1)}
	if err := c.expect(e); err != nil {
		return nil, err
	}
	b := message{typ: typ, req: e.req, tx: tx, payload: payload}.encode()
	c.t.SetWriteDeadline(time.Time{})
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.t.SetWriteDeadline(time.Unix(1, 0))
		close(ended)
	})
	n, err := c.t.Write(b)
	if !stop() {
		<-ended // or it would set its deadline for the next request
	}
	if err == nil {
		return e, nil
	}
	if lost := c.why(); lost != nil {
		return nil, lost
	}
	if ctx.Err() != nil {
		err = c.gaveUp(ctx)
	} else {
		err = fmt.Errorf("%w: %w", err, backend.ErrIO)
	}
	c.fail(fmt.Errorf("the connection to xenstored is lost: a request of %d bytes was written to %d: %w", len(b), n, err))
	return nil, c.why()
}

// expect makes a request's number.
func (c *conn) expect(e *expecting) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if len(c.waiting) >= maxUnderway {
		c.failLocked(fmt.Errorf("the connection to xenstored is given up: it owes %d answers: %w", len(c.waiting), backend.ErrTimeout))
		return c.err
	}
	for c.next == 0 || c.waiting[c.next] != nil {
		c.next++
	}
	e.req = c.next
	c.next++
	c.waiting[e.req] = e
	if e.typ == typeWatch || e.typ == typeUnwatch {
		c.special = e
	}
	return nil
}

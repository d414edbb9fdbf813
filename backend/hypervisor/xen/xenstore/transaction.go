package xenstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"domfs/backend"
)

// Tx is a transaction: what it reads is of one instant.
type Tx struct {
	c  *conn
	id uint32
}

// Read is the value of the node at path.
func (t *Tx) Read(ctx context.Context, path string) (string, error) {
	return read(ctx, t.c, t.id, path)
}

// Directory are the names of the nodes below path, in no order.
func (t *Tx) Directory(ctx context.Context, path string) ([]string, error) {
	return directory(ctx, t.c, t.id, path)
}

// Permissions are those of the node at path.
func (t *Tx) Permissions(ctx context.Context, path string) (Permissions, error) {
	return permissions(ctx, t.c, t.id, path)
}

// Limits of the attempts at a transaction that others interfere with.
const (
	maxTransactions  = 5
	transactionPause = 2 * time.Millisecond // before the second; each further one is twice as long
	endTimeout       = time.Second          // for ending one whose caller has gone
)

// Transaction runs f in a transaction, again where others changed meanwhile what it read, a few times: then ErrBusy.
func (c *Client) Transaction(ctx context.Context, f func(t *Tx) error) error {
	pause := transactionPause
	for attempt := 1; ; attempt++ {
		err := c.transaction(ctx, f)
		if refusal(err) != "EAGAIN" {
			return err
		}
		if attempt == maxTransactions {
			return fmt.Errorf("the store changed during each of %d attempts to read it: %w", attempt, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return contextError(ctx)
		}
		pause *= 2
	}
}

func (c *Client) transaction(ctx context.Context, f func(t *Tx) error) error {
	conn, err := c.connected(ctx)
	if err != nil {
		return err
	}
	b, err := conn.call(ctx, typeTransactionStart, 0, "", []byte{0})
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, backend.ErrTimeout) {
			// Its answer may come yet, with a transaction that nobody would end.
			conn.fail(fmt.Errorf("the connection to xenstored is given up: %w", err))
		}
		return err
	}
	id, err := strconv.ParseUint(text(b), 10, 32)
	if err != nil || id == 0 {
		err = fmt.Errorf("%.40q as the number of a transaction: %w", b, backend.ErrCorrupt)
		conn.fail(err)
		return err
	}
	t := &Tx{c: conn, id: uint32(id)}
	if err := f(t); err != nil {
		t.end(context.WithoutCancel(ctx), "F")
		return err
	}
	if ctx.Err() != nil {
		t.end(context.WithoutCancel(ctx), "F")
		return contextError(ctx)
	}
	return t.end(context.WithoutCancel(ctx), "T")
}

func (t *Tx) end(ctx context.Context, how string) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	_, err := t.c.call(ctx, typeTransactionEnd, t.id, "", []byte(how+"\x00"))
	if ctx.Err() != nil {
		t.c.fail(fmt.Errorf("the connection to xenstored is given up: a transaction does not end: %w", err))
	}
	return err
}

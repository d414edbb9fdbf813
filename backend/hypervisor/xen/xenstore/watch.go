package xenstore

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"domfs/backend"
)

const (
	maxWatches  = 1 << 16         // of a Client
	stopTimeout = 3 * time.Second // for ending one
)

// Watch is a watch of a path and of all below it. It outlives connections.
type Watch struct {
	c     *Client
	path  string
	token string
	fire  func(path string)
}

// Watch watches path and all below it, or @introduceDomain or @releaseDomain. fire is called for each change with the path that
// changed, and once when the watch is set up, with each connection. It must not block.
func (c *Client) Watch(ctx context.Context, path string, fire func(path string)) (*Watch, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	conn, err := c.connectedLocked(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if len(c.watches) >= maxWatches {
		c.mu.Unlock()
		return nil, fmt.Errorf("watch %s: there are %d watches already: %w", path, maxWatches, backend.ErrNoSpace)
	}
	c.tokens++
	w := &Watch{c: c, path: path, token: "domfs-" + strconv.FormatUint(c.tokens, 10), fire: fire}
	c.watches[w.token] = w
	c.mu.Unlock()
	if err := w.set(ctx, conn); err != nil {
		c.forget(w)
		return nil, err
	}
	return w, nil
}

func (c *Client) forget(w *Watch) {
	c.mu.Lock()
	delete(c.watches, w.token)
	c.mu.Unlock()
}

// fire gives an event to its watch, if that is still there.
func (c *Client) fire(path, token string) {
	c.mu.Lock()
	w := c.watches[token]
	c.mu.Unlock()
	if w != nil {
		w.fire(path)
	}
}

// set sets the watch up. It runs to its end, within the connection's timeout.
func (w *Watch) set(ctx context.Context, conn *conn) error {
	_, err := conn.call(context.WithoutCancel(ctx), typeWatch, 0, w.path, []byte(w.path+"\x00"+w.token+"\x00"))
	return err
}

// Stop ends the watch. It waits for xenstored, whatever becomes of ctx, but not for one that does not answer.
func (w *Watch) Stop(ctx context.Context) {
	w.c.forget(w)
	if conn, _ := w.c.current(); conn != nil { // of one that is lost nothing is left to be ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		conn.call(ctx, typeUnwatch, 0, w.path, []byte(w.path+"\x00"+w.token+"\x00"))
	}
}

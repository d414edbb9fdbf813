package xenstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"domfs/backend"
)

// DefaultPaths are where xenstored is found: its socket, then the kernel's device, which leads to it wherever
// it runs.
var DefaultPaths = []string{"/run/xenstored/socket", "/var/run/xenstored/socket", "/dev/xen/xenbus", "/proc/xen/xenbus"}

// DefaultTimeout is how long a request waits for its answer, at most.
const DefaultTimeout = 10 * time.Second

// Options are what a Client is made of.
type Options struct {
	Paths   []string      // sockets and devices, of which the first that is there is used; none: DefaultPaths
	Timeout time.Duration // 0: DefaultTimeout
}

// Client talks to xenstored. It is safe for concurrent use. Its errors wrap backend's sentinels: ErrNotExist where there is
// no such node, ErrNoDevice where there is no xenstored, ErrTimeout, ErrIO for a lost connection, ErrCorrupt for
// an answer that cannot be one.
type Client struct {
	paths   []string
	timeout time.Duration

	connecting chan struct{} // full while a connection is being made or watches are being set

	mu      sync.Mutex
	conn    *conn             // guarded by mu; nil before the first
	watches map[string]*Watch // guarded by mu; by token
	tokens  uint64            // guarded by mu; how many there were
	closed  bool              // guarded by mu
}

// New makes a Client; it connects when it is first used.
func New(o Options) *Client {
	if len(o.Paths) == 0 {
		o.Paths = DefaultPaths
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return &Client{paths: o.Paths, timeout: o.Timeout, connecting: make(chan struct{}, 1), watches: map[string]*Watch{}}
}

var errClosed = fmt.Errorf("the connection to xenstored is closed: %w", backend.ErrIO)

// Close ends the connection for good.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		conn.fail(errClosed)
	}
}

// Connect connects if there is no connection. lost is closed when that is lost.
func (c *Client) Connect(ctx context.Context) (lost <-chan struct{}, err error) {
	conn, err := c.connected(ctx)
	if err != nil {
		return nil, err
	}
	return conn.lost, nil
}

// current is the connection, nil if there is none now.
func (c *Client) current() (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, errClosed
	case c.conn == nil || c.conn.isLost():
		return nil, nil
	}
	return c.conn, nil
}

// connected is the connection, or a new one, in which the watches are set.
func (c *Client) connected(ctx context.Context) (*conn, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	if conn, err := c.current(); conn != nil || err != nil {
		return conn, err
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	return c.connectedLocked(ctx)
}

func (c *Client) lock(ctx context.Context) error {
	select {
	case c.connecting <- struct{}{}:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	}
}

func (c *Client) unlock() { <-c.connecting }

// connectedLocked is called with the slot connecting.
func (c *Client) connectedLocked(ctx context.Context) (*conn, error) {
	if conn, err := c.current(); conn != nil || err != nil {
		return conn, err
	}
	t, err := open(ctx, c.paths)
	if err != nil {
		return nil, err
	}
	conn := newConn(t, c.timeout, c.fire)
	c.mu.Lock()
	var watches []*Watch
	for _, w := range c.watches {
		watches = append(watches, w)
	}
	c.mu.Unlock()
	for _, w := range watches {
		if err := w.set(ctx, conn); err != nil {
			err = fmt.Errorf("set up the watches again: %w", err)
			conn.fail(err)
			return nil, err
		}
	}
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.conn = conn
	}
	c.mu.Unlock()
	if closed {
		conn.fail(errClosed)
		return nil, errClosed
	}
	return conn, nil
}

// open opens the first of paths that is there. A socket at which nobody listens is one that is there: the kernel's device
// would lead to the same dead xenstored, and wait for it.
func open(ctx context.Context, paths []string) (transport, error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, openError(path, err)
		}
		if info.Mode().Type() == fs.ModeSocket {
			var d net.Dialer
			s, err := d.DialContext(ctx, "unix", path)
			if err != nil && ctx.Err() != nil {
				return nil, contextError(ctx)
			}
			if err != nil {
				return nil, openError(path, err)
			}
			return s.(*net.UnixConn), nil
		}
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			return nil, openError(path, err)
		}
		return f, nil
	}
	return nil, fmt.Errorf("xenstored is not there (none of %q exists; is this domain 0 of a Xen host?): %w", paths, backend.ErrNoDevice)
}

func openError(path string, err error) error {
	s := backend.ErrIO
	var ne net.Error
	switch {
	case errors.Is(err, fs.ErrPermission):
		s = backend.ErrAccess
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		s = backend.ErrNoDevice
	case errors.As(err, &ne) && ne.Timeout(): // the dialer's clock may be ahead of the context's
		s = backend.ErrTimeout
	}
	return fmt.Errorf("xenstored cannot be reached at %s (is it running?): %w: %w", path, err, s)
}

func contextError(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("ask xenstored: %w: %w", backend.ErrTimeout, err)
	}
	return fmt.Errorf("ask xenstored: %w", err)
}

// Read is the value of the node at path.
func (c *Client) Read(ctx context.Context, path string) (string, error) {
	conn, err := c.connected(ctx)
	if err != nil {
		return "", err
	}
	return read(ctx, conn, 0, path)
}

// Directory are the names of the nodes below path, in no order.
func (c *Client) Directory(ctx context.Context, path string) ([]string, error) {
	conn, err := c.connected(ctx)
	if err != nil {
		return nil, err
	}
	return directory(ctx, conn, 0, path)
}

// Permissions are those of the node at path.
func (c *Client) Permissions(ctx context.Context, path string) (Permissions, error) {
	conn, err := c.connected(ctx)
	if err != nil {
		return nil, err
	}
	return permissions(ctx, conn, 0, path)
}

func ask(ctx context.Context, c *conn, typ, tx uint32, path string) ([]byte, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	return c.call(ctx, typ, tx, path, []byte(path+"\x00"))
}

func read(ctx context.Context, c *conn, tx uint32, path string) (string, error) {
	b, err := ask(ctx, c, typeRead, tx, path)
	return string(b), err
}

func permissions(ctx context.Context, c *conn, tx uint32, path string) (Permissions, error) {
	b, err := ask(ctx, c, typePermissions, tx, path)
	if err != nil {
		return nil, err
	}
	p, err := permissionsOf(b)
	if err != nil {
		return nil, fmt.Errorf("the permissions of %s: %w", path, err)
	}
	return p, nil
}

// Limits of a list, and of the attempts to read one in parts that changes meanwhile.
const (
	maxNames        = 1 << 16
	maxListBytes    = 4 << 20
	maxListAttempts = 8
)

func directory(ctx context.Context, c *conn, tx uint32, path string) ([]string, error) {
	b, err := ask(ctx, c, typeDirectory, tx, path)
	if refusal(err) == "E2BIG" {
		if b, err = directoryInParts(ctx, c, tx, path); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	names, err := namesOf(b)
	if err != nil {
		return nil, fmt.Errorf("the list of %s: %w", path, err)
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("the list of %s has %d names, of which %d are the most: %w", path, len(names), maxNames, backend.ErrCorrupt)
	}
	return names, nil
}

// directoryInParts reads a list that does not fit into one message.
func directoryInParts(ctx context.Context, c *conn, tx uint32, path string) ([]byte, error) {
	for range maxListAttempts {
		list, same, err := onePass(ctx, c, tx, path)
		if name := refusal(err); name == "EINVAL" || name == "ENOSYS" {
			return nil, fmt.Errorf("the list of %s is too long for this xenstored to tell: %w: %w", path, err, backend.ErrUnsupported)
		}
		if err != nil || same {
			return list, err
		}
	}
	return nil, fmt.Errorf("%s changes faster than its list can be read: %w", path, backend.ErrBusy)
}

// onePass reads a list's parts; same is false where it changed between two.
func onePass(ctx context.Context, c *conn, tx uint32, path string) (list []byte, same bool, err error) {
	generation := ""
	for {
		payload := path + "\x00" + strconv.Itoa(len(list)) + "\x00"
		b, err := c.call(ctx, typeDirectoryPart, tx, path, []byte(payload))
		if err != nil {
			return nil, false, err
		}
		parts, err := stringsOf(b)
		if err != nil || len(parts) < 2 {
			return nil, false, fmt.Errorf("a part of the list of %s is malformed: %w", path, backend.ErrCorrupt)
		}
		if generation == "" {
			generation = parts[0]
		} else if parts[0] != generation {
			return nil, false, nil
		}
		for i, name := range parts[1:] {
			if name == "" { // the end of the list
				if i != len(parts)-2 {
					return nil, false, fmt.Errorf("the list of %s goes on after its end: %w", path, backend.ErrCorrupt)
				}
				return list, true, nil
			}
			list = append(append(list, name...), 0)
		}
		if len(list) > maxListBytes {
			return nil, false, fmt.Errorf("the list of %s has more than %d bytes: %w", path, maxListBytes, backend.ErrCorrupt)
		}
	}
}

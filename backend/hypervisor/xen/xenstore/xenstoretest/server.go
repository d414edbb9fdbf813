// Package xenstoretest is a xenstored for tests: its store, watches, transactions and lists in parts, and hooks for
// one that does not behave.
package xenstoretest

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The types of messages that it knows.
const (
	Directory        = 1
	Read             = 2
	GetPerms         = 3
	Watch            = 4
	Unwatch          = 5
	TransactionStart = 6
	TransactionEnd   = 7
	WatchEvent       = 15
	Error            = 16
	DirectoryPart    = 22

	maxPayload = 4096
)

// Message is a request or a reply.
type Message struct {
	Type, Req, Tx uint32
	Payload       string
}

// Encode is the message as it is sent.
func (m Message) Encode() []byte {
	b := make([]byte, 16, 16+len(m.Payload))
	for i, n := range []uint32{m.Type, m.Req, m.Tx, uint32(len(m.Payload))} {
		binary.NativeEndian.PutUint32(b[4*i:], n)
	}
	return append(b, m.Payload...)
}

// Conn is a client's connection, as a hook sees it.
type Conn struct {
	net.Conn
	mu      sync.Mutex
	watches []watch              // guarded by Server.mu
	txs     map[uint32]*snapshot // guarded by Server.mu
}

type watch struct{ path, token string }

type snapshot struct {
	nodes      map[string]*node
	generation uint64
}

// Send sends messages.
func (c *Conn) Send(ms ...Message) {
	var b []byte
	for _, m := range ms {
		b = append(b, m.Encode()...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.SetWriteDeadline(time.Now().Add(time.Second)) // a client that does not read is its own fault
	c.Conn.Write(b)
}

type node struct {
	value string
	perms []string
}

// Hook sees each request first. It answers what it likes, and true where nothing more is to be done about it.
type Hook func(c *Conn, m Message) bool

// Server is a xenstored.
type Server struct {
	t    testing.TB
	path string

	mu         sync.Mutex
	listener   net.Listener     // guarded by mu
	nodes      map[string]*node // guarded by mu; never changed in place
	generation uint64           // guarded by mu
	conns      []*Conn          // guarded by mu
	hook       Hook             // guarded by mu
	requests   map[uint32]int   // guarded by mu; by type
	reads      []string         // guarded by mu; paths that were asked for
	noParts    string           // guarded by mu; errno for DIRECTORY_PART
	nextTx     uint32           // guarded by mu
	running    sync.WaitGroup
}

// New starts a Server, which ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	// A socket's path has 107 bytes at most, and a test's own folder is named for the test.
	dir, err := os.MkdirTemp("", "xs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{t: t, path: filepath.Join(dir, "socket"), nodes: map[string]*node{"/": {perms: []string{"n0"}}}, requests: map[uint32]int{}, nextTx: 1}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Path is its socket.
func (s *Server) Path() string { return s.path }

// Start listens again after Stop.
func (s *Server) Start() {
	l, err := net.Listen("unix", s.path)
	if err != nil {
		s.t.Errorf("xenstoretest: %v", err)
		return
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	s.running.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c := &Conn{Conn: nc, txs: map[uint32]*snapshot{}}
			s.mu.Lock()
			if s.listener != l {
				s.mu.Unlock()
				nc.Close()
				return
			}
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.running.Go(func() { s.serve(c) })
		}
	})
}

// Stop ends it and all connections; the store stays.
func (s *Server) Stop() {
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.running.Wait()
}

// Hook sets what sees each request first; nil for nothing.
func (s *Server) Hook(h Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = h
}

// NoParts makes DIRECTORY_PART fail, as versions before 4.9 do.
func (s *Server) NoParts(errno string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noParts = errno
}

// Requests is how many requests of a type there were.
func (s *Server) Requests(typ uint32) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[typ]
}

// Asked are the paths of all requests so far, watches included.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reads)
}

// Watches are the paths that are watched now, sorted.
func (s *Server) Watches() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, c := range s.conns {
		for _, w := range c.watches {
			out = append(out, w.path)
		}
	}
	slices.Sort(out)
	return out
}

// Conns is how many clients are connected.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Set writes nodes, in one transaction: paths and values by turns. Missing parents are made. New nodes have their parent's permissions.
func (s *Server) Set(pathsAndValues ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.editLocked(func(nodes map[string]*node) {
		for i := 0; i < len(pathsAndValues); i += 2 {
			n := *makeNode(nodes, pathsAndValues[i])
			n.value = pathsAndValues[i+1]
			nodes[pathsAndValues[i]] = &n
		}
	})
	for i := 0; i < len(pathsAndValues); i += 2 {
		s.fireLocked(pathsAndValues[i])
	}
}

// lsLine is a node as `xenstore-ls -fp` prints it: path, value, permissions.
var lsLine = regexp.MustCompile(`^(/\S*) = "(.*)"   \(([^()]+)\)$`)

// Load writes the nodes that `xenstore-ls -fp` has printed, with their permissions. Values are taken as they are printed.
func (s *Server) Load(listing string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.editLocked(func(nodes map[string]*node) {
		for line := range strings.Lines(listing) {
			m := lsLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
			if m == nil || strings.Contains(m[2], `\`) { // the octal number of a character that cannot be printed
				s.t.Errorf("xenstoretest: %q is no line of xenstore-ls -fp that can be read", line)
				continue
			}
			makeNode(nodes, m[1])
			nodes[m[1]] = &node{value: m[2], perms: strings.Split(m[3], ",")}
		}
	})
}

// Permissions are those of a node; nil where it is not there.
func (s *Server) Permissions(path string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[path]; n != nil {
		return slices.Clone(n.perms)
	}
	return nil
}

// Permit sets the permissions of a node and of all below it: n0, r5 …
func (s *Server) Permit(path string, perms ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.editLocked(func(nodes map[string]*node) {
		makeNode(nodes, path)
		for p, old := range nodes {
			if within(p, path) {
				n := *old
				n.perms = perms
				nodes[p] = &n
			}
		}
	})
	s.fireLocked(path)
}

// Remove removes nodes and all below them.
func (s *Server) Remove(paths ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []string
	s.editLocked(func(nodes map[string]*node) {
		for p := range nodes {
			if slices.ContainsFunc(paths, func(path string) bool { return within(p, path) }) {
				gone = append(gone, p)
				delete(nodes, p)
			}
		}
	})
	for _, p := range paths {
		s.fireLocked(p)
	}
	// A watch below what is removed fires with its own path.
	for _, c := range s.conns {
		for _, w := range c.watches {
			if slices.Contains(gone, w.path) && !slices.Contains(paths, w.path) {
				c.Send(Message{Type: WatchEvent, Payload: w.path + "\x00" + w.token + "\x00"})
			}
		}
	}
}

// Fire fires @introduceDomain or @releaseDomain.
func (s *Server) Fire(special string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fireLocked(special)
}

// Broadcast sends a message to all clients.
func (s *Server) Broadcast(ms ...Message) {
	s.mu.Lock()
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	for _, c := range conns {
		c.Send(ms...)
	}
}

func within(p, root string) bool {
	return p == root || root == "/" || strings.HasPrefix(p, root+"/")
}

func (s *Server) editLocked(f func(nodes map[string]*node)) {
	nodes := make(map[string]*node, len(s.nodes))
	for p, n := range s.nodes {
		nodes[p] = n
	}
	f(nodes)
	s.nodes = nodes
	s.generation++
}

func makeNode(nodes map[string]*node, path string) *node {
	if n := nodes[path]; n != nil {
		return n
	}
	n := &node{perms: makeNode(nodes, parent(path)).perms}
	nodes[path] = n
	return n
}

func parent(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 {
		return "/"
	}
	return path[:i]
}

func (s *Server) fireLocked(path string) {
	for _, c := range s.conns {
		for _, w := range c.watches {
			if within(path, w.path) {
				c.Send(Message{Type: WatchEvent, Payload: path + "\x00" + w.token + "\x00"})
			}
		}
	}
}

func readMessage(r io.Reader) (Message, error) {
	var h [16]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Message{}, err
	}
	n := binary.NativeEndian.Uint32(h[12:])
	if n > maxPayload {
		return Message{}, io.ErrShortBuffer
	}
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	return Message{Type: binary.NativeEndian.Uint32(h[0:]), Req: binary.NativeEndian.Uint32(h[4:]), Tx: binary.NativeEndian.Uint32(h[8:]), Payload: string(p)}, err
}

func (s *Server) serve(c *Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		s.conns = slices.DeleteFunc(s.conns, func(o *Conn) bool { return o == c })
		s.mu.Unlock()
	}()
	for {
		m, err := readMessage(c)
		if err != nil {
			return
		}
		path, _, _ := strings.Cut(m.Payload, "\x00")
		s.mu.Lock()
		s.requests[m.Type]++
		if strings.HasPrefix(path, "/") || strings.HasPrefix(path, "@") {
			s.reads = append(s.reads, path)
		}
		hook := s.hook
		s.mu.Unlock()
		if hook != nil && hook(c, m) {
			continue
		}
		s.answer(c, m)
	}
}

// Answer answers a request as a xenstored does: for hooks.
func (s *Server) Answer(c *Conn, m Message) { s.answer(c, m) }

func (s *Server) answer(c *Conn, m Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := func(payload string) { c.Send(Message{Type: m.Type, Req: m.Req, Tx: m.Tx, Payload: payload}) }
	fail := func(errno string) { c.Send(Message{Type: Error, Req: m.Req, Tx: m.Tx, Payload: errno + "\x00"}) }
	args := strings.Split(strings.TrimSuffix(m.Payload, "\x00"), "\x00")
	if strings.Count(m.Payload, "\x00") == 0 && m.Payload != "" {
		fail("EINVAL")
		return
	}
	nodes := s.nodes
	if m.Tx != 0 {
		tx := c.txs[m.Tx]
		if tx == nil {
			fail("ENOENT")
			return
		}
		nodes = tx.nodes
	}
	switch m.Type {
	case TransactionStart:
		id := s.nextTx
		s.nextTx++
		c.txs[id] = &snapshot{nodes: s.nodes, generation: s.generation}
		reply(strconv.FormatUint(uint64(id), 10) + "\x00")
		return
	case TransactionEnd:
		tx := c.txs[m.Tx]
		if tx == nil {
			fail("ENOENT")
			return
		}
		delete(c.txs, m.Tx)
		if args[0] == "T" && tx.generation != s.generation {
			fail("EAGAIN")
			return
		}
		reply("OK\x00")
		return
	case Watch:
		c.watches = append(c.watches, watch{args[0], args[1]})
		reply("OK\x00")
		c.Send(Message{Type: WatchEvent, Payload: args[0] + "\x00" + args[1] + "\x00"})
		return
	case Unwatch:
		i := slices.Index(c.watches, watch{args[0], args[1]})
		if i < 0 {
			fail("ENOENT")
			return
		}
		c.watches = slices.Delete(c.watches, i, i+1)
		reply("OK\x00")
		return
	}
	n := nodes[args[0]]
	if n == nil {
		fail("ENOENT")
		return
	}
	switch m.Type {
	case Read:
		reply(n.value)
	case GetPerms:
		reply(strings.Join(n.perms, "\x00") + "\x00")
	case Directory:
		list := children(nodes, args[0])
		if len(list) > maxPayload {
			fail("E2BIG")
			return
		}
		reply(list)
	case DirectoryPart:
		if s.noParts != "" {
			fail(s.noParts)
			return
		}
		reply(part(children(nodes, args[0]), args[1], s.generation))
	default:
		fail("ENOSYS")
	}
}

func children(nodes map[string]*node, path string) string {
	var names []string
	for p := range nodes {
		if p != "/" && parent(p) == path {
			names = append(names, p[strings.LastIndexByte(p, '/')+1:]+"\x00")
		}
	}
	slices.Sort(names)
	return strings.Join(names, "")
}

func part(list, offset string, generation uint64) string {
	head := strconv.FormatUint(generation, 10) + "\x00"
	off, _ := strconv.Atoi(offset)
	if off >= len(list) {
		return head + "\x00"
	}
	rest := list[off:]
	room := maxPayload - len(head) - 1
	if len(rest) <= room {
		return head + rest + "\x00"
	}
	return head + rest[:strings.LastIndexByte(rest[:room], 0)+1]
}

package vfs

import (
	"encoding/json"
	"sync"

	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxEvents is how many events wait for a reader that does not read; then the oldest are
// dropped, and a line says how many.
const maxEvents = 1024

// maxStreams is how many may read events at a time.
const maxStreams = 64

// eventStream is an open .domfs/events: what happened since it was opened.
type eventStream struct {
	mu       sync.Mutex
	lines    [][]byte      // guarded by mu
	rest     []byte        // of a line that was read in part; guarded by mu
	dropped  int           // guarded by mu
	closed   bool          // guarded by mu
	wake     chan struct{} // one message when lines came or the stream closed
	nonblock bool
	cancel   func()
}

func newEventStream(h *control.Host, nonblock bool) *eventStream {
	s := &eventStream{wake: make(chan struct{}, 1), nonblock: nonblock}
	s.cancel = h.Events(s.put)
	return s
}

func (s *eventStream) put(e control.Event) {
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	s.mu.Lock()
	if len(s.lines) == maxEvents {
		s.lines = s.lines[1:]
		s.dropped++
	}
	s.lines = append(s.lines, append(line, '\n'))
	s.mu.Unlock()
	s.signal()
}

func (s *eventStream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *eventStream) close() {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.signal()
}

// read blocks until there is an event.
func (s *eventStream) read(c *call, buf []byte) (fuse.ReadResult, error) {
	for {
		if n, ok := s.take(buf); ok {
			return fuse.ReadResultData(buf[:n]), nil
		}
		if s.nonblock {
			return nil, errWouldWait
		}
		select {
		case <-s.wake:
		case <-c.fs.ending:
			return fuse.ReadResultData(nil), nil
		case <-c.ctx.Done():
			return nil, c.ctx.Err()
		}
	}
}

// take fills buf with as many whole lines as fit; of a line longer than buf, with its beginning.
func (s *eventStream) take(buf []byte) (n int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, true
	}
	if s.dropped > 0 && len(s.rest) == 0 {
		s.rest, _ = json.Marshal(struct {
			Event   string `json:"event"`
			Dropped int    `json:"dropped"`
		}{"dropped", s.dropped})
		s.rest = append(s.rest, '\n')
		s.dropped = 0
	}
	for {
		if len(s.rest) == 0 {
			if len(s.lines) == 0 {
				break
			}
			s.rest, s.lines = s.lines[0], s.lines[1:]
		}
		if n > 0 && n+len(s.rest) > len(buf) {
			break
		}
		m := copy(buf[n:], s.rest)
		s.rest = s.rest[m:]
		n += m
		if len(s.rest) > 0 {
			break
		}
	}
	return n, n > 0
}

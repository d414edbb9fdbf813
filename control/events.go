package control

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

// Event is one thing that happened; it is marshalled as one JSON object.
type Event struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"` // snapshot, remove, rename, resize, attach, detach, extend, fill, forecast, invalid, error, warning, expire, …
	Domain   string    `json:"domain,omitempty"`
	Snapshot string    `json:"snapshot,omitempty"`
	Disk     string    `json:"disk,omitempty"`
	Errno    string    `json:"errno,omitempty"`
	Message  string    `json:"message,omitempty"`
	Done     int64     `json:"done_bytes,omitempty"`
	Total    int64     `json:"total_bytes,omitempty"`
	Took     float64   `json:"took_seconds,omitempty"`
	// Paused and Frozen are how long the domain was kept so: from before it was asked for until it was undone.
	Paused float64 `json:"paused_seconds,omitempty"`
	Frozen float64 `json:"frozen_seconds,omitempty"`
}

// MarshalJSON writes the bytes done of each event that has a total, though they are none yet.
func (e Event) MarshalJSON() ([]byte, error) {
	type plain Event
	if e.Total == 0 {
		return json.Marshal(plain(e))
	}
	return json.Marshal(struct {
		plain
		Done int64 `json:"done_bytes"`
	}{plain(e), e.Done})
}

type subscriber struct {
	f         func(Event)
	cancelled atomic.Bool
}

type eventHub struct {
	sendMu sync.Mutex // keeps events in order for each subscriber
	mu     sync.Mutex
	subs   []*subscriber // guarded by mu; replaced, never changed
}

// Events calls f with each event from now on until cancel is called, one at a time and
// in order. f must not block; it may call cancel. A call of f under way when cancel is called
// ends after it.
func (h *Host) Events(f func(Event)) (cancel func()) {
	hub := &h.events
	s := &subscriber{f: f}
	hub.mu.Lock()
	hub.subs = append(slices.Clip(hub.subs), s)
	hub.mu.Unlock()
	return func() {
		s.cancelled.Store(true)
		hub.mu.Lock()
		hub.subs = slices.DeleteFunc(slices.Clone(hub.subs), func(o *subscriber) bool { return o == s })
		hub.mu.Unlock()
	}
}

func (h *Host) emit(e Event) {
	hub := &h.events
	hub.sendMu.Lock()
	defer hub.sendMu.Unlock()
	e.Time = h.now().UTC()
	hub.mu.Lock()
	subs := hub.subs
	hub.mu.Unlock()
	h.stats.add("events", 1)
	for _, s := range subs {
		if !s.cancelled.Load() {
			s.f(e)
		}
	}
}

const maxSentenceBytes = 1024

// oneLine makes text fit for a line of a log: control characters and line ends become
// spaces, and it is cut to 1024 bytes.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }), " ")
	if len(s) > maxSentenceBytes {
		s = s[:maxSentenceBytes-len("…")]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return s
}

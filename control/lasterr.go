package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	maxErrorsPerDomain = 16
	maxErrorDomains    = 1024 // names come from users' gestures, too
)

// errorLog is what last_error shows, by domain name.
type errorLog struct {
	mu      sync.Mutex
	domains map[string]*domainErrors // guarded by mu
	uses    int64                    // guarded by mu; counts recordings
}

type domainErrors struct {
	next  int // number of the next line
	used  int64
	lines []errorLine
}

type errorLine struct {
	number   int
	time     time.Time
	op       string
	errno    string
	sentence string
}

func (l *errorLog) init() { l.domains = map[string]*domainErrors{} }

// record adds a line to a domain's last_error; false if it is there already: then its
// time is renewed and it becomes the last, and keeps its number.
func (h *Host) record(domain, op, errno, sentence string) (isNew bool) {
	sentence = oneLine(sentence)
	now := h.now().UTC()
	l := &h.errs
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uses++
	d := l.domains[domain]
	if d == nil {
		l.makeRoomLocked()
		d = &domainErrors{next: 1}
		l.domains[domain] = d
	}
	d.used = l.uses
	for i, e := range d.lines {
		if e.op == op && e.errno == errno && e.sentence == sentence {
			e.time = now
			d.lines = append(slices.Delete(d.lines, i, i+1), e)
			return false
		}
	}
	if len(d.lines) == maxErrorsPerDomain {
		d.lines = slices.Delete(d.lines, 0, 1)
	}
	d.lines = append(d.lines, errorLine{d.next, now, op, errno, sentence})
	d.next++
	return true
}

func (l *errorLog) makeRoomLocked() {
	if len(l.domains) < maxErrorDomains {
		return
	}
	oldest, used := "", int64(0)
	for name, d := range l.domains {
		if used == 0 || d.used < used {
			oldest, used = name, d.used
		}
	}
	delete(l.domains, oldest)
}

// Failed records a failure of op that happened outside of the verbs (opening a
// disk, a refused gesture), and returns err. The same sentence again only renews its time.
// A context that was cancelled is no failure.
func (h *Host) Failed(domain, op string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	errno := h.errno(err)
	if h.record(domain, op, errno, err.Error()) {
		h.stats.add("failures", 1)
		c := &change{h: h, op: op, domain: domain}
		h.logFailure(c, 0, err)
		h.emit(Event{Event: "error", Domain: domain, Errno: errno, Message: op + ": " + oneLine(err.Error())})
	}
	return err
}

// warning records what a reader should know of, once.
func (h *Host) warning(domain, snapshot, op, sentence string) {
	if !h.record(domain, op, "WARNING", sentence) {
		return
	}
	h.log.Warn(oneLine(sentence), zap.String("op", op), zap.String("domain", domain), zap.String("snapshot", snapshot))
	h.emit(Event{Event: "warning", Domain: domain, Snapshot: snapshot, Message: op + ": " + oneLine(sentence)})
}

// LastErrors is the text of a domain's last_error: up to 16 lines, newest last; each is
// number, RFC 3339 time, operation, errno name and a sentence, separated by one space.
// The errno of a warning is WARNING.
func (h *Host) LastErrors(domain string) []byte {
	l := &h.errs
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.domains[domain]
	if d == nil {
		return nil
	}
	var b bytes.Buffer
	for _, e := range d.lines {
		fmt.Fprintf(&b, "%d %s %s %s %s\n", e.number, e.time.Format(time.RFC3339), e.op, e.errno, e.sentence)
	}
	return b.Bytes()
}

package lvm

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
)

// fakeEvents are counted as the kernel counts them.
type fakeEvents struct {
	mu           sync.Mutex
	count, noted int
	broken       bool
	closed       int
}

func (e *fakeEvents) happen() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count++
}

func (e *fakeEvents) arm() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.noted = e.count
	return nil
}

func (e *fakeEvents) happened() (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.broken {
		return false, backend.ErrIO
	}
	return e.count > e.noted, nil
}

func (e *fakeEvents) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed++
}

// during is a device of which something happens while it is read.
type during struct {
	backend.Device
	do func()
}

func (d *during) ReadAt(p []byte, _ int64) (int, error) {
	if d.do != nil {
		d.do()
	}
	return copy(p, "what the origin has now"), nil
}

func (d *during) Close() error { return nil }

const (
	cowUUID     = "LVM-cow"
	stillValid  = "0 65536 snapshot 16/8192 16\n"
	nowInvalid  = "0 65536 snapshot Invalid\n"
	nowSomeElse = "0 65536 error \n"
	nowTwo      = "0 32768 snapshot 16/8192 16\n32768 32768 linear \n"
	noTable     = "\n"
)

// openCOW is an open thick snapshot whose state device-mapper tells in this order; "" is an answer that takes too long.
func openCOW(t *testing.T, e events, answers ...string) (*openVolume, *during, *run.Transcript) {
	t.Helper()
	transcript := &run.Transcript{}
	for _, answer := range answers {
		call := run.Call{Argv: append(slices.Clone(toldStatus), "--uuid", cowUUID), Stdout: run.Text(answer)}
		if answer == "" {
			call.Exit, call.Failure = -1, "timeout"
		}
		transcript.Calls = append(transcript.Calls, call)
	}
	s := New(Options{Log: zap.NewNop()})
	s.mapper = told{transcript.Replay()}
	s.events = func(string) (events, error) {
		if e == nil {
			return nil, backend.ErrUnsupported
		}
		return e, nil
	}
	h := &handles{open: 1}
	s.opened[cowUUID] = h
	d := &during{}
	o := &openVolume{Device: d, store: s, id: "e/s", uuid: cowUUID, handles: h, isCOW: true, validity: s.watchOver("e/s", cowUUID)}
	return o, d, transcript
}

func wantRead(t *testing.T, o *openVolume, what string) {
	t.Helper()
	if n, err := o.ReadAt(make([]byte, 8), 0); n != 8 || err != nil {
		t.Errorf("%s: ReadAt = %d, %v", what, n, err)
	}
}

func wantNoRead(t *testing.T, o *openVolume, what, words string) {
	t.Helper()
	if n, err := o.ReadAt(make([]byte, 8), 0); n != 0 || !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: ReadAt = %d, %v, want ErrIO and %q", what, n, err, words)
	}
}

func checkAll(t *testing.T, transcript *run.Transcript) {
	t.Helper()
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
}

func TestReadAt_GivesNothingThatWasReadWhileTheSnapshotOverflowed(t *testing.T) {
	e := &fakeEvents{}
	o, d, transcript := openCOW(t, e, stillValid, nowInvalid)
	wantRead(t, o, "at first")
	wantRead(t, o, "nothing happened")
	d.do = e.happen
	wantNoRead(t, o, "it overflows meanwhile", "e/s: it is invalid")
	d.do = func() { t.Error("an invalid snapshot is read") }
	wantNoRead(t, o, "it is invalid", "e/s: it is invalid")
	checkAll(t, transcript)
}

func TestReadAt_AsksOnceForEachEvent(t *testing.T) {
	e := &fakeEvents{}
	o, _, transcript := openCOW(t, e, stillValid, stillValid, stillValid)
	for range 2 {
		wantRead(t, o, "nothing happened")
	}
	for range 2 {
		e.happen()
		e.happen()
		wantRead(t, o, "something happened to others")
		wantRead(t, o, "nothing happened since")
	}
	checkAll(t, transcript)
}

func TestReadAt_FailsWhereTheSnapshotIsNoneAnyMore(t *testing.T) {
	for _, now := range []string{nowSomeElse, nowTwo} {
		o, _, transcript := openCOW(t, &fakeEvents{}, now)
		wantNoRead(t, o, "another table", "no snapshot any more")
		wantNoRead(t, o, "later", "no snapshot any more")
		checkAll(t, transcript)
	}
}

func TestReadAt_FailsWhileTheStateIsUnknown(t *testing.T) {
	e := &fakeEvents{}
	o, _, transcript := openCOW(t, e, stillValid, "", "", noTable, stillValid)
	wantRead(t, o, "at first")
	e.happen()
	for range 3 {
		wantNoRead(t, o, "no answer", "not known whether it is valid")
	}
	wantRead(t, o, "there is an answer")
	wantRead(t, o, "nothing happened since")
	checkAll(t, transcript)
}

// A read that ends while the state is being asked for, for another one, waits for an answer.
func TestReadAt_IsNotTrueWhileTheStateIsBeingAskedFor(t *testing.T) {
	e := &fakeEvents{}
	o, d, _ := openCOW(t, e)
	asked, answer := make(chan struct{}, 1), make(chan string)
	asks := 0
	o.validity.ask = func() (string, error) {
		asks++
		asked <- struct{}{}
		return <-answer, nil
	}
	go func() { <-asked; answer <- "" }()
	wantRead(t, o, "at first")
	d.do = e.happen
	results := make(chan error, 2)
	read := func(o *openVolume) {
		n, err := o.ReadAt(make([]byte, 8), 0)
		if err == nil && n != 8 {
			err = errors.New("short")
		}
		results <- err
	}
	go read(o)
	<-asked
	// During this one nothing happens any more.
	go read(&openVolume{Device: &during{}, store: o.store, id: o.id, uuid: o.uuid, handles: o.handles, isCOW: true, validity: o.validity})
	select {
	case err := <-results:
		t.Fatalf("a read ended before the answer: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	answer <- "it is invalid"
	for range 2 {
		if err := <-results; !errors.Is(err, backend.ErrIO) {
			t.Errorf("ReadAt = %v", err)
		}
	}
	if asks != 2 {
		t.Errorf("it was asked %d times", asks)
	}
}

func TestReadAt_AsksEachTimeWhereThereAreNoEvents(t *testing.T) {
	t.Run("never", func(t *testing.T) {
		o, _, transcript := openCOW(t, nil, stillValid, stillValid, nowInvalid)
		wantRead(t, o, "first")
		wantRead(t, o, "second")
		wantNoRead(t, o, "third", "it is invalid")
		checkAll(t, transcript)
	})
	t.Run("any more", func(t *testing.T) {
		e := &fakeEvents{}
		o, _, transcript := openCOW(t, e, stillValid, stillValid, nowInvalid)
		wantRead(t, o, "first")
		e.broken = true
		wantRead(t, o, "second")
		wantNoRead(t, o, "third", "it is invalid")
		if e.closed != 1 {
			t.Errorf("closed %d times", e.closed)
		}
		checkAll(t, transcript)
	})
}

func TestClose_EndsTheEventsOnce(t *testing.T) {
	e := &fakeEvents{}
	o, d, transcript := openCOW(t, e, stillValid)
	wantRead(t, o, "open")
	d.do = func() { o.Close() }
	if n, err := o.ReadAt(make([]byte, 8), 0); n != 0 || !errors.Is(err, backend.ErrStale) {
		t.Errorf("ReadAt of what is closed meanwhile = %d, %v", n, err)
	}
	o.Close()
	if e.closed != 1 {
		t.Errorf("closed %d times", e.closed)
	}
	checkAll(t, transcript)
}

func TestOpenEvents_OfNoControlNodeSaysSo(t *testing.T) {
	if e, err := openEvents("/dev/null"); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("%v, %v", e, err)
	}
	if e, err := openEvents("/nonexistent"); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("%v, %v", e, err)
	}
}

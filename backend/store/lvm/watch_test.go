package lvm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// eventHost is a store whose control node is a pipe: each byte in it is an event, and it is armed by emptying it.
func eventHost(t *testing.T, calls []run.Call, log *zap.Logger) (s *Store, happen func(), transcript *run.Transcript) {
	t.Helper()
	transcript = &run.Transcript{Calls: calls}
	s = onHost(t, Options{Runner: transcript.Replay(), Log: log}, "", "")
	s.control = filepath.Join(t.TempDir(), "control")
	if err := unix.Mkfifo(s.control, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.control, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s.arm = func(control int) error {
		if err := unix.SetNonblock(control, true); err != nil {
			return err
		}
		for b := make([]byte, 64); ; {
			if n, err := unix.Read(control, b); n <= 0 || err != nil {
				return nil
			}
		}
	}
	return s, func() {
		if _, err := f.Write([]byte{1}); err != nil {
			t.Error(err)
		}
	}, transcript
}

// watching calls Watch until the test ends.
func watching(t *testing.T, s *Store) (changed chan struct{}, ended chan error, end func()) {
	t.Helper()
	changed, ended = make(chan struct{}, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.Watch(ctx, func() { changed <- struct{}{} })
	}()
	end = func() { cancel(); <-done }
	t.Cleanup(end)
	return changed, ended, end
}

func awaitChange(t *testing.T, changed chan struct{}, what string) {
	t.Helper()
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatalf("changed was not called: %s", what)
	}
}

func TestWatch_CallsOnceAtFirstAndThenForWhatHappens(t *testing.T) {
	recorded, err := run.ReadTranscript("testdata/host.json")
	if err != nil {
		t.Fatal(err)
	}
	info, status := recorded.Calls[1], recorded.Calls[2]
	s, happen, transcript := eventHost(t, []run.Call{info, status, info, status}, nil)
	happen() // before it begins: not told of, but covered by the first call
	changed, ended, end := watching(t, s)
	awaitChange(t, changed, "it begins")
	select {
	case <-changed:
		t.Error("changed was called twice as it began")
	case <-time.After(10 * settleEvents):
	}
	h := &handles{open: 1}
	s.mu.Lock()
	for _, id := range openUUIDs(t, info, status, "e-a.s--2") {
		s.opened[id] = h
	}
	s.mu.Unlock()
	for range 2 {
		happen()
		happen()
		awaitChange(t, changed, "something happened")
		if h.fault.Load() == nil {
			t.Error("changed was called before an open snapshot was known to be invalid")
		}
	}
	end()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
	if len(changed) != 0 {
		t.Errorf("changed was called %d times more", len(changed))
	}
	checkAll(t, transcript)
}

func TestWatch_AsksNothingWhileNoVolumeIsOpen(t *testing.T) {
	s, happen, transcript := eventHost(t, nil, nil)
	changed, _, end := watching(t, s)
	awaitChange(t, changed, "it begins")
	for range 2 {
		happen()
		awaitChange(t, changed, "something happened")
	}
	end()
	checkAll(t, transcript)
}

// What Open has been told may be out of date before it has the volume open.
func TestWatch_AsksForAVolumeThatIsBeingOpened(t *testing.T) {
	recorded, err := run.ReadTranscript("testdata/host.json")
	if err != nil {
		t.Fatal(err)
	}
	s, happen, transcript := eventHost(t, recorded.Calls[1:3], nil)
	changed, _, end := watching(t, s)
	awaitChange(t, changed, "it begins")
	s.beginOpen(1)
	happen()
	awaitChange(t, changed, "something happened")
	s.beginOpen(-1)
	end()
	checkAll(t, transcript)
}

// openUUIDs are the UUIDs of devices.
func openUUIDs(t *testing.T, info, status run.Call, names ...string) (uuids []string) {
	t.Helper()
	d := devicesOf(t, string(info.Stdout), string(status.Stdout))
	for _, name := range names {
		if d.byName[name] == nil {
			t.Fatalf("there is no device %s", name)
		}
		uuids = append(uuids, d.byName[name].UUID)
	}
	return uuids
}

// Whoever is told looks, and is told why that fails.
func TestWatch_GoesOnWhereDeviceMapperDoesNotAnswer(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	s, happen, transcript := eventHost(t, []run.Call{{Argv: toldInfo, Exit: -1, Failure: "timeout"}}, zap.New(core))
	s.opened["LVM-x"] = &handles{open: 1} // whose state an event makes it ask for
	changed, _, end := watching(t, s)
	awaitChange(t, changed, "it begins")
	happen()
	awaitChange(t, changed, "something happened")
	end()
	if logs.FilterMessageSnippet("does not say of what").Len() != 1 || logs.Len() != 1 {
		t.Errorf("%+v", logs.All())
	}
	checkAll(t, transcript)
}

func TestWatch_EndsWhereThereIsNothingToWatch(t *testing.T) {
	t.Run("the tools are gone", func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		s, happen, transcript := eventHost(t, []run.Call{{Argv: toldInfo}, {Argv: toldStatus, Exit: -1, Failure: "missing"}}, zap.New(core))
		s.opened["LVM-x"] = &handles{open: 1} // whose state an event makes it ask for
		changed, ended, _ := watching(t, s)
		awaitChange(t, changed, "it begins")
		happen()
		select {
		case err := <-ended:
			if !errors.Is(err, backend.ErrUnsupported) {
				t.Errorf("Watch = %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Watch goes on")
		}
		if logs.Len() != 0 {
			t.Errorf("%+v", logs.All())
		}
		checkAll(t, transcript)
	})
	never := func() { t.Error("changed was called") }
	t.Run("no device-mapper", func(t *testing.T) {
		s, _, _ := eventHost(t, nil, nil)
		s.sysfs = t.TempDir()
		if err := s.Watch(t.Context(), never); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Watch = %v", err)
		}
	})
	t.Run("no control node", func(t *testing.T) {
		s, _, _ := eventHost(t, nil, nil)
		s.control += ".none"
		if err := s.Watch(t.Context(), never); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Watch = %v", err)
		}
	})
	t.Run("a kernel without events", func(t *testing.T) {
		s, _, _ := eventHost(t, nil, nil)
		s.arm = armPoll
		if err := s.Watch(t.Context(), never); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Watch = %v", err)
		}
	})
}

func TestControlEvents_AreSeenWithoutWaiting(t *testing.T) {
	s, happen, _ := eventHost(t, nil, nil)
	fd, err := unix.Open(s.control, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	e := controlEvents{fd}
	defer e.close()
	for _, want := range []bool{false, true} {
		if got, err := e.happened(); got != want || err != nil {
			t.Errorf("happened = %t, %v, want %t", got, err, want)
		}
		happen()
	}
}

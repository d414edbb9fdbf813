package xenstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore"
	"domfs/backend/hypervisor/xen/xenstore/xenstoretest"
)

func open(t *testing.T, timeout time.Duration) (*xenstoretest.Server, *xenstore.Client) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() { eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before }) })
	s := xenstoretest.New(t)
	c := xenstore.New(xenstore.Options{Paths: []string{filepath.Join(t.TempDir(), "none"), s.Path()}, Timeout: timeout})
	t.Cleanup(c.Close)
	return s, c
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func wantRead(t *testing.T, c *xenstore.Client, path, want string) {
	t.Helper()
	if got, err := c.Read(t.Context(), path); err != nil || got != want {
		t.Errorf("%s is %q, %v; want %q", path, got, err, want)
	}
}

func TestClient_ReadsWhatIsThere(t *testing.T) {
	s, c := open(t, 0)
	s.Set("/local/domain/7/name", "web01", "/local/domain/7/empty", "", "/local/domain/12", "", "/binary", "a\x00b\xff")
	s.Permit("/local/domain/7", "n0", "r7", "b3")
	wantRead(t, c, "/local/domain/7/name", "web01")
	wantRead(t, c, "/local/domain/7/empty", "")
	wantRead(t, c, "/binary", "a\x00b\xff")
	names, err := c.Directory(t.Context(), "/local/domain")
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"12", "7"}) {
		t.Errorf("names %q, %v", names, err)
	}
	if names, err := c.Directory(t.Context(), "/local/domain/12"); err != nil || len(names) != 0 {
		t.Errorf("names of an empty node %q, %v", names, err)
	}
	p, err := c.Permissions(t.Context(), "/local/domain/7/name")
	if err != nil || fmt.Sprint(p) != "[{0 false false} {7 true false} {3 true true}]" {
		t.Errorf("permissions %v, %v", p, err)
	}
	if _, err := c.Read(t.Context(), "/nowhere"); !errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a node that is not there: %v", err)
	}
	for _, path := range []string{"", "relative", "/a//b", "/a/", "/a\x00b", "/a b", "/" + strings.Repeat("x", 3072)} {
		if _, err := c.Read(t.Context(), path); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("path %.20q: %v", path, err)
		}
	}
	if s.Conns() != 1 {
		t.Errorf("%d connections", s.Conns())
	}
}

func TestPermissions_TellWhoMayWrite(t *testing.T) {
	s, c := open(t, 0)
	dom0 := func(d int) bool { return d == 0 }
	for perms, want := range map[string]bool{"n0": false, "n0 r7": false, "r0": false, "n0 w7": true, "n0 b7": true, "n7": true, "b0": true, "w0": true, "n0 r7 b8": true, "n0 b0": false} {
		s.Set("/x", "")
		s.Permit("/x", strings.Fields(perms)...)
		p, err := c.Permissions(t.Context(), "/x")
		if err != nil || p.WritableBy(dom0) != want {
			t.Errorf("%s: writable by a guest: %v, %v; want %v", perms, p.WritableBy(dom0), err, want)
		}
	}
}

func TestDirectory_OfAnyLengthIsReadInParts(t *testing.T) {
	s, c := open(t, 0)
	var nodes, want []string
	for i := range 3000 {
		name := fmt.Sprintf("node-%04d", i)
		want = append(want, name)
		nodes = append(nodes, "/big/"+name, "")
	}
	s.Set(nodes...)
	got, err := c.Directory(t.Context(), "/big")
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d names, %v", len(got), err)
	}
	// One that changes between two parts is read again.
	n := 0
	s.Hook(func(conn *xenstoretest.Conn, m xenstoretest.Message) bool {
		if m.Type == xenstoretest.DirectoryPart {
			if n++; n == 3 {
				s.Set("/big/zz", "")
			}
		}
		return false
	})
	got, err = c.Directory(t.Context(), "/big")
	if err != nil || len(got) != 3001 || !slices.Contains(got, "zz") {
		t.Errorf("%d names after a change, %v", len(got), err)
	}
	s.Hook(func(conn *xenstoretest.Conn, m xenstoretest.Message) bool {
		if m.Type == xenstoretest.DirectoryPart {
			s.Set("/elsewhere", "x")
		}
		return false
	})
	if _, err = c.Directory(t.Context(), "/big"); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("one that changes all the time: %v", err)
	}
	s.Hook(nil)
	for _, errno := range []string{"EINVAL", "ENOSYS"} {
		s.NoParts(errno)
		if _, err = c.Directory(t.Context(), "/big"); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("a version without parts: %v", err)
		}
	}
}

func TestTransaction_ThatBeginsTooLateIsLeftToNobody(t *testing.T) {
	s, c := open(t, 200*time.Millisecond)
	s.Set("/a", "1")
	s.Hook(func(conn *xenstoretest.Conn, m xenstoretest.Message) bool {
		return m.Type == xenstoretest.TransactionStart
	})
	lost, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Transaction(t.Context(), func(*xenstore.Tx) error { return nil }) }()
	for done := false; !done; {
		select {
		case err := <-ended:
			if done = true; !errors.Is(err, backend.ErrTimeout) {
				t.Errorf("error is %v", err)
			}
		case <-time.After(10 * time.Millisecond):
			c.Read(t.Context(), "/a") // it answers all the time, so that it is not taken for dead
		}
	}
	select {
	case <-lost: // and with the connection a transaction that begins yet
	default:
		t.Error("the connection is kept, and what its answer would begin")
	}
}

func TestClient_TellsAnswersApart(t *testing.T) {
	s, c := open(t, 0)
	const n = 16
	for i := range n {
		s.Set(fmt.Sprintf("/n/%d", i), fmt.Sprint(i))
	}
	var mu sync.Mutex
	var held []func()
	s.Hook(func(conn *xenstoretest.Conn, m xenstoretest.Message) bool {
		mu.Lock()
		held = append(held, func() { s.Answer(conn, m) })
		all := len(held) == n
		mu.Unlock()
		if all {
			for _, f := range slices.Backward(held) {
				f()
			}
		}
		return true
	})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { wantRead(t, c, fmt.Sprintf("/n/%d", i), fmt.Sprint(i)) })
	}
	wg.Wait()
}

func TestClient_GivesUpWithItsContext(t *testing.T) {
	s, c := open(t, time.Minute)
	s.Set("/a", "x", "/slow", "late")
	var late func()
	s.Hook(func(conn *xenstoretest.Conn, m xenstoretest.Message) bool {
		if strings.HasPrefix(m.Payload, "/slow") {
			late = func() { s.Answer(conn, m) }
			return true
		}
		return false
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Read(ctx, "/slow"); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("a deadline: %v", err)
	}
	wantRead(t, c, "/a", "x")
	late() // an answer that nobody waits for any more
	wantRead(t, c, "/a", "x")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Read(gone, "/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	if n := s.Conns(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestClient_DropsAPeerThatIsSilent(t *testing.T) {
	s, c := open(t, 50*time.Millisecond)
	s.Set("/a", "x")
	s.Hook(func(*xenstoretest.Conn, xenstoretest.Message) bool { return true })
	began := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, backend.ErrTimeout) {
				t.Errorf("a silent peer: %v", err)
			}
		})
	}
	wg.Wait()
	if _, err := c.Watch(t.Context(), "/a", func(string) {}); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("a silent peer, watch: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	s.Hook(nil)
	wantRead(t, c, "/a", "x")
	eventually(t, "the silent connections are gone", func() bool { return s.Conns() == 1 })
}

func TestClient_OwedTooManyAnswersConnectsAnew(t *testing.T) {
	s, c := open(t, time.Minute)
	s.Set("/a", "x")
	s.Hook(func(*xenstoretest.Conn, xenstoretest.Message) bool { return true })
	var err error
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Microsecond)
		if _, err = c.Read(ctx, "/a"); !errors.Is(err, backend.ErrTimeout) {
			t.Errorf("%v", err)
		}
		cancel()
	}
	s.Hook(nil)
	wantRead(t, c, "/a", "x")
}

func TestClient_FailsAtOnceWhereTheConnectionIsLost(t *testing.T) {
	s, c := open(t, time.Minute)
	s.Set("/a", "x")
	var fired atomic.Int32
	_, err := c.Watch(t.Context(), "/a", func(string) { fired.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	lost, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1)
	s.Hook(func(*xenstoretest.Conn, xenstoretest.Message) bool { asked <- struct{}{}; return true })
	failed := make(chan error, 1)
	go func() {
		_, err := c.Read(t.Context(), "/a")
		failed <- err
	}()
	<-asked
	s.Stop()
	if err := <-failed; !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "the connection to xenstored is lost") {
		t.Errorf("under way: %v", err)
	}
	<-lost
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, backend.ErrNoDevice) {
		t.Errorf("while it is away: %v", err)
	}
	eventually(t, "the watch fired once", func() bool { return fired.Load() == 1 })
	s.Hook(nil)
	s.Start()
	wantRead(t, c, "/a", "x")
	eventually(t, "the watch fired for the new connection", func() bool { return fired.Load() == 2 })
	s.Set("/a", "y")
	eventually(t, "the watch works again", func() bool { return fired.Load() == 3 })
}

func TestClient_SaysWhereThereIsNoXenstored(t *testing.T) {
	none := filepath.Join(t.TempDir(), "socket")
	c := xenstore.New(xenstore.Options{Paths: []string{none}})
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, backend.ErrNoDevice) || !strings.Contains(err.Error(), none) {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, backend.ErrIO) {
		t.Errorf("a file: %v", err)
	}
	c.Close()
	if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, backend.ErrIO) {
		t.Errorf("closed: %v", err)
	}
}

func TestWatch_FiresForWhatIsBelow(t *testing.T) {
	s, c := open(t, 0)
	var mu sync.Mutex
	var got []string
	saw := func(want ...string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Equal(got, want)
		}
	}
	w, err := c.Watch(t.Context(), "/libxl", func(path string) {
		mu.Lock()
		got = append(got, path)
		mu.Unlock()
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it fires as it is set up", saw("/libxl"))
	s.Set("/libxl/7/device", "", "/libxlother", "")
	s.Remove("/libxl/7")
	s.Fire("@introduceDomain")
	eventually(t, "it fires for changes", saw("/libxl", "/libxl/7/device", "/libxl/7"))
	w.Stop(t.Context())
	if left := s.Watches(); len(left) != 0 {
		t.Errorf("watches left: %q", left)
	}
	s.Set("/libxl/8", "")
	if _, err := c.Watch(t.Context(), "/a b", nil); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("watch of no path: %v", err)
	}
	if !saw("/libxl", "/libxl/7/device", "/libxl/7")() {
		t.Errorf("fired after its end: %q", got)
	}
}

// The kernel's device answers to WATCH itself, and forgets the number of the request.
func TestWatch_TakesTheKernelsAnswers(t *testing.T) {
	s, c := open(t, 0)
	s.Set("/a", "x")
	s.Hook(func(conn *xenstoretest.Conn, m xenstoretest.Message) bool {
		if m.Type == xenstoretest.Watch || m.Type == xenstoretest.Unwatch {
			time.Sleep(5 * time.Millisecond)
			conn.Send(xenstoretest.Message{Type: m.Type, Payload: "OK\x00"})
			return true
		}
		return false
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			w, err := c.Watch(t.Context(), "/a", func(string) {})
			if err != nil {
				t.Errorf("watch: %v", err)
				return
			}
			wantRead(t, c, "/a", "x")
			w.Stop(t.Context())
		})
	}
	wg.Wait()
	if s.Conns() != 1 {
		t.Errorf("%d connections", s.Conns())
	}
}

func TestTransaction_IsTriedAgainWhereOthersChangedSomething(t *testing.T) {
	s, c := open(t, 0)
	s.Set("/a", "1", "/b", "1")
	attempts := 0
	pair := ""
	body := func(tx *xenstore.Tx) error {
		attempts++
		a, err := tx.Read(t.Context(), "/a")
		if err != nil {
			return err
		}
		if attempts < 3 {
			s.Set("/a", fmt.Sprint(attempts+1), "/b", fmt.Sprint(attempts+1))
		}
		b, err := tx.Read(t.Context(), "/b")
		pair = a + b
		if a != b {
			t.Errorf("read %q and %q", a, b)
		}
		return err
	}
	if err := c.Transaction(t.Context(), body); err != nil || attempts != 3 || pair != "33" {
		t.Errorf("%v after %d attempts: %s", err, attempts, pair)
	}
	attempts = 0
	err := c.Transaction(t.Context(), func(tx *xenstore.Tx) error {
		attempts++
		s.Set("/a", "again")
		return nil
	})
	if !errors.Is(err, backend.ErrBusy) || attempts != 5 {
		t.Errorf("one that never succeeds: %v after %d attempts", err, attempts)
	}
	ends := s.Requests(xenstoretest.TransactionEnd)
	if err := c.Transaction(t.Context(), func(tx *xenstore.Tx) error {
		_, err := tx.Read(t.Context(), "/nowhere")
		return err
	}); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("its function's error: %v", err)
	}
	if n := s.Requests(xenstoretest.TransactionEnd); n != ends+1 {
		t.Errorf("a transaction that failed was ended %d times", n-ends)
	}
}

// A daemon that ends must not wait for a xenstored that hangs.
func TestWatch_EndsThoughXenstoredHangs(t *testing.T) {
	s, c := open(t, time.Minute)
	var watches []*xenstore.Watch
	for range 20 {
		w, err := c.Watch(t.Context(), "/a", func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	s.Hook(func(*xenstoretest.Conn, xenstoretest.Message) bool { return true })
	began := time.Now()
	for _, w := range watches {
		w.Stop(t.Context())
	}
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("it took %s", took)
	}
}

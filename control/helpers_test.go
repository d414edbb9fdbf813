package control

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"

	"go.uber.org/zap/zaptest/observer"

	"go.uber.org/zap"
)

const (
	uuid1 = "11111111-2222-3333-4444-555555555555"
	uuid2 = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// bench is a Host on a fake one.
type bench struct {
	*Host
	t    *testing.T
	fake *fake.Host
	o    Options
	logs *observer.ObservedLogs

	mu      sync.Mutex
	events  []Event  // guarded by mu
	changes []Change // guarded by mu
}

type setup struct {
	caps    fake.Caps // of hypervisor and store; 0 is all
	options func(*Options)
	limits  func(*limits)
	drain   func(context.Context, string) error
	onFake  *fake.Host // instead of a new one
	domains func(*fake.Host)
	noStart bool
}

// newBench is a started Host with the domain web01, which has the disks xvda and xvdb.
func newBench(t *testing.T, s setup) *bench {
	t.Helper()
	b := &bench{t: t, fake: s.onFake}
	if b.fake == nil {
		b.fake = fake.NewHost()
		if s.domains != nil {
			s.domains(b.fake)
		} else {
			b.fake.AddDomain("web01", uuid1, nil, "xvda", "xvdb")
		}
	}
	if s.caps == 0 {
		s.caps = fake.All
	}
	core, logs := observer.New(zap.InfoLevel)
	b.logs = logs
	b.o = Options{
		Hypervisors: []backend.Hypervisor{b.fake.Hypervisor.Driver(s.caps)},
		Stores:      []backend.Store{b.fake.Store.Driver(s.caps)},
		Log:         zap.New(core),
		LockFile:    filepath.Join(t.TempDir(), "run", "lock"),
		ErrnoName:   errnoName,
		MaxAge:      time.Millisecond,
	}
	if s.options != nil {
		s.options(&b.o)
	}
	before := runtime.NumGoroutine()
	b.Host = New(b.o)
	if s.limits != nil {
		s.limits(&b.lim)
		b.Host.fills.init(b.lim.fills)
	}
	b.Host.Events(func(e Event) {
		b.mu.Lock()
		b.events = append(b.events, e)
		b.mu.Unlock()
	})
	b.OnChange(func(c Change) {
		b.mu.Lock()
		b.changes = append(b.changes, c)
		b.mu.Unlock()
	})
	b.OnDrain(s.drain)
	if !s.noStart {
		if err := b.Start(t.Context()); err != nil {
			t.Fatalf("start: %v", err)
		}
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
		if n := b.fake.Store.OpenDevices(); n != 0 {
			t.Errorf("%d devices are open after Close", n)
		}
		if n := b.fake.Store.Guards(); n != 0 {
			t.Errorf("%d guards are held after Close", n)
		}
	})
	return b
}

func errnoName(err error) string {
	for name, s := range map[string]error{"EINVAL": backend.ErrInvalid, "EEXIST": backend.ErrExist, "EPERM": backend.ErrPermission,
		"EBUSY": backend.ErrBusy, "ENOSPC": backend.ErrNoSpace, "EOPNOTSUPP": backend.ErrUnsupported, "EROFS": backend.ErrReadOnly,
		"ENOENT": backend.ErrNotExist, "ETIMEDOUT": backend.ErrTimeout, "EUCLEAN": backend.ErrCorrupt, "EACCES": backend.ErrAccess} {
		if errors.Is(err, s) {
			return name
		}
	}
	return "EIO"
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("never: %s\n%s", what, buf[:runtime.Stack(buf, true)])
}

// inv reads the host as it is now, unless the test is about the cache.
func (b *bench) inv() *Inventory {
	b.t.Helper()
	if b.o.MaxAge == time.Millisecond {
		b.invalidate()
	}
	inv, err := b.Inventory(b.t.Context())
	if err != nil {
		b.t.Fatalf("inventory: %v", err)
	}
	return inv
}

// sets are the names of a directory's sets; nil if there is no such directory.
func (b *bench) sets(dir string) []string {
	b.t.Helper()
	d := b.inv().SnapshotDir(dir)
	if d == nil {
		return nil
	}
	names := []string{}
	for _, s := range d.Sets {
		names = append(names, s.Name)
	}
	return names
}

func (b *bench) dirs() []string {
	b.t.Helper()
	var names []string
	for _, d := range b.inv().Snapshots {
		names = append(names, d.Name)
	}
	return names
}

func (b *bench) set(dir, name string) *Set {
	b.t.Helper()
	d := b.inv().SnapshotDir(dir)
	if d == nil || d.Set(name) == nil {
		b.t.Fatalf("there is no snapshot %s/%s", dir, name)
	}
	return d.Set(name)
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// mustFail wants err to be of kind want, and each of words in its text and in last_error.
func (b *bench) mustFail(err, want error, words ...string) {
	b.t.Helper()
	if !errors.Is(err, want) {
		b.t.Fatalf("got error %v, want one that is %q", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			b.t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func (b *bench) lastErrorHas(domain string, words ...string) {
	b.t.Helper()
	text := string(b.LastErrors(domain))
	for _, w := range words {
		if !strings.Contains(text, w) {
			b.t.Errorf("last_error of %s lacks %q:\n%s", domain, w, text)
		}
	}
}

func (b *bench) eventsOf(kind string) []Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Event
	for _, e := range b.events {
		if e.Event == kind {
			out = append(out, e)
		}
	}
	return out
}

func (b *bench) noSnapshotsLeft() {
	b.t.Helper()
	if all := b.fake.Store.All(); len(all) != 0 {
		b.t.Errorf("%d snapshots are left: %+v", len(all), all)
	}
}

func wantEqual(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// liveBench is a bench with a hypervisor that knows what runs, before the one that has the configurations.
func liveBench(t *testing.T, s setup, live ...backend.Domain) (*bench, *fake.Hypervisor) {
	t.Helper()
	hv := fake.NewHypervisor("live")
	for _, d := range live {
		hv.Add(d)
	}
	more := s.options
	s.options = func(o *Options) {
		o.Hypervisors = []backend.Hypervisor{hv.Driver(fake.All), o.Hypervisors[0]}
		if more != nil {
			more(o)
		}
	}
	return newBench(t, s), hv
}

func liveDomain(id int, name, uuid string, sources ...string) backend.Domain {
	d := backend.Domain{ID: id, Name: name, UUID: uuid, State: backend.StateRunning}
	for i, s := range sources {
		d.Disks = append(d.Disks, backend.Disk{VDev: fmt.Sprintf("xvd%c", 'a'+i), Source: s, Format: "raw", Mode: backend.ReadWrite})
	}
	return d
}

// shown is what is to be seen of all domains.
func shown(inv *Inventory) string {
	var out []string
	for _, d := range inv.Domains {
		s := fmt.Sprintf("%s %s %d %q", d.Name, d.UUID, d.ID, d.State)
		if d.Config != "" {
			s += " " + d.Config
		}
		for _, k := range d.Disks {
			s += " " + k.Source
		}
		if d.Stale != nil {
			s += " stale"
		}
		if d.Err != nil {
			s += " broken"
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

func TestMerge_ADomainAndItsConfigurationAreOne(t *testing.T) {
	for name, c := range map[string]struct {
		live       []backend.Domain
		configured []backend.Domain
		want       string
	}{
		"of the same UUID": {
			[]backend.Domain{liveDomain(7, "web01", uuid1, "/live")},
			[]backend.Domain{{Name: "web01", UUID: uuid1, Config: "/etc/xen/web01.cfg", Disks: []backend.Disk{{VDev: "xvda", Source: "/configured"}}}},
			`web01 ` + uuid1 + ` 7 "running" /etc/xen/web01.cfg /live`,
		},
		"renamed while it runs": {
			[]backend.Domain{liveDomain(7, "shop", uuid1)},
			[]backend.Domain{{Name: "web01", UUID: uuid1, Config: "/etc/xen/web01.cfg"}},
			`shop ` + uuid1 + ` 7 "running" /etc/xen/web01.cfg`,
		},
		"renamed to another's name": {
			[]backend.Domain{liveDomain(7, "shop", uuid1)},
			[]backend.Domain{{Name: "shop", UUID: uuid2, Config: "/etc/xen/shop.cfg"}, {Name: "web01", UUID: uuid1, Config: "/etc/xen/web01.cfg"}},
			`shop ` + uuid1 + ` 7 "running" /etc/xen/web01.cfg`,
		},
		"without a UUID in the configuration": {
			[]backend.Domain{liveDomain(7, "web01", uuid1)},
			[]backend.Domain{{Name: "web01", Config: "/etc/xen/web01.cfg"}},
			`web01 ` + uuid1 + ` 7 "running" /etc/xen/web01.cfg`,
		},
		"of its name, but with another UUID": {
			[]backend.Domain{liveDomain(7, "web01", uuid1)},
			[]backend.Domain{{Name: "web01", UUID: uuid2, Config: "/etc/xen/web01.cfg"}},
			`web01 ` + uuid1 + ` 7 "running"`,
		},
		"without a UUID of the one that runs": {
			[]backend.Domain{liveDomain(7, "web01", "")},
			[]backend.Domain{{Name: "web01", UUID: uuid1, Config: "/etc/xen/web01.cfg"}},
			`web01 ` + uuid1 + ` 7 "running" /etc/xen/web01.cfg`,
		},
		"and not one of another name": {
			[]backend.Domain{liveDomain(7, "web01", uuid1)},
			[]backend.Domain{{Name: "mail", Config: "/etc/xen/mail.cfg"}, {Name: "other", UUID: uuid2, Config: "/etc/xen/other.cfg"}},
			"mail  -1 \"off\" /etc/xen/mail.cfg\nother " + uuid2 + " -1 \"off\" /etc/xen/other.cfg\nweb01 " + uuid1 + ` 7 "running"`,
		},
		"of two copies the one of its name": {
			[]backend.Domain{liveDomain(7, "web01", uuid1)},
			[]backend.Domain{{Name: "copy", UUID: uuid1, Config: "/etc/xen/copy.cfg"}, {Name: "web01", UUID: uuid1, Config: "/etc/xen/web01.cfg"}},
			"copy " + uuid1 + " -1 \"off\" /etc/xen/copy.cfg\nweb01 " + uuid1 + ` 7 "running" /etc/xen/web01.cfg`,
		},
		"also where the configuration is broken": {
			[]backend.Domain{liveDomain(7, "web01", uuid1, "/live")},
			[]backend.Domain{{Name: "web01", UUID: uuid1, Config: "/etc/xen/web01.cfg", Err: fmt.Errorf("line 7:\nnonsense: %w", backend.ErrInvalid), Warnings: []string{"line 3 is odd"}}},
			`web01 ` + uuid1 + ` 7 "running" /etc/xen/web01.cfg /live`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := liveBench(t, setup{noStart: true, domains: func(h *fake.Host) {
				for _, d := range c.configured {
					h.Hypervisor.Add(d)
				}
			}}, c.live...)
			for range 2 {
				inv := b.inv()
				if got := shown(inv); got != c.want {
					t.Errorf("got\n%s\nwant\n%s", got, c.want)
				}
				var warnings []string
				for _, d := range inv.Domains {
					warnings = append(warnings, d.Warnings...)
				}
				var want int
				switch {
				case strings.Contains(name, "another's name"), strings.Contains(name, "another UUID"):
					want = 1
					if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "/etc/xen/") && strings.Contains(w, uuid2) }) {
						t.Errorf("warnings %q", warnings)
					}
				case strings.Contains(name, "broken"), strings.Contains(name, "copies"):
					want = 2
				}
				if len(warnings) != want || strings.Contains(strings.Join(warnings, ""), "\n") {
					t.Errorf("warnings %q", warnings)
				}
			}
		})
	}
}

func TestMerge_OffAgainItIsWhatTheConfigurationSays(t *testing.T) {
	b, live := liveBench(t, setup{noStart: true, domains: func(h *fake.Host) {
		h.Hypervisor.Add(backend.Domain{Name: "web01", UUID: uuid1, Config: "/c/web01.cfg", Disks: []backend.Disk{{VDev: "xvda", Source: "/configured"}}})
		h.Hypervisor.Add(backend.Domain{Name: "shop", UUID: uuid2, Config: "/c/shop.cfg"})
	}}, liveDomain(7, "shop", uuid1, "/live"))
	if got, want := shown(b.inv()), `shop `+uuid1+` 7 "running" /c/web01.cfg /live`; got != want {
		t.Errorf("while it runs: %s", got)
	}
	live.Remove("shop")
	want := `shop ` + uuid2 + ` -1 "off" /c/shop.cfg` + "\n" + `web01 ` + uuid1 + ` -1 "off" /c/web01.cfg /configured`
	if got := shown(b.inv()); got != want {
		t.Errorf("off:\n%s\nwant\n%s", got, want)
	}
}

// A domain whose configuration has no UUID gets another one from the toolstack at each start: its snapshots are its own all the same.
func TestMerge_SnapshotsOfADomainWithoutAUUIDStayWithIt(t *testing.T) {
	b, live := liveBench(t, setup{domains: func(h *fake.Host) { h.AddDomain("web01", "", nil, "xvda") }},
		liveDomain(7, "web01", uuid1, "/images/web01-xvda"))
	b.must(b.Snapshot(t.Context(), "web01", "while-it-runs"))
	wantUUID := func(want string) {
		t.Helper()
		if d := b.inv().Domain("web01"); d.UUID != want {
			t.Errorf("its uuid is %q, want %q", d.UUID, want)
		}
	}
	wantUUID(uuid1)
	live.Remove("web01")
	wantUUID("")
	wantEqual(t, "off, sets", b.sets("web01"), []string{"while-it-runs"})
	b.must(b.Snapshot(t.Context(), "web01", "off"))
	live.Add(liveDomain(8, "web01", uuid2, "/images/web01-xvda"))
	wantUUID(uuid2)
	b.must(b.Snapshot(t.Context(), "web01", "started-again"))
	wantEqual(t, "directories", b.dirs(), []string{"web01"})
	wantEqual(t, "sets", b.sets("web01"), []string{"off", "started-again", "while-it-runs"})
	b.must(b.Remove(t.Context(), "web01", "while-it-runs"))
	wantEqual(t, "sets", b.sets("web01"), []string{"off", "started-again"})
}

// What was made of a domain that has a UUID is never shown as a namesake's, whether or not that has one, or runs.
func TestMerge_SnapshotsOfANamesakeStayApart(t *testing.T) {
	b, live := liveBench(t, setup{noStart: true, domains: func(h *fake.Host) { h.AddDomain("web01", "", nil, "xvda") }})
	const short = "web01@11111111"
	b.fake.Store.Put(backend.Snapshot{SnapshotMeta: backend.SnapshotMeta{Set: "s1", Name: "theirs", DomainName: "web01", DomainUUID: uuid1,
		Disk: backend.Disk{VDev: "xvda"}, Created: time.Unix(1e9, 0), State: backend.SnapshotActive, DiskCount: 1}})
	wantEqual(t, "off, directories", b.dirs(), []string{"web01", short})
	live.Add(liveDomain(7, "web01", uuid2, "/images/web01-xvda"))
	wantEqual(t, "directories", b.dirs(), []string{"web01", short})
	wantEqual(t, "sets", b.sets("web01"), []string{})
	wantEqual(t, "theirs", b.sets(short), []string{"theirs"})
	live.Remove("web01")
	live.Add(liveDomain(8, "web01", uuid1, "/images/web01-xvda"))
	wantEqual(t, "while that very UUID runs, directories", b.dirs(), []string{"web01"})
	wantEqual(t, "sets", b.sets("web01"), []string{"theirs"})
	live.Remove("web01")
	wantEqual(t, "off again, directories", b.dirs(), []string{"web01", short})
}

// A configuration with a UUID of its own is another domain than the one of its name that runs: neither gets the other's snapshots.
func TestMerge_SnapshotsOfARunningNamesakeStayApart(t *testing.T) {
	b, live := liveBench(t, setup{domains: func(h *fake.Host) { h.AddDomain("web01", uuid2, nil, "xvda") }},
		liveDomain(7, "web01", uuid1, "/images/web01-xvda"))
	b.must(b.Snapshot(t.Context(), "web01", "of-the-other"))
	wantEqual(t, "sets", b.sets("web01"), []string{"of-the-other"})
	live.Remove("web01")
	wantEqual(t, "directories", b.dirs(), []string{"web01", "web01@11111111"})
	wantEqual(t, "sets", b.sets("web01"), []string{})
}

func TestMerge_PausesByTheHypervisorThatRunsIt(t *testing.T) {
	b, live := liveBench(t, setup{}, liveDomain(7, "web01", uuid1, "/images/web01-xvda", "/images/web01-xvdb"))
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	if n := live.EverPaused("web01"); n != 1 || live.Pauses("web01") != 0 {
		t.Errorf("paused %d times, %d times still", n, live.Pauses("web01"))
	}
	if s := b.set("web01", "s"); s.Consistency != backend.ConsistencyPaused {
		t.Errorf("consistency %s", s.Consistency)
	}
}

func TestMerge_NothingIsOffWhereNobodyKnowsWhatRuns(t *testing.T) {
	configured := func(h *fake.Host) {
		h.AddDomain("web01", uuid1, nil, "xvda")
		h.AddDomain("mail", uuid2, nil, "xvda")
	}
	t.Run("from the start", func(t *testing.T) {
		b, live := liveBench(t, setup{noStart: true, domains: configured})
		clear := live.Fail("Domains", fmt.Errorf("xenstored is away: %w", backend.ErrIO))
		inv := b.inv()
		if got, want := shown(inv), "mail "+uuid2+" -1 \"\" /etc/fake/mail.cfg /images/mail-xvda stale\nweb01 "+uuid1+` -1 "" /etc/fake/web01.cfg /images/web01-xvda stale`; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		for _, d := range inv.Domains {
			if d.IsOff() || !strings.Contains(d.Stale.Error(), "xenstored is away") {
				t.Errorf("%s is off: %v, %v", d.Name, d.IsOff(), d.Stale)
			}
		}
		b.mustFail(b.Snapshot(t.Context(), "web01", "s"), backend.ErrIO, "not known now", "xenstored is away")
		b.mustFail(b.Resize(t.Context(), "web01", "xvda", "+1M"), backend.ErrIO, "not known now")
		b.fake.Store.Hold("/images/web01-xvda", "qemu (pid 7)")
		if d := b.inv().Domain("web01"); d.State != backend.StateRunning || d.Stale == nil {
			t.Errorf("with its disk held: %q, %v", d.State, d.Stale)
		}
		clear()
		if d := b.inv().Domain("mail"); !d.IsOff() || d.Stale != nil {
			t.Errorf("once it is asked: %q, %v", d.State, d.Stale)
		}
	})
	t.Run("after an answer", func(t *testing.T) {
		b, live := liveBench(t, setup{noStart: true, domains: configured}, liveDomain(7, "shop", uuid1, "/images/web01-xvda"))
		b.inv()
		clear := live.Fail("Domains", fmt.Errorf("xenstored is away: %w", backend.ErrIO))
		for range 2 {
			if got, want := shown(b.inv()), "mail "+uuid2+" -1 \"\" /etc/fake/mail.cfg /images/mail-xvda stale\nshop "+uuid1+` 7 "running" /etc/fake/web01.cfg /images/web01-xvda stale`; got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		}
		b.mustFail(b.Snapshot(t.Context(), "shop", "s"), backend.ErrIO, "not known now")
		b.mustFail(b.Snapshot(t.Context(), "mail", "s"), backend.ErrIO, "not known now")
		clear()
		if got, want := shown(b.inv()), "mail "+uuid2+" -1 \"off\" /etc/fake/mail.cfg /images/mail-xvda\nshop "+uuid1+` 7 "running" /etc/fake/web01.cfg /images/web01-xvda`; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("but what runs is known without configurations", func(t *testing.T) {
		b, _ := liveBench(t, setup{noStart: true, domains: configured}, liveDomain(7, "web01", uuid1, "/images/web01-xvda"))
		b.fake.Hypervisor.Fail("Domains", backend.ErrAccess)
		if got, want := shown(b.inv()), `web01 `+uuid1+` 7 "running" /images/web01-xvda`; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

// watchedHypervisor tells when something happens.
type watchedHypervisor struct {
	backend.Hypervisor
	changed chan func() // gives what to call
	fail    func() error
	watches *atomic.Int64
}

func (w watchedHypervisor) Watch(ctx context.Context, changed func()) error {
	w.watches.Add(1)
	if err := w.fail(); err != nil {
		return err
	}
	changed()
	select {
	case w.changed <- changed:
	case <-ctx.Done():
	}
	<-ctx.Done()
	return ctx.Err()
}

func watchedBench(t *testing.T, fail func() error) (b *bench, changed func() func(), watches *atomic.Int64) {
	calls := make(chan func())
	watches = &atomic.Int64{}
	b = newBench(t, setup{options: func(o *Options) {
		o.Hypervisors[0] = watchedHypervisor{o.Hypervisors[0], calls, fail, watches}
		o.MaxAge = time.Hour
	}, limits: func(l *limits) { l.retry = 20 * time.Millisecond; l.sampleGap = 20 * time.Millisecond }})
	return b, func() func() { return <-calls }, watches
}

func (b *bench) changesOf(domain string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.changes {
		if c.Domain == domain {
			n++
		}
	}
	return n
}

func TestGuard_HypervisorsEventsAreSeenByWhoDoesNotLook(t *testing.T) {
	b, get, _ := watchedBench(t, func() error { return nil })
	changed := get()
	eventually(t, "the host is read", func() bool { return b.Host.inventory.latest() != nil })
	for what, f := range map[string]func(){
		"a start":  func() { b.fake.Hypervisor.Start("web01") },
		"a pause":  func() { b.fake.Hypervisor.PauseByHand("web01") },
		"a config": func() { b.fake.Hypervisor.Change("web01", func(d *backend.Domain) { d.Config = "/c/web01.cfg" }) },
	} {
		before := b.changesOf("web01")
		f()
		changed()
		eventually(t, "told of "+what, func() bool { return b.changesOf("web01") > before })
	}
	b.fake.Hypervisor.Rename("web01", "shop")
	changed()
	eventually(t, "told of the new name", func() bool { return b.changesOf("shop") > 0 })
	if inv, err := b.Inventory(t.Context()); err != nil || inv.Domain("shop") == nil {
		t.Errorf("the next reading does not have it: %v", err)
	}
}

func TestGuard_IsNotKeptBusyByHypervisorsEvents(t *testing.T) {
	b, get, _ := watchedBench(t, func() error { return nil })
	changed := get()
	eventually(t, "the host is read", func() bool { return b.Host.inventory.latest() != nil })
	before, began := b.fake.Hypervisor.Calls("Domains"), time.Now()
	for time.Since(began) < 200*time.Millisecond {
		changed()
	}
	time.Sleep(50 * time.Millisecond)
	if n, most := b.fake.Hypervisor.Calls("Domains")-before, int(time.Since(began)/(20*time.Millisecond))+2; n > most || n == 0 {
		t.Errorf("read %d times, want %d at most", n, most)
	}
}

func TestGuard_AsksAgainToWatchAHypervisor(t *testing.T) {
	var fails atomic.Int64
	b, get, watches := watchedBench(t, func() error {
		if fails.Add(1) < 3 {
			return fmt.Errorf("not now: %w", backend.ErrIO)
		}
		return nil
	})
	get()
	if n := watches.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
	if n := b.logs.FilterMessageSnippet("events cannot be watched").Len(); n != 2 {
		t.Errorf("logged %d times", n)
	}
	_, _, watches = watchedBench(t, func() error { return backend.ErrUnsupported })
	time.Sleep(100 * time.Millisecond)
	if n := watches.Load(); n != 1 {
		t.Errorf("one that cannot watch at all was asked %d times", n)
	}
}

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"domfs/backend"
)

func TestLastErrors_KeepsSixteenLinesNewestLast(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	for i := range 20 {
		b.Failed("web01", "open", fmt.Errorf("failure %d: %w", i, backend.ErrBusy))
	}
	lines := strings.Split(strings.TrimSuffix(string(b.LastErrors("web01")), "\n"), "\n")
	if len(lines) != 16 || !strings.HasPrefix(lines[0], "5 ") || !strings.HasPrefix(lines[15], "20 ") {
		t.Fatalf("%d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	form := regexp.MustCompile(`^\d+ \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ open EBUSY failure \d+: in use$`)
	for _, l := range lines {
		if !form.MatchString(l) {
			t.Errorf("line %q", l)
		}
	}
	if b.LastErrors("web02") != nil {
		t.Error("another domain has errors")
	}
}

func TestLastErrors_TheSameSentenceOnlyRenewsItsTime(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	c := &clock{}
	c.ns.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	b.now = c.now
	one, two := fmt.Errorf("one: %w", backend.ErrIO), fmt.Errorf("two: %w", backend.ErrIO)
	b.Failed("web01", "open", one)
	b.Failed("web01", "open", two)
	c.forward(time.Minute)
	if err := b.Failed("web01", "open", one); err != one {
		t.Errorf("returned %v", err)
	}
	want := "2 2026-01-02T03:04:05Z open EIO two: input/output error\n1 2026-01-02T03:05:05Z open EIO one: input/output error\n"
	if got := string(b.LastErrors("web01")); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if n := len(b.eventsOf("error")); n != 2 {
		t.Errorf("%d events", n)
	}
}

func TestLastErrors_IsOneLineEachWhateverTheText(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	b.Failed("web01", "open", errors.New("a\nb\tc\x00d\x1b[31m\u2028e\xff"+strings.Repeat("ü", 5000)))
	text := string(b.LastErrors("web01"))
	if strings.Count(text, "\n") != 1 || len(text) > 1200 || strings.ContainsAny(text, "\x00\x1b\t\u2028") || !strings.Contains(text, " a b c d [31m e") {
		t.Errorf("%q", text[:min(len(text), 200)])
	}
}

func TestLastErrors_DoesNotCountInterruptions(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	b.Failed("web01", "open", fmt.Errorf("waiting: %w", context.Canceled))
	b.Failed("web01", "open", nil)
	if s := b.LastErrors("web01"); s != nil {
		t.Errorf("%s", s)
	}
}

func TestLastErrors_AreBounded(t *testing.T) {
	b := newBench(t, setup{noStart: true})
	for i := range maxErrorDomains + 10 {
		b.Failed(fmt.Sprintf("d%d", i), "open", backend.ErrIO)
	}
	if n := len(b.errs.domains); n != maxErrorDomains {
		t.Errorf("%d domains", n)
	}
	if b.LastErrors("d0") != nil || b.LastErrors(fmt.Sprintf("d%d", maxErrorDomains+9)) == nil {
		t.Error("not the oldest went")
	}
}

func TestEvents_AreOneJSONObjectInOrderUntilCancelled(t *testing.T) {
	b := newBench(t, setup{})
	var got []string
	cancel := b.Events(func(e Event) {
		j, err := json.Marshal(e)
		if err != nil || strings.Contains(string(j), "\n") {
			t.Errorf("%s, %v", j, err)
		}
		got = append(got, e.Event+" "+e.Snapshot)
	})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	b.must(b.Rename(t.Context(), "web01", "s", "t"))
	b.must(b.Remove(t.Context(), "web01", "t"))
	cancel()
	b.must(b.Snapshot(t.Context(), "web01", "u"))
	wantEqual(t, "events", got, []string{"snapshot s", "rename s", "remove t"})
}

func TestStats_CountWhatHappened(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	v, err := b.Volume(t.Context(), VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"})
	b.must(err)
	s := b.Stats()
	for name, want := range map[string]int64{"changes_snapshot": 1, "changes_remove": 0, "volume_opens": 1, "disks_open_now": 1, "volumes_acquired_now": 1, "fills_now": 0} {
		if got, ok := s[name]; !ok || got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	v.Release()
}

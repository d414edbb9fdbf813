package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/run"
	"domfs/backend/run/hold"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "hold" { // the keeper of a pause
		err := hold.Keep(os.Stdin, os.Stdout, hold.Kinds{PauseKind: NewPause(run.New(nil))}, zap.NewNop())
		if err != nil {
			unix.Exit(1)
		}
		unix.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeXL counts pauses as Xen does: in the file DOMID beside it, which is there while the domain is. It exits with 0 whatever
// comes of it, as xl does. What it is asked for is in the file log. A file named COMMAND-hang makes it hang before it
// does anything, COMMAND-late after it has done it; COMMAND-fail makes it fail once.
const fakeXL = `#!/bin/sh
cd "$(dirname "$0")" || exit 9
echo "$1 $2" >>log
if [ -e "$1-hang" ]; then exec sleep 600; fi
if [ -e "$1-fail" ]; then rm "$1-fail"; echo "libxl: error: libxl_domain.c:596:$1: Domain $2: Cannot allocate memory" >&2; exit 0; fi
case $1 in
list)
	echo "Name                                        ID   Mem VCPUs	State	Time(s)"
	echo "Domain-0                                     0   512     2     r-----      12.3"
	for id in [1-9]*; do
		[ -e "$id" ] || continue
		p=-; [ "$(cat "$id")" -gt 0 ] && p=p
		echo "web 01                                      $id   128     1     -b$p---       0.4"
	done ;;
pause)
	[ -e "$2" ] || { echo "libxl: error: libxl_domain.c:529:libxl_domain_pause: Domain $2:Pausing domain: No such process" >&2; exit 0; }
	echo $(($(cat "$2") + 1)) >.new; mv .new "$2" ;;
unpause)
	if [ ! -e "$2" ] || [ "$(cat "$2")" = 0 ]; then
		echo "libxl: error: libxl_dom_save.c:1: Domain $2:Unpausing domain: Invalid argument" >&2; exit 0
	fi
	echo $(($(cat "$2") - 1)) >.new; mv .new "$2" ;;
esac
if [ -e "$1-late" ]; then rm "$1-late"; exec sleep 600; fi
`

// xenHost is a Xen host with one domain, number 7, and its Driver.
type xenHost struct {
	*Driver
	t   *testing.T
	dir string
}

func newXenHost(t *testing.T) *xenHost {
	t.Helper()
	h := &xenHost{t: t, dir: t.TempDir()}
	h.write("xl", fakeXL)
	if err := os.Chmod(h.dir+"/xl", 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("7", "0")
	h.Driver = New(Options{Socket: h.dir + "/none", Records: h.dir + "/held-"})
	h.toolstack = h.dir + "/xl"
	t.Cleanup(func() {
		if held, _ := filepath.Glob(h.dir + "/held-*"); len(held) != 0 {
			t.Errorf("records are left: %q", held)
		}
	})
	return h
}

func (h *xenHost) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *xenHost) remove(name string) {
	h.t.Helper()
	if err := os.Remove(filepath.Join(h.dir, name)); err != nil {
		h.t.Fatal(err)
	}
}

// pauses is how often domain 7 is paused.
func (h *xenHost) pauses() int {
	h.t.Helper()
	text, err := os.ReadFile(h.dir + "/7")
	if err != nil {
		h.t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// asked counts what xl was asked for, other than to list.
func (h *xenHost) asked() (pauses, unpauses int) {
	text, _ := os.ReadFile(h.dir + "/log")
	return strings.Count("\n"+string(text), "\npause 7"), strings.Count(string(text), "unpause 7")
}

func (h *xenHost) wantAsked(pauses, unpauses int) {
	h.t.Helper()
	if p, u := h.asked(); p != pauses || u != unpauses {
		h.t.Errorf("xl was asked for %d pauses and %d unpauses, want %d and %d", p, u, pauses, unpauses)
	}
}

func (h *xenHost) wantPauses(n int) {
	h.t.Helper()
	if got := h.pauses(); got != n {
		h.t.Errorf("the domain is paused %d times, want %d", got, n)
	}
}

var domain7 = backend.Domain{Name: "web 01", ID: 7, State: backend.StateRunning}

func (h *xenHost) pause() func(context.Context) error {
	h.t.Helper()
	resume, err := h.Pause(h.t.Context(), domain7)
	if err != nil {
		h.t.Fatal(err)
	}
	return resume
}

// within calls f with a deadline that no failure comes near.
func within(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	return f(ctx)
}

// keeper is the process that keeps the domain paused.
func (h *xenHost) keeper() int {
	h.t.Helper()
	self := os.Getpid()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			args, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
			stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
			_, rest, _ := strings.Cut(string(stat), ") ")
			if words := strings.Fields(rest); len(words) > 1 && words[1] == strconv.Itoa(self) && strings.HasSuffix(string(args), "\x00hold\x00--\x00paused\x00web 01\x00") {
				return pid
			}
		}
	}
	h.t.Fatal("there is no keeper")
	return 0
}

func TestPause_IsUndoneOnce(t *testing.T) {
	h := newXenHost(t)
	resume := h.pause()
	h.wantPauses(1)
	for range 3 {
		if err := within(resume); err != nil {
			t.Fatal(err)
		}
	}
	h.wantPauses(0)
	h.wantAsked(1, 1)
}

func TestPause_LeavesADomainPausedThatTheAdminPaused(t *testing.T) {
	h := newXenHost(t)
	h.write("7", "1")
	resume := h.pause()
	h.wantPauses(2)
	if err := within(resume); err != nil {
		t.Fatal(err)
	}
	h.wantPauses(1)
	h.wantAsked(1, 1)
}

func TestPause_RefusesWhatIsNotThere(t *testing.T) {
	h := newXenHost(t)
	if _, err := h.Pause(t.Context(), backend.Domain{Name: "gone", ID: 8}); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("a domain that has ended: %v", err)
	}
	for _, id := range []int{0, -1} {
		if _, err := h.Pause(t.Context(), backend.Domain{Name: "Domain-0", ID: id}); !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("domain %d: %v", id, err)
		}
	}
	h.toolstack = h.dir + "/none"
	if _, err := h.Pause(t.Context(), domain7); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("without xl: %v", err)
	}
	h.wantAsked(0, 0)
}

func TestPause_OfADomainThatEndsBeforeIsAnError(t *testing.T) {
	h := newXenHost(t)
	p, release, err := h.PreparePause(t.Context(), domain7)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	h.remove("7")
	h.write("8", "0") // it was started anew
	resume, err := p.Pause(t.Context(), domain7)
	if !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	if err := within(resume); err != nil {
		t.Error(err)
	}
	h.wantAsked(1, 0)
	if text, _ := os.ReadFile(h.dir + "/8"); string(text) != "0" {
		t.Errorf("another domain is paused %s times", text)
	}
}

func TestPause_OfADomainThatEndsMeanwhileTouchesNoOther(t *testing.T) {
	h := newXenHost(t)
	resume := h.pause()
	h.remove("7")
	h.write("8", "1")
	if err := within(resume); !errors.Is(err, backend.ErrStale) {
		t.Errorf("error is %v", err)
	}
	if text, _ := os.ReadFile(h.dir + "/8"); string(text) != "1" {
		t.Errorf("another domain is paused %s times", text)
	}
	h.wantAsked(1, 1)
}

func TestPause_ThatTheAdminUndoesIsNotUndoneAgain(t *testing.T) {
	h := newXenHost(t)
	resume := h.pause()
	h.write("7", "0")
	if err := within(resume); !errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("error is %v", err)
	}
	h.wantPauses(0)
	h.wantAsked(1, 1)
}

func TestPause_IsPreparedWithoutPausing(t *testing.T) {
	h := newXenHost(t)
	p, release, err := h.PreparePause(t.Context(), domain7)
	if err != nil {
		t.Fatal(err)
	}
	h.wantAsked(0, 0)
	release()
	release()
	h.wantAsked(0, 0)
	if _, err := p.Pause(t.Context(), domain7); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("paused by what was given up: %v", err)
	}
	p, release, err = h.PreparePause(t.Context(), domain7)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pause(t.Context(), backend.Domain{ID: 8}); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("another domain: %v", err)
	}
	resume, err := p.Pause(t.Context(), domain7)
	if err != nil {
		t.Fatal(err)
	}
	release()
	h.wantPauses(1)
	if _, err := p.Pause(t.Context(), domain7); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("paused twice: %v", err)
	}
	if err := within(resume); err != nil {
		t.Fatal(err)
	}
	h.wantAsked(1, 1)
}

func TestPause_ThatFailsIsNotUndone(t *testing.T) {
	h := newXenHost(t)
	h.write("pause-fail", "")
	resume, err := h.Pause(t.Context(), domain7)
	if !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "Cannot allocate memory") {
		t.Errorf("error is %v", err)
	}
	if err := within(resume); err != nil {
		t.Error(err)
	}
	h.wantPauses(0)
	h.wantAsked(1, 0)
}

func TestPause_ByAnXLThatHangs(t *testing.T) {
	for _, c := range []struct {
		name   string
		before string // how often it was paused before
		file   string
		after  int
		asked  int
	}{
		{"before it pauses", "0", "pause-hang", 0, 0},
		{"after it has paused", "0", "pause-late", 0, 1},
		{"before it pauses a paused domain", "1", "pause-hang", 1, 0},
		// The safe side: a domain that was paused stays so.
		{"after it has paused a paused domain", "1", "pause-late", 2, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newXenHost(t)
			h.write("7", c.before)
			h.write(c.file, "")
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			resume, err := h.Pause(ctx, domain7)
			if !errors.Is(err, backend.ErrTimeout) {
				t.Errorf("error is %v", err)
			}
			_ = within(resume)
			h.wantPauses(c.after)
			h.wantAsked(1, c.asked)
		})
	}
}

func TestPause_IsUndoneThoughXLFailsOrHangsOnce(t *testing.T) {
	for _, c := range []struct {
		file     string
		unpauses int
	}{
		{"unpause-fail", 2},
		{"unpause-late", 1},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			h := newXenHost(t)
			resume := h.pause()
			h.write(c.file, "")
			if err := within(resume); err != nil {
				t.Error(err)
			}
			h.wantPauses(0)
			h.wantAsked(1, c.unpauses)
		})
	}
	t.Run("unpause-hang", func(t *testing.T) {
		t.Parallel()
		h := newXenHost(t)
		resume := h.pause()
		h.write("unpause-hang", "")
		ctx, cancel := context.WithTimeout(t.Context(), pauseEnd+5*time.Second)
		defer cancel()
		if err := resume(ctx); !errors.Is(err, backend.ErrTimeout) {
			t.Errorf("error is %v", err)
		}
		h.wantPauses(1)
		h.remove("unpause-hang")
		if err := within(resume); err != nil {
			t.Error(err)
		}
		h.wantPauses(0)
	})
}

func TestPause_IsUndoneOnceWhenItsKeeperEnds(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		for _, before := range []int{0, 1} {
			t.Run(fmt.Sprintf("%v, paused %d times before", s, before), func(t *testing.T) {
				h := newXenHost(t)
				h.write("7", strconv.Itoa(before))
				resume := h.pause()
				h.wantPauses(before + 1)
				if err := unix.Kill(h.keeper(), s); err != nil {
					t.Fatal(err)
				}
				eventually(t, "resumed", func() bool { return h.pauses() == before })
				if err := within(resume); !errors.Is(err, backend.ErrStale) {
					t.Errorf("error is %v", err)
				}
				h.wantPauses(before)
				h.wantAsked(1, 1)
			})
		}
	}
}

func TestPause_IsUndoneWhenItsTimeIsOver(t *testing.T) {
	h := newXenHost(t)
	held, err := hold.Start(t.Context(), h.holds, hold.Spec{
		Kind: PauseKind, Name: "web 01", Task: &pause{XL: h.toolstack, ID: 7}, Begin: pauseBegin, Hold: 500 * time.Millisecond, End: pauseEnd,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "resumed", func() bool { return h.pauses() == 0 })
	if err := within(held.End); !errors.Is(err, backend.ErrStale) {
		t.Errorf("error is %v", err)
	}
	h.wantAsked(1, 1)
}

func TestPause_OfAnEarlierBootIsNotUndone(t *testing.T) {
	h := newXenHost(t)
	h.write("7", "1") // the domain of that number is just being made, or is the admin's to resume
	p := NewPause(h.run)().(*pause)
	p.XL, p.ID = h.toolstack, 7
	if err := p.Prepare(t.Context()); err != nil || p.Boot == "" {
		t.Fatalf("prepared: %v, boot %q", err, p.Boot)
	}
	p.Boot = "00000000-0000-0000-0000-000000000000"
	for _, sure := range []bool{true, false} {
		if unsure, err := p.End(t.Context(), sure); unsure || !errors.Is(err, backend.ErrStale) {
			t.Errorf("sure %t: %t, %v", sure, unsure, err)
		}
	}
	h.wantAsked(0, 0)
	h.wantPauses(1)
}

func TestStateOf_FindsADomain(t *testing.T) {
	const list = `Name                                        ID   Mem VCPUs	State	Time(s)
Domain-0                                     0  1024     2     r-----      68.1
web01                                        1   128     1     -b----       1.2
a name 3 of 4                               12   128     1     --p---       1.2
(null)                                      13     0     1     --ps-d       7.5
crashed                                     14   128     1     --psc-       7.5
`
	for id, want := range map[int]state{
		1: {there: true}, 12: {there: true, paused: true}, 13: {paused: true}, 14: {there: true, paused: true}, 2: {}, 128: {},
	} {
		if got, err := stateOf(list, id); err != nil || got != want {
			t.Errorf("domain %d: %+v, %v, want %+v", id, got, err, want)
		}
	}
	if got, err := stateOf(list+"a name\nof two lines  12   128     1     -b---d       1.2\n", 12); !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("a name that looks like another domain: %+v, %v", got, err)
	}
	for _, text := range []string{"", "Name ID Mem VCPUs State Time(s)\n", "web01 1 128 1 -b---- 1.2\n", "0 0 0 0 0\n", "Domain-0 0 1024 2 r----- 1\n"} {
		if got, err := stateOf(text, 1); !errors.Is(err, backend.ErrIO) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func pauseIsUndoneOnce(t *testing.T, d *Driver, dom backend.Domain) {
	d.holds.Records = t.TempDir() + "/held-"
	id := strconv.Itoa(dom.ID)
	paused := func() bool {
		t.Helper()
		s, err := stateOf(tool(t, "xl", "list")+"\n", dom.ID)
		if err != nil || !s.there {
			t.Fatalf("%+v, %v", s, err)
		}
		return s.paused
	}
	hold := func() func(context.Context) error {
		t.Helper()
		p, release, err := d.PreparePause(t.Context(), dom)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		began := time.Now()
		resume, err := p.Pause(t.Context(), dom)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("paused in %v", time.Since(began))
		if !paused() {
			t.Error("xl does not show that it is paused")
		}
		return resume
	}
	resume := hold()
	began := time.Now()
	for range 2 {
		if err := within(resume); err != nil {
			t.Error(err)
		}
	}
	t.Logf("resumed in %v", time.Since(began))
	if paused() {
		t.Error("it is still paused")
	}

	tool(t, "xl", "pause", id)
	if err := within(hold()); err != nil {
		t.Error(err)
	}
	if !paused() {
		t.Error("a domain that the admin had paused runs")
	}
	tool(t, "xl", "unpause", id)
	if paused() {
		t.Error("it was paused more often than it was resumed")
	}

	for _, s := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		resume := hold()
		args, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range args {
			line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
			if strings.Contains(string(line), "\x00hold\x00--\x00paused\x00"+dom.Name+"\x00") {
				pid, _ := strconv.Atoi(e.Name())
				if err := unix.Kill(pid, s); err != nil {
					t.Error(err)
				}
			}
		}
		eventually(t, "resumed", func() bool { return !paused() })
		if err := within(resume); !errors.Is(err, backend.ErrStale) {
			t.Errorf("%v: %v", s, err)
		}
	}
	// What was not refused before it had begun leaves nothing.
	if _, err := d.Pause(t.Context(), backend.Domain{Name: "none", ID: maxDomid}); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("a domain that is not there: %v", err)
	}
}

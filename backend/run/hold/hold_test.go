package hold

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// scripted is a Task of shell scripts, each with the task's folder as $1.
type scripted struct {
	Dir                         string
	OnPrepare, OnBegin, OnEnd   string
	OnEndUnsure                 string // where it is not known to have begun; "" is OnEnd
	Seen                        string // what OnPrepare wrote
	BeginUnsure, EndUnsureAfter bool   // what a failure means
}

// note is a script's beginning that says in the folder's log that it ran.
func note(word string) string { return `echo ` + word + ` >>"$1/log"; ` }

func (s *scripted) run(ctx context.Context, script string) (string, error) {
	out, err := run.New(nil).Run(ctx, "sh", "-c", script, "sh", s.Dir)
	return strings.TrimSpace(string(out)), err
}

func (s *scripted) Prepare(ctx context.Context) (err error) {
	s.Seen, err = s.run(ctx, s.OnPrepare)
	if err != nil {
		return fmt.Errorf("prepare: %w: %w", backend.ErrNotExist, err)
	}
	return nil
}

func (s *scripted) Begin(ctx context.Context) (bool, error) {
	_, err := s.run(ctx, s.OnBegin)
	unsure := s.BeginUnsure || errors.Is(err, backend.ErrTimeout) || errors.Is(err, context.Canceled)
	return err != nil && unsure, err
}

func (s *scripted) End(ctx context.Context, sure bool) (bool, error) {
	script := s.OnEnd
	if !sure && s.OnEndUnsure != "" {
		script = s.OnEndUnsure
	}
	out, err := s.run(ctx, script)
	if out == "stale" {
		return false, fmt.Errorf("somebody else ended it: %w", backend.ErrStale)
	}
	if out == "enough" {
		return false, GiveUp(fmt.Errorf("it is of no use: %w", backend.ErrBusy))
	}
	return s.EndUnsureAfter, err
}

var testKinds = Kinds{"scripted": func() Task { return &scripted{} }}

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 5 && os.Args[1] == "hold": // the keeper
		if err := Keep(os.Stdin, os.Stdout, testKinds, zap.NewNop()); err != nil {
			unix.Exit(1)
		}
		unix.Exit(0) // os.Exit would have the race detector sleep
	case len(os.Args) == 3 && os.Args[1] == "hold-and-wait": // a domfs that is to be killed
		holdAndWait(os.Args[2])
	}
	os.Exit(m.Run())
}

// holdAndWait begins a state, says so, and does nothing more.
func holdAndWait(dir string) {
	h, err := Start(context.Background(), options(dir), held(dir, nil))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(h.child.PID())
	if err := h.Begin(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("begun")
	select {}
}

func options(dir string) Options {
	return Options{Runner: run.New(nil), Records: dir + "/record-", Kinds: testKinds}
}

// held is a state that notes what happens to it, changed by edit.
func held(dir string, edit func(s *Spec, t *scripted)) Spec {
	t := &scripted{Dir: dir, OnPrepare: ":", OnBegin: note("begin"), OnEnd: note("end"), OnEndUnsure: note("end-unsure")}
	// A test that runs us as another program says there what is different.
	if text, err := os.ReadFile(dir + "/begin.sh"); err == nil {
		t.OnBegin = string(text)
	}
	s := Spec{Kind: "scripted", Name: "web01", Task: t, Begin: 20 * time.Second, Hold: 60 * time.Second, End: 20 * time.Second}
	if edit != nil {
		edit(&s, t)
	}
	return s
}

// bench is a state that is about to be held.
type bench struct {
	*Hold
	t   *testing.T
	dir string
}

func start(t *testing.T, edit func(s *Spec, t *scripted)) *bench {
	t.Helper()
	dir := t.TempDir()
	h, err := Start(t.Context(), options(dir), held(dir, edit))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Hold: h, t: t, dir: dir}
	t.Cleanup(func() {
		h.child.Kill()
		<-h.over
	})
	return b
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// end ends it within a time that no failure comes near.
func (b *bench) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return b.End(ctx)
}

func logOf(dir string) string {
	text, _ := os.ReadFile(dir + "/log")
	return strings.Join(strings.Fields(string(text)), " ")
}

// wantLog checks what has happened to the state, and that no record of it is left.
func wantLog(t *testing.T, dir, want string) {
	t.Helper()
	if got := logOf(dir); got != want {
		t.Errorf("what happened: %q, want %q", got, want)
	}
	if records, _ := filepath.Glob(dir + "/record-*"); len(records) != 0 {
		t.Errorf("records are left: %q", records)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestHold_BeginsAndEndsOnce(t *testing.T) {
	b := start(t, nil)
	if got := logOf(b.dir); got != "" {
		t.Errorf("before it is begun: %q", got)
	}
	b.must(b.Begin(t.Context()))
	if got := logOf(b.dir); got != "begin" {
		t.Errorf("while it is held: %q", got)
	}
	for range 3 {
		b.must(b.end())
	}
	wantLog(t, b.dir, "begin end")
	<-b.child.Exited()
	b.must(b.child.Err())
}

func TestHold_ThatIsNotBegunIsNotEnded(t *testing.T) {
	b := start(t, nil)
	b.must(b.end())
	wantLog(t, b.dir, "")
	b = start(t, nil)
	b.must(unix.Kill(b.child.PID(), unix.SIGTERM))
	<-b.over
	wantLog(t, b.dir, "")
	if err := b.Begin(t.Context()); !errors.Is(err, backend.ErrIO) {
		t.Errorf("begun by what has ended: %v", err)
	}
}

func TestHold_HandsOnWhatPrepareSaw(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) {
		s.OnPrepare = "echo seen"
		s.OnEnd = note("end")
	})
	records, _ := filepath.Glob(b.dir + "/record-*")
	if len(records) != 1 {
		t.Fatalf("records: %q", records)
	}
	text, err := os.ReadFile(records[0])
	b.must(err)
	if !strings.HasPrefix(string(text), phaseReady) || !strings.Contains(string(text), `"Seen":"seen"`) {
		t.Errorf("the record is %q", text)
	}
	info, err := os.Stat(records[0])
	b.must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v", info.Mode())
	}
	b.must(b.end())
}

func TestHold_SaysWhyItCannotBePrepared(t *testing.T) {
	dir := t.TempDir()
	_, err := Start(t.Context(), options(dir), held(dir, func(_ *Spec, s *scripted) { s.OnPrepare = "echo nobody there >&2; exit 1" }))
	if !errors.Is(err, backend.ErrNotExist) || !strings.Contains(err.Error(), "nobody there") {
		t.Errorf("error is %v", err)
	}
	wantLog(t, dir, "")
	_, err = Start(t.Context(), options(dir), held(dir, func(s *Spec, _ *scripted) { s.Kind = "other" }))
	if !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("an unknown kind: %v", err)
	}
	o := options(dir)
	o.Records = dir + "/none/record-"
	if _, err = Start(t.Context(), o, held(dir, nil)); !errors.Is(err, backend.ErrIO) {
		t.Errorf("without a place for the record: %v", err)
	}
	o.Keeper = []string{"true"}
	if _, err = Start(t.Context(), o, held(dir, nil)); !errors.Is(err, backend.ErrIO) {
		t.Errorf("a keeper that ends at once: %v", err)
	}
	o.Keeper = []string{"sleep", "600"}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	o.Keeper = []string{"sh", "-c", "exec sleep 600"}
	if _, err = Start(ctx, o, held(dir, nil)); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("a keeper that says nothing: %v", err)
	}
}

func TestHold_IsEndedWhenItsTimeIsOver(t *testing.T) {
	b := start(t, func(s *Spec, _ *scripted) { s.Hold = 300 * time.Millisecond })
	b.must(b.Begin(t.Context()))
	<-b.over
	wantLog(t, b.dir, "begin end")
	for range 2 {
		if err := b.end(); !errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "time was over") {
			t.Errorf("ending what is over: %v", err)
		}
	}
	wantLog(t, b.dir, "begin end")
}

func TestHold_IsEndedBySignalsToItsKeeper(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		b := start(t, nil)
		b.must(b.Begin(t.Context()))
		b.must(unix.Kill(b.child.PID(), s))
		<-b.over
		wantLog(t, b.dir, "begin end")
		if err := b.end(); !errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "signal") {
			t.Errorf("%v: ending what is over: %v", s, err)
		}
	}
}

func TestHold_IsEndedInPlaceOfAKeeperThatIsKilled(t *testing.T) {
	b := start(t, nil)
	b.must(b.Begin(t.Context()))
	b.must(unix.Kill(b.child.PID(), unix.SIGKILL))
	<-b.over
	wantLog(t, b.dir, "begin end")
	if err := b.end(); !errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "died") {
		t.Errorf("ending what is over: %v", err)
	}
	wantLog(t, b.dir, "begin end")
}

func TestHold_WaitsForTheToolsOfAKeeperThatIsKilled(t *testing.T) {
	for _, c := range []struct {
		name, during string
		edit         func(s *Spec, t *scripted)
		want         string
	}{
		{"as it begins", "beginning", func(_ *Spec, s *scripted) { s.OnBegin = note("beginning") + "sleep 1; " + note("begin") }, "beginning begin end-unsure"},
		{"as it ends", "ending", func(_ *Spec, s *scripted) { s.OnEnd = note("ending") + "sleep 1; " + note("end") }, "begin ending end end-unsure"},
	} {
		b := start(t, c.edit)
		begun := make(chan error, 1)
		go func() { begun <- b.Begin(context.Background()) }()
		if c.during == "ending" {
			b.must(<-begun)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if err := b.End(ctx); !errors.Is(err, backend.ErrTimeout) {
				t.Errorf("%s: %v", c.name, err)
			}
			cancel()
		}
		eventually(t, c.during, func() bool { return strings.HasSuffix(logOf(b.dir), c.during) })
		b.must(unix.Kill(b.child.PID(), unix.SIGKILL))
		if c.during == "beginning" {
			if err := <-begun; !errors.Is(err, backend.ErrIO) {
				t.Errorf("%s: begun: %v", c.name, err)
			}
		}
		err := b.end()
		if c.during == "ending" && err != nil || c.during == "beginning" && !errors.Is(err, backend.ErrStale) {
			t.Errorf("%s: ended: %v", c.name, err)
		}
		wantLog(t, b.dir, c.want)
	}
}

// another runs this program as one that holds a state and is to be killed.
func another(t *testing.T, dir string) (cmd *exec.Cmd, keeper int, said *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(run.Self, "hold-and-wait", dir)
	cmd.Path = os.Args[0]
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		// Its keeper ends what it holds, in a folder that is about to be removed.
		eventually(t, "the keeper has ended", func() bool { return keeper == 0 || hasEnded(keeper) })
	})
	said = bufio.NewScanner(out)
	if !said.Scan() {
		t.Fatal("it says nothing")
	}
	if _, err := fmt.Sscan(said.Text(), &keeper); err != nil {
		t.Fatalf("it says %q", said.Text())
	}
	return cmd, keeper, said
}

// hasEnded tells whether a process has, also where nobody has waited for it yet: who that is depends on who runs the test.
func hasEnded(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	// The first thread may be dead while others still have its files, and the locks on them.
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	state := stat[bytes.LastIndexByte(stat, ')')+1:]
	return len(threads) <= 1 && (bytes.HasPrefix(state, []byte(" Z")) || bytes.HasPrefix(state, []byte(" X")))
}

func TestHold_IsEndedWhenWeAreKilled(t *testing.T) {
	dir := t.TempDir()
	cmd, keeper, said := another(t, dir)
	if !said.Scan() || said.Text() != "begun" {
		t.Fatalf("it says %q", said.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keeper has ended", func() bool { return hasEnded(keeper) })
	wantLog(t, dir, "begin end")
}

func TestHold_IsUndoneWhenWeAreKilledAsItBegins(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/begin.sh", []byte(note("begin")+"sleep 600"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, keeper, _ := another(t, dir)
	eventually(t, "begin", func() bool { return logOf(dir) == "begin" })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keeper has ended", func() bool { return hasEnded(keeper) })
	wantLog(t, dir, "begin end-unsure")
}

// begunByAnother is a state that another domfs holds, and its process and its keeper's.
func begunByAnother(t *testing.T) (dir string, cmd *exec.Cmd, keeper int) {
	t.Helper()
	dir = t.TempDir()
	cmd, keeper, said := another(t, dir)
	if !said.Scan() || said.Text() != "begun" {
		t.Fatalf("it says %q", said.Text())
	}
	return dir, cmd, keeper
}

func signalTo(t *testing.T, signal unix.Signal, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
	}
}

func releaseIn(t *testing.T, dir string) {
	t.Helper()
	if err := Release(t.Context(), dir+"/record-", testKinds, zap.NewNop()); err != nil {
		t.Error(err)
	}
}

func TestRelease_LeavesToAKeeperWhatItKeeps(t *testing.T) {
	dir, _, _ := begunByAnother(t)
	// What need not be waited for does not wait either.
	free := dir + "/record-z"
	spec := `{"kind":"scripted","end_ns":20000000000,"task":{"Dir":"` + dir + `","OnEnd":"touch $1/free"}}`
	if err := os.WriteFile(free, []byte(phaseHeld+spec), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	released := make(chan struct{})
	go func() {
		defer close(released)
		releaseIn(t, dir)
	}()
	eventually(t, "what nobody keeps is ended", func() bool { _, err := os.Stat(dir + "/free"); return err == nil })
	if took := time.Since(began); took >= keeperLimit {
		t.Errorf("what nobody keeps was ended after %v only", took)
	}
	<-released
	if got := logOf(dir); got != "begin" {
		t.Errorf("while a keeper lives: %q", got)
	}
}

// All processes are killed at one time, in either order, and the next domfs starts at once.
func TestRelease_EndsWhatIsHeldWhereAllWereKilled(t *testing.T) {
	for _, keeperFirst := range []bool{false, true} {
		for range 5 {
			dir, cmd, keeper := begunByAnother(t)
			pids := []int{cmd.Process.Pid, keeper}
			// Neither must notice that the other is killed before it is.
			testneed.Stop(t, pids...)
			if keeperFirst {
				slices.Reverse(pids)
			}
			signalTo(t, unix.SIGKILL, pids...)
			for range 2 {
				releaseIn(t, dir)
				wantLog(t, dir, "begin end")
			}
			cmd.Wait()
		}
	}
}

func TestRelease_WaitsForAKeeperThatDies(t *testing.T) {
	dir, cmd, keeper := begunByAnother(t)
	testneed.Stop(t, keeper)
	signalTo(t, unix.SIGKILL, cmd.Process.Pid)
	cmd.Wait()
	released := make(chan struct{})
	go func() {
		defer close(released)
		releaseIn(t, dir)
	}()
	select {
	case <-released:
		t.Error("the keeper was not waited for")
	case <-time.After(keeperLimit / 4):
	}
	if got := logOf(dir); got != "begin" {
		t.Errorf("while it lives: %q", got)
	}
	signalTo(t, unix.SIGKILL, keeper)
	<-released
	wantLog(t, dir, "begin end")
}

func TestRelease_WaitsForAKeeperThatEndsWhatItHolds(t *testing.T) {
	dir, cmd, _ := begunByAnother(t)
	signalTo(t, unix.SIGKILL, cmd.Process.Pid) // its keeper notices
	releaseIn(t, dir)
	wantLog(t, dir, "begin end")
}

func TestRelease_RefusesRecordsOfOthers(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "elsewhere")
	spec := `{"kind":"scripted","end_ns":1000000000,"task":{"Dir":"` + dir + `","OnEnd":"touch $1/ran"}}`
	for name, make := range map[string]func(path string) error{
		"a link": func(p string) error {
			return errors.Join(os.WriteFile(secret, []byte(phaseHeld+spec), 0o600), os.Symlink(secret, p))
		},
		"open to all": func(p string) error {
			return errors.Join(os.WriteFile(p, []byte(phaseHeld+spec), 0o600), os.Chmod(p, 0o666))
		},
		"no JSON":      func(p string) error { return os.WriteFile(p, []byte(phaseHeld+"{"), 0o600) },
		"unknown kind": func(p string) error { return os.WriteFile(p, []byte(phaseHeld+`{"kind":"x","task":{}}`), 0o600) },
	} {
		path := filepath.Join(dir, "record-1")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if err := Release(t.Context(), dir+"/record-", testKinds, zap.NewNop()); err == nil {
			t.Errorf("%s: no error", name)
		}
		os.Remove(path)
	}
	if _, err := os.Stat(dir + "/ran"); err == nil {
		t.Error("what a foreign record says was run")
	}
	for name, text := range map[string]string{"empty": "", "cut": phaseReady + "{"} {
		if err := os.WriteFile(dir+"/record-1", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Release(t.Context(), dir+"/record-", testKinds, zap.NewNop()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantLog(t, dir, "")
	}
	if err := Release(t.Context(), dir+"/none/record-", testKinds, zap.NewNop()); err != nil {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestHold_IsNotEndedWhereItFailedToBegin(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) { s.OnBegin = note("begin") + "echo cannot >&2; exit 1" })
	if err := b.Begin(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot") {
		t.Errorf("error is %v", err)
	}
	b.must(b.end())
	wantLog(t, b.dir, "begin")
}

func TestHold_IsUndoneWhereItMayHaveBegun(t *testing.T) {
	for name, edit := range map[string]func(s *Spec, t *scripted){
		"it says so":         func(_ *Spec, s *scripted) { s.OnBegin, s.BeginUnsure = note("begin")+"exit 1", true },
		"it does not return": func(s *Spec, t *scripted) { t.OnBegin, s.Begin = note("begin")+"sleep 600", time.Second },
	} {
		b := start(t, edit)
		if err := b.Begin(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		b.must(b.end())
		wantLog(t, b.dir, "begin end-unsure")
	}
}

func TestHold_IsUndoneWhereItsBeginningIsGivenUp(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) { s.OnBegin = note("begin") + "sleep 600" })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := b.Begin(ctx); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("error is %v", err)
	}
	b.must(b.end())
	wantLog(t, b.dir, "begin end-unsure")
}

func TestHold_TriesAgainToEnd(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) {
		s.OnEnd = note("try") + `test $(wc -l <"$1/log") -ge 4 || { echo not yet >&2; exit 1; }`
	})
	b.must(b.Begin(t.Context()))
	b.must(b.end())
	wantLog(t, b.dir, "begin try try try")

	b = start(t, func(s *Spec, t *scripted) {
		t.OnEnd, t.OnEndUnsure = note("try")+"sleep 600", note("end-unsure")
		t.EndUnsureAfter, s.End = true, 500*time.Millisecond
	})
	b.must(b.Begin(t.Context()))
	b.must(b.end())
	wantLog(t, b.dir, "begin try end-unsure")
}

func TestHold_SaysThatItHasNotEndedYet(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) {
		s.OnEnd = `test -e "$1/now" || { echo not yet >&2; exit 1; }; ` + note("end")
	})
	b.must(b.Begin(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := b.End(ctx); !errors.Is(err, backend.ErrTimeout) || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("error is %v", err)
	}
	b.must(os.WriteFile(b.dir+"/now", nil, 0o600))
	b.must(b.end())
	wantLog(t, b.dir, "begin end")
}

func TestHold_SaysThatOthersHaveEndedIt(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) { s.OnEnd = note("end") + "echo stale" })
	b.must(b.Begin(t.Context()))
	if err := b.end(); !errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("error is %v", err)
	}
	wantLog(t, b.dir, "begin end")
}

func TestHold_IsGivenUpWhereItCannotEnd(t *testing.T) {
	b := start(t, func(_ *Spec, s *scripted) { s.OnEnd = note("end") + "echo enough" })
	b.must(b.Begin(t.Context()))
	for range 2 {
		if err := b.end(); !errors.Is(err, backend.ErrBusy) || errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "of no use") {
			t.Errorf("error is %v", err)
		}
	}
	wantLog(t, b.dir, "begin end")
}

func TestKeeper_HoldsNothingOfOurs(t *testing.T) {
	leak, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	b := start(t, nil)
	b.must(b.Begin(t.Context()))
	proc := fmt.Sprintf("/proc/%d", b.child.PID())
	if cwd, err := os.Readlink(proc + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("its folder is %q, %v", cwd, err)
	}
	entries, err := os.ReadDir(proc + "/fd")
	b.must(err)
	var files []string
	for _, e := range entries {
		file, err := os.Readlink(proc + "/fd/" + e.Name())
		b.must(err)
		if !strings.HasPrefix(file, "anon_inode:") && !strings.HasPrefix(file, "pipe:") && file != "/dev/null" &&
			!strings.HasPrefix(file, "/sys/fs/cgroup/") { // Go's scheduler reads those

			files = append(files, file)
		}
	}
	if !slices.Equal(files, []string{b.record}) {
		t.Errorf("it has open %q", files)
	}
	sid, err := unix.Getsid(b.child.PID())
	if err != nil || sid != b.child.PID() {
		t.Errorf("its session is %d, %v", sid, err)
	}
	args, err := os.ReadFile(proc + "/cmdline")
	if err != nil || !strings.HasSuffix(string(args), "\x00hold\x00--\x00scripted\x00web01\x00") {
		t.Errorf("its command line is %q, %v", args, err)
	}
	b.must(b.end())
}

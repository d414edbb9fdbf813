package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// all reads what a program writes until it ends.
func all(t *testing.T, c *Child) []string {
	t.Helper()
	var lines []string
	limit := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-c.Lines():
			if !ok {
				<-c.Exited()
				return lines
			}
			lines = append(lines, line)
		case <-limit:
			c.Kill()
			t.Fatalf("it has not ended; it wrote %q", lines)
		}
	}
}

func child(t *testing.T, script string, args ...string) *Child {
	t.Helper()
	c, err := New(nil).Start("sh", append([]string{"-c", script, "sh"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	return c
}

func TestStart_TalksInLinesBothWays(t *testing.T) {
	c := child(t, `while read line; do echo "got $line"; done; echo end; exit 3`)
	for _, line := range []string{"a b", "", "c"} {
		if err := c.Say(line); err != nil {
			t.Fatal(err)
		}
		if got := <-c.Lines(); got != "got "+line {
			t.Errorf("it answered %q to %q", got, line)
		}
	}
	c.CloseInput()
	c.CloseInput()
	if got := all(t, c); !slices.Equal(got, []string{"end"}) {
		t.Errorf("at last it wrote %q", got)
	}
	var e *Error
	if !errors.As(c.Err(), &e) || e.Exit != 3 {
		t.Errorf("it ended with %v", c.Err())
	}
	if err := c.Say("late"); !errors.Is(err, backend.ErrIO) {
		t.Errorf("saying something to what has ended: %v", err)
	}
}

func TestStart_GivesTheSurroundingsOfATool(t *testing.T) {
	leak, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	// No pipe in the script: the shell's end of it would be one more descriptor, now and then.
	c := child(t, `pwd; echo $LC_ALL; echo $PATH; ls -m /proc/$$/fd; ps -o sid= -p $$; readlink /proc/$$/fd/2`)
	got := all(t, c)
	if len(got) != 6 {
		t.Fatalf("it wrote %q", got)
	}
	want := []string{"/", "C", path, "0, 1, 2", fmt.Sprint(c.PID()), "/dev/null"}
	got[4] = strings.TrimSpace(got[4])
	if !slices.Equal(got, want) {
		t.Errorf("it has %q, want %q", got, want)
	}
}

func TestStart_SaysHowItEnded(t *testing.T) {
	c := child(t, "exec sleep 600")
	c.Kill()
	if lines := all(t, c); len(lines) != 0 {
		t.Errorf("it wrote %q", lines)
	}
	var e *Error
	if !errors.As(c.Err(), &e) || e.Signal != syscall.SIGKILL {
		t.Errorf("it ended with %v", c.Err())
	}
	if c := child(t, "exit 0"); len(all(t, c)) != 0 || c.Err() != nil {
		t.Errorf("one that succeeded ended with %v", c.Err())
	}
	for name, sentinel := range map[string]error{"domfs-none": backend.ErrNotExist, "": backend.ErrInvalid, "./sh": backend.ErrInvalid} {
		if _, err := New(nil).Start(name); !errors.Is(err, sentinel) {
			t.Errorf("%q: %v, want %v", name, err, sentinel)
		}
	}
	if _, err := New(nil).Start("sh", "a\x00b"); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("an argument with a NUL: %v", err)
	}
}

func TestStart_EndsThoughSomethingHoldsItsOutput(t *testing.T) {
	c := child(t, `sleep 600 & echo $!`)
	began := time.Now()
	lines := all(t, c)
	if took := time.Since(began); took > pipeGrace+5*time.Second || len(lines) != 1 {
		t.Errorf("it wrote %q, and took %v", lines, took)
	}
	var pid int
	if _, err := fmt.Sscan(lines[0], &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestStart_IsNotStoppedByALineThatIsTooLong(t *testing.T) {
	c := child(t, fmt.Sprintf(`echo first; head -c %d /dev/zero | tr '\0' x; echo; echo last`, 4*maxLine))
	if lines := all(t, c); !slices.Equal(lines, []string{"first"}) || c.Err() != nil {
		t.Errorf("it wrote %d lines, and ended with %v", len(lines), c.Err())
	}
}

func TestStart_LeavesNothingBehind(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	all(t, child(t, "exit 0"))
	before := count()
	for range 20 {
		c := child(t, "read x")
		c.CloseInput()
		all(t, c)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestInheriting_KeepsALockForAsLongAsATool(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	started := filepath.Join(t.TempDir(), "started")
	go func() {
		_, err := New(nil).Run(Inheriting(context.Background(), f), "sh", "-c", `touch "$1"; sleep 1`, "sh", started)
		done <- err
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(started); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the tool does not start")
		}
	}
	// Our own descriptor of the lock goes; f may be in use.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	again, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the lock is free while the tool runs: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the lock is not free when the tool has ended: %v", err)
	}
}

func TestBoth_TellsWhatASuccessfulToolWroteToStandardError(t *testing.T) {
	out, text, err := New(nil).Both(context.Background(), "sh", "-c", "echo out; echo oh; echo no >&2; echo dear >&2")
	if err != nil || string(out) != "out\noh\n" || text != "no; dear" {
		t.Errorf("%q, %q, %v", out, text, err)
	}
	if _, text, err := New(nil).Both(context.Background(), "sh", "-c", "echo no >&2; exit 1"); err == nil || text != "no" {
		t.Errorf("%q, %v", text, err)
	}
}

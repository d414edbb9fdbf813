package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// sh runs a shell script.
func sh(ctx context.Context, script string, args ...string) ([]byte, error) {
	return New(nil).Run(ctx, "sh", append([]string{"-c", script, "sh"}, args...)...)
}

func TestRun_ReturnsWhatTheProgramWrote(t *testing.T) {
	out, err := New(nil).Run(context.Background(), "printf", "%s|", "a b", "", "$(id)", "*")
	if err != nil || string(out) != "a b||$(id)|*|" {
		t.Errorf("printf wrote %q, %v", out, err)
	}
}

func TestRun_GivesTheProgramAnEnvironmentOfItsOwn(t *testing.T) {
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("LVM_SYSTEM_DIR", "/tmp")
	t.Chdir(t.TempDir())
	out, err := New(nil).Run(context.Background(), "env")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	if !slices.Equal(got, environment) {
		t.Errorf("environment is %q, want %q", got, environment)
	}
	if out, err = New(nil).Run(context.Background(), "readlink", "/proc/self/cwd", "/proc/self/fd/0"); err != nil || string(out) != "/\n/dev/null\n" {
		t.Errorf("working directory and input are %q, %v", out, err)
	}
	// A terminal would let a tool ask questions.
	if _, err := sh(context.Background(), ": </dev/tty"); err == nil {
		t.Error("the program has a terminal")
	}
}

func TestRun_LendsNoDescriptor(t *testing.T) {
	dir := t.TempDir()
	// As one that whoever started us left open: without close-on-exec.
	fd, err := unix.Open(dir, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out, err := sh(context.Background(), "readlink /proc/$$/fd/* 2>/dev/null")
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "/dev/null" && !strings.HasPrefix(line, "pipe:") {
			t.Errorf("the program has %s open (of %q)", line, out)
		}
	}
}

func TestRun_SaysHowAProgramFailed(t *testing.T) {
	for _, c := range []struct {
		script  string
		exit    int
		signal  syscall.Signal
		stdout  string
		message string
	}{
		{"echo half; echo '  VG \"x\" not found' >&2; echo 'at all' >&2; exit 5", 5, 0, "half\n", `: exit status 5: VG "x" not found; at all`},
		{"exit 1", 1, 0, "", ": exit status 1"},
		{"kill -9 $$", -1, syscall.SIGKILL, "", ": killed by signal 9 (killed)"},
		{`printf 'a\033[1mb\n\n' >&2; exit 3`, 3, 0, "", ": exit status 3: a [1mb"},
	} {
		out, err := sh(context.Background(), c.script)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v is no *Error", c.script, err)
			continue
		}
		if string(out) != c.stdout || e.Exit != c.exit || e.Signal != c.signal || e.Err != nil || !slices.Equal(e.Argv, []string{"sh", "-c", c.script, "sh"}) {
			t.Errorf("%s: wrote %q, error is %+v", c.script, out, e)
		}
		if got := e.Error(); !strings.HasSuffix(got, c.message) || strings.Contains(got, "\n") {
			t.Errorf("%s: the message is %q, want it to end in %q", c.script, got, c.message)
		}
	}
}

func TestRun_BoundsItsMessages(t *testing.T) {
	_, err := sh(context.Background(), "for i in 1 2 3 4 5 6 7 8 9; do echo $1$1$1 >&2; done; echo the end >&2; exit 1", strings.Repeat("x", 500))
	if n := len(err.Error()); n > 3*maxErrorText || !strings.HasSuffix(err.Error(), "the end") {
		t.Errorf("a message of %d bytes: %v", n, err)
	}
}

func TestRun_NamesThePackageOfAMissingProgram(t *testing.T) {
	packages["domfs-no-such-tool"] = "domfs-tools"
	defer delete(packages, "domfs-no-such-tool")
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	// What PATH says is of no consequence.
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, c := range []struct {
		name     string
		sentinel error
		message  string
	}{
		{"domfs-no-such-tool", backend.ErrNotExist, "package domfs-tools"},
		{"domfs-none", backend.ErrNotExist, "domfs-none is not installed"},
		{"broken", backend.ErrNotExist, "not installed"},
		{"/no/such/tool", backend.ErrNotExist, "/no/such/tool"},
		{broken, backend.ErrNotExist, "start"},
		{plain, backend.ErrAccess, "cannot be executed"},
		{dir, backend.ErrAccess, "cannot be executed"},
		{"", backend.ErrInvalid, "name"},
		{"./sh", backend.ErrInvalid, "relative"},
		{"../bin/sh", backend.ErrInvalid, "relative"},
	} {
		_, err := New(nil).Run(context.Background(), c.name)
		if !errors.Is(err, c.sentinel) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%q: %v; want %v and %q", c.name, err, c.sentinel, c.message)
		}
	}
	if _, err := New(nil).Run(context.Background(), "echo", "a\x00b"); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("an argument with NUL: %v", err)
	}
}

// running tells whether a process lives; a zombie does not.
func running(pid string) bool {
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func TestRun_EndsALateProgramWithAllThatItStarted(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		atMost time.Duration
	}{
		"one that obeys":    {"sleep 600 & echo $! >$1; echo early; wait", termGrace},
		"one that does not": {"trap '' TERM; sleep 600 & echo $! >$1; echo early; while :; do sleep 0.1; done", termGrace + 2*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			out, err := sh(ctx, c.script, pidFile)
			if took := time.Since(began); took > c.atMost+300*time.Millisecond {
				t.Errorf("took %v", took)
			}
			var e *Error
			if !errors.Is(err, backend.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) {
				t.Errorf("error is %v, want ErrTimeout", err)
			}
			if string(out) != "early\n" {
				t.Errorf("wrote %q", out)
			}
			pid, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(2 * time.Second); running(string(pid)); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("process %s is still there", pid)
				}
			}
		})
	}
}

// A process that waits for a suspended device cannot be killed until the device is resumed.
func TestEnd_GivesUpOnAProcessThatDoesNotEnd(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if end(cmd.Process.Pid, make(chan struct{})) {
		t.Error("said that it ended")
	}
	if took := time.Since(began); took > termGrace+killGrace+time.Second {
		t.Errorf("took %v", took)
	}
	cmd.Wait()
}

func TestRun_EndsACancelledProgram(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err := New(nil).Run(ctx, "sleep", "600")
	if !errors.Is(err, context.Canceled) || errors.Is(err, backend.ErrTimeout) {
		t.Errorf("error is %v, want Canceled", err)
	}
	if _, err := New(nil).Run(ctx, "touch", filepath.Join(t.TempDir(), "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("a program was begun in a cancelled context: %v", err)
	}
}

func TestRun_SetsADeadlineWhereThereIsNone(t *testing.T) {
	var deadline time.Time
	r := &Runner{log: zap.NewNop(), do: func(ctx context.Context, argv []string) outcome {
		deadline, _ = ctx.Deadline()
		return outcome{}
	}}
	if _, err := r.Run(context.Background(), "x"); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(deadline); left <= 0 || left > DefaultTimeout {
		t.Errorf("the deadline was in %v", left)
	}
}

func TestRun_CapsOutput(t *testing.T) {
	for name, script := range map[string]string{
		"output":                    "exec yes",
		"errors":                    "exec yes >&2",
		"output of a short-lived":   fmt.Sprintf("exec head -c %d /dev/zero", maxStdout+1),
		"output of a deaf one":      "trap '' TERM PIPE; yes",
		"both at once and for ever": "yes >&2 & exec yes",
	} {
		began := time.Now()
		out, err := sh(context.Background(), script)
		if !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: error is %.200v", name, err)
		}
		if len(out) > maxStdout {
			t.Errorf("%s: %d bytes", name, len(out))
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	out, err := New(nil).Run(context.Background(), "head", "-c", fmt.Sprint(maxStdout), "/dev/zero")
	if err != nil || len(out) != maxStdout {
		t.Errorf("as much as allowed: %d bytes, %v", len(out), err)
	}
}

func TestRun_DoesNotWaitForADaemonThatHoldsItsOutput(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	began := time.Now()
	out, err := sh(context.Background(), "sleep 600 & echo $! >$1; echo done", pidFile)
	if took := time.Since(began); err != nil || string(out) != "done\n" || took > pipeGrace+2*time.Second {
		t.Errorf("wrote %q, %v after %v", out, err, took)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if !running(string(pid)) {
		t.Error("what a successful tool left running was killed")
	}
	var n int
	if _, err := fmt.Sscan(string(pid), &n); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestRun_LeavesNothingBehind(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	sh(context.Background(), ":")
	before := count()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if i%4 == 0 {
				ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
			}
			out, err := sh(ctx, "sleep 0.05; echo "+fmt.Sprint(i))
			if i%4 != 0 && (err != nil || string(out) != fmt.Sprintln(i)) {
				t.Errorf("call %d: %q, %v", i, out, err)
			}
			New(nil).Run(ctx, "domfs-none")
		})
	}
	wg.Wait()
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err == nil && len(children) > 0 {
		t.Errorf("children left: %s", children)
	}
}

func TestRun_LogsEachCall(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	if _, err := New(zap.New(core)).Run(context.Background(), "true"); err != nil {
		t.Fatal(err)
	}
	if logs.Len() != 1 || logs.All()[0].Level != zap.DebugLevel || logs.All()[0].Message != "exec" {
		t.Errorf("logged %v", logs.All())
	}
}

func TestLookup_KnowsThePackageOfEachTool(t *testing.T) {
	testneed.Tools(t, "dpkg")
	tools := map[string]string{} // a file that a tool may be known to dpkg by, to the tool
	argv := []string{"-S"}
	for tool := range packages {
		file, err := lookup(tool)
		if err != nil {
			continue // not installed here
		}
		for _, f := range []string{file, strings.TrimPrefix(file, "/usr"), "/usr" + file} {
			tools[f] = tool
			argv = append(argv, f)
		}
	}
	out, err := New(nil).Run(context.Background(), "dpkg", argv...)
	var e *Error
	if err != nil && (!errors.As(err, &e) || e.Exit != 1) { // 1: one of the files is none's
		t.Fatal(err)
	}
	checked := 0
	for line := range strings.Lines(string(out)) {
		owner, file, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || tools[file] == "" {
			continue
		}
		owner, _, _ = strings.Cut(owner, ":") // :amd64
		checked++
		if want := packages[tools[file]]; owner != want {
			t.Errorf("%s is of the package %s, not %s", file, owner, want)
		}
	}
	if checked == 0 {
		testneed.Missing(t, "one of the table's tools, as a Debian package")
	}
	t.Logf("%d tools of %d are installed and checked", checked, len(packages))
}

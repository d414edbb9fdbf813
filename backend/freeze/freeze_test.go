package freeze

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/run"
	"domfs/backend/run/hold"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

var kinds = hold.Kinds{Kind: NewTask(run.New(nil))}

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "hold" { // the keeper of a freeze
		if err := hold.Keep(os.Stdin, os.Stdout, kinds, zap.NewNop()); err != nil {
			unix.Exit(1)
		}
		unix.Exit(0)
	}
	os.Exit(m.Run())
}

// guest runs Freeze with commands, whose $DIR is a folder of the test's.
func guest(t *testing.T, freeze, thaw string, timeout time.Duration) (dir string, thawIt func(context.Context) error, err error) {
	t.Helper()
	dir = t.TempDir()
	f := New(Options{
		Freeze: "DIR=" + dir + "; " + freeze, Thaw: "DIR=" + dir + "; " + thaw, Timeout: timeout,
		Holds: hold.Options{Runner: run.New(nil), Records: dir + "/held-", Kinds: kinds},
	})
	d := backend.Domain{Name: "a 'name' of $HOME", ID: 7, UUID: "11111111-2222-3333-4444-555555555555"}
	thawIt, err = f.Freeze(t.Context(), d, "-n ightly")
	return dir, thawIt, err
}

func within(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	return f(ctx)
}

func wantLog(t *testing.T, dir, want string) {
	t.Helper()
	text, _ := os.ReadFile(dir + "/log")
	if got := strings.Join(strings.Fields(string(text)), " "); got != want {
		t.Errorf("what was run: %q, want %q", got, want)
	}
	if held, _ := filepath.Glob(dir + "/held-*"); len(held) != 0 {
		t.Errorf("records are left: %q", held)
	}
}

const (
	freezes = "echo freeze >>$DIR/log; "
	thaws   = "echo thaw >>$DIR/log; "
)

func TestFreeze_SaysForWhom(t *testing.T) {
	dir, thaw, err := guest(t, `{ env | grep ^DOMFS_ | sort; pwd; } >$DIR/freeze`, `{ env | grep ^DOMFS_ | sort; pwd; } >$DIR/thaw`, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := within(thaw); err != nil {
		t.Error(err)
	}
	const want = "DOMFS_DOMAIN=a 'name' of $HOME\nDOMFS_DOMID=7\nDOMFS_SNAPSHOT=-n ightly\nDOMFS_UUID=11111111-2222-3333-4444-555555555555\n/\n"
	for _, command := range []string{"freeze", "thaw"} {
		if text, err := os.ReadFile(filepath.Join(dir, command)); err != nil || string(text) != want {
			t.Errorf("the %s command is told %q, %v", command, text, err)
		}
	}
}

func TestFreeze_ThawsOnce(t *testing.T) {
	dir, thaw, err := guest(t, freezes, thaws, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := within(thaw); err != nil {
			t.Error(err)
		}
	}
	wantLog(t, dir, "freeze thaw")
}

func TestFreeze_ThatFailsIsThawedAllTheSame(t *testing.T) {
	for name, c := range map[string]struct {
		freeze, thaw string
		sentinel     error
		words, log   string
	}{
		"it says so":                     {freezes + "echo no agent >&2; exit 3", thaws, nil, "no agent", "freeze thaw"},
		"it is killed":                   {freezes + "kill -9 $$", thaws, nil, "signal 9", "freeze thaw"},
		"it does not return":             {freezes + "exec sleep 600", thaws, backend.ErrTimeout, "deadline", "freeze thaw"},
		"it says so, and is not to thaw": {freezes + "echo no agent >&2; exit 3", thaws + "exit 4", nil, "no agent", "freeze thaw"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, thaw, err := guest(t, c.freeze, c.thaw, 2*time.Second)
			if err == nil || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), "the freeze command") || strings.Contains(err.Error(), "DOMFS_") {
				t.Errorf("error is %v", err)
			}
			if c.sentinel != nil && !errors.Is(err, c.sentinel) {
				t.Errorf("error is %v, want %v", err, c.sentinel)
			}
			if err := within(thaw); err != nil {
				t.Error(err)
			}
			wantLog(t, dir, c.log)
		})
	}
}

func TestFreeze_RunsAThawCommandThatFailsAgain(t *testing.T) {
	dir, thaw, err := guest(t, freezes, thaws+"test $(wc -l <$DIR/log) -ge 4", 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := within(thaw); err != nil {
		t.Error(err)
	}
	wantLog(t, dir, "freeze thaw thaw thaw")

	dir, thaw, err = guest(t, freezes, thaws+"echo gone >&2; exit 1", 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := within(thaw); err == nil || errors.Is(err, backend.ErrStale) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("error is %v", err)
	}
	wantLog(t, dir, "freeze"+strings.Repeat(" thaw", maxThaws))
}

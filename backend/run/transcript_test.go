package run

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"domfs/backend"
)

// recorded is a transcript of real programs, written to a file and read again.
func recorded(t *testing.T) (*Transcript, []result) {
	t.Helper()
	tr := &Transcript{}
	results := play(New(nil).Record(tr))
	file := filepath.Join(t.TempDir(), "transcript.json")
	if err := tr.WriteFile(file); err != nil {
		t.Fatal(err)
	}
	back, err := ReadTranscript(file)
	if err != nil {
		t.Fatal(err)
	}
	return back, results
}

type result struct {
	out     string
	message string
	exit    int
	signal  syscall.Signal
	missing bool
	late    bool
}

// play asks programs things that end in every way there is.
func play(r *Runner) []result {
	var results []result
	for _, argv := range [][]string{
		{"printf", "a\nb <c>\n"},
		{"printf", `\377\000`},
		{"printf", ""},
		{"sh", "-c", "echo out; echo err >&2; exit 5"},
		{"sh", "-c", "kill -9 $$"},
		{"domfs-none"},
		{"sleep", "600"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		out, err := r.Run(ctx, argv[0], argv[1:]...)
		cancel()
		res := result{out: string(out), missing: errors.Is(err, backend.ErrNotExist), late: errors.Is(err, backend.ErrTimeout)}
		var e *Error
		if errors.As(err, &e) {
			res.exit, res.signal = e.Exit, e.Signal
			if e.Err == nil {
				res.message = e.Error()
			}
		}
		results = append(results, res)
	}
	return results
}

func TestTranscript_ReplaysWhatItRecorded(t *testing.T) {
	tr, want := recorded(t)
	if got := play(tr.Replay()); !reflect.DeepEqual(got, want) {
		t.Errorf("replayed\n%+v, recorded\n%+v", got, want)
	}
	if err := tr.Check(); err != nil {
		t.Error(err)
	}
}

func TestTranscript_TellsOfCallsThatDiffer(t *testing.T) {
	calls := func() []Call {
		return []Call{{Argv: []string{"lvs", "a"}, Stdout: Text("1")}, {Argv: []string{"vgs"}, Stdout: Text("2")}, {Argv: []string{"lvs", "a"}, Stdout: Text("3")}}
	}
	ask := func(r *Runner, argv ...string) string {
		out, err := r.Run(context.Background(), argv[0], argv[1:]...)
		if err != nil {
			return "error"
		}
		return string(out)
	}
	for _, c := range []struct {
		anyOrder bool
		asked    [][]string
		answers  string
		fault    string
	}{
		{false, [][]string{{"lvs", "a"}, {"vgs"}, {"lvs", "a"}}, "1 2 3", ""},
		{false, [][]string{{"vgs"}, {"lvs", "a"}, {"lvs", "a"}}, "error 1 error", "vgs was called; the transcript has next: lvs a"},
		{true, [][]string{{"vgs"}, {"lvs", "a"}, {"lvs", "a"}}, "2 1 3", ""},
		{true, [][]string{{"lvs", "a"}, {"lvs", "a"}, {"lvs", "a"}}, "1 3 error", "lvs a was called; the transcript has next: vgs"},
		{false, [][]string{{"lvs", "a"}, {"vgs"}}, "1 2", "call 3 was never asked for: lvs a"},
		{false, nil, "", "call 1 was never asked for: lvs a"},
		{false, [][]string{{"lvs", "a"}, {"vgs"}, {"lvs", "a"}, {"lvs", "a"}}, "1 2 3 error", "lvs a was called; the transcript has next: no further call"},
		{false, [][]string{{"lvs", "b"}}, "error", "lvs b was called"},
		{false, [][]string{{"lvs"}}, "error", "lvs was called"},
	} {
		tr := &Transcript{AnyOrder: c.anyOrder, Calls: calls()}
		r := tr.Replay()
		var answers []string
		for _, argv := range c.asked {
			answers = append(answers, ask(r, argv...))
		}
		if got := strings.Join(answers, " "); got != c.answers {
			t.Errorf("%q answered %q, want %q", c.asked, got, c.answers)
		}
		switch err := tr.Check(); {
		case c.fault == "" && err != nil:
			t.Errorf("%q: %v", c.asked, err)
		case c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)):
			t.Errorf("%q: the fault is %v, want %q", c.asked, err, c.fault)
		}
	}
}

func TestReadTranscript_RefusesWhatItCannotReplay(t *testing.T) {
	for text, fault := range map[string]string{
		`{`:                       "transcript",
		`{"calls":[{"argv":[]}]}`: "no argv",
		`{"calls":[{"argv":["a"],"failure":"boredom"}]}`: "unknown failure",
		`{"calls":[{"argv":["a"],"stdout":"%%%"}]}`:      "base64",
	} {
		file := filepath.Join(t.TempDir(), "t.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadTranscript(file); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %v, want %q", text, err, fault)
		}
	}
}

// Package runtest gives tests of drivers a Runner that replays a transcript of the
// host's tools.
package runtest

import (
	"os"
	"testing"

	"domfs/backend/run"
)

// Runner replays the transcript in file. The test fails for a call that is not in it,
// or out of its order, and for a call of it that was never made. Where DOMFS_RECORD is set, the
// calls are made of the host's real tools instead, and file is written anew.
func Runner(t testing.TB, file string) *run.Runner {
	t.Helper()
	if os.Getenv("DOMFS_RECORD") != "" {
		recorded := &run.Transcript{}
		if old, err := run.ReadTranscript(file); err == nil {
			recorded.AnyOrder = old.AnyOrder
		}
		t.Cleanup(func() {
			if err := recorded.WriteFile(file); err != nil {
				t.Errorf("write the transcript: %v", err)
			}
		})
		return run.New(nil).Record(recorded)
	}
	transcript, err := run.ReadTranscript(file)
	if err != nil {
		t.Fatalf("%v (DOMFS_RECORD=1 makes it)", err)
	}
	t.Cleanup(func() {
		if err := transcript.Check(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	})
	return transcript.Replay()
}

package labneed

import (
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/leftover"

	"golang.org/x/sys/unix"
)

// settleLimit is how long what ends by itself may take.
const settleLimit = 5 * time.Second

// atTheEnd is what there was on the machine as the last whole test ended; nil before.
var atTheEnd *leftover.Machine

// Leftovers fails the test if, when it has ended, there is more on the machine than now:
// volumes, devices of device-mapper, loop devices, mounts, processes that it started. Call it
// before anything is made: cleanups run in reverse. Between two tests nothing is made: what there is before
// a test is what there was at the end of the one before.
func Leftovers(t testing.TB) {
	t.Helper()
	// What a process of the test leaves running becomes our child.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	scope := leftover.Scope{Volumes: true}
	whole := !strings.Contains(t.Name(), "/") // within a test there may be what it has made
	var before leftover.Machine
	if whole && atTheEnd != nil {
		before = *atTheEnd
	} else {
		before = scope.Read()
	}
	t.Cleanup(func() {
		left, after := scope.Settle(before, settleLimit)
		for _, l := range left {
			t.Error("left behind: " + l)
		}
		if whole {
			atTheEnd = &after
		}
	})
}

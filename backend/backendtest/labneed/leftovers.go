package labneed

import (
	"testing"
	"time"

	"domfs/backend/backendtest/leftover"

	"golang.org/x/sys/unix"
)

// settleLimit is how long what ends by itself may take.
const settleLimit = 5 * time.Second

// Leftovers fails the test if, when it has ended, there is more on the machine than now:
// volumes, devices of device-mapper, loop devices, mounts, processes that it started. Call it
// before anything is made: cleanups run in reverse.
func Leftovers(t testing.TB) {
	t.Helper()
	// What a process of the test leaves running becomes our child.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	scope := leftover.Scope{Volumes: true}
	before := scope.Read()
	t.Cleanup(func() {
		for _, left := range scope.Settle(before, settleLimit) {
			t.Error("left behind: " + left)
		}
	})
}

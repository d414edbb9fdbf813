// Package cputime measures what a bounded piece of work may cost: the processor's time
// that this process has used, which a crowded machine does not stretch as it does a clock's.
package cputime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Start is how much this process had used.
type Start time.Duration

// Now begins a measurement.
func Now() Start { return Start(used()) }

// Used is what the process has used since, in all of its threads.
func (s Start) Used() time.Duration { return used() - time.Duration(s) }

func used() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err) // the arguments are right, so there is no other reason than a bug
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

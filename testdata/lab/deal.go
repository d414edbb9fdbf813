package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// test is a function of a package.
type test struct{ dir, name string }

// times are how long tests took when that was last written down (-times), in seconds of the machine that they run in.
type times map[test]float64

// timesFile is where they are kept: a package, a name and seconds in a line.
const timesFile = "testdata/lab/times"

// What is not written down, in seconds.
const (
	usualTime     = 15.0 // of a test that is new
	bootTime      = 14.0 // until a machine runs its first test
	bootTimeOfXen = 30.0
)

func (t times) of(k test) float64 {
	if seconds, ok := t[k]; ok {
		return seconds
	}
	return usualTime
}

func readTimes(file string) (times, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := times{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			return nil, fmt.Errorf("%s: %q is no package, test and time", file, lines.Text())
		}
		seconds, err := strconv.ParseFloat(fields[2], 64)
		if err != nil || !(seconds >= 0) {
			return nil, fmt.Errorf("%s: %q is no time", file, fields[2])
		}
		t[test{fields[0], fields[1]}] = seconds
	}
	return t, lines.Err()
}

// write writes times of tests that there are, by package and name.
func (t times) write(w io.Writer, exists func(test) bool) error {
	var all []test
	for k := range t {
		if exists(k) {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b test) int { return cmp.Or(cmp.Compare(a.dir, b.dir), cmp.Compare(a.name, b.name)) })
	for _, k := range all {
		if _, err := fmt.Fprintf(w, "%s %s %.0f\n", k.dir, k.name, t[k]); err != nil {
			return err
		}
	}
	return nil
}

// deal is of tests to machines, of which there are as many at a time as there are slots.
type deal struct {
	slots int
	xen   []test
	plain []timed
	load  float64 // of Xen's machine, in seconds
}

type timed struct {
	test
	seconds float64
}

func newDeal(slots int) *deal { return &deal{slots: max(1, slots)} }

func (d *deal) add(k test, t times) {
	if kindOf(k.name) == withXen {
		d.xen = append(d.xen, k)
		d.load += t.of(k)
		return
	}
	d.plain = append(d.plain, timed{k, t.of(k)})
}

// out deals: the longest first, each to the slot that has least to do.
func (d *deal) out() (machineOf map[test]int, kinds []kind) {
	loads := make([]float64, d.slots)
	used := make([][]test, d.slots)
	if len(d.xen) > 0 {
		kinds = append(kinds, withXen)
		loads[0] = bootTimeOfXen + d.load
	}
	slices.SortStableFunc(d.plain, func(a, b timed) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, k := range d.plain {
		// A slot that has no such machine yet has to boot one.
		with := func(slot int) float64 {
			if len(used[slot]) == 0 {
				return loads[slot] + bootTime + k.seconds
			}
			return loads[slot] + k.seconds
		}
		best := 0
		for slot := range d.slots {
			if with(slot) < with(best) {
				best = slot
			}
		}
		loads[best] = with(best)
		used[best] = append(used[best], k.test)
	}
	machineOf = map[test]int{}
	for _, k := range d.xen {
		machineOf[k] = 0
	}
	first := len(kinds) // that of Xen's slot comes last: it waits until a slot is free
	for i := range d.slots {
		slot := (first + i) % d.slots
		if len(used[slot]) == 0 {
			continue
		}
		for _, k := range used[slot] {
			machineOf[k] = len(kinds)
		}
		kinds = append(kinds, plain)
	}
	return machineOf, kinds
}

// Package records is what the lab's guests write to their disks, and what a copy of the disks is checked by.
//
// Record n goes to the first disk where n is odd, to the second where it is even, and is written when the sync of
// record n-1 has ended. So each record depends on the one before, which is on the other disk: in a consistent cut
// of both disks none is there without it. A guest with one disk writes all to that.
package records

import (
	"bytes"
	"fmt"
)

// LineBytes is the length of each record: a divisor of any block's, so none is in two.
const LineBytes = 32

// Line is record n of 1, 2, …
func Line(n int) []byte {
	return fmt.Appendf(nil, "%-*s\n", LineBytes-1, fmt.Sprintf("record %d after %d", n, n-1))
}

// Check is the highest record of a cut of several disks: the records' files of each, in the disks' order. The error
// says what is not consistent: a record without the one that it depends on, or what is none.
func Check(files ...[]byte) (last int, err error) {
	lasts := make([]int, len(files))
	for disk, text := range files {
		n := disk + 1
		for ; len(text) >= LineBytes; n += len(files) {
			if !bytes.Equal(text[:LineBytes], Line(n)) {
				return 0, fmt.Errorf("disk %d has %q, want record %d", disk, text[:LineBytes], n)
			}
			text = text[LineBytes:]
			lasts[disk] = n
		}
		if len(text) > 0 {
			return 0, fmt.Errorf("disk %d ends with a part of a record: %q", disk, text)
		}
		last = max(last, lasts[disk])
	}
	for disk := range lasts {
		// The last record of this disk that others depend on.
		needed := last - len(files) + 1
		for needed > 0 && (needed-1)%len(files) != disk {
			needed++
		}
		if needed > lasts[disk] && needed < last {
			return 0, fmt.Errorf("record %d is there, and record %d, on which it depends, is not: disk %d ends with record %d", last, needed, disk, lasts[disk])
		}
	}
	return last, nil
}

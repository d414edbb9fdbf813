package records

import (
	"slices"
	"strings"
	"testing"
)

// disks hold the records 1 to last, without those left out.
func disks(count, last int, without ...int) [][]byte {
	files := make([][]byte, count)
	for n := 1; n <= last; n++ {
		if !slices.Contains(without, n) {
			files[(n-1)%count] = append(files[(n-1)%count], Line(n)...)
		}
	}
	return files
}

func TestCheck_TellsAConsistentCut(t *testing.T) {
	junk := disks(2, 8)
	junk[0][LineBytes+7] = 'x'
	torn := disks(2, 8)
	torn[1] = torn[1][:len(torn[1])-1]
	tests := []struct {
		name  string
		files [][]byte
		last  int
		says  string // of the error; "" for none
	}{
		{"nothing yet", disks(2, 0), 0, ""},
		{"the first record", disks(2, 1), 1, ""},
		{"two disks", disks(2, 7), 7, ""},
		{"two disks, the second last", disks(2, 8), 8, ""},
		{"one disk", disks(1, 5), 5, ""},
		{"three disks", disks(3, 8), 8, ""},
		{"the second disk is older", disks(2, 9, 8), 0, "record 9 is there, and record 8"},
		{"the second disk is much older", disks(2, 9, 8, 6, 4), 0, "record 9 is there, and record 8"},
		{"the first disk is older", disks(2, 10, 9, 7), 0, "record 10 is there, and record 9"},
		{"a hole", disks(2, 9, 5), 0, "want record 5"},
		{"no record", junk, 0, "want record 3"},
		{"a torn record", torn, 0, "a part of a record"},
	}
	for _, test := range tests {
		last, err := Check(test.files...)
		if test.says == "" && (err != nil || last != test.last) {
			t.Errorf("%s: %d, %v; want %d", test.name, last, err, test.last)
		}
		if test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: %d, %v; want an error with %q", test.name, last, err, test.says)
		}
	}
}

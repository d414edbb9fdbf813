package lvm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"
)

// TestToolFailed_KnowsRecordedErrors reads testdata/stderr.txt: what LVM's tools wrote when they failed, recorded by hand
// from LVM 2.03.16 in the lab.
func TestToolFailed_KnowsRecordedErrors(t *testing.T) {
	sentinels := map[string]error{
		"ErrNotExist": backend.ErrNotExist, "ErrExist": backend.ErrExist, "ErrBusy": backend.ErrBusy, "ErrNoSpace": backend.ErrNoSpace,
		"ErrUnsupported": backend.ErrUnsupported, "ErrInvalid": backend.ErrInvalid, "ErrReadOnly": backend.ErrReadOnly, "ErrIO": backend.ErrIO,
		"ErrCorrupt": backend.ErrCorrupt, "ErrAccess": backend.ErrAccess, "ErrPermission": backend.ErrPermission,
	}
	text, err := os.ReadFile("testdata/stderr.txt")
	if err != nil {
		t.Fatal(err)
	}
	records := strings.Split(string(text), "\n== ")[1:]
	if len(records) < 20 {
		t.Fatalf("%d records", len(records))
	}
	for _, record := range records {
		head, stderr, _ := strings.Cut(record, "\n")
		want, command, _ := strings.Cut(head, " ")
		t.Run(command, func(t *testing.T) {
			failure := &run.Error{Argv: strings.Fields(command), Exit: 5, Stderr: stderr}
			err := toolFailed("change vg/lv", failure)
			for name, sentinel := range sentinels {
				if errors.Is(err, sentinel) != (name == want) {
					t.Errorf("%v: is %s: %t, want %s", err, name, errors.Is(err, sentinel), want)
				}
			}
			if !errors.Is(err, failure) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "WARNING") || len(err.Error()) > 700 {
				t.Errorf("%q", err)
			}
		})
	}
}

func TestToolFailed_OfAToolThatDidNotEnd(t *testing.T) {
	err := toolFailed("remove vg/lv", &run.Error{Argv: []string{"lvremove"}, Exit: -1, Err: backend.ErrTimeout, Stderr: "  Logical volume vg/lv in use.\n"})
	if !errors.Is(err, backend.ErrTimeout) || errors.Is(err, backend.ErrBusy) {
		t.Error(err)
	}
	err = toolFailed("remove vg/lv", &run.Error{Argv: []string{"lvremove"}, Exit: -1, Signal: 9})
	if !strings.Contains(err.Error(), "signal 9") {
		t.Error(err)
	}
	if err := toolFailed("remove vg/lv", errors.New("x")); err.Error() != "remove vg/lv: x" {
		t.Error(err)
	}
}

func TestToolFailed_LeavesOutWhatIsNoReason(t *testing.T) {
	err := toolFailed("snapshot vg0/o1", &run.Error{Argv: []string{"lvcreate"}, Exit: 5, Stderr: "  WARNING: setpriority -18 failed: Permission denied.\n" +
		strings.Repeat("  55beee700000-55beef973000 rw-p 00000000 00:00 0                          [heap]: mlock failed: Cannot allocate memory\n", 20) +
		"  Volume group \"vg0\" has insufficient free space (3 extents): 16 required.\n"})
	if want := "snapshot vg0/o1: lvcreate says: Volume group \"vg0\" has insufficient free space (3 extents): 16 required: add a disk with vgextend, or remove snapshots"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

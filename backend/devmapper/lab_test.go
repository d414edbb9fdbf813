package devmapper

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
)

// As dmsetup says it: of names as long as can be, of more devices and targets than the first buffer has room for, of a device
// that is suspended, one that is open, and one that has no table.
func TestLab_DevicesAreWhatDmsetupSays(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	disk := labneed.Disk(t, 64<<20)
	c := New(Node)
	if devices, err := c.Devices(t.Context()); err != nil || len(devices) == 0 != strings.Contains(labneed.Run(t, "dmsetup", "info"), "No devices found") {
		t.Errorf("before any is made there are %+v, %v", devices, err)
	}
	var names []string
	create := func(name, uuid string, args ...string) {
		t.Helper()
		labneed.Run(t, append([]string{"dmsetup", "create", name, "--uuid", uuid, "--noudevsync"}, args...)...)
		names = append(names, name)
	}
	t.Cleanup(func() {
		labneed.Settle(t)
		labneed.Run(t, "dmsetup", "resume", "labdm-suspended")
		for batch := range slices.Chunk(names, 32) {
			labneed.Run(t, append([]string{"dmsetup", "remove", "--retry"}, batch...)...)
		}
	})
	var many, concise strings.Builder
	for i := range 600 {
		fmt.Fprintf(&many, "%d 8 linear %s %d\n", 8*i, disk, 8*i)
	}
	table := t.TempDir() + "/table"
	if err := os.WriteFile(table, []byte(many.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	create("labdm-many", "labdm-0", table)
	create("labdm-open", "labdm-1", "--table", "0 8 linear "+disk+" 0")
	create("labdm-suspended", "labdm-2", "--table", "0 16 zero")
	create("labdm-none", strings.Repeat("u", 128), "--notable")
	for i := range 80 { // the list of which is longer than the buffer
		name := fmt.Sprintf("labdm-%s%03d", strings.Repeat("n", 127-9), i)
		names = append(names, name)
		fmt.Fprintf(&concise, "%s,labdm-%s%03d,,ro,0 8 error;", name, strings.Repeat("v", 128-9), i)
	}
	labneed.VG(t, "labdm", labneed.Disk(t, 64<<20))
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", "origin", "--size", "8M", "labdm")
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--snapshot", "--name", "of", "--size", "4M", "labdm/origin")
	labneed.Run(t, "dmsetup", "create", "--noudevsync", "--concise", strings.TrimSuffix(concise.String(), ";"))
	labneed.Settle(t)
	labneed.Run(t, "dmsetup", "suspend", "--noudevsync", "labdm-suspended")
	f, err := os.Open("/dev/mapper/labdm-open")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	devices, err := c.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var info, targets []string
	for _, d := range devices {
		state := "Active"
		if d.Suspended {
			state = "Suspended"
		}
		info = append(info, fmt.Sprintf("%d:%d:%d:%s:%s:%s", d.Major, d.Minor, d.Open, state, d.UUID, d.Name))
	}
	for _, d := range devices {
		if d.UUID == "" { // another's
			continue
		}
		one, err := c.StatusOf(t.Context(), d.UUID)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range one.Targets {
			targets = append(targets, strings.TrimSpace(fmt.Sprintf("%s: %d %d %s %s", d.Name, target.StartBytes/512, target.SizeBytes/512, target.Type, target.Status)))
		}
		if one.Targets = nil; fmt.Sprint(one) != fmt.Sprint(d) {
			t.Errorf("StatusOf has %+v, Devices has %+v", one, d)
		}
	}
	same := func(what string, got []string, argv ...string) {
		t.Helper()
		var want []string
		for line := range strings.Lines(labneed.Run(t, argv...)) {
			if line = strings.TrimSpace(line); !strings.HasSuffix(line, ":") { // of one without a table
				want = append(want, line)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	same("Devices", info, "dmsetup", "info", "-c", "--noheadings", "--nosuffix", "--separator", ":", "-o", "major,minor,open,suspended,uuid,name")
	same("StatusOf", targets, "dmsetup", "status", "--noflush")
	if len(targets) < 600 || len(devices) < 84 {
		t.Errorf("there are %d devices and %d targets", len(devices), len(targets))
	}

	one, err := c.StatusOf(t.Context(), "labdm-1")
	if err != nil || one.Name != "labdm-open" || one.Open != 1 || len(one.Targets) != 1 || one.Targets[0].Type != "linear" {
		t.Errorf("StatusOf = %+v, %v", one, err)
	}
	if one, err := c.StatusOf(t.Context(), "labdm-none"); !errors.Is(err, backend.ErrNoDevice) {
		t.Errorf("StatusOf = %+v, %v of a device that is none", one, err)
	}
}

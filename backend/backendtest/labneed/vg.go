package labneed

import (
	"strings"
	"testing"
)

// VG makes a volume group of devices that are not PVs yet, before which there may be options of vgcreate; it goes, with
// all its volumes, when the test ends.
func VG(t testing.TB, name string, devices ...string) {
	t.Helper()
	Run(t, append([]string{"vgcreate", "--quiet", "--yes", name}, devices...)...)
	t.Cleanup(func() { RemoveVG(t, name) })
}

// Deactivate deactivates a volume group, or the volume of VG/LV. It waits for udev before: what udev activates by the
// event of a change that was made just now would be active again.
func Deactivate(t testing.TB, name string) {
	t.Helper()
	Settle(t)
	command := "vgchange"
	if strings.Contains(name, "/") {
		command = "lvchange"
	}
	Run(t, command, "--quiet", "--activate", "n", name)
}

// RemoveVG removes a volume group with all its volumes, if there is one of that name.
func RemoveVG(t testing.TB, name string) {
	t.Helper()
	var err error
	for range 5 { // udev or a test's own process may hold a volume for a moment
		Settle(t)
		if _, err = Try("vgremove", "--force", "--force", "--yes", name); err == nil {
			return
		}
		if _, none := Try("vgs", "--noheadings", "--options", "vg_name", name); none != nil {
			return
		}
	}
	t.Error(err)
}

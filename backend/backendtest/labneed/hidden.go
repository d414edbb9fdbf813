package labneed

import (
	"fmt"
	"os"
	"testing"
)

// rulesDir is where udev reads the rules that are gone after a reboot.
const rulesDir = "/run/udev/rules.d"

// Hidden is Attach of a file that holds a guest's things, for a test that makes or checks
// them with LVM itself: the host's udev leaves a device of this file alone until the test
// ends, so no guest's VG is activated by it. The host's LVM still sees it; name the devices to
// be used, and no others: vgcreate --devices /dev/loop3 guest /dev/loop3.
func Hidden(t testing.TB, file string, options ...string) string {
	t.Helper()
	if err := os.MkdirAll(rulesDir, 0o755); err != nil {
		t.Fatal(err)
	}
	rule, err := os.CreateTemp(rulesDir, "00-domfs-lab-*.rules")
	if err != nil {
		t.Fatal(err)
	}
	// Cleanups run in reverse: the rule goes after the device.
	t.Cleanup(func() {
		if err := os.Remove(rule.Name()); err != nil {
			t.Error(err)
		}
		Run(t, "udevadm", "control", "--reload")
		Settle(t)
	})
	_, err = fmt.Fprintf(rule, "SUBSYSTEM==\"block\", ATTR{loop/backing_file}==%q, ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}=\"1\"\n", file)
	if err := rule.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// It has to be there before the device's first event.
	Run(t, "udevadm", "control", "--reload")
	return Attach(t, file, options...)
}

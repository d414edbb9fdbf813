package main

import (
	"os"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
)

// unitsCapabilities are those that the systemd unit leaves to the service.
func unitsCapabilities(t *testing.T) string {
	t.Helper()
	unit, err := os.ReadFile("dist/domfs.service")
	must(t, err)
	set := "-all"
	for line := range strings.Lines(string(unit)) {
		if names, ok := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet="); ok {
			for _, name := range strings.Fields(names) {
				set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
			}
		}
	}
	return set
}

// LVM, kpartx and we ourselves get by with what the unit grants. Where LVM lacks one it says so and may go on: what
// it says is looked at, too.
func TestLab_TheUnitsCapabilitiesAreEnough(t *testing.T) {
	h := kindHost(t)
	labneed.Run(t, "modprobe", "-a", "dm_mod", "dm_snapshot", "loop") // as the unit has it
	h.domains(64, 1)
	confined := []string{"setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + unitsCapabilities(t)}
	confined = confined[:len(confined):len(confined)]
	labneed.Run(t, append(confined, binary, "mount", "--daemon", "--xl-config="+h.dir+"/xen", "--lock-file="+h.dir+"/lock", "--log-file="+h.dir+"/log", h.mnt)...)
	t.Cleanup(func() { _, _ = labneed.Try(binary, "umount", "--lazy", h.mnt) })
	for _, kind := range diskKinds {
		t.Run(kind.name, func(t *testing.T) {
			create := []string{"lvcreate", "-y", "-s", "-n", "by-hand", "-kn"}
			if kind.name == "thick" {
				create = append(create, "-L", "8m")
			}
			for _, tool := range [][]string{append(create, "vg/"+kind.name), {"lvremove", "-y", "vg/by-hand"}} {
				if out := labneed.Run(t, append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh"}, append(confined, tool...)...)...); strings.Contains(out, "failed") {
					t.Errorf("%s says %s", tool[0], out)
				}
			}
			snap := h.mnt + "/snapshots/" + kind.name + "/s"
			labneed.Run(t, "mkdir", snap)
			if got := labneed.Run(t, "blkid", "-o", "value", "-s", "TYPE", snap+"/disks/xvda/device"); strings.TrimSpace(got) != "ext4" {
				t.Errorf("on the device is %q", got)
			}
			labneed.Run(t, "cat", snap+"/disks/xvda/files/etc/hostname")
			labneed.Run(t, "rmdir", snap)
			labneed.Run(t, "sh", "-c", "echo +4M > "+h.mnt+"/xenstore/"+kind.name+"/disks/xvda/size")
		})
	}
	labneed.Run(t, binary, "umount", h.mnt)
}

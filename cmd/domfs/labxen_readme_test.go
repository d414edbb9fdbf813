package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"
	"domfs/testdata/lab/domu/records"
)

// The host that the README speaks of: the domain web01 of /etc/xen/web01.cfg runs, on vg0/web01 and vg0/web01-data, and
// writes to both all the time.
func TestLabXen_READMEsQuickStartWorksLineByLine(t *testing.T) {
	labxen.Need(t)
	h := &xenHost{newLVMHost(t)}
	h.vg("vg0", 1, 4096)
	h.pool("vg0", "pool", 128, 8)
	root, data := h.zeroes(h.thick("vg0", "web01", guestRootMiB)), h.thin("vg0", "pool", "web01-data", guestDataMiB)
	labxen.MakeRoot(t, root, labxen.LVM)
	labxen.MakeData(t, data)
	d := labxen.NewDomU(t, labxen.Options{Name: "web01", Layout: labxen.LVM, Data: "/dev/xvdb", Pace: easyPace, Weight: labxen.LightWeight,
		Disks: []labxen.Disk{{Target: root}, {Target: data}}})
	d.Do(t, fmt.Sprintf("printf '/dev/%s/root / ext4 defaults 0 1\\n/dev/xvdb /data ext4 defaults 0 2\\n' >/etc/fstab && sync", labxen.Group))
	h.webConfig(readFile(t, d.Config))
	d.AwaitSynced(3)
	synced := d.Synced()
	out := h.runQuickStart("### On a Xen host")
	// What it says of the lines that only look.
	for _, want := range []string{"\nrunning\n" + fmt.Sprint(d.ID) + "\n", "\npaused\n", "\n/dev/vg0/web01-xvdc\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not print %q", want)
		}
	}
	// The archive is of one instant on both disks.
	var cut [][]byte
	for _, name := range []string{labxen.RootRecords, "data/" + labxen.DataRecords} {
		text, err := exec.Command("tar", "-xzOf", filepath.Join(h.dir, "web01.tar.gz"), "./"+name).Output()
		must(t, err)
		cut = append(cut, text)
	}
	if last, err := records.Check(cut...); err != nil || last < synced {
		t.Errorf("the archive has records up to %d, %v; %d was synced before", last, err, synced)
	}
	// The guest saw its disk grow, and another come and go, and goes on.
	d.AwaitSize("xvda", (guestRootMiB+1024)*mib)
	d.AwaitSize("xvdc", -1)
	if !strings.Contains(d.Console(), "\nsize xvdc 2097152\n") {
		t.Error("the guest has not seen the new disk")
	}
	d.AwaitSynced(3)
	if got := labneed.Run(t, "lvs", "--noheadings", "-o", "lv_name", "vg0"); strings.Join(strings.Fields(got), " ") != "pool web01 web01-data web01-xvdc" {
		t.Errorf("volumes: %q", got)
	}
	if isMounted(t, "/mnt/domfs") {
		t.Error("/mnt/domfs is still mounted")
	}
}

package labxen

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/testdata/lab/domu/records"
)

// These tests are about the lab itself: a test that needs a guest can rely on what they show.

const (
	rootBytes = 96 * mib
	dataBytes = 64 * mib
	quickPace = 50 * time.Millisecond
)

// volume is a new volume of zeroes.
func volume(t *testing.T, name string, sizeBytes int64) string {
	t.Helper()
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", name, "--size", fmt.Sprintf("%dB", sizeBytes), "labxen")
	path := "/dev/labxen/" + name
	labneed.Run(t, "blkdiscard", "-z", path)
	return path
}

func group(t *testing.T) {
	t.Helper()
	labneed.VG(t, "labxen", labneed.Disk(t, 1024*mib))
}

// reliedOn is what tests rely on, shown of a guest that writes records before it and after it.
type reliedOn struct {
	name string
	test func(t *testing.T, d *DomU)
}

// Each guest ends in the middle of its writing. What else is relied on is shown by the same ones: to boot one takes its time.
func TestLabXen_ADomUWritesItsRecordsAndDoesWhatTestsRelyOn(t *testing.T) {
	Need(t)
	labneed.Leftovers(t)
	tests := []struct {
		name   string
		layout Layout
		disks  func(t *testing.T) []Disk
		pace   time.Duration
		also   []reliedOn
	}{
		{"LVM on a volume, and a second volume", LVM, func(t *testing.T) []Disk {
			group(t)
			return []Disk{{Target: volume(t, "root", rootBytes)}, {Target: volume(t, "data", dataBytes)}}
		}, 0, []reliedOn{
			{"it sees its disk grow", growthOfAPhyDiskIsSeen},
			{"a pause stops it", pauseStopsAGuest},
			{"it is given disks, and they are taken from it", blockAttachAndDetach},
		}},
		{"a bare filesystem in a file that QEMU serves", Bare, func(t *testing.T) []Disk {
			return []Disk{{Target: labneed.File(t, rootBytes), Backend: "qdisk"}}
		}, quickPace, nil},
		{"a partition of a file that a loop device serves", GPT, func(t *testing.T) []Disk {
			return []Disk{{Target: labneed.File(t, rootBytes)}}
		}, quickPace, []reliedOn{
			{"it writes to its part of xenstore, and crashes", aGuestWritesToXenstoreAndCrashes},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			disks := test.disks(t)
			MakeRoot(t, disks[0].Target, test.layout)
			o := Options{Layout: test.layout, Disks: disks, Pace: test.pace, Config: []string{`on_crash = "preserve"`}}
			if len(disks) > 1 {
				MakeData(t, disks[1].Target)
				o.Data = "/dev/xvdb"
			}
			d := NewDomU(t, o)
			d.AwaitSynced(20)
			for _, one := range test.also {
				t.Run(one.name, func(t *testing.T) { one.test(t, d.Within(t)) })
			}
			d.Destroy(t)
			synced := d.Synced()
			files := [][]byte{Records(t, disks[0].Target, test.layout.RootOffset(), RootRecords)}
			if len(disks) > 1 {
				files = append(files, Records(t, disks[1].Target, 0, DataRecords))
			}
			last, err := records.Check(files...)
			if err != nil || last < synced {
				t.Errorf("the disks have records up to %d, %v; the guest said %d", last, err, synced)
			}
			// What is left out is missed.
			if _, err := records.Check(append([][]byte{files[0][:len(files[0])-2*records.LineBytes]}, files[1:]...)...); err == nil && len(files) > 1 {
				t.Error("disks of different times are taken for a consistent cut")
			}
		})
	}
}

func growthOfAPhyDiskIsSeen(t *testing.T, d *DomU) {
	d.AwaitSize("xvda", rootBytes)
	grow := func() int64 {
		labneed.Run(t, "lvextend", "--quiet", "--size", "+8M", "labxen/root")
		size, err := strconv.ParseInt(labneed.Run(t, "blockdev", "--getsize64", "/dev/labxen/root"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return size
	}
	d.AwaitSynced(1)
	d.AwaitSize("xvda", grow())
	// blkback looks at the size ten times a second, also while the guest asks for nothing.
	d.Do(t, "idle")
	d.Do(t, "sync")
	requests := func() string { return d.Do(t, "read -r line </sys/block/xvda/stat; echo $line") }
	for try := 0; ; try++ {
		before := requests()
		d.AwaitSize("xvda", grow())
		after := requests()
		if after == before {
			break
		}
		if try == 9 { // its kernel still writes what is dirty
			t.Fatalf("the guest that was to be idle made requests: %q, and %q after", before, after)
		}
	}
	d.Do(t, "go")
	d.AwaitSynced(3)
}

// state is how xl has a guest: letters at their places, r running, b blocked, p paused, s shut down, c crashed, d dying.
func state(t *testing.T, d *DomU) string {
	t.Helper()
	fields := strings.Fields(labneed.Run(t, "xl", "list", d.Name))
	return fields[len(fields)-2]
}

func pauseStopsAGuest(t *testing.T, d *DomU) {
	d.AwaitSynced(3)
	labneed.Run(t, "xl", "pause", d.Name)
	if got := state(t, d); !strings.Contains(got, "p") {
		t.Errorf("state %s after a pause", got)
	}
	time.Sleep(time.Second) // what it had said is still on its way
	before := d.Synced()
	time.Sleep(2 * time.Second)
	if after := d.Synced(); after != before {
		t.Errorf("a paused guest wrote records %d to %d", before, after)
	}
	labneed.Run(t, "xl", "unpause", d.Name)
	d.AwaitSynced(3)
}

func blockAttachAndDetach(t *testing.T, d *DomU) {
	d.Do(t, "idle")
	disk := Disk{Target: volume(t, "more", dataBytes), VDev: "xvdc"}
	attach := func() {
		t.Helper()
		labneed.Run(t, "xl", "block-attach", d.Name, disk.Specification())
		d.AwaitSize("xvdc", dataBytes)
	}
	attach()
	d.Do(t, "mke2fs -q /dev/xvdc && mount -t ext4 /dev/xvdc /mnt && echo hello >/mnt/file && umount /mnt")
	labneed.Run(t, "xl", "block-detach", d.Name, "xvdc")
	d.AwaitSize("xvdc", -1)
	attach()
	if said := d.Do(t, "mount -t ext4 /dev/xvdc /mnt && cat /mnt/file"); said != "hello" {
		t.Errorf("the disk that was away has %q", said)
	}
	// Linux 6.1 gives up a disk that it has mounted: whoever detaches one has to look first.
	labneed.Run(t, "xl", "block-detach", d.Name, "xvdc")
	labneed.Eventually(t, "a mounted disk is taken from the guest", func() bool { return d.SizeBytes("xvdc") <= 0 })
	if said, status := d.Try(t, "echo lost >/mnt/lost && sync /mnt/lost"); status == 0 {
		t.Errorf("the guest can write to a disk that is gone: %q", said)
	}
	d.Do(t, "umount /mnt")
	d.AwaitSize("xvdc", -1)
	d.Do(t, "go")
	d.AwaitSynced(3)
}

func aGuestWritesToXenstoreAndCrashes(t *testing.T, d *DomU) {
	const node, rubbish = "device/vbd/51712/backend", "/local/domain/0/backend/vbd/0/rubbish"
	if said := d.Do(t, "/sbin/init xenstore write "+node+" "+rubbish+" && /sbin/init xenstore read "+node); said != rubbish {
		t.Errorf("the guest reads %q", said)
	}
	if got := labneed.Run(t, "xenstore-read", fmt.Sprintf("/local/domain/%d/%s", d.ID, node)); got != rubbish {
		t.Errorf("the guest's node has %q", got)
	}
	if said, status := d.Try(t, "/sbin/init xenstore write /local/domain/0/name rubbish"); status == 0 || !strings.Contains(said, "EACCES") {
		t.Errorf("the guest wrote to another's part: %d %q", status, said)
	}
	d.Tell(t, "echo c >/proc/sysrq-trigger")
	labneed.Eventually(t, "the guest has crashed", func() bool { return strings.Contains(state(t, d), "c") })
}

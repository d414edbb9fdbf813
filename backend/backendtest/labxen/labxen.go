// Package labxen makes Xen's guests for tests of the lab: real ones, of the lab's own kernel, which write records
// to their disks and tell on their console what they see (testdata/lab/domu says what). Tests that need Xen have
// names that begin with TestLabXen; make lab runs them in a machine that Xen has booted.
//
// Disks are made by the recipes here on volumes or files that the test has made (labneed), then given to NewDomU.
// What is made here is taken back by the test's cleanup.
package labxen

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/testneed"
)

const (
	kernel = "/lab/vmlinux"
	initrd = "/lab/domu.initrd"
	// Where xenconsoled writes what guests say.
	consoles = "/var/log/xen/console"

	memoryMiB = 128 // less is too little for the kernel and its initrd

	bootLimit = 4 * time.Minute // in emulation, on a busy host
	sayLimit  = time.Minute
)

// Need asks for a machine that Xen has booted, and that may be worked on.
func Need(t testing.TB) {
	t.Helper()
	labneed.LVM(t)
	testneed.Tools(t, "xl", "xenstore-read", "qemu-img", "sgdisk", "mke2fs")
	for _, path := range []string{kernel, initrd, Program(t)} {
		if _, err := os.Stat(path); err != nil {
			testneed.Missing(t, "what guests boot: "+err.Error())
		}
	}
	text, err := os.ReadFile("/proc/xen/capabilities")
	if err != nil || !strings.Contains(string(text), "control_d") {
		testneed.Missing(t, fmt.Sprintf("Xen, and to be its dom0: %q, %v", text, err))
	}
}

// Program is what guests run, as the lab was given it.
func Program(t testing.TB) string {
	t.Helper()
	path := os.Getenv("DOMFS_LAB_DOMU")
	if path == "" {
		testneed.Missing(t, "DOMFS_LAB_DOMU names no program for guests")
	}
	return path
}

// Disk is one of a guest's.
type Disk struct {
	VDev    string // xvda, …; as the disks come where it is empty
	Target  string // a block device or a file
	Format  string // of a file; empty is raw
	Backend string // phy or qdisk; empty leaves it to the toolstack
	Mode    string // rw where it is empty, or ro
}

// Specification is the disk as xl's configuration has it.
func (d Disk) Specification() string {
	words := []string{"format=" + or(d.Format, "raw"), "vdev=" + d.VDev, "access=" + or(d.Mode, "rw")}
	if d.Backend != "" {
		words = append(words, "backendtype="+d.Backend)
	}
	return strings.Join(append(words, "target="+d.Target), ",")
}

func or(text, instead string) string {
	if text == "" {
		return instead
	}
	return text
}

// Options are what a guest is to be.
type Options struct {
	Name   string // one of its own where it is empty
	Layout Layout // of its first disk
	Disks  []Disk
	Data   string        // the guest's device of the second filesystem for records; empty for none
	Idle   bool          // it writes no records until it is told go
	Pace   time.Duration // between records; 0 is its own
	Weight int           // of its processor, where that of dom0's is 256 (xl.cfg(5), cpu_weight); 0 is 256
	Config []string      // more lines of its configuration, such as on_crash = "preserve"
}

// LightWeight leaves the one processor to dom0 where both want it: with Xen's own weight a guest that writes takes half of what dom0's tools
// would have, and they take twice the time.
const LightWeight = 16

var count atomic.Int64

// DomU is a running guest.
type DomU struct {
	Name   string
	UUID   string
	ID     int    // as it was when it was made
	Config string // its configuration file

	t    testing.TB
	tty  string // where it is told
	log  string // what it says
	from int64  // where that begins in the log
	told *atomic.Int64
}

// Write makes a guest's configuration and does not start it.
func Write(t testing.TB, o Options) *DomU {
	t.Helper()
	number := count.Add(1)
	d := &DomU{t: t, told: new(atomic.Int64), Name: o.Name, UUID: fmt.Sprintf("1ab00000-0000-4000-8000-%06x%06x", os.Getpid()&0xffffff, number)}
	if d.Name == "" {
		d.Name = fmt.Sprintf("lab%d", number)
	}
	root, lvm := o.Layout.root()
	words := []string{"console=hvc0", "quiet", "loglevel=1", "panic=-1", "oops=panic", "mitigations=off", "norandmaps", "init_on_alloc=0", "cryptomgr.notests", "root=" + root}
	for key, value := range map[string]string{"lab.disk": lvm, "lab.data": o.Data} {
		if value != "" {
			words = append(words, key+"="+value)
		}
	}
	if o.Pace > 0 {
		words = append(words, "lab.pace="+o.Pace.String())
	}
	if o.Idle {
		words = append(words, "lab.idle")
	}
	lines := []string{
		fmt.Sprintf("name = %q", d.Name), fmt.Sprintf("uuid = %q", d.UUID), `type = "pv"`,
		fmt.Sprintf("kernel = %q", kernel), fmt.Sprintf("ramdisk = %q", initrd), fmt.Sprintf("extra = %q", strings.Join(words, " ")),
		fmt.Sprintf("memory = %d", memoryMiB), "vcpus = 1", fmt.Sprintf("cpu_weight = %d", cmp.Or(o.Weight, 256)), "disk = [",
	}
	for i, disk := range o.Disks {
		if disk.VDev == "" {
			disk.VDev = o.Layout.vdev(i)
		}
		lines = append(lines, fmt.Sprintf("    %q,", disk.Specification()))
	}
	lines = append(append(lines, "]"), o.Config...)
	d.Config = filepath.Join(t.TempDir(), d.Name+".cfg")
	if err := os.WriteFile(d.Config, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.log = filepath.Join(consoles, "guest-"+d.Name+".log")
	return d
}

// Within is the same guest for a subtest.
func (d *DomU) Within(t testing.TB) *DomU {
	sub := *d
	sub.t = t
	return &sub
}

// NewDomU starts a guest and waits until it is up. It is destroyed when the test ends.
func NewDomU(t testing.TB, o Options) *DomU {
	t.Helper()
	d := Write(t, o)
	d.Start(t)
	return d
}

// Start starts it, and waits until it is up.
func (d *DomU) Start(t testing.TB) {
	t.Helper()
	if info, err := os.Stat(d.log); err == nil { // of a guest of that name before
		d.from = info.Size()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s said:\n%s", d.Name, tail(d.Console(), 30))
		}
		d.Destroy(t)
	})
	labneed.Run(t, "xl", "create", d.Config)
	id, err := strconv.Atoi(labneed.Run(t, "xl", "domid", d.Name))
	if err != nil {
		t.Fatal(err)
	}
	d.ID = id
	d.tty = labneed.Run(t, "xenstore-read", fmt.Sprintf("/local/domain/%d/console/tty", id))
	d.awaitWithin(bootLimit, "up")
}

// Destroy ends it, whatever it is called now, and all that was started again from it.
func (d *DomU) Destroy(t testing.TB) {
	t.Helper()
	for range 3 {
		ids := d.running(t)
		if len(ids) == 0 {
			return
		}
		for _, id := range ids {
			if out, err := labneed.Try("xl", "destroy", id); err != nil && len(d.running(t)) > 0 {
				t.Errorf("%v %s", err, out)
			}
		}
		labneed.Settle(t)
	}
	t.Errorf("%s cannot be destroyed", d.Name)
}

// running are the numbers of the domains with its UUID.
func (d *DomU) running(t testing.TB) []string {
	t.Helper()
	var ids []string
	// Name ID Mem VCPUs State Time(s) UUID …
	for line := range strings.Lines(labneed.Run(t, "xl", "list", "-v")) {
		fields := strings.Fields(line)
		if strings.Contains(line, d.UUID) && len(fields) > 1 {
			ids = append(ids, fields[1])
		}
	}
	return ids
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

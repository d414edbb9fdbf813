package xen

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/hypervisor/xen/xenstore/xenstoretest"
	"domfs/backend/run/runtest"

	"golang.org/x/sys/unix"
)

// The host of testdata: Xen 4.17 and Linux 6.1 with one guest, recorded at one time by `xenstore-ls -fp`, `xl list` and
// `xl list -l`. Its disks are two volumes (one of them read-only), a file by a loop device, a raw and a qcow2 file that QEMU serves, and an
// empty CD-ROM drive.
const (
	realGuest  = 2
	realFolder = "/scratch/w" // of the files
)

// realDevices are the block devices that the host had.
var realDevices = map[string]uint64{
	"/dev/vg0/d2": unix.Mkdev(0xfd, 0), "/dev/dm-0": unix.Mkdev(0xfd, 0),
	"/dev/vg0/d2b": unix.Mkdev(0xfd, 1), "/dev/dm-1": unix.Mkdev(0xfd, 1),
	"/dev/loop1": unix.Mkdev(7, 1),
}

// realHost is that host, with its files in dir.
func realHost(t *testing.T) (d *Driver, dir string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := xenstoretest.New(t)
	s.Load(strings.ReplaceAll(testdata(t, "xenstore-ls.txt"), realFolder, dir))
	d = New(Options{Socket: s.Path(), Runner: runtest.Runner(t, "testdata/xl-list.json")})
	t.Cleanup(d.store.Close)
	d.stat = func(path string) (uint64, bool) {
		n, ok := realDevices[path]
		return n, ok
	}
	d.sysfs = filepath.Join(dir, "sys")
	image, loop := filepath.Join(dir, "loop.img"), filepath.Join(d.sysfs, "dev/block/7:1/loop")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.MkdirAll(loop, 0o755),
		os.WriteFile(filepath.Join(loop, "backing_file"), []byte(image+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return d, dir
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// longList is what `xl list -l` says of a domain, as far as it is of interest.
type longList struct {
	Domid  int
	Config struct {
		Info struct {
			Name, UUID string
		} `json:"c_info"`
		Disks []struct {
			Path      string `json:"pdev_path"`
			VDev      string `json:"vdev"`
			Format    string `json:"format"`
			Backend   string `json:"backend"`
			ReadWrite int    `json:"readwrite"`
			CDROM     int    `json:"is_cdrom"`
		}
	}
}

// What xl itself says of the guest is what is read of it.
func TestDomains_OfARealHostAreAsXLHasThem(t *testing.T) {
	d, dir := realHost(t)
	dom := one(t, d)
	var list []longList
	if err := json.Unmarshal([]byte(strings.ReplaceAll(testdata(t, "xl-list-l.json"), realFolder, dir)), &list); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(l longList) bool { return l.Domid == realGuest })
	if i < 0 || len(list) != 2 {
		t.Fatalf("xl lists %+v", list)
	}
	xl := list[i].Config
	if dom.ID != realGuest || dom.Name != xl.Info.Name || dom.UUID != xl.Info.UUID || dom.State != backend.StateRunning || dom.Err != nil || len(dom.Warnings) != 0 {
		t.Errorf("domain %d %s %s %s, %v, %q; xl has %+v", dom.ID, dom.Name, dom.UUID, dom.State, dom.Err, dom.Warnings, xl.Info)
	}
	var want []backend.Disk
	for _, k := range xl.Disks {
		disk := backend.Disk{VDev: k.VDev, Source: k.Path, Format: k.Format, Mode: backend.ReadOnly, CDROM: k.CDROM == 1, Backend: "qdisk"}
		if k.ReadWrite == 1 {
			disk.Mode = backend.ReadWrite
		}
		if k.Format == "empty" {
			disk.Format = ""
		}
		// xl names a backend only where the configuration did. Else it is blkback for whatever is raw, through a loop device where that is a file.
		if k.Format == "raw" && k.Backend == "" {
			disk.Backend = "phy"
		}
		want = append(want, disk)
	}
	slices.SortFunc(want, func(a, b backend.Disk) int { return strings.Compare(a.VDev, b.VDev) })
	if got, want := describe(dom.Disks), describe(want); got != want || len(dom.Disks) != 6 {
		t.Errorf("disks\n%s\nxl has\n%s", got, want)
	}
}

func TestCanNotify_OfARealHostsDisks(t *testing.T) {
	d, _ := realHost(t)
	dom := one(t, d)
	for vdev, want := range map[string]string{
		"xvda": "", "xvdf": "", "xvdc": "loop device", "xvdd": "QEMU (qdisk)", "xvde": "QEMU (qdisk)", "xvdg": "QEMU (qdisk)",
	} {
		err := d.CanNotify(t.Context(), dom, vdev)
		if want == "" && err != nil || want != "" && (!errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", vdev, err, want)
		}
	}
	// The guest has the size that blkback told it of.
	for vdev, sectors := range map[string]int64{"xvda": 524288, "xvdf": 262144} {
		k, err := d.device(t.Context(), dom.ID, vdev)
		if err != nil {
			t.Fatal(err)
		}
		for size, want := range map[int64]bool{sectors * sectorBytes: true, sectors*sectorBytes + 1: false} {
			if told, err := d.told(t.Context(), k, size); err != nil || told != want {
				t.Errorf("%s: told of %d bytes: %t, %v", vdev, size, told, err)
			}
		}
	}
}

// Of a real guest's part of xenstore nothing is read either.
func TestDomains_OfARealHostAreNotReadFromTheGuestsPart(t *testing.T) {
	s := xenstoretest.New(t)
	s.Load(testdata(t, "xenstore-ls.txt"))
	d := New(Options{Socket: s.Path(), Runner: runtest.Runner(t, "testdata/xl-list.json")})
	t.Cleanup(d.store.Close)
	one(t, d)
	home := fmt.Sprint("/local/domain/", realGuest, "/")
	for _, path := range s.Asked() {
		if rest, ok := strings.CutPrefix(path, home); ok && rest != "name" && rest != "vm" {
			t.Errorf("%s was asked for", path)
		}
	}
	// That it could be written by the guest is what the recording says, too.
	for _, path := range []string{home + "device/vbd/51712", home + "data"} {
		if p := s.Permissions(path); len(p) == 0 || p[0] != fmt.Sprint("n", realGuest) {
			t.Errorf("%s has the permissions %q", path, p)
		}
	}
}

package lvm2

import (
	"errors"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
)

const mib = 1 << 20

// labCase is a volume group as real commands make it; VG is its name in them.
type labCase struct {
	disks int
	// steps are lvm commands, and of our own: write LV [MiB], scatter LV, sync LV, hold LV.
	steps []string
	// safe are volumes that are whole without any one of the disks.
	safe []string
	// before: the disks are read as they were before the group's last activation.
	before bool
}

// TestLab_… make volume groups by the real LVM, write through the kernel's own mapping of their volumes, and
// compare what is read of the disks alone with what LVM shows after activating the group anew.

func TestLab_LinearStripedAndRaid0(t *testing.T) {
	labCase{disks: 3, steps: []string{
		"lvcreate -n lin -L 5M VG", "lvcreate -n str -i3 -I16k -L 6M VG", "lvextend -L +4M VG/lin LAST", "lvextend -l +3 VG/str",
		"lvcreate --type raid0 -n r0 -i2 -I64k -L 4M VG",
		"write lin", "write str", "write r0",
	}}.run(t)
}

func TestLab_Raid1AndRaid10(t *testing.T) {
	labCase{disks: 4, steps: []string{
		"lvcreate --type raid1 -n r1 -m2 -L 4M VG", "lvcreate --type raid10 -n r10 -i2 -m1 -I64k -L 4M VG",
		"write r1", "write r10", "sync r1", "sync r10",
	}, safe: []string{"r1", "r10"}}.run(t)
}

func TestLab_Raid5AndRaid6(t *testing.T) {
	labCase{disks: 5, steps: []string{
		"lvcreate --type raid5 -n r5 -i3 -I16k -L 3M VG", "lvcreate --type raid6 -n r6 -i3 -I16k -L 3M VG",
		"write r5", "write r6", "sync r5", "sync r6",
	}, safe: []string{"r5"}}.run(t)
}

func TestLab_MirrorMovedAndCached(t *testing.T) {
	labCase{disks: 3, steps: []string{
		"lvcreate -n moved -L 3M VG", "write moved", "pvmove --atomic -n moved FIRST", "scatter moved",
		"lvcreate --type mirror -n mir -m1 --mirrorlog disk -L 4M VG", "lvcreate --type mirror -n core -m1 --mirrorlog core -L 4M VG",
		"lvcreate -n slow -L 4M VG", "write slow", "lvcreate --type cache-pool -n fast -L 9M VG", "lvconvert --type cache --cachepool VG/fast --cachemode writethrough VG/slow", "scatter slow",
		"lvcreate --type zero -n zero -L 4M VG",
		"write mir", "write core", "sync mir", "sync core",
	}, safe: []string{"mir"}}.run(t)
}

func TestLab_Thin(t *testing.T) {
	labCase{disks: 3, steps: []string{
		"lvcreate -n base -L 4M VG", "write base", "lvchange --setautoactivation n VG/base", "lvchange -an VG/base", "lvchange -pr VG/base",
		"lvcreate --type raid1 -m1 -n pool -L 24M VG", "lvcreate --type raid1 -m1 -n meta -L 4M VG", "lvconvert --type thin-pool -c 64k --poolmetadata VG/meta VG/pool",
		"lvcreate -T -n a -V 32M VG/pool", "write a 8", "lvcreate -s -kn -n s VG/a", "scatter a", "lvcreate -s -kn -n ss VG/s", "scatter s", "lvcreate -T -n empty -V 16M VG/pool",
		"lvchange -an VG/base", "lvcreate -s -kn -n over --thinpool VG/pool VG/base", "scatter over",
		"sync pool_tdata", "sync pool_tmeta",
	}, safe: []string{"a", "s", "ss", "empty"}}.run(t)
}

func TestLab_Snapshots(t *testing.T) {
	labCase{disks: 2, steps: []string{
		"lvcreate -n a -L 8M VG", "write a", "lvcreate -s -n s -L 9M VG/a", "scatter a", "lvcreate -s -n s2 -L 6M -c 32k VG/a", "scatter a", "scatter s",
		"lvcreate --type thin -L 12M --thinpool pool -n t -V 8M VG", "write t 6", "lvcreate -s -n ts -L 9M VG/t", "scatter t",
	}}.run(t)
}

func TestLab_MergesThatWaitForTheNextActivation(t *testing.T) {
	labCase{disks: 2, before: true, steps: []string{
		"lvcreate -n a -L 8M VG", "write a", "lvcreate -s -n s -L 9M VG/a", "scatter a",
		"lvcreate --type thin -L 16M --thinpool pool -n t -V 8M VG", "write t 6", "lvcreate -s -kn -n ts VG/t", "scatter t",
		"hold a", "hold t", "lvconvert --merge VG/s", "lvconvert --merge VG/ts",
	}}.run(t)
}

const labVG = "lablvm2"

func (c labCase) run(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	files, want := c.make(t)
	devices := make([]backend.Device, len(files))
	for i, f := range files {
		devices[i] = openFile(t, f)
	}
	compareVolumes(t, assembleOne(t, devices...), want, nil)
	for i := range devices {
		if c.safe != nil {
			less := slices.Clone(devices)
			less[i] = nil
			t.Logf("without disk %d", i)
			compareVolumes(t, assembleOne(t, less...), want, c.safe)
		}
	}
}

// make runs the steps, and returns the disks' files and the sums of what LVM shows. The group is not active then.
func (c labCase) make(t *testing.T) (files []string, want map[string]uint64) {
	t.Helper()
	var loops []string
	for range c.disks {
		f := labneed.File(t, 64*mib)
		files = append(files, f)
		loops = append(loops, labneed.Attach(t, f))
	}
	labneed.VG(t, labVG, append([]string{"--physicalextentsize", "512k"}, loops...)...)
	var held []*os.File
	for _, step := range c.steps {
		t.Log(step)
		argv := strings.Fields(strings.NewReplacer("VG", labVG, "FIRST", loops[0], "LAST", loops[len(loops)-1]).Replace(step))
		switch argv[0] {
		case "write":
			size := int64(0)
			if len(argv) > 2 {
				size = number(t, argv[2]) * mib
			}
			fill(t, argv[1], size)
		case "scatter":
			scatter(t, argv[1])
		case "sync":
			labneed.Eventually(t, argv[1]+" is in sync", func() bool {
				return strings.HasPrefix(labneed.Run(t, "lvs", "--noheadings", "-a", "-o", "sync_percent", labVG+"/"+argv[1]), "100")
			})
		case "hold":
			f, _ := openVolume(t, argv[1], os.O_RDONLY)
			held = append(held, f)
		case "lvcreate", "lvconvert":
			labneed.Run(t, append([]string{argv[0], "--quiet", "--yes"}, argv[1:]...)...)
		default:
			labneed.Run(t, argv...)
		}
	}
	for _, f := range held {
		f.Close()
	}
	labneed.Deactivate(t, labVG)
	if c.before {
		for i, f := range files {
			files[i] = f + ".before"
			labneed.Run(t, "cp", "--sparse=always", f, files[i])
		}
	}
	labneed.Run(t, "vgchange", "-ay", "-K", labVG)
	labneed.Settle(t)
	want = make(map[string]uint64)
	for line := range strings.Lines(labneed.Run(t, "lvs", "--noheadings", "--separator", ":", "-o", "lv_name,lv_layout", labVG)) {
		name, layout, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !strings.Contains(layout, "pool") {
			want[name] = sumOf(t, name)
		}
	}
	labneed.Deactivate(t, labVG)
	return files, want
}

func openVolume(t *testing.T, name string, flags int) (*os.File, int64) {
	t.Helper()
	f, err := os.OpenFile("/dev/"+labVG+"/"+name, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return f, size
}

var noise = rand.NewChaCha8([32]byte{1})

// fill writes the first size bytes of a volume, or all.
func fill(t *testing.T, name string, size int64) {
	t.Helper()
	f, all := openVolume(t, name, os.O_WRONLY)
	defer f.Close()
	if size == 0 {
		size = all
	}
	b := make([]byte, mib)
	for off := int64(0); off < size; off += mib {
		noise.Read(b)
		if _, err := f.WriteAt(b[:min(mib, size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// scatter writes here and there, and leaves most as it is.
func scatter(t *testing.T, name string) {
	t.Helper()
	f, size := openVolume(t, name, os.O_WRONLY)
	defer f.Close()
	r := rand.New(noise)
	b := make([]byte, 9000)
	for range 60 {
		noise.Read(b)
		if _, err := f.WriteAt(b, r.Int64N(size-int64(len(b)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// sumOf is the sum of a volume's bytes.
func sumOf(t *testing.T, name string) uint64 {
	t.Helper()
	f, size := openVolume(t, name, os.O_RDONLY)
	defer f.Close()
	return sumOfBytes(t, f, size)
}

// crcTable makes the sums by which bytes are compared: the lab's processor is slow at better ones.
var crcTable = crc64.MakeTable(crc64.ECMA)

func sumOfBytes(t *testing.T, r io.ReaderAt, size int64) uint64 {
	t.Helper()
	h := crc64.New(crcTable)
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
		t.Error(err)
	}
	return h.Sum64()
}

// compareVolumes compares all volumes with what they should be, or those of safe; others may have an Err then.
func compareVolumes(t *testing.T, g backend.Group, want map[string]uint64, safe []string) {
	t.Helper()
	t.Logf("volumes %s, warnings %q", names(g), g.Warnings)
	if g.Name != labVG || len(g.Volumes) != len(want) {
		t.Errorf("group %s has the volumes %s; LVM lists %d", g.Name, names(g), len(want))
	}
	for _, v := range g.Volumes {
		sum, ok := want[v.Name]
		switch {
		case !ok:
			t.Errorf("%s: LVM lists no such volume", v.Name)
		case v.Err != nil && safe != nil && !slices.Contains(safe, v.Name):
			if !errors.Is(v.Err, backend.ErrNoDevice) {
				t.Errorf("%s: %v", v.Name, v.Err)
			}
		case v.Err != nil:
			t.Errorf("%s: %v", v.Name, v.Err)
		case sumOfBytes(t, v.Device, v.Device.Size()) != sum:
			t.Errorf("%s: not what LVM shows", v.Name)
		}
	}
}

package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"domfs/backend/backendtest/loop"

	"golang.org/x/sys/unix"
)

// fakeSysfs makes files of a device's folder in a sysfs.
func fakeSysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func rdevOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Rdev)
}

func TestSize_IsThatOfTheDevice(t *testing.T) {
	device, _ := loop.Device(t, 3<<20)
	if n, err := Size(Sysfs, rdevOf(t, device)); n != 3<<20 || err != nil {
		t.Errorf("Size = %d, %v", n, err)
	}
	for text, want := range map[string]error{"x\n": unix.EIO, "-1\n": unix.EIO, "18014398509481984\n": unix.EIO, "9223372036854775808\n": unix.EIO} {
		root := fakeSysfs(t, map[string]string{"dev/block/253:1/size": text})
		if n, err := Size(root, unix.Mkdev(253, 1)); !errors.Is(err, want) {
			t.Errorf("Size of %q = %d, %v", text, n, err)
		}
	}
	if n, err := Size(t.TempDir(), unix.Mkdev(253, 1)); !errors.Is(err, unix.ENXIO) {
		t.Errorf("Size of no device = %d, %v", n, err)
	}
}

func TestGeneration_ChangesWithWritesOnly(t *testing.T) {
	rdev := unix.Mkdev(253, 1)
	const stat = "  10 0 20 0 30 0 40 0 0 0 0 50 0 60 0 0 0\n"
	generation := func(stat, diskseq string, size int64) uint64 {
		root := fakeSysfs(t, map[string]string{"dev/block/253:1/stat": stat, "dev/block/253:1/diskseq": diskseq, "dev/block/253:1/queue/iostats": "1\n"})
		return Generation(root, rdev, size)
	}
	base := generation(stat, "7\n", 512)
	if same := generation("  11 1 21 9 30 0 40 9 9 9 9 50 0 60 0 0 0\n", "7\n", 512); same != base {
		t.Error("reads change the generation")
	}
	for what, other := range map[string]uint64{
		"writes":          generation("  10 0 20 0 31 0 40 0 0 0 0 50 0 60 0 0 0\n", "7\n", 512),
		"sectors written": generation("  10 0 20 0 30 0 41 0 0 0 0 50 0 60 0 0 0\n", "7\n", 512),
		"discards":        generation("  10 0 20 0 30 0 40 0 0 0 0 51 0 60 0 0 0\n", "7\n", 512),
		"another device":  generation(stat, "8\n", 512),
		"another size":    generation(stat, "7\n", 1024),
	} {
		if other == base {
			t.Errorf("%s: the generation stays", what)
		}
	}
}

func TestGeneration_ChangesAllTheTimeWhereNothingIsCounted(t *testing.T) {
	const stat = "  10 0 20 0 30 0 40 0 0 0 0 50 0 60 0 0 0\n"
	changes := func(files map[string]string) bool {
		files["dev/block/253:1/stat"] = stat
		root := fakeSysfs(t, files)
		first := Generation(root, unix.Mkdev(253, 1), 512)
		for range 12 {
			time.Sleep(100 * time.Millisecond)
			if Generation(root, unix.Mkdev(253, 1), 512) != first {
				return true
			}
		}
		return false
	}
	if !changes(map[string]string{"dev/block/253:1/queue/iostats": "0\n"}) {
		t.Error("it stays where counting is switched off")
	}
	always := dmCountsAlways
	defer func() { dmCountsAlways = always }()
	for _, old := range []bool{true, false} {
		dmCountsAlways = func() bool { return old }
		if got := changes(map[string]string{"dev/block/253:1/queue/iostats": "0\n", "dev/block/253:1/dm/name": "x\n"}); got == old {
			t.Errorf("a device of device-mapper's, whose kernel always counts (%t): it changes by itself: %t", old, got)
		}
	}
	for release, want := range map[string]bool{"6.1.0-56-amd64": true, "5.14.0-427.el9": true, "6.5.13": true, "6.6.0": false, "6.18.5": false, "7.0": false, "10.1": false, "": false, "x": false} {
		if isOlder(release, 6, 6) != want {
			t.Errorf("%q is older than 6.6: %t", release, !want)
		}
	}
}

func TestHolder_LeavesOutWhatIsIgnored(t *testing.T) {
	root := fakeSysfs(t, map[string]string{
		"dev/block/253:1/dev":               "253:1\n",
		"dev/block/253:1/holders/dm-2/dev":  "253:2\n",
		"dev/block/253:1/holders/dm-3/dev":  "253:3\n",
		"dev/block/253:1/part1/partition":   "1\n",
		"dev/block/253:1/part1/dev":         "253:9\n",
		"dev/block/253:1/part1/holders/md0": "",
	})
	rdev := unix.Mkdev(253, 1)
	ignored := map[string]bool{}
	holder := func(u Users) string {
		return Holder(root, u, rdev, func(name string) bool { return ignored[name] })
	}
	seen := map[string]bool{}
	for range 3 {
		who := holder(nil)
		seen[who] = true
		ignored[filepath.Base(who)] = true
	}
	if len(seen) != 3 || !seen["device /dev/dm-2"] || !seen["device /dev/dm-3"] || !seen["device /dev/md0"] {
		t.Errorf("holders are %v", seen)
	}
	if who := holder(nil); who != "" {
		t.Errorf("Holder = %q of what only ignored devices hold", who)
	}
	if who := holder(Users{unix.Mkdev(253, 9): "mount on /a"}); who != "mount on /a" {
		t.Errorf("Holder = %q of a device whose partition is mounted", who)
	}
	if who := Holder(root, Users{unix.Mkdev(253, 7): "swap"}, unix.Mkdev(253, 7), nil); who != "" {
		t.Errorf("Holder = %q of a device that sysfs does not have", who)
	}
}

func TestReadUsers_UnderstandsTheTables(t *testing.T) {
	device, _ := loop.Device(t, 1<<20)
	proc := fakeSysfs(t, map[string]string{
		"swaps": "Filename\t\t\t\tType\t\tSize\n" + device + "                               partition\t1\n",
		"self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/root rw\n" +
			"23 22 253:5 / /a\\040mount rw,relatime shared:1 - ext4 /dev/mapper/x rw\n" +
			"24 22 253:5 / /later rw - ext4 /dev/mapper/x rw\n" +
			"25 22 0:33 / /proc rw - proc proc rw\n" +
			"damaged\n",
	})
	u := ReadUsers(proc)
	want := map[uint64]string{rdevOf(t, device): "swap", unix.Mkdev(253, 5): "mount on /a mount", unix.Mkdev(8, 1): "mount on /"}
	for rdev, what := range want {
		if u[rdev] != what {
			t.Errorf("%x is %q, want %q", rdev, u[rdev], what)
		}
	}
	if len(u) != len(want) {
		t.Errorf("users are %v", u)
	}
}

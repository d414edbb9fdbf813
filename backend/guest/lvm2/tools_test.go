package lvm2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
)

// lvmHost is LVM with loop devices of its own, which it is kept to, and without device-mapper: it writes and
// reads metadata, and activates nothing.
type lvmHost struct {
	t     testing.TB
	dir   string
	files []string
	loops []string
}

// newHost has disks of the sizes and with the sectors given. They are detached when the test ends.
func newHost(t testing.TB, sectorSize int, sizes ...int64) *lvmHost {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "lvm", "losetup")
	h := &lvmHost{t: t, dir: t.TempDir()}
	for i, size := range sizes {
		path := filepath.Join(h.dir, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		h.attach(path, "--sector-size", strconv.Itoa(sectorSize))
	}
	return h
}

// attach shows a file, or what options say of it, as a loop device.
func (h *lvmHost) attach(path string, options ...string) {
	h.t.Helper()
	out, err := exec.Command("losetup", append(append([]string{"--find", "--show"}, options...), path)...).Output()
	if err != nil {
		h.t.Fatalf("losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	h.files, h.loops = append(h.files, path), append(h.loops, loop)
	h.t.Cleanup(h.detach)
}

// detach gives all loop devices back.
func (h *lvmHost) detach() {
	for _, loop := range h.loops {
		detachLoop(h.t, loop)
	}
	h.loops = nil
}

func detachLoop(t testing.TB, loop string) {
	var out []byte
	var err error
	for range 50 {
		if out, err = exec.Command("losetup", "--detach", loop).CombinedOutput(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("losetup --detach %s: %v: %s", loop, err, out)
}

// lvm runs a command, and returns what it prints.
func (h *lvmHost) lvm(command string, args ...string) string {
	h.t.Helper()
	out, err := h.try(command, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *lvmHost) try(command string, args ...string) (string, error) {
	var filter []string
	for _, l := range h.loops {
		filter = append(filter, strconv.Quote("a|^"+l+"$|"))
	}
	list := strings.Join(append(filter, `"r|.*|"`), ",")
	config := fmt.Sprintf(`devices{use_devicesfile=0 filter=[%[1]s] global_filter=[%[1]s] hints="none" sysfs_scan=1} backup{backup=0 archive=0} `+
		`global{locking_dir="%[2]s/lock" etc="%[2]s" use_lvmpolld=0 event_activation=0} activation{udev_sync=0 udev_rules=0 monitoring=0}`, list, h.dir)
	argv := append([]string{command}, args...)
	argv = append(argv, "--driverloaded", "n", "--config", config)
	cmd := exec.Command("lvm", argv...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LVM_SYSTEM_DIR="+h.dir, "LVM_SUPPRESS_FD_WARNINGS=1")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lvm %s %s: %w\n%s%s", command, strings.Join(args, " "), err, out.Bytes(), stderr.Bytes())
	}
	return out.String(), nil
}

// create makes a logical volume.
func (h *lvmHost) create(args ...string) {
	h.t.Helper()
	h.lvm("lvcreate", append([]string{"-an", "-Zn", "-Wn", "--yes"}, args...)...)
}

// group makes all loop devices physical volumes of one group. Options are pvcreate's; extent is the group's.
func (h *lvmHost) group(name, extent string, options ...string) {
	h.t.Helper()
	h.lvm("pvcreate", append(slices.Clone(options), h.loops...)...)
	h.lvm("vgcreate", append([]string{"-s", extent, name}, h.loops...)...)
}

// report is a report's rows.
func (h *lvmHost) report(command, fields string, args ...string) []map[string]string {
	h.t.Helper()
	out := h.lvm(command, append([]string{"--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields}, args...)...)
	var doc struct {
		Report []map[string][]map[string]string
	}
	if err := json.Unmarshal([]byte(out[strings.IndexByte(out, '{'):]), &doc); err != nil {
		h.t.Fatalf("%v in %s", err, out)
	}
	for _, rows := range doc.Report[0] {
		return rows
	}
	return nil
}

// scatter writes random bytes to where LVM's report says that a group's volumes lie, and returns the volumes' contents.
func (h *lvmHost) scatter(vg string) map[string][]byte {
	h.t.Helper()
	start := make(map[string]int64)
	var extent int64
	for _, row := range h.report("pvs", "pv_name,pe_start,vg_extent_size", "-S", "vg_name="+vg) {
		start[row["pv_name"]] = number(h.t, row["pe_start"])
		extent = number(h.t, row["vg_extent_size"])
	}
	files := make(map[string]*os.File)
	for _, loop := range h.loops {
		f, err := os.OpenFile(loop, os.O_WRONLY, 0)
		if err != nil {
			h.t.Fatal(err)
		}
		files[loop] = f
		defer func() {
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				h.t.Error(err)
			}
		}()
	}
	want := make(map[string][]byte)
	r := rand.NewChaCha8([32]byte{3})
	for _, row := range h.report("lvs", "lv_name,seg_start_pe,seg_size_pe,stripes,stripe_size,seg_pe_ranges", "--segments", "-O", "lv_name,seg_start_pe", vg) {
		data := make([]byte, number(h.t, row["seg_size_pe"])*extent)
		r.Read(data)
		if int64(len(want[row["lv_name"]])) != number(h.t, row["seg_start_pe"])*extent {
			h.t.Fatalf("segments out of order: %v", row)
		}
		want[row["lv_name"]] = append(want[row["lv_name"]], data...)
		chunk := number(h.t, row["stripe_size"])
		stripes := strings.Fields(row["seg_pe_ranges"])
		if len(stripes) == 1 {
			chunk = int64(len(data))
		}
		for i := int64(0); i*chunk < int64(len(data)); i++ {
			pv, extents, _ := strings.Cut(stripes[i%int64(len(stripes))], ":")
			first, _, _ := strings.Cut(extents, "-")
			at := start[pv] + number(h.t, first)*extent + i/int64(len(stripes))*chunk
			if _, err := files[pv].WriteAt(data[i*chunk:(i+1)*chunk], at); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	return want
}

func number(t testing.TB, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// devices are the disks as a reader gets them.
func (h *lvmHost) devices() []backend.Device {
	h.t.Helper()
	var list []backend.Device
	for _, f := range h.files {
		list = append(list, openFile(h.t, f))
	}
	return list
}

// copyOf is a disk's bytes as they are now.
func (h *lvmHost) copyOf(i int) memory {
	h.t.Helper()
	b, err := os.ReadFile(h.files[i])
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// check compares a group with the contents that its volumes must have.
func (h *lvmHost) check(g backend.Group, want map[string][]byte) {
	h.t.Helper()
	if len(g.Volumes) != len(want) || len(g.Warnings) > 0 {
		h.t.Errorf("volumes %s, warnings %q", names(g), g.Warnings)
	}
	for name, data := range want {
		v := volumeNamed(h.t, g, name)
		if !bytes.Equal(contents(h.t, v), data) {
			h.t.Errorf("%s: not the bytes that lie where LVM says", name)
		}
		h.checkSegments(v, data)
	}
}

// checkSegments reads a volume by what its Segments say.
func (h *lvmHost) checkSegments(v backend.GroupVolume, data []byte) {
	h.t.Helper()
	files := make(map[string]backend.Device)
	for i, d := range h.devices() {
		files[fmt.Sprintf("xvd%c", 'a'+i)] = d
	}
	var at int64
	for _, s := range v.Segments {
		if s.Start != at {
			h.t.Fatalf("%s: segment at %d, not %d", v.Name, s.Start, at)
		}
		chunk := s.StripeBytes
		if len(s.Targets) == 1 {
			chunk = s.Length
		}
		b := make([]byte, chunk)
		for i := int64(0); i*chunk < s.Length; i++ {
			to := s.Targets[i%int64(len(s.Targets))]
			if _, err := files[to.Member].ReadAt(b, to.Offset+i/int64(len(s.Targets))*chunk); err != nil {
				h.t.Fatal(err)
			}
			if !bytes.Equal(b, data[s.Start+i*chunk:][:chunk]) {
				h.t.Fatalf("%s: other bytes at chunk %d of the segment at %d", v.Name, i, s.Start)
			}
		}
		at += s.Length
	}
	if at != int64(len(data)) {
		h.t.Errorf("%s: segments end at %d", v.Name, at)
	}
}

func TestLVM_LinearAndStripedAreWhereItSays(t *testing.T) {
	for _, c := range []struct {
		name    string
		sector  int
		disks   int
		extent  string
		options []string
		stripe  string
	}{
		{"one disk", 512, 1, "512k", nil, ""},
		{"three disks", 512, 3, "1m", []string{"--metadatacopies", "2"}, "16k"},
		{"odd extents", 512, 2, "384k", []string{"--dataalignment", "1537k"}, "128k"},
		{"sectors of 4096", 4096, 3, "512k", []string{"--bootloaderareasize", "1m"}, "64k"},
		{"small extents", 512, 2, "4k", []string{"--metadatasize", "100k"}, "4k"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, c.sector, slices.Repeat([]int64{12 * mib}, c.disks)...)
			h.group("vg.0+x_y-z", c.extent, c.options...)
			h.create("-n", "first", "-L", "3m", "vg.0+x_y-z")
			h.create("-n", "second", "-L", "1m", "vg.0+x_y-z")
			if c.disks > 1 {
				h.create("-n", "striped", "-i", strconv.Itoa(c.disks), "-I", c.stripe, "-L", "2m", "vg.0+x_y-z")
			}
			h.lvm("lvextend", "-L", "+1m", "vg.0+x_y-z/first")
			if c.disks > 1 {
				h.lvm("lvextend", "-L", "+1m", "vg.0+x_y-z/striped")
				h.create("-n", "long", "-l", "60%FREE", "vg.0+x_y-z")
			}
			want := h.scatter("vg.0+x_y-z")
			g := assembleOne(t, h.devices()...)
			if g.Name != "vg.0+x_y-z" {
				t.Errorf("name %s", g.Name)
			}
			rows := h.report("lvs", "vg_uuid,lv_name,lv_uuid", g.Name)
			for _, row := range rows {
				if g.UUID != row["vg_uuid"] || volumeNamed(t, g, row["lv_name"]).UUID != row["lv_uuid"] {
					t.Errorf("UUIDs %s and %s, LVM has %v", g.UUID, volumeNamed(t, g, row["lv_name"]).UUID, row)
				}
			}
			h.check(g, want)
		})
	}
}

func TestLVM_ChangesUntilTheBufferWrapped(t *testing.T) {
	h := newHost(t, 512, 8*mib, 8*mib)
	h.group("vg0", "64k", "--metadatasize", "16k", "--dataalignment", "64k", "--metadatacopies", "2")
	h.create("-n", "a", "-L", "1m", "vg0")
	h.create("-n", "b", "-i", "2", "-I", "4k", "-L", "1m", "vg0")
	for i := range 8 {
		h.lvm("vgchange", "--addtag", strings.Repeat(string(rune('a'+i)), 1000), "vg0")
	}
	want := h.scatter("vg0")
	wrapped := 0
	for i := 0; i < 25 && wrapped < 3; i++ {
		h.lvm("lvrename", "vg0", "a", strings.Repeat("x", i+1))
		h.lvm("lvrename", "vg0", strings.Repeat("x", i+1), "a")
		for disk := range 2 {
			m := h.copyOf(disk)
			l, err := readLabel(m)
			if err != nil || len(l.metadata) != 2 {
				t.Fatalf("label %+v: %v", l, err)
			}
			for _, at := range l.metadata {
				b := m[at.offset:]
				if le.Uint64(b[40:])+le.Uint64(b[48:]) > le.Uint64(b[32:]) {
					wrapped++
				}
			}
		}
		if g := assembleOne(t, h.devices()...); names(g) != "a b" || len(g.Warnings) > 0 {
			t.Fatalf("volumes %s, warnings %q after %d changes", names(g), g.Warnings, 2*i)
		}
	}
	if wrapped == 0 {
		t.Error("the buffer never wrapped: the test shows nothing")
	}
	h.check(assembleOne(t, h.devices()...), want)
}

func TestLVM_SecondAreaIsReadWhereTheFirstIsDamaged(t *testing.T) {
	h := newHost(t, 512, 8*mib)
	h.group("vg0", "64k", "--metadatacopies", "2")
	h.create("-n", "a", "-L", "1m", "vg0")
	want := h.scatter("vg0")
	m := h.copyOf(0)
	l, err := readLabel(m)
	if err != nil {
		t.Fatal(err)
	}
	clear(m[l.metadata[0].offset:][:l.metadata[0].size])
	g := assembleOne(t, m)
	if !bytes.Equal(contents(t, volumeNamed(t, g, "a")), want["a"]) || !hasWarning(g.Warnings, "metadata area 1 of xvda") {
		t.Errorf("warnings %q", g.Warnings)
	}
}

func TestLVM_OldCopyOfADiskIsNotTaken(t *testing.T) {
	h := newHost(t, 512, 8*mib, 8*mib)
	h.group("vg0", "64k")
	h.create("-n", "a", "-L", "1m", "vg0", h.loops[0])
	h.scatter("vg0")
	old := h.copyOf(0)
	h.create("-n", "b", "-L", "1m", "vg0", h.loops[0])
	want := h.scatter("vg0")
	now := h.devices()
	for _, order := range [][]backend.Device{{old, now[0], now[1]}, {now[0], now[1], old}} {
		g := assembleOne(t, order...)
		if !hasWarning(g.Warnings, "are both physical volume", "newer") {
			t.Errorf("warnings %q", g.Warnings)
		}
		for name, data := range want {
			if !bytes.Equal(contents(t, volumeNamed(t, g, name)), data) {
				t.Errorf("%s: bytes of the old copy", name)
			}
		}
	}
}

func TestLVM_MissingAndMetadataLessPhysicalVolumes(t *testing.T) {
	h := newHost(t, 512, 8*mib, 8*mib, 8*mib)
	h.lvm("pvcreate", "--metadatacopies", "0", h.loops[0])
	h.lvm("pvcreate", h.loops[1], h.loops[2])
	h.lvm("vgcreate", append([]string{"-s", "64k", "vg0"}, h.loops...)...)
	for i, l := range h.loops {
		h.create("-n", fmt.Sprintf("on%d", i), "-L", "1m", "vg0", l)
	}
	h.create("-n", "across", "-i", "3", "-I", "4k", "-l", "12", "vg0")
	want := h.scatter("vg0")
	h.check(assembleOne(t, h.devices()...), want)
	for gone := range h.loops {
		devices := h.devices()
		devices[gone] = nil
		g := assembleOne(t, devices...)
		uuid := h.report("pvs", "pv_uuid", h.loops[gone])[0]["pv_uuid"]
		if !hasWarning(g.Warnings, uuid, "missing") {
			t.Errorf("disk %d: warnings %q", gone, g.Warnings)
		}
		for name, data := range want {
			v := volumeNamed(t, g, name)
			if name == "across" || name == fmt.Sprintf("on%d", gone) {
				if !errors.Is(v.Err, backend.ErrNoDevice) || !strings.Contains(v.Err.Error(), uuid) {
					t.Errorf("disk %d: %s: %v", gone, name, v.Err)
				}
			} else if !bytes.Equal(contents(t, v), data) {
				t.Errorf("disk %d: %s: bytes differ", gone, name)
			}
		}
	}
	// The one without metadata, alone, says so.
	groups, warnings := assembleAll(h.devices()[0])
	if len(groups) != 0 || !hasWarning(warnings, "xvda", "no metadata") {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
}

func TestLVM_TwoGroupsOfOneNameAndPhysicalVolumesOnPartitions(t *testing.T) {
	one := newHost(t, 512, 8*mib)
	two := newHost(t, 512)
	disk := filepath.Join(two.dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 20*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	two.attach(disk, "--offset", strconv.Itoa(mib), "--sizelimit", strconv.Itoa(9*mib))
	two.attach(disk, "--offset", strconv.Itoa(10*mib), "--sizelimit", strconv.Itoa(8*mib))
	wants := make(map[string]map[string][]byte)
	for _, h := range []*lvmHost{one, two} {
		h.group("vg0", "64k")
		h.create("-n", "a", "-l", "70%FREE", "vg0")
		wants[h.report("vgs", "vg_uuid", "vg0")[0]["vg_uuid"]] = h.scatter("vg0")
	}
	parts := make([]backend.Device, 2)
	for i, at := range []int64{1, 10} {
		var err error
		if parts[i], err = backend.Section(openFile(t, disk), at*mib, []int64{9, 8}[i]*mib); err != nil {
			t.Fatal(err)
		}
	}
	groups, warnings := assembleAll(one.devices()[0], parts[0], parts[1])
	if len(groups) != 2 || groups[0].Name != "vg0" || groups[1].Name != "vg0@"+strings.ReplaceAll(groups[1].UUID, "-", "")[:8] || len(warnings) != 1 {
		t.Fatalf("groups %+v, warnings %q", groups, warnings)
	}
	for _, g := range groups {
		if !bytes.Equal(contents(t, volumeNamed(t, g, "a")), wants[g.UUID]["a"]) {
			t.Errorf("%s: bytes differ", g.Name)
		}
	}
}

// TestLVM_TakesAndListsWhatWeDo has LVM write hand-made metadata with every type of segment, and compares
// which volumes it lists, and how large they are.
func TestLVM_TakesAndListsWhatWeDo(t *testing.T) {
	h := newHost(t, 512, 8*mib, 8*mib)
	h.group("vg0", "64k", "--dataalignment", "64k", "--metadatasize", "60k")
	text := everyType()
	file := filepath.Join(h.dir, "text")
	for i, row := range h.report("pvs", "pv_name,pv_uuid", "-O", "pv_name") {
		text = strings.ReplaceAll(text, testUUID(strconv.Itoa(i)), row["pv_uuid"])
	}
	text = strings.ReplaceAll(text, testUUID("v"), h.report("vgs", "vg_uuid", "vg0")[0]["vg_uuid"])
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.lvm("vgcfgrestore", "--force", "-f", file, "vg0")
	var want, got []string
	for _, row := range h.report("lvs", "lv_name,lv_size,origin_size,lv_layout,lv_uuid", "vg0") {
		if row["origin_size"] != "" { // a snapshot's own size is that of its store
			row["lv_size"] = row["origin_size"]
		}
		if !strings.Contains(row["lv_layout"], "pool") {
			want = append(want, row["lv_name"]+" "+row["lv_size"]+" "+row["lv_uuid"])
		}
	}
	g := assembleOne(t, h.devices()...)
	for _, v := range g.Volumes {
		size := int64(-1)
		switch {
		case v.Err == nil:
			size = v.Device.Size()
		case !strings.HasPrefix(v.Name, "u"):
			t.Errorf("%s: %v", v.Name, v.Err)
			continue
		case !errors.Is(v.Err, backend.ErrUnsupported):
			t.Errorf("%s: %v", v.Name, v.Err)
		}
		for _, row := range want {
			if f := strings.Fields(row); f[0] == v.Name && size < 0 {
				size = number(t, f[1])
			}
		}
		got = append(got, fmt.Sprintf("%s %d %s", v.Name, size, v.UUID))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Errorf("LVM lists\n%s\nand we\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}

package kpartx_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
	"domfs/backend/mapper/kpartx"
)

const mib = 1 << 20

// guest is the image of a guest's disk, and what is in it.
type guest struct {
	file    string
	size    int64
	parts   []backend.MapPart
	volumes []backend.MapVolume
	sums    map[string]string // of each device: of volumes, as LVM itself showed them
	vgUUID  string
}

// partitions asks sfdisk for the table of an image.
func partitions(t *testing.T, file string) []backend.MapPart {
	t.Helper()
	var out struct {
		PartitionTable struct {
			Partitions []struct {
				Node        string
				Start, Size int64
				Type        string
			}
		}
	}
	if err := json.Unmarshal([]byte(labneed.Run(t, "sfdisk", "--json", file)), &out); err != nil {
		t.Fatal(err)
	}
	var parts []backend.MapPart
	for _, p := range out.PartitionTable.Partitions {
		size := p.Size
		if p.Type == "5" || p.Type == "f" {
			size = 2 // as Linux shows an extended partition
		}
		parts = append(parts, backend.MapPart{Name: "p" + strings.TrimLeft(strings.TrimPrefix(p.Node, file), "p"), Start: p.Start * 512, Length: size * 512})
	}
	return parts
}

// script makes a partition table.
func script(t *testing.T, file, text string) {
	t.Helper()
	cmd := exec.Command("sfdisk", "--quiet", file)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
}

// guests are those that were made: each takes many calls of LVM.
var guests struct {
	sync.Mutex
	dir   string
	known map[string]guest
}

func TestMain(m *testing.M) {
	code := m.Run()
	if guests.dir != "" {
		os.RemoveAll(guests.dir)
	}
	os.Exit(code)
}

// keep moves an image to where it outlives the test.
func (g *guest) keep(t *testing.T, key string) {
	t.Helper()
	if guests.dir == "" {
		dir, err := os.MkdirTemp("", "kpartx-guests")
		if err != nil {
			t.Fatal(err)
		}
		guests.dir, guests.known = dir, map[string]guest{}
	}
	to := filepath.Join(guests.dir, fmt.Sprint("guest", len(guests.known)))
	if err := os.Rename(g.file, to); err != nil {
		t.Fatal(err)
	}
	g.file = to
	guests.known[key] = *g
}

// newGuest makes the image of a guest, or returns the one that was made before: nothing writes to it.
func newGuest(t *testing.T, table string, pvs ...string) guest {
	t.Helper()
	guests.Lock()
	defer guests.Unlock()
	g, ok := guests.known[table]
	if !ok {
		g = makeGuest(t, table, pvs...)
		g.keep(t, table)
	}
	return g
}

// makeGuest makes the image of a guest with a filesystem on p1 and the volume group labguest on two further
// partitions: root is linear, pieces lies in two, stripes is striped.
func makeGuest(t *testing.T, table string, pvs ...string) guest {
	t.Helper()
	g := guest{file: labneed.File(t, 32*mib), size: 32 * mib, sums: map[string]string{}}
	script(t, g.file, table)
	g.parts = partitions(t, g.file)
	at := func(name string) backend.MapPart {
		i := slices.IndexFunc(g.parts, func(p backend.MapPart) bool { return p.Name == name })
		if i < 0 {
			t.Fatalf("the table has no %s: %+v", name, g.parts)
		}
		return g.parts[i]
	}
	loops := map[string]string{} // by member
	names := map[string]string{} // members by major:minor
	var devices []string
	for _, p := range append([]string{"p1"}, pvs...) {
		part := at(p)
		loop := labneed.Attach(t, g.file, "--offset", fmt.Sprint(part.Start), "--sizelimit", fmt.Sprint(part.Length))
		loops[p] = loop
		names[labneed.Run(t, "lsblk", "--noheadings", "--nodeps", "--output", "MAJ:MIN", loop)] = "xvda/" + p
		if p != "p1" {
			devices = append(devices, loop)
		}
	}
	labneed.Run(t, "mkfs.ext4", "-q", loops["p1"])
	labneed.Run(t, append([]string{"pvcreate", "--quiet", "--yes"}, devices...)...)
	labneed.Run(t, append([]string{"vgcreate", "--quiet", "--physicalextentsize", "1M", "labguest"}, devices...)...)
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", "root", "--size", "2M", "labguest", devices[0])
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", "stripes", "--stripes", "2", "--stripesize", "16", "--size", "4M", "labguest")
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", "pieces", "--size", "1M", "labguest", devices[0])
	labneed.Run(t, "lvextend", "--quiet", "--size", "3M", "labguest/pieces", devices[1])
	g.vgUUID = labneed.Run(t, "vgs", "--noheadings", "--options", "vg_uuid", "labguest")
	for _, lv := range []string{"root", "stripes", "pieces"} {
		device := "/dev/labguest/" + lv
		fill(t, device)
		g.sums["lvm/labguest/"+lv] = sum(t, device)
		g.volumes = append(g.volumes, volumeOf(t, "labguest-"+lv, "lvm/labguest/"+lv, names))
	}
	labneed.Deactivate(t, "labguest")
	for _, loop := range loops {
		labneed.Detach(t, loop)
	}
	g.sums["xvda"] = sumOf(t, g.file, 0, g.size)
	for _, p := range g.parts {
		g.sums["xvda/"+p.Name] = sumOf(t, g.file, p.Start, p.Length)
	}
	return g
}

// volumeOf reads what LVM has mapped.
func volumeOf(t *testing.T, mapped, name string, members map[string]string) backend.MapVolume {
	t.Helper()
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	v := backend.MapVolume{Name: name}
	for line := range strings.Lines(labneed.Run(t, "dmsetup", "table", mapped)) {
		f := strings.Fields(line)
		s := backend.MapSegment{Start: number(f[0]) * 512, Length: number(f[1]) * 512}
		rest := f[3:]
		if f[2] == "striped" {
			s.StripeBytes, rest = number(f[4])*512, f[5:]
		}
		for i := 0; i+1 < len(rest); i += 2 {
			if members[rest[i]] == "" {
				t.Fatalf("%s lies on %s, which is no member", mapped, rest[i])
			}
			s.Targets = append(s.Targets, backend.MapTarget{Member: members[rest[i]], Offset: number(rest[i+1]) * 512})
		}
		v.Segments = append(v.Segments, s)
		v.SizeBytes += s.Length
	}
	return v
}

func fill(t *testing.T, device string) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, mib)
	for range 2 {
		for i := range buf {
			buf[i] = byte(rand.Uint32())
		}
		if _, err := f.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := crc64.New(crc64.MakeTable(crc64.ECMA))
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// sumOf is of a range of the image.
func sumOf(t *testing.T, file string, start, length int64) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := crc64.New(crc64.MakeTable(crc64.ECMA))
	if _, err := io.Copy(h, io.NewSectionReader(f, start, length)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// request asks for all of the guest, whose disk is at path.
func (g guest) request(set, path string) backend.MapRequest {
	return backend.MapRequest{SetID: set, Disks: []backend.MapDisk{{VDev: "xvda", Path: path, SizeBytes: g.size, Parts: g.parts}}, Volumes: g.volumes}
}

// hostSnapshot copies the image into a volume of the host, and snapshots it: what a mapping lies on.
func (g guest) hostSnapshot(t *testing.T, vg, name string) string {
	t.Helper()
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", name, "--size", fmt.Sprint(g.size, "b"), vg)
	labneed.Run(t, "dd", "if="+g.file, "of=/dev/"+vg+"/"+name, "bs=64K", "conv=sparse,fsync", "status=none") // the volume's disk is new
	labneed.Run(t, "lvcreate", "--quiet", "--snapshot", "--permission", "r", "--name", "domfs-"+name, "--size", "4M", vg+"/"+name)
	return "/dev/" + vg + "/domfs-" + name
}

const (
	gptTable     = "label: gpt\nsize=4M\nsize=10M\nsize=8M\nsize=2M\n"
	logicalTable = "label: dos\nsize=4M\nsize=1M\ntype=f\nsize=10M\nsize=8M\nsize=1M\n"
)

// mustMap maps, and unmaps when the test ends.
func mustMap(t *testing.T, m backend.Mapper, r backend.MapRequest) map[string]string {
	t.Helper()
	made, left, err := m.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		t.Errorf("left out: %s: %v", l.Name, l.Err)
	}
	t.Cleanup(func() {
		if err := m.Unmap(background(), r.SetID); err != nil {
			t.Error(err)
		}
	})
	devices := map[string]string{}
	for _, mp := range made {
		devices[mp.Name] = mp.Device
	}
	return devices
}

// check compares every device with the guest's bytes.
func (g guest) check(t *testing.T, devices map[string]string) {
	t.Helper()
	for name, s := range g.sums {
		device := devices[name]
		if device == "" {
			t.Errorf("%s is not mapped", name)
			continue
		}
		if got := sum(t, device); got != s {
			t.Errorf("%s (%s) has other bytes", name, device)
		}
		if ro := labneed.Run(t, "blockdev", "--getro", device); ro != "1" {
			t.Errorf("%s can be written to", device)
		}
	}
	if len(devices) != len(g.sums) {
		t.Errorf("%d devices, want %d: %v", len(devices), len(g.sums), devices)
	}
}

func TestLabMap_ShowsTheBytesOfDisksPartitionsAndVolumes(t *testing.T) {
	labneed.LVM(t)
	for _, c := range []struct{ name, table, pv1, pv2 string }{
		{"gpt", gptTable, "p2", "p3"},
		{"logical", logicalTable, "p5", "p6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			labneed.Leftovers(t)
			g := newGuest(t, c.table, c.pv1, c.pv2)
			labneed.VG(t, "labhost", labneed.Disk(t, 128*mib))
			m := kpartx.New(nil)
			for kind, path := range map[string]string{"volume": g.hostSnapshot(t, "labhost", "web01"), "file": g.file} {
				t.Run(kind, func(t *testing.T) {
					set := "20261121T080000000-" + kind
					devices := mustMap(t, m, g.request(set, path))
					g.check(t, devices)
					again := mustMap(t, m, g.request(set, path))
					if fmt.Sprint(again) != fmt.Sprint(devices) {
						t.Errorf("mapped again: %v, before %v", again, devices)
					}
					all, err := m.Mappings(t.Context())
					if err != nil || len(all[set]) != len(devices) {
						t.Errorf("listed: %v, %v", all[set], err)
					}
					for _, mp := range all[set] {
						if devices[mp.Name] != mp.Device {
							t.Errorf("%s is listed at %s, and mapped at %q", mp.Name, mp.Device, devices[mp.Name])
						}
					}
					agreeWithKpartx(t, devices["xvda"], g.parts)
					if err := m.Unmap(t.Context(), set); err != nil {
						t.Fatal(err)
					}
					if out := labneed.Run(t, "dmsetup", "ls"); strings.Contains(out, set) {
						t.Errorf("after Unmap: %s", out)
					}
				})
			}
		})
	}
}

// agreeWithKpartx compares the tree's partitions with kpartx's own word.
func agreeWithKpartx(t *testing.T, front string, parts []backend.MapPart) {
	t.Helper()
	out := labneed.Run(t, "kpartx", "-l", "-p", ":p", front)
	if n := len(strings.Split(out, "\n")); n != len(parts) {
		t.Errorf("kpartx finds %d partitions, the tree has %d:\n%s", n, len(parts), out)
	}
	for _, p := range parts {
		want := fmt.Sprintf("%s:%s : 0 %d ", filepath.Base(front), p.Name, p.Length/512)
		if !strings.Contains(out, want) {
			t.Errorf("kpartx does not say %q:\n%s", want, out)
		}
		table := labneed.Run(t, "dmsetup", "table", filepath.Base(front)+":"+p.Name)
		if !strings.HasPrefix(table, fmt.Sprintf("0 %d linear ", p.Length/512)) || !strings.HasSuffix(table, fmt.Sprintf(" %d", p.Start/512)) {
			t.Errorf("the table of %s is %q", p.Name, table)
		}
	}
}

// watch asks the host's LVM for what it sees, again and again, until stop is called.
type watch struct {
	done  chan struct{}
	wg    sync.WaitGroup
	asked int
	seen  map[string]bool
}

func newWatch(forbidden string) *watch {
	w := &watch{done: make(chan struct{}), seen: map[string]bool{}}
	w.wg.Go(func() {
		for {
			select {
			case <-w.done:
				return
			default:
			}
			for _, argv := range [][]string{{"pvs", "--all", "--noheadings", "--options", "pv_name,vg_name,vg_uuid"}, {"vgs", "--noheadings", "--options", "vg_name,vg_uuid"}} {
				out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
				w.asked++
				if err != nil || strings.Contains(string(out), forbidden) || strings.Contains(string(out), "uplicate") {
					w.seen[string(out)] = true
				}
			}
		}
	})
	return w
}

func (w *watch) stop(t *testing.T) {
	t.Helper()
	close(w.done)
	w.wg.Wait()
	t.Logf("LVM was asked %d times", w.asked)
	for out := range w.seen {
		t.Errorf("the host's LVM saw the guest's:\n%s", out)
	}
	if w.asked < 4 {
		t.Errorf("LVM was asked %d times only", w.asked)
	}
}

func TestLabMap_IsNeverSeenByTheHostsLVM(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	gpt := newGuest(t, gptTable, "p2", "p3")
	logical := newGuest(t, logicalTable, "p5", "p6")
	labneed.VG(t, "labguest", labneed.Disk(t, 128*mib)) // the host has a group of that name, too
	volume := gpt.hostSnapshot(t, "labguest", "web01")
	whole := wholeDisk(t)

	// What we keep off is real: without us the host finds it.
	plain := labneed.Attach(t, gpt.file, "--read-only")
	labneed.Run(t, "kpartx", "-a", "-r", "-s", plain)
	out, _ := exec.Command("vgs", "--noheadings", "--options", "vg_name,vg_uuid").CombinedOutput()
	if !strings.Contains(string(out), gpt.vgUUID) {
		t.Errorf("vgs does not show what kpartx alone maps, so this test shows nothing:\n%s", out)
	}
	labneed.Settle(t)
	for _, dm := range strings.Fields(labneed.Run(t, "dmsetup", "ls", "--exec", "echo")) {
		name := filepath.Base(dm)
		if strings.HasPrefix(name, "labguest-root") || strings.HasPrefix(name, "labguest-stripes") || strings.HasPrefix(name, "labguest-pieces") {
			labneed.Run(t, "dmsetup", "remove", "--retry", name)
		}
	}
	labneed.Run(t, "kpartx", "-d", plain)
	labneed.Detach(t, plain)
	labneed.Settle(t)

	m := kpartx.New(nil)
	for _, one := range []struct {
		name  string
		times int
		r     backend.MapRequest
		uuid  string
	}{
		{"volume", 3, gpt.request("20261121T080000000-volume", volume), gpt.vgUUID},
		{"file", 1, gpt.request("20261121T080000000-file", gpt.file), gpt.vgUUID},
		{"logical in file", 1, logical.request("20261121T080000000-logical", logical.file), logical.vgUUID},
		{"whole disk, file", 2, backend.MapRequest{SetID: "20261121T080000000-whole", Disks: []backend.MapDisk{{VDev: "xvda", Path: whole.file, SizeBytes: whole.size}}}, whole.vgUUID},
	} {
		t.Run(one.name, func(t *testing.T) {
			w := newWatch(one.uuid)
			for range one.times {
				if _, _, err := m.Map(t.Context(), one.r); err != nil {
					t.Error(err)
					break
				}
				if err := m.Unmap(t.Context(), one.r.SetID); err != nil {
					t.Error(err)
					break
				}
			}
			mustMap(t, m, one.r)
			labneed.Run(t, "udevadm", "trigger", "--action=change", "--subsystem-match=block") // and after a coldplug
			labneed.Run(t, "udevadm", "trigger", "--action=add", "--subsystem-match=block")
			labneed.Settle(t)
			w.stop(t)
		})
	}
}

// wholeDisk is a disk that is a physical volume itself, without partitions.
func wholeDisk(t *testing.T) guest {
	t.Helper()
	g := guest{file: labneed.File(t, 16*mib), size: 16 * mib}
	loop := labneed.Attach(t, g.file)
	labneed.Run(t, "pvcreate", "--quiet", "--yes", loop)
	labneed.Run(t, "vgcreate", "--quiet", "labwhole", loop)
	g.vgUUID = labneed.Run(t, "vgs", "--noheadings", "--options", "vg_uuid", "labwhole")
	labneed.Settle(t)
	labneed.Detach(t, loop)
	return g
}

func TestLabMap_TwoClonesAtOnce(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	g := newGuest(t, gptTable, "p2", "p3")
	labneed.VG(t, "labhost", labneed.Disk(t, 256*mib))
	m := kpartx.New(nil)
	a := mustMap(t, m, g.request("20261121T080000000-a", g.hostSnapshot(t, "labhost", "a")))
	b := mustMap(t, m, g.request("20261121T080000000-b", g.hostSnapshot(t, "labhost", "b")))
	g.check(t, a)
	g.check(t, b)
	if a["lvm/labguest/root"] == b["lvm/labguest/root"] {
		t.Errorf("both are at %s", a["lvm/labguest/root"])
	}
}

func TestLabMap_TakesAllBackWhenAPartFails(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	g := newGuest(t, gptTable, "p2", "p3")
	m := kpartx.New(nil)
	r := g.request("20261121T080000000-undo", g.file)
	r.Disks = append(r.Disks, backend.MapDisk{VDev: "xvdb", Path: g.file + ".gone", SizeBytes: mib})
	if _, _, err := m.Map(t.Context(), r); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("a disk that is not there: %v", err)
	}
	// A name that is taken fails as the last mappings are made.
	r = g.request("20261121T080000000-undo", g.file)
	labneed.Run(t, "dmsetup", "create", "domfs-20261121T080000000-undo:lvm:labguest:stripes", "--table", "0 8 zero")
	defer labneed.Run(t, "dmsetup", "remove", "domfs-20261121T080000000-undo:lvm:labguest:stripes")
	if _, _, err := m.Map(t.Context(), r); err == nil {
		t.Error("a name that is taken is no error")
	}
	if all, err := m.Mappings(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("left: %v, %v", all, err)
	}
}

func TestLabUnmap_NamesWhoUsesADevice(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	g := newGuest(t, gptTable, "p2", "p3")
	m := kpartx.New(nil)
	r := g.request("20261121T080000000-busy", g.file)
	devices := mustMap(t, m, r)
	busy := func(words ...string) {
		t.Helper()
		t.Logf("in use: %s", words[0])
		err := m.Unmap(t.Context(), r.SetID)
		if !errors.Is(err, backend.ErrBusy) {
			t.Fatalf("unmapping what is in use: %v", err)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
		g.check(t, mustMap(t, m, r)) // it is whole again
	}
	f, err := os.Open(devices["lvm/labguest/root"])
	if err != nil {
		t.Fatal(err)
	}
	busy("lvm/labguest/root", filepath.Base(os.Args[0])[:8])
	f.Close()
	dir := t.TempDir()
	labneed.Run(t, "mount", "-o", "ro,noload", devices["xvda/p1"], dir)
	busy("xvda/p1", "mount on "+dir)
	labneed.Run(t, "umount", dir)
	labneed.Run(t, "dmsetup", "create", "lababove", "--readonly", "--table", "0 8 linear "+devices["xvda/p4"]+" 0")
	busy("xvda/p4", "/dev/mapper/lababove")
	labneed.Settle(t)
	labneed.Run(t, "dmsetup", "remove", "--retry", "lababove")
	// One who looks at it for a moment only is waited for.
	if f, err = os.Open(devices["xvda"]); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Second, func() { f.Close() })
	if err := m.Unmap(t.Context(), r.SetID); err != nil {
		t.Error(err)
	}
}

func TestLabMap_LeavesOutWhatKpartxSeesOtherwise(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	g := newGuest(t, gptTable, "p2", "p3")
	g.volumes = nil
	m := kpartx.New(nil)
	r := g.request("20261121T080000000-other", g.file)
	r.Disks[0].Parts = slices.Clone(g.parts)
	r.Disks[0].Parts[3].Length -= 4096                                                                                  // another length
	r.Disks[0].Parts = append(r.Disks[0].Parts, backend.MapPart{Name: "p9", Start: mib, Length: mib})                   // there is none
	r.Disks[0].Parts = append(r.Disks[0].Parts, backend.MapPart{Name: "p1/p1", Start: g.parts[0].Start, Length: mib})   // in a partition: ours
	r.Disks[0].Parts = append(r.Disks[0].Parts, backend.MapPart{Name: "p1/p2", Start: g.parts[0].Start + 1, Length: 3}) // no sectors
	made, left, err := m.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Unmap(background(), r.SetID)
	var names, out []string
	for _, mp := range made {
		names = append(names, mp.Name)
	}
	for _, l := range left {
		out = append(out, l.Name)
		if !errors.Is(l.Err, backend.ErrUnsupported) {
			t.Errorf("%s: %v", l.Name, l.Err)
		}
	}
	slices.Sort(out)
	if want := []string{"xvda", "xvda/p1", "xvda/p1/p1", "xvda/p2", "xvda/p3"}; !slices.Equal(names, want) {
		t.Errorf("mapped %q, want %q", names, want)
	}
	if want := []string{"xvda/p1/p2", "xvda/p4", "xvda/p9"}; !slices.Equal(out, want) {
		t.Errorf("left out %q, want %q", out, want)
	}
	if got := labneed.Run(t, "dmsetup", "ls"); strings.Contains(got, ":xvda:p4") {
		t.Errorf("p4 is mapped: %s", got)
	}
}

// A label of LVM at each place where the second loop device could begin.
func TestLabMap_RefusesAnImageFullOfLabels(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	file := labneed.File(t, 16*mib)
	if err := os.WriteFile(file, bytes.Repeat([]byte("LABELONE"+strings.Repeat("\x00", 504)), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	m := kpartx.New(nil)
	_, _, err := m.Map(t.Context(), backend.MapRequest{SetID: "s", Disks: []backend.MapDisk{{VDev: "xvda", Path: file, SizeBytes: 2 * mib}}})
	if !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// context is for cleanups: the test's own has ended by then.
func background() context.Context { return context.Background() }

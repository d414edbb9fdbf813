package lvm

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/labneed"
	"domfs/backend/run"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const (
	mib = int64(1 << 20)
	gib = int64(1 << 30)
)

var bg = context.Background()

// labVG makes a VG of some disks.
func labVG(t *testing.T, name string, disks int, sizeBytes int64) {
	t.Helper()
	var devices []string
	for range disks {
		devices = append(devices, labneed.Disk(t, sizeBytes))
	}
	labneed.VG(t, name, devices...)
}

// lvm runs one of LVM's tools, from a line of arguments without blanks in them.
func lvmTool(t testing.TB, line string) string {
	t.Helper()
	return labneed.Run(t, strings.Fields(line)...)
}

// labDisk is the disk of an LV.
func labDisk(id, vdev string) backend.Disk {
	return backend.Disk{VDev: vdev, Format: "raw", Source: "/dev/" + id, Mode: backend.ReadWrite}
}

// labVolume finds the volume of an LV.
func labVolume(t testing.TB, s *Store, id string) backend.Volume {
	t.Helper()
	volumes, err := s.Volumes(bg, []backend.Disk{labDisk(id, "xvda")})
	if err != nil || len(volumes) != 1 || volumes[0].ID != id {
		t.Fatalf("Volumes of %s = %+v, %v", id, volumes, err)
	}
	return volumes[0]
}

// labRequest asks for a snapshot of an LV as the disk vdev of a set.
func labRequest(t testing.TB, s *Store, id, set, vdev string) backend.SnapshotRequest {
	t.Helper()
	return backend.SnapshotRequest{Origin: labVolume(t, s, id), Meta: backend.SnapshotMeta{
		Set: set, Name: "nightly", DomainName: "web-01", DomainUUID: "7d3f2f6e-3c1b-4c39-9d2e-2f8f2f0f3a55", Disk: labDisk(id, vdev), DiskCount: 1,
		Created: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC), Consistency: backend.ConsistencyCrash, State: backend.SnapshotPending,
	}}
}

// labSnapshot makes a snapshot and carries it to active.
func labSnapshot(t testing.TB, s *Store, id, set, vdev string) backend.Snapshot {
	t.Helper()
	sn, err := takeSnapshot(s, labRequest(t, s, id, set, vdev))
	if err != nil {
		t.Fatal(err)
	}
	return sn
}

func takeSnapshot(s *Store, reqs ...backend.SnapshotRequest) (sn backend.Snapshot, err error) {
	g, err := s.Prepare(bg, reqs, true)
	if err != nil {
		return sn, err
	}
	defer g.Release()
	var active []backend.Annotation
	for _, req := range reqs {
		if sn, err = s.Snapshot(bg, req, g); err != nil {
			return sn, err
		}
		m := sn.SnapshotMeta
		m.State = backend.SnapshotActive
		active = append(active, sn.With(m))
		sn.SnapshotMeta = m
	}
	return sn, s.Annotate(bg, active...)
}

// labListed finds a snapshot in the list, nil if it is not there.
func labListed(t testing.TB, s *Store, id string) *backend.Snapshot {
	t.Helper()
	snaps, err := s.Snapshots(bg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range snaps {
		if snaps[i].Volume.ID == id {
			return &snaps[i]
		}
	}
	return nil
}

// writeDevice writes past the page cache, as a guest does.
func writeDevice(t testing.TB, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func randomBytes(n int64) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func readDevice(t testing.TB, path string, n, off int64) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

// labState is all that LVM and device-mapper have of a VG.
func labState(t testing.TB, vgName string) string {
	t.Helper()
	labneed.Settle(t)
	out := lvmTool(t, "vgs --noheadings -o vg_name,vg_seqno,vg_free "+vgName)
	out += "\n" + lvmTool(t, "lvs -a --noheadings -o lv_name,lv_uuid,lv_attr,lv_size,lv_tags,origin,seg_pe_ranges "+vgName)
	for line := range strings.Lines(labneed.Run(t, "dmsetup", "table")) {
		if strings.HasPrefix(line, strings.ReplaceAll(vgName, "-", "--")+"-") {
			out += "\n" + strings.TrimSpace(line)
		}
	}
	return out
}

// unchanged fails the test if f changes anything in a VG.
func unchanged(t *testing.T, vgName string, f func()) {
	t.Helper()
	before := labState(t, vgName)
	f()
	if after := labState(t, vgName); after != before {
		t.Errorf("VG %s was\n%s\nand is\n%s", vgName, before, after)
	}
}

func deviceBytes(t testing.TB, path string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(labneed.Run(t, "blockdev", "--getsize64", path), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLabStore_KeepsTheContractOnThickVolumes(t *testing.T) { keepsTheContract(t, false) }

func TestLabCOWBytes_AreLVMsOwn(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	for extent, cases := range map[string][][2]string{
		"4m":  {{"4m", "4k"}, {"400m", "4k"}, {"1000m", "512k"}, {"1300g", "4k"}, {"1300g", "64k"}},
		"64k": {{"64k", "4k"}, {"15m", "4k"}}, // whole extents, but for the last record
		"32m": {{"96m", "16k"}},
	} {
		t.Run(extent, func(t *testing.T) {
			sizeBytes := gib
			if extent == "4m" {
				sizeBytes = 3 << 40
			}
			disk := labneed.Disk(t, sizeBytes)
			labneed.Run(t, "pvcreate", "-qq", "-y", disk)
			labneed.Run(t, "vgcreate", "-qq", "-s", extent, "max", disk)
			t.Cleanup(func() { labneed.RemoveVG(t, "max") })
			extentBytes, _ := parseSize(extent)
			for _, c := range cases {
				lvmTool(t, "lvcreate -qq -y -an -Zn -Wn -n o -L "+c[0]+" max")
				lvmTool(t, "lvcreate -qq -y -s -n s -l100%ORIGIN -c "+c[1]+" max/o")
				got, err := strconv.ParseInt(lvmTool(t, "lvs --noheadings --nosuffix --units b -o lv_size max/s"), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("an origin of %s, chunks of %s: %d bytes", c[0], c[1], got)
				originBytes, _ := parseSize(c[0])
				chunkBytes, _ := parseSize(c[1])
				if want := maxCOWBytes(originBytes, chunkBytes, extentBytes); got != want {
					t.Errorf("an origin of %s, chunks of %s: LVM gives %d bytes, maxCOWBytes %d", c[0], c[1], got, want)
				}
				lvmTool(t, "lvremove -qq -y -f max/o")
			}
		})
	}
}

func TestLabStore_KeepsTheContractOnThinVolumes(t *testing.T) { keepsTheContract(t, true) }

func keepsTheContract(t *testing.T, thin bool) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	const vgName = "contract"
	labVG(t, vgName, 2, 256*mib)
	id := vgName + "/disk"
	const size = 8 << 20
	if thin {
		lvmTool(t, "lvcreate -qq -y --type thin -L 200M --thinpool pool -V 8M -n disk "+vgName)
	}
	// Most tests leave the volume as it was: it is made anew after those that do not, and snapshots go.
	fresh := func(t *testing.T) {
		labneed.Settle(t)
		nodes, _ := filepath.Glob("/dev/" + vgName + "/d*") // of the volume and its snapshots
		asItWas := slices.Contains(nodes, "/dev/"+id) && deviceBytes(t, "/dev/"+id) == size
		switch {
		case asItWas && len(nodes) == 1:
			return
		case asItWas:
			lvmTool(t, "lvremove -qq -f -y --select lv_name=~^domfs- "+vgName)
			return
		case len(nodes) > 0:
			lvmTool(t, "lvremove -qq -f -y --select lv_name!=pool "+vgName)
		}
		if thin {
			lvmTool(t, "lvcreate -qq -y -V 8M --thinpool pool -n disk "+vgName)
		} else {
			lvmTool(t, "lvcreate -qq -y -L 8M -n disk "+vgName)
		}
	}
	backendtest.Store(t, func(t *testing.T) backendtest.StoreFixture {
		fresh(t)
		return backendtest.StoreFixture{
			New:       func(*testing.T) backend.Store { return New(Options{VGs: []string{vgName}}) },
			Disk:      labDisk(id, "xvda"),
			SizeBytes: size,

			Overcommits: thin,

			Missing: labDisk(vgName+"/nothing", "xvdb"),
			Foreign: []backend.Disk{{VDev: "xvdc", Format: "raw", Source: "/var/lib/image.img"}, {VDev: "xvdd", Format: "raw", Source: "nbd://host/x"}},
			Write:   func(t *testing.T, p []byte, off int64) { writeDevice(t, "/dev/"+id, p, off) },
		}
	})
}

func TestLabSnapshot_OfDisksInTwoVGs(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "set-a", 2, 256*mib)
	labVG(t, "set-b", 1, 256*mib)
	lvmTool(t, "lvcreate -qq -y -n web-root -L 16M set-a")
	lvmTool(t, "lvcreate -qq -y -n web-data -i2 -L 16M set-a")
	lvmTool(t, "lvcreate -qq -y --type thin -L 64M --thinpool pool -V 32M -n t1 set-b")
	lvmTool(t, "lvcreate -qq -y -n plain -L 8M set-b")
	core, commands := observer.New(zap.DebugLevel)
	s := New(Options{VGs: []string{"set-a", "set-b"}, Runner: run.New(zap.New(core))})
	ids := map[string]string{"xvda": "set-a/web-root", "xvdb": "set-a/web-data", "xvdc": "set-b/t1", "xvdd": "set-b/plain"}
	var reqs []backend.SnapshotRequest
	old := map[string][]byte{}
	for vdev, id := range ids {
		old[vdev] = randomBytes(mib)
		writeDevice(t, "/dev/"+id, old[vdev], 0)
		reqs = append(reqs, labRequest(t, s, id, "20260203T040506000-aaaaaaaaaa", vdev))
	}
	if _, err := takeSnapshot(s, reqs...); err != nil {
		t.Fatal(err)
	}
	changes := commands.Filter(func(e observer.LoggedEntry) bool {
		return strings.Contains(fmt.Sprint(e.ContextMap()["argv"]), "lvchange")
	})
	if changes.Len() != 1 {
		t.Errorf("the tags of four snapshots were changed by %d commands: %v", changes.Len(), changes.All())
	}
	for _, id := range ids {
		writeDevice(t, "/dev/"+id, randomBytes(mib), 0)
	}
	snaps, err := s.Snapshots(bg)
	if err != nil || len(snaps) != len(ids) {
		t.Fatalf("Snapshots = %+v, %v", snaps, err)
	}
	for _, sn := range snaps {
		vdev := sn.Disk.VDev
		if sn.Origin != ids[vdev] || sn.Foreign || sn.State != backend.SnapshotActive || sn.Volume.Err != nil || sn.Path == "" {
			t.Errorf("%s: %+v", vdev, sn)
			continue
		}
		if got := readDevice(t, sn.Path, mib, 0); !bytes.Equal(got, old[vdev]) {
			t.Errorf("%s shows what was written later", vdev)
		}
		if f, err := os.OpenFile(sn.Path, os.O_WRONLY, 0); err == nil {
			if _, err := f.WriteAt(make([]byte, 512), 0); err == nil {
				t.Errorf("%s can be written", vdev)
			}
			f.Close()
		}
		if ro := labneed.Run(t, "blockdev", "--getro", sn.Path); ro != "1" {
			t.Errorf("%s is writable", vdev)
		}
	}
	for _, sn := range snaps {
		if err := s.Remove(bg, sn); err != nil {
			t.Error(err)
		}
	}
	if snaps, err := s.Snapshots(bg); err != nil || len(snaps) != 0 {
		t.Errorf("after Remove: %+v, %v", snaps, err)
	}
}

func TestLabNames_AreTakenByLVM(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	for _, test := range []struct {
		vg  string
		lvs []string
	}{
		{"n0" + strings.Repeat("v", 97), []string{"a"}},
		{"n1", []string{strings.Repeat("a", 119), "x" + strings.Repeat("-", 56)}},
		{"n+" + strings.Repeat("-", 41), []string{"a+Z_0.9" + strings.Repeat("a", 28)}},
	} {
		t.Run(test.vg, func(t *testing.T) {
			labVG(t, test.vg, 1, 64*mib)
			s := New(Options{VGs: []string{test.vg}})
			for _, name := range test.lvs {
				lvmTool(t, "lvcreate -qq -y -L 4M -n "+name+" "+test.vg)
				sn := labSnapshot(t, s, test.vg+"/"+name, "20260203T040506000-aaaaaaaaaa", "xvda")
				if got := labListed(t, s, sn.Volume.ID); got == nil || got.State != backend.SnapshotActive || got.Volume.Err != nil {
					t.Errorf("%s: listed as %+v", name, got)
				}
				if err := s.Remove(bg, sn); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

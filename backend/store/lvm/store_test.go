package lvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// recorded is a store on the host of testdata/host.json, which is asked several times over.
func recorded(t *testing.T, o Options, times int) (*Store, *run.Transcript) {
	t.Helper()
	transcript, err := run.ReadTranscript("testdata/host.json")
	if err != nil {
		t.Fatal(err)
	}
	calls := transcript.Calls
	transcript.Calls = nil
	for range times {
		transcript.Calls = append(transcript.Calls, calls...)
	}
	o.Runner = transcript.Replay()
	return onHost(t, o, string(calls[1].Stdout), string(calls[2].Stdout)), transcript
}

// onHost is a store that finds the devices that dmsetup told of.
func onHost(t *testing.T, o Options, info, status string) *Store {
	t.Helper()
	s := New(o)
	s.mapper = told{o.Runner}
	s.sysfs = t.TempDir()
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(s.sysfs, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("class/misc/device-mapper/dev", "10:236\n")
	s.control = filepath.Join(s.sysfs, "class/misc/device-mapper/dev")
	d := devicesOf(t, info, status)
	nodes := map[string]uint64{}
	for _, v := range d.byName {
		folder := fmt.Sprintf("dev/block/%d:%d/", v.Major, v.Minor)
		put(folder+"size", fmt.Sprintln(v.Targets[0].SizeBytes/sectorBytes))
		put(folder+"queue/iostats", "1\n")
		nodes["/dev/mapper/"+v.Name] = v.rdev()
		nodes[v.path()] = v.rdev()
		if vgName, name, ok := splitDMName(v.Name); ok && isLV(v) {
			nodes["/dev/"+vgName+"/"+name] = v.rdev()
		}
	}
	s.stat = func(path string) (uint64, bool, error) {
		if rdev, ok := nodes[path]; ok {
			return rdev, true, nil
		}
		return 0, false, unix.ENOENT
	}
	return s
}

func TestVolumes_FindTheDisksOfAHost(t *testing.T) {
	s, transcript := recorded(t, Options{}, 1)
	disks := []backend.Disk{
		{Source: "/dev/e/a"}, {Source: "/dev/mapper/e-a.s--1"}, {Source: "/dev/dm-19"}, {Source: "/dev/e/a.s-2"}, {Source: "/dev/e/inact"}, {Source: "/dev/e/gone"},
		{Source: "/dev/e/pool"}, {Source: "/dev/sda"}, {Source: "/srv/a.img"}, {Source: "nbd://h/a"}, {Source: "/dev/e/a", Script: "block-drbd"}, {Source: "/dev/e/a", BackendDomain: "store"},
		{Source: "/dev/mapper/e-a-real"}, {Source: "/dev/mapper/e-r1_rimage_0"}, {Source: "/dev/e/r1", Format: "vhd"},
	}
	volumes, err := s.Volumes(t.Context(), disks)
	if err != nil || len(volumes) != len(disks) {
		t.Fatalf("%+v, %v", volumes, err)
	}
	for i, want := range []struct {
		id, driver, pool string
		size             int64
		err              error
	}{
		{"e/a", "lvm", "e", 16 << 20, nil}, {"e/a.s-1", "lvm", "e", 16 << 20, nil}, {"e/t", "lvm-thin", "e:pool", 64 << 20, nil}, {"e/a.s-2", "lvm", "e", 16 << 20, backend.ErrIO},
		{"e/inact", "lvm", "e", 4 << 20, backend.ErrNoDevice}, {"e/gone", "lvm", "e", 0, backend.ErrNotExist}, {"e/pool", "lvm", "e", 32 << 20, backend.ErrInvalid},
		{}, {}, {}, {}, {}, {}, {"e/r1_rimage_0", "lvm", "e", 8 << 20, backend.ErrInvalid}, {"e/r1", "lvm", "e", 8 << 20, backend.ErrUnsupported},
	} {
		v := volumes[i]
		if v.ID != want.id || v.Driver != want.driver || v.Pool != want.pool || v.SizeBytes != want.size || (v.Err == nil) != (want.err == nil) || want.err != nil && !errors.Is(v.Err, want.err) ||
			(v.Store == "") != (want.id == "") {
			t.Errorf("%+v: Volumes = %+v, want %+v", disks[i], v, want)
		}
	}
	// One listing reads once.
	snaps, err := s.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pools, err := s.Pools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
	byID := map[string]backend.Snapshot{}
	for _, snap := range snaps {
		byID[snap.Volume.ID] = snap
	}
	if valid := byID["e/a.s-1"]; !valid.Foreign || valid.State != backend.SnapshotActive || valid.Origin != "e/a" || valid.ReserveBytes != 8<<20 || valid.UsedBytes != 12352*512 ||
		valid.Path != "/dev/e/a.s-1" || valid.Volume.Err != nil || valid.Volume.SizeBytes != 16<<20 || !strings.HasPrefix(valid.Set, "lvm-P48d23-") || valid.Name != "a.s-1" {
		t.Errorf("the valid snapshot is %+v", valid)
	}
	if full := byID["e/a.s-2"]; full.State != backend.SnapshotInvalid || !errors.Is(full.Volume.Err, backend.ErrIO) || full.FillPercent != 100 || full.UsedBytes != 4<<20 {
		t.Errorf("the invalid snapshot is %+v", full)
	}
	if asleep := byID["e/ts"]; !errors.Is(asleep.Volume.Err, backend.ErrNoDevice) || asleep.Path != "" || asleep.Origin != "e/t" {
		t.Errorf("the snapshot that is not active is %+v", asleep)
	}
	if len(snaps) != 4 {
		t.Errorf("Snapshots = %+v", snaps)
	}
	if len(pools) != 2 || pools[0].Name != "e" || pools[0].FreeBytes != 977272832+1040187392 || pools[1].Name != "e:pool" || pools[1].FreeBytes != 32<<20 || pools[1].MetadataFreeBytes != (1024-112)*4096 {
		t.Errorf("Pools = %+v", pools)
	}
}

func TestSnapshots_AreReadAnewOnceTheListingWasUsedOrSomethingChanged(t *testing.T) {
	s, transcript := recorded(t, Options{}, 4)
	list := func() {
		t.Helper()
		if snaps, err := s.Snapshots(t.Context()); err != nil || len(snaps) != 4 {
			t.Errorf("%+v, %v", snaps, err)
		}
	}
	if _, err := s.Volumes(t.Context(), nil); err != nil { // the first call
		t.Fatal(err)
	}
	list()
	list()                                                 // the second
	if _, err := s.Volumes(t.Context(), nil); err != nil { // the third
		t.Fatal(err)
	}
	s.changed()
	list() // the fourth
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
}

func TestListings_AtOnceReadNoMoreThanOnceEach(t *testing.T) {
	s, transcript := recorded(t, Options{}, 3)
	volumes := func() {
		t.Helper()
		if _, err := s.Volumes(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	rest := func() {
		t.Helper()
		snaps, err := s.Snapshots(t.Context())
		pools, err2 := s.Pools(t.Context())
		if err := errors.Join(err, err2); err != nil || len(snaps) != 4 || len(pools) != 2 {
			t.Errorf("%+v, %+v, %v", snaps, pools, err)
		}
	}
	volumes() // the first call
	volumes() // the second
	rest()
	rest()
	if _, err := s.Snapshots(t.Context()); err != nil { // the third: none of the two is to come
		t.Error(err)
	}
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
}

func TestVolumes_OfAHostWithoutLVMCostNothing(t *testing.T) {
	disks := []backend.Disk{{Source: "/dev/e/a"}}
	nothing := func(t *testing.T, s *Store) {
		t.Helper()
		volumes, err := s.Volumes(t.Context(), disks)
		if err != nil || len(volumes) != 1 || volumes[0].Store != "" {
			t.Errorf("Volumes = %+v, %v", volumes, err)
		}
		snaps, err1 := s.Snapshots(t.Context())
		pools, err2 := s.Pools(t.Context())
		if err := errors.Join(err1, err2); err != nil || len(snaps)+len(pools) != 0 {
			t.Errorf("%+v, %+v, %v", snaps, pools, err)
		}
		if d, err := s.Open(t.Context(), backend.Volume{Store: "lvm", ID: "e/a"}); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Open = %v, %v", d, err)
		}
		if err := s.Watch(t.Context(), nil); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("Watch = %v", err)
		}
	}
	t.Run("no device-mapper", func(t *testing.T) {
		transcript := &run.Transcript{}
		s := New(Options{Runner: transcript.Replay()})
		s.sysfs = t.TempDir()
		nothing(t, s)
		if err := transcript.Check(); err != nil {
			t.Error(err)
		}
	})
	t.Run("no LVM", func(t *testing.T) {
		transcript := &run.Transcript{Calls: []run.Call{{Argv: append([]string{"lvm"}, reportArgs(nil)...), Exit: -1, Failure: "missing"}}}
		s := onHost(t, Options{Runner: transcript.Replay()}, "", "")
		nothing(t, s)
		if err := transcript.Check(); err != nil {
			t.Error(err)
		}
	})
}

// A disk of an LV is no other store's because LVM is late.
func TestVolumes_StayClaimedWhereLVMDoesNotAnswer(t *testing.T) {
	transcript, err := run.ReadTranscript("testdata/host.json")
	if err != nil {
		t.Fatal(err)
	}
	lvm, info, status := transcript.Calls[0], transcript.Calls[1], transcript.Calls[2]
	disks := []backend.Disk{{Source: "/dev/mapper/e-a.s--1"}, {Source: "/dev/sda"}, {Source: "/dev/mapper/e-a-real"}}
	late := func(c run.Call) run.Call { return run.Call{Argv: c.Argv, Exit: -1, Failure: "timeout"} }
	for name, calls := range map[string][]run.Call{"LVM": {late(lvm), info, status}, "device-mapper": {lvm, late(info)}} {
		s := onHost(t, Options{Runner: (&run.Transcript{Calls: calls}).Replay()}, string(info.Stdout), string(status.Stdout))
		volumes, err := s.Volumes(t.Context(), disks)
		if err != nil || volumes[0].Store != "lvm" || volumes[0].ID != "e/a.s-1" || !errors.Is(volumes[0].Err, backend.ErrTimeout) || volumes[1].Store != "" {
			t.Errorf("%s is late: %+v, %v", name, volumes, err)
		}
	}
	s := onHost(t, Options{Runner: (&run.Transcript{Calls: []run.Call{late(lvm), late(info)}}).Replay()}, string(info.Stdout), string(status.Stdout))
	if volumes, err := s.Volumes(t.Context(), disks); !errors.Is(err, backend.ErrTimeout) {
		t.Errorf("both are late: %+v, %v", volumes, err)
	}
}

func TestVolumes_OfOtherVGsAreLeft(t *testing.T) {
	s, _ := recorded(t, Options{VGs: []string{"f"}}, 1)
	if volumes, err := s.Volumes(t.Context(), []backend.Disk{{Source: "/dev/e/a"}, {Source: "/dev/e/gone"}}); err != nil || volumes[0].Store != "" || volumes[1].Store != "" {
		t.Errorf("Volumes = %+v, %v", volumes, err)
	}
	if pools, err := s.Pools(t.Context()); err != nil || len(pools) != 0 {
		t.Errorf("Pools = %+v, %v", pools, err)
	}
}

func TestUnreadable_KnowsWhatIsWholeWithoutAPV(t *testing.T) {
	g := &vg{name: "e", missingPVs: 1}
	add := func(name, segtype string, partial bool) *lv {
		l := &lv{vg: g, name: name, segtype: segtype, partial: partial}
		g.lvs = append(g.lvs, l)
		return l
	}
	for segtype, want := range map[string]bool{"linear": false, "striped": false, "raid0": false, "raid0_meta": false, "raid1": true, "raid10": true, "raid5_ls": true, "mirror": true, "cache": false} {
		if got := add("x", segtype, true).unreadable(); (got == nil) != want {
			t.Errorf("%s: %v", segtype, got)
		}
	}
	g.lvs = nil // in the order of their names
	data := add("data", "raid1", true)
	meta := add("meta", "raid1", true)
	pool := add("pool", segThinPool, true)
	thin := add("thin", segThin, true)
	pool.dataLV, pool.metadataLV, thin.pool = "data", "meta", "pool"
	if err := thin.unreadable(); err != nil {
		t.Errorf("a thin volume on mirrors: %v", err)
	}
	meta.segtype = "linear"
	if err := thin.unreadable(); !errors.Is(err, backend.ErrIO) {
		t.Errorf("a thin volume whose pool's metadata is gone: %v", err)
	}
	meta.segtype, data.segtype = "raid1", "linear"
	if err := thin.unreadable(); !errors.Is(err, backend.ErrIO) {
		t.Errorf("a thin volume whose pool's data is gone: %v", err)
	}
}

func TestVolumes_WarnOnceOfAVGThatIsNotThere(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	s, _ := recorded(t, Options{VGs: []string{"e", "f"}, Log: zap.New(core)}, 2)
	for range 2 {
		if _, err := s.Volumes(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if all := logs.All(); len(all) != 1 || all[0].ContextMap()["vg"] != "f" {
		t.Errorf("%+v", all)
	}
}

func TestVolumes_WarnOnceOfVGsOnAHostWithoutLVM(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	s := New(Options{VGs: []string{"e"}, Log: zap.New(core)})
	s.sysfs = t.TempDir()
	for range 2 {
		if volumes, err := s.Volumes(t.Context(), []backend.Disk{{Source: "/dev/e/a"}}); err != nil || volumes[0].Store != "" {
			t.Fatalf("%+v, %v", volumes, err)
		}
	}
	if all := logs.All(); len(all) != 1 || !strings.Contains(all[0].Message, "volume groups") {
		t.Errorf("%+v", all)
	}
}

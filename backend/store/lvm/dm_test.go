package lvm

import (
	"errors"
	"testing"

	"domfs/backend"
	"domfs/backend/devmapper"

	"golang.org/x/sys/unix"
)

func TestDevices_AreJoinedWithVolumes(t *testing.T) {
	out, info, status := recordedHost(t)
	r, err := parseReport([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	d := devicesOf(t, info, status)
	a := d.of(r.lv("e", "a"))
	if a == nil || a.Name != "e-a" || a.Open != 0 || a.Suspended || a.rdev() != unix.Mkdev(253, 0) || a.path() != "/dev/dm-0" || len(a.Targets) != 1 || a.Targets[0].Type != "snapshot-origin" {
		t.Errorf("e/a is %+v", a)
	}
	if real := d.layer(r.lv("e", "a"), "real"); real == nil || real.Open != 3 || d.byName["e-a-real"] != real || d.byRdev[unix.Mkdev(253, 10)] != real {
		t.Errorf("what is below e/a is %+v", real)
	}
	if d.of(r.lv("e", "inact")) != nil || d.of(r.lv("e", "ts")) != nil {
		t.Error("what is not active has a device")
	}
	valid, ok1 := d.cow(r.lv("e", "a.s-1"))
	full, ok2 := d.cow(r.lv("e", "a.s-2"))
	if !ok1 || !ok2 || valid.fault != "" || valid.usedBytes != 12352*512 || valid.totalBytes != 8<<20 || valid.metadataBytes != 64*512 || valid.percent() < 75.3 || valid.percent() > 75.4 {
		t.Errorf("the valid snapshot is %+v", valid)
	}
	if full.fault == "" || full.percent() != 100 {
		t.Errorf("the invalid snapshot is %+v", full)
	}
	if thin, ok := d.thin(r.lv("e", "t")); !ok || thin.failed || thin.mappedBytes != 0 {
		t.Errorf("the thin volume is %+v", thin)
	}
	if _, ok := d.cow(r.lv("e", "a")); ok {
		t.Error("an origin is taken for a snapshot")
	}
}

func TestParseCOW_KnowsEachAnswer(t *testing.T) {
	for params, want := range map[string]cowStatus{
		"16/8192 16":   {known: true, usedBytes: 8192, totalBytes: 4 << 20, metadataBytes: 8192},
		"16/8192":      {known: true, usedBytes: 8192, totalBytes: 4 << 20},
		"8200/8192 16": {known: true, usedBytes: 4 << 20, totalBytes: 4 << 20, metadataBytes: 8192},
		"Unknown":      {},
		"":             {},
		"9223372036854775807/9223372036854775807 1": {},
	} {
		if got := parseCOW(params); got != want {
			t.Errorf("%q is %+v, want %+v", params, got, want)
		}
	}
	for _, params := range []string{"Invalid", "Overflow", "Merge failed"} {
		if got := parseCOW(params); got.fault == "" || got.percent() != 100 {
			t.Errorf("%q is %+v", params, got)
		}
	}
}

func TestSplitDMName_UndoesLVMsDoubling(t *testing.T) {
	for _, vgName := range []string{"a", "a-b", "a--b", "-", "x-", "a.b_+"} {
		for _, name := range []string{"c", "c-d", "c--", "z-"} {
			if vg, lv, ok := splitDMName(dmName(vgName, name)); !ok || vg != vgName || lv != name {
				t.Errorf("%s is %q, %q, %t", dmName(vgName, name), vg, lv, ok)
			}
		}
	}
	for _, dm := range []string{"", "a", "a--b", "-a", "a-", "a--"} {
		if vg, lv, ok := splitDMName(dm); ok {
			t.Errorf("%q is %q, %q", dm, vg, lv)
		}
	}
}

func TestAddStatus_TakesOddNames(t *testing.T) {
	d := indexDevices([]devmapper.Device{{Name: "x: y:z"}, {Name: "n"}})
	if err := d.addStatus([]byte("x: y:z: 0 8 linear \nother: 0 8 linear\nn: 0 8 linear \nn: 8 16 error\nNo devices found\n\nn: 1 2\n")); err != nil {
		t.Fatal(err)
	}
	if got := d.byName["n"].Targets; len(got) != 2 || got[1] != (devmapper.Target{StartBytes: 8 * 512, SizeBytes: 16 * 512, Type: "error"}) || len(d.byName) != 2 {
		t.Errorf("%+v", d.byName["n"])
	}
	for _, status := range []string{"n: a 8 linear\n", "n: 0 -8 linear\n", "n: 0 36028797018963968 zero\n"} {
		if err := d.addStatus([]byte(status)); !errors.Is(err, backend.ErrIO) {
			t.Errorf("%q: %v", status, err)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	_, info, status := recordedHost(f)
	for _, v := range devicesOf(f, info, status).byName {
		for _, target := range v.Targets {
			f.Add(target.Status)
		}
	}
	f.Add("1/2 3")
	f.Fuzz(func(t *testing.T, status string) {
		d := indexDevices([]devmapper.Device{{Name: "n"}})
		if err := d.addStatus([]byte("n: " + status)); err == nil {
			for _, target := range d.byName["n"].Targets {
				if target.StartBytes < 0 || target.SizeBytes < 0 {
					t.Errorf("%+v", target)
				}
			}
		}
		if c := parseCOW(status); c.usedBytes < 0 || c.usedBytes > c.totalBytes || c.percent() < 0 || c.percent() > 100 || c.metadataBytes > c.usedBytes {
			t.Errorf("%+v", c)
		}
		if thin := parseThin(status); thin.mappedBytes < 0 {
			t.Errorf("%+v", thin)
		}
		if pool, ok := parsePoolStatus(status); ok && (pool.usedData < 0 || pool.usedData > pool.data || pool.usedMetadata < 0 || pool.usedMetadata > pool.metadata) {
			t.Errorf("%+v", pool)
		}
	})
}

package lvm

import (
	"errors"
	"testing"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func TestParseDevices_JoinsThemWithVolumes(t *testing.T) {
	out, info, status := recordedHost(t)
	r, err := parseReport([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseDevices([]byte(info), []byte(status))
	if err != nil {
		t.Fatal(err)
	}
	a := d.of(r.lv("e", "a"))
	if a == nil || a.name != "e-a" || a.open != 0 || a.suspended || a.rdev() != unix.Mkdev(253, 0) || a.path() != "/dev/dm-0" || len(a.targets) != 1 || a.targets[0].kind != "snapshot-origin" {
		t.Errorf("e/a is %+v", a)
	}
	if real := d.layer(r.lv("e", "a"), "real"); real == nil || real.open != 3 || d.byName["e-a-real"] != real || d.byRdev[unix.Mkdev(253, 10)] != real {
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

func TestParseDevices_TakesOddNames(t *testing.T) {
	d, err := parseDevices([]byte("No devices found\n253:7:1:Suspended::x: y:z\n"), []byte("x: y:z: 0 8 linear \nother: 0 8 linear\ngarbage\n"))
	if err != nil || len(d.byName) != 1 || len(d.byUUID) != 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	if v := d.byName["x: y:z"]; v == nil || !v.suspended || v.open != 1 {
		t.Errorf("it is %+v", v)
	}
	for _, info := range []string{"x:1:0:Active:u:n\n", "1:99999999999:0:Active:u:n\n", "1:1:-1:Active:u:n\n"} {
		if d, err := parseDevices([]byte(info), nil); !errors.Is(err, backend.ErrIO) {
			t.Errorf("%q: %+v, %v", info, d, err)
		}
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

func FuzzParseDevices(f *testing.F) {
	_, info, status := recordedHost(f)
	f.Add([]byte(info), []byte(status))
	f.Add([]byte("253:1:0:Active:LVM-x:n\n"), []byte("n: 0 8 snapshot 1/2 3\n"))
	f.Fuzz(func(t *testing.T, info, status []byte) {
		d, err := parseDevices(info, status)
		if err != nil {
			return
		}
		for _, v := range d.byName {
			if c, ok := v.cow(); ok && (c.usedBytes < 0 || c.usedBytes > c.totalBytes || c.percent() < 0 || c.percent() > 100 || c.metadataBytes > c.usedBytes) {
				t.Errorf("%+v", c)
			}
			for _, target := range v.targets {
				if thin := parseThin(target.params); thin.mappedBytes < 0 {
					t.Errorf("%+v", thin)
				}
			}
		}
	})
}

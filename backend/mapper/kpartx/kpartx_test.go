package kpartx

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/devmapper"
	"domfs/backend/run"
)

func TestIdentity_GivesBackWhatItWasMadeOf(t *testing.T) {
	const set = "20261121T085750123-abcdefghij"
	long := "lvm/" + strings.Repeat("v", 63) + "/" + strings.Repeat("l", 60)
	seen := map[string]string{}
	for _, c := range []struct{ set, path, name string }{
		{set, "xvda", "domfs-" + set + ":xvda"},
		{set, "xvda/p2", "domfs-" + set + ":xvda:p2"},
		{set, "xvda/p1/p5", "domfs-" + set + ":xvda:p1:p5"},
		{set, "lvm/vg0/root", "domfs-" + set + ":lvm:vg0:root"},
		{set, "lvm/vg-0/a_b+c.d", "domfs-" + set + ":lvm:vg-0:a_5fb+c.d"},
		{"vg0/snap", "xvda", "domfs-vg0_2fsnap:xvda"},
		{set, long, ""},
		{set, long + "x", ""},
		{set, "md/a b\xff:/n", "domfs-" + set + ":md:a_20b_ff_3a:n"},
	} {
		d, err := newIdentity(c.set, c.path, false)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		if c.name != "" && d.name != c.name {
			t.Errorf("%s is named %s, want %s", c.path, d.name, c.name)
		}
		if len(d.name) > maxName || len(d.uuid) > maxUUID {
			t.Errorf("%s: a name of %d bytes, a UUID of %d", c.path, len(d.name), len(d.uuid))
		}
		// LVM2's rule for what it never looks into: "LVM-" and more than two identities of 32 bytes and a NUL.
		h, err := newIdentity(c.set, c.path, true)
		if err != nil || h.name != d.name || !strings.HasPrefix(h.uuid, "LVM-") || len(h.uuid) <= 5+64 || len(h.uuid) > maxUUID {
			t.Errorf("%s: LVM would look into %s (%v)", c.path, h.uuid, err)
		}
		// libblkid's rule for what it does not look into.
		if strings.HasPrefix(d.uuid, "LVM-") {
			t.Errorf("%s: blkid would not look into %s", c.path, d.uuid)
		}
		if strings.ContainsAny(d.name+d.uuid, ",;\\ |\n/") {
			t.Errorf("%s: %s, %s cannot be written as they are", c.path, d.name, d.uuid)
		}
		if other := seen[d.name] + seen[d.uuid]; other != "" {
			t.Errorf("%s and %s are one", c.path, other)
		}
		seen[d.name], seen[d.uuid] = c.path, c.path
		for _, uuid := range []string{d.uuid, "part5-" + d.uuid, h.uuid, "part5-" + h.uuid} {
			gotSet, gotPath, ok := identity{d.name, uuid}.parse()
			if !ok || gotSet != c.set || gotPath != c.path {
				t.Errorf("%s of %s is read as %q of %q (%v)", c.path, c.set, gotPath, gotSet, ok)
			}
		}
	}
	for _, c := range []struct{ set, path string }{{"", "xvda"}, {strings.Repeat("s", 65), "xvda"}, {set, strings.Repeat("x", 200)}} {
		if d, err := newIdentity(c.set, c.path, false); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("%q of %q: %+v, %v", c.path, c.set, d, err)
		}
	}
}

func TestList_TakesOursOnly(t *testing.T) {
	d, err := newIdentity("s", "xvda", false)
	if err != nil {
		t.Fatal(err)
	}
	all := []devmapper.Device{
		{Name: d.name, UUID: d.uuid, Major: 254, Minor: 3},
		{Name: d.name + ":p1", UUID: "part1-" + d.uuid, Major: 254, Minor: 4},
		{Name: "domfs-s:xvdb", UUID: "LVM-abc", Major: 254, Minor: 5},
		{Name: "domfs-s:xvdc", Major: 254, Minor: 6},
		{Name: "vg0-root", UUID: "LVM-" + strings.Repeat("x", 64), Major: 254, Minor: 0},
		{Name: "domfs", UUID: d.uuid, Major: 254, Minor: 7},
		{},
	}
	var got []string
	for _, d := range oursOf(all) {
		got = append(got, d.setID+" "+d.path+" "+d.number)
	}
	if want := []string{"s xvda 254:3", "s xvda/p1 254:4"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// As kpartx 0.9.4 writes it.
func TestParseList_ReadsPartitions(t *testing.T) {
	front := identity{name: "domfs-s:xvda"}
	out := `domfs-s:xvda:p1 : 0 8192 /dev/mapper/domfs-s:xvda 2048
domfs-s:xvda:p3 : 0 2 /dev/mapper/domfs-s:xvda 12288
domfs-s:xvda:p5 : 0 20480 /dev/dm-1 2048
domfs-s:xvda:p6 : 0 16384 /dev/dm-1 24576
`
	got, err := parseList(out, front)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]slice{
		1: {2048 * 512, 8192 * 512, false}, 3: {12288 * 512, 1024, false},
		5: {(12288 + 2048) * 512, 20480 * 512, true}, 6: {(12288 + 24576) * 512, 16384 * 512, true},
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, bad := range []string{
		"other:p1 : 0 8192 /dev/mapper/domfs-s:xvda 2048",
		"domfs-s:xvda:p1 : 0 8192 /dev/dm-0 2048",
		"domfs-s:xvda:px : 0 8192 /dev/mapper/domfs-s:xvda 2048",
		"domfs-s:xvda:p0 : 0 8192 /dev/mapper/domfs-s:xvda 2048",
		"domfs-s:xvda:p1 : 0 -8 /dev/mapper/domfs-s:xvda 2048",
		"domfs-s:xvda:p1 : 0 8192 /dev/mapper/domfs-s:xvda 9223372036854775807",
		"domfs-s:xvda:p1 : 0 8192 /dev/mapper/domfs-s:xvda",
		"llseek error",
	} {
		if got, err := parseList(bad, front); !errors.Is(err, backend.ErrIO) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

func TestVolumeTable_SaysWhereAVolumeLies(t *testing.T) {
	const k = 1024
	find := func(member string) (place, int64, bool) {
		switch member {
		case "xvda/p2":
			return place{device: "254:1"}, 4096, true
		case "xvdb":
			return place{device: "254:2", sector: 2048}, 4096, true
		}
		return place{}, 0, false
	}
	one := func(m string, at int64) []backend.MapTarget { return []backend.MapTarget{{Member: m, Offset: at}} }
	two := []backend.MapTarget{{Member: "xvda/p2", Offset: 512 * k}, {Member: "xvdb", Offset: 0}}
	for name, c := range map[string]struct {
		segments []backend.MapSegment
		want     string
	}{
		"linear":    {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvda/p2", 512*k)}}, "0 128 linear 254:1 1024"},
		"an offset": {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvdb", 512*k)}}, "0 128 linear 254:2 3072"},
		"two pieces": {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvda/p2", 0)}, {Start: 64 * k, Length: 32 * k, Targets: one("xvdb", 0)}},
			"0 128 linear 254:1 0\n128 64 linear 254:2 2048"},
		"stripes":         {[]backend.MapSegment{{Length: 64 * k, StripeBytes: 16 * k, Targets: two}}, "0 128 striped 2 32 254:1 1024 254:2 2048"},
		"one stripe":      {[]backend.MapSegment{{Length: 64 * k, StripeBytes: 16 * k, Targets: one("xvdb", 0)}}, "0 128 linear 254:2 2048"},
		"nothing":         {nil, ""},
		"a gap":           {[]backend.MapSegment{{Start: 512, Length: 64 * k, Targets: one("xvdb", 0)}}, ""},
		"no sectors":      {[]backend.MapSegment{{Length: 100, Targets: one("xvdb", 0)}}, ""},
		"no length":       {[]backend.MapSegment{{Targets: one("xvdb", 0)}}, ""},
		"a huge length":   {[]backend.MapSegment{{Length: 1<<63 - 512, Targets: one("xvdb", 0)}}, ""},
		"past the end":    {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvdb", 2048*k-32*k)}}, ""},
		"a huge offset":   {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvdb", 1<<63-512)}}, ""},
		"a negative one":  {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvdb", -512)}}, ""},
		"elsewhere":       {[]backend.MapSegment{{Length: 64 * k, Targets: one("xvdc", 0)}}, ""},
		"no target":       {[]backend.MapSegment{{Length: 64 * k}}, ""},
		"part of a chunk": {[]backend.MapSegment{{Length: 72 * k, StripeBytes: 16 * k, Targets: two}}, ""},
		"no chunk":        {[]backend.MapSegment{{Length: 64 * k, Targets: two}}, ""},
		"many stripes":    {[]backend.MapSegment{{Length: 64 * k, StripeBytes: 512, Targets: slices.Repeat(two, 100)}}, ""},
	} {
		v := backend.MapVolume{Name: "lvm/vg0/a", Segments: c.segments}
		for _, s := range c.segments {
			v.SizeBytes += s.Length
		}
		got, err := volumeTable(v, find)
		if c.want == "" {
			if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "lvm/vg0/a") {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		} else if err != nil || strings.Join(got, "\n") != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
	v := backend.MapVolume{Name: "lvm/vg0/a", SizeBytes: 1, Segments: []backend.MapSegment{{Length: 512, Targets: one("xvdb", 0)}}}
	if _, err := volumeTable(v, find); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("segments that are not its size: %v", err)
	}
}

func TestOfSet_IsInTheOrderOfRemoval(t *testing.T) {
	var all []device
	for _, path := range []string{"xvda", "xvda/p1", "lvm/vg0/root", "xvdb", "xvda/p1/p5", "md/0"} {
		all = append(all, device{setID: "s", path: path}, device{setID: "other", path: path})
	}
	var got []string
	for _, d := range ofSet(all, "s") {
		got = append(got, d.path)
	}
	if want := []string{"lvm/vg0/root", "md/0", "xvda/p1", "xvda/p1/p5", "xvda", "xvdb"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What the tools of Debian 12 write.
func TestFailure_KnowsWhatToolsSay(t *testing.T) {
	for stderr, want := range map[string]error{
		"device-mapper: remove ioctl on domfs-s:xvda  failed: Device or resource busy\nCommand failed.":                 backend.ErrBusy,
		"Device domfs-s:xvda not found\nCommand failed.":                                                                backend.ErrIO,
		"device-mapper: create ioctl on domfs-s:xvda LVM-domfs failed: Device or resource busy\nCommand failed.":        backend.ErrBusy,
		"device-mapper: remove ioctl on a  failed: No such device or address\nCommand failed.":                          backend.ErrNoDevice,
		"/dev/mapper/control: open failed: Permission denied\nFailure to communicate with kernel device-mapper driver.": backend.ErrAccess,
		"device-mapper: reload ioctl on a  failed: Invalid argument":                                                    backend.ErrIO,
		"device mapper prerequisites not met":                                                                           backend.ErrUnsupported,
	} {
		if err := failure(&run.Error{Argv: []string{"dmsetup"}, Exit: 1, Stderr: stderr}); !errors.Is(err, want) {
			t.Errorf("%q: %v", stderr, err)
		}
	}
	late := &run.Error{Argv: []string{"kpartx"}, Exit: -1, Err: fmt.Errorf("late: %w", backend.ErrTimeout)}
	if err := failure(late); !errors.Is(err, backend.ErrTimeout) || errors.Is(err, backend.ErrIO) {
		t.Errorf("a tool that is late: %v", err)
	}
	if failure(nil) != nil {
		t.Error("nothing is a failure")
	}
}

func TestConcise_IsWhatDmsetupReads(t *testing.T) {
	got := concise(identity{"a", "u"}, []string{"0 8 linear 254:0 0", "8 8 linear 254:1 0"})
	if want := "a,u,,ro,0 8 linear 254:0 0,8 8 linear 254:1 0"; got != want {
		t.Errorf("got %q", got)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("domfs-s:xvda:p1 : 0 8192 /dev/mapper/domfs-s:xvda 2048\ndomfs-s:xvda:p5 : 0 20480 /dev/dm-0 2048\n")
	f.Fuzz(func(t *testing.T, out string) {
		got, err := parseList(out, identity{name: "domfs-s:xvda"})
		if err == nil {
			for n, s := range got {
				if n < 1 || s.start < 0 || s.length < 0 {
					t.Errorf("%d: %+v", n, s)
				}
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	d, _ := newIdentity("s", "lvm/"+strings.Repeat("v", 63)+"/"+strings.Repeat("l", 60), true)
	f.Add(d.name, d.uuid)
	f.Fuzz(func(t *testing.T, name, uuid string) {
		set, path, ok := identity{name, uuid}.parse()
		if !ok {
			return
		}
		if again, err := newIdentity(set, path, false); err == nil {
			s, p, ok := again.parse()
			if !ok || !reflect.DeepEqual([]string{s, p}, []string{set, path}) {
				t.Errorf("%q of %q is read again as %q of %q", path, set, p, s)
			}
		}
	})
}

func TestFit_LeavesOutWhatIsTooMuch(t *testing.T) {
	parts := func(n int) (out []backend.MapPart) {
		for i := range n {
			out = append(out, backend.MapPart{Name: fmt.Sprintf("p%d", i+1)})
		}
		return out
	}
	volumes := func(n int) (out []backend.MapVolume) {
		for i := range n {
			out = append(out, backend.MapVolume{Name: fmt.Sprintf("lvm/vg0/v%d", i)})
		}
		return out
	}
	for _, c := range []struct {
		parts, volumes         int
		keptParts, keptVolumes int
		left                   string
	}{
		{3, 5, 3, 5, "[]"},
		{10, maxMappings, 10, maxMappings - 12, fmt.Sprintf("[lvm/vg0/v%d]", maxMappings-12)},
		{maxMappings - 2, 0, maxMappings - 2, 0, "[]"},
		{maxMappings, 7, maxMappings - 2, 0, fmt.Sprintf("[xvda/p%d lvm/vg0/v0]", maxMappings-1)},
	} {
		r := backend.MapRequest{Disks: []backend.MapDisk{{VDev: "xvda", Parts: parts(c.parts)}, {VDev: "xvdb"}}, Volumes: volumes(c.volumes)}
		got, left := fit(r)
		var names []string
		for _, u := range left {
			names = append(names, u.Name)
			if !errors.Is(u.Err, backend.ErrUnsupported) {
				t.Errorf("%v", u.Err)
			}
		}
		if len(got.Disks[0].Parts) != c.keptParts || len(got.Volumes) != c.keptVolumes || fmt.Sprint(names) != c.left {
			t.Errorf("of %d partitions and %d volumes %d and %d are kept, left %v; want %+v", c.parts, c.volumes, len(got.Disks[0].Parts), len(got.Volumes), names, c)
		}
		if len(r.Disks[0].Parts) != c.parts {
			t.Error("the request was changed")
		}
	}
}

func TestHeight_OfAVolumeIsAboveItsPartitionWhateverItIsCalled(t *testing.T) {
	for path, want := range map[string]int{"xvda": 0, "xvda/p1": 1, "xvda/p1/p5": 1, "lvm/vg0/root": 2, "lvm/p1/p2": 2, "md/p1/p2": 2} {
		if got := height(path); got != want {
			t.Errorf("height of %s is %d, want %d", path, got, want)
		}
	}
}

func TestVolumeTable_TakesWholeLogicalBlocksOnly(t *testing.T) {
	find := func(string) (place, int64, bool) { return place{device: "254:1", sector: 8, block: 8}, 4096, true }
	for _, c := range []struct {
		offset, length int64
		ok             bool
	}{{0, 4096, true}, {4096, 8192, true}, {512, 4096, false}, {0, 512, false}, {4096, 4608, false}} {
		v := backend.MapVolume{Name: "lvm/vg0/a", SizeBytes: c.length, Segments: []backend.MapSegment{{Length: c.length, Targets: []backend.MapTarget{{Member: "xvda", Offset: c.offset}}}}}
		if _, err := volumeTable(v, find); (err == nil) != c.ok || err != nil && !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("%d bytes at %d: %v", c.length, c.offset, err)
		}
	}
}

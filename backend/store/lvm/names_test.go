package lvm

import (
	"errors"
	"strings"
	"testing"

	"domfs/backend"
)

func originNamed(vgName, name string) *lv {
	g := &vg{name: vgName, extentBytes: 4 << 20, writeable: true}
	l := &lv{vg: g, name: name, segtype: "linear", lastSegtype: "linear", stripes: 1, lastStripes: 1, copies: 1, sizeBytes: 64 << 20}
	g.lvs = []*lv{l}
	return l
}

func TestSnapshotName_IsLegalAndBounded(t *testing.T) {
	const set, vdev = "20260203T040506000-k3q7x2m9p4", "xvda"
	for _, test := range []struct {
		name, vg, origin string
		want             string // with * for the hash
		err              error
	}{
		{name: "short", vg: "vg0", origin: "web-01", want: "domfs-web-01-*"},
		{name: "every byte", vg: "vg0", origin: "a+Z_0.9-", want: "domfs-a+Z_0.9--*"},
		{name: "long", vg: "vg0", origin: strings.Repeat("a", 118), want: "domfs-" + strings.Repeat("a", 127-4-len("vg0-domfs----")-12) + "-*"},
		{name: "hyphens count twice", vg: "v-g", origin: strings.Repeat("-", 50), want: "domfs-" + strings.Repeat("-", 48) + "-*"},
		{name: "reserved in later versions", vg: "vg0", origin: "db_vdata", want: "domfs-db.vdata-*"},
		{name: "long VG", vg: strings.Repeat("v", 100), origin: "a", want: "domfs-a-*"},
		{name: "longest VG", vg: strings.Repeat("v", 101), origin: "a", want: "domfs--*"},
		{name: "VG too long", vg: strings.Repeat("v", 102), origin: "a", err: backend.ErrUnsupported},
		{name: "VG of hyphens", vg: strings.Repeat("-", 60), origin: "a", err: backend.ErrUnsupported},
		{name: "no room for the origin's own layer", vg: "vg0", origin: strings.Repeat("a", 119), err: backend.ErrUnsupported},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := originNamed(test.vg, test.origin)
			got, err := snapshotName(o, set, vdev)
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			before, _, _ := strings.Cut(test.want, "*")
			if !strings.HasPrefix(got, before) || len(got) != len(before)+hashDigits {
				t.Errorf("%q, want %q", got, test.want)
			}
			if n := len(dmName(test.vg, got) + cowLayer); n > maxDMName {
				t.Errorf("%q makes a device's name of %d bytes", got, n)
			}
			if !isOurName(got) {
				t.Errorf("%q is not known again", got)
			}
			if again, _ := snapshotName(o, set, vdev); again != got {
				t.Errorf("%q, then %q", got, again)
			}
			for _, other := range [][2]string{{set + "x", vdev}, {set, "xvdb"}} {
				if name, _ := snapshotName(o, other[0], other[1]); name == got {
					t.Errorf("%v has the name of another: %q", other, name)
				}
			}
		})
	}
}

func TestIsOurName_KnowsTheForm(t *testing.T) {
	for name, want := range map[string]bool{
		"domfs-web-0123456789ab": true, "domfs--0123456789ab": true, "domfs-0123456789ab": false, "domfs-web": false, "web-0123456789ab": false,
		"domfs-web-0123456789aB": false, "domfs-web-0123456789a": false, "domfs-": false, "": false,
	} {
		if got := isOurName(name); got != want {
			t.Errorf("isOurName(%q) = %t", name, got)
		}
	}
}

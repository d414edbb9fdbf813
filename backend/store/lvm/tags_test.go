package lvm

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend"
)

// legalTag is lvm(8), TAGS.
var legalTag = regexp.MustCompile(`^[a-zA-Z0-9_+./=!:#&][a-zA-Z0-9_+./=!:#&-]*$`)

func fullMeta() backend.SnapshotMeta {
	return backend.SnapshotMeta{
		Set: "20260203T040506000-k3q7x2m9p4", Name: "before <upgrade> & \"é\" +1", DomainName: "web-01", DomainUUID: "7d3f2f6e-3c1b-4c39-9d2e-2f8f2f0f3a55",
		Disk:      backend.Disk{VDev: "xvda", Backend: "phy", Format: "raw", Source: "/dev/vg0/web 01,\xff\n", Mode: backend.ReadWrite, CDROM: true, Script: "block-iscsi", BackendDomain: "dd"},
		DiskCount: 3, Created: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC), Consistency: backend.ConsistencyPaused, State: backend.SnapshotActive,
		Expires: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Hold: true,
	}
}

func checkTags(t *testing.T, m backend.SnapshotMeta) {
	t.Helper()
	tags, err := formatTags(m)
	if err != nil {
		if !errors.Is(err, backend.ErrInvalid) {
			t.Fatal(err)
		}
		return
	}
	total := 0
	for _, tag := range tags {
		if !legalTag.MatchString(tag) || len(tag) > 1024 {
			t.Fatalf("%q is no tag of LVM", tag)
		}
		total += len(tag)
	}
	if total > maxRecord {
		t.Errorf("%d bytes of tags", total)
	}
	tags = append(tags, "owner=backup", "nightly")
	rand.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
	got, ok := parseTags(tags)
	if ok != (m.Set != "") {
		t.Fatalf("ok is %t", ok)
	}
	if !ok {
		return
	}
	if m.Disk.VDev != "" && m.State != "" {
		if err := recordFault(tags); err != nil {
			t.Error(err)
		}
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, want %+v", got, m)
	}
}

func TestTags_HoldAnyRecord(t *testing.T) {
	full := fullMeta()
	checkTags(t, full)
	for i := range reflect.TypeOf(full).NumField() {
		m := full
		reflect.ValueOf(&m).Elem().Field(i).SetZero()
		checkTags(t, m)
	}
	for _, text := range []string{strings.Repeat("x", 255), strings.Repeat("é", 127), "#", "%41", " ", "-", "a=b", "domfs.v1", "日本語", "\x00\x01\xff", strings.Repeat("#", 255)} {
		m := full
		m.Name = text
		checkTags(t, m)
	}
	for n := 890; n < 910; n++ { // around a tag's end, with an escape there
		m := full
		m.Disk.Source = strings.Repeat("a", n) + "é é" + strings.Repeat("b", n)
		checkTags(t, m)
	}
	m := full
	m.Disk.Source = "/" + strings.Repeat("é", 2000) // PATH_MAX
	checkTags(t, m)
	if _, err := formatTags(m); err != nil {
		t.Errorf("a path of PATH_MAX bytes: %v", err)
	}
	m.Disk.Source = strings.Repeat("x", 20<<10)
	if _, err := formatTags(m); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a source of 20 KiB: %v, want ErrInvalid", err)
	}
	m = full
	m.Created = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := formatTags(m); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("the year 12026: %v, want ErrInvalid", err)
	}
}

func TestTags_OfOthersAreNoRecord(t *testing.T) {
	for _, tags := range [][]string{nil, {"backup"}, {"domfs"}, {"domfs.set=x"}, {"domfs.v1"}, {"domfs.version=1", "domfs.set=x"}, {"domfs.v", "domfs.set=x"}, {"domfs.v1", "domfs.set="}} {
		if m, ok := parseTags(tags); ok {
			t.Errorf("%q is a record: %+v", tags, m)
		}
	}
}

func TestRecordFault_SaysWhatIsWrong(t *testing.T) {
	good, err := formatTags(fullMeta())
	if err != nil {
		t.Fatal(err)
	}
	without := func(prefix string) []string {
		return slices.DeleteFunc(slices.Clone(good), func(tag string) bool { return strings.HasPrefix(tag, prefix) })
	}
	for _, test := range []struct {
		name string
		tags []string
		want error
	}{
		{"whole", good, nil},
		{"another's tags", append(slices.Clone(good), "x", "domfs", "domfsx=1"), nil},
		{"a later version", append(without(versionTag), "domfs.v2"), backend.ErrUnsupported},
		{"two versions", append(slices.Clone(good), "domfs.v2"), backend.ErrUnsupported},
		{"no state", without("domfs.state"), backend.ErrCorrupt},
		{"no disk", without("domfs.vdev"), backend.ErrCorrupt},
		{"two states", append(slices.Clone(good), "domfs.state=removing"), backend.ErrCorrupt},
		{"half an escape", append(without("domfs.name"), "domfs.name=a#4"), backend.ErrCorrupt},
		{"an escape of what needs none", append(without("domfs.name"), "domfs.name=#41"), backend.ErrCorrupt},
		{"not escaped", append(without("domfs.name"), "domfs.name=a&b"), backend.ErrCorrupt},
		{"a part is missing", append(slices.Clone(good), "domfs.name.3=x"), backend.ErrCorrupt},
		{"no number", append(without("domfs.disks"), "domfs.disks=x"), backend.ErrCorrupt},
		{"no time", append(without("domfs.created"), "domfs.created=now"), backend.ErrCorrupt},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, ok := parseTags(test.tags); !ok {
				t.Error("it is no record of ours")
			}
			err := recordFault(test.tags)
			if test.want == nil && err != nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

func TestChangeOfTags_LeavesWhatIsEqual(t *testing.T) {
	m := fullMeta()
	from, _ := formatTags(m)
	m.State, m.Hold = backend.SnapshotRemoving, false
	to, _ := formatTags(m)
	add, del := changeOfTags(from, to)
	if !slices.Equal(add, []string{"domfs.state=removing"}) || !slices.Equal(del, []string{"domfs.state=active", "domfs.hold=1"}) {
		t.Errorf("add %q, delete %q", add, del)
	}
}

func FuzzTags(f *testing.F) {
	m := fullMeta()
	f.Add(m.Set, m.Name, m.DomainName, m.Disk.Source, "xvda", int64(1_770_000_000), 3, "x")
	f.Add("set", strings.Repeat("é", 450)+"#", "", "", "", int64(-1), -1, "domfs.v2")
	f.Add("s", "n", "d", "s", "v", int64(0), 0, "domfs.state.2=active")
	f.Fuzz(func(t *testing.T, set, name, domain, source, vdev string, created int64, disks int, tag string) {
		m := backend.SnapshotMeta{Set: set, Name: name, DomainName: domain, DiskCount: max(disks, 0), State: backend.SnapshotPending,
			Disk: backend.Disk{VDev: vdev, Source: source}}
		if created != 0 {
			m.Created = time.Unix(created%1e11, created%1e9&(1<<30-1)%1e9).UTC()
		}
		if m.Created.Year() < 1 {
			m.Created = time.Time{}
		}
		checkTags(t, m)
		// Whatever tags there are: no panic, and the same answer in any order.
		tags := append(strings.Split(name, ","), tag, "domfs.v1", "domfs.set=x", "domfs."+source)
		a, _ := parseTags(tags)
		slices.Reverse(tags)
		if b, _ := parseTags(tags); !reflect.DeepEqual(a, b) {
			t.Errorf("%+v, and in another order %+v", a, b)
		}
	})
}

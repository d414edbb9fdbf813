package lvm2

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"domfs/backend"
)

func TestAssemble_ReadsSegmentsInOrder(t *testing.T) {
	// Segments are written in the wrong order, and a list ends in a comma-less line.
	text := textOf("vg0", 3, 2, volumeText("data", shown, linear(2, 1, "pv0", 5), linear(0, 2, "pv1", 3)))
	a, b := newPV(testUUID("0"), 8, text), newPV(testUUID("1"), 8, text)
	g := assembleOne(t, a, b)
	if g.Name != "vg0" || g.UUID != testUUID("v") || len(g.Warnings) != 0 {
		t.Errorf("group %s %s, warnings %q", g.Name, g.UUID, g.Warnings)
	}
	v := volumeNamed(t, g, "data")
	want := bytes.Join([][]byte{extent(b, 3), extent(b, 4), extent(a, 5)}, nil)
	if !bytes.Equal(contents(t, v), want) {
		t.Error("bytes differ")
	}
	segments := fmt.Sprint(v.Segments)
	if wantSegments := fmt.Sprint([]backend.MapSegment{
		{Start: 0, Length: 2 * testExtent, Targets: []backend.MapTarget{{Member: "xvdb", Offset: testStart + 3*testExtent}}},
		{Start: 2 * testExtent, Length: testExtent, Targets: []backend.MapTarget{{Member: "xvda", Offset: testStart + 5*testExtent}}},
	}); segments != wantSegments {
		t.Errorf("segments %s, want %s", segments, wantSegments)
	}
}

func TestAssemble_ReadsTextThatWrapsAroundTheBuffer(t *testing.T) {
	text := textOf("vg0", 3, 1, volumeText("data", shown, linear(0, 1, "pv0", 2)))
	area := location{4096, testStart - 4096}
	for _, back := range []int{1, 100, len(text), len(text) + 1} {
		a := newPV(testUUID("0"), 4, "")
		writeArea(a, area, text, int(area.size)-back)
		v := volumeNamed(t, assembleOne(t, a), "data")
		if !bytes.Equal(contents(t, v), extent(a, 2)) {
			t.Errorf("%d bytes before the end: bytes differ", back)
		}
	}
}

func TestAssemble_TakesTheNewestOfAllAreas(t *testing.T) {
	old := textOf("vg0", 7, 2, volumeText("old", shown, linear(0, 1, "pv0", 0)))
	newer := textOf("vg0", 8, 2, volumeText("new", shown, linear(0, 1, "pv1", 1)))
	a, b := newPV(testUUID("0"), 4, old), newPV(testUUID("1"), 4, newer)
	for _, order := range [][]backend.Device{{a, b}, {b, a}} {
		if got := names(assembleOne(t, order...)); got != "new" {
			t.Errorf("volumes %s", got)
		}
	}
}

func TestAssemble_IgnoredAndUncommittedTextDoesNotCount(t *testing.T) {
	good := textOf("vg0", 3, 2, volumeText("good", shown, linear(0, 1, "pv0", 0)))
	bad := textOf("vg0", 9, 2, volumeText("bad", shown, linear(0, 1, "pv0", 0)))
	a, b := newPV(testUUID("0"), 4, good), newPV(testUUID("1"), 4, bad)
	h := b[4096 : 4096+mdaHeaderSize]
	le.PutUint32(h[60:], locnIgnored)
	le.PutUint32(h, crc(h[4:]))
	if got := names(assembleOne(t, a, b)); got != "good" {
		t.Errorf("volumes %s of an ignored area", got)
	}
	// The same as text that was written, but not committed: slot 1.
	copy(h[64:88], h[40:64])
	le.PutUint32(h[84:], 0)
	clear(h[40:64])
	le.PutUint32(h, crc(h[4:]))
	if got := names(assembleOne(t, a, b)); got != "good" {
		t.Errorf("volumes %s of uncommitted text", got)
	}
}

func TestAssemble_DamageIsAWarning(t *testing.T) {
	text := textOf("vg0", 3, 2, volumeText("data", shown, linear(0, 1, "pv1", 0)))
	for name, damage := range map[string]func(memory){
		"magic":    func(m memory) { m[4096+4]++ },
		"header":   func(m memory) { m[4096+45]++ },
		"text":     func(m memory) { m[4096+mdaHeaderSize+20]++ },
		"location": func(m memory) { h := m[4096:4608]; le.PutUint64(h[40:], 1<<40); le.PutUint32(h, crc(h[4:])) },
		"size":     func(m memory) { h := m[4096:4608]; le.PutUint64(h[48:], 1<<40); le.PutUint32(h, crc(h[4:])) },
	} {
		a, b := newPV(testUUID("0"), 4, text), newPV(testUUID("1"), 4, text)
		damage(a)
		g := assembleOne(t, a, b)
		if !hasWarning(g.Warnings, "metadata area 1 of xvda") {
			t.Errorf("%s: warnings %q", name, g.Warnings)
		}
		if !bytes.Equal(contents(t, volumeNamed(t, g, "data")), extent(b, 0)) {
			t.Errorf("%s: bytes differ", name)
		}
	}
}

func TestAssemble_WithoutGoodMetadataOrLabelIsAWarning(t *testing.T) {
	text := textOf("vg0", 3, 1, "")
	a := newPV(testUUID("0"), 4, text)
	a[4096+100]++
	groups, warnings := assembleAll(a)
	if len(groups) != 0 || !hasWarning(warnings, "xvda", "checksum") || !hasWarning(warnings, "xvda", "no metadata") {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
	b := newPV(testUUID("0"), 4, text)
	b[512+40]++
	if groups, warnings = assembleAll(b); len(groups) != 0 || !hasWarning(warnings, "xvda", "label in sector 1") {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
	if groups, warnings = assembleAll(make(memory, 4096)); len(groups) != 0 || len(warnings) != 1 {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
	// A physical volume that is in no group is nothing to speak of.
	c := newPV(testUUID("0"), 4, "")
	writeLabel(c, 0, testUUID("0"), []location{{testStart, 0}}, []location{{4096, testStart - 4096}})
	le.PutUint32(c[72+4*16+4:], 0)
	le.PutUint32(c[16:], crc(c[20:512]))
	if groups, warnings = assembleAll(c); len(groups) != 0 || len(warnings) != 0 {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
}

func TestAssemble_FindsLabelInEachOfFourSectors(t *testing.T) {
	text := textOf("vg0", 3, 1, volumeText("data", shown, linear(0, 1, "pv0", 2)))
	for sector := range 5 {
		a := newPV(testUUID("0"), 4, text)
		clear(a[512:1024])
		writeLabel(a, sector, testUUID("0"), []location{{testStart, 0}}, []location{{4096, testStart - 4096}})
		groups, warnings := assembleAll(a)
		if found := len(groups) == 1; found != (sector < 4) {
			t.Errorf("sector %d: %d groups, %q", sector, len(groups), warnings)
		}
	}
}

func TestAssemble_MissingPhysicalVolumeHidesNothingElse(t *testing.T) {
	text := textOf("vg0", 3, 3, volumeText("here", shown, linear(0, 1, "pv0", 2))+
		volumeText("half", shown, linear(0, 1, "pv0", 1), linear(1, 1, "pv1", 0))+
		volumeText("gone", shown, linear(0, 1, "pv1", 1)))
	a, c := newPV(testUUID("0"), 4, text), newPV(testUUID("2"), 4, text)
	g := assembleOne(t, a, nil, c)
	if !bytes.Equal(contents(t, volumeNamed(t, g, "here")), extent(a, 2)) {
		t.Error("bytes differ")
	}
	for _, name := range []string{"half", "gone"} {
		v := volumeNamed(t, g, name)
		if !errors.Is(v.Err, backend.ErrNoDevice) || v.Device != nil || v.Segments != nil ||
			!strings.Contains(v.Err.Error(), testUUID("1")) || !strings.Contains(v.Err.Error(), "/dev/xvdb") || !strings.Contains(v.Err.Error(), "vg0/"+name) {
			t.Errorf("%s: %v", name, v.Err)
		}
	}
	if !hasWarning(g.Warnings, "pv1", testUUID("1"), "missing", "2 of the group's volumes") {
		t.Errorf("warnings %q", g.Warnings)
	}
}

func TestAssemble_OfTwoCopiesTheNewerIsUsedAndTheOtherNamed(t *testing.T) {
	old := textOf("vg0", 7, 1, volumeText("data", shown, linear(0, 1, "pv0", 0)))
	newer := textOf("vg0", 8, 1, volumeText("data", shown, linear(0, 1, "pv0", 1)))
	a, b := newPV(testUUID("0"), 4, old), newPV(testUUID("0"), 4, newer)
	copy(b[testStart:], bytes.Repeat([]byte("new "), testExtent))
	for i, order := range [][]backend.Device{{a, b}, {b, a}} {
		g := assembleOne(t, order...)
		if !bytes.Equal(contents(t, volumeNamed(t, g, "data")), extent(b, 1)) {
			t.Errorf("order %d: bytes of the older copy", i)
		}
		used, other := []string{"xvdb", "xvda"}[i], []string{"xvda", "xvdb"}[i]
		if !hasWarning(g.Warnings, used+" is used", "newer") || !hasWarning(g.Warnings, other+" are both", testUUID("0")) && !hasWarning(g.Warnings, "and "+other) {
			t.Errorf("order %d: warnings %q", i, g.Warnings)
		}
	}
	// Two that are equal: the first, and not silently.
	g := assembleOne(t, a, append(memory{}, a...))
	if !hasWarning(g.Warnings, "xvda is used", "as new") {
		t.Errorf("warnings %q", g.Warnings)
	}
}

func TestAssemble_PhysicalVolumeThatLeftTheGroupIsNotUsed(t *testing.T) {
	old := textOf("vg0", 7, 2, volumeText("data", shown, linear(0, 1, "pv1", 0)))
	newer := textOf("vg0", 8, 1, volumeText("data", shown, linear(0, 1, "pv0", 1)))
	a, b := newPV(testUUID("0"), 4, newer), newPV(testUUID("1"), 4, old)
	g := assembleOne(t, a, b)
	if !bytes.Equal(contents(t, volumeNamed(t, g, "data")), extent(a, 1)) || !hasWarning(g.Warnings, "xvdb", "no longer") {
		t.Errorf("warnings %q", g.Warnings)
	}
}

func TestAssemble_TwoGroupsOfOneName(t *testing.T) {
	one := textOf("vg0", 7, 1, volumeText("data", shown, linear(0, 1, "pv0", 0)))
	two := strings.ReplaceAll(strings.ReplaceAll(one, testUUID("v"), testUUID("w")), testUUID("0"), testUUID("5"))
	a, b := newPV(testUUID("0"), 4, one), newPV(testUUID("5"), 4, two)
	groups, warnings := assembleAll(a, b)
	if len(groups) != 2 || groups[0].Name != "vg0" || groups[1].Name != "vg0@wwwwwwww" || !hasWarning(warnings, "vg0@wwwwwwww") {
		t.Fatalf("groups %v, warnings %q", groups, warnings)
	}
	for i, m := range []memory{a, b} {
		if !bytes.Equal(contents(t, volumeNamed(t, groups[i], "data")), extent(m, 0)) {
			t.Errorf("%s: bytes differ", groups[i].Name)
		}
	}
}

func TestAssemble_ListsWhatTheGuestSees(t *testing.T) {
	text := textOf("vg0", 3, 1,
		volumeText("data", shown, linear(0, 1, "pv0", 0))+
			volumeText("lvol0_pmspare", hidden, linear(0, 1, "pv0", 1))+
			volumeText("pool_tdata", hidden, linear(0, 1, "pv0", 2))+
			volumeText("pool_tmeta", hidden, linear(0, 1, "pv0", 3))+
			volumeText("pool", shown, "start_extent = 0\nextent_count = 1\ntype = \"thin-pool\"\nmetadata = \"pool_tmeta\"\npool = \"pool_tdata\"\ntransaction_id = 0\nchunk_size = 128")+
			volumeText("a+b.c-d_1", shown, linear(0, 1, "pv0", 0))) +
		"\n"
	if got := names(assembleOne(t, newPV(testUUID("0"), 4, text))); got != "a+b.c-d_1 data" {
		t.Errorf("volumes %s", got)
	}
}

func TestAssemble_NamesThatAreNoDirectoriesAreNotShown(t *testing.T) {
	for _, name := range []string{`"."`, `".."`, `"a/b"`, `"a b"`, `"-a"`, `"` + strings.Repeat("x", 128) + `"`, "\"a\xff\""} {
		section := strings.Replace(volumeText("NAME", shown, linear(0, 1, "pv0", 0)), "NAME", name, 1)
		g := assembleOne(t, newPV(testUUID("0"), 4, textOf("vg0", 3, 1, section)))
		if len(g.Volumes) != 0 || !hasWarning(g.Warnings, "LVM takes no such name") {
			t.Errorf("%s: volumes %s, warnings %q", name, names(g), g.Warnings)
		}
		groups, warnings := assembleAll(newPV(testUUID("0"), 4, textOf(name, 3, 1, "")))
		if len(groups) != 0 || !hasWarning(warnings, "no name of a volume group") {
			t.Errorf("group %s: %d groups, %q", name, len(groups), warnings)
		}
	}
}

func TestAssemble_PhysicalVolumeThatWasMissingIsReadWithAWarning(t *testing.T) {
	flagged := func(text string) string {
		return strings.Replace(text, "device = \"/dev/xvda\"\nstatus = [\"ALLOCATABLE\"]\nflags = []", "device = \"/dev/xvda\"\nstatus = [\"ALLOCATABLE\"]\nflags = [\"MISSING\"]", 1)
	}
	a := newPV(testUUID("0"), 4, flagged(textOf("vg0", 3, 1, volumeText("data", shown, linear(0, 1, "pv0", 0)))))
	g := assembleOne(t, a)
	if !bytes.Equal(contents(t, volumeNamed(t, g, "data")), extent(a, 0)) || !hasWarning(g.Warnings, "pv0", "xvda", "was missing") {
		t.Errorf("warnings %q", g.Warnings)
	}
	// A leg that may be old is not read where there is another.
	pvs := raid1Of(healthy(1, 0, 0), healthy(1, 0, 0))
	budget := int64(maxTextTotal)
	text, err := readArea(pvs[0], location{4096, testStart - 4096}, &budget)
	if err != nil {
		t.Fatal(err)
	}
	for _, pv := range pvs {
		writeArea(pv, location{4096, testStart - 4096}, flagged(text), mdaHeaderSize)
	}
	g = assembleOne(t, devicesOf(pvs)...)
	if !bytes.Equal(contents(t, volumeNamed(t, g, "r")), leg(pvs[1])) || !hasWarning(g.Warnings, "r_rimage_0", "was missing") {
		t.Errorf("warnings %q", g.Warnings)
	}
}

func TestAssemble_TruncatedDiskHidesOnlyWhatIsCutOff(t *testing.T) {
	text := strings.Replace(textOf("vg0", 3, 1, volumeText("a", shown, linear(0, 1, "pv0", 0))+volumeText("b", shown, linear(0, 1, "pv0", 3))), "dev_size = 1\n", "dev_size = 640\n", 1)
	a := newPV(testUUID("0"), 4, text)
	whole := assembleOne(t, a)
	if len(whole.Warnings) != 0 {
		t.Errorf("warnings %q", whole.Warnings)
	}
	g := assembleOne(t, a[:len(a)-1])
	if !bytes.Equal(contents(t, volumeNamed(t, g, "a")), extent(a, 0)) || !errors.Is(volumeNamed(t, g, "b").Err, backend.ErrCorrupt) || !hasWarning(g.Warnings, "xvda has", "past the end") {
		t.Errorf("b: %v, warnings %q", volumeNamed(t, g, "b").Err, g.Warnings)
	}
}

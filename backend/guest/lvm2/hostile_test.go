package lvm2

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
)

// readSome reads what a hostile group's volumes have at their ends and in the middle.
func readSome(t testing.TB, groups []backend.Group) {
	t.Helper()
	for _, g := range groups {
		if !legalName(strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(g.Name, "@", ""), "!", ""), "#", "")) {
			t.Errorf("group %q", g.Name)
		}
		for i, v := range g.Volumes {
			if !legalName(v.Name) || i > 0 && g.Volumes[i-1].Name >= v.Name {
				t.Errorf("volume %q after %q", v.Name, g.Volumes[max(i, 1)-1].Name)
			}
			if (v.Err == nil) == (v.Device == nil) {
				t.Errorf("%s: device %v, error %v", v.Name, v.Device, v.Err)
			}
			if v.Err != nil {
				continue
			}
			size := v.Device.Size()
			if size <= 0 {
				t.Errorf("%s has %d bytes", v.Name, size)
			}
			b := make([]byte, 3000)
			for _, off := range []int64{0, 511, size / 2, size - 1, size, size - 2000} {
				n, err := v.Device.ReadAt(b, max(0, off))
				if n < len(b) && err == nil || n > len(b) {
					t.Errorf("%s: read at %d gives %d bytes and no error", v.Name, off, n)
				}
				if s, ok := v.Device.(backend.Sparse); ok {
					if at, err := s.NextData(max(0, off)); err == nil && (at < off || at >= size) {
						t.Errorf("%s: data after %d at %d", v.Name, off, at)
					}
					if at, err := s.NextHole(max(0, off)); err == nil && (at < off || at > size) {
						t.Errorf("%s: hole after %d at %d", v.Name, off, at)
					}
				}
				if l, ok := v.Device.(backend.Locator); ok {
					l.Locate(off, 100)
				}
			}
			if n, err := v.Device.ReadAt(b[:1], size); n != 0 || err != io.EOF {
				t.Errorf("%s: read at the end: %d, %v", v.Name, n, err)
			}
			if _, err := v.Device.ReadAt(b[:1], -1); err == nil {
				t.Errorf("%s: read before the beginning", v.Name)
			}
			var end int64
			for _, s := range v.Segments {
				if s.Start != end || s.Length <= 0 || len(s.Targets) == 0 {
					t.Errorf("%s: segments %+v", v.Name, v.Segments)
				}
				end += s.Length
			}
		}
	}
}

func TestHostile_SegmentsAreErrors(t *testing.T) {
	good := linear(0, 1, "pv0", 1)
	for name, segments := range map[string][]string{
		"past the end of the physical volume": {linear(0, 1, "pv0", 100)},
		"longer than the physical volume":     {linear(0, 4294967295, "pv0", 0)},
		"more extents than 32 bits":           {linear(0, 4294967296, "pv0", 0)},
		"negative extent":                     {linear(0, 1, "pv0", -1)},
		"offset past 32 bits":                 {linear(0, 1, "pv0", 1<<40)},
		"empty":                               {linear(0, 0, "pv0", 0)},
		"gap":                                 {good, linear(2, 1, "pv0", 0)},
		"overlap":                             {linear(0, 2, "pv0", 0), linear(1, 1, "pv0", 0)},
		"first missing":                       {linear(1, 1, "pv0", 0)},
		"unknown place":                       {linear(0, 1, "pv9", 0)},
		"itself":                              {linear(0, 1, "a", 0)},
		"group's own name":                    {linear(0, 1, "vg0", 0)},
		"none":                                {},
		"stripe_count of 2^31":                {strings.Replace(good, "stripe_count = 1", "stripe_count = 2147483648", 1)},
		"stripe_count of 0":                   {strings.Replace(good, "stripe_count = 1", "stripe_count = 0", 1)},
		"stripe_count of 2":                   {strings.Replace(good, "stripe_count = 1", "stripe_count = 2", 1)},
		"no stripes":                          {strings.Replace(good, "stripes = [\n\"pv0\", 1\n]", "", 1)},
		"stripes is a section":                {strings.Replace(good, "stripes = [\n\"pv0\", 1\n]", "stripes { }", 1)},
		"extents before places":               {strings.Replace(good, "\"pv0\", 1", "1, \"pv0\"", 1)},
		"chunks of 0":                         {stripedText(0, 2, 0, place("pv0", 0), place("pv0", 1))},
		"chunks of -1":                        {stripedText(0, 2, -1, place("pv0", 0), place("pv0", 1))},
		"chunks of 2^40":                      {stripedText(0, 2, 1<<40, place("pv0", 0), place("pv0", 1))},
		"chunks larger than the leg":          {stripedText(0, 2, 1<<20, place("pv0", 0), place("pv0", 1))},
		"odd number of extents":               {stripedText(0, 3, 8, place("pv0", 0), place("pv0", 1))},
		"second stripe past the end":          {stripedText(0, 2, 8, place("pv0", 0), place("pv0", 1000))},
		"mirror of nothing":                   {mirrorText(1, "")},
		"mirror of itself":                    {mirrorText(1, "", place("a", 0), place("pv0", 0))},
		"raid of nothing":                     {raidText("raid1", "a", 1, 0, "")},
		"raid of 2^31 legs":                   {strings.Replace(raidText("raid1", "a", 1, 0, ""), "device_count = 0", "device_count = 2147483648", 1)},
		"raid of itself":                      {"start_extent = 0\nextent_count = 1\ntype = \"raid1\"\ndevice_count = 2\nraids = [ \"a\", \"a\" ]"},
		"raid of physical volumes":            {"start_extent = 0\nextent_count = 1\ntype = \"raid1\"\ndevice_count = 1\nraids = [ \"pv0\" ]"},
		"thin of itself":                      {"start_extent = 0\nextent_count = 1\ntype = \"thin\"\nthin_pool = \"a\"\ndevice_id = 1\ntransaction_id = 1"},
		"cache of itself":                     {"start_extent = 0\nextent_count = 1\ntype = \"cache\"\ncache_pool = \"a\"\norigin = \"a\""},
		"type is a number":                    {"start_extent = 0\nextent_count = 1\ntype = 5"},
		"start is a string":                   {strings.Replace(good, "start_extent = 0", "start_extent = \"0\"", 1)},
	} {
		text := textOf("vg0", 3, 1, volumeText("a", shown, segments...)+volumeText("b", shown, good))
		pv := newPV(testUUID("0"), 4, text)
		g := assembleOne(t, pv)
		if v := volumeNamed(t, g, "a"); v.Err == nil {
			t.Errorf("%s: no error", name)
		} else if !errors.Is(v.Err, backend.ErrCorrupt) && !errors.Is(v.Err, backend.ErrUnsupported) {
			t.Errorf("%s: %v", name, v.Err)
		}
		contents(t, volumeNamed(t, g, "b"))
		readSome(t, []backend.Group{g})
	}
}

func TestHostile_VolumesOnVolumesAreBounded(t *testing.T) {
	chain := func(n int) string {
		var b strings.Builder
		for i := n - 1; i > 0; i-- { // the uppermost first: order must not matter
			b.WriteString(volumeText(fmt.Sprintf("l%d", i), shown, linear(0, 1, fmt.Sprintf("l%d", i-1), 0)))
		}
		b.WriteString(volumeText("l0", shown, linear(0, 1, "pv0", 0)))
		return textOf("vg0", 3, 1, b.String())
	}
	g := assembleOne(t, newPV(testUUID("0"), 4, chain(12)))
	for i := range 12 {
		v := volumeNamed(t, g, fmt.Sprintf("l%d", i))
		if i <= maxNesting && v.Err != nil || i > maxNesting && !errors.Is(v.Err, backend.ErrCorrupt) {
			t.Errorf("%s: %v", v.Name, v.Err)
		}
	}
	circle := textOf("vg0", 3, 1, volumeText("a", shown, linear(0, 1, "b", 0))+volumeText("b", shown, linear(0, 1, "c", 0))+volumeText("c", shown, linear(0, 1, "a", 0))+volumeText("d", shown, linear(0, 1, "a", 0)))
	for _, v := range assembleOne(t, newPV(testUUID("0"), 4, circle)).Volumes {
		if !errors.Is(v.Err, backend.ErrCorrupt) || !strings.Contains(v.Err.Error(), "on itself") {
			t.Errorf("%s: %v", v.Name, v.Err)
		}
	}
}

func TestHostile_LegsOfLegsAreBounded(t *testing.T) {
	// Each raid has 16 legs, all on the raid before: 16^n reads if all of them fail.
	var b strings.Builder
	b.WriteString(volumeText("l0", shown, linear(0, 1, "pv0", 0)))
	for i := range 7 {
		legs := strings.Repeat(fmt.Sprintf("\"l%d\",", i), 16)
		b.WriteString(volumeText(fmt.Sprintf("l%d", i+1), shown, "start_extent = 0\nextent_count = 1\ntype = \"raid1\"\ndevice_count = 16\nraids = ["+legs+"]"))
	}
	pv := &counted{brokenFrom: brokenFrom{newPV(testUUID("0"), 4, textOf("vg0", 3, 1, b.String())), testStart}}
	g := assembleOne(t, pv)
	for _, v := range g.Volumes {
		if v.Name > "l2" {
			if !errors.Is(v.Err, backend.ErrUnsupported) {
				t.Errorf("%s: %v", v.Name, v.Err)
			}
			continue
		}
		pv.reads.Store(0)
		if err := readErr(v.Device, 0, 100); err == nil {
			t.Errorf("%s: read of a broken device", v.Name)
		}
		if n := pv.reads.Load(); n > maxCost {
			t.Errorf("%s: %d reads", v.Name, n)
		}
	}
}

// counted counts reads.
type counted struct {
	brokenFrom
	reads atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	return c.brokenFrom.ReadAt(p, off)
}

func TestHostile_GroupsAreErrors(t *testing.T) {
	good := textOf("vg0", 3, 1, volumeText("a", shown, linear(0, 1, "pv0", 0)))
	for name, change := range map[string][2]string{
		"extents of 0":           {"extent_size = 128", "extent_size = 0"},
		"extents of 2^63":        {"extent_size = 128", "extent_size = 9223372036854775807"},
		"no extents":             {"extent_size = 128", ""},
		"negative seqno":         {"seqno = 3", "seqno = -1"},
		"seqno is a list":        {"seqno = 3", "seqno = [3, 4]"},
		"no UUID":                {"id = \"" + testUUID("v"), "id = \"short"},
		"physical volume's UUID": {"id = \"" + testUUID("0"), "id = \"short"},
		"pe_start of 2^62":       {"pe_start = 128", "pe_start = 4611686018427387904"},
		"other contents":         {"Text Format Volume Group", "Text Format"},
		"version 2":              {"version = 1", "version = 2"},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		groups, warnings := assembleAll(newPV(testUUID("0"), 4, text))
		if len(groups) != 0 || len(warnings) == 0 {
			t.Errorf("%s: %d groups, warnings %q", name, len(groups), warnings)
		}
	}
	// One that is older and whole is used instead.
	old := textOf("vg0", 2, 2, volumeText("old", shown, linear(0, 1, "pv0", 0)))
	bad := strings.Replace(textOf("vg0", 3, 2, ""), "extent_size = 128", "extent_size = 0", 1)
	g := assembleOne(t, newPV(testUUID("0"), 4, old), newPV(testUUID("1"), 4, bad))
	if names(g) != "old" || !hasWarning(g.Warnings, "sequence number 3 on xvdb") {
		t.Errorf("volumes %s, warnings %q", names(g), g.Warnings)
	}
	// Physical volumes that begin just below 2^63 do not wrap around.
	far := strings.Replace(good, "pe_start = 128", "pe_start = 9007199254740991", 1)
	if v := volumeNamed(t, assembleOne(t, newPV(testUUID("0"), 4, far)), "a"); !errors.Is(v.Err, backend.ErrCorrupt) {
		t.Errorf("first extent at 2^62: %v", v.Err)
	}
}

func TestHostile_HugeVirtualVolumesCostNothing(t *testing.T) {
	zero := func(start, count int64) string {
		return fmt.Sprintf("start_extent = %d\nextent_count = %d\ntype = \"zero\"", start, count)
	}
	text := strings.Replace(textOf("vg0", 3, 1, volumeText("a", shown, zero(0, 4294967295))+volumeText("b", shown, zero(0, 4294967295), zero(4294967295, 4294967295))), "extent_size = 128", "extent_size = 1048576", 1)
	groups, _ := assembleAll(newPV(testUUID("0"), 4, text))
	readSome(t, groups)
	if v := volumeNamed(t, groups[0], "a"); v.Err != nil || v.Device.Size() != 4294967295<<29 {
		t.Errorf("a: %v", v.Err)
	}
	if v := volumeNamed(t, groups[0], "b"); v.Err != nil || v.Device.Size() != 2*4294967295<<29 {
		t.Errorf("b: %v", v.Err)
	}
	text = strings.Replace(text, "extent_size = 1048576", "extent_size = 2147483648", 1)
	if v := volumeNamed(t, assembleOne(t, newPV(testUUID("0"), 4, text)), "b"); !errors.Is(v.Err, backend.ErrCorrupt) {
		t.Errorf("larger than what a file can be: %v", v.Err)
	}
}

func TestHostile_LargeTextIsBoundedInTimeAndMemory(t *testing.T) {
	var volumes strings.Builder
	for i := 0; volumes.Len() < 5<<20; i++ {
		volumes.WriteString(volumeText(fmt.Sprintf("l%d", i), shown, linear(0, 1, "pv0", 1)))
	}
	text := textOf("vg0", 3, 1, volumes.String())
	m := make(memory, 16<<20)
	writeLabel(m, 1, testUUID("0"), []location{{testStart, 0}}, []location{{4096, 10 << 20}})
	writeArea(m, location{4096, 10 << 20}, text, mdaHeaderSize)
	members := make([]backend.Device, 6) // the same text again and again
	for i := range members {
		members[i] = m
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	groups, warnings := assembleAll(members...)
	if len(groups) == 1 {
		t.Logf("%d volumes of %d bytes of text in %v", len(groups[0].Volumes), len(text), time.Since(start))
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<30 {
		t.Errorf("%d MiB allocated", used>>20)
	}
	if len(groups) != 1 || len(groups[0].Warnings) == 0 || len(groups[0].Warnings) > maxWarnings+1 {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
	groups, warnings = assembleAll(make([]backend.Device, maxMembers)...)
	if len(groups)+len(warnings) != 0 {
		t.Errorf("%d groups, warnings %q", len(groups), warnings)
	}
	many := make([]backend.Device, maxMembers+5)
	for i := range many {
		many[i] = make(memory, 512)
	}
	if _, warnings = assembleAll(many...); !hasWarning(warnings, "5 physical volumes were not looked at") || len(warnings) != maxWarnings+1 {
		t.Errorf("%d warnings: %q", len(warnings), warnings)
	}
}

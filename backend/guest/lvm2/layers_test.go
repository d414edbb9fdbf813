package lvm2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"domfs/backend"
)

// snapshotText is a group with an origin of 4 extents on pv0, and a snapshot of it whose store of 3 extents is on pv1.
func snapshotText(store, status string) string {
	return textOf("vg0", 3, 2, volumeText("origin", shown, linear(0, 4, "pv0", 1))+
		volumeText("snap", hidden, linear(0, 3, "pv1", 0))+
		volumeText("snapshot0", status, "start_extent = 0\nextent_count = 4\ntype = \"snapshot\"\nchunk_size = 16\norigin = \"origin\"\n"+store+" = \"snap\""))
}

// snapshotOf has the two physical volumes, and what the snapshot and the origin hold.
func snapshotOf(t *testing.T, text string) (pvs []memory, origin, snap []byte) {
	a, b := newPV(testUUID("0"), 6, text), newPV(testUUID("1"), 6, text)
	origin = a[testStart+testExtent : testStart+5*testExtent]
	snap = bytes.Clone(origin)
	const chunk = 8 << 10
	c := newCOWStore(chunk, 3*testExtent)
	for i, old := range []int64{3, 0, 31, 17} {
		was := bytes.Repeat([]byte{byte('A' + i)}, chunk)
		c.except(t, old, was)
		copy(snap[old*chunk:], was)
	}
	copy(b[testStart:], c.b)
	return []memory{a, b}, origin, snap
}

func TestSnapshot_WhatItWarnsOfIsToldWithItsGroup(t *testing.T) {
	pvs, _, _ := snapshotOf(t, strings.Replace(snapshotText("cow_store", shown), "chunk_size = 16", "chunk_size = 32", 1))
	if g := assembleOne(t, devicesOf(pvs)...); !hasWarning(g.Warnings, "volume snap: ", "chunks of 8192 bytes") {
		t.Errorf("warnings %q", g.Warnings)
	}
}

func TestSnapshot_IsItsOriginAsItWas(t *testing.T) {
	pvs, origin, snap := snapshotOf(t, snapshotText("cow_store", shown))
	g := assembleOne(t, devicesOf(pvs)...)
	if names(g) != "origin snap" || len(g.Warnings) > 0 {
		t.Fatalf("volumes %s, warnings %q", names(g), g.Warnings)
	}
	if !bytes.Equal(contents(t, volumeNamed(t, g, "origin")), origin) || !bytes.Equal(contents(t, volumeNamed(t, g, "snap")), snap) {
		t.Error("bytes differ")
	}
	// Without its store, the origin is still there; without the origin, nothing is.
	g = assembleOne(t, devicesOf(pvs, 1)...)
	if !bytes.Equal(contents(t, volumeNamed(t, g, "origin")), origin) || !errors.Is(volumeNamed(t, g, "snap").Err, backend.ErrNoDevice) {
		t.Error("without the store")
	}
	g = assembleOne(t, devicesOf(pvs, 0)...)
	if err := volumeNamed(t, g, "snap").Err; !errors.Is(err, backend.ErrNoDevice) || !strings.Contains(err.Error(), "its origin origin") {
		t.Errorf("without the origin: %v", err)
	}
	// One that has overflowed is an error at once.
	le.PutUint32(extent(pvs[1], 0)[4:], 0)
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "snap"); !errors.Is(v.Err, backend.ErrIO) || !strings.Contains(v.Err.Error(), "overflowed") {
		t.Errorf("overflowed: %v", v.Err)
	}
}

func TestSnapshot_ThatIsMergedShowsTheOriginAsItWillBe(t *testing.T) {
	pvs, _, snap := snapshotOf(t, snapshotText("merging_store", hidden))
	g := assembleOne(t, devicesOf(pvs)...)
	if names(g) != "origin" || !hasWarning(g.Warnings, "origin", "being merged", "snap") {
		t.Fatalf("volumes %s, warnings %q", names(g), g.Warnings)
	}
	if !bytes.Equal(contents(t, volumeNamed(t, g, "origin")), snap) {
		t.Error("bytes differ")
	}
}

func TestSnapshot_OfItselfOrOfNothingIsNotUsed(t *testing.T) {
	for _, change := range [][2]string{{`origin = "origin"`, `origin = "snap"`}, {`origin = "origin"`, `origin = "none"`}, {`cow_store = "snap"`, `cow_store = 5`}, {"chunk_size = 16", "chunk_size = -1"}} {
		text := strings.Replace(snapshotText("cow_store", shown), change[0], change[1], 1)
		a, b := newPV(testUUID("0"), 6, text), newPV(testUUID("1"), 6, text)
		g := assembleOne(t, a, b)
		if !bytes.Equal(contents(t, volumeNamed(t, g, "origin")), a[testStart+testExtent:testStart+5*testExtent]) || !hasWarning(g.Warnings, "snapshot", "not used") {
			t.Errorf("%s: volumes %s, warnings %q", change[1], names(g), g.Warnings)
		}
	}
}

// thinText is a group with a pool of 16 chunks of 64 KiB on pv0, its metadata of 64 extents on pv1, and volumes.
func thinText(volumes string) string {
	return textOf("vg0", 3, 2, volumeText("pool_tdata", hidden, linear(0, 16, "pv0", 0))+
		volumeText("pool_tmeta", hidden, linear(0, 64, "pv1", 0))+
		volumeText("base", `"READ", "VISIBLE"`, linear(0, 8, "pv0", 16))+
		volumeText("pool", shown, "start_extent = 0\nextent_count = 16\ntype = \"thin-pool\"\nmetadata = \"pool_tmeta\"\npool = \"pool_tdata\"\ntransaction_id = 3\nchunk_size = 128\ndiscards = \"passdown\"\nzero_new_blocks = 1\n\nmessage1 {\ndelete = 9\n}")+volumes)
}

func thinVolume(name, status string, device int, more string) string {
	return volumeText(name, status, fmt.Sprintf("start_extent = 0\nextent_count = 8\ntype = \"thin\"\nthin_pool = \"pool\"\ntransaction_id = 1\ndevice_id = %d\n%s", device, more))
}

func thinPVs(t *testing.T, text string) (pvs []memory, expect func(id uint64, else_ []byte) []byte) {
	t.Helper()
	m := poolMap{chunk: 64 << 10, dataChunks: 16, devices: map[uint64]map[uint64]uint64{1: {0: 5, 3: 2, 7: 9}, 2: {0: 5, 3: 11}, 3: {}, 4: {1: 1}}}
	meta, err := os.ReadFile(m.restore(t, 64*testExtent))
	noError(t, err)
	a, b := newPV(testUUID("0"), 24, text), newPV(testUUID("1"), 64, text)
	copy(b[testStart:], meta)
	return []memory{a, b}, func(id uint64, otherwise []byte) []byte {
		want := bytes.Clone(otherwise)
		if want == nil {
			want = make([]byte, 8*testExtent)
		}
		for v, at := range m.devices[id] {
			copy(want[v*64<<10:], a[testStart+at*64<<10:][:64<<10])
		}
		return want
	}
}

func TestThin_VolumesAreReadThroughTheirPool(t *testing.T) {
	pvs, expect := thinPVs(t, thinText(
		thinVolume("one", shown, 1, "")+thinVolume("two", shown, 2, "origin = \"one\"")+thinVolume("empty", shown, 3, "")+
			thinVolume("over", shown, 4, "external_origin = \"base\"")+thinVolume("lost", shown, 77, "")))
	g := assembleOne(t, devicesOf(pvs)...)
	if names(g) != "base empty lost one over two" || len(g.Warnings) > 0 {
		t.Fatalf("volumes %s, warnings %q", names(g), g.Warnings)
	}
	base := contents(t, volumeNamed(t, g, "base"))
	for name, want := range map[string][]byte{"one": expect(1, nil), "two": expect(2, nil), "empty": expect(3, nil), "over": expect(4, base)} {
		if !bytes.Equal(contents(t, volumeNamed(t, g, name)), want) {
			t.Errorf("%s: bytes differ", name)
		}
	}
	if v := volumeNamed(t, g, "lost"); !errors.Is(v.Err, backend.ErrNotExist) {
		t.Errorf("a device that the pool does not have: %v", v.Err)
	}
	if n, err := volumeNamed(t, g, "empty").Device.(backend.Sparse).NextHole(0); n != 0 || err != nil {
		t.Errorf("an empty volume's hole at %d: %v", n, err)
	}
	// A pool whose metadata are missing.
	for _, v := range assembleOne(t, devicesOf(pvs, 1)...).Volumes {
		if v.Name != "base" && !errors.Is(v.Err, backend.ErrNoDevice) {
			t.Errorf("%s without the pool's metadata: %v", v.Name, v.Err)
		}
	}
}

func TestThin_MergeShowsTheSnapshotUnderTheOriginsName(t *testing.T) {
	pvs, expect := thinPVs(t, thinText(thinVolume("one", shown, 1, "")+thinVolume("two", hidden, 2, "origin = \"one\"\nmerge = \"one\"")))
	g := assembleOne(t, devicesOf(pvs)...)
	if names(g) != "base one" || !hasWarning(g.Warnings, "one", "being merged", "two") {
		t.Fatalf("volumes %s, warnings %q", names(g), g.Warnings)
	}
	if !bytes.Equal(contents(t, volumeNamed(t, g, "one")), expect(2, nil)) {
		t.Error("bytes differ")
	}
}

func TestCache_OriginIsReadUnlessDataMayBeInTheCacheOnly(t *testing.T) {
	for mode, readable := range map[string]bool{"writethrough": true, "passthrough": true, "writeback": false, "later": false} {
		l := &layout{next: make([]int, 2)}
		l.cache("c", mode)
		a, b := newPV(testUUID("0"), 8, textOf("vg0", 3, 2, l.b.String())), newPV(testUUID("1"), 8, textOf("vg0", 3, 2, l.b.String()))
		v := volumeNamed(t, assembleOne(t, a, b), "c")
		if readable && !bytes.Equal(contents(t, v), a[testStart:testStart+2*testExtent]) {
			t.Errorf("%s: bytes differ", mode)
		}
		if !readable && (!errors.Is(v.Err, backend.ErrUnsupported) || !strings.Contains(v.Err.Error(), mode)) {
			t.Errorf("%s: %v", mode, v.Err)
		}
	}
}

func TestSegments_OfOtherTypesAreNamed(t *testing.T) {
	for _, kind := range []string{"vdo", "writecache", "integrity", "crypt", "raid5_ls+RESHAPE", "raid7", ""} {
		text := textOf("vg0", 3, 1, volumeText("a", shown, fmt.Sprintf("start_extent = 0\nextent_count = 1\ntype = \"%s\"", kind))+volumeText("b", shown, linear(0, 1, "pv0", 1)))
		a := newPV(testUUID("0"), 4, text)
		g := assembleOne(t, a)
		name, _, _ := strings.Cut(kind, "+")
		if v := volumeNamed(t, g, "a"); !errors.Is(v.Err, backend.ErrUnsupported) || !strings.Contains(v.Err.Error(), name) {
			t.Errorf("%s: %v", kind, v.Err)
		}
		if !bytes.Equal(contents(t, volumeNamed(t, g, "b")), extent(a, 1)) {
			t.Errorf("%s: bytes of another volume differ", kind)
		}
	}
}

func TestSegments_ZeroAndError(t *testing.T) {
	text := textOf("vg0", 3, 1, volumeText("a", shown, linear(0, 1, "pv0", 1), "start_extent = 1\nextent_count = 1\ntype = \"zero\"", "start_extent = 2\nextent_count = 1\ntype = \"error\""))
	a := newPV(testUUID("0"), 4, text)
	v := volumeNamed(t, assembleOne(t, a), "a")
	b := make([]byte, 2*testExtent)
	if _, err := v.Device.ReadAt(b, 0); err != nil || !bytes.Equal(b, append(bytes.Clone(extent(a, 1)), make([]byte, testExtent)...)) {
		t.Errorf("bytes differ, or %v", err)
	}
	if err := readErr(v.Device, 2*testExtent, 1); !errors.Is(err, backend.ErrIO) {
		t.Errorf("error segment: %v", err)
	}
	s := v.Device.(backend.Sparse)
	for _, at := range [][2]int64{{0, testExtent}, {testExtent + 5, testExtent + 5}, {2 * testExtent, 3 * testExtent}} {
		if n, err := s.NextHole(at[0]); n != at[1] || err != nil {
			t.Errorf("hole after %d at %d: %v", at[0], n, err)
		}
	}
	if n, err := s.NextData(testExtent); n != 2*testExtent || err != nil {
		t.Errorf("data at %d: %v", n, err)
	}
	if _, err := s.NextData(3 * testExtent); !errors.Is(err, backend.ErrRange) {
		t.Errorf("data at the end: %v", err)
	}
	if n := s.Allocated(); n != 2*testExtent {
		t.Errorf("%d bytes allocated", n)
	}
}

// located is a Device whose bytes are said to lie in a descriptor.
type located struct{ memory }

func (l located) Locate(off, length int64) (backend.Location, bool) {
	return backend.Location{FD: 42, Offset: off, Length: min(length, l.Size()-off)}, off < l.Size()
}

func TestVolumes_SayWhereTheirBytesLie(t *testing.T) {
	text := textOf("vg0", 3, 1, volumeText("a", shown, linear(0, 1, "pv0", 3), linear(1, 1, "pv0", 0), stripedText(2, 2, 16, place("pv0", 4), place("pv0", 6))))
	a := newPV(testUUID("0"), 8, text)
	v := volumeNamed(t, assembleOne(t, located{a}), "a")
	want := contents(t, v)
	l := v.Device.(backend.Locator)
	var got []byte
	for off := int64(0); off < v.Device.Size(); {
		at, ok := l.Locate(off, v.Device.Size()-off)
		if !ok || at.FD != 42 || at.Length <= 0 {
			t.Fatalf("byte %d: %+v %v", off, at, ok)
		}
		got = append(got, a[at.Offset:at.Offset+at.Length]...)
		off += at.Length
	}
	if !bytes.Equal(got, want) {
		t.Error("bytes differ")
	}
	for _, off := range []int64{-1, v.Device.Size()} {
		if _, ok := l.Locate(off, 1); ok {
			t.Errorf("byte %d lies somewhere", off)
		}
	}
}

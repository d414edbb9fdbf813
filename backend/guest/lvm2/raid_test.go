package lvm2

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"domfs/backend"
)

// raidSuper is a superblock of dm-raid.
type raidSuper struct {
	events, failed, recovered, resynced uint64
	level, layout, chunkSectors         uint32
	reshaping                           bool
}

// healthy is the superblock of a raid whose legs are in sync.
func healthy(level, layout, chunkSectors uint32) raidSuper {
	return raidSuper{events: 10, recovered: allSectors, resynced: allSectors, level: level, layout: layout, chunkSectors: chunkSectors}
}

func (s raidSuper) write(b []byte, legs, position int) {
	clear(b[:512])
	le.PutUint32(b, superMagic)
	le.PutUint32(b[4:], superV190)
	le.PutUint32(b[8:], uint32(legs))
	le.PutUint32(b[12:], uint32(position))
	le.PutUint64(b[16:], s.events)
	le.PutUint64(b[24:], s.failed)
	le.PutUint64(b[32:], s.recovered)
	le.PutUint64(b[40:], s.resynced)
	le.PutUint32(b[48:], s.level)
	le.PutUint32(b[52:], s.layout)
	le.PutUint32(b[56:], s.chunkSectors)
	le.PutUint64(b[64:], allSectors)
	if s.reshaping {
		le.PutUint32(b[60:], superReshaping)
	}
}

// raid1Of is a raid1 of two extents on as many physical volumes as there are superblocks. Extent 0 of each is for
// the superblock, 1 and 2 have the leg.
func raid1Of(supers ...raidSuper) []memory {
	l := &layout{next: make([]int, len(supers))}
	l.raid("raid1", "r", 2, len(supers), 2, "region_size = 64")
	text := textOf("vg0", 3, len(supers), l.b.String())
	var pvs []memory
	for i, s := range supers {
		pv := newPV(testUUID(fmt.Sprint(i)), 4, text)
		if s.events > 0 {
			s.write(extent(pv, 0), len(supers), i)
		} else {
			clear(extent(pv, 0))
		}
		pvs = append(pvs, pv)
	}
	return pvs
}

func devicesOf(pvs []memory, without ...int) []backend.Device {
	var list []backend.Device
	for i, pv := range pvs {
		list = append(list, pv)
		for _, w := range without {
			if w == i {
				list[i] = nil
			}
		}
	}
	return list
}

func leg(pv memory) []byte { return pv[testStart+testExtent : testStart+3*testExtent] }

func TestRaid1_ReadsTheFirstLegInSync(t *testing.T) {
	ok := healthy(1, 0, 0)
	with := func(change func(*raidSuper)) raidSuper { s := ok; change(&s); return s }
	for _, c := range []struct {
		name   string
		supers []raidSuper
		gone   []int
		want   int // the leg that is read, -1: none
	}{
		{"all in sync", []raidSuper{ok, ok}, nil, 0},
		{"first missing", []raidSuper{ok, ok}, []int{0}, 1},
		{"two of three missing", []raidSuper{ok, ok, ok}, []int{0, 1}, 2},
		{"all missing but one out of sync", []raidSuper{ok, with(func(s *raidSuper) { s.recovered = 0 })}, []int{0}, -1},
		{"first failed, and is back with its old superblock", []raidSuper{with(func(s *raidSuper) { s.events = 4 }), with(func(s *raidSuper) { s.failed = 1 })}, nil, 1},
		{"first failed, its superblock is as new", []raidSuper{ok, with(func(s *raidSuper) { s.events++; s.failed = 1 })}, nil, 1},
		{"second failed", []raidSuper{with(func(s *raidSuper) { s.events = 50; s.failed = 2 }), ok}, nil, 0},
		{"first far behind", []raidSuper{ok, with(func(s *raidSuper) { s.events = 12 })}, nil, 1},
		{"first one event behind", []raidSuper{ok, with(func(s *raidSuper) { s.events = 11 })}, nil, 0},
		{"first to be rebuilt", []raidSuper{with(func(s *raidSuper) { s.recovered = 0 }), ok}, nil, 1},
		{"never active", []raidSuper{{}, {}}, nil, 0},
		{"first new", []raidSuper{{}, ok}, nil, 1},
		{"first resync not done", []raidSuper{with(func(s *raidSuper) { s.resynced = 64 }), with(func(s *raidSuper) { s.resynced = 64 })}, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			pvs := raid1Of(c.supers...)
			g := assembleOne(t, devicesOf(pvs, c.gone...)...)
			v := volumeNamed(t, g, "r")
			if c.want < 0 {
				if v.Err == nil || !errors.Is(v.Err, backend.ErrNoDevice) {
					t.Errorf("no leg is in sync: %v", v.Err)
				}
				return
			}
			if !bytes.Equal(contents(t, v), leg(pvs[c.want])) {
				for i, pv := range pvs {
					if bytes.Equal(contents(t, v), leg(pv)) {
						t.Errorf("leg %d was read", i)
					}
				}
				t.Errorf("not the bytes of leg %d, warnings %q", c.want, g.Warnings)
			}
			if c.want > 0 && !hasWarning(g.Warnings, "r_rimage_0", "not used") {
				t.Errorf("warnings %q", g.Warnings)
			}
		})
	}
}

func TestRaid1_LegThatIsBeingRebuiltCountsAsFarAsItIs(t *testing.T) {
	half := healthy(1, 0, 0)
	half.recovered = testExtent / sectorBytes
	pvs := raid1Of(half, healthy(1, 0, 0))
	v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "r")
	want := append(append([]byte{}, leg(pvs[0])[:testExtent]...), leg(pvs[1])[testExtent:]...)
	if !bytes.Equal(contents(t, v), want) {
		t.Error("bytes differ")
	}
	// With that leg alone, what it has can be read, and the rest is an error.
	v = volumeNamed(t, assembleOne(t, devicesOf(pvs, 1)...), "r")
	if v.Err != nil {
		t.Fatal(v.Err)
	}
	if err := readErr(v.Device, 0, testExtent); err != nil {
		t.Error(err)
	}
	if err := readErr(v.Device, testExtent-1, 2); !errors.Is(err, backend.ErrIO) {
		t.Errorf("past what was rebuilt: %v", err)
	}
}

// brokenFrom fails reads at and past an offset.
type brokenFrom struct {
	memory
	from int64
}

func (b brokenFrom) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.from {
		return 0, backend.ErrIO
	}
	return b.memory.ReadAt(p, off)
}

func TestRaid1_ReadErrorGoesToTheNextLeg(t *testing.T) {
	pvs := raid1Of(healthy(1, 0, 0), healthy(1, 0, 0))
	copy(leg(pvs[1]), leg(pvs[0]))
	bad := brokenFrom{pvs[0], testStart + 2*testExtent}
	v := volumeNamed(t, assembleOne(t, bad, pvs[1]), "r")
	if !bytes.Equal(contents(t, v), leg(pvs[0])) {
		t.Error("bytes differ")
	}
	v = volumeNamed(t, assembleOne(t, bad), "r")
	if err := readErr(v.Device, testExtent, 10); !errors.Is(err, backend.ErrIO) {
		t.Errorf("with no other leg: %v", err)
	}
}

func TestRaid_ReshapeAndForeignSuperblocksAreUnsupported(t *testing.T) {
	for name, change := range map[string]func(*raidSuper){
		"reshaping": func(s *raidSuper) { s.reshaping = true },
		"level":     func(s *raidSuper) { s.level = 5 },
	} {
		s := healthy(1, 0, 0)
		change(&s)
		v := volumeNamed(t, assembleOne(t, devicesOf(raid1Of(s, s))...), "r")
		if !errors.Is(v.Err, backend.ErrUnsupported) {
			t.Errorf("%s: %v", name, v.Err)
		}
	}
	three := raid1Of(healthy(1, 0, 0), healthy(1, 0, 0))
	le.PutUint32(extent(three[0], 0)[8:], 3)
	le.PutUint32(extent(three[1], 0)[8:], 3)
	if v := volumeNamed(t, assembleOne(t, devicesOf(three)...), "r"); !errors.Is(v.Err, backend.ErrUnsupported) {
		t.Errorf("superblocks of three legs: %v", v.Err)
	}
}

// spread is a raid over physical volumes whose extent 0 has the superblock.
func spread(t *testing.T, kind string, legs, legExtents, extents int, more string, s raidSuper) []memory {
	t.Helper()
	l := &layout{next: make([]int, legs)}
	l.raid(kind, "r", extents, legs, legExtents, more)
	text := textOf("vg0", 3, legs, l.b.String())
	var pvs []memory
	for i := range legs {
		pv := newPV(testUUID(string(rune('0'+i))), legExtents+1, text)
		if kind != "raid0" {
			s.write(extent(pv, 0), legs, i)
		}
		pvs = append(pvs, pv)
	}
	return pvs
}

func TestRaid10_CopiesAreOnNeighbours(t *testing.T) {
	const chunk = 16 << 10
	for _, legs := range []int{2, 3, 4, 5} {
		extents := legs
		pvs := spread(t, "raid10", legs, 2, extents, "data_copies = 2\nregion_size = 64\nstripe_size = 32", healthy(10, 0x102, 32))
		// What the guest wrote: each chunk to two slots in a row, legs first.
		want := make([]byte, extents*testExtent)
		copy(want, bytes.Repeat([]byte("0123456789abcde"), len(want)))
		for c := 0; c*chunk < len(want); c++ {
			for k := range 2 {
				slot := 2*c + k
				at := testStart + testExtent + slot/legs*chunk
				copy(pvs[slot%legs][at:], want[c*chunk:(c+1)*chunk])
			}
		}
		if v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "r"); !bytes.Equal(contents(t, v), want) {
			t.Errorf("%d legs: bytes differ", legs)
		}
		for gone := range legs {
			if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, gone)...), "r"); !bytes.Equal(contents(t, v), want) {
				t.Errorf("%d legs without %d: bytes differ", legs, gone)
			}
		}
		if legs > 2 {
			v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 0, 1)...), "r")
			if !errors.Is(v.Err, backend.ErrNoDevice) {
				t.Errorf("%d legs without both copies: %v", legs, v.Err)
			}
		}
	}
	// Other layouts have their copies elsewhere.
	pvs := spread(t, "raid10", 4, 2, 4, "data_copies = 2\nstripe_size = 32", healthy(10, 0x201, 32))
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "r"); !errors.Is(v.Err, backend.ErrUnsupported) {
		t.Errorf("far copies: %v", v.Err)
	}
}

func TestRaid0_IsStripes(t *testing.T) {
	pvs := spread(t, "raid0", 2, 2, 4, "stripe_size = 32", raidSuper{})
	var want []byte
	const chunk = 16 << 10
	for at := testStart; len(want) < 4*testExtent; at += chunk {
		want = append(want, pvs[0][at:at+chunk]...)
		want = append(want, pvs[1][at:at+chunk]...)
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "r"); !bytes.Equal(contents(t, v), want) {
		t.Error("bytes differ")
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 1)...), "r"); !errors.Is(v.Err, backend.ErrNoDevice) {
		t.Errorf("without a leg: %v", v.Err)
	}
}

// The layouts as the specification of each draws them: for five legs and stripe 0, 1 …, the legs that hold
// the stripe's data in order.
func TestParity_LayoutsAreThoseOfTheKernel(t *testing.T) {
	for kind, want := range map[string][]string{
		"raid4":      {"1234", "1234", "1234", "1234", "1234"},
		"raid5_n":    {"0123", "0123", "0123", "0123", "0123"},
		"raid5_la":   {"0123", "0124", "0134", "0234", "1234"},
		"raid5_ra":   {"1234", "0234", "0134", "0124", "0123"},
		"raid5_ls":   {"0123", "4012", "3401", "2340", "1234"},
		"raid5_rs":   {"1234", "2340", "3401", "4012", "0123"},
		"raid6_zr":   {"234", "034", "014", "012", "123"},
		"raid6_nr":   {"012", "014", "034", "234", "123"},
		"raid6_nc":   {"012", "401", "340", "234", "123"},
		"raid6_la_6": {"012", "013", "023", "123", "012"},
		"raid6_ra_6": {"123", "023", "013", "012", "123"},
		"raid6_ls_6": {"012", "301", "230", "123", "012"},
		"raid6_rs_6": {"123", "230", "301", "012", "123"},
		"raid6_n_6":  {"012", "012", "012", "012", "012"},
	} {
		l := parityLayouts[kind]
		for stripe, row := range want {
			var got strings.Builder
			for index := range int64(5) - l.parity {
				fmt.Fprint(&got, l.place(int64(stripe), index, 5))
			}
			if got.String() != row {
				t.Errorf("%s: stripe %d has its data on legs %s, want %s", kind, stripe, got.String(), row)
			}
		}
	}
}

func TestRaid5_OneLegIsMadeUpOfTheOthers(t *testing.T) {
	s := healthy(5, 2, 32)
	pvs := spread(t, "raid5_ls", 3, 2, 4, "region_size = 64\nstripe_size = 32", s)
	for i := range leg(pvs[2]) {
		leg(pvs[2])[i] = leg(pvs[0])[i] ^ leg(pvs[1])[i]
	}
	want := contents(t, volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "r"))
	for gone := range 3 {
		v := volumeNamed(t, assembleOne(t, devicesOf(pvs, gone)...), "r")
		if !bytes.Equal(contents(t, v), want) {
			t.Errorf("without leg %d: bytes differ", gone)
		}
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 0, 1)...), "r"); !errors.Is(v.Err, backend.ErrNoDevice) {
		t.Errorf("without two legs: %v", v.Err)
	}
	// Parity that was never made is not used.
	s.resynced = 0
	for i := range pvs {
		s.write(extent(pvs[i], 0), 3, i)
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "r"); !bytes.Equal(contents(t, v), want) {
		t.Error("bytes differ where all legs are there")
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 1)...), "r"); !errors.Is(v.Err, backend.ErrNoDevice) {
		t.Errorf("without a leg, and without parity: %v", v.Err)
	}
}

// mirrorOf is a mirror of two extents on pv0 and pv1, with its log on pv2.
func mirrorOf(log string, bits ...byte) []memory {
	l := &layout{next: make([]int, 3)}
	l.linear("m_mimage_0", hidden, 0, 2)
	l.linear("m_mimage_1", hidden, 1, 2)
	l.linear("m_mlog", hidden, 2, 1)
	l.b.WriteString(volumeText("m", shown, mirrorText(2, log, place("m_mimage_0", 0), place("m_mimage_1", 0))))
	var pvs []memory
	for i := range 3 {
		pvs = append(pvs, newPV(testUUID(fmt.Sprint(i)), 4, textOf("vg0", 3, 3, l.b.String())))
	}
	b := extent(pvs[2], 0)
	clear(b)
	le.PutUint32(b, logMagic)
	le.PutUint32(b[4:], 2)
	le.PutUint64(b[8:], 8)
	copy(b[logBits:], bits)
	return pvs
}

func TestMirror_LaterLegsCountWhereTheLogSaysSo(t *testing.T) {
	const withLog = "mirror_log = \"m_mlog\"\nregion_size = 32" // 16 KiB: 8 regions
	half := func(pv memory) []byte { return pv[testStart : testStart+2*testExtent] }
	pvs := mirrorOf(withLog, 0xff)
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs)...), "m"); !bytes.Equal(contents(t, v), half(pvs[0])) {
		t.Error("not the bytes of the first leg")
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 0)...), "m"); !bytes.Equal(contents(t, v), half(pvs[1])) {
		t.Error("not the bytes of the second leg")
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 1, 2)...), "m"); !bytes.Equal(contents(t, v), half(pvs[0])) {
		t.Error("not the bytes of the first leg, which needs no log")
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 0, 2)...), "m"); !errors.Is(v.Err, backend.ErrNoDevice) {
		t.Errorf("without first leg and log: %v", v.Err)
	}
	pvs = mirrorOf(withLog, 0b11110111)
	v := volumeNamed(t, assembleOne(t, devicesOf(pvs, 0)...), "m")
	if err := readErr(v.Device, 0, 3*16<<10); err != nil {
		t.Error(err)
	}
	if err := readErr(v.Device, 3*16<<10, 1); !errors.Is(err, backend.ErrIO) {
		t.Errorf("region that is not in sync: %v", err)
	}
	if err := readErr(v.Device, 4*16<<10, 4*16<<10); err != nil {
		t.Error(err)
	}
	if v := volumeNamed(t, assembleOne(t, devicesOf(mirrorOf(""), 0)...), "m"); !errors.Is(v.Err, backend.ErrNoDevice) || !strings.Contains(v.Err.Error(), "no log") {
		t.Errorf("without a log: %v", v.Err)
	}
}

func TestPVMove_ReadsTheSideThatIsRight(t *testing.T) {
	move := func(start, count, moved int) string {
		return strings.Replace(mirrorText(count, fmt.Sprintf("extents_moved = %d", moved), place("pv0", start), place("pv1", start)), "start_extent = 0", fmt.Sprintf("start_extent = %d", start), 1)
	}
	text := textOf("vg0", 3, 2,
		volumeText("a", shown+`, "LOCKED"`, linear(0, 3, "pvmove0", 0))+
			volumeText("pvmove0", hidden+`, "PVMOVE", "LOCKED"`, move(0, 1, 1), move(1, 1, 0), move(2, 1, 0)))
	a, b := newPV(testUUID("0"), 4, text), newPV(testUUID("1"), 4, text)
	g := assembleOne(t, a, b)
	want := bytes.Join([][]byte{extent(b, 0), extent(a, 1), extent(a, 2)}, nil)
	if v := volumeNamed(t, g, "a"); names(g) != "a" || !bytes.Equal(contents(t, v), want) || v.Segments != nil {
		t.Errorf("volumes %s, segments %v, or other bytes", names(g), v.Segments)
	}
}

package lvm2

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"domfs/backend"
)

// within runs f, and fails if it takes longer than a read may.
func within(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	start := time.Now()
	go func() { defer close(done); f() }()
	select {
	case <-done:
		t.Logf("%s: %v", what, time.Since(start))
	case <-time.After(limit):
		t.Fatalf("%s takes longer than %v", what, limit)
	}
}

// bigPV is a physical volume with room for a long text, and extents.
func bigPV(uuid string, extents int, text string) memory {
	start := (len(text)+3*4096)/testExtent*testExtent + 2*testExtent
	text = strings.ReplaceAll(text, fmt.Sprintf("pe_start = %d", testStart/sectorBytes), fmt.Sprintf("pe_start = %d", start/sectorBytes))
	m := make(memory, start+extents*testExtent)
	for i := start; i < len(m); i++ {
		m[i] = byte(i * 7)
	}
	writeLabel(m, 1, uuid, []location{{int64(start), 0}}, []location{{4096, int64(start) - 4096}})
	writeArea(m, location{4096, int64(start) - 4096}, text, mdaHeaderSize)
	return m
}

func TestHostile_HolesOfVolumesOnVolumesAreFoundInBoundedTime(t *testing.T) {
	const n, levels = 4000, 6
	var volumes strings.Builder
	var zeros []string
	for i := range n {
		zeros = append(zeros, fmt.Sprintf("start_extent = %d\nextent_count = 1\ntype = \"zero\"", i))
	}
	volumes.WriteString(volumeText("l0", shown, zeros...))
	for l := range levels {
		var segments []string
		for i := range n {
			segments = append(segments, linear(i, 1, fmt.Sprintf("l%d", l), 0)) // each the first extent again
		}
		volumes.WriteString(volumeText(fmt.Sprintf("l%d", l+1), shown, segments...))
	}
	g := assembleOne(t, bigPV(testUUID("0"), 4, textOf("vg0", 3, 1, volumes.String())))
	d := volumeNamed(t, g, fmt.Sprintf("l%d", levels))
	if d.Err != nil {
		t.Fatal(d.Err)
	}
	within(t, 5*time.Second, "NextData", func() { backend.NextData(d.Device, 0) })
	within(t, 5*time.Second, "NextHole", func() { backend.NextHole(d.Device, 0) })
	within(t, 5*time.Second, "Allocated", func() { backend.Allocated(d.Device) })
}

func TestHostile_LogsOfManyMirrorsTakeNoMemory(t *testing.T) {
	const mirrors, regions = 100, 1 << 27 // a bit for each: 16 MiB a log
	size := int64(regions) * sectorBytes / testExtent
	logExtents := (regions/8+logBits)/testExtent + 1
	var volumes strings.Builder
	volumes.WriteString(volumeText("log", shown, linear(0, logExtents, "pv0", 0)))
	volumes.WriteString(volumeText("gone", shown, fmt.Sprintf("start_extent = 0\nextent_count = %d\ntype = \"error\"", size)))
	volumes.WriteString(volumeText("leg", shown, fmt.Sprintf("start_extent = 0\nextent_count = %d\ntype = \"zero\"", size)))
	for i := range mirrors {
		volumes.WriteString(volumeText(fmt.Sprintf("m%d", i), shown, mirrorText(int(size), "mirror_log = \"log\"\nregion_size = 1", place("gone", 0), place("leg", 0))))
	}
	pv := bigPV(testUUID("0"), logExtents, textOf("vg0", 3, 1, volumes.String()))
	log := pv[len(pv)-logExtents*testExtent:]
	clear(log)
	le.PutUint32(log, logMagic)
	le.PutUint32(log[4:], 2)
	le.PutUint64(log[8:], regions)
	log[logBits] = 1
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	g := assembleOne(t, pv)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
		t.Errorf("%d MiB allocated", used>>20)
	}
	for _, name := range []string{"m0", "m99"} {
		d := volumeNamed(t, g, name)
		if d.Err != nil {
			t.Fatal(d.Err)
		}
		if err := readErr(d.Device, 0, sectorBytes); err != nil {
			t.Errorf("what is in sync: %v", err)
		}
		if err := readErr(d.Device, sectorBytes, 1); !errors.Is(err, backend.ErrIO) {
			t.Errorf("what is not: %v", err)
		}
	}
}

func TestHostile_ALongPoolIsNotSearchedForEachOfItsVolumes(t *testing.T) {
	const keys, thins = 130_000, 8000
	var pool, volumes strings.Builder
	for i := range keys {
		fmt.Fprintf(&pool, "k%d=1\n", i)
	}
	volumes.WriteString(volumeText("data", shown, linear(0, 1, "pv0", 0)))
	volumes.WriteString(volumeText("pool", shown, pool.String()+"start_extent = 0\nextent_count = 1\ntype = \"thin-pool\"\nchunk_size = 128\nmetadata = \"data\"\npool = \"data\""))
	for i := range thins {
		volumes.WriteString(volumeText(fmt.Sprintf("t%d", i), shown, "start_extent=0\nextent_count=1\ntype=\"thin\"\nthin_pool=\"pool\"\ndevice_id=1"))
	}
	pv := bigPV(testUUID("0"), 1, textOf("vg0", 3, 1, volumes.String()))
	within(t, 8*time.Second, "assembling", func() {
		if g := assembleOne(t, pv); len(g.Volumes) < thins {
			t.Errorf("%d volumes", len(g.Volumes))
		}
	})
}

// repeated is bytes again and again.
type repeated struct {
	memory
	size int64
}

func (r repeated) Size() int64 { return r.size }

func (r repeated) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size-int64(len(p)) {
		return 0, io.EOF
	}
	for n := 0; n < len(p); {
		n += copy(p[n:], r.memory[(off+int64(n))%int64(len(r.memory)):])
	}
	return len(p), nil
}

func TestHostile_ExceptionsOutsideOfTheSnapshotAreBounded(t *testing.T) {
	// A COW device of a guest's making may be one extent again and again: its list never ends.
	b := make(memory, 64<<10)
	for i := 0; i < len(b); i += exceptionBytes {
		le.PutUint64(b[i:], 1<<50)
		le.PutUint64(b[i+8:], 1)
	}
	le.PutUint32(b, cowMagic)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], cowVersion)
	le.PutUint32(b[12:], 8)
	d, err := openCOW(patternDevice{size: 1 << 20}, repeated{b, 1 << 45}, 4096)
	if err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "reading", func() {
		if err := readErr(d, 0, 1); !errors.Is(err, backend.ErrCorrupt) || !strings.Contains(err.Error(), "behind its end") {
			t.Errorf("error %v", err)
		}
	})
}

func TestHostile_GroupsOnGroupsAddUpToOneCost(t *testing.T) {
	legs := func(n int) string {
		return fmt.Sprintf("start_extent = 0\nextent_count = 1\ntype = \"raid1\"\ndevice_count = %d\nraids = [%s]", n, strings.TrimSuffix(strings.Repeat("\"a\", ", n), ", "))
	}
	text := textOf("vg0", 3, 1, volumeText("a", shown, linear(0, 1, "pv0", 0))+volumeText("few", shown, legs(2))+volumeText("many", shown, legs(40)))
	groups, _ := New().Assemble([]backend.Member{{Device: newPV(testUUID("0"), 4, text), Name: "lvm/other/pv", Cost: 100}})
	for name, want := range map[string]int64{"a": 100, "few": 200, "many": 4000} {
		v := volumeNamed(t, groups[0], name)
		if want > maxCost && !errors.Is(v.Err, backend.ErrUnsupported) || want <= maxCost && (v.Err != nil || v.Cost != want) {
			t.Errorf("%s costs %d, %v; want %d", name, v.Cost, v.Err, want)
		}
		if v.Err != nil {
			continue
		}
		if n, err := backend.NextHole(v.Device, 0); err != nil || n != v.Device.Size() {
			t.Errorf("%s has a hole at %d, %v", name, n, err)
		}
	}
}

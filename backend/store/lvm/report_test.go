package lvm

import (
	"errors"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/run"
)

// recordedHost is what the tools of a real host said: testdata/host.json was recorded in the lab.
func recordedHost(t testing.TB) (report, info, status string) {
	t.Helper()
	transcript, err := run.ReadTranscript("testdata/host.json")
	if err != nil || len(transcript.Calls) != 3 {
		t.Fatalf("%+v, %v", transcript, err)
	}
	return string(transcript.Calls[0].Stdout), string(transcript.Calls[1].Stdout), string(transcript.Calls[2].Stdout)
}

func TestParseReport_KnowsWhatLVMSays(t *testing.T) {
	out, _, _ := recordedHost(t)
	r, err := parseReport([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	g := r.vg("e")
	if len(r.vgs) != 1 || g.uuid != "yrzDV3-1Ksx-3pKc-L1iZ-z6OD-5dGA-Gq7XuY" || g.sizeBytes != 2139095040 || g.freeBytes != 977272832+1040187392 || g.extentBytes != 4<<20 ||
		!g.writeable || g.exported || g.shared || g.missingPVs != 0 || g.metadataBytes != 1044480 || len(g.pvs) != 2 || g.twin {
		t.Errorf("the VG is %+v", g)
	}
	type brief struct {
		segtype, origin, pool               string
		size, visible                       int64
		thick, thin, snapshot, hidden, skip bool
	}
	const mib = 1 << 20
	for name, want := range map[string]brief{
		"a":           {segtype: "linear", size: 16 * mib, visible: 16 * mib},
		"a.s-1":       {segtype: "linear", origin: "a", size: 8 * mib, visible: 16 * mib, thick: true, snapshot: true},
		"a.s-2":       {segtype: "linear", origin: "a", size: 4 * mib, visible: 16 * mib, thick: true, snapshot: true},
		"inact":       {segtype: "linear", size: 4 * mib, visible: 4 * mib},
		"m1":          {segtype: "mirror", size: 8 * mib, visible: 8 * mib},
		"r1":          {segtype: "raid1", size: 8 * mib, visible: 8 * mib},
		"r1_rimage_0": {segtype: "linear", size: 8 * mib, visible: 8 * mib, hidden: true},
		"pool":        {segtype: "thin-pool", size: 32 * mib, visible: 32 * mib},
		"pool_tdata":  {segtype: "linear", size: 32 * mib, visible: 32 * mib, hidden: true},
		"t":           {segtype: "thin", pool: "pool", size: 64 * mib, visible: 64 * mib, thin: true},
		"ts":          {segtype: "thin", pool: "pool", origin: "t", size: 64 * mib, visible: 64 * mib, thin: true, snapshot: true, skip: true},
		"ts2":         {segtype: "thin", pool: "pool", origin: "t", size: 64 * mib, visible: 64 * mib, thin: true, snapshot: true},
	} {
		l := r.lv("e", name)
		if l == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if got := (brief{l.segtype, l.origin, l.pool, l.sizeBytes, l.visibleBytes(), l.isThick(), l.isThin(), l.isSnapshot(), l.hidden, l.skip}); got != want {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
	if l := r.byID("e/inact"); l.writeable || !r.byID("e/a").writeable || !l.created.Equal(time.Unix(1795252506, 0)) {
		t.Errorf("inact is %+v", l)
	}
	pool := r.lv("e", "pool")
	if pool.dataLV != "pool_tdata" || pool.metadataLV != "pool_tmeta" || pool.metadataBytes != 4<<20 || pool.chunkBytes != 64<<10 || pool.errorWhenFull || r.lv("e", "ts").thinID != 2 || r.lv("e", "a").thinID != -1 {
		t.Errorf("the pool is %+v", pool)
	}
	if got := r.snapshotsOf(r.lv("e", "a")); len(got) != 2 {
		t.Errorf("a has %d snapshots", len(got))
	}
	if r.lv("e", "none") != nil || r.lv("none", "a") != nil || r.byID("e") != nil || r.byID("") != nil {
		t.Error("what is not there is found")
	}
}

func TestParseReport_FindsTheReportAmongNotices(t *testing.T) {
	out, _, _ := recordedHost(t)
	for name, text := range map[string]string{
		"before":  "  Consider pruning e VG archive with more then 8 MiB in 9000 files.\n" + out,
		"braces":  "  WARNING: {odd} notice\n  {not json}\n{}\n" + out,
		"after":   out + "\n  a notice\n",
		"numbers": strings.ReplaceAll(out, `"vg_seqno":"21"`, `"vg_seqno":21, "lv_new":null, "lv_list":["a","b"]`),
	} {
		if r, err := parseReport([]byte(text)); err != nil || len(r.vgs) != 1 || r.vgs[0].seqno != 21 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "a notice": "  something is wrong\n", "half": out[:len(out)/2], "no report": `{"a":1}`, "braces": strings.Repeat("{\n", 10000),
	} {
		if r, err := parseReport([]byte(text)); !errors.Is(err, backend.ErrIO) || len(err.Error()) > 400 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r, err := parseReport([]byte(`{"report":[]}`)); err != nil || len(r.vgs) != 0 {
		t.Errorf("a host without VGs: %+v, %v", r, err)
	}
}

func TestParseReport_ToleratesWhatIsMissing(t *testing.T) {
	r, err := parseReport([]byte(`{"report":[
		{"vg":[],"pv":[{"pv_name":"/dev/sdz"}]},
		{"vg":[{"vg_name":"b","vg_uuid":"1"}],"lv":[{"lv_name":"x","lv_uuid":"u"},{"lv_name":"","lv_uuid":"v"},{"lv_name":"y"}]},
		{"vg":[{"vg_name":"a","vg_uuid":"2","vg_size":"-5","vg_extent_size":"99999999999999999999"}]},
		{"vg":[{"vg_name":"b","vg_uuid":"3"}],"pv":[
			{"pv_free":"8","pv_allocatable":"1"},{"pv_free":"16","pv_allocatable":"1","pv_missing":"1"},{"pv_free":"32"},{"pv_free":"9223372036854775807","pv_allocatable":"1"}]}]}`))
	if err != nil || len(r.vgs) != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.vgs[0].name != "a" || r.vgs[0].sizeBytes != 0 || r.vgs[0].extentBytes != 0 || r.vgs[0].twin || !r.vgs[1].twin || !r.vgs[2].twin {
		t.Errorf("VGs are %+v, %+v, %+v", r.vgs[0], r.vgs[1], r.vgs[2])
	}
	if len(r.lvs) != 1 || r.lvs[0].name != "x" || !r.lvs[0].writeable || r.lvs[0].isSnapshot() || r.lvs[0].thinID != -1 {
		t.Errorf("LVs are %+v", r.lvs)
	}
	if free := r.vgs[2].freeBytes; free != 8 {
		t.Errorf("%d bytes are free, want those of the PV that is there and may be used", free)
	}
}

func TestReadReport_LeavesOutWhatAnOlderLVMDoesNotKnow(t *testing.T) {
	out, _, _ := recordedHost(t)
	refuse := func(field string, without map[string]bool) run.Call {
		return run.Call{Argv: append([]string{"lvm"}, reportArgs(without)...), Exit: 3, Stderr: run.Text("  Unrecognised field: " + field + "\n")}
	}
	gone := map[string]bool{"vg_shared": true}
	both := map[string]bool{"vg_shared": true, "data_copies": true}
	transcript := &run.Transcript{Calls: []run.Call{
		refuse("vg_shared", nil), refuse("data_copies", gone),
		{Argv: append([]string{"lvm"}, reportArgs(both)...), Stdout: run.Text(out)},
		{Argv: append([]string{"lvm"}, reportArgs(both)...), Stdout: run.Text(out)},
	}}
	s := New(Options{Runner: transcript.Replay()})
	for range 2 {
		if r, err := s.readReport(t.Context()); err != nil || len(r.vgs) != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
	s = New(Options{Runner: (&run.Transcript{Calls: []run.Call{refuse("lv_uuid", nil)}}).Replay()})
	if r, err := s.readReport(t.Context()); err == nil || !strings.Contains(err.Error(), "lv_uuid") {
		t.Errorf("%+v, %v without a field that is needed", r, err)
	}
}

func FuzzParseReport(f *testing.F) {
	out, _, _ := recordedHost(f)
	f.Add([]byte(out))
	f.Add([]byte("notice\n" + out))
	f.Add([]byte(`{"report":[{"vg":[{"vg_name":"a"}],"lv":[{"lv_name":"[x]","lv_uuid":"u","lv_size":1}],"seg":[{"lv_uuid":"u","seg_start":"0"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReport(b)
		if err != nil {
			return
		}
		for _, l := range r.lvs {
			if l.name == "" || l.vg == nil || l.sizeBytes < 0 || l.visibleBytes() < 0 || len(l.tags) > maxTags {
				t.Errorf("%+v", l)
			}
			if !l.vg.twin && r.lv(l.vg.name, l.name) == nil {
				t.Errorf("%s is not found", l.id())
			}
			l.whole(maxDepth)
		}
		for _, g := range r.vgs {
			if g.freeBytes < 0 || g.sizeBytes < 0 || g.name == "" {
				t.Errorf("%+v", g)
			}
		}
	})
}

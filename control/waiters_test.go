package control

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

func TestFill_ItsRemovalTellsWhoWaitsThatTheSnapshotIsGone(t *testing.T) {
	b, _ := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	ref := VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"}
	got := make(chan error)
	go func() {
		_, err := b.Volume(context.Background(), ref)
		got <- err
	}()
	time.Sleep(20 * time.Millisecond)
	b.must(b.Remove(t.Context(), "web01", "s"))
	b.mustFail(<-got, backend.ErrNotExist, "snapshot")
	if text := b.LastErrors("web01"); len(text) != 0 {
		t.Errorf("last_error: %s", text)
	}
}

func TestFill_ItsEventsAllHaveTheSameFields(t *testing.T) {
	b, release := copying(t, setup{}, true)
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	release()
	eventually(t, "the end is told", func() bool {
		es := b.eventsOf("fill")
		return len(es) >= 2 && es[len(es)-1].Message == "done"
	})
	fields := func(e Event) map[string]any {
		text, err := json.Marshal(e)
		b.must(err)
		var m map[string]any
		b.must(json.Unmarshal(text, &m))
		return m
	}
	es := b.eventsOf("fill")
	es[0].Done = 0
	last := fields(es[len(es)-1])
	for name, v := range fields(es[0]) {
		if last[name] == nil {
			t.Errorf("the first has %s (%v), the last has only %v", name, v, slices.Sorted(maps.Keys(last)))
		}
	}
	if v, ok := fields(es[0])["done_bytes"]; !ok || v != 0.0 {
		t.Errorf("done_bytes at the beginning: %v", v)
	}
	if _, ok := fields(Event{Event: "remove"})["done_bytes"]; ok {
		t.Error("other events have done_bytes, too")
	}
}

func TestVolume_EmptyDriveIsNoFailure(t *testing.T) {
	b := newBench(t, setup{domains: func(h *fake.Host) {
		h.AddDomain("web01", uuid1, nil, "xvda")
		h.Hypervisor.Change("web01", func(d *backend.Domain) {
			d.Disks = append(d.Disks, backend.Disk{VDev: "xvdc", CDROM: true, Mode: backend.ReadOnly})
		})
	}})
	_, err := b.Volume(t.Context(), VolumeRef{Domain: "web01", VDev: "xvdc"})
	b.mustFail(err, backend.ErrNoDevice, "no medium")
	if s := b.LastErrors("web01"); s != nil || len(b.eventsOf("error")) != 0 || b.logs.FilterMessage("failed").Len() != 0 {
		t.Errorf("it was recorded: %s", s)
	}
}

// warningTable is a Layout that warns of every table.
type warningTable struct{ fake.Table }

func (warningTable) Warnings(backend.Device) []string { return []string{"its beginning is damaged"} }

func TestParts_WarningsAreToldOnce(t *testing.T) {
	disk := make([]byte, 1<<20)
	copy(disk, fake.TableHeader(fake.TablePart{Number: 1, OffsetBytes: 4096, Length: 4096}))
	guests := fake.NewGuests()
	b := newBench(t, setup{
		domains: func(h *fake.Host) { h.AddDomain("web01", uuid1, map[string][]byte{"xvda": disk}, "xvda") },
		options: func(o *Options) { o.Prober, o.Layouts = guests, []backend.Layout{warningTable{}} },
	})
	for range 2 {
		v := b.open(live)
		if ps, err := v.Parts(); err != nil || len(ps) != 1 {
			t.Errorf("parts: %v, %v", ps, err)
		}
		v.Release()
	}
	b.lastErrorHas("web01", " partitions WARNING disk xvda of web01: its beginning is damaged")
	if es := b.eventsOf("warning"); len(es) != 1 {
		t.Errorf("events: %v", es)
	}
}

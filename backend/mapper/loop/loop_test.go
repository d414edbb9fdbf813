package loop

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"
	"domfs/backend/hostdev"
)

const k = 1024

// sample is an image, and a request for what is on it; unique is part of the set's identity, for loop
// devices are the whole machine's.
func sample(t *testing.T, unique string) (image []byte, r backend.MapRequest) {
	t.Helper()
	testneed.Root(t)
	testneed.Loop(t)
	image = make([]byte, 256*k)
	for i := range image {
		image[i] = byte(i/512) ^ byte(i>>17)
	}
	copy(image[128*k+512:], "LABELONE")
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	set := "20261121T085750123-" + unique
	r = backend.MapRequest{SetID: set,
		Disks: []backend.MapDisk{{VDev: "xvda", Path: path, SizeBytes: int64(len(image)), Parts: []backend.MapPart{
			{Name: "p1", Start: 16 * k, Length: 64 * k}, {Name: "p1/p5", Start: 20 * k, Length: 4 * k}, {Name: "p2", Start: 128 * k, Length: 64 * k},
			{Name: "p3", Start: 250 * k, Length: 64 * k},
		}}},
		Volumes: []backend.MapVolume{
			{Name: "lvm/vg0/a", SizeBytes: 8 * k, Segments: []backend.MapSegment{{Length: 8 * k, Targets: []backend.MapTarget{{Member: "xvda/p2", Offset: 4 * k}}}}},
			{Name: "lvm/vg0/b", SizeBytes: 8 * k, Segments: []backend.MapSegment{
				{Length: 4 * k, Targets: []backend.MapTarget{{Member: "xvda/p2", Offset: 4 * k}}}, {Start: 4 * k, Length: 4 * k, Targets: []backend.MapTarget{{Member: "xvda/p2"}}}}},
			{Name: "lvm/vg0/c", SizeBytes: 8 * k, Segments: []backend.MapSegment{{Length: 8 * k, Targets: []backend.MapTarget{{Member: "xvda/p2", Offset: 60 * k}}}}},
			{Name: "lvm/vg0/" + strings.Repeat("n", 40), SizeBytes: 8 * k, Segments: []backend.MapSegment{{Length: 8 * k, Targets: []backend.MapTarget{{Member: "xvda"}}}}},
		}}
	t.Cleanup(func() {
		for _, l := range (hostdev.Host{}).Loops(setPrefix(set)) {
			t.Errorf("%s (%s) is left", l.Device, l.Name)
			hostdev.Detach(l.Device, l.Name)
		}
	})
	return image, r
}

func TestMap_ShowsWhatLiesInOnePieceAndIsNoPhysicalVolume(t *testing.T) {
	image, r := sample(t, "map")
	m := New(nil)
	made, left, err := m.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"xvda": image, "xvda/p1": image[16*k : 80*k], "xvda/p1/p5": image[20*k : 24*k], "lvm/vg0/a": image[132*k : 140*k]}
	for _, mp := range made {
		if got, err := os.ReadFile(mp.Device); err != nil || !bytes.Equal(got, want[mp.Name]) {
			t.Errorf("%s has other bytes (%v)", mp.Name, err)
		}
		delete(want, mp.Name)
	}
	if len(want) > 0 {
		t.Errorf("not mapped: %d of %+v", len(want), made)
	}
	var names []string
	for _, u := range left {
		names = append(names, u.Name)
		if !errors.Is(u.Err, backend.ErrUnsupported) || !strings.Contains(u.Err.Error(), u.Name) {
			t.Errorf("%s: %v", u.Name, u.Err)
		}
	}
	slices.Sort(names)
	if want := []string{"lvm/vg0/b", "lvm/vg0/c", "lvm/vg0/" + strings.Repeat("n", 40), "xvda/p2", "xvda/p3"}; !slices.Equal(names, want) {
		t.Errorf("left out %q, want %q", names, want)
	}
	again, _, err := m.Map(t.Context(), r)
	if err != nil || !slices.Equal(again, made) {
		t.Errorf("again: %+v, %v", again, err)
	}
	all, err := New(nil).Mappings(t.Context())
	if err != nil || !slices.Equal(all[r.SetID], made) {
		t.Errorf("listed %+v, %v", all[r.SetID], err)
	}
	if err := m.Unmap(t.Context(), r.SetID); err != nil {
		t.Error(err)
	}
	if err := m.Unmap(t.Context(), r.SetID); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestUnmap_NamesWhoUsesADeviceAndLeavesAll(t *testing.T) {
	_, r := sample(t, "busy")
	m := New(nil)
	made, _, err := m.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(made[len(made)-1].Device)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmap(t.Context(), r.SetID); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), "(pid ") || !strings.Contains(err.Error(), made[len(made)-1].Name) {
		t.Errorf("got %v", err)
	}
	all, err := m.Mappings(t.Context())
	if err != nil || !slices.Equal(all[r.SetID], made) {
		t.Errorf("left: %+v, %v", all[r.SetID], err)
	}
	f.Close()
	if err := m.Unmap(t.Context(), r.SetID); err != nil {
		t.Error(err)
	}
}

func TestMap_TakesAllBackWhereADiskCannotBeRead(t *testing.T) {
	_, r := sample(t, "undo")
	r.Disks = append(r.Disks, backend.MapDisk{VDev: "xvdb", Path: r.Disks[0].Path + ".gone", SizeBytes: 4096})
	m := New(nil)
	if _, _, err := m.Map(t.Context(), r); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	all, err := m.Mappings(t.Context())
	if err != nil || len(all[r.SetID]) != 0 {
		t.Errorf("left: %+v, %v", all[r.SetID], err)
	}
}

package lvm

import (
	"errors"
	"math"
	"slices"
	"testing"

	"domfs/backend"
)

// recordedSnapshots are the snapshots of the recorded host, by ID.
func recordedSnapshots(t *testing.T, s *Store) map[string]backend.Snapshot {
	t.Helper()
	snaps, err := s.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]backend.Snapshot{}
	for _, snap := range snaps {
		byID[snap.Volume.ID] = snap
	}
	return byID
}

// LVM is asked for nothing where a reserve need not, or must not, change: the transcript has no lvextend.
func TestExtendReserve_ChangesNothingWhereItNeedNot(t *testing.T) {
	const m = 1 << 20
	cases := []struct {
		id         string
		size, want int64
		err        error
	}{
		{"e/a.s-1", 8 * m, 8 * m, nil},
		{"e/a.s-1", 8*m - 1, 8 * m, nil}, // rounds to what it has
		{"e/a.s-1", 4*m + 1, 8 * m, nil},
		{"e/a.s-1", 4 * m, 0, backend.ErrPermission},
		{"e/a.s-1", 1, 0, backend.ErrPermission},
		{"e/a.s-1", 0, 0, backend.ErrInvalid},
		{"e/a.s-1", -1, 0, backend.ErrInvalid},
		{"e/a.s-2", 1, 4 * m, nil}, // invalid as it is
		{"e/a.s-2", 4*m + 1, 0, backend.ErrUnsupported},
		{"e/ts2", 4 * m, 0, backend.ErrUnsupported}, // thin: it has none
	}
	s, _ := recorded(t, Options{}, 1+len(cases))
	snaps := recordedSnapshots(t, s)
	for _, c := range cases {
		if got, err := s.ExtendReserve(t.Context(), snaps[c.id], c.size); got != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s to %d: %d, %v, want %d, %v", c.id, c.size, got, err, c.want, c.err)
		}
	}
	if most := s.MaxReserve(snaps["e/a.s-1"]); most != 20*m || s.MaxReserve(snaps["e/ts2"]) != 0 {
		t.Errorf("MaxReserve = %d, of a thin one %d", most, s.MaxReserve(snaps["e/ts2"]))
	}
}

func TestResize_ChangesNothingWhereItNeedNot(t *testing.T) {
	const m = 1 << 20
	cases := []struct {
		id         string
		size, want int64
		err        error
	}{
		{"e/inact", 4 * m, 4 * m, nil},
		{"e/inact", 1, 4 * m, nil},
		{"e/a", 12*m + 1, 16 * m, nil}, // with thick snapshots, as nothing grows
		{"e/a", 12 * m, 0, backend.ErrPermission},
		{"e/a", 16*m + 1, 0, backend.ErrBusy},
		{"e/t", 64*m - 1, 64 * m, nil},
		{"e/inact", math.MaxInt64, 0, backend.ErrNoSpace},
	}
	s, _ := recorded(t, Options{}, 1+len(cases))
	recordedSnapshots(t, s)
	for _, c := range cases {
		v := backend.Volume{Store: "lvm", ID: c.id}
		if got, err := s.Resize(t.Context(), v, c.size); got != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s to %d: %d, %v, want %d, %v", c.id, c.size, got, err, c.want, c.err)
		}
	}
}

func TestSnapshots_OfOthersKeepTheirSetAndSayWhenTheyWereMade(t *testing.T) {
	s, _ := recorded(t, Options{}, 2)
	first, again := recordedSnapshots(t, s), recordedSnapshots(t, s)
	sets := map[string]bool{}
	for id, snap := range first {
		other := again[id]
		if !snap.Foreign || snap.Set == "" || snap.Set != other.Set || snap.Created.IsZero() || !snap.Created.Equal(other.Created) || snap.DiskCount != 1 || snap.DomainName != "" {
			t.Errorf("%s: %+v, then %+v", id, snap, other)
		}
		if sets[snap.Set] {
			t.Errorf("%s: another snapshot has the set %s, too", id, snap.Set)
		}
		sets[snap.Set] = true
		if uuid, ok := uuidOfForeign(snap.Set); !ok || uuid != s.lastReport().byID(id).uuid {
			t.Errorf("%s: the set is %s", id, snap.Set)
		}
	}
	if len(first) != 4 || !first["e/a.s-1"].Created.Equal(s.lastReport().byID("e/a.s-1").created) || first["e/a.s-1"].Created.Unix() != 1795252499 {
		t.Errorf("%+v", first)
	}
}

func TestVolumes_TakeTheirSpaceFromAPoolThatIsListed(t *testing.T) {
	s, _ := recorded(t, Options{}, 1)
	volumes, err := s.Volumes(t.Context(), []backend.Disk{{Source: "/dev/e/a"}, {Source: "/dev/e/inact"}, {Source: "/dev/e/r1"}, {Source: "/dev/e/t"}, {Source: "/dev/e/ts"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range recordedSnapshots(t, s) {
		volumes = append(volumes, snap.Volume)
	}
	listed, err := s.Pools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range listed {
		names = append(names, p.Name)
	}
	for _, v := range volumes {
		want := "e"
		if v.Driver == driverThin {
			want = "e:pool"
		}
		if v.Pool != want || !slices.Contains(names, v.Pool) {
			t.Errorf("%s takes its space from %q, want %q; there are %q", v.ID, v.Pool, want, names)
		}
	}
	// One that was just made is listed nowhere yet.
	r := s.lastReport()
	for origin, want := range map[string]string{"e/a": "e", "e/t": "e:pool"} {
		p := &plan{origin: r.byID(origin)}
		if want == "e" {
			p.cowBytes = 4 << 20
		}
		if sn := s.snapshotOf(nil, p.snapshot("domfs-x-0123456789ab", nil)); sn.Volume.Pool != want {
			t.Errorf("a new snapshot of %s takes its space from %q, want %q", origin, sn.Volume.Pool, want)
		}
	}
}

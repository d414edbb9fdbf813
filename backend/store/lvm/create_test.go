package lvm

import (
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/loop"
)

func TestVolumeName_IsLegalFreeAndLeavesRoomForSnapshots(t *testing.T) {
	for _, test := range []struct {
		name, vg, want string
		taken          []string
		is             string
		err            error
	}{
		{name: "plain", vg: "vg0", want: "web01-xvdb", is: "web01-xvdb"},
		{name: "taken", vg: "vg0", want: "web01-xvdb", taken: []string{"web01-xvdb", "web01-xvdb-2"}, is: "web01-xvdb-3"},
		{name: "blanks and slashes", vg: "vg0", want: "wéb 01/a-xvdb", is: "w_b_01_a-xvdb"},
		{name: "like a snapshot of ours", vg: "vg0", want: "domfs-web-xvdb", is: "vm-domfs-web-xvdb"},
		{name: "reserved", vg: "vg0", want: "snapshots-xvdb", is: "vm-snapshots-xvdb"},
		{name: "reserved within", vg: "vg0", want: "a_tdata_b-xvdb", is: "a.tdata.b-xvdb"},
		{name: "an option", vg: "vg0", want: "-xvdb", is: "vm--xvdb"},
		{name: "long", vg: "vg0", want: strings.Repeat("a", 200), is: strings.Repeat("a", 118)},
		{name: "long and taken", vg: "vg0", want: strings.Repeat("a", 200), taken: []string{strings.Repeat("a", 118)}, is: strings.Repeat("a", 115) + "-2"},
		{name: "no room", vg: strings.Repeat("-", 61), want: "a", err: backend.ErrUnsupported},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := &vg{name: test.vg}
			for _, name := range test.taken {
				g.lvs = append(g.lvs, &lv{vg: g, name: name})
			}
			got, err := volumeName(g, test.want)
			if got != test.is || !errors.Is(err, test.err) {
				t.Errorf("%q, %v, want %q, %v", got, err, test.is, test.err)
			}
			if n := len(dmName(test.vg, got) + realLayer); err == nil && n > maxDMName {
				t.Errorf("a device's name of %d bytes", n)
			}
		})
	}
}

// LVM is asked for nothing where a volume cannot be made: the transcript has no lvcreate.
func TestCreate_RefusesBeforeAnythingIsTouched(t *testing.T) {
	const m = 1 << 20
	cases := []struct {
		pool string
		size int64
		want error
		says string
	}{
		{"nothing", m, backend.ErrNoDevice, "no volume group nothing"},
		{"e:nothing", m, backend.ErrNoDevice, "no thin pool nothing"},
		{"e:t", m, backend.ErrNoDevice, "no thin pool t"},
		{"e", 1 << 50, backend.ErrNoSpace, "VG e has"},
		{"e", math.MaxInt64, backend.ErrInvalid, ""},
		{"e", 0, backend.ErrInvalid, ""},
		{"e", -1, backend.ErrInvalid, ""},
	}
	s, transcript := recorded(t, Options{}, len(cases))
	for _, c := range cases {
		v, err := s.Create(t.Context(), backend.VolumeRequest{Pool: c.pool, Name: "web01-xvdb", SizeBytes: c.size})
		if v != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %d: %v, want %v that says %q", c.pool, c.size, err, c.want, c.says)
		}
	}
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
}

func TestCreate_TakesNoThinPoolThatHandsOutOthersBytes(t *testing.T) {
	report, info, status := recordedHost(t)
	r, err := parseReport([]byte(report))
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(r, devicesOf(t, info, status))
	req := backend.VolumeRequest{Pool: "e:pool", Name: "web01-xvdb", SizeBytes: 5<<20 + 1}
	p, err := planVolume(h, req)
	if err != nil || p.pool != "pool" || p.bytes != 8<<20 || p.name != "web01-xvdb" {
		t.Errorf("%+v, %v", p, err)
	}
	pool := h.lv("e", "pool")
	pool.attr = strings.ReplaceAll(pool.attr, "z", "-")
	if _, err := planVolume(h, req); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "lvchange --zero y e/pool") {
		t.Errorf("%v", err)
	}
}

func TestDelete_RefusesWhatOthersNeed(t *testing.T) {
	cases := []struct {
		id   string
		want error
		says string
	}{
		{"e/a", backend.ErrBusy, "e/a.s-1"},
		{"e/t", backend.ErrBusy, "e/ts"},
		{"e/a.s-1", backend.ErrUnsupported, "snapshot"},
		{"e/pool", backend.ErrUnsupported, "part"},
		{"e/r1_rimage_0", backend.ErrUnsupported, "part"},
		{"e/gone", nil, ""},
	}
	s, transcript := recorded(t, Options{}, len(cases))
	for _, c := range cases {
		err := s.Delete(t.Context(), backend.Volume{Store: "lvm", ID: c.id})
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", c.id, err, c.want, c.says)
		}
	}
	if err := transcript.Check(); err != nil {
		t.Error(err)
	}
}

func TestVolumeState_IsOfOurRecordsAlone(t *testing.T) {
	for _, c := range []struct {
		tags []string
		want string
	}{
		{nil, ""},
		{[]string{"backup", "domfs-volume.state=pending"}, ""},
		{[]string{"domfs-volume.v2", "domfs-volume.state=pending"}, ""},
		{[]string{"domfs-volume.state=pending", "domfs-volume.v1"}, "pending"},
		{[]string{"domfs-volume.v1", "domfs-volume.id=a", "domfs-volume.state=cleared", "backup"}, "cleared"},
	} {
		if got := volumeState(c.tags); got != c.want {
			t.Errorf("%q: %q, want %q", c.tags, got, c.want)
		}
		// None of them makes a snapshot of it.
		if _, ours := parseTags(c.tags); ours {
			t.Errorf("%q is a snapshot's record", c.tags)
		}
	}
}

func TestZero_LeavesNothingOfWhatWasThere(t *testing.T) {
	const size = 3*zeroStep/2 + 512
	device, file := loop.Device(t, size)
	secret := []byte("another tenant's secret")
	for _, off := range []int64{0, zeroStep - 4, zeroStep, size - int64(len(secret))} {
		loop.Write(t, device, secret, off)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var steps []int64
	if err := zero(t.Context(), f, size, func(done, total int64) { steps = append(steps, done, total) }); err != nil {
		t.Fatal(err)
	}
	if want := []int64{zeroStep, size, size, size}; !slices.Equal(steps, want) {
		t.Errorf("progress %d, want %d", steps, want)
	}
	b, err := os.ReadFile(file)
	if err != nil || len(b) != size {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if i := slices.IndexFunc(b, func(c byte) bool { return c != 0 }); i >= 0 {
		t.Errorf("byte %d is not zero", i)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := zero(ended, f, size, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it ends", err)
	}
}

package lvm

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
)

func TestLabResize_RoundsAsLVMDoes(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "grow", 4, 256*mib)
	for _, line := range []string{
		"-n linear -L 8M grow",
		"-n striped -i3 -L 12M grow",
		"-n mixed -i2 -L 8M grow",
		"-n tailed -L 4M grow",
		"--type raid1 -m1 --nosync -n raid1 -L 8M grow",
		"--type raid10 -i2 -m1 --nosync -n raid10 -L 8M grow",
		"--type raid0 -i2 -n raid0 -L 8M grow",
		"--type thin -L 32M --thinpool pool -V 8M -n thin grow",
	} {
		lvmTool(t, "lvcreate -qq -y "+line)
	}
	lvmTool(t, "lvextend -qq -y -i1 -L +4M grow/mixed")
	lvmTool(t, "lvextend -qq -y -i2 -I16k -L +8M grow/tailed")
	s := New(Options{VGs: []string{"grow"}})
	for _, name := range []string{"linear", "striped", "mixed", "tailed", "raid1", "raid10", "raid0", "thin"} {
		id := "grow/" + name
		mark := randomBytes(mib)
		writeDevice(t, "/dev/"+id, mark, 0)
		t.Logf("growing %s", id) // it takes long: something is to be heard
		v := labVolume(t, s, id)
		sizes := []int64{20*mib + 1}
		if !strings.HasPrefix(name, "raid") { // each growth of those takes long
			sizes = []int64{1, 20*mib + 1}
		}
		for _, by := range sizes {
			want := s.RoundSize(v, v.SizeBytes+by)
			got, err := s.Resize(bg, v, v.SizeBytes+by)
			if err != nil || got != want {
				t.Errorf("%s from %d by %d: %d, %v, want %d", name, v.SizeBytes, by, got, err, want)
				break
			}
			if now := deviceBytes(t, "/dev/"+id); now != got {
				t.Errorf("%s: the device has %d bytes, want %d", name, now, got)
			}
			now := labVolume(t, s, id)
			if now.SizeBytes != got || now.Generation == v.Generation {
				t.Errorf("%s is %+v, was %+v", name, now, v)
			}
			v = now
		}
		if again, err := s.Resize(bg, v, v.SizeBytes); err != nil || again != v.SizeBytes {
			t.Errorf("%s to its size: %d, %v", name, again, err)
		}
		if name == "tailed" {
			layout := strings.Fields(lvmTool(t, "lvs --noheadings --nosuffix --units k --separator : -o stripes,stripe_size --segments "+id))
			if want := append([]string{"1:0"}, slices.Repeat([]string{"2:16.00"}, len(layout)-1)...); !slices.Equal(layout, want) {
				t.Errorf("%s has segments of %q, want %q", name, layout, want)
			}
		}
		if !bytes.Equal(readDevice(t, "/dev/"+id, mib, 0), mark) {
			t.Errorf("%s lost what it had", name)
		}
	}
}

func TestLabResize_EndsExactlyWhereTheVGDoes(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "filled", 2, 128*mib)
	lvmTool(t, "lvcreate -qq -y -n a -L 8M filled")
	lvmTool(t, "lvcreate -qq -y --type raid1 -m1 --nosync -n r -L 8M filled")
	s := New(Options{VGs: []string{"filled"}})
	free := deviceFree(t, "filled")
	v := labVolume(t, s, "filled/a")
	unchanged(t, "filled", func() {
		_, err := s.Resize(bg, v, 8*mib+free+1)
		isRefusal(t, "one extent too many", err, backend.ErrNoSpace, "VG filled", sizeText(free)+" free", sizeText(free+4*mib)+" more")
		_, err = s.Resize(bg, labVolume(t, s, "filled/r"), 8*mib+free/2+4*mib)
		isRefusal(t, "raid1 takes twice", err, backend.ErrNoSpace, "VG filled", sizeText(free)+" free")
		_, err = s.Resize(bg, v, 4*mib)
		isRefusal(t, "smaller", err, backend.ErrPermission)
	})
	got, err := s.Resize(bg, v, 8*mib+free)
	if err != nil || got != 8*mib+free {
		t.Errorf("all there is: %d, %v", got, err)
	}
	if left := deviceFree(t, "filled"); left != 0 {
		t.Errorf("%d bytes are free", left)
	}
}

func TestLabResize_OfAVolumeWithSnapshots(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "kept", 1, 256*mib)
	lvmTool(t, "lvcreate -qq -y -n a -L 8M kept")
	lvmTool(t, "lvcreate -qq -y --type thin -L 32M --thinpool pool -V 8M -n t kept")
	s := New(Options{VGs: []string{"kept"}})
	ours := labSnapshot(t, s, "kept/a", labSet, "xvda")
	lvmTool(t, "lvcreate -qq -y -s -n byhand -L 8M kept/a")
	thin := labSnapshot(t, s, "kept/t", labSet, "xvdb")
	unchanged(t, "kept", func() {
		_, err := s.Resize(bg, labVolume(t, s, "kept/a"), 16*mib)
		isRefusal(t, "thick", err, backend.ErrBusy, `"nightly" of web-01`, ours.Volume.ID, "kept/byhand")
		_, err = s.Resize(bg, ours.Volume, 16*mib)
		isRefusal(t, "a snapshot", err, backend.ErrReadOnly)
	})
	want := readDevice(t, thin.Path, 8*mib, 0)
	if got, err := s.Resize(bg, labVolume(t, s, "kept/t"), 16*mib); err != nil || got != 16*mib {
		t.Errorf("thin: %d, %v", got, err)
	}
	if n := deviceBytes(t, thin.Path); n != 8*mib || !bytes.Equal(readDevice(t, thin.Path, 8*mib, 0), want) {
		t.Errorf("the thin snapshot has %d bytes, or others, by now", n)
	}
	// A pool may promise more than it has.
	if got, err := s.Resize(bg, labVolume(t, s, "kept/t"), gib); err != nil || got != gib {
		t.Errorf("thin: %d, %v", got, err)
	}
}

func TestLabExtendReserve_EndsAtWhatASnapshotCanUse(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "reserve", 1, 512*mib)
	lvmTool(t, "lvcreate -qq -y -n a -L 24M reserve")
	lvmTool(t, "lvcreate -qq -y --type thin -L 32M --thinpool pool -V 8M -n t reserve")
	s := New(Options{VGs: []string{"reserve"}, SnapshotSize: "8M"})
	sn := labSnapshot(t, s, "reserve/a", labSet, "xvda")
	thin := labSnapshot(t, s, "reserve/t", labSet, "xvdb")
	if sn.ReserveBytes != 8*mib {
		t.Errorf("it has %d bytes", sn.ReserveBytes)
	}
	if most := s.MaxReserve(sn); most != 28*mib {
		t.Errorf("MaxReserve is %d", most)
	}
	before := readDevice(t, sn.Path, 6*mib, 0)
	writeDevice(t, "/dev/reserve/a", randomBytes(6*mib), 0)
	for _, step := range []struct{ to, want int64 }{{8 * mib, 8 * mib}, {8*mib - 1, 8 * mib}, {8*mib + 1, 12 * mib}, {20 * mib, 20 * mib}, {gib, 28 * mib}, {29 * mib, 28 * mib}} {
		got, err := s.ExtendReserve(bg, sn, step.to)
		t.Logf("to %d: %d", step.to, got)
		if err != nil || got != step.want {
			t.Errorf("to %d: %d, %v, want %d", step.to, got, err, step.want)
		}
		if l := labListed(t, s, sn.Volume.ID); l == nil || l.ReserveBytes != step.want || l.State != backend.SnapshotActive {
			t.Errorf("listed as %+v", l)
		}
	}
	writeDevice(t, "/dev/reserve/a", randomBytes(24*mib), 0) // all of it: it cannot overflow now
	if got := labListed(t, s, sn.Volume.ID); got == nil || got.State != backend.SnapshotActive || got.FillPercent > 100 {
		t.Errorf("listed as %+v", got)
	}
	if !bytes.Equal(readDevice(t, sn.Path, 6*mib, 0), before) {
		t.Error("the snapshot changed")
	}
	unchanged(t, "reserve", func() {
		_, err := s.ExtendReserve(bg, sn, 20*mib)
		isRefusal(t, "smaller", err, backend.ErrPermission)
		_, err = s.ExtendReserve(bg, thin, 50*mib)
		isRefusal(t, "thin", err, backend.ErrUnsupported)
	})
	if s.MaxReserve(thin) != 0 {
		t.Errorf("MaxReserve of a thin one is %d", s.MaxReserve(thin))
	}
	// One that has overflowed is lost.
	lost := labSnapshot(t, s, "reserve/a", "20260203T040506000-bbbbbbbbbb", "xvda")
	writeDevice(t, "/dev/reserve/a", randomBytes(20*mib), 0)
	labneed.Eventually(t, "the snapshot overflows", func() bool {
		_, name, _ := strings.Cut(lost.Volume.ID, "/")
		return strings.Contains(labneed.Run(t, "dmsetup", "status", dmName("reserve", name)), "Invalid")
	})
	_, err := s.ExtendReserve(bg, lost, 40*mib)
	isRefusal(t, "invalid", err, backend.ErrUnsupported, "remove it")
	for _, one := range []backend.Snapshot{sn, thin, lost} {
		if err := s.Remove(bg, one); err != nil {
			t.Error(err)
		}
	}
}

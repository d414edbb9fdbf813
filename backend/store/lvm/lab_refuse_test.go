package lvm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
)

const labSet = "20260203T040506000-aaaaaaaaaa"

// isRefusal fails the test if err is not want, or does not say all of says.
func isRefusal(t *testing.T, what string, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
		return
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q does not say %q", what, err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %q has several lines", what, err)
	}
	t.Logf("%s: %v", what, err)
}

func TestLabPrepare_RefusesBeforeAnythingIsTouched(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "refuse", 3, 256*mib) // 3 × 63 extents
	for _, line := range []string{
		"-n one -L 40M refuse",
		"-n two -L 40M refuse",
		"-n off -L 8M refuse",
		"--type mirror -m1 --nosync -n mirror -L 8M refuse",
		"--type thin -L 32M --thinpool pool -V 16M -n thin refuse",
		"-s -n byhand -L 8M refuse/one",
	} {
		lvmTool(t, "lvcreate -qq -y "+line)
	}
	labneed.Deactivate(t, "refuse/off")
	s := New(Options{VGs: []string{"refuse"}})
	prepare := func(reqs ...backend.SnapshotRequest) error {
		g, err := s.Prepare(bg, reqs, true)
		if err == nil {
			g.Release()
		}
		return err
	}
	req := func(name, vdev string) backend.SnapshotRequest {
		r := labRequest(t, s, "refuse/"+name, labSet, vdev)
		r.Origin.Err = nil // what control would refuse by itself
		return r
	}
	if err := prepare(req("one", "xvda"), req("two", "xvdb"), req("thin", "xvdc")); err != nil {
		t.Fatalf("what can be done is refused: %v", err)
	}
	unchanged(t, "refuse", func() {
		isRefusal(t, "a snapshot of a snapshot", prepare(req("byhand", "xvda")), backend.ErrUnsupported, "thick snapshot of refuse/one")
		isRefusal(t, "a mirror", prepare(req("mirror", "xvda")), backend.ErrUnsupported, "type mirror")
		isRefusal(t, "an inactive LV", prepare(req("off", "xvda")), backend.ErrUnsupported, "lvchange -ay refuse/off")
		missing := req("one", "xvda")
		missing.Origin.ID = "refuse/nothing"
		isRefusal(t, "a missing LV", prepare(missing), backend.ErrNotExist, "refuse/nothing")
		long := req("one", "xvda")
		long.Meta.Disk.Source = "/" + strings.Repeat("x", 20<<10)
		isRefusal(t, "a record that is too long", prepare(long), backend.ErrInvalid, "16384 bytes")
		other := New(Options{VGs: []string{"refuse"}, SnapshotSize: "0%"})
		_, err := other.Prepare(bg, []backend.SnapshotRequest{req("one", "xvda")}, true)
		isRefusal(t, "a policy that is none", err, backend.ErrInvalid, "0%")
	})
	// Room for one of 44 MiB, not for two.
	free := deviceFree(t, "refuse")
	lvmTool(t, "lvcreate -qq -y -n fill -l "+sizeInExtents(free-44*mib)+" refuse")
	unchanged(t, "refuse", func() {
		if err := prepare(req("two", "xvdb")); err != nil {
			t.Errorf("exactly enough is refused: %v", err)
		}
		isRefusal(t, "two in one VG", prepare(req("one", "xvda"), req("two", "xvdb")), backend.ErrNoSpace, "VG refuse", "44 MiB free", "need 88 MiB", "22 extents of 11", "xvda 44 MiB", "xvdb 44 MiB")
	})
	sn := labSnapshot(t, s, "refuse/two", labSet, "xvdb")
	if sn.ReserveBytes != 44*mib {
		t.Errorf("the snapshot has %d bytes", sn.ReserveBytes)
	}
	unchanged(t, "refuse", func() {
		isRefusal(t, "none in one VG", prepare(req("one", "xvda")), backend.ErrNoSpace, "0 bytes free", "need 44 MiB")
		_, err := s.ExtendReserve(bg, *labListed(t, s, "refuse/byhand"), 12*mib)
		isRefusal(t, "ExtendReserve", err, backend.ErrNoSpace, "4 MiB more", "0 bytes free")
		again := req("two", "xvdb")
		isRefusal(t, "the same set again", prepare(again), backend.ErrExist, sn.Volume.ID)
	})
	// A pool that is all but full of data.
	writeDevice(t, "/dev/refuse/thin", randomBytes(16*mib), 0)
	lvmTool(t, "lvcreate -qq -y -V 16M --thinpool pool -n more refuse")
	writeDevice(t, "/dev/refuse/more", randomBytes(15*mib), 0)
	unchanged(t, "refuse", func() {
		isRefusal(t, "a full pool", prepare(req("thin", "xvda")), backend.ErrNoSpace, "refuse/pool", "96 % full", "of 512 chunks", "from 95 %")
		_, err := s.Resize(bg, labVolume(t, s, "refuse/thin"), 32*mib)
		isRefusal(t, "growth in a full pool", err, backend.ErrNoSpace, "refuse/pool", "96 % full")
	})
}

func deviceFree(t *testing.T, vgName string) int64 {
	t.Helper()
	n, ok := parseSize(lvmTool(t, "vgs --noheadings --nosuffix --units b -o vg_free "+vgName))
	if !ok {
		t.Fatal("vgs says no size")
	}
	return n
}

func sizeInExtents(n int64) string { return sizeOf(n / (4 * mib)) }

func sizeOf(n int64) string { return SizePolicy{bytes: n}.String() }

func TestLabPrepare_RefusesInAVGWithAMissingPV(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	file := labneed.File(t, 128*mib)
	loop := labneed.Attach(t, file)
	whole := labneed.Disk(t, 128*mib)
	labneed.VG(t, "missing", whole, loop)
	lvmTool(t, "lvcreate -qq -y -n there -L 8M missing "+whole)
	lvmTool(t, "lvcreate -qq -y -n gone -L 8M missing "+loop)
	s := New(Options{VGs: []string{"missing"}})
	req := labRequest(t, s, "missing/there", labSet, "xvda")
	sn := labSnapshot(t, s, "missing/there", "20260203T040506000-bbbbbbbbbb", "xvda")
	labneed.Deactivate(t, "missing/gone")
	labneed.Detach(t, loop)
	t.Cleanup(func() { labneed.Try("vgreduce", "-qq", "-y", "--removemissing", "--force", "missing") })
	_, err := s.Prepare(bg, []backend.SnapshotRequest{req}, true)
	isRefusal(t, "Prepare", err, backend.ErrIO, "VG missing lacks 1 of its physical volumes")
	_, err = s.Resize(bg, req.Origin, 16*mib)
	isRefusal(t, "Resize", err, backend.ErrIO, "VG missing lacks 1")
	// What is there already can be used and removed.
	m := sn.SnapshotMeta
	m.Name = "renamed"
	if err := s.Annotate(bg, sn.With(m)); err != nil {
		t.Errorf("Annotate: %v", err)
	}
	if err := s.Repair(bg); err != nil {
		t.Errorf("Repair: %v", err)
	}
	if got := labListed(t, s, sn.Volume.ID); got == nil || got.Name != "renamed" || got.Volume.Err != nil {
		t.Errorf("listed as %+v", got)
	}
	if err := s.Remove(bg, sn); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestLabRemove_NamesWhoHasItOpen(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "open-thick", 1, 256*mib)
	lvmTool(t, "lvcreate -qq -y -n disk -L 8M open-thick")
	labVG(t, "open-thin", 1, 256*mib)
	lvmTool(t, "lvcreate -qq -y --type thin -L 32M --thinpool pool -V 8M -n disk open-thin")
	// LVM hopes for 5 s that who has a volume open closes it, and its VG is locked meanwhile: the two kinds wait side by side.
	t.Run("kinds", func(t *testing.T) {
		for _, vgName := range []string{"open-thick", "open-thin"} {
			t.Run(vgName, func(t *testing.T) {
				t.Parallel()
				s := New(Options{VGs: []string{vgName}})
				sn := labSnapshot(t, s, vgName+"/disk", labSet, "xvda")
				p := startHolder(t, "/dev/"+sn.Volume.ID)
				isRefusal(t, "a process", s.Remove(bg, sn), backend.ErrBusy, sn.Volume.ID, p.name)
				if got := labListed(t, s, sn.Volume.ID); got == nil || got.State != backend.SnapshotActive {
					t.Errorf("listed as %+v", got)
				}
				p.stop()
				above := labneed.Run(t, "losetup", "--find", "--show", "--read-only", sn.Path)
				err := s.Remove(bg, sn)
				labneed.Run(t, "losetup", "--detach", above)
				isRefusal(t, "a device above it", err, backend.ErrBusy, sn.Volume.ID)
				labneed.Settle(t)
				if err := s.Remove(bg, sn); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

func TestLabForeignSnapshots_AreLeftAlone(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "foreign", 1, 256*mib)
	lvmTool(t, "lvcreate -qq -y -n a -L 8M foreign")
	lvmTool(t, "lvcreate -qq -y --type thin -L 32M --thinpool pool -V 8M -n t foreign")
	lvmTool(t, "lvcreate -qq -y -s -n domfs-a-0123456789ab -L 8M foreign/a") // a name like ours
	lvmTool(t, "lvcreate -qq -y -s -n byhand foreign/t")                     // skipped at activation
	lvmTool(t, "lvcreate -qq -y -n domfs-b-0123456789ab -L 8M --addtag owner=x foreign")
	s := New(Options{VGs: []string{"foreign"}})
	unchanged(t, "foreign", func() {
		if err := s.Repair(bg); err != nil {
			t.Error(err)
		}
		snaps, err := s.Snapshots(bg)
		if err != nil || len(snaps) != 2 {
			t.Fatalf("Snapshots = %+v, %v", snaps, err)
		}
		for _, sn := range snaps {
			if !sn.Foreign {
				t.Errorf("%s is ours", sn.Volume.ID)
			}
			isRefusal(t, "Annotate", s.Annotate(bg, sn.With(sn.SnapshotMeta)), backend.ErrPermission)
			as := sn
			as.Foreign, as.Set, as.Disk.VDev = false, labSet, "xvda"
			isRefusal(t, "Remove as ours", s.Remove(bg, as), backend.ErrStale, sn.Volume.ID)
			as = sn
			as.Set = snaps[0].Set[:len(snaps[0].Set)-1] + "?"
			isRefusal(t, "Remove of another", s.Remove(bg, as), backend.ErrInvalid)
			as.Set = "lvm-" + strings.Repeat("a", len(sn.Set)-len("lvm-"))
			if err := s.Remove(bg, as); !errors.Is(err, backend.ErrStale) && !errors.Is(err, backend.ErrInvalid) {
				t.Errorf("Remove of another: %v", err)
			}
		}
	})
	snaps, _ := s.Snapshots(bg)
	for _, sn := range snaps {
		if err := s.Remove(bg, sn); err != nil {
			t.Error(err)
		}
	}
	if snaps, err := s.Snapshots(bg); err != nil || len(snaps) != 0 {
		t.Errorf("after Remove: %+v, %v", snaps, err)
	}
	if _, err := os.Stat("/dev/foreign/domfs-b-0123456789ab"); err != nil {
		t.Error(err)
	}
}

func TestLabAnnotate_KeepsTheTagsOfOthers(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	labVG(t, "tags", 1, 128*mib)
	lvmTool(t, "lvcreate -qq -y -n a -L 8M tags")
	s := New(Options{VGs: []string{"tags"}})
	sn := labSnapshot(t, s, "tags/a", labSet, "xvda")
	lvmTool(t, "lvchange -qq --addtag owner=backup "+sn.Volume.ID)
	m := sn.SnapshotMeta
	m.Name, m.Hold = "é & \"x\"", true
	if err := s.Annotate(bg, sn.With(m)); err != nil {
		t.Fatal(err)
	}
	if got := labListed(t, s, sn.Volume.ID); got == nil || got.SnapshotMeta != m {
		t.Errorf("listed as %+v, want %+v", got, m)
	}
	// The caller's knowledge may be old: what it gives is what is there in the end.
	again := sn.SnapshotMeta
	if err := s.Annotate(bg, sn.With(again)); err != nil {
		t.Fatal(err)
	}
	if got := labListed(t, s, sn.Volume.ID); got == nil || got.SnapshotMeta != again {
		t.Errorf("listed as %+v, want %+v", got, again)
	}
	if tags := lvmTool(t, "lvs --noheadings -o lv_tags "+sn.Volume.ID); !strings.Contains(tags, "owner=backup") {
		t.Errorf("tags are %q", tags)
	}
	// Of several that one tool is to change, one that others have written to is changed all the same, and one that is gone is told of.
	other := labSnapshot(t, s, "tags/a", labSet, "xvdb")
	lvmTool(t, "lvchange -qq --addtag owner=other "+other.Volume.ID)
	n := other.SnapshotMeta
	n.Name, n.Hold = m.Name, m.Hold
	if err := s.Annotate(bg, sn.With(m), other.With(n)); err != nil {
		t.Fatal(err)
	}
	if a, b := labListed(t, s, sn.Volume.ID), labListed(t, s, other.Volume.ID); a == nil || b == nil || a.SnapshotMeta != m || b.SnapshotMeta != n {
		t.Errorf("listed as %+v and %+v, want %+v and %+v", a, b, m, n)
	}
	if tags := lvmTool(t, "lvs --noheadings -o lv_tags tags"); !strings.Contains(tags, "owner=backup") || !strings.Contains(tags, "owner=other") {
		t.Errorf("tags are %q", tags)
	}
	lvmTool(t, "lvremove -qq -f -y "+other.Volume.ID)
	isRefusal(t, "Annotate", s.Annotate(bg, sn.With(again), other.With(other.SnapshotMeta)), backend.ErrNotExist)
	// Another volume of the same name is not touched.
	lvmTool(t, "lvremove -qq -f -y "+sn.Volume.ID)
	_, name, _ := strings.Cut(sn.Volume.ID, "/")
	lvmTool(t, "lvcreate -qq -y -n "+name+" -L 4M tags")
	unchanged(t, "tags", func() {
		isRefusal(t, "Annotate", s.Annotate(bg, sn.With(m)), backend.ErrStale, sn.Volume.ID)
		isRefusal(t, "Remove", s.Remove(bg, sn), backend.ErrStale, sn.Volume.ID)
		_, err := s.ExtendReserve(bg, sn, 16*mib)
		isRefusal(t, "ExtendReserve", err, backend.ErrStale, sn.Volume.ID)
	})
	// A later version's record is not touched either.
	lvmTool(t, "lvremove -qq -f -y tags/"+name)
	sn = labSnapshot(t, s, "tags/a", labSet, "xvda")
	lvmTool(t, "lvchange -qq --deltag domfs.v1 --addtag domfs.v2 "+sn.Volume.ID)
	unchanged(t, "tags", func() {
		isRefusal(t, "Annotate", s.Annotate(bg, sn.With(m)), backend.ErrUnsupported, "version 2")
		isRefusal(t, "Remove", s.Remove(bg, sn), backend.ErrUnsupported, "version 2")
		if err := s.Repair(bg); err != nil {
			t.Error(err)
		}
	})
}

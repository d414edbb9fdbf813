package lvm

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
)

// makeAndRemove makes a volume in a pool, keeps it, and removes it.
func makeAndRemove(pool string) error {
	vgName, _, _ := strings.Cut(pool, ":")
	s := New(Options{VGs: []string{vgName}})
	n, err := s.Create(bg, backend.VolumeRequest{Pool: pool, Name: "web01-xvdb", SizeBytes: 8 * mib})
	if err != nil {
		return err
	}
	if err := errors.Join(n.Clear(bg, nil), n.Close(), s.Keep(bg, n.Volume())); err != nil {
		return err
	}
	return s.Delete(bg, n.Volume())
}

// createVG makes a VG with a thin pool.
func createVG(t *testing.T, vgName string) {
	t.Helper()
	labVG(t, vgName, 1, 256*mib)
	lvmTool(t, "lvcreate -qq -y --type thin-pool -n pool -L 32M "+vgName)
}

// usedVG is createVG of a VG whose free extents hold what another guest had there.
func usedVG(t *testing.T, vgName string) {
	t.Helper()
	createVG(t, vgName)
	lvmTool(t, "lvcreate -qq -y -n secret -L 64M "+vgName)
	writeDevice(t, "/dev/"+vgName+"/secret", bytes.Repeat([]byte("secret.."), 8<<20), 0)
	lvmTool(t, "lvremove -qq -f -y "+vgName+"/secret")
}

func lvTags(t *testing.T, id string) string {
	t.Helper()
	return lvmTool(t, "lvs --noheadings -o lv_tags "+id)
}

func TestLabCreate_MakesVolumesThatReadAsZeroes(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	usedVG(t, "made-thick")
	createVG(t, "made-thin")
	// LVM hopes for 5 s that who has a volume open closes it, and its VG is locked meanwhile: the two kinds wait side by side.
	t.Run("kinds", func(t *testing.T) {
		for _, pool := range []string{"made-thick", "made-thin:pool"} {
			t.Run(pool, func(t *testing.T) {
				t.Parallel()
				madeIn(t, pool)
			})
		}
	})
}

func madeIn(t *testing.T, pool string) {
	vgName, _, isThin := strings.Cut(pool, ":")
	s := New(Options{VGs: []string{vgName}})
	other := New(Options{VGs: []string{vgName}})
	n, err := s.Create(bg, backend.VolumeRequest{Pool: pool, Name: "web01-xvdb", SizeBytes: 61*mib + 1})
	if err != nil {
		t.Fatal(err)
	}
	v := n.Volume()
	if !isThin && !bytes.Contains(readDevice(t, n.Source(), mib, mib), []byte("secret")) {
		t.Log("the extents are others than those with the secret")
	}
	if err := other.Repair(bg); err != nil || labVolume(t, s, v.ID).Err != nil {
		t.Fatalf("%s: another daemon's Repair: %v, %v", pool, err, labVolume(t, s, v.ID).Err)
	}
	if err := n.Clear(bg, nil); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if got := labVolume(t, s, v.ID); !got.Unfinished || got.SizeBytes != 64*mib || got.Pool != pool || got.SizeBytes != v.SizeBytes || got.Driver != v.Driver {
		t.Errorf("%s: the volume is %+v, and was said to be %+v", pool, got, v)
	}
	if b := readDevice(t, n.Source(), 64*mib, 0); len(bytes.TrimRight(b, "\x00")) != 0 {
		t.Errorf("%s: it does not read as zeroes", pool)
	}
	if err := s.Keep(bg, v); err != nil || labVolume(t, s, v.ID).Unfinished || lvTags(t, v.ID) != "" {
		t.Errorf("%s: kept: %v, with the tags %q", pool, err, lvTags(t, v.ID))
	}
	if err := s.Keep(bg, v); err != nil {
		t.Errorf("%s: kept again: %v", pool, err)
	}
	if err := other.Repair(bg); err != nil || labVolume(t, s, v.ID).Err != nil {
		t.Errorf("%s: Repair took what was kept: %v", pool, err)
	}
	f, err := os.Open(n.Source())
	if err != nil {
		t.Fatal(err)
	}
	err = s.Delete(bg, v)
	f.Close()
	isRefusal(t, "open", err, backend.ErrBusy, v.ID)
	sn := labSnapshot(t, s, v.ID, labSet, "xvdb")
	isRefusal(t, "with a snapshot", s.Delete(bg, v), backend.ErrBusy, sn.Volume.ID)
	if err := s.Remove(bg, sn); err != nil {
		t.Error(err)
	}
	if err := s.Delete(bg, v); err != nil {
		t.Error(err)
	}
	if err := s.Delete(bg, v); err != nil {
		t.Errorf("%s: removed again: %v", pool, err)
	}
	if _, err := labneed.Try("lvs", v.ID); err == nil {
		t.Errorf("%s is there still", v.ID)
	}
}

func TestLabCreate_RefusesWithNumbers(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	createVG(t, "tight")
	lvmTool(t, "lvcreate -qq -y --type thin-pool -n dirty -Zn -L 8M tight")
	s := New(Options{VGs: []string{"tight"}})
	free := deviceFree(t, "tight")
	unchanged(t, "tight", func() {
		_, err := s.Create(bg, backend.VolumeRequest{Pool: "tight", Name: "a", SizeBytes: free + 1})
		isRefusal(t, "one extent too many", err, backend.ErrNoSpace, "VG tight", sizeText(free)+" free")
		_, err = s.Create(bg, backend.VolumeRequest{Pool: "tight:dirty", Name: "a", SizeBytes: mib})
		isRefusal(t, "a pool that does not zero", err, backend.ErrUnsupported, "lvchange --zero y tight/dirty")
		_, err = s.Create(bg, backend.VolumeRequest{Pool: "tight:nothing", Name: "a", SizeBytes: mib})
		isRefusal(t, "no pool", err, backend.ErrNoDevice)
	})
	n, err := s.Create(bg, backend.VolumeRequest{Pool: "tight", Name: "a", SizeBytes: free})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if left := deviceFree(t, "tight"); left != 0 {
		t.Errorf("%d bytes are free", left)
	}
}

func TestLabCreate_SurvivesACrashAtEveryStep(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	createVG(t, "cut")
	there := func() bool {
		_, err := labneed.Try("lvs", "cut/web01-xvdb")
		return err == nil
	}
	for _, pool := range []string{"cut", "cut:pool"} {
		t.Run(pool, func(t *testing.T) {
			c := newCrasher(t, "volume", pool)
			c.run(t, "")
			points := c.points(t)
			for _, point := range []string{"lvm.create.begin", "lvm.create.created", "lvm.create.open", "lvm.create.zeroed", "lvm.create.cleared", "lvm.keep.begin", "lvm.keep.done", "lvm.delete.begin", "lvm.delete.done"} {
				if !slices.Contains(points, point) && !(pool != "cut" && point == "lvm.create.zeroed") {
					t.Errorf("%s was not passed", point)
				}
			}
			for _, point := range points {
				if !c.run(t, point) {
					t.Errorf("%s is not passed", point)
				}
				labneed.Settle(t)
				if err := New(Options{VGs: []string{"cut"}}).Repair(bg); err != nil {
					t.Errorf("%s: Repair: %v", point, err)
				}
				kept := point == "lvm.keep.done" || point == "lvm.delete.begin"
				isThere := there()
				if isThere != kept {
					t.Errorf("killed at %s: the volume is there: %t", point, isThere)
				}
				if isThere {
					lvmTool(t, "lvremove -qq -f -y cut/web01-xvdb")
				}
				t.Logf("killed at %s: settled", point)
			}
			// What a guest has written to is no leftover.
			c.run(t, "lvm.create.cleared")
			time.Sleep(time.Second)
			writeDevice(t, "/dev/cut/web01-xvdb", randomBytes(4096), 64<<10)
			labneed.Settle(t)
			if err := New(Options{VGs: []string{"cut"}}).Repair(bg); err != nil || !there() || lvTags(t, "cut/web01-xvdb") != "" {
				t.Errorf("Repair of one that was used: %v; it is there: %t", err, there())
			}
			lvmTool(t, "lvremove -qq -f -y cut/web01-xvdb")
		})
	}
}

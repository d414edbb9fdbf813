package lvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/loop"
)

// labHost makes VGs of two disks each, which are gone when the test ends.
func labHost(t *testing.T, vgs ...string) {
	t.Helper()
	labneed.LVM(t)
	labneed.Leftovers(t)
	for _, vg := range vgs {
		labneed.VG(t, vg, labneed.Disk(t, 512<<20), labneed.Disk(t, 512<<20))
	}
}

// tool runs a line of words.
func tool(t *testing.T, line string) string {
	t.Helper()
	return labneed.Run(t, strings.Fields(line)...)
}

// seen is the volume behind a path.
func seen(t *testing.T, s *Store, path string) backend.Volume {
	t.Helper()
	volumes, err := s.Volumes(t.Context(), []backend.Disk{{VDev: "xvda", Source: path}})
	if err != nil || len(volumes) != 1 {
		t.Fatalf("Volumes(%s) = %+v, %v", path, volumes, err)
	}
	return volumes[0]
}

// allSeen are the volumes behind paths.
func allSeen(t *testing.T, s *Store, paths ...string) map[string]backend.Volume {
	t.Helper()
	var disks []backend.Disk
	for _, path := range paths {
		disks = append(disks, backend.Disk{VDev: "xvda", Source: path})
	}
	volumes, err := s.Volumes(t.Context(), disks)
	if err != nil || len(volumes) != len(paths) {
		t.Fatalf("Volumes(%q) = %+v, %v", paths, volumes, err)
	}
	found := map[string]backend.Volume{}
	for i, v := range volumes {
		found[paths[i]] = v
	}
	return found
}

// listed is the snapshot with an ID.
func listed(t *testing.T, s *Store, id string) backend.Snapshot {
	t.Helper()
	snaps, err := s.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(snaps, func(snap backend.Snapshot) bool { return snap.Volume.ID == id })
	if i < 0 {
		t.Fatalf("%s is not among %+v", id, snaps)
	}
	return snaps[i]
}

// noiseBytes are n bytes that nothing else has.
func noiseBytes(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func contentsOf(t *testing.T, d backend.Device) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustOpen(t *testing.T, s *Store, v backend.Volume) backend.Device {
	t.Helper()
	d, err := s.Open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLabVolumes_AreReadWhateverTheirKind(t *testing.T) {
	labHost(t, "labkinds", "lab-two")
	tool(t, "lvcreate -q -y -n linear -L 8M labkinds")
	tool(t, "lvcreate -q -y -n striped -i 2 -L 8M labkinds")
	tool(t, "lvcreate -q -y -n raid --type raid1 -m 1 -L 8M labkinds")
	tool(t, "lvcreate -q -y -n mirror --type mirror -m 1 -L 8M labkinds")
	tool(t, "lvcreate -q -y -n origin -L 8M labkinds")
	tool(t, "lvcreate -q -s -n snap -L 12M labkinds/origin")
	tool(t, "lvcreate -q --type thin -L 64M --thinpool pool -V 8M -n thin labkinds")
	tool(t, "lvcreate -q -y -n other-lv -L 8M lab-two")
	s := New(Options{})
	for i, c := range []struct{ id, driver, pool string }{
		{"labkinds/linear", "lvm", "labkinds"}, {"labkinds/striped", "lvm", "labkinds"}, {"labkinds/raid", "lvm", "labkinds"}, {"labkinds/mirror", "lvm", "labkinds"},
		{"labkinds/origin", "lvm", "labkinds"}, {"labkinds/snap", "lvm", "labkinds"}, {"labkinds/thin", "lvm-thin", "labkinds:pool"}, {"lab-two/other-lv", "lvm", "lab-two"},
	} {
		t.Run(c.id, func(t *testing.T) {
			want := noiseBytes(8<<20, byte(i))
			loop.Write(t, "/dev/"+c.id, want, 0)
			v := seen(t, s, "/dev/"+c.id)
			if v.Store != "lvm" || v.ID != c.id || v.Driver != c.driver || v.Pool != c.pool || v.Format != "raw" || v.SizeBytes != 8<<20 || v.Holder != "" || v.Err != nil {
				t.Errorf("Volumes = %+v, want %+v", v, c)
			}
			d := mustOpen(t, s, v)
			if _, ok := d.(backend.Locator); ok {
				t.Errorf("%s can be written to, and can be spliced", c.id)
			}
			if !bytes.Equal(contentsOf(t, d), want) {
				t.Errorf("%s: other bytes are read", c.id)
			}
			if again := seen(t, s, "/dev/"+c.id); again != v {
				t.Errorf("Volumes = %+v with our own handle open, was %+v", again, v)
			}
			loop.Write(t, "/dev/"+c.id, []byte("changed"), 4096)
			if after := seen(t, s, "/dev/"+c.id); after.Generation == v.Generation {
				t.Errorf("%s: the generation stays after a write", c.id)
			}
			got := make([]byte, 7)
			if _, err := d.ReadAt(got, 4096); err != nil || string(got) != "changed" {
				t.Errorf("%s: read %q, %v through a handle that was open before the write", c.id, got, err)
			}
		})
	}
	pools, err := s.Pools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]backend.Pool{}
	for _, p := range pools {
		names[p.Name] = p
	}
	if p := names["labkinds:pool"]; p.Driver != "lvm-thin" || p.SizeBytes != 64<<20 || p.FreeBytes != 56<<20 || p.MetadataSizeBytes != 4<<20 || p.MetadataFreeBytes <= 0 || p.MetadataFreeBytes >= 4<<20 {
		t.Errorf("the thin pool is %+v", p)
	}
	if p, free := names["lab-two"], tool(t, "vgs --noheadings --units b --nosuffix -o vg_free lab-two"); p.Driver != "lvm" || p.SizeBytes != 1016<<20 || free != "1056964608" || p.FreeBytes != 1056964608 {
		t.Errorf("the VG is %+v; vgs says %s free", p, free)
	}
	// A store for one VG leaves the others' disks to other stores.
	one := New(Options{VGs: []string{"lab-two"}})
	if v := seen(t, one, "/dev/labkinds/linear"); v.Store != "" {
		t.Errorf("Volumes = %+v of a VG that the store is not for", v)
	}
	if v := seen(t, one, "/dev/lab-two/other-lv"); v.ID != "lab-two/other-lv" || v.Err != nil {
		t.Errorf("Volumes = %+v", v)
	}
	if pools, err := one.Pools(t.Context()); err != nil || len(pools) != 1 || pools[0].Name != "lab-two" {
		t.Errorf("Pools = %+v, %v", pools, err)
	}
}

func TestLabVolumes_AreFoundByAnyPath(t *testing.T) {
	labHost(t, "lab.a-b_c+D", "lab--")
	const lvName = "z.-+_09--x-Y"
	for _, vg := range []string{"lab.a-b_c+D", "lab--"} {
		id := vg + "/" + lvName
		tool(t, "lvcreate -q -y -n "+lvName+" -L 4M "+vg)
		labneed.Settle(t)
		real, err := filepath.EvalSymlinks("/dev/" + id)
		if err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(t.TempDir(), "disk")
		if err := os.Symlink("/dev/"+id, link); err != nil {
			t.Fatal(err)
		}
		dm := dmName(vg, lvName)
		uuid := tool(t, "dmsetup info -c --noheadings -o uuid /dev/mapper/"+dm)
		s := New(Options{})
		// Those that name it are understood while it is not active, too.
		named := []string{"/dev/" + id, "/dev/" + vg + "/./" + lvName, "/dev/mapper/" + dm, "/dev/disk/by-id/dm-name-" + dm, "/dev/disk/by-id/dm-uuid-" + uuid, link}
		for path, v := range allSeen(t, s, append(named, real)...) {
			if v.ID != id || v.Err != nil || v.SizeBytes != 4<<20 {
				t.Errorf("%s: Volumes = %+v", path, v)
			}
		}
		mustOpen(t, s, seen(t, s, "/dev/"+id)).Close()
		labneed.Deactivate(t, id)
		labneed.Settle(t)
		for path, v := range allSeen(t, s, named...) {
			if v.ID != id || !errors.Is(v.Err, backend.ErrNoDevice) || !strings.Contains(v.Err.Error(), "lvchange -ay "+id) {
				t.Errorf("%s: Volumes = %+v of one that is not active", path, v)
			}
			if d, err := s.Open(t.Context(), v); !errors.Is(err, backend.ErrNoDevice) {
				t.Errorf("Open = %v, %v of one that is not active", d, err)
			}
		}
		tool(t, "lvchange -ay "+id)
	}
}

func TestLabVolumes_SayWhyTheyCannotBeRead(t *testing.T) {
	labHost(t, "labwhy")
	tool(t, "lvcreate -q -y -n a -L 4M labwhy")
	tool(t, "lvcreate -q --type thin -L 16M --thinpool pool -V 8M -n t labwhy")
	tool(t, "lvcreate -q -s -n ts labwhy/t")
	s := New(Options{})
	type refusal struct {
		err  error
		says string
	}
	refusals := map[string]refusal{
		"/dev/labwhy/none":         {backend.ErrNotExist, "labwhy"},
		"/dev/mapper/labwhy-no--x": {backend.ErrNotExist, "no-x"},
		"/dev/labwhy/pool":         {backend.ErrInvalid, "part of"},
		"/dev/mapper/labwhy-pool":  {backend.ErrInvalid, "part of"},
		"/dev/labwhy/ts":           {backend.ErrNoDevice, "lvchange -ay -K labwhy/ts"},
	}
	for path, v := range allSeen(t, s, slices.Collect(maps.Keys(refusals))...) {
		if want := refusals[path]; v.Store != "lvm" || !errors.Is(v.Err, want.err) || !strings.Contains(v.Err.Error(), want.says) {
			t.Errorf("%s: Volumes = %+v, want %v with %q", path, v, want.err, want.says)
		} else if d, err := s.Open(t.Context(), v); err == nil {
			d.Close()
			t.Errorf("%s: it can be opened", path)
		}
	}
	for path, v := range allSeen(t, s, "/dev/loop0", "/dev/novg/x", "/dev/mapper/novg-x", "/dev/mapper/control", "/dev/labwhy", "/etc/hostname", "/dev/mapper/labwhy-pool-tpool") {
		if v.Store != "" {
			t.Errorf("%s is claimed: %+v", path, v)
		}
	}
	tool(t, "dmsetup suspend labwhy-a")
	t.Cleanup(func() { labneed.Try("dmsetup", "resume", "labwhy-a") })
	began := time.Now()
	v := seen(t, s, "/dev/labwhy/a")
	if v.Err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("Volumes = %+v after %v of one that is suspended", v, time.Since(began))
	}
	if d, err := s.Open(t.Context(), v); !errors.Is(err, backend.ErrBusy) || time.Since(began) > 10*time.Second {
		t.Errorf("Open = %v, %v after %v of one that is suspended", d, err, time.Since(began))
	}
	tool(t, "dmsetup resume labwhy-a")
	mustOpen(t, s, v).Close()
}

func TestLabVolumes_OfAVGWithAMissingPV(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	keep, lose := labneed.Disk(t, 128<<20), labneed.File(t, 128<<20)
	device := labneed.Attach(t, lose)
	labneed.VG(t, "labpart", keep, device)
	tool(t, "lvcreate -q -y -n stays -L 4M labpart "+keep)
	tool(t, "lvcreate -q -y -n goes -L 4M labpart "+device)
	tool(t, "lvcreate -q -y -n both --type raid1 -m 1 -L 4M labpart")
	want := noiseBytes(4<<20, 1)
	loop.Write(t, "/dev/labpart/both", want, 0)
	labneed.Eventually(t, "the mirror is in sync", func() bool {
		return tool(t, "lvs --noheadings -o sync_percent labpart/both") == "100.00"
	})
	labneed.Deactivate(t, "labpart")
	labneed.Detach(t, device)
	labneed.Settle(t)
	t.Cleanup(func() {
		labneed.Attach(t, lose)
		labneed.Settle(t)
		labneed.Try("vgextend", "--restoremissing", "labpart", device)
		labneed.RemoveVG(t, "labpart")
	})
	labneed.Try("vgchange", "-q", "-ay", "--activationmode", "degraded", "labpart")
	s := New(Options{})
	if v := seen(t, s, "/dev/labpart/stays"); v.Err != nil {
		t.Errorf("what lies on the other disk: %+v", v)
	}
	if v := seen(t, s, "/dev/labpart/goes"); !errors.Is(v.Err, backend.ErrIO) || !strings.Contains(v.Err.Error(), "missing") {
		t.Errorf("what lies on the missing disk: %+v", v)
	}
	v := seen(t, s, "/dev/labpart/both")
	if v.Err != nil || !bytes.Equal(contentsOf(t, mustOpen(t, s, v)), want) {
		t.Errorf("what is on both disks: %+v", v)
	}
	r, err := s.readReport(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if g := r.vg("labpart"); g == nil || g.missingPVs != 1 || g.freeBytes != 124<<20-12<<20 {
		t.Errorf("the VG is %+v", g)
	}
}

// holdingOpen runs a program until the test, or the function that is returned, ends it.
func holdingOpen(t *testing.T, argv ...string) (pid string, release func()) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	release = func() {
		if !ended {
			ended = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(release)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return "(pid " + strconv.Itoa(cmd.Process.Pid) + ")", release
}

func TestLabVolumes_NameTheHolder(t *testing.T) {
	labHost(t, "labhold")
	tool(t, "lvcreate -q -y -n a -L 16M labhold")
	tool(t, "lvcreate -q -y -n thick -L 8M labhold")
	tool(t, "lvcreate -q -s -n snap -L 4M labhold/thick")
	labneed.Settle(t)
	s := New(Options{})
	const path = "/dev/labhold/a"
	holder := func(want string) {
		t.Helper()
		times := 2 // the second time it is known
		if want == "" {
			times = 1
		}
		for range times {
			if v := seen(t, s, path); v.Err != nil || (want == "") != (v.Holder == "") || !strings.Contains(v.Holder, want) {
				t.Errorf("Holder = %q (%v), want %q", v.Holder, v.Err, want)
			}
		}
		t.Logf("holder %q", want)
	}
	holder("")
	d := mustOpen(t, s, seen(t, s, path))
	holder("")
	pid, release := holdingOpen(t, "sh", "-c", "exec <"+path+"; echo; exec sleep 600 <&0")
	holder("sleep " + pid)
	d.Close()
	holder("sleep " + pid)
	release()
	holder("")

	tool(t, "mkfs.ext4 -q "+path)
	folder := t.TempDir()
	tool(t, "mount "+path+" "+folder)
	holder("mount on " + folder)
	tool(t, "umount "+folder)
	holder("")

	labneed.Run(t, "dmsetup", "create", "--table", "0 8192 linear "+path+" 0", "labhold-above")
	holder("device /dev/mapper/labhold-above")
	tool(t, "dmsetup remove --retry labhold-above")
	holder("")

	// A mapping of ours does not count.
	uuid := "LVM-domfs-" + strings.Repeat("@", 80)
	labneed.Run(t, "dmsetup", "create", "--uuid", uuid, "--table", "0 8192 linear "+path+" 0", "domfs-labhold")
	holder("")
	tool(t, "dmsetup remove --retry domfs-labhold")

	// A loop device has it open in the kernel only, as Xen's block backend has.
	over := tool(t, "losetup --find --show "+path)
	holder("loop device " + over)
	tool(t, "losetup -d "+over)
	labneed.Eventually(t, "the loop device is gone", func() bool { return seen(t, s, path).Holder == "" })

	// An origin is not held by its snapshots.
	if v := seen(t, s, "/dev/labhold/thick"); v.Holder != "" {
		t.Errorf("Holder = %q of an origin", v.Holder)
	}
	// Udev looks at what changes, and holds nothing.
	for range 2 {
		tool(t, "udevadm trigger --action=change "+path)
		holder("")
	}
}

func TestLabSnapshots_OfOthersAreListed(t *testing.T) {
	labHost(t, "labforeign")
	tool(t, "lvcreate -q -y -n a -L 16M labforeign")
	tool(t, "lvcreate -q --type thin -L 64M --thinpool pool -V 16M -n t labforeign")
	want := noiseBytes(1<<20, 1)
	loop.Write(t, "/dev/labforeign/a", want, 0)
	loop.Write(t, "/dev/labforeign/t", want, 0)
	before := time.Now().Add(-time.Minute)
	tool(t, "lvcreate -q -s -n by-hand -L 8M labforeign/a")
	tool(t, "lvcreate -q -s -n read-only -pr -L 8M labforeign/a")
	tool(t, "lvcreate -q -s -kn -pr -n thin-hand labforeign/t")
	tool(t, "lvcreate -q -s -n asleep labforeign/t")
	for _, name := range []string{"a", "t"} {
		loop.Write(t, "/dev/labforeign/"+name, make([]byte, 1<<20), 0)
	}
	s := New(Options{})
	for _, c := range []struct {
		name, origin, driver string
		reserve              int64
		spliced              bool
	}{
		{"by-hand", "a", "lvm", 8 << 20, false},
		{"read-only", "a", "lvm", 8 << 20, false},
		{"thin-hand", "t", "lvm-thin", 0, true},
	} {
		id := "labforeign/" + c.name
		snap := listed(t, s, id)
		uuid := tool(t, "lvs --noheadings -o lv_uuid "+id)
		if !snap.Foreign || snap.Set != "lvm-"+uuid || snap.Name != c.name || snap.Origin != "labforeign/"+c.origin || snap.State != backend.SnapshotActive ||
			snap.Created.Before(before) || snap.Created.After(time.Now().Add(time.Minute)) || snap.ReserveBytes != c.reserve || snap.Path != "/dev/"+id ||
			snap.DomainName != "" || snap.Volume.Driver != c.driver || snap.Volume.SizeBytes != 16<<20 || snap.Volume.Err != nil {
			t.Errorf("%s: Snapshots = %+v", id, snap)
		}
		// 1 MiB was overwritten: what the snapshot holds is that and little more.
		if snap.UsedBytes < 1<<20 || snap.UsedBytes > 2<<20 {
			t.Errorf("%s: UsedBytes = %d", id, snap.UsedBytes)
		}
		if percent := tool(t, "lvs --noheadings -o data_percent "+id); c.reserve > 0 && (snap.FillPercent < 12 || snap.FillPercent > 14 || !strings.HasPrefix(percent, "1")) {
			t.Errorf("%s: FillPercent = %v, lvs says %s", id, snap.FillPercent, percent)
		}
		d := mustOpen(t, s, snap.Volume)
		if _, ok := d.(backend.Locator); ok != c.spliced {
			t.Errorf("%s: spliced %t, want %t", id, ok, c.spliced)
		}
		if got := contentsOf(t, d); !bytes.Equal(got[:1<<20], want) {
			t.Errorf("%s: it has not the origin's old bytes", id)
		}
		d.Close()
	}
	if snap := listed(t, s, "labforeign/asleep"); !errors.Is(snap.Volume.Err, backend.ErrNoDevice) || snap.Path != "" || snap.State != backend.SnapshotActive {
		t.Errorf("one that is not active: %+v", snap)
	}
	snaps, err := s.Snapshots(t.Context())
	if err != nil || len(snaps) != 4 {
		t.Errorf("Snapshots = %+v, %v", snaps, err)
	}
}

func TestLabSnapshot_ThatIsInvalidIsReadNoMore(t *testing.T) {
	labHost(t, "labfull")
	tool(t, "lvcreate -q -y -n a -L 32M labfull")
	tool(t, "lvcreate -q -s -pr -n s -L 4M labfull/a")
	s := New(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 1000), make(chan error, 1)
	go func() { ended <- s.Watch(ctx, func() { changed <- struct{}{} }) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch = %v", err)
		}
	}()
	v := listed(t, s, "labfull/s").Volume
	d := mustOpen(t, s, v)
	got := make([]byte, 1<<20)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	labneed.Settle(t)
	time.Sleep(time.Second)
	for len(changed) > 0 {
		<-changed
	}
	loop.Write(t, "/dev/labfull/a", noiseBytes(2<<20, 1), 16<<20)
	time.Sleep(time.Second)
	if n := len(changed); n != 0 {
		t.Errorf("%d events while nothing but the fill changed", n)
	}
	loop.Write(t, "/dev/labfull/a", noiseBytes(8<<20, 2), 16<<20)
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("no event of a snapshot that became invalid")
	}
	// The first bytes are in the page cache still.
	if n, err := d.ReadAt(got, 0); n != 0 || !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "labfull/s: it is invalid") {
		t.Errorf("ReadAt = %d, %v of what was read before", n, err)
	}
	snap := listed(t, s, "labfull/s")
	if snap.State != backend.SnapshotInvalid || !errors.Is(snap.Volume.Err, backend.ErrIO) || snap.FillPercent != 100 || snap.UsedBytes != 4<<20 {
		t.Errorf("Snapshots = %+v", snap)
	}
	if d, err := s.Open(t.Context(), v); !errors.Is(err, backend.ErrIO) {
		t.Errorf("Open = %v, %v", d, err)
	}
}

// Where nobody watches, the first read that the kernel refuses says what is wrong, and ends all others.
func TestLabSnapshot_FailedReadTellsOfItsEnd(t *testing.T) {
	labHost(t, "labfull2")
	tool(t, "lvcreate -q -y -n a -L 32M labfull2")
	tool(t, "lvcreate -q -s -pr -n s -L 4M labfull2/a")
	s := New(Options{})
	d := mustOpen(t, s, listed(t, s, "labfull2/s").Volume)
	got := make([]byte, 1<<20)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	loop.Write(t, "/dev/labfull2/a", noiseBytes(8<<20, 2), 16<<20)
	for _, off := range []int64{24 << 20, 0} {
		if n, err := d.ReadAt(got, off); n != 0 || !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), "it is invalid") {
			t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
		}
	}
}

// Package backendtest holds the contracts of backend's interfaces as tests, which every driver
// passes.
package backendtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"domfs/backend"
)

// StoreFixture is a store to be tested, with one disk in it that is at least 1 MiB
// large and that nobody uses.
type StoreFixture struct {
	// New opens the store as a daemon that just started does.
	New func(t *testing.T) backend.Store
	// Disk is the disk; its volume can be snapshotted and grown where the store can.
	Disk backend.Disk
	// SizeBytes is its size.
	SizeBytes int64
	// Missing is a disk that is the store's, whose volume does not exist.
	Missing backend.Disk
	// Foreign are disks that are not the store's.
	Foreign []backend.Disk
	// Write writes to the disk's volume as a guest does, durably.
	Write func(t *testing.T, p []byte, off int64)
	// Copies tells whether snapshots are copied by Fill.
	Copies bool
	// Overcommits tells whether volumes can be made that are larger than what is free.
	Overcommits bool
	// Reserve tells whether snapshots have a reserve, of less than SizeBytes, and there is room to
	// extend it to what it can use at most.
	Reserve bool
}

// Store tests what every backend.Store promises, and what the optional interfaces do that it
// implements. fixture is called for each test.
func Store(t *testing.T, fixture func(t *testing.T) StoreFixture) {
	type storeTests []struct {
		name string
		run  func(t *testing.T, s *storeTest)
	}
	tests := storeTests{
		{"Volumes_LeavesForeignDisks", testForeign},
		{"Volumes_AnswersInOrderOfDisks", testOrder},
		{"Volumes_SaysWhatIsMissing", testMissing},
		{"Volumes_ChangesGenerationAfterWrite", testGeneration},
		{"Pools_HoldTheVolume", testPools},
		{"Open_ReadsBytes", testRead},
		{"Open_ReadsConcurrently", testConcurrentReads},
		{"Open_LocatesAndSkipsHolesTruly", testExtents},
		{"Open_LeavesNoDescriptor", testDescriptors},
	}
	snapshotTests := storeTests{
		{"Snapshot_StaysAsItWas", testSnapshotFrozen},
		{"Snapshot_IsListedByAnotherStore", testSnapshotListed},
		{"Snapshot_IsAnnotatedAsAWhole", testAnnotate},
		{"Snapshot_IsRemovedOnceAndForAll", testRemove},
		{"Snapshot_OfMissingVolumeIsRefused", testSnapshotMissing},
		{"Snapshot_NeedsItsGuard", testSnapshotUnprepared},
		{"Repair_KeepsSnapshots", testRepairKeeps},
	}
	resizeTests := storeTests{
		{"Resize_GrowsAndRounds", testResize},
		{"Resize_NeverShrinks", testShrink},
	}
	reserveTests := storeTests{
		{"Reserve_IsListedWithItsFill", testReserveListed},
		{"Reserve_GrowsAndRounds", testReserveGrows},
		{"Reserve_NeverShrinks", testReserveShrink},
		{"Reserve_IsCutToWhatCanBeUsed", testReserveMax},
	}
	createTests := storeTests{
		{"Create_MakesAnEmptyVolumeThatIsKept", testCreate},
		{"Create_CutOffLeavesNothing", testCreateCutOff},
		{"Create_FindsANameThatIsFree", testCreateTwice},
		{"Create_Refuses", testCreateRefuses},
	}
	first := fixture(t)
	store := first.New(t)
	if _, ok := store.(backend.Snapshotter); ok {
		tests = append(tests, snapshotTests...)
	}
	if _, ok := store.(backend.Resizer); ok {
		tests = append(tests, resizeTests...)
	}
	if _, ok := store.(backend.Creator); ok {
		tests = append(tests, createTests...)
	}
	if _, ok := store.(backend.Reserver); ok && first.Reserve {
		tests = append(tests, reserveTests...)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := fixture(t)
			test.run(t, &storeTest{StoreFixture: f, store: f.New(t), ctx: context.Background()})
		})
	}
}

type storeTest struct {
	StoreFixture
	store backend.Store
	ctx   context.Context
}

// volume finds the fixture's volume.
func (s *storeTest) volume(t *testing.T) backend.Volume {
	t.Helper()
	return findVolume(t, s.store, s.Disk)
}

func findVolume(t *testing.T, store backend.Store, d backend.Disk) backend.Volume {
	t.Helper()
	volumes, err := store.Volumes(context.Background(), []backend.Disk{d})
	if err != nil || len(volumes) != 1 {
		t.Fatalf("Volumes = %v, %v", volumes, err)
	}
	return volumes[0]
}

// pattern is n bytes that are not repeated anywhere.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// contents reads all of a volume.
func (s *storeTest) contents(t *testing.T, v backend.Volume) []byte {
	t.Helper()
	d, err := s.store.Open(s.ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testForeign(t *testing.T, s *storeTest) {
	disks := append([]backend.Disk{{VDev: "hdc", CDROM: true}}, s.Foreign...)
	volumes, err := s.store.Volumes(s.ctx, disks)
	if err != nil || len(volumes) != len(disks) {
		t.Fatalf("Volumes = %v, %v", volumes, err)
	}
	for i, v := range volumes {
		if v.Store != "" {
			t.Errorf("disk %+v is claimed: %+v", disks[i], v)
		}
	}
}

func testOrder(t *testing.T, s *storeTest) {
	disks := append(slices.Clone(s.Foreign), s.Disk, s.Missing, s.Disk)
	volumes, err := s.store.Volumes(s.ctx, disks)
	if err != nil || len(volumes) != len(disks) {
		t.Fatalf("Volumes = %v, %v", volumes, err)
	}
	volumes = volumes[len(s.Foreign):]
	want := s.volume(t)
	format := cmp.Or(s.Disk.Format, "raw")
	if want.Store != s.store.Name() || want.ID == "" || want.Driver == "" || want.Format != format || want.SizeBytes != s.SizeBytes || want.Holder != "" || want.Err != nil {
		t.Errorf("Volumes = %+v, want a %s volume of %d bytes", want, format, s.SizeBytes)
	}
	if volumes[0] != want || volumes[2] != want || volumes[1].ID == want.ID {
		t.Errorf("Volumes = %+v, want %+v first and last", volumes, want)
	}
	if none, err := s.store.Volumes(s.ctx, nil); err != nil || len(none) != 0 {
		t.Errorf("Volumes of no disks = %v, %v", none, err)
	}
}

func testMissing(t *testing.T, s *storeTest) {
	v := findVolume(t, s.store, s.Missing)
	if v.Store != s.store.Name() || v.ID == "" || !errors.Is(v.Err, backend.ErrNotExist) {
		t.Fatalf("Volumes = %+v, want ErrNotExist", v)
	}
	if d, err := s.store.Open(s.ctx, v); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Open = %v, %v, want ErrNotExist", d, err)
	}
	if r, ok := s.store.(backend.Resizer); ok {
		if _, err := r.Resize(s.ctx, v, 1<<30); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("Resize = %v, want ErrNotExist", err)
		}
	}
}

func testGeneration(t *testing.T, s *storeTest) {
	before := s.volume(t)
	if again := s.volume(t); again.Generation != before.Generation {
		t.Errorf("generation went from %x to %x with nothing written", before.Generation, again.Generation)
	}
	time.Sleep(20 * time.Millisecond) // the clock that stamps files is coarse
	s.Write(t, []byte("changed"), 4096)
	if after := s.volume(t); after.Generation == before.Generation {
		t.Error("generation stayed the same after a write")
	}
}

func testPools(t *testing.T, s *storeTest) {
	v := s.volume(t)
	pools, err := s.store.Pools(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range pools {
		if p.Name == "" || seen[p.Name] || bytes.ContainsAny([]byte(p.Name), "/\x00") {
			t.Errorf("pool %+v is not named by one unique component", p)
		}
		seen[p.Name] = true
		if p.SizeBytes <= 0 || p.FreeBytes < 0 || p.FreeBytes > p.SizeBytes {
			t.Errorf("pool %+v has no sane sizes", p)
		}
	}
	if v.Pool != "" && !seen[v.Pool] {
		t.Errorf("the volume's pool %q is not among %+v", v.Pool, pools)
	}
}

func testRead(t *testing.T, s *storeTest) {
	want := pattern(300_000, 1)
	s.Write(t, want, 12_288)
	tail := pattern(512, 2)
	s.Write(t, tail, s.SizeBytes-512)
	d, err := s.store.Open(s.ctx, s.volume(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Size() != s.SizeBytes {
		t.Errorf("Size = %d, want %d", d.Size(), s.SizeBytes)
	}
	for _, r := range []struct{ off, length int }{{0, 1}, {0, 512}, {1, 511}, {511, 2}, {4095, 4098}, {777, 131_073}, {8192, 65_536}, {0, 280_000}} {
		got := make([]byte, r.length)
		if n, err := d.ReadAt(got, int64(12_288+r.off)); n != r.length || err != nil {
			t.Errorf("ReadAt(%d bytes at %d) = %d, %v", r.length, r.off, n, err)
		} else if !bytes.Equal(got, want[r.off:r.off+r.length]) {
			t.Errorf("ReadAt(%d bytes at %d): wrong bytes", r.length, r.off)
		}
	}
	got := make([]byte, 1000)
	n, err := d.ReadAt(got, s.SizeBytes-512)
	if n != 512 || err != io.EOF || !bytes.Equal(got[:n], tail) {
		t.Errorf("ReadAt over the end = %d, %v", n, err)
	}
	if n, err := d.ReadAt(got[:512], s.SizeBytes-512); n != 512 || err != nil && err != io.EOF {
		t.Errorf("ReadAt up to the end = %d, %v", n, err)
	}
	for _, off := range []int64{s.SizeBytes, s.SizeBytes + 4096, 1 << 62} {
		if n, err := d.ReadAt(got, off); n != 0 || err != io.EOF {
			t.Errorf("ReadAt past the end = %d, %v", n, err)
		}
	}
	if n, err := d.ReadAt(got, -1); n != 0 || !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("ReadAt(-1) = %d, %v, want ErrInvalid", n, err)
	}
}

func testConcurrentReads(t *testing.T, s *storeTest) {
	want := pattern(1<<20, 3)
	s.Write(t, want, 0)
	d, err := s.store.Open(s.ctx, s.volume(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var group sync.WaitGroup
	for worker := range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			r := rand.New(rand.NewPCG(uint64(worker), 0))
			got := make([]byte, 70_000)
			for range 100 {
				off := r.IntN(1<<20 - len(got))
				b := got[:1+r.IntN(len(got)-1)]
				backend.NextHole(d, int64(off)) // it must not move what others read
				if n, err := d.ReadAt(b, int64(off)); n != len(b) || err != nil {
					t.Errorf("ReadAt = %d, %v", n, err)
				} else if !bytes.Equal(b, want[off:off+n]) {
					t.Errorf("ReadAt(%d bytes at %d): wrong bytes", n, off)
				}
			}
		}()
	}
	group.Wait()
}

// testExtents checks that holes read as zeros, and that a location holds the bytes.
func testExtents(t *testing.T, s *storeTest) {
	s.Write(t, pattern(65_536, 4), 131_072)
	d, err := s.store.Open(s.ctx, s.volume(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all := make([]byte, s.SizeBytes)
	if _, err := d.ReadAt(all, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	isZero := func(from, to int64) bool { return len(bytes.Trim(all[from:to], "\x00")) == 0 }
	for off := int64(0); off < s.SizeBytes; {
		data, err := backend.NextData(d, off)
		if errors.Is(err, backend.ErrRange) {
			data = s.SizeBytes
		} else if err != nil || data < off || data >= s.SizeBytes {
			t.Fatalf("NextData(%d) = %d, %v", off, data, err)
		}
		if !isZero(off, data) {
			t.Errorf("the hole from %d to %d is not empty", off, data)
		}
		if data == s.SizeBytes {
			break
		}
		hole, err := backend.NextHole(d, data)
		if err != nil || hole <= data || hole > s.SizeBytes {
			t.Fatalf("NextHole(%d) = %d, %v", data, hole, err)
		}
		off = hole
	}
	for _, off := range []int64{-1, s.SizeBytes, s.SizeBytes + 1, 1 << 62} {
		if n, err := backend.NextData(d, off); !errors.Is(err, backend.ErrRange) {
			t.Errorf("NextData(%d) = %d, %v, want ErrRange", off, n, err)
		}
		if n, err := backend.NextHole(d, off); !errors.Is(err, backend.ErrRange) {
			t.Errorf("NextHole(%d) = %d, %v, want ErrRange", off, n, err)
		}
	}
	if backend.Allocated(d) < 65_536 {
		t.Errorf("Allocated = %d, but 65536 bytes were written", backend.Allocated(d))
	}
	l, ok := d.(backend.Locator)
	if !ok {
		return
	}
	for _, off := range []int64{131_072, 131_073, s.SizeBytes - 1} {
		loc, ok := l.Locate(off, 4096)
		if !ok {
			continue
		}
		if loc.Length < 1 || loc.Length > min(4096, s.SizeBytes-off) {
			t.Errorf("Locate(%d) = %+v", off, loc)
			continue
		}
		got := make([]byte, loc.Length)
		if err := preadFull(loc, got); err != nil || !bytes.Equal(got, all[off:off+loc.Length]) {
			t.Errorf("at %+v, %v: not the bytes at %d", loc, err, off)
		}
	}
	for _, off := range []int64{-1, s.SizeBytes, 1 << 62} {
		if loc, ok := l.Locate(off, 1); ok {
			t.Errorf("Locate(%d) = %+v outside of the device", off, loc)
		}
	}
}

// descriptors counts this process's open descriptors.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func testDescriptors(t *testing.T, s *storeTest) {
	round := func() {
		v := s.volume(t)
		s.contents(t, v)
		findVolume(t, s.store, s.Missing)
		if _, err := s.store.Pools(s.ctx); err != nil {
			t.Fatal(err)
		}
		if snapshotter, ok := s.store.(backend.Snapshotter); ok {
			snap := s.snapshot(t, "set-descriptors")
			if err := snapshotter.Remove(s.ctx, snap); err != nil {
				t.Fatal(err)
			}
			if err := snapshotter.Repair(s.ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	round() // what is opened once for all is opened now
	before := descriptors(t)
	round()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

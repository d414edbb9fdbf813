package backendtest

import (
	"errors"
	"testing"

	"domfs/backend"
)

// newDisk is the disk of a volume that was made.
func newDisk(n backend.NewVolume) backend.Disk {
	return backend.Disk{VDev: "xvdz", Format: backend.FormatRaw, Source: n.Source(), Mode: backend.ReadWrite}
}

// create makes a volume of a size in the fixture's pool, and removes it when the test ends.
func (s *storeTest) create(t *testing.T, sizeBytes int64) (backend.Creator, backend.NewVolume) {
	t.Helper()
	c, ok := s.store.(backend.Creator)
	if !ok {
		t.Fatal("the store makes no volumes")
	}
	n, err := c.Create(s.ctx, backend.VolumeRequest{Pool: s.volume(t).Pool, Name: "web01-xvdz", SizeBytes: sizeBytes})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() {
		n.Close()
		if err := c.Delete(s.ctx, n.Volume()); err != nil {
			t.Errorf("Delete: %v", err)
		}
	})
	return c, n
}

// has tells whether a store, asked anew, knows the volume behind a disk.
func (s *storeTest) has(t *testing.T, d backend.Disk) (backend.Volume, bool) {
	t.Helper()
	volumes, err := s.New(t).Volumes(s.ctx, []backend.Disk{d})
	if err != nil {
		t.Fatalf("Volumes: %v", err)
	}
	return volumes[0], volumes[0].Store != "" && volumes[0].Err == nil
}

// repair does as a daemon that starts.
func (s *storeTest) repair(t *testing.T) {
	t.Helper()
	if r, ok := s.New(t).(backend.Snapshotter); ok {
		if err := r.Repair(s.ctx); err != nil {
			t.Fatalf("Repair: %v", err)
		}
	}
}

func testCreate(t *testing.T, s *storeTest) {
	const size = 1<<20 + 1
	c, n := s.create(t, size)
	d := newDisk(n)
	v, ok := s.has(t, d)
	said := n.Volume()
	if !ok || !v.Unfinished || v.SizeBytes < size || v.ID != said.ID || v.Store != said.Store || v.Pool != said.Pool || v.Driver != said.Driver || v.SizeBytes != said.SizeBytes {
		t.Fatalf("found as %+v, and said to be %+v", v, said)
	}
	s.repair(t)
	if _, ok := s.has(t, d); !ok {
		t.Fatal("Repair took it while it was being made")
	}
	var done, total int64
	if err := n.Clear(s.ctx, func(d, t int64) { done, total = d, t }); err != nil {
		t.Fatalf("Clear: %v", err)
	}
	if done != total {
		t.Errorf("Clear told of %d bytes of %d at last", done, total)
	}
	for i, b := range s.contents(t, v) {
		if b != 0 {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
	if err := n.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for range 2 {
		if err := c.Keep(s.ctx, v); err != nil {
			t.Fatalf("Keep: %v", err)
		}
	}
	s.repair(t)
	if v, ok := s.has(t, d); !ok || v.Unfinished {
		t.Errorf("kept, and found as %+v", v)
	}
	for range 2 {
		if err := c.Delete(s.ctx, v); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	if v, ok := s.has(t, d); ok {
		t.Errorf("removed, and found as %+v", v)
	}
}

func testCreateCutOff(t *testing.T, s *storeTest) {
	for _, clears := range []bool{false, true} {
		_, n := s.create(t, 1<<20)
		if clears {
			if err := n.Clear(s.ctx, func(int64, int64) {}); err != nil {
				t.Fatalf("Clear: %v", err)
			}
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		s.repair(t)
		if v, ok := s.has(t, newDisk(n)); ok {
			t.Errorf("cleared: %t: Repair left %+v", clears, v)
		}
	}
}

func testCreateTwice(t *testing.T, s *storeTest) {
	_, a := s.create(t, 1<<20)
	_, b := s.create(t, 1<<20)
	if a.Source() == b.Source() || a.Volume().ID == b.Volume().ID {
		t.Errorf("two volumes that are to have one name are %s and %s", a.Source(), b.Source())
	}
}

func testCreateRefuses(t *testing.T, s *storeTest) {
	c, ok := s.store.(backend.Creator)
	if !ok {
		t.Fatal("the store makes no volumes")
	}
	for _, one := range []struct {
		pool string
		size int64
		want error
	}{{"no-such-pool", 1 << 20, backend.ErrNoDevice}, {s.volume(t).Pool, 1 << 60, backend.ErrNoSpace}} {
		if one.want == backend.ErrNoSpace && s.Overcommits {
			continue
		}
		if n, err := c.Create(s.ctx, backend.VolumeRequest{Pool: one.pool, Name: "web01-xvdz", SizeBytes: one.size}); n != nil || !errors.Is(err, one.want) {
			t.Errorf("%d bytes in %s: %v, want %v", one.size, one.pool, err, one.want)
		}
	}
}

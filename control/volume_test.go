package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/fake"
)

// guestDrivers read a made-up content: the first bytes of a device say what is on it.
// "table:N" is a partition table: N parts of equal size after the first 512 bytes. "fs…" is
// a filesystem; "panic" makes the prober fail.
type guestDrivers struct {
	probes, opens, closes atomic.Int32
	fail                  atomic.Pointer[error]
	hold                  chan struct{} // of a filesystem "fsslow", whose opening ends when it is closed
	interruptible         bool
}

func (g *guestDrivers) use(o *Options) {
	o.Prober, o.Layouts, o.Filesystems = g, []backend.Layout{tableDriver{}}, []backend.Filesystem{fsDriver{g}}
	if g.interruptible {
		o.Filesystems = []backend.Filesystem{untilDriver{fsDriver{g}}}
	}
}

func head(d backend.Device) string {
	p := make([]byte, 16)
	n, _ := d.ReadAt(p, 0)
	s, _, _ := strings.Cut(string(p[:n]), "\x00")
	return s
}

func (g *guestDrivers) Probe(d backend.Device) (backend.Content, error) {
	g.probes.Add(1)
	if e := g.fail.Load(); e != nil {
		return backend.Content{}, *e
	}
	s := head(d)
	switch {
	case s == "panic":
		panic("hostile bytes")
	case strings.HasPrefix(s, "table"):
		return backend.Content{Type: "table"}, nil
	case strings.HasPrefix(s, "fs"):
		return backend.Content{Type: "fs", Label: s}, nil
	}
	return backend.Content{Type: s}, nil
}

type tableDriver struct{}

func (tableDriver) Types() []string { return []string{"table"} }

func (tableDriver) Parts(d backend.Device) ([]backend.Part, error) {
	var n int
	if _, err := fmt.Sscanf(head(d), "table:%d", &n); err != nil {
		return nil, fmt.Errorf("no table after all: %w", backend.ErrCorrupt)
	}
	size := (d.Size() - 512) / int64(n)
	var out []backend.Part
	for i := range n {
		p := backend.Part{Number: i + 1}
		p.Device, p.Err = backend.Section(d, 512+int64(i)*size, size)
		out = append(out, p)
	}
	out = append(out, backend.Part{Number: 90, Err: fmt.Errorf("it reaches past the end: %w", backend.ErrCorrupt)},
		backend.Part{Number: 1}, backend.Part{Number: -3}, backend.Part{Number: 91})
	return out, nil
}

type fsDriver struct{ g *guestDrivers }

func (fsDriver) Types() []string { return []string{"fs"} }

func (f fsDriver) Open(d backend.Device) (backend.FS, error) { return f.open(nil, d) }

// untilDriver is a fsDriver whose opening can be ended.
type untilDriver struct{ fsDriver }

func (f untilDriver) OpenUntil(done <-chan struct{}, d backend.Device) (backend.FS, error) {
	return f.open(done, d)
}

func (f fsDriver) open(done <-chan struct{}, d backend.Device) (backend.FS, error) {
	f.g.opens.Add(1)
	if head(d) == "fsslow" {
		select {
		case <-f.g.hold:
		case <-done:
			return nil, context.Canceled
		}
	}
	if head(d) == "fsbad" {
		return nil, fmt.Errorf("the superblock's checksum is wrong: %w", backend.ErrCorrupt)
	}
	return &fakeFS{g: f.g, dev: d}, nil
}

type fakeFS struct {
	backend.FS
	g   *guestDrivers
	dev backend.Device
}

func (f *fakeFS) Warnings() []string { return []string{"the journal was not replayed"} }
func (f *fakeFS) Close() error {
	f.g.closes.Add(1)
	// The device must still be open.
	if _, err := f.dev.ReadAt(make([]byte, 1), 0); err != nil {
		panic(err)
	}
	return nil
}

func content(heads map[int]string) []byte {
	b := make([]byte, 1<<20)
	for off, s := range heads {
		copy(b[off:], s)
	}
	return b
}

func withGuest(t *testing.T, disk []byte, s setup) (*bench, *guestDrivers) {
	g := &guestDrivers{}
	s.options = g.use
	if s.onFake == nil {
		s.domains = func(h *fake.Host) {
			h.AddDomain("web01", uuid1, map[string][]byte{"xvda": disk}, "xvda")
			h.AddDomain("web02", uuid2, nil, "xvda", "xvdb", "xvdc", "xvdd")
		}
	}
	return newBench(t, s), g
}

func (b *bench) open(ref VolumeRef) *Volume {
	b.t.Helper()
	v, err := b.Volume(b.t.Context(), ref)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

var live = VolumeRef{Domain: "web01", VDev: "xvda"}

func TestVolume_NestsPartitions(t *testing.T) {
	// Two parts; the second is a table of two, whose first holds a filesystem.
	half := (1<<20 - 512) / 2
	b, g := withGuest(t, content(map[int]string{0: "table:2", 512: "swap", 512 + half: "table:2", 512 + half + 512: "fs1"}), setup{})
	for path, want := range map[string]string{"": "table", "p1": "swap", "p2": "table", "p2/p1": "fs", "p2/p2": ""} {
		ref := live
		ref.Path = path
		v := b.open(ref)
		c, err := v.Content()
		if err != nil || c.Type != want || v.Ref() != ref || v.HasFiles() != (want == "fs") {
			t.Errorf("%q: %+v, %v, files %t", path, c, err, v.HasFiles())
		}
		v.Content()
		v.Release()
	}
	if n := g.probes.Load(); n != 5 {
		t.Errorf("probed %d times", n)
	}
	parts, err := b.open(live).Parts()
	if err != nil || len(parts) != 4 || parts[2].Number != 90 || parts[2].Err == nil || parts[3].Err == nil {
		t.Errorf("parts %+v, %v", parts, err)
	}
	for _, path := range []string{"p3", "p0", "p01", "p-1", "p", "x1", "p1/", "/p1", "p1/p1", "p99999999999", "p1/p1/p1/p1/p1"} {
		ref := live
		ref.Path = path
		if _, err := b.Volume(t.Context(), ref); !errors.Is(err, backend.ErrNotExist) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if s := b.LastErrors("web01"); s != nil {
		t.Errorf("looking up what is not there was recorded: %s", s)
	}
	ref := live
	ref.Path = "p90"
	_, err = b.Volume(t.Context(), ref)
	b.mustFail(err, backend.ErrCorrupt, "past the end")
	b.lastErrorHas("web01", " open EUCLEAN ", "past the end")
	for b.Stats()["volumes_acquired_now"] > 0 {
		b.volumes.disks[diskKey{domain: "web01", vdev: "xvda"}].whole.Release()
	}
}

func TestVolume_NestsToAFixedDepth(t *testing.T) {
	heads := map[int]string{}
	for i := range 10 {
		heads[i*512] = "table:1"
	}
	b, _ := withGuest(t, content(heads), setup{})
	ref := live
	ref.Path = "p1/p1/p1/p1"
	v := b.open(ref)
	defer v.Release()
	if parts, err := v.Parts(); len(parts) != 0 || err != nil {
		t.Errorf("%d parts, %v", len(parts), err)
	}
}

func TestVolume_SurvivesADriverThatPanics(t *testing.T) {
	half := (1<<20 - 512) / 2
	b, _ := withGuest(t, content(map[int]string{0: "table:2", 512: "panic", 512 + half: "fs"}), setup{})
	ref := live
	ref.Path = "p1"
	v := b.open(ref)
	if _, err := v.Content(); !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	v.Release()
	ref.Path = "p2"
	v = b.open(ref)
	defer v.Release()
	if !v.HasFiles() {
		t.Error("its sibling suffers")
	}
}

func TestVolume_AsksAgainAfterAFailureToRead(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fs"}), setup{})
	v := b.open(live)
	defer v.Release()
	bad := fmt.Errorf("bad sector: %w", backend.ErrIO)
	g.fail.Store(&bad)
	if _, err := v.Content(); !errors.Is(err, backend.ErrIO) {
		t.Errorf("%v", err)
	}
	if _, err := v.FS(t.Context()); !errors.Is(err, backend.ErrIO) {
		t.Errorf("%v", err)
	}
	g.fail.Store(nil)
	if _, err := v.FS(t.Context()); err != nil {
		t.Errorf("%v", err)
	}
}

func TestVolume_OpensItsFilesystemOnceAndTellsItsWarnings(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fs"}), setup{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			v, err := b.Volume(t.Context(), live)
			if err != nil {
				t.Error(err)
				return
			}
			defer v.Release()
			if _, err := v.FS(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if g.opens.Load() != 1 || b.Stats()["volume_opens"] != 1 {
		t.Errorf("opened %d times, the disk %d times", g.opens.Load(), b.Stats()["volume_opens"])
	}
	b.lastErrorHas("web01", "1 ", " files WARNING disk xvda of web01: the journal was not replayed\n")
	if n := len(b.eventsOf("warning")); n != 1 {
		t.Errorf("%d warnings", n)
	}
	b.must(b.Close())
	if g.closes.Load() != 1 {
		t.Errorf("closed %d times", g.closes.Load())
	}
}

func TestVolume_RecordsWhyAFilesystemCannotBeRead(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fsbad"}), setup{})
	v := b.open(live)
	defer v.Release()
	for range 3 {
		if _, err := v.FS(t.Context()); !errors.Is(err, backend.ErrCorrupt) {
			t.Errorf("%v", err)
		}
	}
	if g.opens.Load() != 1 {
		t.Errorf("tried %d times", g.opens.Load())
	}
	b.lastErrorHas("web01", " files EUCLEAN disk xvda of web01: its fs filesystem: the superblock's checksum is wrong")
}

func TestVolume_RecordsWhyADiskCannotBeOpened(t *testing.T) {
	b, _ := withGuest(t, nil, setup{})
	b.fake.Store.Break("/images/web01-xvda", fmt.Errorf("/images/web01-xvda is a directory: %w", backend.ErrIsDirectory))
	b.invalidate()
	_, err := b.Volume(t.Context(), live)
	b.mustFail(err, backend.ErrIsDirectory, "is a directory")
	b.lastErrorHas("web01", " open ", "is a directory")
	clear := b.fake.Store.Fail("Open", backend.ErrAccess)
	_, err = b.Volume(t.Context(), VolumeRef{Domain: "web02", VDev: "xvda"})
	b.mustFail(err, backend.ErrAccess)
	b.lastErrorHas("web02", " open EACCES ")
	clear()
	b.open(VolumeRef{Domain: "web02", VDev: "xvda"}).Release()
}

func TestVolume_OfARunningDomainHasNoFilesButItsPartitions(t *testing.T) {
	b, _ := withGuest(t, content(map[int]string{0: "table:1", 512: "fs"}), setup{})
	b.fake.Hypervisor.Start("web01")
	b.invalidate()
	ref := live
	ref.Path = "p1"
	v := b.open(ref)
	defer v.Release()
	if v.Frozen() || !v.Running() || v.HasFiles() {
		t.Errorf("frozen %t, running %t, files %t", v.Frozen(), v.Running(), v.HasFiles())
	}
	if _, err := v.FS(t.Context()); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

func TestVolume_IsOpenedAnewOnceItsDomainRuns(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fs"}), setup{limits: func(l *limits) { l.recheck = time.Millisecond }})
	v := b.open(live)
	_, err := v.FS(t.Context())
	b.must(err)
	if !v.Acquire() {
		t.Fatal("a volume that did not change")
	}
	v.Release()
	b.fake.Hypervisor.Start("web01")
	b.invalidate() // a reading is good for longer where it took long
	time.Sleep(5 * time.Millisecond)
	if v.Acquire() {
		t.Error("acquired though the domain runs")
	}
	if g.closes.Load() != 0 || b.fake.Store.OpenDevices() != 1 {
		t.Error("closed though somebody has it")
	}
	v.Release()
	if g.closes.Load() != 1 || b.fake.Store.OpenDevices() != 0 {
		t.Error("not closed on the last release")
	}
	w := b.open(live)
	defer w.Release()
	if !w.Running() {
		t.Error("opened anew, it does not know")
	}
}

func TestVolume_NothingStaysCachedOnceTheDomainRunsEvenIfNobodyAsks(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fs"}), setup{})
	v := b.open(live)
	_, err := v.FS(t.Context())
	b.must(err)
	v.Release()
	b.fake.Hypervisor.Start("web01")
	eventually(t, "closed", func() bool { return g.closes.Load() == 1 && b.fake.Store.OpenDevices() == 0 })
}

func TestVolume_IsOpenedAnewWhenItsBytesChanged(t *testing.T) {
	b, g := withGuest(t, content(map[int]string{0: "fs"}), setup{limits: func(l *limits) { l.recheck = time.Millisecond }})
	v := b.open(live)
	v.Content()
	b.fake.Store.Write("/images/web01-xvda", 0, []byte("swap\x00"))
	b.invalidate() // a reading is good for longer where it took long
	time.Sleep(5 * time.Millisecond)
	if v.Acquire() {
		t.Error("acquired though the bytes changed")
	}
	w := b.open(live)
	if c, err := w.Content(); err != nil || c.Type != "swap" || w == v {
		t.Errorf("%+v, %v", c, err)
	}
	v.Release()
	w.Release()
	if g.probes.Load() != 2 {
		t.Errorf("probed %d times", g.probes.Load())
	}
}

func TestVolume_ShowsTheNewSizeAtOnceAfterResize(t *testing.T) {
	b, _ := withGuest(t, nil, setup{})
	v := b.open(live)
	b.must(b.Resize(t.Context(), "web01", "xvda", "2M"))
	if v.Acquire() {
		t.Error("acquired at the old size")
	}
	v.Release()
	w := b.open(live)
	defer w.Release()
	if w.Device().Size() != 2<<20 {
		t.Errorf("size %d", w.Device().Size())
	}
}

func TestVolume_OfASnapshotStaysThroughEverythingButItsRemoval(t *testing.T) {
	b, _ := withGuest(t, content(map[int]string{0: "fs"}), setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	ref := VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"}
	v := b.open(ref)
	if !v.Frozen() || v.Running() || !v.HasFiles() {
		t.Errorf("frozen %t, running %t, files %t", v.Frozen(), v.Running(), v.HasFiles())
	}
	b.fake.Store.Write("/images/web01-xvda", 0, []byte("xx"))
	b.fake.Hypervisor.Start("web01")
	b.must(b.Rename(t.Context(), "web01", "s", "t"))
	b.fake.Hypervisor.Rename("web01", "shop")
	b.invalidate()
	b.inv()
	if !v.Acquire() {
		t.Fatal("not acquired")
	}
	v.Release()
	if w := b.open(ref); w != v {
		t.Error("opened anew")
	}
	v.Release()
	b.must(b.Remove(t.Context(), "shop", "t"))
	if v.Acquire() {
		t.Error("acquired after removal")
	}
	if _, err := v.Device().ReadAt(make([]byte, 4), 0); err != nil && err != io.EOF {
		t.Errorf("closed under its reader: %v", err)
	}
	v.Release()
	if _, err := b.Volume(t.Context(), ref); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if n := b.fake.Store.OpenDevices(); n != 0 {
		t.Errorf("%d devices are open", n)
	}
}

func TestVolume_OfAnInvalidSnapshotIsAnError(t *testing.T) {
	b, _ := withGuest(t, nil, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	id := b.set("web01", "s").ID
	v := b.open(VolumeRef{SetID: id, VDev: "xvda"})
	b.fake.Store.Invalidate(id, "xvda")
	b.invalidate()
	b.inv()
	if v.Acquire() {
		t.Error("acquired")
	}
	v.Release()
	_, err := b.Volume(t.Context(), VolumeRef{SetID: id, VDev: "xvda"})
	b.mustFail(err, backend.ErrIO, "invalid", "copy-on-write space")
	// Where the store knows why, that is what is said; it is recorded even where something is missing.
	b.fake.Store.InvalidateFor(id, "xvda", fmt.Errorf("its backing file base.img is gone: %w", backend.ErrNotExist))
	b.invalidate()
	_, err = b.Volume(t.Context(), VolumeRef{SetID: id, VDev: "xvda"})
	b.mustFail(err, backend.ErrIO, "invalid", "base.img")
	if strings.Contains(err.Error(), "copy-on-write") || errors.Is(err, backend.ErrNotExist) {
		t.Errorf("the error is %v", err)
	}
	if last := string(b.LastErrors("web01")); !strings.Contains(last, "base.img is gone") {
		t.Errorf("last_error is %q", last)
	}
	b.must(b.Remove(t.Context(), "web01", "s"))
}

func TestVolumeCache_KeepsAFewLeastRecentlyUsedFirst(t *testing.T) {
	b, _ := withGuest(t, nil, setup{limits: func(l *limits) { l.disks = 2 }})
	b.must(b.Snapshot(t.Context(), "web02", "s"))
	id := b.set("web02", "s").ID
	ref := func(vdev string) VolumeRef { return VolumeRef{SetID: id, VDev: vdev} }
	opens := func() int64 { return b.Stats()["volume_opens"] }
	b.open(ref("xvda")).Release()
	b.open(ref("xvdb")).Release()
	b.open(ref("xvda")).Release() // now xvdb is the older
	b.open(ref("xvdc")).Release()
	if opens() != 3 || b.fake.Store.OpenDevices() != 2 {
		t.Fatalf("%d opens, %d open", opens(), b.fake.Store.OpenDevices())
	}
	b.open(ref("xvda")).Release()
	if opens() != 3 {
		t.Error("xvda was closed, though used last")
	}
	b.open(ref("xvdb")).Release()
	if opens() != 4 {
		t.Error("xvdb was not closed")
	}
	// Those in use stay, however many.
	var vs []*Volume
	for _, vdev := range []string{"xvda", "xvdb", "xvdc", "xvdd"} {
		vs = append(vs, b.open(ref(vdev)))
	}
	if n := b.fake.Store.OpenDevices(); n != 4 {
		t.Errorf("%d are open", n)
	}
	for _, v := range vs {
		if _, err := v.Device().ReadAt(make([]byte, 1), 0); err != nil {
			t.Error(err)
		}
		v.Release()
	}
	if n := b.fake.Store.OpenDevices(); n != 2 {
		t.Errorf("%d are open after release", n)
	}
}

func TestVolumeCache_ClosesLiveDisksThatNobodyUses(t *testing.T) {
	b, _ := withGuest(t, nil, setup{limits: func(l *limits) { l.idle = time.Millisecond }})
	b.open(live).Release()
	eventually(t, "closed", func() bool { return b.fake.Store.OpenDevices() == 0 })
	eventually(t, "no longer watched", func() bool {
		b.volumes.mu.Lock()
		defer b.volumes.mu.Unlock()
		return !b.volumes.watching
	})
	b.open(live).Release()
	eventually(t, "closed again", func() bool { return b.fake.Store.OpenDevices() == 0 })
}

func TestVolume_OfASnapshotThatWasRemovedMeanwhileIsNoFailure(t *testing.T) {
	b := newBench(t, setup{})
	b.must(b.Snapshot(t.Context(), "web01", "s"))
	frozen := VolumeRef{SetID: b.set("web01", "s").ID, VDev: "xvda"}
	before := b.Stats()["failures"]
	clear := b.fake.Store.Fail("Open", fmt.Errorf("it was removed: %w", backend.ErrNotExist))
	_, err := b.Volume(t.Context(), frozen)
	b.mustFail(err, backend.ErrNotExist)
	if s := b.LastErrors("web01"); s != nil || b.Stats()["failures"] != before || len(b.eventsOf("error")) != 0 {
		t.Errorf("it was recorded: %s", s)
	}
	// A live disk that is not there is one, and so is a snapshot that cannot be read.
	_, err = b.Volume(t.Context(), VolumeRef{Domain: "web01", VDev: "xvda"})
	b.mustFail(err, backend.ErrNotExist)
	b.lastErrorHas("web01", " open ENOENT disk xvda of web01")
	clear()
	defer b.fake.Store.Fail("Open", backend.ErrIO)()
	_, err = b.Volume(t.Context(), frozen)
	b.mustFail(err, backend.ErrIO)
	b.lastErrorHas("web01", " open EIO disk xvda in snapshot s of web01")
}

func TestClose_SaysThatAVolumeIsInUse(t *testing.T) {
	b, _ := withGuest(t, nil, setup{})
	v := b.open(live)
	if err := b.Close(); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("%v", err)
	}
	if v.Acquire() {
		t.Error("acquired after Close")
	}
	v.Release()
	if _, err := b.Volume(context.Background(), live); err == nil {
		t.Error("opened after Close")
	}
}

func TestVolume_OpensUnderChangeStress(t *testing.T) {
	b, _ := withGuest(t, content(map[int]string{0: "table:1", 512: "fs"}), setup{limits: func(l *limits) { l.recheck = time.Millisecond; l.disks = 2 }})
	stop := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				for _, ref := range []VolumeRef{{Domain: "web01", VDev: "xvda", Path: "p1"}, {Domain: "web02", VDev: "xvdb"}, {Domain: "web02", VDev: "xvdc"}} {
					v, err := b.Volume(t.Context(), ref)
					if err != nil {
						if !errors.Is(err, backend.ErrBusy) {
							t.Error(err)
						}
						continue
					}
					if _, err := v.Device().ReadAt(make([]byte, 8), 0); err != nil {
						t.Errorf("read: %v", err)
					}
					if v.Acquire() {
						if v.HasFiles() {
							if _, err := v.FS(t.Context()); err != nil {
								t.Error(err)
							}
						}
						v.Release()
					}
					v.Release()
				}
			}
		})
	}
	for i := 0; time.Now().Before(stop); i++ {
		b.fake.Store.Write("/images/web01-xvda", 900000, bytes.Repeat([]byte{byte(i)}, 10))
		time.Sleep(3 * time.Millisecond)
	}
	wg.Wait()
}

package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"reflect"
	"sync"
	"testing"

	"domfs/backend"
)

// Layout checks what every backend.Layout promises, on a device that holds a table
// which the layout reads and which has at least one readable part.
func Layout(t *testing.T, l backend.Layout, d backend.Device) {
	t.Run("Types are distinct and not empty", func(t *testing.T) {
		types := l.Types()
		if len(types) == 0 {
			t.Fatal("a layout must read something")
		}
		seen := map[string]bool{}
		for _, name := range types {
			if name == "" || seen[name] {
				t.Errorf("Types() = %q", types)
			}
			seen[name] = true
		}
	})

	located := &locatedDevice{Device: d}
	parts, err := l.Parts(located)
	if err != nil {
		t.Fatalf("Parts: %v", err)
	}
	t.Run("Parts are numbered in ascending order", func(t *testing.T) {
		last := 0
		for _, p := range parts {
			if p.Number <= last {
				t.Errorf("part %d comes after part %d", p.Number, last)
			}
			last = p.Number
		}
	})
	t.Run("a Part has a Device or an Err", func(t *testing.T) {
		readable := 0
		for _, p := range parts {
			switch {
			case (p.Err == nil) == (p.Device == nil):
				t.Errorf("part %d: Device %v, Err %v", p.Number, p.Device, p.Err)
			case p.Err == nil:
				readable++
			case !errors.Is(p.Err, backend.ErrCorrupt) && !errors.Is(p.Err, backend.ErrUnsupported):
				t.Errorf("part %d: Err %v wraps no sentinel of use", p.Number, p.Err)
			}
		}
		if readable == 0 {
			t.Fatal("the device given to the contract must have a readable part")
		}
	})
	t.Run("Parts lie on the device and are its bytes", func(t *testing.T) {
		for _, p := range parts {
			if p.Err == nil {
				checkPartBytes(t, d, p)
			}
		}
	})
	t.Run("reading a Part ends with EOF", func(t *testing.T) {
		for _, p := range parts {
			if p.Err == nil {
				checkEOF(t, p)
			}
		}
	})
	t.Run("closing a Part closes nothing", func(t *testing.T) {
		for _, p := range parts {
			if p.Err != nil {
				continue
			}
			if err := p.Device.Close(); err != nil {
				t.Errorf("part %d: Close: %v", p.Number, err)
			}
			if _, err := p.Device.ReadAt(make([]byte, 1), 0); err != nil && err != io.EOF {
				t.Errorf("part %d: read after Close: %v", p.Number, err)
			}
		}
		if _, err := d.ReadAt(make([]byte, 1), 0); err != nil {
			t.Errorf("read of the device after its parts were closed: %v", err)
		}
	})
	t.Run("concurrent use", func(t *testing.T) { checkConcurrentParts(t, l, d) })
	t.Run("a device that cannot be read is an error", func(t *testing.T) {
		if _, err := l.Parts(&failingDevice{Device: d}); !errors.Is(err, errFailing) {
			t.Errorf("Parts: %v, want the device's own error", err)
		}
	})
	t.Run("a device that shrinks is survived", func(t *testing.T) {
		for _, size := range shrunkSizes(d.Size()) {
			short := &shortDevice{Device: d, size: size}
			parts, err := l.Parts(short)
			if err != nil && !errors.Is(err, backend.ErrCorrupt) {
				t.Errorf("%d bytes: Parts: %v, want ErrCorrupt", size, err)
			}
			for _, p := range parts {
				if p.Err == nil && p.Device.Size() > size {
					t.Errorf("%d bytes: part %d has %d", size, p.Number, p.Device.Size())
				}
			}
		}
	})
}

// Prober checks what every backend.Prober promises, on a device that holds want.
func Prober(t *testing.T, p backend.Prober, d backend.Device, want backend.Content) {
	t.Run("finds the content", func(t *testing.T) {
		got, err := p.Probe(d)
		if err != nil || got != want {
			t.Errorf("Probe = %+q, %v; want %+q", got, err, want)
		}
	})
	t.Run("concurrent use", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if got, err := p.Probe(d); err != nil || got != want {
					t.Errorf("Probe = %+q, %v; want %+q", got, err, want)
				}
			})
		}
		wg.Wait()
	})
	t.Run("an empty device is unknown", func(t *testing.T) {
		if got, err := p.Probe(&shortDevice{Device: d}); err != nil || got != (backend.Content{}) {
			t.Errorf("Probe = %+q, %v", got, err)
		}
	})
	t.Run("a device that cannot be read is an error", func(t *testing.T) {
		if got, err := p.Probe(&failingDevice{Device: d}); !errors.Is(err, errFailing) || got != (backend.Content{}) {
			t.Errorf("Probe = %+q, %v, want the device's own error", got, err)
		}
	})
	t.Run("a short device is no error", func(t *testing.T) {
		for _, size := range shrunkSizes(d.Size()) {
			if _, err := p.Probe(&shortDevice{Device: d, size: size}); err != nil {
				t.Errorf("%d bytes: Probe: %v", size, err)
			}
			if _, err := p.Probe(&lyingDevice{Device: d, real: size}); err != nil {
				t.Errorf("%d bytes, though it says %d: Probe: %v", size, d.Size(), err)
			}
		}
	})
	t.Run("reads are few and small", func(t *testing.T) {
		c := &countingDevice{Device: d}
		if _, err := p.Probe(c); err != nil {
			t.Fatal(err)
		}
		if c.reads > 64 || c.bytes > 4<<20 {
			t.Errorf("Probe made %d reads of %d bytes in all", c.reads, c.bytes)
		}
	})
}

// checkPartBytes compares a part with the bytes of the device where Locate says that it is.
func checkPartBytes(t *testing.T, d backend.Device, p backend.Part) {
	t.Helper()
	size := p.Device.Size()
	if size <= 0 {
		t.Errorf("part %d has %d bytes", p.Number, size)
		return
	}
	loc, ok := p.Device.(backend.Locator)
	if !ok {
		t.Errorf("part %d does not say where its bytes are, though the device does", p.Number)
		return
	}
	at, ok := loc.Locate(0, size)
	if !ok || at.Offset < 0 || at.Length > size || at.Offset+size > d.Size() {
		t.Errorf("part %d: %d bytes at %+v (%v), on a device of %d", p.Number, size, at, ok, d.Size())
		return
	}
	for _, off := range []int64{0, size / 2, max(size-512, 0)} {
		n := min(512, size-off)
		want, got := make([]byte, n), make([]byte, n)
		if _, err := d.ReadAt(want, at.Offset+off); err != nil && err != io.EOF {
			t.Errorf("read the device: %v", err)
		}
		if _, err := p.Device.ReadAt(got, off); err != nil && err != io.EOF {
			t.Errorf("part %d: read at %d: %v", p.Number, off, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("part %d: the bytes at %d are not those of the device at %d", p.Number, off, at.Offset+off)
		}
	}
}

// checkEOF checks ReadAt at, before and past the end of a part.
func checkEOF(t *testing.T, p backend.Part) {
	t.Helper()
	size := p.Device.Size()
	for _, c := range []struct {
		off    int64
		length int
		n      int
		eof    bool
	}{
		{size, 1, 0, true},
		{size + 1<<40, 1, 0, true},
		{size - 1, 2, 1, true},
		{max(size-16, 0), 64, int(min(size, 16)), true},
		{0, 1, 1, false},
	} {
		n, err := p.Device.ReadAt(make([]byte, c.length), c.off)
		if n != c.n || c.eof && err != io.EOF || !c.eof && err != nil && err != io.EOF {
			t.Errorf("part %d of %d bytes: ReadAt(%d bytes, %d) = %d, %v", p.Number, size, c.length, c.off, n, err)
		}
	}
	if _, err := p.Device.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("part %d: ReadAt(-1) = %v, want an error", p.Number, err)
	}
}

// checkConcurrentParts lists and reads the parts from several goroutines at once.
func checkConcurrentParts(t *testing.T, l backend.Layout, d backend.Device) {
	t.Helper()
	first, err := l.Parts(d)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for seed := range int64(8) {
		wg.Go(func() {
			parts, err := l.Parts(d)
			if err != nil || !reflect.DeepEqual(describe(parts), describe(first)) {
				t.Errorf("Parts = %v, %v; before %v", describe(parts), err, describe(first))
				return
			}
			rnd := rand.New(rand.NewSource(seed))
			for range 50 {
				i := rnd.Intn(len(parts))
				if parts[i].Err != nil {
					continue
				}
				off := rnd.Int63n(parts[i].Device.Size())
				got, want := make([]byte, 64), make([]byte, 64)
				n, _ := parts[i].Device.ReadAt(got, off)
				m, _ := first[i].Device.ReadAt(want, off)
				if n != m || !bytes.Equal(got, want) {
					t.Errorf("part %d differs at %d", parts[i].Number, off)
				}
			}
		})
	}
	wg.Wait()
}

func describe(parts []backend.Part) []string {
	var out []string
	for _, p := range parts {
		size := int64(-1)
		if p.Device != nil {
			size = p.Device.Size()
		}
		out = append(out, fmt.Sprintf("%d %d %q %s %s %v", p.Number, size, p.Label, p.UUID, p.Type, p.Err))
	}
	return out
}

// shrunkSizes are sizes of a device that is cut off, at all kinds of places.
func shrunkSizes(size int64) []int64 {
	var out []int64
	for _, s := range []int64{0, 1, 511, 512, 513, 1024, 1025, 1536, 2048, 4096, 4608, 8192, 17 << 10, 32 << 10, 33 << 10, 64 << 10,
		65 << 10, 68 << 10, 128 << 10, 257 << 10, 1 << 20, 1440 << 10, 1440<<10 + 1, size / 2, size - 4096, size - 512, size - 1} {
		if s >= 0 && s <= size {
			out = append(out, s)
		}
	}
	return out
}

// locatedDevice says that its bytes lie in one descriptor, at their own offsets.
type locatedDevice struct{ backend.Device }

func (d *locatedDevice) Locate(off, length int64) (backend.Location, bool) {
	return backend.Location{Offset: off, Length: min(length, d.Size()-off)}, off < d.Size()
}

var errFailing = errors.New("medium error")

// failingDevice cannot be read.
type failingDevice struct{ backend.Device }

func (d *failingDevice) ReadAt([]byte, int64) (int, error) { return 0, errFailing }

// shortDevice is the first bytes of a device.
type shortDevice struct {
	backend.Device
	size int64
}

func (d *shortDevice) Size() int64 { return d.size }

func (d *shortDevice) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(d.Device, 0, d.size).ReadAt(p, off)
}

// lyingDevice ends before its Size.
type lyingDevice struct {
	backend.Device
	real int64
}

func (d *lyingDevice) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(d.Device, 0, d.real).ReadAt(p, off)
}

// countingDevice counts what is read of it, by one goroutine.
type countingDevice struct {
	backend.Device
	reads, bytes int64
}

func (d *countingDevice) ReadAt(p []byte, off int64) (int, error) {
	d.reads++
	d.bytes += int64(len(p))
	return d.Device.ReadAt(p, off)
}

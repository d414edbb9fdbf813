package part_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"os"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/cputime"
	"domfs/backend/guest/part"
)

// memory is bytes as a Device that may say that it is larger than they are.
type memory struct {
	*bytes.Reader
	size int64
}

func (m memory) Size() int64  { return m.size }
func (m memory) Close() error { return nil }

// seeds are small images by the real tools.
func seeds(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for _, s := range []string{
		"label: dos\nstart=1,size=10\nstart=20,size=10,type=c\n",
		"label: dos\n1: start=1,size=1\n2: start=10,size=200,type=5\n5: start=20,size=10\n6: start=40,size=10\n7: start=60,size=100\n",
		"label: gpt\nfirst-lba: 34\nstart=40,size=8,name=one\n7: start=60,size=8,name=\"sev en\"\n",
	} {
		path := newImage(t, 128<<10)
		sfdisk(t, path, s)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
		if bytes.HasPrefix(b[512:], []byte("EFI PART")) {
			backup := bytes.Clone(b)
			clear(backup[512:1024])
			out = append(out, backup)
		}
	}
	return out
}

// partsHostile checks what must hold for any bytes.
func partsHostile(t testing.TB, d backend.Device) {
	t.Helper()
	began := cputime.Now()
	parts, err := part.New().Parts(d)
	if err != nil && !errors.Is(err, backend.ErrCorrupt) {
		t.Errorf("Parts: %v, want ErrCorrupt", err)
	}
	last := 0
	for _, p := range parts {
		if p.Number <= last || p.Number > 255 {
			t.Errorf("part %d after %d", p.Number, last)
		}
		last = p.Number
		if p.Err != nil {
			if !errors.Is(p.Err, backend.ErrCorrupt) || p.Device != nil {
				t.Errorf("part %d: %v with %v", p.Number, p.Device, p.Err)
			}
			continue
		}
		if p.Device.Size() <= 0 || p.Device.Size() > d.Size() {
			t.Errorf("part %d has %d bytes of %d", p.Number, p.Device.Size(), d.Size())
		}
		if _, err := p.Device.ReadAt(make([]byte, 1), p.Device.Size()-1); err != nil && err != io.EOF {
			t.Errorf("part %d: %v", p.Number, err)
		}
	}
	if took := began.Used(); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func FuzzParts(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, int64(len(b)), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64, sums bool) {
		if size < 0 {
			return
		}
		if sums && len(b) >= 2*512 { // let changed headers through
			b = bytes.Clone(b)
			resumAll(b)
		}
		partsHostile(t, memory{bytes.NewReader(b), size})
	})
}

// resumAll makes the checksums of a primary GPT fit, where it has one.
func resumAll(b []byte) {
	h := b[512:1024]
	first, n, size := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	end := first*512 + uint64(n)*uint64(size)
	if hs := le.Uint32(h[12:]); hs < 92 || hs > 512 || first > 1<<20 || end > uint64(len(b)) {
		return
	}
	sumEntries(h, b[first*512:end])
	resum(h)
}

func TestParts_SurvivesMutation(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	for _, b := range seeds(t) {
		var places []int
		for i, c := range b {
			if c != 0 {
				places = append(places, i)
			}
		}
		for i := range 500 {
			m := bytes.Clone(b)
			for range 1 + rnd.Intn(6) {
				at := min(places[rnd.Intn(len(places))]+rnd.Intn(4), len(m)-1)
				m[at] = []byte{0, 1, 5, 0x7f, 0x80, 0xee, 0xff, byte(rnd.Intn(256))}[rnd.Intn(8)]
			}
			if i%2 == 0 {
				resumAll(m)
			}
			partsHostile(t, memory{bytes.NewReader(m), int64(len(m))})
			partsHostile(t, memory{bytes.NewReader(m), 1 << 62})
		}
	}
}

package blkid_test

import (
	"io"
	"math/rand"
	"os"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/cputime"
	"domfs/backend/guest/blkid"
)

// sparse is a device that is zero but at its head and at its tail.
type sparse struct {
	head, tail []byte
	size       int64
}

func (s sparse) Size() int64  { return s.size }
func (s sparse) Close() error { return nil }

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.head)) {
		copy(p[:n], s.head[off:])
	}
	if at := s.size - int64(len(s.tail)); off+int64(n) > at {
		if off >= at {
			copy(p[:n], s.tail[off-at:])
		} else {
			copy(p[at-off:n], s.tail)
		}
	}
	var err error
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// snapshot is the head and tail of an image, short of zeros.
func snapshot(t testing.TB, path string) sparse {
	t.Helper()
	const window = 192 << 10
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sparse{size: st.Size()}
	s.head = readAt(t, path, 0, int(min(s.size, window)))
	for len(s.head) > 0 && s.head[len(s.head)-1] == 0 {
		s.head = s.head[:len(s.head)-1]
	}
	if s.size > 2*window {
		s.tail = readAt(t, path, s.size-window, window)
		for len(s.tail) > 0 && s.tail[0] == 0 {
			s.tail = s.tail[1:]
		}
	}
	return s
}

// used are the offsets where there is something.
func (s sparse) used() []int64 {
	var out []int64
	for i, b := range s.head {
		if b != 0 {
			out = append(out, int64(i))
		}
	}
	for i, b := range s.tail {
		if b != 0 {
			out = append(out, s.size-int64(len(s.tail))+int64(i))
		}
	}
	return out
}

// sampled are the kinds that fuzzing and mutation begin with.
var sampled = map[string]bool{
	"ext4": true, "vfat 12": true, "vfat 32": true, "exfat": true, "ntfs": true, "iso9660 joliet": true, "udf hard disk": true,
	"squashfs": true, "f2fs": true, "swap": true, "LUKS1": true, "md 1.2": true, "md 0.90": true, "dos": true, "gpt": true,
	"gpt without primary": true, "reiserfs": true, "jfs": true, "nilfs2": true, "xfs": true, "btrfs": true, "bcache": true,
	"BitLocker": true, "zfs": true, "LVM2": true,
}

func FuzzProbe(f *testing.F) {
	for _, k := range kinds {
		if !sampled[k.name] {
			continue
		}
		path := built(f, k)
		s := snapshot(f, path)
		f.Add(s.head, s.tail, s.size)
	}
	f.Fuzz(func(t *testing.T, head, tail []byte, size int64) {
		if size < 0 || size < int64(len(head)+len(tail)) {
			return
		}
		probeHostile(t, sparse{head, tail, size})
	})
}

// probeHostile checks what must hold for any bytes.
func probeHostile(t testing.TB, d backend.Device) backend.Content {
	t.Helper()
	began := cputime.Now()
	c, err := blkid.New().Probe(d)
	if err != nil {
		t.Errorf("Probe: %v, though every read succeeded", err)
	}
	if c.Type == "" && c != (backend.Content{}) {
		t.Errorf("unknown, but %+q", c)
	}
	if len(c.Label) > 3*512 || len(c.UUID) > 64 {
		t.Errorf("label of %d bytes, UUID of %d", len(c.Label), len(c.UUID))
	}
	if took := began.Used(); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	return c
}

// mutated is an image with some bytes changed.
type mutated struct {
	backend.Device
	bytes map[int64]byte
}

func (m mutated) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.Device.ReadAt(p, off)
	for at, b := range m.bytes {
		if at >= off && at < off+int64(n) {
			p[at-off] = b
		}
	}
	return n, err
}

func TestProbe_SurvivesMutation(t *testing.T) {
	rnd := rand.New(rand.NewSource(2))
	for _, k := range kinds {
		if !sampled[k.name] {
			continue
		}
		path := built(t, k)
		d := openImage(t, path)
		places := snapshot(t, path).used()
		for range 300 {
			m := mutated{d, map[int64]byte{}}
			for range 1 + rnd.Intn(8) {
				at := places[rnd.Intn(len(places))]
				if rnd.Intn(2) == 0 {
					at = min(at+int64(rnd.Intn(16)), d.Size()-1)
				}
				m.bytes[at] = []byte{0, 1, 0x7f, 0x80, 0xff, byte(rnd.Intn(256))}[rnd.Intn(6)]
			}
			probeHostile(t, m)
		}
	}
}

const mutationsPerKind = 12

// TestProbe_ChecksWhatBlkidChecks compares with blkid on damaged images, too: the same
// sanity checks must decide.
func TestProbe_ChecksWhatBlkidChecks(t *testing.T) {
	rnd := rand.New(rand.NewSource(3))
	for _, k := range kinds {
		if !sampled[k.name] || k.name == "zfs" { // of a damaged ZFS label blkid takes no other one
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			path := built(t, k)
			places := snapshot(t, path).used()
			for range mutationsPerKind {
				at := places[rnd.Intn(len(places))]
				if low := places[:min(len(places), 200)]; rnd.Intn(2) == 0 {
					at = low[rnd.Intn(len(low))]
				}
				at = min(at+max(0, int64(rnd.Intn(16)-8)), places[len(places)-1]) // next to it, too
				if k.name == "exfat" && (at == 0x6c || at == 0x6d) {
					continue // sizes of sector and cluster: with impossible ones blkid gives up
				}
				old := readAt(t, path, at, 1)
				to := []byte{byte(rnd.Intn(256))}
				writeAt(t, path, at, to)
				sameAsBlkid(t, path)
				if t.Failed() {
					t.Fatalf("byte %#x changed from %#x to %#x", at, old, to)
				}
				writeAt(t, path, at, old)
			}
		})
	}
}

func TestProber_KeepsTheContract(t *testing.T) {
	for _, k := range kinds {
		if !sampled[k.name] {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			path := built(t, k)
			backendtest.Prober(t, blkid.New(), openImage(t, path), blkidSays(t, path))
		})
	}
}

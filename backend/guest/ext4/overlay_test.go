package ext4

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"domfs/backend"
)

// located is a device whose bytes lie in descriptor 7, at their own offsets.
type located struct{ *bytes.Reader }

func (located) Close() error { return nil }
func (located) Locate(off, length int64) (backend.Location, bool) {
	return backend.Location{FD: 7, Offset: off, Length: length}, true
}

// TestOverlay_ReadsAndLocatesWhatLiesOverTheDevice compares reads of every shape with an image that has
// the overlay written into it.
func TestOverlay_ReadsAndLocatesWhatLiesOverTheDevice(t *testing.T) {
	const bits, blocks = 10, 64
	rnd := rand.New(rand.NewPCG(1, 2))
	disk := make([]byte, blocks<<bits)
	for i := range disk {
		disk[i] = byte(rnd.Uint32())
	}
	block := func(image []byte, n int) []byte { return image[n<<bits : (n+1)<<bits] }
	fs := &FS{dev: located{bytes.NewReader(disk)}, sb: &super{blockBits: bits, blocks: blocks}}
	want := bytes.Clone(disk)
	replay := func(to, from int, escaped bool) {
		r := replayedBlock{block: uint64(to), journal: uint64(from)}
		copy(block(want, to), block(disk, from))
		if escaped {
			r.journal |= escapedBlock
			binary.BigEndian.PutUint32(block(want, to), jbd2Magic)
		}
		fs.over.replayed = append(fs.over.replayed, r)
	}
	replay(0, 50, false)
	replay(3, 51, true)
	replay(4, 52, false)
	replay(9, 53, false)
	replay(63, 54, true)
	fs.over.edited = map[uint64][]byte{}
	for _, n := range []int{9, 10, 31} {
		b := bytes.Repeat([]byte{byte(n)}, 1<<bits)
		fs.over.edited[uint64(n)] = b
		copy(block(want, n), b)
	}
	fs.over.seal()

	for range 20000 {
		off := rnd.IntN(len(disk))
		p := make([]byte, min(1+rnd.IntN(5<<bits), len(disk)-off))
		if err := fs.readAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("bytes %d+%d differ", off, len(p))
		}
		// Whatever can be located is what a read returns, and makes progress.
		loc, ok := fs.locate(int64(off), int64(len(p)))
		if ok && (loc.Length <= 0 || loc.Length > int64(len(p)) || !bytes.Equal(disk[loc.Offset:loc.Offset+loc.Length], p[:loc.Length])) {
			t.Fatalf("bytes %d+%d are located at %d+%d, and differ there", off, len(p), loc.Offset, loc.Length)
		}
	}
	for _, n := range []int64{3, 9, 10, 63} {
		if _, ok := fs.locate(n<<bits, 1); ok {
			t.Errorf("block %d is located, and its bytes are nowhere on the device", n)
		}
	}
	if loc, ok := fs.locate(4<<bits+7, 5000); !ok || loc.Offset != 52<<bits+7 || loc.Length != 1<<bits-7 {
		t.Errorf("block 4 is located at %+v, %v, not in the journal's block 52", loc, ok)
	}
}

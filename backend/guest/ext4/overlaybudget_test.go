package ext4

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"

	"domfs/backend"
)

// heldOverlays is how many bytes all filesystems hold of the budget.
func heldOverlays() int64 {
	overlays.mu.Lock()
	defer overlays.mu.Unlock()
	return overlays.held
}

// withOverlayBudget gives all filesystems n bytes more than they hold.
func withOverlayBudget(t *testing.T, n int64) {
	before := overlays.max
	overlays.max = heldOverlays() + n
	t.Cleanup(func() { overlays.max = before })
}

// usedLog is an image whose log holds n of the target's blocks.
func usedLog(t *testing.T, n int) []byte {
	w := newLogWriter(t, logImage(t), logFormats[1])
	for i := range n {
		w.write(w.fill(i, 'A'))
	}
	return w.finish()
}

func TestOpen_IsBusyWhereOtherFilesystemsHoldTheMemoryForReplays(t *testing.T) {
	image := usedLog(t, 40)
	start := heldOverlays()
	withOverlayBudget(t, 100*replayedBytes)
	var open []backend.FS
	for range 2 {
		fs, err := New().Open(inMemory(image))
		must(t, err)
		open = append(open, fs)
	}
	if n := heldOverlays() - start; n != 80*replayedBytes {
		t.Errorf("two filesystems of 40 blocks each hold %d bytes", n)
	}
	_, err := New().Open(inMemory(image))
	if !errors.Is(err, backend.ErrBusy) || unreadable(err) || !strings.Contains(err.Error(), "try again when fewer filesystems") {
		t.Errorf("the third: %v", err)
	}
	// One that needs no replay has no part in it.
	clean, err := New().Open(inMemory(logImage(t)))
	must(t, err)
	must(t, clean.Close())
	for range 2 { // twice is once
		must(t, open[0].Close())
	}
	fs, err := New().Open(inMemory(image))
	must(t, err)
	if got := targetIs(t, fs.(*FS)); strings.Count(got, "A") != 40 {
		t.Errorf("after one was closed: %s", got)
	}
	must(t, fs.Close())
	must(t, open[1].Close())
	if n := heldOverlays() - start; n != 0 {
		t.Errorf("%d bytes are held by none", n)
	}
}

func TestOpen_GivesBackWhatAReplayHeldThatIsGivenUp(t *testing.T) {
	image := usedLog(t, 40)
	for name, damage := range map[string]func(d *damagedAfter){
		"the device fails": func(d *damagedAfter) { d.err = backend.ErrIO },
		"it is corrupt":    func(d *damagedAfter) { d.err = backend.ErrCorrupt },
	} {
		t.Run(name, func(t *testing.T) {
			failed := 0
			for after := range 200 {
				start := heldOverlays()
				d := &damagedAfter{Device: inMemory(image), left: after}
				damage(d)
				fs, err := New().Open(d)
				if err == nil {
					must(t, fs.Close())
				} else {
					failed++
				}
				if n := heldOverlays() - start; n != 0 {
					t.Fatalf("after %d reads, %d bytes are held by none", after, n)
				}
				if d.left > 0 {
					break
				}
			}
			if failed == 0 {
				t.Error("none failed")
			}
		})
	}
}

// damagedAfter is a device that fails after some reads.
type damagedAfter struct {
	backend.Device
	left int
	err  error
}

func (d *damagedAfter) ReadAt(p []byte, off int64) (int, error) {
	if d.left--; d.left < 0 {
		return 0, d.err
	}
	return d.Device.ReadAt(p, off)
}

func TestEditor_TakesItsBlocksFromTheMemoryOfAll(t *testing.T) {
	opened, err := New().Open(inMemory(logImage(t)))
	must(t, err)
	fs := opened.(*FS)
	start := heldOverlays()
	withOverlayBudget(t, 10*(1<<10+editedOverhead))
	e := newEditor(fs)
	for block := range uint64(10) {
		_, err := e.edit(100+block, kindContent)
		must(t, err)
	}
	if _, err := e.edit(110, kindContent); !errors.Is(err, backend.ErrBusy) || told(err) {
		t.Errorf("%v", err)
	}
	if _, err := e.edit(105, kindContent); err != nil {
		t.Errorf("one that is edited already: %v", err)
	}
	e.finish()
	if n := heldOverlays() - start; n != 10*(1<<10+editedOverhead) {
		t.Errorf("%d bytes are held for 10 blocks", n)
	}
	if again := newEditor(fs); again != nil {
		if _, err := again.edit(105, kindContent); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("a copy to go back to: %v", err)
		}
		again.discard()
	}
	must(t, fs.Close())
	if n := heldOverlays() - start; n != 0 {
		t.Errorf("%d bytes are held by none", n)
	}
	if _, err := fs.Attr(rootIno); !errors.Is(err, backend.ErrStale) {
		t.Errorf("a filesystem that is closed is read as the device has it: %v", err)
	}
}

func TestRecover_ReadsNoMoreOfTheJournalThanItsBudget(t *testing.T) {
	clean := logImage(t)
	for _, f := range logFormats {
		t.Run(f.name, func(t *testing.T) {
			w := newLogWriter(t, clean, f)
			for i := range 60 {
				w.write(w.fill(i, 'A'))
			}
			image := w.finish()
			sb, _, err := readSuper(inMemory(image))
			must(t, err)
			fs := &FS{dev: inMemory(image), sb: sb, cache: newCache(cacheBytes)}
			defer fs.Close()
			j, err := fs.openJournal()
			must(t, err)
			defer j.close()
			before := j.readLeft
			if _, _, err := j.replay(); err != nil {
				t.Fatal(err)
			}
			used := before - j.readLeft
			// No walk reads the log more than once.
			if walked := int64(j.last) << 10; used == 0 || used > 3*walked {
				t.Errorf("%d bytes of a log of %d", used, walked)
			}
			for _, left := range []int64{used - 1, used / 2, 0} {
				j.readLeft = left
				if _, _, err := j.replay(); !errors.Is(err, backend.ErrUnsupported) || !unreadable(err) || !strings.Contains(err.Error(), "GiB") {
					t.Errorf("%d bytes of %d: %v", left, used, err)
				}
			}
			j.readLeft = used
			if _, _, err := j.replay(); err != nil {
				t.Errorf("%d bytes: %v", used, err)
			}
		})
	}
}

// A journal of 1 GiB, which mke2fs makes, that is in use as a whole is read three times at most.
func TestRecover_HasTheBudgetForALargeJournalThatIsFull(t *testing.T) {
	if maxRecoveryBytes < 3*1<<30 {
		t.Errorf("%d bytes", int64(maxRecoveryBytes))
	}
}

func TestOpenUntil_EndsEarly(t *testing.T) {
	image := usedLog(t, 40)
	done := make(chan struct{})
	fs, err := New().OpenUntil(done, inMemory(image))
	must(t, err)
	close(done)
	if got := targetIs(t, fs.(*FS)); strings.Count(got, "A") != 40 {
		t.Errorf("closed after it was open: %s", got)
	}
	must(t, fs.Close())
	start := heldOverlays()
	if _, err := New().OpenUntil(done, inMemory(image)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if n := heldOverlays() - start; n != 0 {
		t.Errorf("%d bytes are held by none", n)
	}
}

func TestCRC32BE_IsTheReversedSumOfReversedBytes(t *testing.T) {
	if got := crc32BE(^uint32(0), []byte("123456789")); got != 0x0376e6e7 { // CRC-32/MPEG-2's check value
		t.Errorf("0x%08x", got)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		p := make([]byte, rnd.IntN(200))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		crc, cut := rnd.Uint32(), rnd.IntN(len(p)+1)
		reversed := bytes.Clone(p)
		for i := range reversed {
			reversed[i] = bits.Reverse8(reversed[i])
		}
		want := bits.Reverse32(^crc32.Update(^bits.Reverse32(crc), crc32.IEEETable, reversed))
		if got := crc32BE(crc32BE(crc, p[:cut]), p[cut:]); got != want {
			t.Fatalf("0x%08x, not 0x%08x, of %x + %x from 0x%08x", got, want, p[:cut], p[cut:], crc)
		}
	}
}

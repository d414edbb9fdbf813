package ext4

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/cputime"
	"domfs/backend/backendtest/testneed"
)

// detectorFactor is by how much more such work may cost under the race detector, which
// looks at each of its accesses to memory.
func detectorFactor() (cpu time.Duration, memory uint64) {
	if underRace {
		return 12, 2
	}
	return 1, 1
}

// cost is what f takes: the processor's time, and the memory that it takes in all.
func cost(f func()) (cpu time.Duration, allocated uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := cputime.Now()
	f()
	cpu = start.Used()
	runtime.ReadMemStats(&after)
	return cpu, after.TotalAlloc - before.TotalAlloc
}

// A scan ends at its bounds however large the area is, and keeps nothing of the tags.
func TestScanFastCommits_IsBounded(t *testing.T) {
	const tid = 5
	sb := &super{blockBits: 12, blocks: 1 << 30, inodeBytes: 256}
	le := func(kind, n uint16, values ...uint32) []byte {
		return append([]byte{byte(kind), byte(kind >> 8), byte(n), byte(n >> 8)}, u32s(values...)...)
	}
	block := func(tag []byte) []byte {
		var b []byte
		for len(b)+len(tag) <= 4096 {
			b = append(b, tag...)
		}
		return append(b, make([]byte, 4096-len(b))...)
	}
	ranges := block(le(fcAddRange, fcRangeBytes, 12, 0, 1, 1000))
	// What is not filled ends with tags of the type 0, so the rest is a pad.
	rest := 4096 % 20
	copy(ranges[4096-rest:], le(fcPad, uint16(rest-fcTagBytes)))
	head := make([]byte, 4096)
	copy(head, le(fcHead, fcHeadBytes, 0, tid))
	copy(head[12:], le(fcPad, 4096-12-4))
	pads := make([]byte, 4096)
	copy(pads, le(fcPad, 4092))
	for _, c := range []struct {
		name, want string
		fill       []byte
		reads      uint32 // at most
	}{
		{"of ranges", "more than 1048576 tags", ranges, fcMaxTags/(4096/20) + 2},
		{"of padding", "more than 64 MiB", pads, fcMaxBytes >> 12},
		{"of tags of 4 bytes", "more than 1048576 tags", block(le(fcPad, 0)), fcMaxTags/1024 + 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			var err error
			reads := uint32(0)
			cpu, allocated := cost(func() {
				_, err = sb.scanFastCommits(1<<32-1, tid, func(n uint32) ([]byte, error) {
					if reads++; n == 0 {
						return head, nil
					}
					return c.fill, nil
				})
			})
			if !errors.Is(err, errTooMuch) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if cpu > 3*time.Second || allocated > 1<<20 || reads > c.reads {
				t.Errorf("%v, %d bytes, %d blocks", cpu, allocated, reads)
			}
			t.Logf("%v, %d bytes, %d blocks", cpu, allocated, reads)
		})
	}
}

// largeImage is a filesystem of 4 Mi blocks with a file of as many extents as an inode holds, and room for as many
// tags as may be.
func largeImage(t *testing.T) string {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs")
	dir := reflinkDir(t)
	image, tree := filepath.Join(dir, "image"), filepath.Join(dir, "tree")
	must(t, os.Mkdir(tree, 0o755))
	f, err := os.Create(filepath.Join(tree, "f"))
	must(t, err)
	for i := range int64(extentRootRoom) {
		_, err := f.WriteAt(content(1, 4096), i<<18)
		must(t, err)
	}
	must(t, f.Close())
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<30))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "fast_commit,^metadata_csum,^resize_inode,^64bit,^uninit_bg",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-N", "5000", "-J", "size=128,fast_commit_size=24576", "-d", tree, image)
	return image
}

// TestFastCommits_OfAsManyTagsAsMayBeAreBounded replays areas that leave no block to be taken, or hold
// many places to be kept in memory.
func TestFastCommits_OfAsManyTagsAsMayBeAreBounded(t *testing.T) {
	image := largeImage(t)
	before, _ := openImage(t, image)
	ino := uint32(lookup(t, before, "f").Ino)
	const perGroup = 32768
	groups := before.sb.blocks / perGroup
	// Blocks of no file are said to be one's that there is not.
	exclude := func(a *fastArea, first, n uint64) {
		a.addRange(4999, run{blocks: n, phys: first, state: runWritten})
	}
	everything := func(a *fastArea) {
		for g := range groups {
			exclude(a, g*perGroup, perGroup)
		}
	}
	grow := func(a *fastArea, i uint64) {
		a.addRange(ino, run{logical: 100_000 + 2*i, blocks: 1, phys: 3_000_000 + 3*i%1_000_000, state: runWritten})
	}
	const most = fcMaxTags - 2*(fcMaxTags/204) // but for padding
	for _, c := range []struct {
		name string
		make func(a *fastArea)
	}{
		{"nothing is free", func(a *fastArea) {
			everything(a)
			for i := range uint64(most - 200) {
				grow(a, i)
			}
		}},
		{"blocks are freed in between, none of which is to be taken", func(a *fastArea) {
			everything(a)
			for i := range uint64(most/3 - 200) {
				a.addRange(ino, run{logical: 0, blocks: 1, phys: 3_000_000 + 3*i, state: runWritten})
				a.delRange(ino, 0, 1)
				grow(a, i)
			}
		}},
		{"as many runs as may be, and growth", func(a *fastArea) {
			for i := range uint64(most / 2) {
				exclude(a, 8*(i*7919%(most/2)), 1)
			}
			for i := range uint64(most/2 - 10) {
				grow(a, i)
			}
		}},
		{"runs in all places but where blocks are used", func(a *fastArea) {
			for i := range uint64(most / 2) {
				exclude(a, 2*(i*7919%(most/2)), 1)
				exclude(a, 2*i+1, 1)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cut := clone(t, image, image+".cut")
			a := newFastArea(before.sb.blockBytes(), fastTID(t, before))
			c.make(a)
			a.tail()
			putFastArea(t, cut, a.area)
			a.area = nil
			var fs *FS
			cpu, allocated := cost(func() { fs, _ = openImage(t, cut) })
			t.Logf("%v, %d MiB, tags %v, %.200q", cpu, allocated>>20, fs.fastCommits, fs.Warnings())
			slower, larger := detectorFactor()
			if cpu > 5*time.Second*slower || allocated > 256<<20*larger {
				t.Errorf("%v, %d MiB", cpu, allocated>>20)
			}
			if n := len(fs.over.edited); n > maxEditedBytes>>12 {
				t.Errorf("%d edited blocks", n)
			}
		})
	}
}

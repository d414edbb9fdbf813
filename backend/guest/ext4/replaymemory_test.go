package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
)

const (
	fullLogEnv    = "DOMFS_EXT4_FULL_LOG" // the image, for the process that is measured
	fullLogRSSKiB = 256 << 10
)

// fullLogRevokes is how many of the blocks that a log may have it revokes.
const fullLogRevokes = 1 << 16

// fullLogImage is an image whose log has as many blocks, each another one, and revokes as many, as may be.
func fullLogImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(imageDir(t), "image")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 10<<30))
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "20000", "-O", "^metadata_csum,^64bit,^resize_inode",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-J", "size=4200", path)
	fs, _ := openImage(t, path)
	j, err := fs.openJournal()
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	be := binary.BigEndian
	b := make([]byte, 1024)
	put := func(n uint32) {
		phys, _ := j.phys(n)
		_, err := f.WriteAt(b, int64(phys)<<10)
		must(t, err)
	}
	header := func(kind uint32) {
		clear(b)
		be.PutUint32(b, jbd2Magic)
		be.PutUint32(b[4:], kind)
		be.PutUint32(b[8:], 1)
	}
	at, next := j.first, uint64(0)
	other := func() uint64 { // a block that is not the journal's
		for next++; j.owns(next); next++ {
		}
		return next
	}
	perBlock := (1024 - jbd2HeaderBytes) / 8
	for tags := 0; tags < maxReplayed-fullLogRevokes; {
		header(journalDescriptor)
		n := min(perBlock, maxReplayed-fullLogRevokes-tags)
		for i := range n {
			e := b[jbd2HeaderBytes+8*i:]
			be.PutUint32(e, uint32(other()))
			be.PutUint16(e[6:], tagSameUUID)
			if i == n-1 {
				be.PutUint16(e[6:], tagSameUUID|tagLast)
			}
		}
		put(at)
		tags, at = tags+n, at+1+uint32(n)
	}
	for records := 0; records < fullLogRevokes; {
		header(journalRevoke)
		n := min((1024-revokeHeaderBytes)/4, fullLogRevokes-records)
		for i := range n {
			be.PutUint32(b[revokeHeaderBytes+4*i:], 1<<31+uint32(records+i))
		}
		be.PutUint32(b[jbd2HeaderBytes:], uint32(revokeHeaderBytes+4*n))
		put(at)
		records, at = records+n, at+1
	}
	header(journalCommit)
	put(at)
	if at >= j.last {
		t.Fatalf("the log has %d blocks of %d", at, j.last)
	}
	phys, _ := j.phys(0)
	_, err = f.ReadAt(b, int64(phys)<<10)
	must(t, err)
	be.PutUint32(b[0x18:], 1)
	be.PutUint32(b[0x1c:], j.first)
	be.PutUint32(b[0x28:], journalIncompatRevoke)
	put(0)
	return path
}

// What the log holds of the filesystem's own tables is zeros here, so that it is only replayed, and
// as many blocks are changed in memory as may be.
func TestReplay_OfTheLargestLogStaysBelow256MiB(t *testing.T) {
	if path := os.Getenv(fullLogEnv); path != "" {
		replayFullLog(t, path)
		return
	}
	testneed.Tools(t, "mke2fs")
	cmd := exec.Command(os.Args[0], "-test.run=^TestReplay_OfTheLargestLogStaysBelow256MiB$", "-test.v")
	cmd.Env = append(os.Environ(), fullLogEnv+"="+fullLogImage(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`replayed (\d+), edited (\d+), peak (\d+) KiB`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("%s", out)
	}
	var n [3]int
	for i := range n {
		n[i], err = strconv.Atoi(string(m[1+i]))
		must(t, err)
	}
	t.Logf("%s", m[0])
	if n[0] != maxReplayed-fullLogRevokes || n[1] != maxEditedBytes>>10 || n[2] > fullLogRSSKiB || n[2] < 100<<10 {
		t.Errorf("%d blocks of %d, %d edited of %d, peak %d KiB of at most %d", n[0], maxReplayed-fullLogRevokes, n[1], maxEditedBytes>>10, n[2], fullLogRSSKiB)
	}
}

// goMemoryKiB samples what the Go runtime has of the system's memory, and returns the most that it had: the
// race detector's own memory, which VmHWM has with it, is not in it.
func goMemoryKiB() (peak func() uint64) {
	sampled := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	end, most := make(chan struct{}), make(chan uint64)
	go func() {
		highest := uint64(0)
		for {
			metrics.Read(sampled)
			highest = max(highest, sampled[0].Value.Uint64()-sampled[1].Value.Uint64())
			select {
			case <-end:
				most <- highest >> 10
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(end)
		return <-most
	}
}

// peakKiB is the most memory that the process had.
func peakKiB(t *testing.T) uint64 {
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("%s", status)
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	must(t, err)
	return n
}

func replayFullLog(t *testing.T, path string) {
	ofGo := goMemoryKiB()
	dev := openDevice(t, path)
	sb, _, err := readSuper(dev)
	must(t, err)
	fs := &FS{dev: dev, sb: sb, cache: newCache(cacheBytes)}
	j, err := fs.openJournal()
	must(t, err)
	blocks, damage, err := j.replay()
	must(t, err)
	if damage.rest != nil || damage.skipped != 0 {
		t.Fatalf("%+v", damage)
	}
	fs.over.replayed = blocks
	e := newEditor(fs)
	for block := uint64(1); ; block++ {
		if _, err := e.edit(block, kindContent); errors.Is(err, errTooMuch) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	e.finish()
	for block := sb.blocks - 1; fs.cache.bytes < cacheBytes-1<<20; block-- {
		if _, err := fs.blocks(block, 1); err != nil {
			t.Fatal(err)
		}
	}
	peak := ofGo()
	if !underRace {
		peak = peakKiB(t)
	}
	fmt.Printf("replayed %d, edited %d, peak %d KiB\n", len(fs.over.replayed), len(fs.over.edited), peak)
}

package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"

	"golang.org/x/sys/unix"
)

// slowDisk is a disk whose reads can be held back on their way to it; writes are not.
func slowDisk(t *testing.T, name string, sizeBytes int64) (device string, hold func(time.Duration)) {
	t.Helper()
	const start = 2048 // sectors: LVM must not find the same PV twice
	disk := labneed.Disk(t, sizeBytes+start*sectorBytes)
	table := func(d time.Duration) string {
		return fmt.Sprintf("0 %d delay %s %d %d %s %d 0", sizeBytes/sectorBytes, disk, start, d.Milliseconds(), disk, start)
	}
	labneed.Run(t, "dmsetup", "create", name, "--table", table(0))
	t.Cleanup(func() { labneed.Run(t, "dmsetup", "remove", "--retry", name) })
	return "/dev/mapper/" + name, func(d time.Duration) {
		t.Helper()
		labneed.Run(t, "dmsetup", "reload", name, "--table", table(d))
		labneed.Run(t, "dmsetup", "resume", "--noudevsync", name) // what is held back goes on at once
	}
}

// The kernel has a read of a snapshot wait at the disk, with its origin's place noted; the snapshot overflows, and the
// origin is written at that place: the read brings the new bytes.
func TestLabDevice_AReadUnderWayAsTheSnapshotOverflowsFails(t *testing.T) {
	labneed.LVM(t)
	labneed.Leftovers(t)
	slow, hold := slowDisk(t, "labslow", 128*mib)
	labneed.VG(t, "lablate", slow)
	lvmTool(t, "lvcreate -qq -y -n a -L 32M lablate")
	before, after := bytes.Repeat([]byte("before.."), int(mib/8)), bytes.Repeat([]byte("after..."), int(mib/8))
	const at = 24 * mib // that the read is of
	writeDevice(t, "/dev/lablate/a", before, at)
	lvmTool(t, "lvcreate -qq -s -pr -n s -L 8M lablate/a")
	s := New(Options{})
	v := *labListed(t, s, "lablate/s")
	d := mustOpen(t, s, v.Volume)
	if _, ok := d.(backend.Locator); ok {
		t.Error("a thick snapshot can be spliced")
	}
	// All but the last of its space is used.
	for off := int64(0); off < 7*mib; off += mib {
		writeDevice(t, "/dev/lablate/a", after, off)
	}
	for off := 7 * mib; v.FillPercent < 95; off += mib / 8 {
		writeDevice(t, "/dev/lablate/a", after[:mib/8], off)
		v = *labListed(t, s, "lablate/s")
	}
	if v.State != backend.SnapshotActive {
		t.Fatalf("it is full already: %+v", v)
	}
	if _, err := d.ReadAt(make([]byte, 4096), 20*mib); err != nil { // the answer to all events so far
		t.Fatal(err)
	}
	labneed.Settle(t)

	// Udev would look at what changes, and wait for the disk.
	labneed.Run(t, "udevadm", "control", "--stop-exec-queue")
	t.Cleanup(func() {
		labneed.Run(t, "udevadm", "control", "--start-exec-queue")
		labneed.Settle(t)
	})
	const late = 40 * time.Second
	hold(late)
	t.Cleanup(func() { hold(0) }) // before udev goes on
	// What the kernel itself gives, without anybody who looks afterwards.
	raw, err := os.OpenFile("/dev/lablate/s", os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	var under sync.WaitGroup
	var rawErr, ourErr error
	var rawN, ourN int
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	defer under.Wait() // before the memory goes
	began := time.Now()
	under.Add(2)
	go func() {
		defer under.Done()
		rawN, rawErr = raw.ReadAt(page, at+512<<10)
	}()
	got := make([]byte, 4096)
	go func() {
		defer under.Done()
		ourN, ourErr = d.ReadAt(got, at)
	}()
	time.Sleep(time.Second) // they are at the disk
	// More than there is room for; it waits for its copies, and they for the disk.
	under.Add(1)
	go func() {
		defer under.Done()
		writeDirect(t, "/dev/lablate/a", after, 16*mib)
	}()
	for !strings.Contains(labneed.Run(t, "dmsetup", "status", "--noflush", "lablate-s"), "Invalid") {
		if time.Since(began) > late/2 {
			t.Fatal("it does not overflow in time")
		}
		time.Sleep(10 * time.Millisecond)
	}
	writeDirect(t, "/dev/lablate/a", after, at)
	took := time.Since(began)
	hold(0)
	under.Wait()
	if took > late {
		t.Fatalf("the origin was written after %v only: this machine is too slow for the test", took)
	}
	if rawN != 4096 || rawErr != nil || !bytes.HasPrefix(page, []byte("after...")) {
		t.Fatalf("the kernel's own read = %d, %v, %q: this test shows nothing", rawN, rawErr, page[:8])
	}
	if ourN != 0 || !errors.Is(ourErr, backend.ErrIO) || errors.Is(ourErr, io.EOF) || !strings.Contains(ourErr.Error(), "it is invalid") {
		t.Errorf("ReadAt = %d, %v", ourN, ourErr)
	}
	// What it left in the page cache is given to nobody either.
	if n, err := d.ReadAt(got, at); n != 0 || !errors.Is(err, backend.ErrIO) {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
}

// writeDirect writes past the page cache, in one piece.
func writeDirect(t testing.TB, path string, p []byte, off int64) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	aligned, err := unix.Mmap(-1, 0, len(p), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Munmap(aligned)
	copy(aligned, p)
	if _, err := f.WriteAt(aligned, off); err != nil {
		t.Error(err)
	}
}

package lvm2

import (
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"domfs/backend"
	"domfs/backend/backendtest/labneed"

	"golang.org/x/sys/unix"
)

const loopMajor = 7 // of loop devices, in Linux

// lvDevice is where a device of device-mapper, which is linear on one loop device, lies on that one's file.
func lvDevice(t *testing.T, file backend.Device, name string) backend.Device {
	t.Helper()
	var at, length, start int64
	var major, minor int
	table := labneed.Run(t, "dmsetup", "table", name)
	if n, err := fmt.Sscanf(table, "%d %d linear %d:%d %d", &at, &length, &major, &minor, &start); n != 5 || major != loopMajor || strings.Contains(table, "\n") {
		t.Fatalf("the table of %s is %q: %v", name, table, err)
	}
	d, err := backend.Section(file, start*512, length*512)
	noError(t, err)
	return d
}

// digests are those of each MiB of a device.
func digests(t *testing.T, d io.ReaderAt) (all []uint64) {
	t.Helper()
	p := make([]byte, mebi)
	for off := int64(0); ; off += mebi {
		n, err := d.ReadAt(p, off)
		if n > 0 {
			all = append(all, crc64.Checksum(p[:n], crcTable))
		}
		if err == io.EOF || err == nil && n == 0 {
			return all
		}
		noError(t, err)
	}
}

func volumeDigests(t *testing.T, path string) []uint64 {
	t.Helper()
	labneed.Run(t, "blockdev", "--flushbufs", path)
	f, err := os.Open(path)
	noError(t, err)
	defer f.Close()
	return digests(t, f)
}

func sameDigests(t *testing.T, name string, d backend.Device, want []uint64) {
	t.Helper()
	got := digests(t, d)
	if len(got) != len(want) {
		t.Errorf("%s has %d MiB, and %d by the kernel", name, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: MiB %d is not what the kernel read", name, i)
		}
	}
}

// scribble writes random bytes at random places.
func scribble(t *testing.T, path string, r *rand.Rand, writes, most int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	noError(t, err)
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	noError(t, err)
	p := make([]byte, most)
	for range writes {
		n := 4096 * (1 + r.IntN(most/4096))
		off := r.Int64N(size/4096) * 4096
		p := p[:min(int64(n), size-off)]
		patternDevice{size: gibi, seed: r.Uint64()}.ReadAt(p, 0)
		_, err := f.WriteAt(p, off)
		noError(t, err)
	}
	noError(t, f.Sync())
}

func discard(t *testing.T, path string, r *rand.Rand, sizeBytes int64, times int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	noError(t, err)
	defer f.Close()
	for range times {
		off := r.Int64N(sizeBytes/4096) * 4096
		n := min(4096*(1+r.Int64N(256)), sizeBytes-off)
		span := [2]uint64{uint64(off), uint64(n)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); errno != 0 {
			t.Fatalf("discard %d bytes at %d of %s: %v", n, off, path, errno)
		}
	}
}

func TestLabThin_ReadsWhatTheKernelWrote(t *testing.T) {
	labneed.LVM(t)
	for _, chunk := range []int64{64 * kibi, 192 * kibi} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) { labThin(t, chunk) })
	}
}

func labThin(t *testing.T, chunk int64) {
	labneed.Leftovers(t)
	r := rand.New(rand.NewPCG(uint64(chunk), 1))
	path := labneed.File(t, gibi)
	labneed.VG(t, "labthinread", labneed.Attach(t, path))
	run := func(argv ...string) { t.Helper(); labneed.Run(t, argv...) }
	vol := func(name string) string { return "/dev/labthinread/" + name }
	const size = 32 * mebi
	run("lvcreate", "--quiet", "--type", "thin", "--chunksize", fmt.Sprint(chunk, "b"), "--thinpool", "pool", "--size", "256M", "--name", "a", "--virtualsize", "32M", "labthinread")
	scribble(t, vol("a"), r, 600, 64*kibi)
	snapshot := func(of, name string) {
		t.Helper()
		run("lvcreate", "--quiet", "--snapshot", "--setactivationskip", "n", "--name", name, "labthinread/"+of)
	}
	snapshot("a", "s1")
	scribble(t, vol("a"), r, 300, 128*kibi)
	discard(t, vol("a"), r, size, 60)
	snapshot("a", "s2")
	snapshot("s1", "s11")
	scribble(t, vol("s11"), r, 200, 4*kibi)
	discard(t, vol("s2"), r, size, 40)
	scribble(t, vol("a"), r, 100, 512*kibi)
	snapshot("a", "gone")
	run("lvremove", "--quiet", "--yes", "labthinread/gone")
	run("lvcreate", "--quiet", "--thin", "--name", "empty", "--virtualsize", "20M", "labthinread/pool")
	// A volume outside of the pool, to be the origin of one in it that is longer.
	run("lvcreate", "--quiet", "--yes", "--name", "outside", "--size", "24M", "labthinread")
	scribble(t, vol("outside"), r, 200, 64*kibi)
	labneed.Deactivate(t, "labthinread/outside")
	run("lvchange", "--quiet", "--permission", "r", "labthinread/outside")
	run("lvcreate", "--quiet", "--snapshot", "--setactivationskip", "n", "--thinpool", "pool", "--name", "ext", "labthinread/outside")
	run("lvextend", "--quiet", "--size", "36M", "labthinread/ext")
	scribble(t, vol("ext"), r, 60, 32*kibi)
	run("lvchange", "--quiet", "-ay", "labthinread/outside")
	labneed.Settle(t)

	names := []string{"a", "s1", "s2", "s11", "empty", "ext"}
	want, ids, sizes := map[string][]uint64{}, map[string]uint64{}, map[string]int64{}
	for _, name := range names {
		want[name] = volumeDigests(t, vol(name))
		var id uint64
		var bytes int64
		line := labneed.Run(t, "lvs", "--noheadings", "--nosuffix", "--units", "b", "--options", "thin_id,lv_size", "labthinread/"+name)
		if _, err := fmt.Sscan(line, &id, &bytes); err != nil {
			t.Fatalf("lvs says %q: %v", line, err)
		}
		ids[name], sizes[name] = id, bytes
	}
	file := openFile(t, path)
	data := lvDevice(t, file, "labthinread-pool_tdata")
	meta := lvDevice(t, file, "labthinread-pool_tmeta")
	outside := lvDevice(t, file, "labthinread-outside-real")
	labneed.Deactivate(t, "labthinread")

	mappings := dumpedMappings(t, meta)
	for _, name := range names {
		var external backend.Device
		if name == "ext" {
			external = outside
		}
		d, err := openThin(data, meta, ids[name], chunk, sizes[name], external)
		noError(t, err)
		sameDigests(t, name, d, want[name])
		if w := d.(backend.Warner).Warnings(); len(w) > 0 {
			t.Errorf("%s: %q", name, w)
		}
		have, thin := mappings[ids[name]], d.(*thinDevice)
		if len(have) == 0 && name != "empty" {
			t.Errorf("%s: thin_dump has no mappings of it", name)
		}
		for c := range thin.chunks {
			s, err := thin.span(c)
			noError(t, err)
			if at, ok := have[c]; ok != s.mapped || ok && at != s.data+c-s.from {
				t.Errorf("%s: chunk %d is %+v, and by thin_dump at %d, %v", name, c, s, at, ok)
			}
		}
		if external == nil {
			checkHoles(t, d, poolMap{chunk: chunk, devices: map[uint64]map[uint64]uint64{1: have}}, 1)
		}
	}
	if _, err := openThin(data, meta, 1000, chunk, size, nil); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("device 1000, which is not there: %v", err)
	}
}

// dumpedMappings is what thin_dump says of the devices of a pool.
func dumpedMappings(t *testing.T, meta backend.Device) map[uint64]map[uint64]uint64 {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meta")
	f, err := os.Create(path)
	noError(t, err)
	_, err = io.Copy(f, io.NewSectionReader(meta, 0, meta.Size()))
	noError(t, errors.Join(err, f.Close()))
	devices := map[uint64]map[uint64]uint64{}
	var device map[uint64]uint64
	decoder := xml.NewDecoder(strings.NewReader(labneed.Run(t, "thin_dump", path)))
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			return devices
		}
		noError(t, err)
		element, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		number := func(name string) uint64 {
			for _, a := range element.Attr {
				if a.Name.Local == name {
					n, err := strconv.ParseUint(a.Value, 10, 64)
					noError(t, err)
					return n
				}
			}
			t.Fatalf("a %s of thin_dump has no %s", element.Name.Local, name)
			return 0
		}
		switch element.Name.Local {
		case "device":
			device = map[uint64]uint64{}
			devices[number("dev_id")] = device
		case "single_mapping":
			device[number("origin_block")] = number("data_block")
		case "range_mapping":
			for i := range number("length") {
				device[number("origin_begin")+i] = number("data_begin") + i
			}
		}
	}
}

func TestLabCOW_ReadsWhatTheKernelWrote(t *testing.T) {
	labneed.LVM(t)
	for _, chunk := range []int64{4 * kibi, 64 * kibi, 512 * kibi} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) { labCOW(t, chunk) })
	}
}

func labCOW(t *testing.T, chunk int64) {
	labneed.Leftovers(t)
	r := rand.New(rand.NewPCG(uint64(chunk), 2))
	path := labneed.File(t, 512*mebi)
	labneed.VG(t, "labcowread", labneed.Attach(t, path))
	labneed.Run(t, "lvcreate", "--quiet", "--yes", "--name", "a", "--size", "32M", "labcowread")
	scribble(t, "/dev/labcowread/a", r, 150, 128*kibi)
	for _, name := range []string{"s", "second", "small"} {
		size := map[string]string{"s": "36M", "second": "8M", "small": "4M"}[name]
		labneed.Run(t, "lvcreate", "--quiet", "--snapshot", "--chunksize", fmt.Sprint(chunk, "b"), "--name", name, "--size", size, "labcowread/a")
		switch name {
		case "s":
			scribble(t, "/dev/labcowread/a", r, 200, 32*kibi)
			scribble(t, "/dev/labcowread/s", r, 100, 32*kibi)
		case "second":
			scribble(t, "/dev/labcowread/second", r, 3, 8*kibi)
		case "small":
			scribble(t, "/dev/labcowread/a", r, 200, 64*kibi)
		}
	}
	states := map[string]bool{}
	for _, name := range []string{"s", "second", "small"} {
		states[name] = !strings.Contains(labneed.Run(t, "dmsetup", "status", "labcowread-"+name), "Invalid")
	}
	if !states["s"] || states["small"] {
		t.Fatalf("valid snapshots: %v; want s to be, small not", states)
	}
	want := map[string][]uint64{}
	for name, valid := range states {
		if valid {
			want[name] = volumeDigests(t, "/dev/labcowread/"+name)
		}
	}
	origin := volumeDigests(t, "/dev/labcowread/a")
	file := openFile(t, path)
	below := lvDevice(t, file, "labcowread-a-real")
	cow := map[string]backend.Device{}
	for name := range states {
		cow[name] = lvDevice(t, file, "labcowread-"+name+"-cow")
	}
	labneed.Deactivate(t, "labcowread")

	sameDigests(t, "the origin", below, origin)
	for name, valid := range states {
		d, err := openCOW(below, cow[name], chunk)
		if valid {
			noError(t, err)
			sameDigests(t, name, d, want[name])
		} else if !errors.Is(err, errOverflowed) {
			t.Errorf("%s, which is invalid: %v", name, err)
		}
	}
}

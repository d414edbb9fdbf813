package blockdev

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Sysfs is where sysfs is mounted.
const Sysfs = "/sys"

// SysPath is a device's folder in sysfs; sysfs is Sysfs, but for tests.
func SysPath(sysfs string, rdev uint64) string {
	return filepath.Join(sysfs, "dev/block", fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)))
}

// Size reads a device's size in bytes from sysfs, which counts 512-byte sectors. The device is not opened. An
// error is an errno.
func Size(sysfs string, rdev uint64) (int64, error) {
	b, err := os.ReadFile(filepath.Join(SysPath(sysfs, rdev), "size"))
	if err != nil {
		return 0, unix.ENXIO // a node without a device
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || sectors < 0 || sectors > math.MaxInt64/512 {
		return 0, unix.EIO
	}
	return sectors * 512, nil
}

// Generation changes whenever the device may have been written to, was replaced by another, or has another
// size. It mixes the kernel's counts of writes
// (Documentation/admin-guide/iostats) with the device's sequence number. For a partition the whole disk's count is
// taken too. Where counting is switched off (queue/iostats), it changes every second.
func Generation(sysfs string, rdev uint64, sizeBytes int64) uint64 {
	h := fnv.New64a()
	number := func(n uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
	number(rdev)
	number(uint64(sizeBytes))
	sys := SysPath(sysfs, rdev)
	folders := []string{sys}
	disk := sys
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		if real, err := filepath.EvalSymlinks(sys); err == nil {
			disk = filepath.Dir(real)
			folders = append(folders, disk)
		}
	}
	for _, folder := range folders {
		b, _ := os.ReadFile(filepath.Join(folder, "stat"))
		// Fields 5 and 7 are writes and sectors written, 12 and 14 discards.
		fields := strings.Fields(string(b))
		for _, i := range []int{4, 6, 11, 13} {
			if i < len(fields) {
				h.Write([]byte(fields[i] + " "))
			}
		}
	}
	diskseq, _ := os.ReadFile(filepath.Join(disk, "diskseq"))
	h.Write(diskseq)
	if !isCounted(disk) {
		number(uint64(time.Now().Unix()))
	}
	return h.Sum64()
}

// isCounted tells whether the kernel counts what is written to a disk.
func isCounted(folder string) bool {
	counting, err := os.ReadFile(filepath.Join(folder, "queue/iostats"))
	if err == nil && strings.TrimSpace(string(counting)) != "0" {
		return true
	}
	_, err = os.Stat(filepath.Join(folder, "dm"))
	return err == nil && dmCountsAlways()
}

// dmCountsAlways tells whether device-mapper counts whatever queue/iostats says, which is 0 then: so it was until Linux
// 6.6, which made it heed what is written there, and made that 1.
var dmCountsAlways = sync.OnceValue(func() bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	return isOlder(unix.ByteSliceToString(name.Release[:]), 6, 6)
})

// isOlder tells whether a kernel's release (6.1.0-56-amd64) is older than a version.
func isOlder(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a < major || a == major && b < minor
}

package xen

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// blockNumber is the number of the block device at path.
func blockNumber(path string) (number uint64, isBlock bool) {
	info, err := os.Stat(path)
	if err != nil || info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return uint64(st.Rdev), true
}

// physicalDevice reads MAJOR:MINOR, both hexadecimal.
func physicalDevice(s string) (number uint64, ok bool) {
	a, b, _ := strings.Cut(s, ":")
	major, err := strconv.ParseUint(a, 16, 32)
	if err != nil {
		return 0, false
	}
	minor, err := strconv.ParseUint(b, 16, 32)
	if err != nil || major == 0 && minor == 0 {
		return 0, false
	}
	return unix.Mkdev(uint32(major), uint32(minor)), true
}

// locate makes the source of a disk that blkback serves the device that it has open.
func (k *diskReader) locate(disk *backend.Disk, opened openedDevice) {
	if disk.Script == "" && !filepath.IsAbs(disk.Source) && !hasProtocol(disk.Source) {
		disk.Source = filepath.Join("/dev", disk.Source) // as the standard script does
	}
	if !opened.known {
		return // not connected yet, or served without a device
	}
	if disk.Script == "" && (k.d.isDevice(disk.Source, opened.number) || k.d.isLoopOf(disk.Source, opened.number)) {
		return
	}
	named := disk.Source
	if opened.path != "" && k.d.isDevice(opened.path, opened.number) {
		disk.Source = opened.path
	} else {
		disk.Source = fmt.Sprintf("/dev/block/%d:%d", unix.Major(opened.number), unix.Minor(opened.number))
	}
	if disk.Script == "" {
		k.warn("disk %s: the guest has %s, which %s no longer names: it was renamed or replaced while the guest runs", disk.VDev, disk.Source, named)
	}
	disk.Script = "" // it has done its work
}

func (d *Driver) isDevice(path string, number uint64) bool {
	n, ok := d.stat(path)
	return ok && n == number
}

// loopMajor is of loop devices (the kernel's admin-guide/devices.txt).
const loopMajor = 7

// isLoopOf tells whether a device is a loop device of the file at path: the standard script makes one for each image.
func (d *Driver) isLoopOf(path string, number uint64) bool {
	if unix.Major(number) != loopMajor {
		return false
	}
	backing, err := os.ReadFile(filepath.Join(d.sysfs, fmt.Sprintf("dev/block/%d:%d/loop/backing_file", loopMajor, unix.Minor(number))))
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(path)
	return err == nil && strings.TrimSuffix(string(backing), "\n") == real
}

package blockdev

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// Bounds of a search for who uses a device.
const (
	maxProcesses = 1 << 17
	maxFDs       = 1 << 16
	maxUsers     = 1 << 16
	maxParts     = 4096
	maxHolders   = 4096
	maxDevices   = 1 << 16
)

// Users are the mounts and swap areas of this host, by the number of the device that they are on.
type Users map[uint64]string

// ReadUsers reads the tables of mounts and of swap; procfs is proc.Root, but for tests.
func ReadUsers(procfs string) Users {
	u := Users{}
	eachLine(filepath.Join(procfs, "swaps"), func(line string) {
		if path, _, _ := strings.Cut(line, " "); strings.HasPrefix(path, "/") {
			u.addPath(unescape(path), "swap")
		}
	})
	// proc(5): the third field is the device; Btrfs has one of its own there, and names
	// the real one as the source behind the hyphen.
	eachLine(filepath.Join(procfs, "self/mountinfo"), func(line string) {
		before, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		source := strings.Fields(after)
		if !found || len(fields) < 5 || len(source) < 2 {
			return
		}
		what := "mount on " + unescape(fields[4])
		var major, minor uint32
		if _, err := fmt.Sscanf(fields[2], "%d:%d", &major, &minor); err == nil && major != 0 {
			u.add(unix.Mkdev(major, minor), what)
		} else if strings.HasPrefix(source[1], "/dev/") {
			u.addPath(unescape(source[1]), what)
		}
	})
	return u
}

func (u Users) add(rdev uint64, what string) {
	if u[rdev] == "" && len(u) < maxUsers {
		u[rdev] = what
	}
}

func (u Users) addPath(path, what string) {
	if rdev, ok := node(path); ok {
		u.add(rdev, what)
	}
}

// node is the number of the block device that path is the node of; false if it is none.
func node(path string) (rdev uint64, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return uint64(st.Rdev), true
}

// unescape undoes the octal escapes of proc(5)'s tables.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

func eachLine(path string, f func(line string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		f(scanner.Text())
	}
}

// Holder names who uses a device, or a partition of it: a device above it (of device-mapper or md), a
// mount or swap; "" if there is none. Devices above whose kernel name ignored takes do not count; it may be nil.
func Holder(sysfs string, u Users, rdev uint64, ignored func(name string) bool) string {
	sys, err := filepath.EvalSymlinks(SysPath(sysfs, rdev))
	if err != nil {
		return ""
	}
	// Who uses a partition uses the disk.
	folders := []string{sys}
	for _, name := range proc.List(sys, maxParts) {
		if _, err := os.Stat(filepath.Join(sys, name, "partition")); err == nil {
			folders = append(folders, filepath.Join(sys, name))
		}
	}
	for _, folder := range folders {
		if name := above(folder, ignored); name != "" {
			return "device /dev/" + name
		}
		var major, minor uint32
		b, err := os.ReadFile(filepath.Join(folder, "dev"))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
			continue
		}
		if what := u[unix.Mkdev(major, minor)]; what != "" {
			return what
		}
	}
	return ""
}

// above is a device over the one of this folder in sysfs, as the kernel calls it; "" if there is none that is not ignored.
func above(folder string, ignored func(name string) bool) string {
	for _, name := range proc.List(filepath.Join(folder, "holders"), maxHolders) {
		if ignored == nil || !ignored(name) {
			return name
		}
	}
	return ""
}

// AnyUser names who uses a device itself, whoever it is: a device above it, a mount, swap, a loop device, a process that
// has it open, this one too; "" if nobody can be found. It looks from this process's mount namespace and, for processes,
// as far as it may look.
func AnyUser(procfs, sysfs string, rdev uint64) string {
	if name := above(SysPath(sysfs, rdev), nil); name != "" {
		return "device " + deviceName(sysfs, name)
	}
	if what := ReadUsers(procfs)[rdev]; what != "" {
		return what
	}
	if name := loopOver(sysfs, rdev); name != "" {
		return "loop device /dev/" + name
	}
	who := ""
	processes(procfs, "", map[uint64]bool{rdev: true}, func(pid, _ string, _ uint64) bool {
		who = proc.Name(procfs, pid)
		return false
	})
	return who
}

// deviceName is a kernel's name for people: /dev/mapper/NAME of dm-3.
func deviceName(sysfs, kernel string) string {
	if name, err := os.ReadFile(filepath.Join(sysfs, "block", kernel, "dm/name")); err == nil {
		return "/dev/mapper/" + strings.TrimSpace(string(name))
	}
	return "/dev/" + kernel
}

// loopOver finds a loop device whose backing file is the device. No file outside of /dev is asked: its
// filesystem may hang.
func loopOver(sysfs string, rdev uint64) string {
	for _, name := range proc.List(filepath.Join(sysfs, "block"), maxDevices) {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		backing, err := os.ReadFile(filepath.Join(sysfs, "block", name, "loop/backing_file"))
		path := strings.TrimSuffix(string(backing), "\n")
		if err != nil || !strings.HasPrefix(path, "/dev/") {
			continue
		}
		if below, ok := node(path); ok && below == rdev {
			return name
		}
	}
	return ""
}

// Processes calls found for each descriptor of another process that is open on one of the devices, with
// the process's id and the descriptor's path in procfs, until that returns false.
func Processes(procfs string, devices map[uint64]bool, found func(pid, fdPath string, rdev uint64) bool) {
	processes(procfs, fmt.Sprint(os.Getpid()), devices, found)
}

// processes is Processes of all processes but one.
func processes(procfs, but string, devices map[uint64]bool, found func(pid, fdPath string, rdev uint64) bool) {
	for _, pid := range proc.List(procfs, maxProcesses) {
		if pid == but || pid == "" || pid[0] < '0' || pid[0] > '9' {
			continue
		}
		folder := filepath.Join(procfs, pid, "fd")
		for _, fd := range proc.List(folder, maxFDs) {
			path := filepath.Join(folder, fd)
			f, ok := proc.OpenFile(path)
			if ok && f.Mode&unix.S_IFMT == unix.S_IFBLK && devices[f.Rdev] && !found(pid, path, f.Rdev) {
				return
			}
		}
	}
}

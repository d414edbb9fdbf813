package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// maxHolders is how many processes a message names.
const maxHolders = 5

// processes lists the numbers of the processes that /proc shows.
func processes() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// holders names the processes that keep a mount busy, as far as we may see them: "tar
// (pid 812)". It reads only links of /proc, and so nothing of the mount itself.
func holders(mountpoint string) []string {
	var found []string
	for _, pid := range processes() {
		if pid == os.Getpid() || !holds(pid, mountpoint) {
			continue
		}
		if len(found) == maxHolders {
			return append(found, "others")
		}
		found = append(found, proc.Name(proc.Root, strconv.Itoa(pid)))
	}
	return found
}

// inUseBy is holders as a part of a sentence.
func inUseBy(mountpoint string) string {
	if found := holders(mountpoint); len(found) > 0 {
		return "in use by " + strings.Join(found, ", ")
	}
	return "in use by a process that this user cannot see, or by a mount below it"
}

func holds(pid int, mountpoint string) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	links := []string{dir + "/cwd", dir + "/root", dir + "/exe"}
	fds, _ := os.ReadDir(dir + "/fd")
	for _, fd := range fds {
		links = append(links, dir+"/fd/"+fd.Name())
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err == nil && within(target, mountpoint) {
			return true
		}
	}
	return false
}

// within tells whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func processName(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "a process"
	}
	return strings.TrimSpace(string(comm))
}

// daemonOf finds the process that serves a mount; 0 where it cannot be told.
func daemonOf(m mountEntry) int {
	for _, pid := range processes() {
		if serves(pid, m) {
			return pid
		}
	}
	return 0
}

// serves tells whether a process has the FUSE connection of a mount open. Linux before 6.16 does
// not say which connection a descriptor is of: there, the command line has to.
func serves(pid int, m mountEntry) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if target, err := os.Readlink(dir + "/fd/" + fd.Name()); err != nil || target != "/dev/fuse" {
			continue
		}
		info, err := os.ReadFile(dir + "/fdinfo/" + fd.Name())
		if err != nil {
			return false
		}
		if number, ok := fuseConnection(string(info)); ok {
			if number == unix.Mkdev(m.Major, m.Minor) || number == uint64(m.Minor) {
				return true
			}
			continue
		}
		return mountsAt(pid, m.Path)
	}
	return false
}

// fuseConnection reads the number of a connection from a descriptor's fdinfo.
func fuseConnection(fdinfo string) (number uint64, ok bool) {
	for line := range strings.Lines(fdinfo) {
		if value, found := strings.CutPrefix(line, "fuse_connection:"); found {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// mountsAt tells whether a process is a domfs whose last argument is the mountpoint. The
// daemon rewrites that argument to an absolute path only where it starts itself anew, so
// a relative one is taken from where the process was started, if it still says so.
func mountsAt(pid int, mountpoint string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if len(args) < 3 || processName(pid) != "domfs" {
		return false
	}
	for _, arg := range args[1:] {
		if arg == mountpoint || (!filepath.IsAbs(arg) && filepath.Base(arg) == filepath.Base(mountpoint)) {
			return true
		}
	}
	return false
}

package phy

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// QEMU's image locks: byte 100+n is locked by whoever uses permission n; 1 to 3 write
// (block/file-posix.c, include/block/block-common.h).
const (
	qemuWriteLock      = 100 + 1
	qemuWriteLockBytes = 3
)

// claimEvery is how often a device is claimed to learn whether another has; see doc.go.
const claimEvery = 5 * time.Second

const (
	maxClaims    = 4096
	maxProcesses = 1 << 17
	maxFDs       = 1 << 16
	maxUsers     = 1 << 16
	maxPartsSeen = 4096
)

// unknownHolder stands for one that cannot be found.
const unknownHolder = "another process"

// claim is what was found when a device was last asked who has it.
type claim struct {
	asked  time.Time
	holder string
}

// users are those who name the devices that they use, by device number.
type users map[uint64]string

// readUsers reads the tables of mounts and of swap.
func (s *Store) readUsers() *users {
	u := users{}
	eachLine(filepath.Join(s.procfs, "swaps"), func(line string) {
		if path, _, _ := strings.Cut(line, " "); strings.HasPrefix(path, "/") {
			u.addPath(unescape(path), "swap")
		}
	})
	// proc(5): the third field is the device; Btrfs has one of its own there, and names
	// the real one as the source behind the hyphen.
	eachLine(filepath.Join(s.procfs, "self/mountinfo"), func(line string) {
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
	return &u
}

func (u users) add(rdev uint64, what string) {
	if u[rdev] == "" && len(u) < maxUsers {
		u[rdev] = what
	}
}

func (u users) addPath(path, what string) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		u.add(uint64(st.Rdev), what)
	}
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

// holder names who uses a device, "" if nobody can be found.
func (s *Store) holder(u *users, path string, rdev uint64) string {
	sys, err := filepath.EvalSymlinks(s.sysPath(rdev))
	if err != nil {
		return ""
	}
	// Who uses a partition uses the disk.
	folders := []string{sys}
	for _, name := range proc.List(sys, maxPartsSeen) {
		if _, err := os.Stat(filepath.Join(sys, name, "partition")); err == nil {
			folders = append(folders, filepath.Join(sys, name))
		}
	}
	for _, folder := range folders {
		if above := proc.List(filepath.Join(folder, "holders"), 1); len(above) > 0 {
			return "device /dev/" + above[0]
		}
		var major, minor uint32
		b, err := os.ReadFile(filepath.Join(folder, "dev"))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
			continue
		}
		if what := (*u)[unix.Mkdev(major, minor)]; what != "" {
			return what
		}
	}
	return s.claimant(path, rdev)
}

// claimant finds who has locked or claimed a device. One found free is not claimed again for
// a while; one in use is asked each time, which disturbs nobody.
func (s *Store) claimant(path string, rdev uint64) string {
	now := time.Now()
	s.mu.Lock()
	last := s.claims[rdev]
	s.mu.Unlock()
	recent := now.Sub(last.asked) < claimEvery
	locked, pid := qemuWriter(path)
	held := locked
	if !locked {
		if recent && last.holder == "" {
			return ""
		}
		held = isClaimed(path)
	}
	if held && recent && last.holder != "" {
		return last.holder
	}
	c := claim{asked: now}
	switch {
	case pid > 0:
		c.holder = proc.Name(s.procfs, fmt.Sprint(pid))
	case held:
		c.holder = s.processWith(rdev)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.claims) >= maxClaims {
		clear(s.claims)
	}
	s.claims[rdev] = c
	return c.holder
}

// isClaimed opens the device exclusively (open(2), O_EXCL on block devices), which fails
// while somebody else has it so.
func isClaimed(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.EBUSY
}

// qemuWriter tells whether somebody holds QEMU's lock for a permission to write; pid is -1
// where the lock does not say whose it is.
func qemuWriter(path string) (locked bool, pid int) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false, 0
	}
	defer unix.Close(fd)
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: qemuWriteLock, Len: qemuWriteLockBytes}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk); err != nil || lk.Type == unix.F_UNLCK {
		return false, 0
	}
	return true, int(lk.Pid)
}

// processWith names a process, other than this one, that has the device open.
func (s *Store) processWith(rdev uint64) string {
	self := fmt.Sprint(os.Getpid())
	for _, pid := range proc.List(s.procfs, maxProcesses) {
		if pid == self || pid[0] < '0' || pid[0] > '9' {
			continue
		}
		folder := filepath.Join(s.procfs, pid, "fd")
		for _, fd := range proc.List(folder, maxFDs) {
			f, ok := proc.OpenFile(filepath.Join(folder, fd))
			if ok && f.Mode&unix.S_IFMT == unix.S_IFBLK && f.Rdev == rdev {
				return proc.Name(s.procfs, pid)
			}
		}
	}
	return unknownHolder
}

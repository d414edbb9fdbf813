package phy

import (
	"fmt"
	"os"
	"time"

	"domfs/backend/blockdev"
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

// maxClaims bounds how many devices are remembered.
const maxClaims = 4096

// unknownHolder stands for one that cannot be found.
const unknownHolder = "another process"

// claim is what was found when a device was last asked who has it.
type claim struct {
	asked  time.Time
	holder string
}

// holder names who uses a device, "" if nobody can be found.
func (s *Store) holder(u blockdev.Users, path string, rdev uint64) string {
	if _, err := os.Stat(blockdev.SysPath(s.sysfs, rdev)); err != nil {
		return ""
	}
	if who := blockdev.Holder(s.sysfs, u, rdev, nil); who != "" {
		return who
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
	name := unknownHolder
	blockdev.Processes(s.procfs, map[uint64]bool{rdev: true}, func(pid, _ string, _ uint64) bool {
		name = proc.Name(s.procfs, pid)
		return false
	})
	return name
}

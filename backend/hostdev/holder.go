package hostdev

import (
	"cmp"
	"path/filepath"

	"domfs/backend/blockdev"
	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// Host is where proc(5) and sysfs are mounted; the zero value is the host's own places.
type Host struct{ Proc, Sys string }

func (h Host) proc() string { return cmp.Or(h.Proc, proc.Root) }

func (h Host) sys(path ...string) string {
	return filepath.Join(append([]string{cmp.Or(h.Sys, blockdev.Sysfs)}, path...)...)
}

// Holder names who uses a block device, as blockdev.AnyUser does; "" if nobody can be found.
func (h Host) Holder(rdev uint64) string { return blockdev.AnyUser(h.proc(), h.sys(), rdev) }

// Rdev is the number of the block device at path.
func Rdev(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, failed("look at", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, failed("look at", path, unix.ENOTBLK)
	}
	return uint64(st.Rdev), nil
}

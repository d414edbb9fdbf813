package lvm

import (
	"domfs/backend/blockdev"

	"golang.org/x/sys/unix"
)

// hints are what to do about a system call that failed on a volume's device.
var hints = map[unix.Errno]string{
	unix.ENOENT: "activate its volume with lvchange -ay",
	unix.ENXIO:  "activate its volume with lvchange -ay",
	unix.ENODEV: "activate its volume with lvchange -ay",
}

var words = blockdev.Words(hints)

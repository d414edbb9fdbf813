package phy

import (
	"domfs/backend/blockdev"

	"golang.org/x/sys/unix"
)

// hints are what to do, where a device's own failure does not say it.
var hints = map[unix.Errno]string{
	unix.ENOENT: "check the path in the domain's configuration, or attach the device",
	unix.ENXIO:  "attach the device",
	unix.ENODEV: "attach the device",
}

var words = blockdev.Words(hints)

// failed is the error of op on path.
func failed(op, path string, err error) error { return words.Failed(op, path, err) }

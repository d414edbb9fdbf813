package phy

import (
	"domfs/backend"
	"domfs/backend/syserr"

	"golang.org/x/sys/unix"
)

var words = syserr.Words{
	Sentinels: map[unix.Errno]error{
		unix.EINVAL:    backend.ErrUnsupported, // the device cannot be read past the page cache
		unix.ENOMEDIUM: backend.ErrNoDevice,
	},
	Hints: map[unix.Errno]string{
		unix.ENOENT:    "check the path in the domain's configuration, or attach the device",
		unix.EACCES:    "run domfs as root, or allow its user to read it",
		unix.EPERM:     "run domfs as root",
		unix.ENXIO:     "attach the device",
		unix.ENODEV:    "attach the device",
		unix.ENOMEDIUM: "insert a medium",
	},
}

// failed is the error of op on path.
func failed(op, path string, err error) error { return words.Failed(op, path, err) }

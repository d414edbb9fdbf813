package hostdev

import (
	"domfs/backend"
	"domfs/backend/syserr"

	"golang.org/x/sys/unix"
)

var words = syserr.Words{
	Sentinels: map[unix.Errno]error{
		unix.ENOTBLK: backend.ErrInvalid,
		unix.ENOTTY:  backend.ErrUnsupported,
	},
	Hints: map[unix.Errno]string{
		unix.EACCES: "run domfs as root",
		unix.EPERM:  "run domfs as root",
	},
}

// failed is the error of op on path.
func failed(op, path string, err error) error { return words.Failed(op, path, err) }

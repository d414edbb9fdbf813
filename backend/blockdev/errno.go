package blockdev

import (
	"maps"

	"domfs/backend"
	"domfs/backend/syserr"

	"golang.org/x/sys/unix"
)

// Words are what is said of failures on block devices. hints say what to do for more errnos, or instead.
func Words(hints map[unix.Errno]string) syserr.Words {
	w := syserr.Words{
		Sentinels: map[unix.Errno]error{
			unix.EINVAL:    backend.ErrUnsupported, // the device cannot be read past the page cache
			unix.ENOMEDIUM: backend.ErrNoDevice,
		},
		Hints: map[unix.Errno]string{
			unix.EACCES:    "run domfs as root, or allow its user to read it",
			unix.EPERM:     "run domfs as root",
			unix.ENOMEDIUM: "insert a medium",
		},
	}
	maps.Copy(w.Hints, hints)
	return w
}

// ignoringEINTR repeats a call that a signal interrupted.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

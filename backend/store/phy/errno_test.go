package phy

import (
	"errors"
	"testing"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func TestFailed_SaysEachThingOnce(t *testing.T) {
	tests := []struct {
		errno    unix.Errno
		sentinel error
		want     string
	}{
		{unix.ENOENT, backend.ErrNotExist, "find /dev/a: does not exist: check the path in the domain's configuration, or attach the device"},
		{unix.EACCES, backend.ErrAccess, "find /dev/a: permission denied: run domfs as root, or allow its user to read it"},
		{unix.EPERM, backend.ErrPermission, "find /dev/a: operation not permitted: run domfs as root"},
		{unix.ENXIO, backend.ErrNoDevice, "find /dev/a: no such device or address: attach the device"},
		{unix.ENOMEDIUM, backend.ErrNoDevice, "find /dev/a: no such device (no medium found): insert a medium"},
		{unix.EIO, backend.ErrIO, "find /dev/a: input/output error"},
		{unix.EBUSY, backend.ErrBusy, "find /dev/a: in use"},
	}
	for _, test := range tests {
		err := failed("find", "/dev/a", test.errno)
		if err.Error() != test.want || !errors.Is(err, test.sentinel) {
			t.Errorf("%v: %q (%v: %t), want %q", test.errno, err, test.sentinel, errors.Is(err, test.sentinel), test.want)
		}
	}
}

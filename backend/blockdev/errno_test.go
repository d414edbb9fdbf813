package blockdev

import (
	"errors"
	"testing"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func TestWords_SayWhatToDoOnADevice(t *testing.T) {
	words := Words(map[unix.Errno]string{unix.ENOENT: "attach it", unix.EPERM: "ask its owner"})
	for _, test := range []struct {
		errno    unix.Errno
		sentinel error
		want     string
	}{
		{unix.ENOENT, backend.ErrNotExist, "find /dev/a: does not exist: attach it"},
		{unix.EACCES, backend.ErrAccess, "find /dev/a: permission denied: run domfs as root, or allow its user to read it"},
		{unix.EPERM, backend.ErrPermission, "find /dev/a: operation not permitted: ask its owner"},
		{unix.ENXIO, backend.ErrNoDevice, "find /dev/a: no such device or address"},
		{unix.ENOMEDIUM, backend.ErrNoDevice, "find /dev/a: no such device (no medium found): insert a medium"},
		{unix.EINVAL, backend.ErrUnsupported, "find /dev/a: not supported (invalid argument)"},
		{unix.EIO, backend.ErrIO, "find /dev/a: input/output error"},
		{unix.EBUSY, backend.ErrBusy, "find /dev/a: in use"},
	} {
		err := words.Failed("find", "/dev/a", test.errno)
		if err.Error() != test.want || !errors.Is(err, test.sentinel) {
			t.Errorf("%v: %q (%v: %t), want %q", test.errno, err, test.sentinel, errors.Is(err, test.sentinel), test.want)
		}
	}
	if text := Words(nil).Failed("find", "/dev/a", unix.EPERM).Error(); text != "find /dev/a: operation not permitted: run domfs as root" {
		t.Errorf("without hints: %q", text)
	}
}

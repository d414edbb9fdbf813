package image

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
		{unix.ENOENT, backend.ErrNotExist, "open /a: does not exist"},
		{unix.EACCES, backend.ErrAccess, "open /a: permission denied: run domfs as root, or allow its user to read it"},
		{unix.EPERM, backend.ErrPermission, "open /a: operation not permitted: run domfs as root"},
		{unix.EROFS, backend.ErrReadOnly, "open /a: read-only file system: mount its filesystem read-write"},
		{unix.ENOSPC, backend.ErrNoSpace, "open /a: no space left on device: free space on its filesystem"},
		{unix.EDQUOT, backend.ErrNoSpace, "open /a: no space left (disk quota exceeded): raise the quota or free space"},
		{unix.EFBIG, backend.ErrNoSpace, "open /a: no space left (file too large)"},
		{unix.EIO, backend.ErrIO, "open /a: input/output error"},
		{unix.EBUSY, backend.ErrBusy, "open /a: in use"},
		{unix.EEXIST, backend.ErrExist, "open /a: exists already"},
		{unix.ENOTDIR, backend.ErrNotDir, "open /a: not a directory"},
	}
	for _, test := range tests {
		err := failed("open", "/a", test.errno)
		if err.Error() != test.want || !errors.Is(err, test.sentinel) {
			t.Errorf("%v: %q (%v: %t), want %q", test.errno, err, test.sentinel, errors.Is(err, test.sentinel), test.want)
		}
	}
}

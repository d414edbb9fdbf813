package syserr

import (
	"errors"
	"os"
	"testing"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

func TestFailed_UsesADriversOwnWordsFirst(t *testing.T) {
	w := Words{
		Sentinels: map[unix.Errno]error{unix.EINVAL: backend.ErrUnsupported},
		Hints:     map[unix.Errno]string{unix.EACCES: "be root"},
	}
	for _, test := range []struct {
		err  error
		is   error
		want string
	}{
		{unix.EINVAL, backend.ErrUnsupported, "open /a: not supported (invalid argument)"},
		{unix.EACCES, backend.ErrAccess, "open /a: permission denied: be root"},
		{unix.ENOENT, backend.ErrNotExist, "open /a: does not exist"},
		{&os.PathError{Op: "open", Path: "/a", Err: unix.ENOSPC}, backend.ErrNoSpace, "open /a: no space left on device"},
		{unix.EPIPE, backend.ErrIO, "open /a: input/output error (broken pipe)"},
		{os.ErrClosed, backend.ErrStale, "open /a: it was closed"},
		{backend.ErrCorrupt, backend.ErrCorrupt, "open /a: structure is corrupt"},
	} {
		err := w.Failed("open", "/a", test.err)
		if !errors.Is(err, test.is) || err.Error() != test.want {
			t.Errorf("%v: %q, is %v: %t; want %q", test.err, err, test.is, errors.Is(err, test.is), test.want)
		}
	}
}

// Package syserr turns what system calls fail with into backend's errors: a sentence, a sentinel, and
// what to do.
package syserr

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// Words are what a driver has to say on an errno that others say otherwise.
type Words struct {
	Sentinels map[unix.Errno]error  // instead of the usual ones
	Hints     map[unix.Errno]string // what to do, where the errno alone does not say it
}

// sentinels says which of backend's errors an errno is.
var sentinels = map[unix.Errno]error{
	unix.ENOENT:       backend.ErrNotExist,
	unix.ENOTDIR:      backend.ErrNotDir,
	unix.EISDIR:       backend.ErrIsDirectory,
	unix.EEXIST:       backend.ErrExist,
	unix.EACCES:       backend.ErrAccess,
	unix.EPERM:        backend.ErrPermission,
	unix.EROFS:        backend.ErrReadOnly,
	unix.ENOSPC:       backend.ErrNoSpace,
	unix.EDQUOT:       backend.ErrNoSpace,
	unix.EBUSY:        backend.ErrBusy,
	unix.ETXTBSY:      backend.ErrBusy,
	unix.EAGAIN:       backend.ErrBusy,
	unix.ELOOP:        backend.ErrInvalid,
	unix.EINVAL:       backend.ErrInvalid,
	unix.EFBIG:        backend.ErrNoSpace,
	unix.ENAMETOOLONG: backend.ErrTooLong,
	unix.EOPNOTSUPP:   backend.ErrUnsupported,
	unix.ENOSYS:       backend.ErrUnsupported,
	unix.ENOTTY:       backend.ErrUnsupported,
	unix.EXDEV:        backend.ErrUnsupported,
	unix.ESTALE:       backend.ErrStale,
	unix.ENXIO:        backend.ErrNoDevice,
	unix.ENODEV:       backend.ErrNoDevice,
	unix.ETIMEDOUT:    backend.ErrTimeout,
}

// Failed is the error of op on path: a sentence that wraps one of backend's sentinels, ErrIO where
// there is none for the errno. What is no errno is wrapped as it is.
func (w Words) Failed(op, path string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		if errors.Is(err, fs.ErrClosed) {
			return backend.Because(backend.ErrStale, "%s %s: it was closed", op, path)
		}
		return fmt.Errorf("%s %s: %w", op, path, err)
	}
	sentinel := w.Sentinels[errno]
	if sentinel == nil {
		sentinel = sentinels[errno]
	}
	if sentinel == nil {
		sentinel = backend.ErrIO
	}
	text := reason(sentinel, errno)
	if hint := w.Hints[errno]; hint != "" {
		text += ": " + hint
	}
	return backend.Because(sentinel, "%s %s: %s", op, path, text)
}

// reason words a failure: by its sentinel and its errno, but by one alone where that says
// all of it.
func reason(sentinel error, errno unix.Errno) string {
	kind, text := sentinel.Error(), errno.Error()
	switch {
	case strings.Contains(text, kind):
		return text
	case errno == unix.ENOENT || errno == unix.EEXIST || errno == unix.EBUSY:
		return kind // the same in other words
	}
	return kind + " (" + text + ")"
}

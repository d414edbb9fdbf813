package vfs

import (
	"context"
	"errors"
	"syscall"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// errnos is the only place where an error becomes an errno. The first match wins.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{backend.ErrNotExist, syscall.ENOENT},
	{backend.ErrExist, syscall.EEXIST},
	{backend.ErrBusy, syscall.EBUSY},
	{backend.ErrNoSpace, syscall.ENOSPC},
	{backend.ErrUnsupported, syscall.EOPNOTSUPP},
	{backend.ErrInvalid, syscall.EINVAL},
	{backend.ErrTimeout, syscall.ETIMEDOUT},
	{backend.ErrReadOnly, syscall.EROFS},
	{backend.ErrCorrupt, syscall.EUCLEAN},
	{backend.ErrPermission, syscall.EPERM},
	{backend.ErrAccess, syscall.EACCES},
	{backend.ErrNoDevice, syscall.ENODEV},
	{backend.ErrIsDirectory, syscall.EISDIR},
	{backend.ErrNotDir, syscall.ENOTDIR},
	{backend.ErrNoAttr, syscall.ENODATA},
	{backend.ErrNoKey, syscall.ENOKEY},
	{backend.ErrRange, syscall.ENXIO},
	{backend.ErrStale, syscall.ESTALE},
	{backend.ErrTooLong, syscall.ENAMETOOLONG},
	{backend.ErrIO, syscall.EIO},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
}

// Errno is the errno that err reaches the user as. known is false for an error that wraps
// no sentinel: it is EIO, and a fault of domfs that someone must look at.
func Errno(err error) (errno syscall.Errno, known bool) {
	if err == nil {
		return 0, true
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno, true
		}
	}
	return syscall.EIO, false
}

// ErrnoName is the name of Errno(err), such as ENOSPC.
func ErrnoName(err error) string {
	errno, _ := Errno(err)
	if errno == syscall.EOPNOTSUPP {
		return "EOPNOTSUPP" // ENOTSUP is the same number
	}
	return unix.ErrnoName(errno)
}

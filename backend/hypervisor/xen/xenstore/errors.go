package xenstore

import (
	"errors"
	"fmt"

	"domfs/backend"
)

// Error is xenstored's answer that it cannot do something.
type Error struct {
	Op, Path string
	Name     string // of an errno
}

func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("xenstored refuses %s: %s", e.Op, e.Name)
	}
	return fmt.Sprintf("xenstored refuses %s of %s: %s", e.Op, e.Path, e.Name)
}

// Unwrap is the sentinel of the errno.
func (e *Error) Unwrap() error {
	if s, ok := sentinels[e.Name]; ok {
		return s
	}
	return backend.ErrIO
}

var sentinels = map[string]error{
	"EINVAL": backend.ErrInvalid, "EACCES": backend.ErrAccess, "EEXIST": backend.ErrExist, "EISDIR": backend.ErrIsDirectory, "ENOENT": backend.ErrNotExist,
	"ENOMEM": backend.ErrNoSpace, "ENOSPC": backend.ErrNoSpace, "EDQUOT": backend.ErrNoSpace, "ENOTEMPTY": backend.ErrExist, "ENOSYS": backend.ErrUnsupported,
	"EROFS": backend.ErrReadOnly, "EBUSY": backend.ErrBusy, "EAGAIN": backend.ErrBusy, "EISCONN": backend.ErrBusy, "E2BIG": backend.ErrTooLong,
	"EPERM": backend.ErrPermission,
}

const maxErrnoName = 32

func errorOf(op uint32, path string, payload []byte) error {
	name := text(payload)
	if name == "" || len(name) > maxErrnoName || !isName(name) {
		name = "an error that it does not name"
	}
	return &Error{Op: typeNames[op], Path: path, Name: name}
}

// refusal is the errno's name of an answer, "" if err is none.
func refusal(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Name
	}
	return ""
}

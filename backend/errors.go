package backend

import (
	"errors"
	"fmt"
)

// The sentinels that every driver's errors wrap. vfs/errno.go maps each to one
// errno; an error that wraps none of them reaches the user as EIO.
var (
	ErrNotExist    = errors.New("does not exist")       // ENOENT
	ErrExist       = errors.New("exists already")       // EEXIST
	ErrBusy        = errors.New("in use")               // EBUSY
	ErrNoSpace     = errors.New("no space left")        // ENOSPC
	ErrUnsupported = errors.New("not supported")        // EOPNOTSUPP
	ErrInvalid     = errors.New("invalid value")        // EINVAL
	ErrTimeout     = errors.New("deadline exceeded")    // ETIMEDOUT
	ErrReadOnly    = errors.New("read-only")            // EROFS
	ErrCorrupt     = errors.New("structure is corrupt") // EUCLEAN
	ErrPermission  = errors.New("not permitted")        // EPERM
	ErrAccess      = errors.New("permission denied")    // EACCES
	ErrNoDevice    = errors.New("no such device")       // ENODEV
	ErrIsDirectory = errors.New("is a directory")       // EISDIR
	ErrNotDir      = errors.New("not a directory")      // ENOTDIR
	ErrNoAttr      = errors.New("no such attribute")    // ENODATA
	ErrNoKey       = errors.New("key is not available") // ENOKEY: what the guest has encrypted
	ErrRange       = errors.New("out of range")         // ENXIO: no data or hole at or after the offset
	ErrStale       = errors.New("changed underneath")   // ESTALE
	ErrTooLong     = errors.New("name too long")        // ENAMETOOLONG
	ErrIO          = errors.New("input/output error")   // EIO, without the log line that an unknown error gets
)

// Because is an error that is sentinel to errors.Is, and whose text is the sentence
// alone: for one that says by itself what the sentinel's text would only repeat. The
// sentence may wrap further errors, as with fmt.Errorf.
func Because(sentinel error, format string, args ...any) error {
	return &because{sentinel: sentinel, sentence: fmt.Errorf(format, args...)}
}

type because struct{ sentinel, sentence error }

func (b *because) Error() string   { return b.sentence.Error() }
func (b *because) Unwrap() []error { return []error{b.sentinel, b.sentence} }

package image

import (
	"fmt"

	"domfs/backend/syserr"

	"golang.org/x/sys/unix"
)

var words = syserr.Words{Hints: map[unix.Errno]string{
	unix.EACCES: "run domfs as root, or allow its user to read it",
	unix.EPERM:  "run domfs as root",
	unix.EROFS:  "mount its filesystem read-write",
	unix.EDQUOT: "raise the quota or free space",
	unix.ENOSPC: "free space on its filesystem",
}}

// failed is the error of op on path.
func failed(op, path string, err error) error { return words.Failed(op, path, err) }

// also is err, with what went wrong when it was cleaned up after; in one line.
func also(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return fmt.Errorf("%w; and cleaning up failed: %w", err, cleanup)
}

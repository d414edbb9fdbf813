package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// defaultLockFile is where the daemons of one user agree on whose turn it is.
func defaultLockFile(uid int, runtimeDir, tmp string) string {
	switch {
	case uid == 0:
		return "/run/domfs.lock"
	case filepath.IsAbs(runtimeDir):
		return filepath.Join(runtimeDir, "domfs.lock")
	}
	return filepath.Join(tmp, fmt.Sprintf("domfs-%d.lock", uid))
}

// claimLockFile makes the lock file, and refuses one that somebody else could have put
// there: in a folder that all may write to, a link or a foreign file is a trap.
func claimLockFile(path string, uid int) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
	if err != nil {
		return fmt.Errorf("lock file: %w (--lock-file names another)", &os.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("lock file %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("the lock file %s is not a regular file", path)
	}
	if int(st.Uid) != uid {
		return fmt.Errorf("the lock file %s belongs to user %d, not to this one: --lock-file names another", path, st.Uid)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"domfs/backend/run"

	"golang.org/x/sys/unix"
)

// unmount takes a mount away as umount(8) does, or fails where it is in use.
func unmount(ctx context.Context, path string, runner *run.Runner) error {
	return takeAway(ctx, path, unix.UMOUNT_NOFOLLOW, runner, "-u")
}

// detach takes a mount away from its place at once; who has a file of it open keeps it
// until the daemon ends.
func detach(ctx context.Context, path string, runner *run.Runner) error {
	return takeAway(ctx, path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW, runner, "-uz")
}

// takeAway uses the system call where we may, else fusermount3, which is setuid root
// and lets users unmount what is theirs.
func takeAway(ctx context.Context, path string, flag int, runner *run.Runner, option string) error {
	err := unix.Unmount(path, flag)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("umount", err)
	}
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	if _, err := runner.Run(ctx, "fusermount3", option, "--", path); err != nil {
		return fmt.Errorf("fusermount3: %w", err)
	}
	return nil
}

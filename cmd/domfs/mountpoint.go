package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	maxStackedMounts = 16              // dead mounts over one another that a recovery clears
	statTimeout      = 5 * time.Second // a filesystem that hangs must not hang us
	unmountTimeout   = 20 * time.Second
)

// resolveMountpoint makes path absolute and free of symbolic links, as the kernel lists
// mounts. The last component may be a dead mount, which no call can look into.
func resolveMountpoint(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Lstat(abs); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if abs, err = filepath.EvalSymlinks(abs); err != nil && !dead(err) {
			return "", err
		}
		return abs, nil
	}
	if abs == "/" {
		return abs, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// dead tells whether err is that of a FUSE mount whose daemon has gone.
func dead(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

// statWithin is stat, given up on a filesystem that does not answer.
func statWithin(path string, limit time.Duration) (os.FileInfo, error) {
	type result struct {
		info os.FileInfo
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// What the kernel remembers of a mount outlives its daemon for a moment: ask it anew.
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st); dead(err) {
			done <- result{nil, err}
			return
		}
		info, err := os.Stat(path)
		done <- result{info, err}
	}()
	select {
	case r := <-done:
		return r.info, r.err
	case <-time.After(limit):
		return nil, fmt.Errorf("%s does not answer: %w", path, unix.ETIMEDOUT)
	}
}

// prepareMountpoint checks that path is an empty folder that nothing of ours is mounted on,
// and clears away what a crash of ours left there.
func prepareMountpoint(ctx context.Context, path string, log *zap.Logger, runner *run.Runner) error {
	for range maxStackedMounts {
		top, mounted, err := topMount(path)
		if err != nil {
			return err
		}
		info, err := statWithin(path, statTimeout)
		switch {
		case err == nil && mounted && top.Type == fsType:
			return fmt.Errorf("%s is a domfs mount already: `domfs umount %s` ends it", path, path)
		case err == nil && !info.IsDir():
			return fmt.Errorf("the mountpoint %s is not a directory", path)
		case err == nil:
			return checkEmpty(path)
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("the mountpoint %s does not exist: make it with `mkdir -p %s`", path, path)
		case !dead(err):
			return fmt.Errorf("mountpoint: %w", err)
		case !mounted:
			return fmt.Errorf("the mountpoint %s is below a mount whose daemon has gone: %w", path, err)
		case top.Type != fsType:
			return fmt.Errorf("%s is what a crash left of a mount of type %s, not one of domfs: unmount it first", path, top.Type)
		}
		log.Warn("clearing a mountpoint that a crash left", zap.String("mountpoint", path))
		if err := detach(ctx, path, runner); err != nil {
			return fmt.Errorf("clear the mountpoint %s that a crash left: %w", path, err)
		}
	}
	return fmt.Errorf("%s: more than %d dead mounts over one another", path, maxStackedMounts)
}

func checkEmpty(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("mountpoint: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(1)
	if len(names) > 0 {
		return fmt.Errorf("the mountpoint %s is not empty (it holds %q): files in it would be hidden", path, names[0])
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("mountpoint: %w", err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// takeTurn waits until fewer than limit labs run on this machine, and is one of them until
// the file is closed. More at once would be slower, each and all, and would take a busy
// machine for one that hangs.
func takeTurn(ctx context.Context, limit int) (*os.File, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	for said := false; ; {
		for i := range limit {
			file, err := tryLock(filepath.Join(cache, fmt.Sprintf("turn-%d", i)), os.O_CREATE|os.O_RDWR)
			if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
				return file, err
			}
		}
		if !said {
			fmt.Printf("lab: %d machines run here: waiting for one of them to end\n", limit)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tryLock opens a file or folder that nobody else has locked, and locks it until it is closed,
// or its process ends. The error is EWOULDBLOCK where somebody has.
func tryLock(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

const (
	tempPattern = "domfs-lab-*"
	// A lab locks its folder right after it has made it.
	tempAge = time.Minute
)

// makeTemp makes this run's folder, locked while it runs, and removes those of labs that
// were killed.
func makeTemp() (dir string, lock *os.File, err error) {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPattern))
	for _, path := range old {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < tempAge {
			continue
		}
		if lock, err := tryLock(path, os.O_RDONLY|unix.O_NOFOLLOW); err == nil {
			_ = os.RemoveAll(path)
			lock.Close()
		}
	}
	if dir, err = os.MkdirTemp("", tempPattern); err != nil {
		return "", nil, err
	}
	if lock, err = tryLock(dir, os.O_RDONLY); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, lock, nil
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"domfs/testdata/tool"

	"golang.org/x/sys/unix"
)

// forgetAfter is how long an image that nobody uses is kept.
const forgetAfter = 7 * 24 * time.Hour

// image is what the machine boots.
type image struct {
	kernel, initrd, root string
	xen                  string
	unpacked             string // the kernel, as Xen starts it
}

// findImage is the image that the files in source make, built where the cache has none.
func findImage(ctx context.Context, source string) (image, error) {
	cache, err := cacheDir()
	if err != nil {
		return image{}, err
	}
	key, err := hashFiles(source)
	if err != nil {
		return image{}, err
	}
	dir := filepath.Join(cache, key)
	// Other labs wait while one builds.
	lock, err := waitLock(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return image{}, fmt.Errorf("wait for another lab's build: %w", err)
	}
	defer lock.Close()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := buildImage(ctx, source, cache, dir); err != nil {
			return image{}, err
		}
	}
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return image{}, err
	}
	return image{
		kernel: filepath.Join(dir, "vmlinuz"), initrd: filepath.Join(dir, "initrd"), root: filepath.Join(dir, "root.ext4"),
		xen: filepath.Join(dir, "xen"), unpacked: filepath.Join(dir, "vmlinux"),
	}, nil
}

func cacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "domfs-lab")
	return cache, os.MkdirAll(cache, 0o755)
}

// hashFiles names what an image is made from.
func hashFiles(dir string) (string, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n%s", name.Name(), len(text), text)
	}
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}

func waitLock(ctx context.Context, path string) (*os.File, error) {
	for said := false; ; {
		file, err := tryLock(path, os.O_CREATE|os.O_RDWR)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return file, err
		}
		if !said {
			fmt.Println("lab: another lab builds an image: waiting for it")
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// buildImage makes dir, all or nothing.
func buildImage(ctx context.Context, source, cache, dir string) error {
	if err := tool.Need("mmdebstrap", "cpio", "mke2fs", "dpkg-deb"); err != nil {
		return err
	}
	forget(cache)
	fmt.Println("lab: building the machine's root, once")
	start := time.Now()
	building := filepath.Join(cache, "building")
	if err := os.RemoveAll(building); err != nil {
		return err
	}
	if _, err := tool.Output(ctx, filepath.Join(source, "build"), building); err != nil {
		return errors.Join(err, os.RemoveAll(building))
	}
	if err := os.Rename(building, dir); err != nil {
		return err
	}
	fmt.Printf("lab: built in %.1f s, kept in %s\n", time.Since(start).Seconds(), dir)
	return nil
}

// forget removes images that nobody has used for long.
func forget(cache string) {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return
	}
	for _, e := range slices.DeleteFunc(entries, func(e os.DirEntry) bool { return !e.IsDir() }) {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > forgetAfter {
			_ = os.RemoveAll(filepath.Join(cache, e.Name()))
		}
	}
}

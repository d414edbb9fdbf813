package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"domfs/testdata/tool"
)

const (
	domain       = "bench"
	vdev         = "xvda"
	snapshotName = "bench"
	fillTime     = 10 * time.Minute // for a copy of the image
)

// host is a host of two domains: the disk of one is the image.
type host struct {
	binary  string
	disk    *disk
	scratch string
}

func (h *host) mountpoint() string { return filepath.Join(h.scratch, "domfs.mnt") }

func (h *host) snapshotDir() string {
	return filepath.Join(h.mountpoint(), snapshotFolder)
}

// snapshotFolder is the snapshot's below the mount.
var snapshotFolder = filepath.Join("snapshots", domain, snapshotName)

// config writes a folder with the configurations of two domains, one with the disk and one with those
// in qcow2. Neither runs.
func (h *host) config() (path string, err error) {
	path = filepath.Join(h.scratch, "xen")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	disks := map[string]string{domain: fmt.Sprintf("'format=raw, vdev=%s, access=rw, target=%s'", vdev, h.disk.path)}
	for _, q := range qcow2Disks {
		disks[qcow2Domain] += fmt.Sprintf("'format=qcow2, vdev=%s, access=rw, target=%s',", q.vdev, filepath.Join(h.disk.dir, q.file))
	}
	for i, name := range []string{domain, qcow2Domain} {
		text := fmt.Sprintf("name = %q\nuuid = \"00000000-0000-4000-8000-00000000be%02x\"\nmemory = 256\ndisk = [ %s ]\n", name, i, disks[name])
		if err := os.WriteFile(filepath.Join(path, name+".cfg"), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return path, nil
}

// start starts the daemon, and returns when it says that its mount is there.
func (h *host) start(ctx context.Context) (*server, error) {
	config, err := h.config()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.mountpoint(), 0o700); err != nil {
		return nil, err
	}
	cmd := tool.Command(ctx, h.binary, "mount", "--xl-config", config, "--lock-file", filepath.Join(h.scratch, "lock"), h.mountpoint())
	s, err := startServer(cmd, h.mountpoint())
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// serving calls f while a daemon runs.
func (h *host) serving(ctx context.Context, f func() error) (err error) {
	s, err := h.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return f()
}

// makeSnapshot makes the snapshot that is read, and waits until it is whole.
func (h *host) makeSnapshot(ctx context.Context) (*image, error) {
	var found *image
	err := h.serving(ctx, func() error {
		if err := await(ctx, h.removeStale); err != nil {
			return err
		}
		before, err := h.copies()
		if err != nil {
			return err
		}
		// A Ctrl-C would end the mkdir, not the daemon's work for it.
		if _, err := tool.Output(context.WithoutCancel(ctx), "mkdir", h.snapshotDir()); err != nil {
			return fmt.Errorf("%w; last_error has: %s", err, h.lastError())
		}
		if err := h.waitActive(ctx); err != nil {
			return errors.Join(err, tool.Cleanup("rmdir", h.snapshotDir()))
		}
		path, err := h.newCopy(before)
		if err != nil {
			return errors.Join(err, tool.Cleanup("rmdir", h.snapshotDir()))
		}
		found = &image{path: path, partBytes: h.disk.partBytes()}
		return nil
	})
	return found, err
}

// copies are the files of snapshots beside the image, where the store of image files puts
// them: the tree does not tell.
func (h *host) copies() ([]string, error) {
	return filepath.Glob(filepath.Join(h.disk.dir, ".domfs", "*", vdev+".img"))
}

// newCopy is the one that was not there before.
func (h *host) newCopy(before []string) (string, error) {
	after, err := h.copies()
	if err != nil {
		return "", err
	}
	after = slices.DeleteFunc(after, func(path string) bool { return slices.Contains(before, path) })
	if len(after) != 1 {
		return "", fmt.Errorf("%d new files beside %s, where the snapshot is one", len(after), h.disk.path)
	}
	return after[0], nil
}

// removeStale removes what a bench that was killed left.
func (h *host) removeStale() error {
	if _, err := os.Stat(h.snapshotDir()); err != nil {
		return nil
	}
	return os.Remove(h.snapshotDir())
}

func (h *host) waitActive(ctx context.Context) error {
	for deadline := time.Now().Add(fillTime); ; {
		var state string
		err := await(ctx, func() error {
			text, err := os.ReadFile(filepath.Join(h.snapshotDir(), "state"))
			state = strings.TrimSpace(string(text))
			return err
		})
		switch {
		case err != nil:
			return fmt.Errorf("%w; last_error has: %s", err, h.lastError())
		case state == "active":
			return nil
		case state != "filling":
			return fmt.Errorf("the snapshot is %q; last_error has: %s", state, h.lastError())
		case time.Now().After(deadline):
			return fmt.Errorf("the snapshot is still being copied after %v", fillTime)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *host) lastError() string {
	text, err := os.ReadFile(filepath.Join(h.mountpoint(), "xenstore", domain, "last_error"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

func (h *host) removeSnapshot() error {
	return h.serving(context.Background(), func() error { return tool.Cleanup("rmdir", h.snapshotDir()) })
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// contender is one way to get at the bytes of the snapshot.
type contender interface {
	name() string
	image() *image
	// open makes it anew: nothing of an earlier one stays in the kernel's caches, but
	// the pages of the image file.
	open(ctx context.Context) (*view, error)
}

// view is a contender that is open.
type view struct {
	started time.Time // when its making began
	files   string    // where the guest's files are
	disk    string    // the whole disk as a file
	part    string    // the partition as a file or device
	server  int       // process that serves it; 0 for the kernel
	undo    []func() error
}

func (v *view) close() error {
	var errs []error
	for i := len(v.undo) - 1; i >= 0; i-- {
		errs = append(errs, v.undo[i]())
	}
	v.undo = nil
	return errors.Join(errs...)
}

// kernel is a loop device over the partition, and the kernel's ext4 on that.
type kernel struct {
	snapshot *image
	scratch  string
}

func (k *kernel) name() string  { return "kernel" }
func (k *kernel) image() *image { return k.snapshot }

func (k *kernel) open(ctx context.Context) (*view, error) {
	v := &view{started: time.Now(), files: filepath.Join(k.scratch, k.name()), disk: k.snapshot.path}
	loop, err := attach(ctx, k.snapshot.path, partStart, k.snapshot.partBytes, true)
	if err != nil {
		return nil, err
	}
	v.part = loop
	v.undo = append(v.undo, func() error { return detach(loop) })
	if err := mountExt4(ctx, loop, v.files, "ro"); err != nil {
		return nil, errors.Join(err, v.close())
	}
	v.undo = append(v.undo, func() error { return unmount(v.files) })
	return v, nil
}

// domfs is a daemon that has just been started, and the snapshot in its tree.
type domfs struct {
	host     *host
	snapshot *image
}

func (d *domfs) name() string  { return "domfs" }
func (d *domfs) image() *image { return d.snapshot }

func (d *domfs) open(ctx context.Context) (*view, error) {
	started := time.Now()
	s, err := d.host.start(ctx)
	if err != nil {
		return nil, err
	}
	part := filepath.Join(d.host.snapshotDir(), "disks", vdev, "p1")
	v := &view{
		started: started,
		files:   filepath.Join(part, "files"),
		disk:    filepath.Join(d.host.snapshotDir(), "disks", vdev, "raw"),
		part:    filepath.Join(part, "raw"),
		server:  s.pid(),
		undo:    []func() error{s.stop},
	}
	return v, nil
}

// fuse2fs is e2fsprogs' own FUSE server for ext4, on a loop device over the partition.
type fuse2fs struct {
	snapshot *image
	scratch  string
}

func (f *fuse2fs) name() string  { return "fuse2fs" }
func (f *fuse2fs) image() *image { return f.snapshot }

func (f *fuse2fs) installed() bool {
	_, err := exec.LookPath(f.name())
	return err == nil
}

func (f *fuse2fs) open(ctx context.Context) (*view, error) {
	v := &view{started: time.Now(), files: filepath.Join(f.scratch, f.name()), disk: f.snapshot.path}
	if err := os.MkdirAll(v.files, 0o700); err != nil {
		return nil, err
	}
	loop, err := attach(ctx, f.snapshot.path, partStart, f.snapshot.partBytes, true)
	if err != nil {
		return nil, err
	}
	v.part = loop
	v.undo = append(v.undo, func() error { return detach(loop) })
	s, err := startServer(command(ctx, "fuse2fs", "-f", "-o", "ro", loop, v.files), v.files)
	if err != nil {
		return nil, errors.Join(err, v.close())
	}
	v.undo = append(v.undo, s.stop)
	v.server = s.pid()
	for deadline := time.Now().Add(readyTime); !mountedOn(v.files); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("not mounted after %v: %s", readyTime, s.said()), v.close())
		}
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, v.close())
		}
	}
	return v, nil
}

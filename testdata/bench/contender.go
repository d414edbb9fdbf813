package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"domfs/testdata/tool"
)

// contender is one way to get at the bytes of the snapshot.
type contender interface {
	name() string
	image() *image
	// installed tells whether its program is there.
	installed() bool
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

func (k *kernel) installed() bool { return true }

func (k *kernel) open(ctx context.Context) (*view, error) {
	v := &view{started: time.Now(), files: filepath.Join(k.scratch, k.name()), disk: k.snapshot.path}
	loop, err := tool.Attach(ctx, k.snapshot.path, partStart, k.snapshot.partBytes, true)
	if err != nil {
		return nil, err
	}
	v.part = loop
	v.undo = append(v.undo, func() error { return tool.Detach(loop) })
	if err := tool.MountExt4(ctx, loop, v.files, "ro"); err != nil {
		return nil, errors.Join(err, v.close())
	}
	v.undo = append(v.undo, func() error { return tool.Unmount(v.files) })
	return v, nil
}

// domfs is a daemon that has just been started, and one disk in its tree.
type domfs struct {
	host   *host
	source *image
	disk   string // its folder below the mount
}

func (d *domfs) name() string    { return "domfs" }
func (d *domfs) image() *image   { return d.source }
func (d *domfs) installed() bool { return true }

func (d *domfs) open(ctx context.Context) (*view, error) {
	started := time.Now()
	s, err := d.host.start(ctx)
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(d.host.mountpoint(), d.disk)
	part := filepath.Join(disk, "p1")
	v := &view{
		started: started,
		files:   filepath.Join(part, "files"),
		disk:    filepath.Join(disk, "raw"),
		part:    filepath.Join(part, "raw"),
		server:  s.pid(),
		undo:    []func() error{s.stop},
	}
	return v, nil
}

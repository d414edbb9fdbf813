package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"domfs/testdata/tool"
)

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
	loop, err := tool.Attach(ctx, f.snapshot.path, partStart, f.snapshot.partBytes, true)
	if err != nil {
		return nil, err
	}
	v.part = loop
	v.undo = append(v.undo, func() error { return tool.Detach(loop) })
	s, err := startServer(tool.Command(ctx, "fuse2fs", "-f", "-o", "ro", loop, v.files), v.files)
	if err != nil {
		return nil, errors.Join(err, v.close())
	}
	v.undo = append(v.undo, s.stop)
	v.server = s.pid()
	if err := s.mounted(ctx); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// storageDaemon is QEMU's own FUSE server: an image as a raw file.
type storageDaemon struct {
	source  *image
	format  string
	scratch string
}

const storageDaemonProgram = "qemu-storage-daemon"

func (q *storageDaemon) name() string  { return storageDaemonProgram }
func (q *storageDaemon) image() *image { return q.source }

func (q *storageDaemon) installed() bool {
	_, err := exec.LookPath(storageDaemonProgram)
	return err == nil
}

func (q *storageDaemon) open(ctx context.Context) (*view, error) {
	v := &view{started: time.Now(), disk: filepath.Join(q.scratch, "export")}
	// It mounts on a file.
	if err := os.WriteFile(v.disk, nil, 0o600); err != nil {
		return nil, err
	}
	s, err := startServer(tool.Command(ctx, storageDaemonProgram,
		"--blockdev", "driver=file,node-name=file,read-only=on,filename="+q.source.path,
		"--blockdev", "driver="+q.format+",node-name=disk,read-only=on,file=file",
		"--export", "type=fuse,id=export,node-name=disk,writable=off,mountpoint="+v.disk), v.disk)
	if err != nil {
		return nil, err
	}
	// It goes on without its mount.
	s.endless = true
	v.server, v.undo = s.pid(), []func() error{s.stop}
	if err := s.mounted(ctx); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

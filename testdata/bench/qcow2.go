package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"domfs/testdata/tool"
)

// qcow2Disk is a disk of a second domain: an archive of the tree, again and again, as qemu-img writes it.
type qcow2Disk struct {
	on         source
	vdev       string
	file       string
	compressed bool
}

var qcow2Disks = []qcow2Disk{
	{onQcow2, "xvda", "plain.qcow2", false},
	{onCompressed, "xvdb", "compressed.qcow2", true},
}

const qcow2Domain = "bench-qcow2"

// fillQcow2 makes those that are not there.
func (d *disk) fillQcow2(ctx context.Context) (err error) {
	content := filepath.Join(d.dir, "content.tmp")
	defer func() {
		if removed := os.Remove(content); !errors.Is(removed, os.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}()
	for _, q := range qcow2Disks {
		path := filepath.Join(d.dir, q.file)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if _, err := os.Stat(content); err != nil {
			fmt.Fprintln(os.Stderr, "making qcow2 images, once: a minute or two")
			if err := d.writeContent(ctx, content); err != nil {
				return err
			}
		}
		args := []string{"convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=64k"}
		if q.compressed {
			args = append(args, "-c")
		}
		making := path + ".tmp"
		if _, err := tool.Output(ctx, "qemu-img", append(args, content, making)...); err != nil {
			return errors.Join(err, os.Remove(making))
		}
		if err := os.Rename(making, path); err != nil {
			return err
		}
	}
	return nil
}

// writeContent makes a raw disk of it.
func (d *disk) writeContent(ctx context.Context, path string) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	for left := d.qcow2Bytes; left > 0; {
		n, err := d.writeTree(ctx, out, left)
		if err != nil {
			return err
		}
		left -= n
	}
	return out.Close()
}

// writeTree writes an archive of the tree, or what there is room for.
func (d *disk) writeTree(ctx context.Context, out io.Writer, limit int64) (n int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := tool.Command(ctx, "tar", "-cf", "-", "--sort=name", "-C", d.tree, ".")
	in, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	n, err = io.Copy(out, io.LimitReader(in, limit))
	if err != nil || n == limit {
		cancel()
		_ = cmd.Wait() // killed, as is wanted
		return n, err
	}
	return n, cmd.Wait()
}

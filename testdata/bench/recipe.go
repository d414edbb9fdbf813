package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"domfs/testdata/tool"

	"golang.org/x/sys/unix"
)

// recipe is what the image is made of: a GPT with one ext4 partition that holds a copy of
// a tree, many small files and a big one.
type recipe struct {
	version    int // to be raised where the code below makes another image of the same values
	sizeBytes  int64
	tree       string // folder to copy; empty for the Go toolchain
	smallFiles int
	bigBytes   int64
	qcow2Bytes int64 // of each disk in qcow2
	freeBytes  int64 // that the images and a snapshot need
}

var standard = recipe{version: 1, sizeBytes: 6 << 30, smallFiles: 20000, bigBytes: 1 << 30, qcow2Bytes: 1 << 30, freeBytes: 6 << 30}

const (
	smallBytes    = 4096
	filesPerDir   = 100
	partStart     = 1 << 20 // bytes
	partEnd       = 1 << 20 // bytes left at the disk's end, for the second GPT
	imageName     = "disk.img"
	treeName      = "go"
	smallName     = "small"
	bigName       = "big"
	firstFileName = "small/0/0"
)

// disk is the image, in a folder of its own, locked against a second bench.
type disk struct {
	recipe
	dir    string
	path   string
	unlock func()
}

// disk finds the image in dir or makes it.
func (r recipe) disk(ctx context.Context, dir, scratch string) (*disk, error) {
	if r.tree == "" {
		goroot, err := tool.Output(ctx, "go", "env", "GOROOT")
		if err != nil {
			return nil, err
		}
		if r.tree, err = filepath.EvalSymlinks(goroot); err != nil {
			return nil, err
		}
	}
	tree, err := describeTree(ctx, r.tree)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%+v %s", r, tree))
	d := &disk{recipe: r, dir: filepath.Join(dir, fmt.Sprintf("%x", key[:8]))}
	d.path = filepath.Join(d.dir, imageName)
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, err
	}
	if err := d.lock(); err != nil {
		return nil, err
	}
	if err := errors.Join(d.fill(ctx, scratch), d.fillQcow2(ctx)); err != nil {
		d.unlock()
		return nil, err
	}
	return d, nil
}

// describeTree is a text that changes when the tree does: for the Go toolchain its version.
func describeTree(ctx context.Context, tree string) (string, error) {
	text, err := os.ReadFile(filepath.Join(tree, "VERSION"))
	if err == nil {
		return string(text), nil
	}
	return tool.Output(ctx, "find", tree, "-printf", `%P %s %T@\n`)
}

func (d *disk) lock() error {
	f, err := os.OpenFile(filepath.Join(d.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("another bench uses %s: %w", d.dir, err)
	}
	d.unlock = func() { f.Close() }
	return nil
}

// fill makes the image, under another name until it is complete.
func (d *disk) fill(ctx context.Context, scratch string) (err error) {
	if err := d.checkSpace(); err != nil {
		return err
	}
	if _, err := os.Stat(d.path); err == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "making the image %s, once: a minute or two\n", d.path)
	making := d.path + ".tmp"
	defer os.Remove(making)
	f, err := os.OpenFile(making, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(d.sizeBytes); err != nil {
		return err
	}
	sfdisk := tool.Command(ctx, "sfdisk", "--quiet", making)
	sfdisk.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=%d, size=%d, type=linux\n", partStart/512, d.partBytes()/512))
	if _, err := tool.OutputOf(sfdisk); err != nil {
		return err
	}
	loop, err := tool.Attach(ctx, making, partStart, d.partBytes(), false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tool.Detach(loop)) }()
	if _, err := tool.Output(ctx, "mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", loop); err != nil {
		return err
	}
	mnt := filepath.Join(scratch, "making")
	if err := tool.MountExt4(ctx, loop, mnt, "rw"); err != nil {
		return err
	}
	err = d.populate(ctx, mnt)
	if err = errors.Join(err, tool.Unmount(mnt)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(making, d.path)
}

func (d *disk) partBytes() int64 { return d.sizeBytes - partStart - partEnd }

func (d *disk) checkSpace() error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return err
	}
	need := d.freeBytes
	if _, err := os.Stat(d.path); err == nil {
		need /= 2 // for the snapshot
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free, and %d are needed: name another folder by -dir", d.dir, free>>20, need>>20)
	}
	return nil
}

// populate fills the mounted filesystem. Names and contents are the same each time.
func (d *disk) populate(ctx context.Context, mnt string) error {
	if _, err := tool.Output(ctx, "cp", "-a", d.tree, filepath.Join(mnt, treeName)); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	content := make([]byte, smallBytes)
	for i := range d.smallFiles {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := filepath.Join(mnt, smallName, fmt.Sprint(i/filesPerDir))
		if i%filesPerDir == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		random.Read(content) // never fails
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i%filesPerDir)), content, 0o644); err != nil {
			return err
		}
	}
	return writeBig(ctx, filepath.Join(mnt, bigName), d.bigBytes, random)
}

func writeBig(ctx context.Context, path string, sizeBytes int64, random *rand.ChaCha8) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for done := int64(0); done < sizeBytes; done += int64(len(chunk)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		random.Read(chunk)
		if _, err := f.Write(chunk[:min(int64(len(chunk)), sizeBytes-done)]); err != nil {
			return err
		}
	}
	return f.Close()
}

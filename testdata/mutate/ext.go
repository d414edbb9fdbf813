package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"domfs/testdata/tool"

	"golang.org/x/sys/unix"
)

// extSeed is a filesystem that is filled by the kernel, and copied while it is mounted.
type extSeed struct {
	name  string // those with a journal have a twin NAME-clean
	mib   int64
	block int64
	args  string // of mke2fs
	mount string // options of the mount; "-": mke2fs fills it, as this kernel need not mount it
	clean bool   // it is copied once it is unmounted
}

// extSeeds have every feature that changes what is on the disk. Those without checksums are
// there so that changes reach what is behind them.
var extSeeds = []extSeed{
	{"ext2-1k", 4, 1024, "-t ext2 -b 1024", "", false},
	{"ext2-old", 2, 1024, "-t ext2 -b 1024 -r 0", "", false},
	{"ext3-1k", 6, 1024, "-t ext3 -b 1024 -I 128 -J size=1", "", false},
	{"ext3-4k", 12, 4096, "-t ext3 -b 4096 -J size=4", "data=journal", false},
	{"ext4-1k", 8, 1024, "-t ext4 -b 1024 -J size=1", "", false},
	{"ext4-1k-plain", 8, 1024, "-t ext4 -b 1024 -J size=1 -O ^metadata_csum,^64bit", "", false},
	{"ext4-2k-uninit", 12, 2048, "-t ext4 -b 2048 -J size=2 -O ^metadata_csum,uninit_bg", "", false},
	{"ext4-4k", 16, 4096, "-t ext4 -b 4096 -J size=4", "", false},
	{"ext4-4k-plain", 16, 4096, "-t ext4 -b 4096 -J size=4 -O ^metadata_csum", "", false},
	{"fast-commit", 8, 1024, "-t ext4 -b 1024 -J size=2,fast_commit_size=256 -O fast_commit", "commit=300", false},
	{"fast-commit-4k", 16, 4096, "-t ext4 -b 4096 -J size=4,fast_commit_size=512 -O fast_commit,^metadata_csum,inline_data", "commit=300", false},
	{"journal-checksum", 8, 1024, "-t ext4 -b 1024 -J size=1 -O ^metadata_csum", "journal_checksum", false},
	{"inline-data", 4, 1024, "-t ext4 -b 1024 -J size=1 -O inline_data,^metadata_csum", "", false},
	{"inline-data-4k", 16, 4096, "-t ext4 -b 4096 -J size=4 -O inline_data -I 512", "", false},
	{"bigalloc", 16, 1024, "-t ext4 -b 1024 -C 16384 -J size=1 -O bigalloc,^metadata_csum", "", false},
	{"bigalloc-4k", 32, 4096, "-t ext4 -b 4096 -C 65536 -J size=4 -O bigalloc", "", false},
	{"ea-inode", 8, 1024, "-t ext4 -b 1024 -J size=1 -O ea_inode,^metadata_csum", "", false},
	{"ea-inode-4k", 16, 4096, "-t ext4 -b 4096 -J size=4 -O ea_inode,large_dir", "", false},
	{"meta-bg", 20, 1024, "-t ext4 -b 1024 -g 1024 -J size=1 -O meta_bg,^resize_inode,^metadata_csum", "", false},
	{"sparse-super2", 12, 1024, "-t ext4 -b 1024 -g 2048 -J size=1 -O sparse_super2,^resize_inode", "", false},
	{"orphan-file", 8, 1024, "-t ext4 -b 1024 -J size=1 -O orphan_file,mmp,^metadata_csum", "", false},
	{"no-journal", 4, 1024, "-t ext4 -b 1024 -O ^has_journal,^metadata_csum,^dir_index", "", false},
	{"encrypt", 8, 1024, "-t ext4 -b 1024 -J size=1 -O encrypt,stable_inodes,^metadata_csum", "", false},
	{"quota-project", 8, 1024, "-t ext4 -b 1024 -J size=1 -O quota,project,^metadata_csum", "-", false},
	{"casefold", 8, 1024, "-t ext4 -b 1024 -J size=1 -O casefold,^metadata_csum -E encoding=utf8", "-", false},
	{"verity", 8, 1024, "-t ext4 -b 1024 -J size=1 -O verity,^metadata_csum", "-", false},
	{"ext4-64k", 32, 65536, "-t ext4 -b 65536 -O ^has_journal,^metadata_csum", "-", false},
}

// twins adds the clean ones: a change of what a journal holds anew is not seen.
func twins(seeds []extSeed) []extSeed {
	var out []extSeed
	for _, x := range seeds {
		out = append(out, x)
		if x.journaled() {
			x.name, x.clean = x.name+"-clean", true
			out = append(out, x)
		}
	}
	return out
}

// fixedID is the identity of every seed: what a change hits should depend on it no more than it must.
const fixedID = "5eed5eed-0000-4000-8000-000000000001"

func (x extSeed) journaled() bool {
	return x.mount != "-" && !strings.Contains(x.args, "^has_journal") && !strings.Contains(x.args, "ext2")
}

func (x extSeed) recipe() recipe {
	return recipe{x.name, func(ctx context.Context, k *kitchen) (*image, error) {
		path := k.path(".raw")
		if err := x.cook(ctx, k, path); err != nil {
			return nil, err
		}
		return raw(path, x.block), nil
	}}
}

// mkfs makes the empty filesystem, or with a tree one that mke2fs fills.
func (x extSeed) mkfs(ctx context.Context, path, tree string) error {
	if err := sparseFile(path, x.mib<<20); err != nil {
		return err
	}
	args := []string{"-q", "-F", "-U", fixedID}
	extended := "nodiscard,lazy_itable_init=0,lazy_journal_init=0,hash_seed=" + fixedID
	for words := strings.Fields(x.args); len(words) > 0; words = words[1:] {
		if words[0] == "-E" { // of several the last one would count alone
			words = words[1:]
			extended += "," + words[0]
			continue
		}
		args = append(args, words[0])
	}
	args = append(args, "-E", extended)
	args = append(args, "-N", "256")
	if tree != "" {
		args = append(args, "-d", tree)
	}
	_, err := tool.Output(ctx, "mke2fs", append(args, path)...)
	return err
}

func sparseFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// cook makes the filesystem and what is in it.
func (x extSeed) cook(ctx context.Context, k *kitchen, path string) (err error) {
	filler := &filler{block: x.block, encrypt: strings.Contains(x.args, "encrypt"), large: strings.Contains(x.args, "ea_inode"),
		quick: strings.Contains(x.args, "fast_commit")}
	if x.mount == "-" {
		tree := k.path(".tree")
		if err := os.Mkdir(tree, 0o755); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(tree)) }()
		filler.dir, filler.plain = tree, true
		if err := filler.fill(); err != nil {
			return err
		}
		return x.mkfs(ctx, path, tree)
	}
	live := path + ".live"
	if err := x.mkfs(ctx, live, ""); err != nil {
		return err
	}
	defer os.Remove(live)
	options := "loop"
	if x.mount != "" {
		options += "," + x.mount
	}
	if err := tool.MountExt4(ctx, live, k.mnt, options); err != nil {
		return err
	}
	mounted := true
	defer func() {
		if mounted {
			err = errors.Join(err, tool.Unmount(k.mnt))
		}
	}()
	filler.dir = k.mnt
	if err := filler.fill(); err != nil {
		return err
	}
	if err := syncFS(k.mnt); err != nil {
		return err
	}
	open, err := filler.work()
	defer func() { err = errors.Join(err, closeAll(open)) }()
	if err != nil {
		return err
	}
	switch {
	case x.clean:
		if err := closeAll(open); err != nil {
			return err
		}
		open, mounted = nil, false
		err = tool.Unmount(k.mnt)
	case !x.journaled():
		err = syncFS(k.mnt) // the copy would be torn, as after a crash
	}
	if err != nil {
		return err
	}
	return copyFile(ctx, live, path)
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// copyFile copies what a loop device holds, once that has nothing more to write.
func copyFile(ctx context.Context, from, to string) error {
	if err := waitQuiet(ctx, from); err != nil {
		return err
	}
	_, err := tool.Output(ctx, "cp", "--sparse=always", from, to)
	return err
}

// waitQuiet waits until a file has not changed for a moment.
func waitQuiet(ctx context.Context, path string) error {
	var last time.Time
	for range 100 {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.ModTime().Equal(last) {
			return nil
		}
		last = info.ModTime()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not come to rest", path)
}

package main

import (
	"context"
	"strings"

	"domfs/testdata/tool"
)

// diskSeed is a disk with partitions.
type diskSeed struct {
	name, script string  // script: of sfdisk
	filesystems  []int64 // where ext4 filesystems of 1 MiB are put, in MiB
}

var diskSeeds = []diskSeed{
	{"gpt", "label: gpt\nstart=2048, size=4096, name=root, type=linux\nstart=8192, size=4096, name=\"home of all\", type=linux\n7: start=16384, size=2048, type=swap\n",
		[]int64{1, 4}},
	{"gpt-128", "label: gpt\nfirst-lba: 34\ntable-length: 128\nstart=40, size=8, name=one\n128: start=2048, size=4096, type=linux\n", []int64{1}},
	{"mbr", "label: dos\nlabel-id: 0x5eed5eed\n1: start=2048, size=4096, type=83\n2: start=8192, size=12288, type=5\n5: start=10240, size=4096, type=83\n6: start=16384, size=2048, type=82\n",
		[]int64{1, 5}},
	{"mbr-nested", "label: dos\nlabel-id: 0x5eed5eee\n1: start=2048, size=16384, type=83\n3: start=20480, size=2048, type=c\n", nil},
}

func (x diskSeed) recipe() recipe {
	return recipe{x.name, func(ctx context.Context, k *kitchen) (*image, error) {
		path := k.path(".raw")
		if err := sparseFile(path, 12<<20); err != nil {
			return nil, err
		}
		if err := sfdisk(ctx, path, x.script); err != nil {
			return nil, err
		}
		for _, at := range x.filesystems {
			if err := ext4At(ctx, path, at<<20); err != nil {
				return nil, err
			}
		}
		if x.filesystems == nil {
			return nested(ctx, k, path)
		}
		return raw(path, 512), nil
	}}
}

func sfdisk(ctx context.Context, path, script string) error {
	cmd := tool.Command(ctx, "sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader(script)
	_, err := tool.OutputOf(cmd)
	return err
}

func ext4At(ctx context.Context, path string, off int64) error {
	_, err := tool.Output(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-U", fixedID, "-E",
		"offset="+itoa(off)+",nodiscard,hash_seed="+fixedID, path, "1M")
	return err
}

// nested puts a table with a partition of its own into the first partition.
func nested(ctx context.Context, k *kitchen, path string) (*image, error) {
	inner := k.path(".inner")
	if err := sparseFile(inner, 8<<20); err != nil {
		return nil, err
	}
	if err := sfdisk(ctx, inner, "label: gpt\nstart=2048, size=2048, type=linux\n"); err != nil {
		return nil, err
	}
	if err := ext4At(ctx, inner, 1<<20); err != nil {
		return nil, err
	}
	_, err := tool.Output(ctx, "dd", "if="+inner, "of="+path, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	return raw(path, 512), err
}

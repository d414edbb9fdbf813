package main

import (
	"context"
	"os"
	"strconv"
	"strings"

	"domfs/testdata/tool"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// qcow2Seed is a qcow2 file over the bytes of a small disk with a filesystem.
type qcow2Seed struct {
	name     string
	options  string // of qemu-img create
	compress bool
	chain    int  // how many files are behind it
	target   int  // the one that is changed
	snapshot bool // it has internal snapshots
}

var qcow2Seeds = []qcow2Seed{
	{name: "qcow2", options: "compat=1.1"},
	{name: "qcow2-v2", options: "compat=0.10,cluster_size=512"},
	{name: "qcow2-4k", options: "cluster_size=4096,lazy_refcounts=on"},
	{name: "qcow2-2m", options: "cluster_size=2M"},
	{name: "qcow2-zlib", options: "cluster_size=4096", compress: true},
	{name: "qcow2-zstd", options: "compression_type=zstd,cluster_size=8192", compress: true},
	{name: "qcow2-extended", options: "extended_l2=on,cluster_size=16384"},
	{name: "qcow2-extended-chain", options: "extended_l2=on,cluster_size=16384", chain: 1},
	{name: "qcow2-chain", options: "cluster_size=4096", chain: 2},
	{name: "qcow2-backing", options: "cluster_size=4096", chain: 2, target: 1},
	{name: "qcow2-snapshots", options: "cluster_size=4096", snapshot: true},
}

func (x qcow2Seed) recipe() recipe {
	return recipe{x.name, func(ctx context.Context, k *kitchen) (*image, error) {
		base := k.path(".base")
		source := extSeed{name: x.name, mib: 3, block: 1024, args: "-t ext4 -b 1024 -O ^has_journal,^metadata_csum"}
		if err := source.cook(ctx, k, base); err != nil {
			return nil, err
		}
		// The last of it is for what is written into the layers.
		if err := os.Truncate(base, 4<<20); err != nil {
			return nil, err
		}
		im := &image{Target: x.target, Unit: 512, BigEnd: true}
		for i := x.chain; i >= 0; i-- {
			path := k.path("." + strconv.Itoa(i) + ".qcow2")
			if err := x.layer(ctx, path, base, i, im.Files); err != nil {
				return nil, err
			}
			im.Files = append([]string{path}, im.Files...)
			im.Formats = append([]string{"qcow2"}, im.Formats...)
		}
		return im, nil
	}}
}

// layer makes one file of the chain: the last one holds the disk, those before it some writes.
func (x qcow2Seed) layer(ctx context.Context, path, base string, i int, behind []string) error {
	if i == x.chain {
		args := []string{"convert", "-f", "raw", "-O", "qcow2", "-o", x.options}
		if x.compress {
			args = append(args, "-c")
		}
		if _, err := tool.Output(ctx, "qemu-img", append(args, base, path)...); err != nil {
			return err
		}
	} else if _, err := tool.Output(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-o", x.options, "-b", behind[0], "-F", "qcow2", path); err != nil {
		return err
	}
	if x.snapshot {
		if _, err := tool.Output(ctx, "qemu-img", "snapshot", "-c", "before", path); err != nil {
			return err
		}
	}
	if x.compress {
		return nil
	}
	return qemuIO(ctx, path, "write -P 0x55 3M 20k", "write -z 3100k 64k", "discard 3200k 64k", "write -P "+strconv.Itoa(i+1)+" 3300k 3k", "write -z -u 3500k 100k")
}

func qemuIO(ctx context.Context, path string, commands ...string) error {
	args := []string{"-f", "qcow2", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := tool.Output(ctx, "qemu-io", append(args, path)...)
	if err == nil && strings.Contains(out, "rror") {
		err = errQemuIO(out)
	}
	return err
}

type errQemuIO string

func (e errQemuIO) Error() string { return "qemu-io: " + string(e) }

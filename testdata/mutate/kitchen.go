package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"domfs/testdata/tool"
)

// recipes are all seeds.
func recipes() []recipe {
	var all []recipe
	for _, x := range twins(extSeeds) {
		all = append(all, x.recipe())
	}
	for _, x := range diskSeeds {
		all = append(all, x.recipe())
	}
	for _, x := range qcow2Seeds {
		all = append(all, x.recipe())
	}
	return all
}

// seedsIn makes the seeds whose names match in a folder, or finds them there.
func seedsIn(ctx context.Context, dir string, wanted *regexp.Regexp) (seeds []*seed, err error) {
	if err := tool.Need("cp", "dd", "losetup", "mke2fs", "mount", "qemu-img", "qemu-io", "sfdisk", "umount"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeSeeds(seeds))
		}
	}()
	mnt, err := os.MkdirTemp("", "domfs-mutate-mnt-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(mnt)) }()
	for _, r := range recipes() {
		if !wanted.MatchString(r.name) {
			continue
		}
		im, err := r.image(ctx, &kitchen{dir: dir, name: r.name, mnt: mnt})
		if err != nil {
			return seeds, fmt.Errorf("make %s: %w", r.name, err)
		}
		s, err := im.prepare(r.name)
		if err != nil {
			return seeds, fmt.Errorf("%s: %w", r.name, err)
		}
		seeds = append(seeds, s)
	}
	if len(seeds) == 0 {
		return nil, fmt.Errorf("-images %s matches none; -list lists them", wanted)
	}
	return seeds, nil
}

func closeSeeds(seeds []*seed) error {
	var errs []error
	for _, s := range seeds {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// image makes the seed, or finds what was made before.
func (r recipe) image(ctx context.Context, k *kitchen) (*image, error) {
	made := k.path(".json")
	text, err := os.ReadFile(made)
	if err == nil {
		im := &image{}
		if err := json.Unmarshal(text, im); err != nil {
			return nil, fmt.Errorf("%s: %w", made, err)
		}
		for i := range im.Files {
			im.Files[i] = filepath.Join(k.dir, im.Files[i])
		}
		return im, nil
	}
	im, err := r.make(ctx, k)
	if err != nil {
		return nil, err
	}
	kept := *im
	kept.Files = nil
	for _, path := range im.Files {
		kept.Files = append(kept.Files, filepath.Base(path))
	}
	if text, err = json.Marshal(kept); err != nil {
		return nil, err
	}
	return im, os.WriteFile(made, text, 0o600)
}

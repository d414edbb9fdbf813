package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"domfs/testdata/lab/report"
	"domfs/testdata/tool"
)

const (
	scratchBytes = 32 << 30 // sparse
	payloadSpare = 64 << 20 // beyond what the files take
	maxSource    = 4 << 20  // a larger file of the repository is none that tests read
	start        = "#!/bin/bash\nexec " + report.Payload + "/guest\n"
)

// disks are this run's own.
type disks struct {
	payload   string
	scratches []string // one for each machine
}

// makeDisks builds the real program, the tests of packages and what runs them, and puts
// them on a disk with the repository's files.
func makeDisks(ctx context.Context, dir string, packages []string, s shares, o options) (disks, error) {
	d := disks{payload: filepath.Join(dir, "payload")}
	tree := filepath.Join(dir, "tree")
	plan := report.Tests{Bench: o.bench != "", TimeoutSeconds: int(o.timeout.Seconds())}
	// Tests that end themselves at each step of a change need the steps, as in make test.
	builds := [][]string{
		{"build", "-o", filepath.Join(tree, "guest"), "./testdata/lab/guest"},
		{"build", "-tags", "faults", "-o", filepath.Join(tree, "domfs"), "./cmd/domfs"},
		{"build", "-o", filepath.Join(tree, "domu"), "./testdata/lab/domu"},
	}
	for _, p := range packages {
		b := report.Binary{Package: importPath(p), Dir: p, Path: strings.ReplaceAll(p, "/", "-") + ".test", Runs: s.runs[p]}
		plan.Binaries = append(plan.Binaries, b)
		builds = append(builds, []string{"test", "-c", "-tags", "faults", "-o", filepath.Join(tree, b.Path), "./" + p})
	}
	for _, args := range builds {
		cmd := tool.Command(ctx, o.goTool, args...)
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
		if _, err := tool.OutputOf(cmd); err != nil {
			return d, err
		}
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return d, err
	}
	if err := os.WriteFile(filepath.Join(tree, "plan.json"), text, 0o644); err != nil {
		return d, err
	}
	script := start
	if o.shell {
		script = shellStart
		if err := terminalSize(tree); err != nil {
			return d, err
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "start"), []byte(script), 0o755); err != nil {
		return d, err
	}
	if err := copySource(".", filepath.Join(tree, "src")); err != nil {
		return d, err
	}
	if err := makePayload(ctx, tree, d.payload); err != nil {
		return d, err
	}
	for i := range s.kinds {
		d.scratches = append(d.scratches, filepath.Join(dir, fmt.Sprintf("scratch-%d", i)))
		if err := makeSparse(d.scratches[i], scratchBytes); err != nil {
			return d, err
		}
	}
	return d, nil
}

// copySource copies the repository's files: tests read some, and run others.
func copySource(root, to string) error {
	return walkSource(root, func(path string, d fs.DirEntry) error {
		info, err := d.Info()
		if err != nil || info.Size() > maxSource {
			return err
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		target := filepath.Join(to, path)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, text, info.Mode().Perm())
	})
}

// makePayload makes an ext4 image of a tree.
func makePayload(ctx context.Context, tree, file string) error {
	var bytes int64
	err := walkSource(tree, func(_ string, d fs.DirEntry) error {
		info, err := d.Info()
		if err == nil {
			bytes += info.Size() + 4096
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := makeSparse(file, bytes+bytes/8+payloadSpare); err != nil {
		return err
	}
	if _, err := tool.Output(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "payload", "-E", "lazy_itable_init=1,root_owner=0:0", "-d", tree, file); err != nil {
		return fmt.Errorf("the payload disk: %w", err)
	}
	return os.RemoveAll(tree)
}

func makeSparse(path string, sizeBytes int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := file.Truncate(sizeBytes); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

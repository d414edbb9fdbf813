package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"domfs/testdata/tool"

	"golang.org/x/sys/unix"
)

// measure does some work on a view. Its value is in seconds, or what the row's unit says.
type measure func(ctx context.Context, v *view) (float64, error)

// timed is how long a shell command takes, in seconds. $1 is its argument.
func timed(ctx context.Context, dir, script, arg string) (float64, error) {
	// The first look at the root is part of neither: the kernel's mount has done it.
	if err := await(ctx, func() error { _, err := os.Stat(dir); return err }); err != nil {
		return 0, err
	}
	cmd := tool.Command(ctx, "sh", "-c", script, "sh", arg)
	cmd.Dir = dir
	start := time.Now()
	_, err := tool.OutputOf(cmd)
	return time.Since(start).Seconds(), err
}

func find(ctx context.Context, v *view) (float64, error) {
	return timed(ctx, v.files, `find . >/dev/null`, "")
}

func listLong(ctx context.Context, v *view) (float64, error) {
	return timed(ctx, v.files, `ls -lR >/dev/null`, "")
}

func diskUsage(ctx context.Context, v *view) (float64, error) {
	return timed(ctx, v.files, `du -s . >/dev/null`, "")
}

// archive reads all files but the big one. (GNU tar reads nothing when it sees that its
// output is /dev/null.)
func archive(ctx context.Context, v *view) (float64, error) {
	return timed(ctx, v.files, `tar -cf - `+treeName+" "+smallName+` | cat >/dev/null`, "")
}

func catBig(ctx context.Context, v *view) (float64, error) {
	return timed(ctx, v.files, `cat `+bigName+` >/dev/null`, "")
}

func rawDisk(ctx context.Context, v *view) (float64, error) { return readRaw(ctx, v.disk) }
func rawPart(ctx context.Context, v *view) (float64, error) { return readRaw(ctx, v.part) }

func readRaw(ctx context.Context, file string) (float64, error) {
	return timed(ctx, filepath.Dir(file), fmt.Sprintf(`dd if="$1" of=/dev/null bs=1M count=%d status=none`, rawBytes>>20), file)
}

// firstByte is the time from the contender's start to the first byte of a guest's file.
func firstByte(ctx context.Context, v *view) (float64, error) {
	err := await(ctx, func() error {
		f, err := os.Open(filepath.Join(v.files, firstFileName))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Read(make([]byte, 1))
		return err
	})
	return time.Since(v.started).Seconds(), err
}

// peakMemory is the most that the server has had in memory, in bytes.
func peakMemory(_ context.Context, v *view) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.server))
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(text), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); !found || err != nil {
		return 0, fmt.Errorf("no VmHWM in the status of process %d: %w", v.server, err)
	}
	return kib * 1024, nil
}

const (
	randomCount = 16000
	randomBytes = 4096
)

// randomReads is the time that one of many reads at random places of the big file takes,
// with depth of them under way at a time.
func randomReads(depth int) measure {
	return randomOf(depth, func(v *view) string { return filepath.Join(v.files, bigName) })
}

// randomDisk is the same of the whole disk.
func randomDisk(depth int) measure {
	return randomOf(depth, func(v *view) string { return v.disk })
}

func randomOf(depth int, path func(v *view) string) measure {
	return func(ctx context.Context, v *view) (float64, error) {
		var took time.Duration
		err := await(ctx, func() error {
			f, err := os.Open(path(v))
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
				return err
			}
			blocks, err := randomBlocks(f)
			if err != nil {
				return err
			}
			start := time.Now()
			err = readBlocks(ctx, f, blocks, depth)
			took = time.Since(start) / time.Duration(len(blocks))
			return err
		})
		return took.Seconds(), err
	}
}

// randomBlocks are the same each time, and none twice: a second read is a read of the
// kernel's cache.
func randomBlocks(f *os.File) ([]int, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	blocks := rand.New(rand.NewPCG(1, 2)).Perm(int(info.Size() / randomBytes))
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%s is smaller than a block", f.Name())
	}
	return blocks[:min(randomCount, len(blocks))], nil
}

func readBlocks(ctx context.Context, f *os.File, blocks []int, depth int) error {
	next := make(chan int, len(blocks))
	for _, b := range blocks {
		next <- b
	}
	close(next)
	errs := make(chan error, depth)
	var readers sync.WaitGroup
	for range depth {
		readers.Go(func() {
			buf := make([]byte, randomBytes)
			for b := range next {
				if ctx.Err() != nil {
					return
				}
				if _, err := unix.Pread(int(f.Fd()), buf, int64(b)*randomBytes); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	readers.Wait()
	close(errs)
	return <-errs
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(program()) }

// program is main with an exit status, so that what is deferred is done.
func program() int {
	rows := flag.String("rows", "", "measure the rows whose name matches `REGEXP` (default: all)")
	runs := flag.Int("runs", 5, "measure each row `N` times")
	dir := flag.String("dir", "", "keep the image in `DIR`; 4 GiB must be free there (default: domfs-bench in the user's cache folder)")
	binary := flag.String("binary", "", "the domfs to measure, a `PATH` (default: built from this tree)")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Compares domfs with the kernel's loop mount of the same image.")
		flag.PrintDefaults()
	}
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends it on the spot

	b := &bench{runs: *runs, dir: *dir, binary: *binary, recipe: standard}
	err := b.prepare(flag.Args(), *rows)
	if err == nil {
		err = b.run(ctx)
	}
	if len(b.results) > 0 {
		b.table(os.Stdout)
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted:", err)
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// bench is one call of the program.
type bench struct {
	runs    int
	dir     string // where images are kept
	binary  string
	recipe  recipe
	scenes  []scene // those to be measured
	wanted  *regexp.Regexp
	results []*result // in the order of the rows
}

// prepare checks what was asked for, before anything is made.
func (b *bench) prepare(args []string, rows string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	if b.runs < 1 {
		return fmt.Errorf("-runs %d: at least one run is needed", b.runs)
	}
	var err error
	if b.wanted, err = regexp.Compile(rows); err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	for _, s := range scenes {
		if s.matches(b.wanted) {
			b.scenes = append(b.scenes, s)
		}
	}
	if len(b.scenes) == 0 {
		return fmt.Errorf("-rows %s matches none of: %s", rows, strings.Join(rowNames(), "; "))
	}
	if b.dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no folder for the image: %w; name one by -dir", err)
		}
		b.dir = filepath.Join(cache, "domfs-bench")
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the kernel's loop mount is for root only: run it as root")
	}
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	return needTools("cat", "cp", "dd", "du", "find", "losetup", "ls", "mke2fs", "mount", "sfdisk", "tar", "umount")
}

// run measures all. Whatever it mounts is unmounted when it returns.
func (b *bench) run(ctx context.Context) (err error) {
	scratch, err := os.MkdirTemp("", "domfs-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if b.binary == "" {
		b.binary = filepath.Join(scratch, "domfs")
		if _, err := output(ctx, "go", "build", "-o", b.binary, "domfs/cmd/domfs"); err != nil {
			return err
		}
	} else if b.binary, err = filepath.Abs(b.binary); err != nil {
		return err
	}
	d, err := b.recipe.disk(ctx, b.dir, scratch)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	defer d.unlock()
	host := &host{binary: b.binary, disk: d, scratch: scratch}
	snapshot, err := host.makeSnapshot(ctx)
	if err != nil {
		return fmt.Errorf("make the snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, host.removeSnapshot()) }()

	return b.compare(ctx, []contender{&kernel{snapshot, scratch}, &domfs{host, snapshot}}, &fuse2fs{snapshot, scratch})
}

// compare measures all scenes, the contenders in turn, and slow once where it can.
func (b *bench) compare(ctx context.Context, contenders []contender, slow *fuse2fs) error {
	for _, s := range b.scenes {
		started := time.Now()
		for run := range b.runs {
			for i := range contenders {
				// Each goes first as often as the other.
				c := contenders[(run+i)%len(contenders)]
				if err := b.play(ctx, s, s.rows, c); err != nil {
					return err
				}
			}
		}
		if s.fuse2fs && slow.installed() {
			if err := b.play(ctx, s, s.rows[:1], slow); err != nil {
				fmt.Fprintf(os.Stderr, "bench: without fuse2fs: %v\n", err)
			}
		}
		fmt.Fprintf(os.Stderr, "%s: %.1f s\n", s.name, time.Since(started).Seconds())
	}
	return nil
}

// play measures rows of a scene once, on a fresh mount.
func (b *bench) play(ctx context.Context, s scene, rows []row, c contender) (err error) {
	if err := c.image().prepareCache(ctx, s.cold); err != nil {
		return err
	}
	v, err := c.open(ctx)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", s.name, c.name(), err)
	}
	defer func() {
		if closeErr := v.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %s: end it: %w", s.name, c.name(), closeErr))
		}
	}()
	for _, r := range rows {
		if r.alone && c.name() != "domfs" {
			continue
		}
		value, err := r.measure(ctx, v)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", r.name, c.name(), err)
		}
		if b.wanted.MatchString(r.name) {
			b.add(r, c.name(), value)
		}
	}
	return nil
}

func (b *bench) add(r row, contender string, value float64) {
	for _, res := range b.results {
		if res.row.name == r.name {
			res.values[contender] = append(res.values[contender], value)
			return
		}
	}
	b.results = append(b.results, &result{row: r, values: map[string][]float64{contender: {value}}})
}

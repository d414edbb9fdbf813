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
	"slices"
	"strings"
	"time"

	"domfs/testdata/tool"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(program()) }

// program is main with an exit status, so that what is deferred is done.
func program() int {
	rows := flag.String("rows", "", "measure the rows whose name matches `REGEXP` (default: all)")
	runs := flag.Int("runs", 5, "measure each row `N` times")
	dir := flag.String("dir", "", "keep the image in `DIR`; 6 GiB must be free there (default: domfs-bench in the user's cache folder)")
	binary := flag.String("binary", "", "the domfs to measure, a `PATH` (default: built from this tree)")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Compares domfs with the kernel's loop mount of the same image, and with qemu-storage-daemon's export of one in qcow2.")
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
	return tool.Need("cat", "cp", "dd", "du", "find", "losetup", "ls", "mke2fs", "mount", "qemu-img", "sfdisk", "tar", "umount")
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
		if _, err := tool.Output(ctx, "go", "build", "-o", b.binary, "domfs/cmd/domfs"); err != nil {
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

	fields := map[source]field{onSnapshot: {
		main: []contender{&kernel{snapshot, scratch}, &domfs{host, snapshot, snapshotFolder + "/disks/" + vdev}},
		also: []contender{&fuse2fs{snapshot, scratch}, &storageDaemon{snapshot, "raw", scratch}},
	}}
	for _, q := range qcow2Disks {
		im := &image{path: filepath.Join(d.dir, q.file)}
		fields[q.on] = field{main: []contender{&storageDaemon{im, "qcow2", scratch},
			&domfs{host, im, filepath.Join("xenstore", qcow2Domain, "disks", q.vdev)}}}
	}
	return b.compare(ctx, fields)
}

// field is who reads a source: the one that domfs is compared with, domfs, and slow ones.
type field struct {
	main []contender
	also []contender
}

// compare measures all scenes, the contenders in turn, and slow ones in the first run where they can.
func (b *bench) compare(ctx context.Context, fields map[source]field) error {
	for _, s := range b.scenes {
		started := time.Now()
		f := fields[s.on]
		if missing := slices.IndexFunc(f.main, func(c contender) bool { return !c.installed() }); missing >= 0 {
			fmt.Fprintf(os.Stderr, "bench: %s is not measured: %s is not installed\n", s.name, f.main[missing].name())
			continue
		}
		for run := range b.runs {
			for i := range f.main {
				// Each goes first as often as the other.
				if err := b.play(ctx, s, f, f.main[(run+i)%len(f.main)]); err != nil {
					return err
				}
			}
			if run > 0 {
				continue
			}
			for _, c := range f.also {
				if c.name() != s.also {
					continue
				}
				if !c.installed() {
					fmt.Fprintf(os.Stderr, "bench: %s is without %s, which is not installed\n", s.name, c.name())
				} else if err := b.play(ctx, s, f, c); err != nil {
					fmt.Fprintf(os.Stderr, "bench: without %s: %v\n", c.name(), err)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "%s: %.1f s\n", s.name, time.Since(started).Seconds())
	}
	return nil
}

// play measures rows of a scene once, on a fresh mount.
func (b *bench) play(ctx context.Context, s scene, f field, c contender) (err error) {
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
	for _, r := range s.rows {
		if r.alone && c.name() != "domfs" {
			continue
		}
		value, err := r.measure(ctx, v)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", r.name, c.name(), err)
		}
		if b.wanted.MatchString(r.name) {
			b.add(r, f.main[0].name(), c.name(), value)
		}
	}
	return nil
}

func (b *bench) add(r row, base, contender string, value float64) {
	for _, res := range b.results {
		if res.row.name == r.name {
			res.values[contender] = append(res.values[contender], value)
			return
		}
	}
	b.results = append(b.results, &result{row: r, base: base, values: map[string][]float64{contender: {value}}})
}

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
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == workerArg {
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, "mutate:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(program())
}

// options are what the program is told.
type options struct {
	count  int
	seed   uint64
	only   int
	images string
	seeds  string
	keep   string
	jobs   int
}

// program is main with an exit status, so that what is deferred is done.
func program() int {
	var o options
	flag.IntVar(&o.count, "n", 1000, "read `N` changed images")
	flag.Uint64Var(&o.seed, "seed", 1, "make the changes of `S`")
	flag.IntVar(&o.only, "only", -1, "read the image with the change of number `I` alone, and say what it is")
	flag.StringVar(&o.images, "images", "", "change the seeds whose names match `REGEXP` (default: all)")
	flag.StringVar(&o.seeds, "seeds", "", "keep the seeds in `DIR`, and use those that are there (default: made anew)")
	flag.StringVar(&o.keep, "keep", filepath.Join(os.TempDir(), "domfs-mutate"), "keep images that something was found in, in `DIR`")
	flag.IntVar(&o.jobs, "jobs", runtime.NumCPU(), "read `J` images at a time")
	list := flag.Bool("list", false, "list the seeds")
	again := flag.String("read", "", "read `IMAGE[,BACKING...]` as it is, in a process of its own")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends it on the spot

	t := newTally()
	started := time.Now()
	var err error
	switch {
	case flag.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case *list:
		for _, r := range recipes() {
			fmt.Println(r.name)
		}
		return 0
	case *again != "":
		err = readAgain(ctx, t, *again)
	default:
		err = o.run(ctx, t)
	}
	t.show(os.Stdout)
	if t.images > 0 {
		fmt.Printf("\n%s\n", t.summary(time.Since(started)))
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "mutate: interrupted:", err)
		return 130
	case err != nil:
		fmt.Fprintln(os.Stderr, "mutate:", err)
		return 1
	case len(t.findings) > 0:
		return 1
	}
	return 0
}

// readAgain reads an image that was kept.
func readAgain(ctx context.Context, t *tally, list string) error {
	j := &job{Target: -1}
	var files []*os.File
	for _, path := range strings.Split(list, ",") {
		f, err := os.Open(path)
		if err != nil {
			return errors.Join(err, closeAll(files))
		}
		files = append(files, f)
		j.Formats = append(j.Formats, strings.TrimPrefix(filepath.Ext(path), "."))
	}
	started := time.Now()
	r, err := read(ctx, j, files)
	if err = errors.Join(err, closeAll(files)); err != nil {
		return err
	}
	t.add(list, r, time.Since(started), "", func() string { return "" })
	fmt.Printf("contents: %q; the first of %d errors: %q; refused: %q\n", r.Kinds, r.Faults, r.First, r.Refused)
	return nil
}

// run makes the seeds, and changes and reads them.
func (o *options) run(ctx context.Context, t *tally) (err error) {
	wanted, err := regexp.Compile(o.images)
	if err != nil {
		return fmt.Errorf("-images: %w", err)
	}
	if o.jobs < 1 || o.count < 1 {
		return fmt.Errorf("-jobs %d, -n %d: at least one is needed", o.jobs, o.count)
	}
	dir := o.seeds
	if dir == "" {
		if dir, err = memoryDir(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	started := time.Now()
	seeds, err := seedsIn(ctx, dir, wanted)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeSeeds(seeds)) }()
	seeds = o.usable(ctx, t, seeds)
	if len(seeds) == 0 {
		return errors.New("no seed can be read")
	}
	fmt.Printf("%d seeds, made in %.1f s\n", len(seeds), time.Since(started).Seconds())
	if o.only >= 0 {
		return o.one(ctx, t, seeds, o.only)
	}
	return o.all(ctx, t, seeds)
}

// memoryDir is a folder for seeds, in memory where there is such.
func memoryDir() (string, error) {
	if dir, err := os.MkdirTemp("/dev/shm", "domfs-mutate-"); err == nil {
		return dir, nil
	}
	return os.MkdirTemp("", "domfs-mutate-")
}

// usable are the seeds that are opened. One that is not, or not without an error, is a finding.
func (o *options) usable(ctx context.Context, t *tally, seeds []*seed) []*seed {
	var out []*seed
	for _, s := range seeds {
		started := time.Now()
		r := &report{Refused: s.refused}
		if s.refused == "" {
			var err error
			if r, err = read(ctx, s.job(nil), s.open); err != nil {
				r = &report{Refused: err.Error()}
			}
		}
		if r.Refused == "" {
			out = append(out, s)
		}
		if r.Faults > 0 || r.Refused != "" {
			r.Problems = append(r.Problems, problem{"a seed that is not read as it was made", r.Refused + r.First})
		}
		t.add(s.name, r, time.Since(started), "", func() string { return o.kept(s, "as-made", nil) })
	}
	return out
}

// kept keeps an image, and says how to read it again.
func (o *options) kept(s *seed, name string, pages map[int64][]byte) string {
	paths, err := s.keep(o.keep, s.name+"-"+name, pages)
	if err != nil {
		return fmt.Sprintf("(the image cannot be kept: %v)", err)
	}
	return "-read " + paths
}

// all reads the changed images, some at a time.
func (o *options) all(ctx context.Context, t *tally, seeds []*seed) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	next := 0
	var workers sync.WaitGroup
	for range o.jobs {
		workers.Go(func() {
			for ctx.Err() == nil {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= o.count {
					return
				}
				if err := o.change(ctx, t, &mu, seeds, i, false); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// change reads the image with one change.
func (o *options) change(ctx context.Context, t *tally, mu *sync.Mutex, seeds []*seed, i int, tell bool) error {
	r := random(o.seed, uint64(i))
	s, aim := pick(r, seeds)
	c, did, err := s.change(r, aim)
	if err != nil {
		return fmt.Errorf("change %d of %s: %w", i, s.name, err)
	}
	started := time.Now()
	rep, err := read(ctx, s.job(c.pages), s.open)
	if err != nil {
		return err
	}
	if tell {
		fmt.Printf("%s: %s\ncontents: %q; %d files; the first of %d errors: %q; refused: %q\n", s.name, did, rep.Kinds, rep.Files, rep.Faults, rep.First, rep.Refused)
	}
	mu.Lock()
	defer mu.Unlock()
	did = fmt.Sprintf("-seed %d -only %d: %s", o.seed, i, did)
	t.add(s.name, rep, time.Since(started), did, func() string { return o.kept(s, fmt.Sprintf("%d-%d", o.seed, i), c.pages) })
	return nil
}

// one reads a single one.
func (o *options) one(ctx context.Context, t *tally, seeds []*seed, i int) error {
	var mu sync.Mutex
	return o.change(ctx, t, &mu, seeds, i, true)
}

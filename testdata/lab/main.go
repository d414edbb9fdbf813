package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"domfs/testdata/tool"
)

// options are the flags.
type options struct {
	goTool   string
	run      string
	bench    string
	packages string
	brief    bool
	times    bool
	list     bool
	shell    bool
	xen      bool
	console  string
	memory   int // MiB
	machines int
	atOnce   int
	timeout  time.Duration
	silence  time.Duration
	deadline time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.goTool, "go", "go", "the Go program")
	flag.StringVar(&o.run, "run", "^TestLab[_A-Z]", "the tests to run, as go test's -run")
	flag.StringVar(&o.bench, "bench", "", "instead of tests, the benchmarks with such a name, as go test's -bench: ^BenchmarkLab_")
	flag.StringVar(&o.packages, "pkg", "", "only these packages: folders, with commas between")
	flag.BoolVar(&o.brief, "brief", false, "show the output of tests that fail or are skipped only")
	flag.BoolVar(&o.list, "list", false, "print the packages that have such tests, and do no more")
	flag.BoolVar(&o.shell, "shell", false, "instead of tests, a prompt in the machine, with a sample host and domfs mounted")
	flag.BoolVar(&o.xen, "xen", false, "with -shell: in a machine with Xen")
	flag.StringVar(&o.console, "console", "", "also write the machine's console to this file; a second machine's to FILE.1, …")
	flag.IntVar(&o.memory, "memory", 2560, "of the machine, MiB")
	flag.IntVar(&o.machines, "machines", 0, "deal the tests out to so many machines at a time (default: as suits the processors)")
	flag.BoolVar(&o.times, "times", false, "write down how long tests take, by which they are dealt out: "+timesFile)
	flag.IntVar(&o.atOnce, "at-once", max(1, runtime.NumCPU()), "so many machines of labs may run here at the same time; others wait")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Minute, "for each package")
	flag.DurationVar(&o.silence, "silence", 8*time.Minute, "without any output: the machine hangs")
	flag.DurationVar(&o.deadline, "deadline", 45*time.Minute, "for all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ok, err := lab(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// What a package's benchmarks may take, and how long they may be silent.
const (
	benchTimeout = 25 * time.Minute
	benchSilence = 10 * time.Minute
)

// lab tells whether all is well.
func lab(ctx context.Context, o options) (bool, error) {
	has, names, run := labTest, testName, o.run
	if o.bench != "" {
		has, names, run = labBench, benchmarkName, o.bench
		// A benchmark says nothing until it has ended.
		o.silence, o.timeout = max(o.silence, benchSilence), max(o.timeout, benchTimeout)
	}
	packages, err := findPackages(".", has, split(o.packages))
	if err != nil {
		return false, err
	}
	if o.list {
		for _, p := range packages {
			fmt.Println("./" + p)
		}
		return true, nil
	}
	if o.shell {
		packages = nil
	}
	if err := tool.Need("qemu-system-x86_64", "mke2fs", o.goTool); err != nil {
		return false, err
	}
	image, err := findImage(ctx, "testdata/lab/image")
	if err != nil {
		return false, err
	}
	// Everything that is this run's own; the machine holds it open, so it can go early.
	dir, lock, err := makeTemp()
	if err != nil {
		return false, err
	}
	defer lock.Close()
	defer os.RemoveAll(dir)
	start := time.Now()
	if o.shell || o.bench != "" || o.console != "" {
		o.machines = 1
	}
	known, err := readTimes(timesFile)
	if err != nil {
		return false, err
	}
	slots := o.machines
	if slots <= 0 {
		slots = min(2, runtime.NumCPU())
	}
	shared, err := share(".", packages, names, run, slots, known)
	if err != nil {
		return false, err
	}
	if o.shell {
		shared.kinds = []kind{plain}
		if o.xen {
			shared.kinds[0] = withXen
		}
	}
	disks, err := makeDisks(ctx, dir, packages, shared, o)
	if err != nil {
		return false, err
	}
	if o.shell {
		err := shell(ctx, image, disks, dir, machineOptions{kind: shared.kinds[0], memoryMiB: o.memory, logLevel: logAlerts, machines: 1})
		return err == nil, err
	}
	if len(shared.kinds) == 0 {
		return false, errors.New("no test or benchmark has such a name")
	}
	fmt.Printf("lab: %d packages built in %.1f s\n", len(packages), time.Since(start).Seconds())
	r := runs{o: o, image: image, disks: disks, shared: shared, packages: packages, dir: dir}
	r.unready.Store(int64(len(shared.kinds)))
	ok, err := r.all(ctx)
	fmt.Printf("lab: %.1f s in all\n", time.Since(start).Seconds())
	if o.times {
		err = errors.Join(err, r.writeTimes(known))
	}
	if o.bench == "" {
		fmt.Println(r.last())
	}
	return ok, err
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

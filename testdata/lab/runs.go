package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"domfs/testdata/tally"
)

// runs are the machines that share the tests.
type runs struct {
	o        options
	image    image
	disks    disks
	shared   shares
	packages []string
	dir      string // removed once all machines have their files open
	unready  atomic.Int64

	mu      sync.Mutex
	tallies []*tally.Tally // guarded by mu
}

// all runs the machines, each as soon as it is its turn, and tells whether all is well.
func (r *runs) all(ctx context.Context) (bool, error) {
	machines := len(r.shared.kinds)
	well := make([]bool, machines)
	errs := make([]error, machines)
	out := &lines{out: os.Stdout}
	var wg sync.WaitGroup
	for i := range machines {
		// Each has its turn in their order, so that the one that takes longest does not come last.
		turn, err := takeTurn(ctx, max(r.o.atOnce, 1))
		if err != nil {
			errs[i] = err
			break
		}
		run := func() {
			defer turn.Close()
			well[i], errs[i] = r.one(ctx, i, out.part())
		}
		if r.o.bench != "" { // what is measured has the host for itself
			run()
			continue
		}
		wg.Go(run)
	}
	wg.Wait()
	ok := true
	for _, w := range well {
		ok = ok && w
	}
	return ok, errors.Join(errs...)
}

func (r *runs) one(ctx context.Context, machine int, out io.Writer) (bool, error) {
	mode := tally.Live
	switch {
	case r.o.brief:
		mode = tally.Brief
	case len(r.shared.kinds) > 1 && r.o.bench == "":
		mode = tally.Verbose // whole tests, so that those of two machines can be told apart
	}
	s := session{
		goTool: r.o.goTool,
		tally:  tally.New(out, mode),
		out:    out,
		bench:  r.o.bench != "",
		onReady: func() {
			if r.unready.Add(-1) == 0 {
				_ = os.RemoveAll(r.dir)
			}
		},
		silence: r.o.silence, deadline: r.o.deadline,
	}
	r.mu.Lock()
	r.tallies = append(r.tallies, s.tally)
	r.mu.Unlock()
	for _, p := range r.shared.of(machine, r.packages) {
		s.expected = append(s.expected, importPath(p))
	}
	if r.o.console != "" {
		name := r.o.console
		if machine > 0 {
			name = fmt.Sprintf("%s.%d", name, machine)
		}
		file, err := os.Create(name)
		if err != nil {
			return false, err
		}
		defer file.Close()
		s.consoleCopy = file
	}
	return s.run(ctx, machineCommand(r.image, r.disks, machineOptions{
		kind: r.shared.kinds[machine], memoryMiB: r.o.memory, logLevel: logWarnings,
		share: machine, machines: min(len(r.shared.kinds), max(r.o.atOnce, 1)),
	})), nil
}

// last is the line that ends the run.
func (r *runs) last() string {
	var passed, failed, skipped int
	for _, t := range r.tallies {
		p, f, s := t.Totals()
		passed, failed, skipped = passed+p, failed+f, skipped+s
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", passed, failed, skipped)
}

// writeTimes writes down how long tests took: those of this run, and of others that there are still.
func (r *runs) writeTimes(known times) error {
	all := maps.Clone(known)
	for _, t := range r.tallies {
		for pkg, tests := range t.Seconds() {
			for name, seconds := range tests {
				all[test{strings.TrimPrefix(pkg, module+"/"), name}] = seconds
			}
		}
	}
	var out bytes.Buffer
	if err := all.write(&out, func(k test) bool {
		names, err := functions(".", k.dir, testName)
		return err == nil && slices.Contains(names, k.name)
	}); err != nil {
		return err
	}
	return os.WriteFile(timesFile, out.Bytes(), 0o644)
}

// lines lets several write to one place, whole lines each.
type lines struct {
	mu  sync.Mutex
	out io.Writer // guarded by mu
}

func (l *lines) part() io.Writer { return &part{to: l} }

// part is one writer's.
type part struct {
	to *lines

	mu   sync.Mutex
	rest []byte // guarded by mu: of a line that has not ended
}

func (p *part) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, text...)
	i := bytes.LastIndexByte(p.rest, '\n')
	if i < 0 {
		return len(text), nil
	}
	p.to.mu.Lock()
	_, err := p.to.out.Write(p.rest[:i+1])
	p.to.mu.Unlock()
	p.rest = append(p.rest[:0], p.rest[i+1:]...)
	return len(text), err
}

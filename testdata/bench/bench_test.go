package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
	"domfs/testdata/tool"
)

// small is an image that is made within a second.
func small(t *testing.T) recipe {
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "hello"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return recipe{version: 1, sizeBytes: 64 << 20, tree: tree, smallFiles: 120, bigBytes: 4 << 20, qcow2Bytes: 3 << 20, freeBytes: 128 << 20}
}

// twin is the kernel's mount once more, in domfs' place.
type twin struct{ kernel }

func (t *twin) name() string { return "domfs" }

func (t *twin) open(ctx context.Context) (*view, error) {
	v, err := t.kernel.open(ctx)
	if err == nil {
		v.server = os.Getpid()
	}
	return v, err
}

// plain is a file as it is.
type plain struct {
	called string
	file   *image
}

func (p *plain) name() string    { return p.called }
func (p *plain) image() *image   { return p.file }
func (p *plain) installed() bool { return true }

func (p *plain) open(context.Context) (*view, error) {
	return &view{started: time.Now(), disk: p.file.path}, nil
}

func smallBench(t *testing.T, rows string) (*bench, *disk, map[source]field) {
	t.Helper()
	testneed.Root(t)
	testneed.Tools(t, "cat", "cp", "dd", "du", "find", "losetup", "ls", "mke2fs", "mount", "qemu-img", "sfdisk", "tar", "umount")
	b := &bench{runs: 2, dir: t.TempDir(), recipe: small(t)}
	if err := b.prepare(nil, rows); err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	d, err := b.recipe.disk(t.Context(), b.dir, scratch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.unlock)
	img := &image{path: d.path, partBytes: d.partBytes()}
	fields := map[source]field{onSnapshot: {
		main: []contender{&kernel{img, scratch}, &twin{kernel{img, t.TempDir()}}},
		also: []contender{&fuse2fs{img, scratch}, &storageDaemon{img, "raw", scratch}},
	}}
	for _, q := range qcow2Disks {
		img := &image{path: filepath.Join(d.dir, q.file)}
		fields[q.on] = field{main: []contender{&plain{"kernel", img}, &plain{"domfs", img}}}
	}
	return b, d, fields
}

// leftOf lists mounts and loop devices that have to do with a folder.
func leftOf(t *testing.T, dir string) string {
	t.Helper()
	loops, err := tool.Output(t.Context(), "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for line := range strings.Lines(loops + "\n" + string(mounts)) {
		if strings.Contains(line, dir) {
			left = append(left, line)
		}
	}
	return strings.Join(left, "")
}

func TestCompare_MeasuresEachRowAndLeavesNothingMounted(t *testing.T) {
	b, _, fields := smallBench(t, "")
	if err := b.compare(t.Context(), fields); err != nil {
		t.Fatal(err)
	}
	if left := leftOf(t, filepath.Dir(b.dir)); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	want := len(rowNames())
	if len(b.results) != want {
		t.Errorf("%d rows, want %d", len(b.results), want)
	}
	for _, r := range b.results {
		for _, c := range fields[onSnapshot].main {
			if r.row.alone && c.name() == "kernel" {
				continue
			}
			if n := len(r.values[c.name()]); n != b.runs {
				t.Errorf("%s: %d values of %s, want %d", r.row.name, n, c.name(), b.runs)
			}
		}
		for _, v := range r.values["kernel"] {
			if v <= 0 {
				t.Errorf("%s: took %v s", r.row.name, v)
			}
		}
	}
	var out bytes.Buffer
	b.table(&out)
	if lines := strings.Count(out.String(), "\n"); lines != want+1 {
		t.Errorf("%d lines, want %d:\n%s", lines, want+1, &out)
	}
}

func TestRun_MeasuresDomfsAndLeavesNothing(t *testing.T) {
	testneed.FUSE(t)
	testneed.Root(t)
	testneed.Tools(t, "losetup", "mke2fs", "qemu-img", "sfdisk", "tar")
	b := &bench{runs: 1, dir: t.TempDir(), recipe: small(t)}
	if err := b.prepare(nil, "^(find|memory|start|raw|qcow2|compressed)"); err != nil {
		t.Fatal(err)
	}
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.results {
		if len(r.values["domfs"]) != 1 || r.values["domfs"][0] <= 0 {
			t.Errorf("%s: measured %v on domfs", r.row.name, r.values["domfs"])
		}
	}
	if left := leftOf(t, filepath.Dir(b.dir)); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	if copies, err := filepath.Glob(filepath.Join(b.dir, "*", ".domfs", "*", "*.img")); err != nil || len(copies) != 0 {
		t.Errorf("a snapshot is left: %v (%v)", copies, err)
	}
}

func TestCompare_InterruptedLeavesNothingMounted(t *testing.T) {
	b, _, fields := smallBench(t, "find|tar|raw")
	b.runs = 1000
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	if err := b.compare(ctx, fields); err == nil {
		t.Error("no error of a bench that was interrupted")
	}
	if left := leftOf(t, filepath.Dir(b.dir)); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

func TestDisk_IsMadeOnceAndHoldsTheRecipe(t *testing.T) {
	b, d, fields := smallBench(t, "find")
	if _, err := b.recipe.disk(t.Context(), b.dir, t.TempDir()); err == nil {
		t.Error("two benches use one image at a time")
	}
	before, err := os.Stat(d.path)
	if err != nil {
		t.Fatal(err)
	}
	d.unlock()
	again, err := b.recipe.disk(t.Context(), b.dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer again.unlock()
	if after, err := os.Stat(again.path); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the image was made anew: %v", err)
	}

	v, err := fields[onSnapshot].main[0].open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.close(); err != nil {
			t.Error(err)
		}
	}()
	files, err := filepath.Glob(filepath.Join(v.files, smallName, "*", "*"))
	if err != nil || len(files) != b.recipe.smallFiles {
		t.Errorf("%d small files, want %d (%v)", len(files), b.recipe.smallFiles, err)
	}
	for name, size := range map[string]int64{bigName: b.recipe.bigBytes, firstFileName: smallBytes, treeName + "/hello": 6} {
		if info, err := os.Stat(filepath.Join(v.files, name)); err != nil || info.Size() != size {
			t.Errorf("%s: %v, want %d bytes (%v)", name, info, size, err)
		}
	}
}

func TestMakeImage_RefusesAFullDisk(t *testing.T) {
	r := small(t)
	r.freeBytes = 1 << 60
	if _, err := r.disk(t.Context(), t.TempDir(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "-dir") {
		t.Errorf("error %v does not say what to do", err)
	}
}

func TestPrepare_RefusesWhatMakesNoSense(t *testing.T) {
	for _, test := range []struct {
		name, rows string
		runs       int
		args       []string
	}{
		{"no runs", "", 0, nil},
		{"a bad expression", "(", 1, nil},
		{"no such row", "nonsense", 1, nil},
		{"arguments", "", 1, []string{"find"}},
	} {
		b := &bench{runs: test.runs, dir: t.TempDir()}
		if err := b.prepare(test.args, test.rows); err == nil {
			t.Errorf("%s: no error", test.name)
		}
	}
}

func TestMedian_IsTheMiddle(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 100}, 3},
	} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestResult_ComparesRunByRun(t *testing.T) {
	// The machine was ten times slower in the second run.
	values := map[string][]float64{"kernel": {1, 10, 1}, "domfs": {2, 20, 3}}
	for _, test := range []struct {
		target  target
		reached bool
		ratio   float64
	}{
		{atMost(2), true, 2},
		{atMost(1.9), false, 2},
		{speedAtLeast(0.5), true, 0.5},
		{speedAtLeast(0.6), false, 0.5},
		{below(3), true, 2},
		{below(2.9), false, 2},
	} {
		r := &result{row: row{target: test.target}, base: "kernel", values: values}
		if got := median(r.ratios("domfs")); got != test.ratio {
			t.Errorf("%v: ratio %v, want %v", test.target, got, test.ratio)
		}
		if r.reached() != test.reached {
			t.Errorf("%v: reached is %v", test.target, r.reached())
		}
	}
}

func TestAwait_DoesNotWaitForWhatHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang := make(chan struct{})
	defer close(hang)
	cancel()
	if err := await(ctx, func() error { <-hang; return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

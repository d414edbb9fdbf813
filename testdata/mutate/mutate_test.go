package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// testMain builds the worker: the race detector would need more memory than it may have.
func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "domfs-mutate-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "mutate")
	if out, err := exec.Command("go", "build", "-tags", "faults", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the worker: %v\n%s", err, out)
		return 1
	}
	worker = func() (string, error) { return binary, nil }
	return m.Run()
}

func TestRead_FindsWhatDriversShouldNotDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, []byte("image"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for _, test := range []struct {
		walk string
		want string // what is found; nothing if empty
	}{
		{"panics", crash},
		{"hangs", hang},
		{"spins", hang},
		{"recurses", overrun},
		{"allocates", overrun},
		{"hoards", overrun},
		{"stays below", ""},
		{"another class", "an error that is neither EUCLEAN nor EIO"},
		{"no class", "an error that is neither EUCLEAN nor EIO"},
		{"no place", "an error that does not say where"},
		{"all right", ""},
		{"expected", ""},
	} {
		t.Run(test.walk, func(t *testing.T) {
			t.Parallel()
			limit := 30 * time.Second // the machine may be busy
			if test.want == hang {
				limit = time.Second
			}
			f, err := os.Open(path)
			must(t, err)
			defer f.Close()
			r, err := readWithin(t.Context(), limit, &job{Formats: []string{"raw"}, Walk: test.walk}, []*os.File{f})
			must(t, err)
			var found []string
			for _, p := range r.Problems {
				found = append(found, p.What)
			}
			if got := strings.Join(found, ", "); got != test.want {
				t.Errorf("found %q, want %q: %.600v", got, test.want, r.Problems)
			}
		})
	}
}

// someSeeds are made once for a test.
func someSeeds(t *testing.T, pattern string) []*seed {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "cp", "dd", "mke2fs", "qemu-img", "qemu-io", "sfdisk")
	seeds, err := seedsIn(t.Context(), t.TempDir(), regexp.MustCompile(pattern))
	must(t, err)
	t.Cleanup(func() { must(t, closeSeeds(seeds)) })
	return seeds
}

// What the real tools have written has checksums that fit: making them fit changes nothing.
func TestSums_AreThoseOfTheRealTools(t *testing.T) {
	for _, s := range someSeeds(t, `^(ext4-(1k|4k)|fast-commit|((inline-data|ea-inode)-4k|sparse-super2)-clean|gpt|gpt-128)$`) {
		t.Run(s.name, func(t *testing.T) {
			if s.sums == nil {
				t.Fatalf("it has no checksums: %s", s.refused)
			}
			c, err := openChanged(s.open[0], nil)
			must(t, err)
			for n, o := range s.owners {
				// Where a block that the journal holds belongs, it may never have been.
				if s.hasJournal() && !strings.HasPrefix(o.area, "journal") && o.area != quickArea && o.area != "superblock" {
					continue
				}
				b, err := c.get(n*s.unit, int(s.unit))
				must(t, err)
				must(t, c.put(n*s.unit, b))
			}
			must(t, s.sums.fix(c, s))
			was, err := openChanged(s.open[0], nil)
			must(t, err)
			for _, page := range c.touched() {
				before, err := was.get(page*pageBytes, pageBytes)
				must(t, err)
				if after := c.pages[page]; !bytes.Equal(before, after) {
					i := 0
					for before[i] == after[i] {
						i++
					}
					t.Errorf("%s: byte %d (in %v) became %x from %x", s.name, page*pageBytes+int64(i), s.owners[(page*pageBytes+int64(i))/s.unit], after[i], before[i])
				}
			}
		})
	}
}

// hasJournal tells whether a journal was read.
func (s *seed) hasJournal() bool {
	return slices.ContainsFunc(s.areas, func(a area) bool { return a.name == logArea })
}

func TestChange_IsTheSameForTheSameNumberAndStaysInMetadata(t *testing.T) {
	for _, s := range someSeeds(t, `^(ext4-1k-plain|mbr|qcow2-zlib)$`) {
		if s.refused != "" {
			t.Fatalf("%s: %s", s.name, s.refused)
		}
		differ := map[string]bool{}
		for i := range uint64(60) {
			first, did, err := s.change(random(1, i), "")
			must(t, err)
			again, _, err := s.change(random(1, i), "")
			must(t, err)
			if !maps.EqualFunc(first.pages, again.pages, bytes.Equal) {
				t.Fatalf("%s: change %d is another one the second time", s.name, i)
			}
			differ[did] = true
			for _, page := range first.touched() {
				owned := slices.ContainsFunc(touchedUnits(&changed{pages: map[int64][]byte{page: nil}}, s.unit), func(n int64) bool { return s.owners[n].area != "" })
				if !owned {
					t.Errorf("%s: page %d is changed, and holds no metadata: %s", s.name, page, did)
				}
			}
		}
		if len(differ) < 50 {
			t.Errorf("%s: only %d of 60 changes differ", s.name, len(differ))
		}
	}
}

func TestSeeds_HaveTheStructuresThatAreToBeChanged(t *testing.T) {
	want := map[string][]string{
		"ext3-1k": {"blocks of an inode", "directory", "indirect block", "journal revoke", "journal tag", "inode in the journal"},
		"ext4-1k-plain": {"attribute", "attributes in an inode", "directory", "directory in the journal", "directory index", "directory index, entry",
			"extent node", "extent node, extent", "extents of an inode", "extents of an inode, child", "group descriptor", "inode", "journal commit",
			"journal descriptor", "journal superblock", "journal tag", "superblock"},
		"fast-commit": {"fast commit, add range", "fast commit, create", "fast commit, head", "fast commit, inode", "fast commit, link",
			"fast commit, remove range", "fast commit, tail", "fast commit, unlink", "inode in a fast commit"},
		"inline-data":     {"inline directory"},
		"gpt":             {"GPT entry", "GPT header", "MBR entry"},
		"mbr":             {"MBR", "MBR entry"},
		"qcow2-zlib":      {"L1", "L2", "header"},
		"qcow2-snapshots": {"L1", "L1 of a snapshot", "L2", "header", "header extension", "snapshot"},
	}
	for _, s := range someSeeds(t, `^(ext3-1k|ext4-1k-plain|fast-commit|inline-data|gpt|mbr|qcow2-zlib|qcow2-snapshots)$`) {
		if s.refused != "" {
			t.Errorf("%s: %s", s.name, s.refused)
		}
		for _, name := range want[s.name] {
			if names := s.structureNames(); !slices.Contains(names, name) {
				t.Errorf("%s has %q, but no %q", s.name, names, name)
			}
		}
	}
}

func (s *seed) structureNames() []string {
	var names []string
	for _, st := range s.structures {
		names = append(names, st.name)
	}
	return names
}

// A field is where it is said to be: what is known of some in any seed.
func TestFields_AreThoseOfTheStructures(t *testing.T) {
	known := map[string]uint64{
		"superblock/magic": extMagic, "extents of an inode/magic": extentMagic, "extent node/magic": extentMagic, "attribute block/magic": xattrMagic,
		"attributes in an inode/magic": xattrMagic, "journal superblock/magic": jbdMagic, "journal tag/block, high": 0, "journal commit/type": 2,
		"journal descriptor/type": 1, "journal revoke/type": 5, "fast commit, head/tag": 9, "fast commit, tail/tag": 8,
		"header/magic": 0x514649fb, "GPT header/signature": 0x5452415020494645, "MBR/signature": 0xaa55,
	}
	met := map[string]bool{}
	for _, s := range someSeeds(t, `^(ext3-1k|ext4-1k|fast-commit|gpt|qcow2)$`) {
		c, err := openChanged(s.open[s.target], nil)
		must(t, err)
		for _, st := range s.structures {
			for _, f := range st.fields {
				name := st.name + "/" + f.name
				want, ok := known[name]
				if !ok {
					continue
				}
				met[name] = true
				for _, at := range f.places {
					b, err := c.get(at, f.bytes)
					must(t, err)
					if got := number(b, f.big); got != want {
						t.Errorf("%s: %s at %d is %x, want %x", s.name, name, at, got, want)
					}
				}
			}
		}
	}
	for name := range known {
		if !met[name] {
			t.Errorf("no seed has a %s", name)
		}
	}
}

func TestRun_ReadsChangedImagesAndLeavesNothing(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "cp", "dd", "mke2fs", "qemu-img", "qemu-io", "sfdisk")
	before, err := filepath.Glob("/dev/shm/domfs-mutate-*")
	must(t, err)
	o := &options{count: 40, seed: 7, only: -1, images: `^(ext2-1k|mbr)$`, keep: t.TempDir(), jobs: 2}
	tally := newTally()
	must(t, o.run(t.Context(), tally))
	if tally.images != 42 || tally.files < 100 || tally.faulty == 0 {
		t.Errorf("read %d images with %d files, %d with errors; want 42, some and some", tally.images, tally.files, tally.faulty)
	}
	for _, f := range tally.findings {
		t.Logf("found %s: %s", f.what, f.text)
	}
	after, err := filepath.Glob("/dev/shm/domfs-mutate-*")
	must(t, err)
	if len(after) > len(before) {
		t.Errorf("left: %q, before %q", after, before)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), "domfs-mutate-mnt") {
		t.Error("a mount is left")
	}
}

// A finding's image, read by itself, is what was found.
func TestKeep_WritesTheImageThatWasRead(t *testing.T) {
	s := someSeeds(t, `^qcow2-chain$`)[0]
	c, _, err := s.change(random(3, 4), "")
	must(t, err)
	list, err := s.keep(t.TempDir(), "kept", c.pages)
	must(t, err)
	paths := strings.Split(list, ",")
	if len(paths) != 3 {
		t.Fatalf("%d files, want 3", len(paths))
	}
	kept, err := os.ReadFile(paths[0])
	must(t, err)
	want, err := c.get(0, int(c.size))
	must(t, err)
	if !bytes.Equal(kept, want) {
		t.Error("the file that was kept has other bytes than the image that was read")
	}
}

func TestTally_CountsWhatIsAlikeOnce(t *testing.T) {
	tally := newTally()
	for i := range 5 {
		r := &report{Problems: []problem{{crash, fmt.Sprintf("exit\npanic: index %d out of range\n\ngoroutine %d [running]:\ndomfs/backend/guest/ext4.(*FS).node(0x%x)\n", i, i, i)}}}
		tally.add("seed", r, time.Second, "", func() string { return fmt.Sprint("image ", i) })
	}
	tally.add("other", &report{Problems: []problem{{hang, "signal: quit"}}}, 2*time.Second, "", func() string { return "" })
	if len(tally.findings) != 2 {
		t.Errorf("%d kinds of findings, want 2", len(tally.findings))
	}
	var out bytes.Buffer
	tally.show(&out)
	if text := out.String(); !strings.Contains(text, "FOUND a panic, 5 times, in seed") || !strings.Contains(text, "image 0") {
		t.Errorf("shown:\n%s", text)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

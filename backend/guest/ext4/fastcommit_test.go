package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// fastStep makes one change of a kind that is committed fast, mostly: each ends with an
// fsync of one file as often as not.
func (w *workload) fastStep() error {
	w.steps++
	rnd := w.rnd
	if len(w.dirs) < 3 || len(w.dirs) < 12 && rnd.IntN(40) == 0 {
		name := fmt.Sprintf("dir-%d", len(w.dirs))
		if len(w.dirs) > 3 {
			name = filepath.Join(w.dirs[rnd.IntN(len(w.dirs))], name)
		}
		w.dirs = append(w.dirs, name)
		return os.Mkdir(w.path(name), 0o755)
	}
	if len(w.files) < 20 || len(w.files) < 400 && rnd.IntN(4) == 0 {
		name := w.fastName()
		w.files = append(w.files, name)
		f, err := os.OpenFile(w.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(content(rnd.Uint64N(1<<16), rnd.IntN(12000))); err != nil {
			return err
		}
		if rnd.IntN(3) != 0 {
			return nil
		}
		return f.Sync()
	}
	i := rnd.IntN(len(w.files))
	path := w.path(w.files[i])
	drop := func() {
		w.files[i] = w.files[len(w.files)-1]
		w.files = w.files[:len(w.files)-1]
	}
	switch rnd.IntN(20) {
	case 0, 1:
		drop()
		return os.Remove(path)
	case 2, 3:
		name := w.fastName()
		w.files[i] = name
		return os.Rename(path, w.path(name))
	case 4:
		if k := rnd.IntN(len(w.files)); k != i {
			to := w.path(w.files[k])
			drop()
			return os.Rename(path, to)
		}
		return nil
	case 5:
		name := w.fastName()
		w.files = append(w.files, name)
		return os.Link(path, w.path(name))
	case 6:
		if rnd.IntN(40) == 0 {
			return os.Symlink("x", w.path(w.fastName()))
		}
		return os.Chmod(path, os.FileMode(0o600+rnd.IntN(0o77)))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	switch rnd.IntN(9) {
	case 0, 1:
		_, err = f.WriteAt(content(rnd.Uint64N(1<<16), 1+rnd.IntN(9000)), rnd.Int64N(size+1))
	case 2: // sparse: an extent each
		for range 1 + rnd.IntN(40) {
			if _, err = f.WriteAt([]byte("sparse"), rnd.Int64N(300)<<11); err != nil {
				break
			}
		}
	case 3:
		err = f.Truncate(rnd.Int64N(size + 5000))
	case 4:
		err = f.Truncate(0)
	case 5:
		err = unix.Fallocate(int(f.Fd()), uint32(rnd.IntN(2)*unix.FALLOC_FL_KEEP_SIZE), rnd.Int64N(size+1), 1+rnd.Int64N(60_000))
	case 6, 7:
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, rnd.Int64N(size+1), 1+rnd.Int64N(20_000))
	case 8:
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, rnd.Int64N(size+1), 1+rnd.Int64N(20_000))
	}
	if err == nil && rnd.IntN(4) != 0 {
		err = f.Sync()
	}
	return err
}

// fastInlineStep is fastStep, between changes of what is small: files and directories that are in their inodes, or
// grow out of them.
func (w *workload) fastInlineStep() error {
	if len(w.files) < 20 || w.rnd.IntN(2) == 0 {
		return w.fastStep()
	}
	w.steps++
	dir := fmt.Sprintf("small-%d", w.rnd.IntN(40))
	if err := os.Mkdir(w.path(dir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := os.OpenFile(w.path(filepath.Join(dir, fmt.Sprint(w.rnd.IntN(9)))), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	switch w.rnd.IntN(4) {
	case 0:
		return os.Remove(f.Name())
	case 1:
		err = f.Truncate(w.rnd.Int64N(100))
	default:
		_, err = f.WriteAt(content(w.rnd.Uint64N(1<<16), 1+w.rnd.IntN(60)), w.rnd.Int64N(100))
	}
	if err == nil && w.rnd.IntN(2) == 0 {
		err = f.Sync()
	}
	return err
}

// fastName is in a directory of its own with many entries, mostly.
func (w *workload) fastName() string {
	w.made++
	name := fmt.Sprintf("%s-%d", strings.Repeat("n", w.rnd.IntN(120)), w.made)
	return filepath.Join(w.dirs[min(w.rnd.IntN(8), w.rnd.IntN(len(w.dirs)))], name)
}

// recoveredTimes is a filesystem whose times of the recovery are the kernel's where these
// are of its own recovery.
type recoveredTimes struct {
	*FS
	since  time.Time
	kernel map[uint64]unix.Stat_t
}

// ours tells whether a time is that of the recovery, or this cut to seconds.
func (r recoveredTimes) ours(t backend.Time) bool {
	at := r.recoveryTime()
	return t.Sec == at.Unix() && (int(t.Nsec) == at.Nanosecond() || t.Nsec == 0 && r.sb.inodeBytes == minInodeBytes)
}

func (r recoveredTimes) adjust(a backend.Attr) backend.Attr {
	st, ok := r.kernel[a.Ino]
	if !ok {
		return a
	}
	for _, p := range []struct {
		ours   *backend.Time
		theirs unix.Timespec
	}{{&a.Mtime, st.Mtim}, {&a.Ctime, st.Ctim}} {
		// The kernel's clock for times goes by ticks, and small inodes have whole seconds.
		since := r.since.Add(-20 * time.Millisecond)
		if r.sb.inodeBytes == minInodeBytes {
			since = since.Truncate(time.Second) // as its times are
		}
		if !r.ours(*p.ours) || time.Unix(p.theirs.Sec, p.theirs.Nsec).Before(since) {
			continue
		}
		*p.ours = backend.Time{Sec: p.theirs.Sec, Nsec: uint32(p.theirs.Nsec)}
	}
	return a
}

func (r recoveredTimes) Attr(ino uint64) (backend.Attr, error) {
	a, err := r.FS.Attr(ino)
	return r.adjust(a), err
}

func (r recoveredTimes) Lookup(dir uint64, name string) (backend.Attr, error) {
	a, err := r.FS.Lookup(dir, name)
	return r.adjust(a), err
}

func (r recoveredTimes) ReadDir(dir, cookie uint64, attrs bool, emit func(e *backend.DirEntry) bool) error {
	return r.FS.ReadDir(dir, cookie, attrs, func(e *backend.DirEntry) bool {
		if e.Attr != nil {
			a := r.adjust(*e.Attr)
			e.Attr = &a
		}
		return emit(e)
	})
}

// compareRecovered compares a filesystem that was recovered since a moment with the
// kernel's mount of a copy.
func compareRecovered(t testing.TB, fs *FS, since time.Time, dir string) fstree.Stats {
	t.Helper()
	differences, stats := differencesRecovered(t, fs, since, dir)
	for _, d := range differences {
		t.Error(d)
	}
	return stats
}

func differencesRecovered(t testing.TB, fs *FS, since time.Time, dir string) ([]string, fstree.Stats) {
	t.Helper()
	r := recoveredTimes{fs, since, map[uint64]unix.Stat_t{}}
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		r.kernel[st.Ino] = st
		return err
	}))
	return fstree.Differences(r, dir)
}

// recount sets the superblock's free counts to the sums of the groups', as the kernel does
// at each mount: nothing else keeps them.
func recount(t testing.TB, image string) {
	t.Helper()
	fs, _ := openImage(t, image)
	e := newEditor(fs)
	var clusters uint64
	var inodes uint32
	for n := range fs.sb.groups {
		b, err := fs.rawGroup(n)
		must(t, err)
		g := fs.parseGroup(b)
		clusters += g.freeClusters
		inodes += uint32(g.freeInodes)
	}
	must(t, e.super(func(b []byte) {
		le := binary.LittleEndian
		le.PutUint32(b[0xc:], uint32(clusters<<fs.sb.clusterBits))
		if fs.sb.incompat&incompat64Bit != 0 {
			le.PutUint32(b[0x158:], uint32(clusters<<fs.sb.clusterBits>>32))
		}
		le.PutUint32(b[0x10:], inodes)
	}))
	b, err := e.superView()
	must(t, err)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, superOffset)
	must(t, err)
}

// faults are what e2fsck finds wrong, each once.
func faults(t testing.TB, image string) []string {
	t.Helper()
	testneed.Tools(t, "e2fsck")
	out, _ := exec.Command("e2fsck", "-fn", image).CombinedOutput()
	var list []string
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasSuffix(line, "?  no") || strings.HasSuffix(line, "? no") || strings.Contains(line, "differences:") ||
			strings.Contains(line, "count wrong") || strings.Contains(strings.ToLower(line), "error") && !strings.Contains(line, "WARNING") {
			if line != "Fix? no" {
				list = append(list, line)
			}
		}
	}
	return list
}

// checkFastCut is checkCut where the kernel's replay may leave faults of its own, or not
// mount the filesystem at all: then false.
func checkFastCut(t testing.TB, cut string) (fs *FS, mounted bool) {
	t.Helper()
	since := time.Now()
	fs, _ = openImage(t, cut)
	recovered := clone(t, cut, cut+".kernel")
	defer os.Remove(recovered)
	dir, umount, err := mountRecovering(t, recovered, "rw,noatime")
	if err != nil {
		if len(fs.Warnings()) == 0 {
			t.Errorf("the kernel does not mount it: %v, but there is no warning", err)
		}
		_, _, err := walk(fs, 1<<20, 1<<30)
		if err != nil {
			t.Errorf("a walk: %v", err)
		}
		return fs, false
	}
	if w := fs.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	// With clusters of several blocks, the kernel's replay takes some that files have for free.
	clusters := fs.sb.clusterBits > 0
	differences, stats := differencesRecovered(t, fs, since, dir)
	for _, d := range differences {
		if clusters && strings.Contains(d, "StatFS") {
			continue
		}
		// What lseek(2) of the kernel says past the bytes in an inode; see seekInline.
		if fs.sb.incompat&incompatInlineData != 0 && strings.Contains(d, ": Next") && strings.HasSuffix(d, "the kernel says no such file or directory") {
			continue
		}
		t.Error(d)
	}
	umount()
	if stats.Entries < 5 {
		t.Errorf("only %d entries", stats.Entries)
	}
	out := writeOut(t, fs, cut, cut+".out")
	defer os.Remove(out)
	recount(t, out)
	ours, theirs := faults(t, out), faults(t, recovered)
	for _, f := range ours {
		if !slices.Contains(theirs, f) && !clusters {
			t.Errorf("e2fsck finds %q, and not in what the kernel recovers", f)
		}
	}
	t.Logf("tags %v, %d faults of e2fsck, %d in what the kernel recovers, %+v", fs.fastCommits, len(ours), len(theirs), stats)
	return fs, true
}

var fastCases = []crashCase{
	{"1 KiB blocks", 64, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit", "-J", "size=4"}, "rw,commit=100", (*workload).fastStep, nil},
	{"4 KiB blocks", 128, []string{"-t", "ext4", "-b", "4096", "-O", "fast_commit", "-J", "size=8"}, "rw,commit=100", (*workload).fastStep, nil},
	{"without checksums", 64, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit,^metadata_csum,^64bit", "-J", "size=4"}, "rw,commit=100", (*workload).fastStep, nil},
	{"without an index of directories", 64, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit,^metadata_csum,^dir_index,uninit_bg", "-J", "size=4"}, "rw,commit=100", (*workload).fastStep, nil},
	{"clusters", 128, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit,bigalloc", "-C", "8192", "-J", "size=4"}, "rw,commit=100", (*workload).fastStep, nil},
	{"an orphan file, small inodes", 128, []string{"-t", "ext4", "-b", "2048", "-I", "128", "-O", "fast_commit,orphan_file", "-J", "size=8"}, "rw,commit=100", (*workload).fastStep, nil},
	{"inline data, values in inodes", 64, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit,inline_data,ea_inode", "-J", "size=4"}, "rw,commit=100", (*workload).fastInlineStep, nil},
	{"descriptors of meta_bg", 128, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit,meta_bg,^resize_inode", "-J", "size=4"}, "rw,commit=100", (*workload).fastStep, nil},
	{"an encrypted directory", 64, []string{"-t", "ext4", "-b", "1024", "-O", "fast_commit,encrypt", "-J", "size=4"}, "rw,commit=100", (*workload).fastStep, encrypted},
}

func TestFastCommits_AreReplayedAsTheKernelDoes(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck")
	if _, err := os.Stat("/sys/fs/ext4/features/fast_commit"); err != nil {
		testneed.Missing(t, "a kernel with fast commits")
	}
	var done [fcKinds]int
	refused, compared := 0, 0
	for i, c := range fastCases {
		t.Run(c.name, func(t *testing.T) {
			for k, cut := range crash(t, c, cutsPerCase(t, 3), uint64(100+i)) {
				t.Run(strconv.Itoa(k), func(t *testing.T) {
					fs, mounted := checkFastCut(t, cut)
					if !mounted {
						refused++
						return
					}
					for kind, n := range fs.fastCommits {
						done[kind] += n
					}
					if fs.fastCommits[fcTail] > 0 {
						compared++
					}
				})
			}
		})
	}
	t.Logf("%d cuts with fast commits; tags %v; %d not mounted by the kernel", compared, done, refused)
	for kind := fcAddRange; kind < fcKinds; kind++ {
		if done[kind] == 0 {
			t.Errorf("no tag of the kind %q was replayed", fcNames[kind])
		}
	}
}

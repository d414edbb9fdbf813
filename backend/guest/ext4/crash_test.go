package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend/backendtest/fstree"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// crashCase is a filesystem that is cut off at random points while it is written to.
type crashCase struct {
	name    string
	sizeMiB int
	mkfs    []string
	options string                         // of the mount that is cut
	step    func(w *workload) error        // one change; nil for workload.step
	setup   func(t testing.TB, dir string) // of the directory that is worked in; nil for none
}

// cutsPerCase is how many cuts a test takes of each case: DOMFS_CUTS, else few.
func cutsPerCase(t testing.TB, few int) int {
	value := os.Getenv("DOMFS_CUTS")
	if value == "" {
		return few
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		t.Fatalf("DOMFS_CUTS: %q", value)
	}
	return n
}

// reflinkDir is a folder whose files can be copied at one instant while they are
// written to.
func reflinkDir(t testing.TB) string {
	t.Helper()
	testneed.Loop(t)
	testneed.Tools(t, "mkfs.xfs")
	image := filepath.Join(imageDir(t), "xfs")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 4<<30))
	command(t, "mkfs.xfs", "-q", "-m", "reflink=1", image)
	dir, _ := mountType(t, "xfs", image, "rw,nouuid")
	return dir
}

// clone copies a file of a reflinkDir at one instant.
func clone(t testing.TB, from, to string) string {
	t.Helper()
	src, err := os.Open(from)
	must(t, err)
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	defer dst.Close()
	must(t, unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())))
	return to
}

// crash runs work on a mounted filesystem, and returns images of it as a host that lost
// its power would find it at n moments.
func crash(t testing.TB, c crashCase, n int, seed uint64) []string {
	t.Helper()
	var done atomic.Int64 // steps
	dir := reflinkDir(t)
	image := filepath.Join(dir, "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, int64(c.sizeMiB)*mib))
	command(t, "mke2fs", append(append([]string{"-q", "-F", "-E", "nodiscard"}, c.mkfs...), image)...)
	mounted, umount := mount(t, image, c.options)
	if c.setup != nil {
		mounted = filepath.Join(mounted, "work")
		must(t, os.Mkdir(mounted, 0o755))
		c.setup(t, mounted)
	}
	w := &workload{dir: mounted, rnd: rand.New(rand.NewPCG(seed, 1))}
	step := c.step
	if step == nil {
		step = (*workload).step
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				if w.err = step(w); w.err != nil {
					return
				}
				done.Add(1)
			}
		}
	}()
	rnd := rand.New(rand.NewPCG(seed, 2))
	var cuts []string
	for i := range n {
		// At no moment that the steps have anything to do with, but not before there are some.
		for enough, late := done.Load()+50+rnd.Int64N(300), time.Now().Add(time.Minute); done.Load() < enough && time.Now().Before(late); {
			time.Sleep(time.Duration(1+rnd.IntN(5000)) * time.Microsecond)
		}
		cuts = append(cuts, clone(t, image, filepath.Join(dir, fmt.Sprintf("cut-%d", i))))
	}
	close(stop)
	wg.Wait()
	for _, f := range w.held {
		f.Close()
	}
	if w.err != nil {
		t.Fatalf("after %d steps: %v", w.steps, w.err)
	}
	umount()
	t.Logf("%d steps, %d cuts", w.steps, n)
	return cuts
}

// encrypted makes a directory one whose names and content only the mount that is cut can tell.
func encrypted(t testing.TB, dir string) { encryptDir(t, dir, 0) }

// workload changes a tree, the same way for the same seed.
type workload struct {
	dir   string
	rnd   *rand.Rand
	steps int
	err   error

	files, dirs []string // relative
	held        []*os.File
	made        int
}

const (
	workFiles = 120
	workDirs  = 15
)

func (w *workload) path(rel string) string { return filepath.Join(w.dir, rel) }

func (w *workload) name() string {
	w.made++
	name := fmt.Sprintf("%d", w.made)
	if w.rnd.IntN(4) == 0 {
		name += strings.Repeat("x", w.rnd.IntN(200))
	}
	if len(w.dirs) > 0 && w.rnd.IntN(4) != 0 {
		return filepath.Join(w.dirs[w.rnd.IntN(len(w.dirs))], name)
	}
	return name
}

// bytes are content, of which some blocks begin as those of the journal itself do.
func (w *workload) bytes() []byte {
	b := content(w.rnd.Uint64N(1<<16), w.rnd.IntN([]int{100, 3000, 20_000, 150_000}[w.rnd.IntN(4)]))
	if w.rnd.IntN(3) == 0 {
		for at := 0; at+12 <= len(b); at += 1024 {
			binary.BigEndian.PutUint32(b[at:], jbd2Magic)
			binary.BigEndian.PutUint32(b[at+4:], w.rnd.Uint32N(6))
		}
	}
	return b
}

// step makes one change. A full filesystem is none.
func (w *workload) step() error {
	w.steps++
	var err error
	if len(w.files) < 10 || len(w.files) < workFiles && w.rnd.IntN(3) == 0 {
		err = w.create()
	} else {
		i := w.rnd.IntN(len(w.files))
		err = w.change(i, w.path(w.files[i]))
	}
	if errors.Is(err, unix.ENOSPC) {
		for i := range w.files[:len(w.files)/2] {
			if err := os.Remove(w.path(w.files[i])); err != nil {
				return err
			}
		}
		w.files = w.files[len(w.files)/2:]
		return nil
	}
	return err
}

func (w *workload) create() error {
	if len(w.dirs) < workDirs && w.rnd.IntN(8) == 0 {
		name := w.name()
		if strings.Count(name, "/") > 4 {
			return nil
		}
		if err := os.Mkdir(w.path(name), 0o755); err != nil {
			return err
		}
		w.dirs = append(w.dirs, name)
		return nil
	}
	name := w.name()
	w.files = append(w.files, name)
	switch w.rnd.IntN(12) {
	case 0:
		return os.Symlink(strings.Repeat("target/", 1+w.rnd.IntN(50)), w.path(name))
	case 1:
		return unix.Mkfifo(w.path(name), 0o600)
	}
	f, err := os.OpenFile(w.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(w.bytes()); err != nil {
		return err
	}
	if w.rnd.IntN(4) == 0 {
		return f.Sync()
	}
	return nil
}

// change changes the file at an index of files.
func (w *workload) change(i int, path string) error {
	drop := func() {
		w.files[i] = w.files[len(w.files)-1]
		w.files = w.files[:len(w.files)-1]
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch op := w.rnd.IntN(18); op {
	case 0, 1, 2:
		drop()
		if st.Mode().IsRegular() {
			if f, err := os.Open(path); err == nil {
				w.held = append(w.held, f)
			}
			if len(w.held) > 6 {
				w.held[0].Close()
				w.held = w.held[1:]
			}
		}
		return os.Remove(path)
	case 3, 4:
		name := w.name()
		if err := os.Rename(path, w.path(name)); err != nil {
			return err
		}
		w.files[i] = name
		return nil
	case 5: // over another one
		if k := w.rnd.IntN(len(w.files)); k != i {
			if err := os.Rename(path, w.path(w.files[k])); err != nil {
				return err
			}
			drop()
		}
		return nil
	case 6:
		name := w.name()
		if err := os.Link(path, w.path(name)); err != nil {
			return err
		}
		w.files = append(w.files, name)
		return nil
	case 7:
		return unix.Lsetxattr(path, fmt.Sprintf("trusted.%d", w.rnd.IntN(5)), content(w.rnd.Uint64N(100), w.rnd.IntN(600)), 0)
	case 8:
		if err := unix.Lremovexattr(path, fmt.Sprintf("trusted.%d", w.rnd.IntN(5))); !errors.Is(err, unix.ENODATA) {
			return err
		}
		return nil
	case 9:
		return os.Lchown(path, w.rnd.IntN(70_000), w.rnd.IntN(70_000))
	case 10:
		if len(w.dirs) > 0 { // a directory that is empty by chance
			k := w.rnd.IntN(len(w.dirs))
			if unix.Rmdir(w.path(w.dirs[k])) == nil {
				w.dirs[k] = w.dirs[len(w.dirs)-1]
				w.dirs = w.dirs[:len(w.dirs)-1]
			}
		}
		return nil
	case 11:
		if w.rnd.IntN(3) != 0 {
			return nil
		}
		d, err := os.Open(w.dir)
		if err != nil {
			return err
		}
		defer d.Close()
		return unix.Syncfs(int(d.Fd()))
	}
	if !st.Mode().IsRegular() {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	switch w.rnd.IntN(6) {
	case 0, 1:
		_, err = f.WriteAt(w.bytes(), w.rnd.Int64N(st.Size()+1))
	case 2:
		_, err = f.WriteAt(w.bytes(), st.Size())
	case 3:
		err = f.Truncate(w.rnd.Int64N(st.Size() + 5000))
	case 4:
		if err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.rnd.Int64N(st.Size()+1), 10_000); errors.Is(err, unix.EOPNOTSUPP) {
			err = nil
		}
	}
	if err == nil && w.rnd.IntN(3) == 0 {
		err = f.Sync()
	}
	return err
}

// writeOut makes of an image what recovery shows of it: the overlay written to a copy,
// whose journal is empty then.
func writeOut(t testing.TB, fs *FS, image, to string) string {
	t.Helper()
	clone(t, image, to)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	bits := fs.sb.blockBits
	b := make([]byte, fs.sb.blockBytes())
	end := fs.sb.blocks
	for block := fs.over.next(0, end); block < end; block = fs.over.next(block+1, end) {
		must(t, fs.readAt(b, int64(block)<<bits))
		_, err := f.WriteAt(b, int64(block)<<bits)
		must(t, err)
	}
	emptyJournal(t, f)
	return to
}

// emptyJournal marks an image as one that needs no recovery.
func emptyJournal(t testing.TB, f *os.File) {
	t.Helper()
	le, be := binary.LittleEndian, binary.BigEndian
	b := make([]byte, superBytes)
	_, err := f.ReadAt(b, superOffset)
	must(t, err)
	sb, err := parseSuper(b)
	must(t, err)
	le.PutUint32(b[0x60:], le.Uint32(b[0x60:])&^incompatRecover)
	if sb.roCompat&roCompatMetadataChecksum != 0 {
		le.PutUint32(b[0x3fc:], crc32c(^uint32(0), b[:0x3fc]))
	}
	_, err = f.WriteAt(b, superOffset)
	must(t, err)

	fs, err := New().Open(openDevice(t, f.Name()))
	must(t, err)
	defer fs.Close()
	x := fs.(*FS)
	var in inode
	must(t, x.readInode(x.sb.journalIno, &in))
	r, err := x.mapRun(&in, 0)
	must(t, err)
	at := int64(r.phys) << x.sb.blockBits
	_, err = f.ReadAt(b, at)
	must(t, err)
	be.PutUint32(b[0x1c:], 0)
	sealJournalSuper(b)
	_, err = f.WriteAt(b, at)
	must(t, err)
}

// sealJournalSuper sets the checksum of the journal's superblock.
func sealJournalSuper(b []byte) {
	be := binary.BigEndian
	if be.Uint32(b[0x28:])&(journalIncompatChecksumV2|journalIncompatChecksumV3) != 0 {
		be.PutUint32(b[0xfc:], 0)
		be.PutUint32(b[0xfc:], crc32c(^uint32(0), b[:journalSuperBytes]))
	}
}

// checkCut compares what is read of a cut with what the kernel makes of a copy, and lets
// e2fsck look at the overlay.
func checkCut(t testing.TB, cut string) *FS {
	t.Helper()
	fs, _ := openImage(t, cut)
	if w := fs.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	recovered := clone(t, cut, cut+".kernel")
	dir, umount, err := mountRecovering(t, recovered, "ro")
	must(t, err)
	stats := fstree.Compare(t, fs, dir)
	umount()
	if stats.Entries < 5 {
		t.Errorf("only %d entries", stats.Entries)
	}
	t.Logf("%d blocks replayed, %+v", len(fs.over.replayed), stats)
	out := writeOut(t, fs, cut, cut+".out")
	command(t, "e2fsck", "-fn", out)
	must(t, os.Remove(recovered))
	must(t, os.Remove(out))
	return fs
}

var crashCases = []crashCase{
	{"checksums of version 3, 1 KiB blocks", 64, []string{"-t", "ext4", "-b", "1024", "-J", "size=1"}, "rw", nil, nil},
	{"checksums of version 3, data in the journal", 128, []string{"-t", "ext4", "-b", "4096", "-J", "size=4"}, "rw,data=journal", nil, nil},
	{"32-bit without checksums, data in the journal", 64, []string{"-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"}, "rw,data=journal", nil, nil},
	{"64-bit without checksums", 128, []string{"-t", "ext4", "-b", "4096", "-J", "size=4", "-O", "^metadata_csum,64bit"}, "rw", nil, nil},
	{"checksums of version 1", 128, []string{"-t", "ext4", "-b", "4096", "-J", "size=4", "-O", "^metadata_csum"}, "rw,journal_checksum", nil, nil},
	{"checksums of version 1, asynchronous commits, data in the journal", 64, []string{"-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^64bit"}, "rw,journal_async_commit,data=journal", nil, nil},
	{"checksums of version 3, asynchronous commits", 64, []string{"-t", "ext4", "-b", "1024", "-J", "size=1"}, "rw,journal_async_commit,data=writeback", nil, nil},
	{"indirect maps", 64, []string{"-t", "ext3", "-b", "1024", "-J", "size=1"}, "rw", nil, nil},
	{"indirect maps, data in the journal", 128, []string{"-t", "ext3", "-b", "4096", "-J", "size=4"}, "rw,data=journal", nil, nil},
	{"inline data, values in inodes", 64, []string{"-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "inline_data,ea_inode"}, "rw", nil, nil},
	{"descriptors of meta_bg", 128, []string{"-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "meta_bg,^resize_inode"}, "rw", nil, nil},
	{"indirect maps, inodes of 128 bytes", 64, []string{"-t", "ext3", "-b", "1024", "-I", "128", "-J", "size=1"}, "rw", nil, nil},
	{"an encrypted directory", 64, []string{"-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "encrypt"}, "rw", nil, encrypted},
}

// logFacts counts what was met in logs, so that tests know what they have tested.
type logFacts struct{ replayed, escaped, revoked, wrapped, unfinished, cleaned int }

// add looks at the log of an open filesystem.
func (f *logFacts) add(t testing.TB, fs *FS) {
	t.Helper()
	f.replayed += len(fs.over.replayed)
	if len(fs.over.edited) > 0 {
		f.cleaned++ // of orphans
	}
	for _, r := range fs.over.replayed {
		if r.journal&escapedBlock != 0 {
			f.escaped++
		}
	}
	j, err := fs.openJournal()
	must(t, err)
	if j.start == 0 {
		return
	}
	p := replayer{journal: j}
	must(t, p.scan())
	must(t, p.findRevoked())
	next := j.start
	must(t, p.each(sparseWindowBytes, func(w *logWalk, h logHeader, b []byte) error {
		if h.kind == journalDescriptor {
			j.tags(b, func(t tag) bool {
				if p.isRevoked(t.block, h.tid) {
					f.revoked++
				}
				return true
			})
			must(t, w.skip(j.countTags(b)))
		}
		if w.next < next {
			f.wrapped++
		}
		next = w.next
		return nil
	}))
	// The block after the last commit block, if that was not far.
	b := make([]byte, fs.sb.blockBytes())
	for n := next; n < min(j.last, next+2); n++ {
		must(t, j.read(n, b))
		if h, ok := parseLogHeader(b); ok && h.tid == p.nextTID && h.kind != journalCommit {
			f.unfinished++
		}
	}
}

func TestJournal_IsReplayedAsTheKernelDoes(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "mkfs.xfs", "e2fsck")
	var all logFacts
	for i, c := range crashCases {
		t.Run(c.name, func(t *testing.T) {
			var facts logFacts
			for k, cut := range crash(t, c, cutsPerCase(t, 5), uint64(i)) {
				t.Run(strconv.Itoa(k), func(t *testing.T) { facts.add(t, checkCut(t, cut)) })
			}
			t.Logf("%+v", facts)
			if facts.replayed == 0 {
				t.Error("no cut had anything to replay")
			}
			all.replayed += facts.replayed
			all.escaped += facts.escaped
			all.revoked += facts.revoked
			all.wrapped += facts.wrapped
			all.unfinished += facts.unfinished
			all.cleaned += facts.cleaned
		})
	}
	t.Logf("%+v", all)
	if all.escaped == 0 || all.revoked == 0 || all.wrapped == 0 || all.cleaned == 0 {
		t.Errorf("the workload met too little: %+v", all)
	}
}

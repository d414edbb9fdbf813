package vfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"domfs/backend"
	"domfs/backend/fake"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func TestGuest_TellsOfABoundedNumberOfDamages(t *testing.T) {
	r := newRig(t)
	const many = 5 * maxDamages
	hostile := fake.NewGuest("data-hostile")
	for i := range many {
		hostile.File(fmt.Sprintf("bad%02d", i), []byte("x"))
	}
	hostile.SetFault(func(op string, ino uint64) error {
		if op == "openfile" {
			return fmt.Errorf("inode %d: block %d: %w", ino, 1000+ino, backend.ErrCorrupt)
		}
		return nil
	})
	r.guests.Add(hostile)
	disk := make([]byte, MiB)
	copy(disk, hostile.Header())
	r.Store.Write("/images/web01-xvdb", 0, disk)
	other := fake.NewGuest("web-root")
	fillGuest(other)
	hostname := other.Lookup("etc/hostname").Ino
	other.SetFault(func(op string, ino uint64) error {
		if op == "openfile" && ino == hostname {
			return fmt.Errorf("inode %d: %w", ino, backend.ErrCorrupt)
		}
		return nil
	})
	r.guests.Add(other)
	r.mkdir("snapshots/web01/one")
	open := func(elems ...string) {
		t.Helper()
		f, err := os.Open(r.path(elems...))
		if err == nil {
			f.Close()
		}
		wantErrno(t, "open", err, unix.EUCLEAN)
	}
	for i := range many {
		open("snapshots/web01/one/disks/xvdb/files", fmt.Sprintf("bad%02d", i))
	}
	told := func() (n int) {
		for line := range strings.Lines(r.read("xenstore/web01/last_error")) {
			if strings.Contains(line, " open EUCLEAN xvdb") {
				n++
			}
		}
		return n
	}
	errs := r.read("xenstore/web01/last_error")
	if n := told(); n != maxDamages || strings.Count(errs, "and more there") != 1 {
		t.Errorf("last_error tells of %d of %d damages, want %d:\n%s", n, many, maxDamages, errs)
	}
	logged := 0
	for _, e := range r.logs.All() {
		if e.Level >= zap.InfoLevel && strings.Contains(fmt.Sprint(e.ContextMap()), "xvdb") && strings.Contains(fmt.Sprint(e.ContextMap()), "block 10") {
			logged++
		}
	}
	if logged != maxDamages {
		t.Errorf("%d of %d damages are logged, want %d", logged, many, maxDamages)
	}
	// Another filesystem is heard.
	open(webFiles, "etc/hostname")
	if errs := r.read("xenstore/web01/last_error"); !strings.Contains(errs, "open EUCLEAN xvda/p1: ") {
		t.Errorf("last_error has nothing of xvda:\n%s", errs)
	}
}

func TestLabel_IsOneLineWithoutControlCharacters(t *testing.T) {
	r := newRig(t)
	g := fake.NewGuest("data-label")
	g.Label = "größe\x1b[2J\nroot\x7f\x00"
	r.guests.Add(g)
	disk := make([]byte, MiB)
	copy(disk, g.Header())
	r.Store.Write("/images/web01-xvdb", 0, disk)
	if got, want := r.read("xenstore/web01/disks/xvdb/label"), `größe\x1b[2J\x0aroot\x7f\x00`+"\n"; got != want {
		t.Errorf("the label is shown as %q, want %q", got, want)
	}
}

func TestEvents_HaveABoundedNumberOfReaders(t *testing.T) {
	r := newRig(t)
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range maxStreams {
		fds = append(fds, openEvents(t, r, unix.O_NONBLOCK))
	}
	again := func() error {
		fd, err := unix.Open(r.path(".domfs/events"), unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			fds = append(fds, fd)
		}
		return err
	}
	for range 3 { // a refused one counts for nothing
		wantErrno(t, "one reader too many", again(), syscall.EBUSY)
	}
	unix.Close(fds[0])
	fds = fds[1:]
	eventually(t, "another may read", func() bool { return again() == nil })
	wantErrno(t, "one too many again", again(), syscall.EBUSY)
	r.mkdir("snapshots/web01/one")
	for _, i := range []int{0, maxStreams - 1} {
		if got := readEvents(fds[i], 1000)(); !strings.Contains(got, `"event":"snapshot"`) {
			t.Errorf("reader %d got %q", i, got)
		}
	}
}

func TestGuest_OpensNamesThatAreTooLongOnceEscaped(t *testing.T) {
	r := newRig(t)
	g := fake.NewGuest("data-slashes")
	slashes := strings.Repeat("/", 90)
	g.Link(g.Dir("damaged"), slashes, g.File("hidden/slashes", []byte("deep")))
	g.Link(g.Dir("damaged"), strings.Repeat("a/", 127), g.File("hidden/pairs", []byte("pairs")))
	r.guests.Add(g)
	disk := make([]byte, MiB)
	copy(disk, g.Header())
	r.Store.Write("/images/web01-xvdb", 0, disk)
	r.mkdir("snapshots/web01/one")
	for _, files := range []string{"snapshots/web01/one/disks/xvdb/files", "xenstore/web01/disks/xvdb/files"} {
		for _, name := range r.list(files, "damaged") {
			b, err := os.ReadFile(r.path(files, "damaged", name))
			if want := map[int]string{3 * 90: "deep", 4 * 127: "pairs"}[len(name)]; err != nil || string(b) != want {
				t.Errorf("a name of %d bytes holds %q, want %q, %v", len(name), b, want, err)
			}
		}
		_, err := os.Stat(r.path(files, "damaged", strings.Repeat("n", 256)))
		wantErrno(t, "a name that is too long in the guest, too", err, syscall.ENAMETOOLONG)
		_, err = os.Stat(r.path(files, "damaged", strings.Repeat("%2F", 91)))
		wantErrno(t, "another number of slashes", err, syscall.ENOENT)
	}
}

func TestRead_OfATruncatedImageIsAnError(t *testing.T) {
	path := t.TempDir() + "/image"
	image := webDisk(fake.NewGuests())
	const onDisk = MiB + 512<<10 // where data/on-disk begins
	copy(image[onDisk:], pattern(300<<10+5, 4))
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
	r := newRigWith(t, rigOptions{noPass: true, store: func(s backend.Store) backend.Store { return allStore{s.(fullStore), path} }})
	r.Store.AddVolume("/images/web01-xvda", image)
	r.mkdir("snapshots/web01/one")
	const kept = 64 << 10
	type open struct {
		name string
		f    *os.File
		at   int64 // of what the file has of data/on-disk
	}
	var files []open
	for name, at := range map[string]int64{
		webFiles + "/data/on-disk": 0, "xenstore/web01/disks/xvda/p1/files/data/on-disk": 0,
		"snapshots/web01/one/disks/xvda/raw": onDisk, "xenstore/web01/disks/xvda/raw": onDisk, "xenstore/web01/disks/xvda/p1/raw": 512 << 10,
	} {
		f, err := os.Open(r.path(name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, open{name, f, at})
	}
	if err := os.Truncate(path, onDisk+kept); err != nil {
		t.Fatal(err)
	}
	for _, o := range files {
		unix.Fadvise(int(o.f.Fd()), 0, 0, unix.FADV_RANDOM)
		equalFile(t, o.f, o.at, image[onDisk:][:32<<10])
		for _, off := range []int64{kept, 2 * kept, 2*kept + 4096} {
			for _, size := range []int{4096, kept} { // copied, and spliced
				n, err := o.f.ReadAt(make([]byte, size), o.at+off)
				if n != 0 || !errors.Is(err, syscall.EIO) {
					t.Errorf("%s: %d bytes at %d: %d, %v, want EIO", o.name, size, off, n, err)
				}
			}
		}
	}
	if errs := r.read("xenstore/web01/last_error"); !strings.Contains(errs, "the disk was truncated") {
		t.Errorf("last_error says nothing:\n%s", errs)
	}
}

func TestReaches_SeesWhereAFileEnds(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1000); err != nil {
		t.Fatal(err)
	}
	const large = 1<<63 - 1
	for _, c := range []struct {
		off, want int64
		reaches   bool
	}{{0, 1000, true}, {1, 1000, false}, {600, 400, true}, {600, 401, false}, {1000, 1, false}, {large, 1, false}, {1, large, false}, {large, large, false}} {
		if got := reaches(backend.Location{FD: f.Fd(), Offset: c.off}, c.want); got != c.reaches {
			t.Errorf("%d bytes at %d of 1000: %v", c.want, c.off, got)
		}
	}
	f.Close()
	if reaches(backend.Location{FD: ^uintptr(0)}, 1) {
		t.Error("a closed file reaches")
	}
}

func TestGuest_OfALiveDiskThatWasClosedToMakeRoomIsTheSame(t *testing.T) {
	r := newRig(t)
	const limit = 128 // of control: disks that stay open
	var vdevs []string
	small := map[string][]byte{}
	for i := range limit + 2 {
		vdev := fmt.Sprintf("d%03d", i)
		vdevs, small[vdev] = append(vdevs, vdev), make([]byte, 4096)
	}
	r.AddDomain("many", "", small, vdevs...)
	dir, err := os.Open(r.path(liveFiles))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	stat := func() (st unix.Statx_t, err error) {
		return st, unix.Statx(int(dir.Fd()), "version", unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	}
	before, err := stat()
	if err != nil {
		t.Fatal(err)
	}
	closeIt := func() {
		t.Helper()
		eventually(t, "domain many is there", func() bool { _, err := os.Stat(r.path("xenstore/many")); return err == nil })
		opens := r.Store.Calls("Open")
		for _, vdev := range vdevs {
			r.read("xenstore/many/disks", vdev, "raw")
		}
		if n := r.Store.Calls("Open") - opens; n < limit {
			t.Fatalf("%d disks were opened", n)
		}
	}
	closeIt()
	opens := r.Store.Calls("Open")
	after, err := stat()
	if err != nil || after.Ino != before.Ino || after.Mtime != before.Mtime {
		t.Errorf("it is inode %d and then %d, %v", before.Ino, after.Ino, err)
	}
	fd, err := unix.Openat(int(dir.Fd()), "version", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatalf("open below the directory that was open all the time: %v", err)
	}
	if got := readEvents(fd, 100)(); got != "data-1\n" {
		t.Errorf("it holds %q", got)
	}
	unix.Close(fd)
	if r.Store.Calls("Open") == opens {
		t.Fatal("the disk was not closed: nothing was tested")
	}
	// But one that was written to meanwhile is another.
	closeIt()
	r.Store.Write("/images/web01-xvdb", 4096, []byte("more"))
	eventually(t, "what was open is stale", func() bool { _, err := stat(); return errors.Is(err, syscall.ESTALE) })
}

func TestRmdir_ShowsControlCharactersInTheNameOfWhoHasAFileOpen(t *testing.T) {
	r := newRig(t)
	r.mkdir("snapshots/web01/one")
	runtime.LockOSThread() // the thread that opens a file is who has it
	defer runtime.UnlockOSThread()
	comm := fmt.Sprintf("/proc/self/task/%d/comm", unix.Gettid())
	was, err := os.ReadFile(comm)
	if err != nil {
		t.Fatal(err)
	}
	called := func(name string) {
		t.Helper()
		b := append([]byte(name), 0)
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		runtime.KeepAlive(b)
	}
	called("ev\nil\x1b[31m")
	defer called(strings.TrimSpace(string(was)))
	fd, err := unix.Open(r.path(webFiles, "etc/hostname"), unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	wantErrno(t, "rmdir", unix.Rmdir(r.path("snapshots/web01/one")), syscall.EBUSY)
	errs := r.read("xenstore/web01/last_error")
	if !strings.Contains(errs, "open, by ev?il?[31m (pid ") || strings.Count(errs, "\n") != 1 {
		t.Errorf("last_error is %q", errs)
	}
}

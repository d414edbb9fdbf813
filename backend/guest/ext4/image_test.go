package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"domfs/backend"
	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// device is a file of the host as a Device that counts what is read.
type device struct {
	*os.File
	size  int64
	reads atomic.Int64
	bytes atomic.Int64
}

func (d *device) Size() int64 { return d.size }

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	d.reads.Add(1)
	d.bytes.Add(int64(len(p)))
	return d.File.ReadAt(p, off)
}

func (d *device) Locate(off, length int64) (backend.Location, bool) {
	return backend.Location{FD: d.Fd(), Offset: off, Length: min(length, d.size-off)}, true
}

// memory is an image in memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func inMemory(b []byte) backend.Device { return memory{bytes.NewReader(b)} }

func openDevice(t testing.TB, path string) *device {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &device{File: f, size: st.Size()}
}

func openImage(t testing.TB, path string) (*FS, *device) {
	t.Helper()
	d := openDevice(t, path)
	fs, err := New().Open(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs.(*FS), d
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	testneed.Tools(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// debugfs runs commands that change an image.
func debugfs(t testing.TB, path string, requests ...string) string {
	t.Helper()
	testneed.Tools(t, "debugfs")
	cmd := exec.Command("debugfs", "-w", "-f", "-", path)
	var in bytes.Buffer
	for _, r := range requests {
		in.WriteString(r + "\n")
	}
	cmd.Stdin = &in
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %q: %v\n%s", requests, err, out)
	}
	return string(out)
}

// imageDir is a folder for images, in memory where there is such: flushing them to a
// disk is most of what the tests would wait for. TMPDIR is heeded where it lies there, too: a
// fuzzer's workers end without cleaning up.
func imageDir(t testing.TB) string {
	t.Helper()
	parent := "/dev/shm"
	if tmp := os.TempDir(); strings.HasPrefix(tmp, parent+"/") {
		parent = tmp
	}
	dir, err := os.MkdirTemp(parent, "ext4-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// syncFS writes out the filesystem that a path is on.
func syncFS(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, unix.Syncfs(int(f.Fd())))
}

// mkfs makes an image of a size in MiB. With fill, the bytes that mke2fs does not write
// are 0xaa, as of a disk that was used before.
func mkfs(t testing.TB, sizeMiB int, fill bool, args ...string) string {
	t.Helper()
	path := filepath.Join(imageDir(t), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fill {
		old := bytes.Repeat([]byte{0xaa}, mib)
		for range sizeMiB {
			if _, err := f.Write(old); err != nil {
				t.Fatal(err)
			}
		}
	} else if err := f.Truncate(int64(sizeMiB) * mib); err != nil {
		t.Fatal(err)
	}
	extended := "nodiscard"
	var rest []string
	for i := 0; i < len(args); i++ {
		if args[i] == "-E" {
			i++
			extended += "," + args[i]
			continue
		}
		rest = append(rest, args[i])
	}
	command(t, "mke2fs", append(append([]string{"-q", "-F", "-E", extended}, rest...), path)...)
	return path
}

// mount mounts an image in the kernel until the test's end, or until the function that
// it returns is called.
func mount(t testing.TB, path, options string) (dir string, umount func()) {
	t.Helper()
	return mountType(t, "ext4", path, options)
}

func mountType(t testing.TB, fsType, path, options string) (dir string, umount func()) {
	t.Helper()
	testneed.Loop(t)
	dir = t.TempDir()
	command(t, "mount", "-t", fsType, "-o", "loop,"+options, path, dir)
	return dir, unmounter(t, dir)
}

// mountRecovering is mount read-only, but on a device that the kernel can write to as it
// recovers the filesystem.
func mountRecovering(t testing.TB, path, options string) (dir string, umount func(), err error) {
	t.Helper()
	testneed.Loop(t)
	dir = t.TempDir()
	loop := strings.TrimSpace(command(t, "losetup", "--find", "--show", path))
	out, err := exec.Command("mount", "-t", "ext4", "-o", options, loop, dir).CombinedOutput()
	command(t, "losetup", "-d", loop) // when it is unmounted
	if err != nil {
		return "", nil, fmt.Errorf("%w: %s", err, out)
	}
	return dir, unmounter(t, dir), nil
}

// unmounter returns a function that unmounts once, at the test's end at the latest.
func unmounter(t testing.TB, dir string) (umount func()) {
	done := false
	umount = func() {
		if done {
			return
		}
		done = true
		var err error
		for range 50 {
			if err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	}
	t.Cleanup(umount)
	return umount
}

// populate runs fill on a writable mount of an image.
func populate(t testing.TB, path string, fill func(dir string)) {
	t.Helper()
	dir, umount := mount(t, path, "rw")
	fill(dir)
	umount()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lookup finds a path.
func lookup(t testing.TB, fs backend.FS, names ...string) backend.Attr {
	t.Helper()
	a, err := fs.Attr(fs.Root())
	must(t, err)
	for _, name := range names {
		a, err = fs.Lookup(a.Ino, name)
		must(t, err)
	}
	return a
}

// walk reads everything below a directory, content too, and returns how many entries
// and bytes there were. It goes on after errors, and returns the first one.
func walk(fs backend.FS, maxEntries, maxBytes int) (entries, bytes int, first error) {
	failed := func(err error) bool {
		if err != nil && first == nil {
			first = err
		}
		return err != nil
	}
	seen := map[uint64]bool{}
	queue := []uint64{fs.Root()}
	buf := make([]byte, 64<<10)
	for len(queue) > 0 && entries < maxEntries {
		dir := queue[0]
		queue = queue[1:]
		if seen[dir] {
			continue
		}
		seen[dir] = true
		var found []backend.DirEntry
		failed(fs.ReadDir(dir, 0, true, func(e *backend.DirEntry) bool {
			entries++
			found = append(found, *e)
			return entries < maxEntries
		}))
		_, err := fs.Parent(dir)
		failed(err)
		for i, e := range found {
			if i%16 == 0 {
				_, err := fs.Lookup(dir, e.Name)
				failed(err)
			}
			a, err := fs.Attr(e.Ino)
			if failed(err) {
				continue
			}
			names, err := fs.ListXattr(e.Ino)
			failed(err)
			for _, name := range names {
				_, err := fs.Xattr(e.Ino, name)
				failed(err)
			}
			switch a.Type {
			case backend.TypeDir:
				queue = append(queue, e.Ino)
			case backend.TypeSymlink:
				_, err := fs.Readlink(e.Ino)
				failed(err)
			case backend.TypeRegular:
				f, err := fs.OpenFile(e.Ino)
				if errors.Is(err, backend.ErrNoKey) || failed(err) {
					continue
				}
				for off := int64(0); bytes < maxBytes; {
					data, err := backend.NextData(f, off)
					if err != nil {
						if !errors.Is(err, backend.ErrRange) {
							failed(err)
						}
						break
					}
					n, err := f.ReadAt(buf, data)
					bytes += n
					off = data + int64(n)
					if err != nil {
						if err != io.EOF {
							failed(err)
						}
						break
					}
				}
			}
		}
	}
	return
}

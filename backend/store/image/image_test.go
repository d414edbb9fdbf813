package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend"
	"domfs/backend/backendtest"
	"domfs/backend/backendtest/loop"
	"domfs/backend/backendtest/testneed"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary be another process: see TestMain.
const helperEnv = "DOMFS_IMAGE_TEST_HELPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		helper := map[string]func(args []string) error{
			"lock":   lockHelper,
			"write":  writeHelper,
			"hold":   holdHelper,
			"change": changeHelper,
		}[name]
		if err := helper(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// startHelper runs the test binary as another process, until the test ends, and waits
// for its first line of output if wait is set.
func startHelper(t *testing.T, wait bool, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // it ends when this closes
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if wait {
		if _, err := stdout.Read(make([]byte, 100)); err != nil {
			t.Fatalf("helper %s: %v", name, err)
		}
	}
	return cmd
}

// stopHelper ends a helper before the test does.
func stopHelper(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// mounted makes a filesystem of some size and returns where it is mounted.
func mounted(t *testing.T, size int64, mkfs string, args ...string) string {
	t.Helper()
	testneed.Tools(t, mkfs)
	device, _ := loop.Device(t, size)
	loop.Command(t, mkfs, append(args, device)...)
	folder := t.TempDir()
	loop.Command(t, "mount", device, folder)
	t.Cleanup(func() { loop.Retry(t, "umount", folder) })
	return folder
}

func mountedXFS(t *testing.T) string {
	return mounted(t, 320<<20, "mkfs.xfs", "-q", "-m", "reflink=1")
}

func mountedExt4(t *testing.T, size int64) string {
	return mounted(t, size, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal")
}

// canClone is an oracle for FICLONE in a folder.
func canClone(t *testing.T, folder string) bool {
	t.Helper()
	from, to := filepath.Join(folder, "clone-from"), filepath.Join(folder, "clone-to")
	defer os.Remove(from)
	defer os.Remove(to)
	if err := os.WriteFile(from, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command("cp", "--reflink=always", from, to).Run() == nil
}

// sparseImage makes an image of size bytes with data at some offsets, each in pieces of 64 KiB.
func sparseImage(t *testing.T, path string, size int64, offsets ...int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for i, off := range offsets {
		b := []byte(strings.Repeat(fmt.Sprintf("%07d\n", i), 8192))
		if _, err := f.WriteAt(b[:min(int64(len(b)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestStore_KeepsContract(t *testing.T) {
	const sizeBytes = 3<<20 + 512
	run := func(name string, folder func(t *testing.T) string) {
		t.Run(name, func(t *testing.T) {
			base := folder(t)
			clones := canClone(t, base)
			count := 0
			backendtest.Store(t, func(t *testing.T) backendtest.StoreFixture {
				count++
				folder := filepath.Join(base, fmt.Sprint("images ", count)) // a space, to be escaped in the pool's name
				if err := os.Mkdir(folder, 0o755); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(folder, "web-01.img")
				sparseImage(t, path, sizeBytes, 0, 1<<20)
				return backendtest.StoreFixture{
					New: func(t *testing.T) backend.Store {
						return New([]string{folder}, nil, zap.NewNop())
					},
					Disk:      backend.Disk{VDev: "xvda", Backend: "phy", Format: "raw", Source: path, Mode: backend.ReadWrite},
					SizeBytes: sizeBytes,
					Missing:   backend.Disk{VDev: "xvdb", Source: filepath.Join(folder, "none.img"), Mode: backend.ReadWrite},
					Foreign: []backend.Disk{
						{VDev: "xvda", Source: "/dev/vg/web-01"},
						{VDev: "xvda", Source: "nbd://127.0.0.1/disk"},
						{VDev: "xvda", Source: path, Script: "block-iscsi"},
						{VDev: "xvda", Source: path, BackendDomain: "storage"},
						{VDev: "xvda", Source: "relative.img"},
					},
					Write: func(t *testing.T, p []byte, off int64) {
						f, err := os.OpenFile(path, os.O_WRONLY, 0)
						if err != nil {
							t.Fatal(err)
						}
						defer f.Close()
						if _, err := f.WriteAt(p, off); err != nil {
							t.Fatal(err)
						}
						if err := f.Sync(); err != nil {
							t.Fatal(err)
						}
					},
					Copies: !clones,
				}
			})
		})
	}
	run("here", func(t *testing.T) string { return t.TempDir() })
	run("ext4", func(t *testing.T) string { return mountedExt4(t, 256<<20) })
	run("xfs", mountedXFS)
	run("btrfs", func(t *testing.T) string { return mounted(t, 256<<20, "mkfs.btrfs", "-q") })
}

func TestVolumes_SaysWhyAnImageCannotBeRead(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	sparseImage(t, at("good.img"), 1<<20)
	for _, err := range []error{
		os.Mkdir(at("dir.img"), 0o755),
		unix.Mkfifo(at("fifo.img"), 0o600),
		os.Symlink("loop.img", at("loop.img")),
		os.Symlink("good.img", at("link.img")),
		os.Symlink("none.img", at("dangling.img")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, format, id string
		want             error
	}{
		{"good.img", "", "good.img", nil},
		{"good.img", "raw", "good.img", nil},
		{"link.img", "raw", "good.img", nil},
		{"good.img", "qcow2", "good.img", backend.ErrUnsupported},
		{"good.img", "vhd", "good.img", backend.ErrUnsupported},
		{"none.img", "qcow2", "none.img", backend.ErrNotExist},
		{"dangling.img", "raw", "dangling.img", backend.ErrNotExist},
		{"none/none.img", "raw", "none/none.img", backend.ErrNotExist},
		{"good.img/none.img", "raw", "good.img/none.img", backend.ErrNotDir},
		{"dir.img", "raw", "dir.img", backend.ErrIsDirectory},
		{"fifo.img", "raw", "fifo.img", backend.ErrInvalid},
		{"loop.img", "raw", "loop.img", backend.ErrInvalid},
		{strings.Repeat("x", 300), "raw", strings.Repeat("x", 300), backend.ErrTooLong},
	}
	s := New(nil, nil, nil)
	for _, test := range tests {
		t.Run(test.name+"_"+test.format, func(t *testing.T) {
			path := at(test.name)
			volumes, err := s.Volumes(t.Context(), []backend.Disk{{VDev: "xvda", Source: path, Format: test.format}})
			if err != nil {
				t.Fatal(err)
			}
			v := volumes[0]
			if v.Store != "image" || v.ID != at(test.id) || v.Driver != "file" {
				t.Errorf("Volumes = %+v", v)
			}
			if want := max(test.format, "raw"); test.format != "qcow2" && v.Format != want {
				t.Errorf("format is %q, want %q", v.Format, want)
			}
			if !errors.Is(v.Err, test.want) || test.want == nil && v.Err != nil {
				t.Fatalf("Err = %v, want %v", v.Err, test.want)
			}
			if test.want == nil {
				return
			}
			if !strings.Contains(v.Err.Error(), path) || strings.Contains(v.Err.Error(), "\n") {
				t.Errorf("Err = %q: want one line with the path", v.Err)
			}
			if test.format != "raw" {
				test.want = backend.ErrUnsupported // it is not even looked for
			}
			if d, err := s.Open(t.Context(), v); !errors.Is(err, test.want) {
				t.Errorf("Open = %v, %v, want %v", d, err, test.want)
			}
		})
	}
}

func TestVolumes_LeavesABlockDeviceBehindALink(t *testing.T) {
	device, _ := loop.Device(t, 1<<20)
	link := filepath.Join(t.TempDir(), "link.img")
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	volumes, err := New(nil, nil, nil).Volumes(t.Context(), []backend.Disk{{VDev: "xvda", Source: link}})
	if err != nil || volumes[0].Store != "" {
		t.Errorf("Volumes = %+v, %v, want it unclaimed", volumes, err)
	}
}

func TestVolumes_SaysPermissionDenied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// Root reads anything; another user's rights are those of this thread.
		dropOverride(t)
	}
	v := volumeOf(t, New(nil, nil, nil), path)
	if !errors.Is(v.Err, backend.ErrAccess) {
		t.Errorf("Err = %v, want ErrAccess", v.Err)
	}
}

func TestPoolName_IsAsSystemdEscapes(t *testing.T) {
	paths := []string{"/", "/srv/xen", "/srv//xen/", "/srv/my-images", "/srv/a b", "/.hidden/x", "/srv/.hidden", "/srv/é", "/srv/a_b:c.d", `/srv/a\b`, "/srv/\xff"}
	want := []string{"-", "srv-xen", "srv-xen", `srv-my\x2dimages`, `srv-a\x20b`, `\x2ehidden-x`, "srv-.hidden", `srv-\xc3\xa9`, "srv-a_b:c.d", `srv-a\x5cb`, `srv-\xff`}
	for i, path := range paths {
		if got := poolName(path); got != want[i] {
			t.Errorf("poolName(%q) = %q, want %q", path, got, want[i])
		}
		if out, err := exec.Command("systemd-escape", "--path", "--", path).Output(); err == nil {
			if got := strings.TrimSuffix(string(out), "\n"); got != want[i] {
				t.Errorf("systemd-escape --path %q is %q, this test wants %q", path, got, want[i])
			}
		}
	}
	long := "/" + strings.Repeat("é/", 200)
	if a, b := poolName(long+"a"), poolName(long+"b"); len(a) > 255 || len(b) > 255 || a == b {
		t.Errorf("long folders are named %q and %q", a, b)
	}
}

func TestPools_MatchStatfs(t *testing.T) {
	folder := mountedExt4(t, 64<<20)
	real := filepath.Join(folder, "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(folder, "link")
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	sparseImage(t, filepath.Join(real, "a.img"), 1<<20)
	s := New([]string{link, filepath.Join(folder, "none")}, nil, nil)
	v := volumeOf(t, s, filepath.Join(link, "a.img"))
	pools, err := s.Pools(t.Context())
	if err != nil || len(pools) != 1 {
		t.Fatalf("Pools = %+v, %v, want one", pools, err)
	}
	var size, free int64
	_, numbers, _ := strings.Cut(loop.Command(t, "df", "--output=size,avail", "-B1", folder), "\n")
	if _, err := fmt.Sscan(numbers, &size, &free); err != nil {
		t.Fatal(err)
	}
	if p := pools[0]; p.Path != real || p.Name != v.Pool || p.SizeBytes != size || p.FreeBytes != free {
		t.Errorf("Pools = %+v, df says %d, %d; the volume's pool is %q", p, size, free, v.Pool)
	}
}

func TestDevice_SaysThatAFileWasTruncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New(nil, nil, nil)
	d, err := s.Open(t.Context(), volumeOf(t, s, path))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if n, err := d.ReadAt(b, 0); n != 1000 || !errors.Is(err, backend.ErrIO) || !strings.Contains(err.Error(), path) {
		t.Errorf("ReadAt = %d, %v, want 1000 bytes and ErrIO with the path", n, err)
	}
	if loc, ok := d.(backend.Locator).Locate(0, 4096); ok {
		t.Errorf("Locate = %+v of bytes that are gone", loc)
	}
}

// volumeOf is the volume of the image at path.
func volumeOf(t *testing.T, s *Store, path string) backend.Volume {
	t.Helper()
	volumes, err := s.Volumes(t.Context(), []backend.Disk{{VDev: "xvda", Source: path, Mode: backend.ReadWrite}})
	if err != nil || len(volumes) != 1 {
		t.Fatalf("Volumes = %+v, %v", volumes, err)
	}
	return volumes[0]
}

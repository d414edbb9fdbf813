package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

const (
	memoryLimitKiB = 256 << 10 // of the program, whatever a guest has in its filesystems
	linksPerInode  = 60_000    // ext4 has 65,000 at most
	filesPerFolder = 1_000
)

// largeCount is how many entries a large directory has, and how many files a large tree: a million
// where DOMFS_LARGE is set, as in CI; it takes the kernel 30 s of two processors to make them.
func largeCount() int {
	if os.Getenv("DOMFS_LARGE") != "" {
		return 1_000_000
	}
	return 20_000
}

func TestMemory_StaysBoundedForAMillionEntriesAndAMillionFiles(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "find", "mke2fs")
	h := emptyHost(t)
	image := filepath.Join(memoryDir(t), "large.img")
	count := largeCount()
	folders := count / filesPerFolder
	h.makeLarge(image, count)
	h.config("vm", "file:"+image+",xvda,w")
	program := plainProgram(t)
	// A size needs the file's attributes. In one large directory the kernel asks for those one by one, which takes
	// many times as long as the listing: one in ten has to do. Of the tree each file is asked for.
	for _, test := range []struct {
		name, below string
		lines       int // of find
		print       []string
	}{
		{"directory", "many", 1 + count, []string{"-name", "*7", "-printf", `%i %s\n`, "-o", "-printf", `%i\n`}},
		{"tree", "tree", 1 + folders + folders*filesPerFolder, []string{"-printf", `%i %s\n`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := h.startProgram(program, nil, h.mnt)
			must(t, err)
			defer m.stop()
			root := m.at("xenstore/vm/disks/xvda/files", test.below)
			if n := countLines(t, "find", append([]string{root}, test.print...)...); n != test.lines {
				t.Errorf("find lists %d, want %d", n, test.lines)
			}
			if peak := m.peakKiB(); peak > memoryLimitKiB {
				t.Errorf("the program has had %d MiB in memory, more than %d", peak>>10, memoryLimitKiB>>10)
			} else {
				t.Logf("%d files; %d MiB in memory at most", test.lines, peak>>10)
			}
		})
	}
}

// memoryDir is a folder in memory, where there is such.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "domfs-large-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

// plainProgram is the program without the race detector, which takes memory of its own.
func plainProgram(t *testing.T) string {
	t.Helper()
	if !underRace {
		return binary
	}
	path := filepath.Join(t.TempDir(), "domfs")
	command(t, "go", "build", "-o", path, ".")
	return path
}

// makeLarge has the kernel make a directory of count entries, links of a few files, and a tree of as
// many files.
func (h *host) makeLarge(image string, count int) {
	t := h.t
	t.Helper()
	f, err := os.Create(image)
	must(t, err)
	must(t, f.Truncate(64<<20+1000*int64(count)))
	must(t, f.Close())
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-N", fmt.Sprint(count+count/10+1000), "-E", "nodiscard", image)
	at := filepath.Join(h.dir, "large")
	must(t, os.Mkdir(at, 0o755))
	command(t, "mount", "-o", "loop,noatime", image, at)
	defer h.loopUnmount(t, at)
	must(t, os.Mkdir(at+"/many", 0o755))
	must(t, os.Mkdir(at+"/tree", 0o755))
	var makers sync.WaitGroup
	errs := make(chan error, 2)
	makers.Go(func() { errs <- makeLinks(at+"/many", count) })
	makers.Go(func() { errs <- makeTree(at+"/tree", count/filesPerFolder) })
	makers.Wait()
	must(t, <-errs)
	must(t, <-errs)
}

func makeLinks(dir string, count int) error {
	return inFolder(dir, func(fd int) error {
		first := ""
		for i := range count {
			name := fmt.Sprint("entry ", i)
			var err error
			if i%linksPerInode == 0 {
				first = name
				err = unix.Mknodat(fd, name, unix.S_IFREG|0o644, 0)
			} else {
				err = unix.Linkat(fd, first, fd, name, 0)
			}
			if err != nil {
				return fmt.Errorf("%s/%s: %w", dir, name, err)
			}
		}
		return nil
	})
}

func makeTree(dir string, folders int) error {
	for i := range folders {
		folder := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(folder, 0o755); err != nil {
			return err
		}
		err := inFolder(folder, func(fd int) error {
			for j := range filesPerFolder {
				if err := unix.Mknodat(fd, fmt.Sprint(j), unix.S_IFREG|0o644, 0); err != nil {
					return fmt.Errorf("%s/%d: %w", folder, j, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// inFolder calls f with a descriptor of a folder: a path need not be looked up for each name in it.
func inFolder(dir string, f func(fd int) error) error {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	return f(fd)
}

// countLines runs a command and counts the lines that it prints.
func countLines(t *testing.T, name string, args ...string) int {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	n := 0
	in := bufio.NewScanner(out)
	for in.Scan() {
		n++
	}
	must(t, in.Err())
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v: %s", name, err, stderr.String())
	}
	return n
}

// peakKiB is the most that the program has had in memory.
func (m *mount) peakKiB() int {
	m.t.Helper()
	_, rest, _ := strings.Cut(readFile(m.t, fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid)), "VmHWM:")
	var kib int
	_, err := fmt.Sscan(rest, &kib)
	must(m.t, err)
	return kib
}

// Package proc reads what proc(5) says of processes, for messages that name who has
// something open.
package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is where proc(5) is mounted.
const Root = "/proc"

// Name is a process for people, such as "qemu-system-x86 (pid 123)"; "process 123" if it has
// gone. root is Root, but for tests. A process chooses its own name, which ends up in messages of one line: control
// characters are shown as '?'.
func Name(root, pid string) string {
	comm, err := os.ReadFile(filepath.Join(root, pid, "comm"))
	if err != nil {
		return "process " + pid
	}
	name := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, strings.TrimSuffix(string(comm), "\n"))
	return fmt.Sprintf("%s (pid %s)", name, pid)
}

// List lists a directory of proc or sysfs, at most limit names of it; nil if it cannot be read.
func List(path string, limit int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(limit)
	return names
}

// File is what a descriptor of a process is open on.
type File struct {
	Dev, Ino, Rdev uint64 // as stat(2) has them
	Mode           uint32
}

// OpenFile looks what a descriptor, root/PID/fd/N, is open on; false if that cannot be told. It does
// not ask the file's filesystem, which may hang, or be one of our own that waits for us.
func OpenFile(path string) (File, bool) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st)
	if err != nil {
		return File{}, false
	}
	return File{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino,
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Mode: uint32(st.Mode),
	}, true
}

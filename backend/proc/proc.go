// Package proc reads what proc(5) says of processes, for messages that name who has
// something open.
package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// fsType is the type of our mounts: the kernel writes the subtype after a dot.
const fsType = "fuse.domfs"

// mountEntry is one line of /proc/PID/mountinfo, as proc(5) describes it.
type mountEntry struct {
	Major, Minor uint32 // of the filesystem's device
	Path         string // where it is mounted
	Type         string
	Source       string
}

// mounts reads this process's mounts, in the order in which they were made.
func mounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the list of mounts: %w", err)
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var entries []mountEntry
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20) // an overlay's options can be long
	for in.Scan() {
		// 36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/sda1 rw: the optional
		// fields end with a lone hyphen.
		head, tail, found := strings.Cut(in.Text(), " - ")
		fields, rest := strings.Fields(head), strings.Fields(tail)
		if !found || len(fields) < 6 || len(rest) < 1 {
			return nil, fmt.Errorf("mountinfo: a line that is not understood: %q", in.Text())
		}
		e := mountEntry{Path: unescapeMount(fields[4]), Type: rest[0]}
		if len(rest) > 1 {
			e.Source = unescapeMount(rest[1])
		}
		if _, err := fmt.Sscanf(fields[2], "%d:%d", &e.Major, &e.Minor); err != nil {
			return nil, fmt.Errorf("mountinfo: device number %q: %w", fields[2], err)
		}
		entries = append(entries, e)
	}
	return entries, in.Err()
}

// unescapeMount undoes the kernel's \ooo for blank, tab, newline and backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// topMount finds what is mounted at path, the uppermost where there are several.
func topMount(path string) (e mountEntry, found bool, err error) {
	entries, err := mounts()
	if err != nil {
		return mountEntry{}, false, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Path == path {
			return entries[i], true, nil
		}
	}
	return mountEntry{}, false, nil
}

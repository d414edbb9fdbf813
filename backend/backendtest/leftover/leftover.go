// Package leftover tells what tests left behind on the machine: mounts, loop devices,
// device-mapper's devices, volumes of LVM, domains of Xen, processes, temporary files.
package leftover

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Scope says where to look.
type Scope struct {
	Temp    string // a folder for temporary files; empty: none
	Volumes bool   // the volumes that LVM knows, too, active or not, and Xen's domains
	Reap    bool   // take the status of children that have ended; not beside an exec.Cmd that waits for it
}

// Machine is what a test can leave behind, each as a line for people.
type Machine struct {
	things []string
}

// Read looks at mounts, loop devices, device-mapper's devices, our children and what the
// scope adds. What a child left running is our child only where we are its subreaper.
func (s Scope) Read() Machine {
	var m Machine
	m.things = append(m.things, mountsNow()...)
	m.things = append(m.things, blockDevices("loop device", "/sys/block/loop*/loop/backing_file")...)
	m.things = append(m.things, blockDevices("device-mapper device", "/sys/block/dm-*/dm/name")...)
	for _, pid := range children(s.Reap) {
		m.things = append(m.things, fmt.Sprintf("process %d: %s", pid, commandLine(pid)))
	}
	if s.Volumes {
		m.things = append(m.things, volumes()...)
		m.things = append(m.things, domains()...)
	}
	if s.Temp != "" {
		names, _ := filepath.Glob(s.Temp + "/*")
		for _, name := range names {
			m.things = append(m.things, "temporary file "+name)
		}
	}
	return m
}

// Settle is what there is more than before, once what ends by itself has had its time, and all that there is then.
func (s Scope) Settle(before Machine, limit time.Duration) (left []string, after Machine) {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		after = s.Read()
		left = before.Left(after)
		if len(left) == 0 || time.Now().After(deadline) {
			return left, after
		}
	}
}

// Left is what after has more than m.
func (m Machine) Left(after Machine) []string {
	rest := slices.Clone(m.things)
	var more []string
	for _, thing := range after.things {
		if i := slices.Index(rest, thing); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
			continue
		}
		more = append(more, thing)
	}
	return more
}

func mountsNow() []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"mounts that cannot be listed: " + err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		head, tail, _ := strings.Cut(strings.TrimSpace(line), " - ")
		fields, fs := strings.Fields(head), strings.Fields(tail)
		if len(fields) >= 5 && len(fs) >= 2 {
			found = append(found, fmt.Sprintf("mount of %s (%s) on %s", fs[1], fs[0], fields[4]))
		}
	}
	return found
}

// blockDevices lists the devices that have an attribute in sysfs, with its value.
func blockDevices(what, pattern string) []string {
	paths, _ := filepath.Glob(pattern)
	var found []string
	for _, path := range paths {
		value, err := os.ReadFile(path)
		if err == nil {
			found = append(found, fmt.Sprintf("%s %s: %s", what, strings.Split(path, "/")[3], strings.TrimSpace(string(value))))
		}
	}
	return found
}

// children are the processes whose parent we are, by birth or because theirs ended.
func children(reap bool) []int {
	var found []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		// "pid (comm) state ppid …"; comm may hold anything, a bracket too.
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if ppid, _ := strconv.Atoi(fields[1]); ppid != os.Getpid() {
			continue
		}
		if fields[0] == "Z" { // it has ended: only its status is left
			if reap {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
			continue
		}
		if slices.Contains(daemons, filepath.Base(program(pid))) {
			continue
		}
		found = append(found, pid)
	}
	return found
}

// daemons serve the whole host; LVM starts them when it first needs them, and they stay.
var daemons = []string{"dmeventd", "lvmpolld"}

func program(pid int) string {
	name, _, _ := strings.Cut(commandLine(pid), " ")
	return name
}

func commandLine(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(text) == 0 {
		return "(unknown)"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}

// EndChildren ends what the tests left running, so that it does not outlive us.
func EndChildren() {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, pid := range children(true) {
			_ = syscall.Kill(pid, signal)
		}
		for deadline := time.Now().Add(3 * time.Second); len(children(true)) > 0 && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// volumes are those that LVM knows.
func volumes() []string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "lvm", "lvs", "--all", "--noheadings", "--separator", "/", "--options", "vg_name,lv_name").Output()
	if err != nil {
		return []string{"volumes that cannot be listed: " + err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		found = append(found, "volume "+strings.TrimSpace(line))
	}
	return found
}

// domains are those that Xen runs, where this is its dom0.
func domains() []string {
	if text, err := os.ReadFile("/proc/xen/capabilities"); err != nil || !strings.Contains(string(text), "control_d") {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "xl", "list").Output()
	if err != nil {
		return []string{"domains that cannot be listed: " + err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		// Name ID Mem VCPUs State Time(s)
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] != "Name" {
			found = append(found, fmt.Sprintf("domain %s: %s", fields[1], fields[0]))
		}
	}
	return found
}

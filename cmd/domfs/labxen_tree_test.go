package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
	"domfs/backend/backendtest/labxen"

	"golang.org/x/sys/unix"
)

const readersNice = 10

// told is all that the tree says of a domain but the bytes of its disks and its failures.
func told(t testing.TB, m *mount, domain string) string {
	t.Helper()
	var out strings.Builder
	root := m.at("xenstore", domain)
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type().IsRegular() && e.Name() != "raw" && e.Name() != "last_error" {
			fmt.Fprintf(&out, "%s: %s", strings.TrimPrefix(path, root), readFile(t, path))
		} else {
			fmt.Fprintf(&out, "%s\n", strings.TrimPrefix(path, root))
		}
		return nil
	}))
	return out.String()
}

// What a guest writes to its own part of xenstore changes nothing in the tree.
func aGuestsRubbishInXenstoreChangesNothing(t *testing.T, h *xenHost, d *labxen.DomU) {
	m := h.mount()
	before := told(t, m, d.Name)
	for path, value := range map[string]string{
		"device/vbd/51712/backend":          "/local/domain/0/backend/vbd/0/51712",
		"device/vbd/51712/state":            "9",
		"device/vbd/51712/virtual-device":   "../../etc",
		"device/vbd/51760/backend":          "/local/domain/0/backend/vbd/0/51760",
		"device/vbd/51760/params":           "/etc/shadow",
		"data/" + strings.Repeat("x", 200):  strings.Repeat("y", 1000),
		"data/name":                         "root",
		"control/shutdown":                  "rubbish",
		"device/vbd/%2e%2e%2f":              "%00",
		"device/suspend/event-channel":      "../../0",
		"data/dev":                          "xvda",
		"device/vbd/51712/../../../../name": "other",
	} {
		// Some it may write, others not.
		_, _ = d.Try(t, fmt.Sprintf("/sbin/init xenstore write '%s' '%s'", path, value))
	}
	d.Tell(t, "i=0; while [ $i -lt 300 ]; do /sbin/init xenstore write data/flood $i; i=$((i+1)); done")
	for range 5 {
		if now := told(t, m, d.Name); now != before {
			t.Fatalf("the tree said\n%s\nand says\n%s", before, now)
		}
		time.Sleep(time.Second)
	}
	if got := m.names("xenstore"); len(got) != 1 {
		t.Errorf("domains: %q", got)
	}
	m.stop()
}

// Domains come, go and change under readers that never stop.
func TestLabXen_DomainsChangeUnderReaders(t *testing.T) {
	h := newXenHost(t)
	d := h.one(labxen.Options{Idle: true, Weight: 256}) // the readers leave dom0 no time to spare
	m := h.mount()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	var reads [4]int // of each, once they have ended
	for i := range reads {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				script := `find "$1" -not -path '*/snapshots/*' -size -100k -type f ! -name events -exec cat {} + >/dev/null`
				if i%2 == 0 {
					script = `for d in "$1"/*/; do cat "$d"name "$d"state "$d"domid "$d"disks/*/source; done`
				}
				var out bytes.Buffer
				cmd := exec.Command("timeout", "60", "sh", "-c", script, "sh", m.at("xenstore"))
				cmd.Stdout, cmd.Stderr = &out, &out
				err := cmd.Start()
				if err == nil {
					// What changes the domains goes first; all else of the processor is the readers'.
					_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, readersNice)
					err = cmd.Wait()
				}
				reads[i]++
				if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() == 124 {
					t.Errorf("a reader hangs: %s", out.Bytes())
					return
				}
				for line := range strings.Lines(out.String()) {
					if strings.Contains(line, ": ") && !strings.Contains(line, "No such file or directory") && !strings.Contains(line, "Stale file handle") {
						t.Errorf("a reader says %q", line)
					}
				}
			}
		})
	}
	end := sync.OnceFunc(func() { close(stop); readers.Wait() })
	defer end()
	state := func(name, want string) {
		t.Helper()
		labneed.Eventually(t, name+" is "+want, func() bool {
			text, err := os.ReadFile(m.at("xenstore", name, "state"))
			return err == nil && string(text) == want+"\n"
		})
	}
	gone := func(name string) {
		t.Helper()
		labneed.Eventually(t, name+" is gone", func() bool {
			_, err := os.Stat(m.at("xenstore", name))
			return os.IsNotExist(err)
		})
	}
	state(d.Name, "running")
	if got := m.read("xenstore/" + d.Name + "/domid"); got != fmt.Sprint(d.ID) {
		t.Errorf("domid is %q, want %d", got, d.ID)
	}
	if got := m.read("xenstore/" + d.Name + "/uuid"); got != d.UUID {
		t.Errorf("uuid is %q, want %s", got, d.UUID)
	}
	labneed.Run(t, "xl", "pause", d.Name)
	state(d.Name, "paused")
	labneed.Run(t, "xl", "unpause", d.Name)
	state(d.Name, "running")
	labneed.Run(t, "xl", "rename", d.Name, "renamed")
	state("renamed", "running")
	gone(d.Name)
	labneed.Run(t, "xl", "rename", "renamed", d.Name)
	state(d.Name, "running")
	gone("renamed")
	saved := filepath.Join(h.dir, "saved")
	labneed.Run(t, "xl", "save", d.Name, saved)
	state(d.Name, "off")
	if got := m.read("xenstore/" + d.Name + "/domid"); got != "" {
		t.Errorf("domid is %q while it is off", got)
	}
	labneed.Run(t, "xl", "restore", saved)
	state(d.Name, "running")
	labneed.Run(t, "xl", "shutdown", "-w", d.Name)
	state(d.Name, "off")
	if got := m.read("xenstore/" + d.Name + "/config"); got != filepath.Join(h.xl, d.Name+".cfg") {
		t.Errorf("config is %q", got)
	}
	d.Start(t)
	state(d.Name, "running")
	must(t, os.Remove(filepath.Join(h.xl, d.Name+".cfg")))
	labneed.Run(t, "xl", "destroy", d.Name)
	gone(d.Name)
	end()
	if t.Logf("the readers read all %v times", reads); slices.Min(reads[:]) < 3 {
		t.Error("a reader has hardly read: what it would have seen is not known")
	}
	m.stop()
}

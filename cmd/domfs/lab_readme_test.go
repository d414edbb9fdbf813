package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
)

// quickStart is the first block of commands in README.md below a heading.
func quickStart(t testing.TB, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(readFile(t, "../../README.md"), "\n"+heading+"\n")
	_, rest, fenced := strings.Cut(rest, "\n```sh\n")
	block, _, closed := strings.Cut(rest, "\n```\n")
	if !found || !fenced || !closed {
		t.Fatalf("README.md has no block of commands below %q", heading)
	}
	return block
}

// webConfig makes the configuration of the domain web01 where xl and the README have it.
func (h *lvmHost) webConfig(text string) {
	h.t.Helper()
	const config = "/etc/xen/web01.cfg"
	if _, err := os.Stat(config); err == nil {
		h.t.Fatalf("%s is there: this test writes one of its own", config)
	}
	must(h.t, os.MkdirAll(filepath.Dir(config), 0o755))
	must(h.t, os.WriteFile(config, []byte(text), 0o644))
	h.t.Cleanup(func() { _ = os.Remove(config) })
}

// runQuickStart runs the commands below a heading of README.md, as they stand, in the host's folder, and returns what they and the shell say.
func (h *lvmHost) runQuickStart(heading string) string {
	h.t.Helper()
	programs := filepath.Join(h.dir, "bin")
	must(h.t, os.Mkdir(programs, 0o755))
	must(h.t, os.Symlink(binary, programs+"/domfs"))
	must(h.t, os.MkdirAll("/mnt/domfs", 0o755))
	script := filepath.Join(h.dir, "script")
	must(h.t, os.WriteFile(script, []byte(quickStart(h.t, heading)+"\n"), 0o644))
	cmd := exec.Command("bash", "-e", "-x", script)
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "LC_ALL=C")
	cmd.Dir = h.dir
	out, err := cmd.CombinedOutput()
	h.t.Logf("%s", out)
	if err != nil {
		_ = exec.Command(binary, "umount", "/mnt/domfs").Run()
		h.t.Fatalf("the quick start ends with %v", err)
	}
	return string(out)
}

// The host that the README speaks of: the domain web01 of /etc/xen/web01.cfg, on vg0/web01, a
// guest with a vg0 of its own.
func TestLab_TheReadmesQuickStartWorksLineByLine(t *testing.T) {
	h := newLVMHost(t)
	template := guestTemplate(t)
	h.vg("vg0", 1, 2048)
	fill(t, template, h.thick("vg0", "web01", guestDiskMiB))
	h.webConfig("name = \"web01\"\nuuid = \"5c1b5a4e-1f3f-4c88-9a55-2f1f6a2f7d10\"\ndisk = [ 'phy:/dev/vg0/web01,xvda,w' ]\n")
	before := h.machine()
	h.runQuickStart("### On a host with LVM")
	archive := labneed.Run(t, "tar", "-tzf", filepath.Join(h.dir, "web01.tar.gz"))
	for _, want := range []string{"./etc/fstab", "./boot/vmlinuz", "./home/alice/notes"} {
		if !strings.Contains(archive, want+"\n") && !strings.HasSuffix(archive, want) {
			t.Errorf("the archive lacks %s:\n%s", want, archive)
		}
	}
	const beforeBytes, afterBytes = guestDiskMiB * mib, guestDiskMiB*mib + 1<<30
	if got := labneed.Run(t, "blockdev", "--getsize64", "/dev/vg0/web01"); got != fmt.Sprint(afterBytes) {
		t.Errorf("the disk has %s bytes", got)
	}
	if after := strings.ReplaceAll(h.machine(), fmt.Sprint(" ", afterBytes/512, " "), fmt.Sprint(" ", beforeBytes/512, " ")); after != before {
		t.Errorf("the machine was\n%s\nand is\n%s", before, after)
	}
}

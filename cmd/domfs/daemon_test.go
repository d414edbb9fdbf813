package main

import (
	"os/exec"
	"testing"
)

func TestDaemon_IsCalledDomfsInPs(t *testing.T) {
	h := tinyHost(t)
	t.Cleanup(func() { _ = exec.Command(binary, "umount", "--lazy", h.mnt).Run() })
	command(t, binary, "mount", "--daemon", "--xl-config="+h.dir+"/xen", "--lock-file="+h.dir+"/lock", "--log-file="+h.dir+"/log", h.mnt)
	top, _, err := topMount(h.mnt)
	must(t, err)
	pid := daemonOf(top)
	if pid == 0 || processName(pid) != "domfs" {
		t.Errorf("the daemon is process %d, called %q", pid, processName(pid))
	}
	if !mountsAt(pid, h.mnt) { // how it is found where the kernel does not tell
		t.Error("the daemon is not found by its name and arguments")
	}
	command(t, binary, "umount", h.mnt)
}

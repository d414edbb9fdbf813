package lvm

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// openHelper is the process that a test starts to have a device open.
type openHelper struct {
	name string // as errors name it
	stop func()
}

// startHolder starts a process that has a device open.
func startHolder(t *testing.T, path string) openHelper {
	t.Helper()
	cmd := exec.Command("bash", "-c", "exec 9<\"$1\"; echo open; read line", "bash", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			in.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "open\n" {
		t.Fatalf("bash says %q, %v", line, err)
	}
	return openHelper{name: fmt.Sprint(cmd.Process.Pid), stop: stop}
}

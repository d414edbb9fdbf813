// Package tool is what the programs that belong to the tests share: other programs, loop
// devices and mounts, taken back in their order even where a Ctrl-C came between.
package tool

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// CleanupTime is how long taking back one step may take.
const CleanupTime = 30 * time.Second

// Command is a program in a process group of its own: a Ctrl-C of the terminal reaches us
// only, and we end things in their order.
func Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Output runs a program and returns what it prints.
func Output(ctx context.Context, name string, args ...string) (string, error) {
	return OutputOf(Command(ctx, name, args...))
}

// OutputOf is Output of a command that was made before.
func OutputOf(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// Cleanup is Output for taking something back: it is done after a Ctrl-C as well.
func Cleanup(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), CleanupTime)
	defer cancel()
	_, err := Output(ctx, name, args...)
	return err
}

// Need puts the folders of root's programs into PATH, and names the programs that are missing.
func Need(names ...string) error {
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("these programs are missing: %s", strings.Join(missing, " "))
	}
	return nil
}

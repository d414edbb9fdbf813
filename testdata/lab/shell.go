package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"domfs/testdata/lab/report"

	"golang.org/x/sys/unix"
)

const shellStart = "#!/bin/bash\nexec " + report.Source + "/testdata/lab/shell\n"

// shell boots a machine with a sample host and gives it the terminal until it ends.
func shell(ctx context.Context, i image, d disks, dir string, o machineOptions) error {
	m, err := startMachine(machineCommand(i, d, o), os.Stdout, os.Stdin)
	if err != nil {
		return err
	}
	lines := m.lines
	for {
		select {
		case line, open := <-lines:
			if !open {
				lines = nil
			} else if line.Kind == report.Ready {
				_ = os.RemoveAll(dir)
			}
		case <-ctx.Done():
			// Asked, not killed, it gives the terminal back as it was.
			_ = m.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-m.exited:
			case <-time.After(5 * time.Second):
				m.kill()
				<-m.exited
			}
			return context.Cause(ctx)
		case <-m.exited:
			return m.err
		}
	}
}

// terminalSize goes on the payload, for stty: a serial line does not know it.
func terminalSize(tree string) error {
	size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ)
	if err != nil { // no terminal
		return nil
	}
	text := fmt.Sprintf("rows %d cols %d", size.Row, size.Col)
	return os.WriteFile(filepath.Join(tree, "terminal"), []byte(text), 0o644)
}

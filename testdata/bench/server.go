package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"domfs/testdata/tool"

	"golang.org/x/sys/unix"
)

// readyTime is how long a server may take until its mount is there.
const readyTime = 30 * time.Second

// server is a FUSE server in the foreground.
type server struct {
	cmd        *exec.Cmd
	mountpoint string
	lines      chan string // of its standard output; closed at its end
	stderr     tail
	ended      chan error
	endless    bool // it does not end when its mount does
}

func startServer(cmd *exec.Cmd, mountpoint string) (*server, error) {
	s := &server{cmd: cmd, mountpoint: mountpoint, lines: make(chan string, 1), ended: make(chan error, 1)}
	// Not killed by a Ctrl-C: a server that is killed leaves a dead mount. stop ends it.
	cmd.Cancel = func() error { return os.ErrProcessDone }
	cmd.WaitDelay = 0
	cmd.Stderr = &s.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.lines)
		in := bufio.NewScanner(out)
		for in.Scan() {
			select {
			case s.lines <- in.Text():
			default: // only the first is waited for
			}
		}
	}()
	go func() {
		_, err := cmd.Process.Wait()
		s.ended <- err
		close(s.ended)
	}()
	return s, nil
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// ready waits for the first line of output.
func (s *server) ready(ctx context.Context) error {
	timer := time.NewTimer(readyTime)
	defer timer.Stop()
	select {
	case _, ok := <-s.lines:
		if !ok {
			return fmt.Errorf("%s ended: %s", s.cmd.Path, s.said())
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%s is not ready after %v: %s", s.cmd.Path, readyTime, s.said())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mounted waits for the mount of one that does not say when it is ready.
func (s *server) mounted(ctx context.Context) error {
	for deadline := time.Now().Add(readyTime); !tool.MountedOn(s.mountpoint); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has not mounted after %v: %s", s.cmd.Path, readyTime, s.said())
		}
		select {
		case err := <-s.ended:
			return fmt.Errorf("%s ended: %w: %s", s.cmd.Path, err, s.said())
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return nil
}

func (s *server) said() string { return s.stderr.String() }

// stop unmounts and waits for the server's end; by force, where it does not end by itself.
func (s *server) stop() error {
	var errs []error
	err := tool.Unmount(s.mountpoint)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: nothing is mounted
		errs = append(errs, err)
	}
	if err != nil || s.endless {
		_ = s.cmd.Process.Signal(unix.SIGTERM)
	}
	select {
	case <-s.ended:
	case <-time.After(tool.CleanupTime):
		errs = append(errs, fmt.Errorf("%s did not end after %v, and is killed: %s", s.cmd.Path, tool.CleanupTime, s.said()))
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	if tool.MountedOn(s.mountpoint) {
		errs = append(errs, unix.Unmount(s.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return errors.Join(errs...)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - tailBytes; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.buf.String())
}

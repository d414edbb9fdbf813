package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const umountAbout = "Unmounts MOUNTPOINT and returns once its daemon has ended, changes under way having " +
	"come to their end. A mount that is in use stays, and those who use it are named."

type umountCommand struct {
	*program
	Lazy bool `short:"l" long:"lazy" description:"detach a mount that is in use; its daemon ends when the last user is done"`
	Args struct {
		Mountpoint string `positional-arg-name:"MOUNTPOINT"`
	} `positional-args:"yes" required:"yes"`
}

// daemonEnd is how long a daemon may take to finish changes under way after its mount
// has gone.
const daemonEnd = 2 * time.Minute

func (c *umountCommand) Execute(args []string) error {
	if err := noArguments(args); err != nil {
		return err
	}
	path, err := resolveMountpoint(c.Args.Mountpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist", c.Args.Mountpoint)
	}
	if err != nil {
		return err
	}
	top, mounted, err := topMount(path)
	if err != nil {
		return err
	}
	if !mounted || top.Type != fsType {
		return fmt.Errorf("%s is not a domfs mount", path)
	}
	pid := daemonOf(top)
	var daemon int
	if pid != 0 {
		// A descriptor of the process, so that a number given anew is not mistaken for it.
		if daemon, err = unix.PidfdOpen(pid, 0); err != nil {
			pid = 0
		} else {
			defer unix.Close(daemon)
		}
	}
	runner := run.New(zap.NewNop())
	if err := unmount(c.ctx, path, runner); err != nil {
		switch {
		case c.Lazy:
			return detach(c.ctx, path, runner)
		case stillMounted(top):
			return fmt.Errorf("%s is %s", path, inUseOr(path, err))
		}
	}
	if pid != 0 && !ended(daemon, daemonEnd) {
		return fmt.Errorf("%s is unmounted, but its daemon (process %d) still works on a change after %v", path, pid, daemonEnd)
	}
	return nil
}

// inUseOr says who uses the mount where that is why it could not be unmounted.
func inUseOr(path string, err error) string {
	if errors.Is(err, unix.EBUSY) || len(holders(path)) > 0 {
		return inUseBy(path)
	}
	return "still mounted: " + err.Error()
}

// stillMounted tells whether a mount is there yet.
func stillMounted(m mountEntry) bool {
	top, mounted, err := topMount(m.Path)
	return err != nil || mounted && top.Major == m.Major && top.Minor == m.Minor
}

// ended waits until the process behind a pidfd has ended.
func ended(pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		rest := time.Until(deadline)
		if rest < 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(rest.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
		if n > 0 {
			return true
		}
	}
}

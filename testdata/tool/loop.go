package tool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Attach makes a loop device of sizeBytes of a file from offset on.
func Attach(ctx context.Context, file string, offset, sizeBytes int64, readOnly bool) (string, error) {
	args := []string{"--find", "--show", "--offset", fmt.Sprint(offset), "--sizelimit", fmt.Sprint(sizeBytes)}
	if readOnly {
		args = append(args, "--read-only")
	}
	// A Ctrl-C must not come between the device and its name.
	return Output(context.WithoutCancel(ctx), "losetup", append(args, file)...)
}

// Detach takes a loop device away, and waits until the kernel has let go of the file: what
// looks at new block devices may hold it for a moment.
func Detach(loop string) error {
	if err := Cleanup("losetup", "--detach", loop); err != nil {
		return err
	}
	attached := filepath.Join("/sys/block", filepath.Base(loop), "loop")
	for deadline := time.Now().Add(CleanupTime); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(attached); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return fmt.Errorf("%s is still in use after %v", loop, CleanupTime)
}

// MountExt4 mounts with the kernel's ext4.
func MountExt4(ctx context.Context, device, dir, options string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := Output(context.WithoutCancel(ctx), "mount", "-t", "ext4", "-o", options, device, dir)
	return err
}

// Unmount waits a little for what is still busy.
func Unmount(dir string) error {
	for deadline := time.Now().Add(CleanupTime); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			if err != nil {
				return fmt.Errorf("umount %s: %w", dir, err)
			}
			return nil
		}
	}
}

// MountedOn tells whether anything is mounted on dir, an absolute path without links. It
// reads the table, for the mount itself may not answer.
func MountedOn(dir string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		// proc(5): ID, parent, device, root, mount point
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == octal.Replace(dir) {
			return true
		}
	}
	return false
}

// octal is how proc(5) writes a path in a table.
var octal = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// Package loop makes loop devices for tests, and removes them when the test ends.
package loop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
)

// Device makes a block device of sizeBytes with losetup's further arguments, and returns the file behind it, too.
func Device(t testing.TB, sizeBytes int64, args ...string) (device, file string) {
	t.Helper()
	testneed.Loop(t)
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, sizeBytes); err != nil {
		t.Fatal(err)
	}
	device = strings.TrimSpace(Command(t, "losetup", append(args, "--find", "--show", file)...))
	t.Cleanup(func() { Retry(t, "losetup", "-d", device) })
	return device, file
}

// Command runs a command that must work, and returns what it writes.
func Command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// Retry runs a command until it works: a process that is just ending may keep things busy.
func Retry(t testing.TB, name string, args ...string) {
	t.Helper()
	var out []byte
	var err error
	for range 50 {
		if out, err = exec.Command(name, args...).CombinedOutput(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s %v: %v: %s", name, args, err, out)
}

// Write writes to a device or a file, durably.
func Write(t testing.TB, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

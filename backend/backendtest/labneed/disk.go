package labneed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// detachLimit is how long udev and others may hold a device that is to go.
const detachLimit = 30 * time.Second

// Disk is a new empty block device of sizeBytes, for PVs and other things: a loop device
// over a sparse file in the test's folder.
func Disk(t testing.TB, sizeBytes int64) string {
	t.Helper()
	return Attach(t, File(t, sizeBytes))
}

// File is a new sparse file of sizeBytes.
func File(t testing.TB, sizeBytes int64) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// Attach shows a file as a block device until the test ends, or Detach. With options, such
// as --partscan or --read-only, of losetup.
func Attach(t testing.TB, file string, options ...string) string {
	t.Helper()
	loop := Run(t, append(append([]string{"losetup", "--find", "--show"}, options...), file)...)
	t.Cleanup(func() {
		if attached(loop) != file { // Detach was called
			return
		}
		if err := detach(loop); err != nil {
			t.Error(err)
		}
	})
	return loop
}

// Detach takes a device of Attach away.
func Detach(t testing.TB, loop string) {
	t.Helper()
	if err := detach(loop); err != nil {
		t.Fatal(err)
	}
}

// attached is the file behind a loop device; empty if there is none.
func attached(loop string) string {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loop), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// detach waits until the kernel has let go of the file. What is mapped over the device
// is removed and is an error: nobody took it back.
func detach(loop string) error {
	var errs []error
	for _, name := range holders(loop) {
		errs = append(errs, fmt.Errorf("%s is still mapped by %s", loop, name))
		if _, err := Try("dmsetup", "remove", "--force", "--retry", name); err != nil {
			errs = append(errs, err)
		}
	}
	if _, err := Try("losetup", "--detach", loop); err != nil {
		errs = append(errs, err)
	}
	for deadline := time.Now().Add(detachLimit); attached(loop) != ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("%s is still in use after %v", loop, detachLimit))
			break
		}
	}
	return errors.Join(errs...)
}

// holders are the device-mapper devices over a device or its partitions, the uppermost first.
func holders(device string) []string {
	var names []string
	base := filepath.Join("/sys/block", filepath.Base(device))
	paths, _ := filepath.Glob(base + "/holders/*")
	below, _ := filepath.Glob(base + "/*/holders/*")
	for _, path := range append(paths, below...) {
		names = append(names, holders(filepath.Base(path))...)
		if text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "dm/name")); err == nil {
			names = append(names, strings.TrimSpace(string(text)))
		}
	}
	return names
}

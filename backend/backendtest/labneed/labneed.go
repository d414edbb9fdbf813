// Package labneed is what the tests of the lab share: those that change the LVM, the
// device-mapper and the loop devices of the machine that they run on. Their names begin with
// TestLab; make lab runs them in a machine of their own, make lab-here on this one, and
// make test leaves them out.
//
// Everything that is made here is taken back by the test's cleanup, and what cannot be
// taken back fails the test.
package labneed

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"domfs/backend/backendtest/testneed"
)

const (
	runLimit        = 2 * time.Minute // for one tool, in emulation, on a busy host
	eventuallyLimit = time.Minute
)

// LVM asks for a machine that may be worked on: root, LVM, udev and device-mapper, and
// DOMFS_LAB set, as its owner's word that the test may have it.
func LVM(t testing.TB) {
	t.Helper()
	if os.Getenv("DOMFS_LAB") == "" {
		t.Skip("changes this machine's LVM: run it by make lab")
	}
	testneed.Loop(t)
	testneed.Tools(t, "lvm", "dmsetup", "kpartx", "udevadm", "thin_check")
	if out, err := exec.Command("dmsetup", "version").CombinedOutput(); err != nil {
		testneed.Missing(t, fmt.Sprintf("device-mapper: %v: %s", err, out))
	}
	if _, err := os.Stat("/run/udev/control"); err != nil {
		testneed.Missing(t, "udev: "+err.Error())
	}
}

// Program is the real program, as the lab was given it.
func Program(t testing.TB) string {
	t.Helper()
	path := os.Getenv("DOMFS_PROGRAM")
	if path == "" {
		testneed.Missing(t, "DOMFS_PROGRAM names no program")
	}
	return path
}

// Run runs a tool and returns what it prints, without space around it.
func Run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := Try(argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Run for a tool that may fail; the error holds what it said.
func Try(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// Settle waits until udev has done what it was told of.
func Settle(t testing.TB) {
	t.Helper()
	Run(t, "udevadm", "settle", "--timeout=60")
}

// Eventually waits until what holds does, for what the kernel or udev do in their own time.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(eventuallyLimit); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", eventuallyLimit, what)
		}
	}
}

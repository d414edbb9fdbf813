// Package testneed says what a test needs of its machine. What is missing skips the
// test visibly; where DOMFS_NEED_ALL is set, as in CI, it fails it instead.
package testneed

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Tools asks for programs in PATH and the sbin folders.
func Tools(t testing.TB, names ...string) {
	t.Helper()
	if !strings.Contains(os.Getenv("PATH"), "/usr/sbin") {
		os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	}
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, name+" is not installed")
		}
	}
}

// Root asks for the rights of root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "not root")
	}
}

// Loop asks for loop devices and the rights to use them.
func Loop(t testing.TB) {
	t.Helper()
	Root(t)
	Tools(t, "losetup", "mount", "umount")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		Missing(t, "no loop devices: "+err.Error())
	}
}

// FUSE asks for a kernel and rights to mount FUSE filesystems.
func FUSE(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		Missing(t, "no FUSE: "+err.Error())
	}
	if os.Geteuid() != 0 {
		Tools(t, "fusermount3")
	}
}

// Missing skips the test, or fails it where everything must be there.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("DOMFS_NEED_ALL") != "" {
		t.Fatalf("needed: %s", what)
	}
	t.Skipf("needed: %s", what)
}

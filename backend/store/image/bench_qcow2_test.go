package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"domfs/backend"
)

// BenchmarkVolumesOfChains asks for 100 disks, each an image on one on a template.
func BenchmarkVolumesOfChains(b *testing.B) {
	folder := b.TempDir()
	create := func(name string, args ...string) {
		b.Helper()
		if out, err := exec.Command("qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), filepath.Join(folder, name), "10M")...).CombinedOutput(); err != nil {
			b.Skipf("qemu-img: %v: %s", err, out)
		}
	}
	create("base.qcow2")
	create("mid.qcow2", "-F", "qcow2", "-b", "base.qcow2", "-u")
	create("top.qcow2", "-F", "qcow2", "-b", "mid.qcow2", "-u")
	top, err := os.ReadFile(filepath.Join(folder, "top.qcow2"))
	if err != nil {
		b.Fatal(err)
	}
	var disks []backend.Disk
	for i := range 100 {
		path := filepath.Join(folder, fmt.Sprintf("vm%d.qcow2", i))
		if err := os.WriteFile(path, top, 0o600); err != nil {
			b.Fatal(err)
		}
		disks = append(disks, backend.Disk{VDev: "xvda", Format: "qcow2", Source: path})
	}
	s := New([]string{folder}, formats, nil)
	for b.Loop() {
		volumes, err := s.Volumes(b.Context(), disks)
		if err != nil || volumes[99].Err != nil {
			b.Fatal(volumes[99].Err, err)
		}
	}
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
)

// Tests named TestLab… need a host with LVM and device-mapper; make lab boots one.

const mib = 1 << 20

// lvmHost is a host whose domains' disks are logical volumes.
type lvmHost struct {
	*host
	guests int // how many LVs were filled
}

func newLVMHost(t testing.TB) *lvmHost {
	t.Helper()
	labneed.LVM(t)
	labneed.Leftovers(t)
	return &lvmHost{host: emptyHost(t)}
}

// vg makes a volume group on so many disks of so many MiB, with more options of vgcreate.
func (h *lvmHost) vg(name string, disks int, sizeMiB int64, more ...string) {
	h.t.Helper()
	var pvs []string
	for range disks {
		pvs = append(pvs, labneed.Disk(h.t, sizeMiB*mib))
	}
	labneed.VG(h.t, name, append(more, pvs...)...)
	h.t.Cleanup(h.reap) // before the VG is removed
}

// reap removes the mappings of a program that was killed as its test failed.
func (h *lvmHost) reap() {
	if !h.t.Failed() {
		return
	}
	for range 5 {
		out, _ := labneed.Try("dmsetup", "info", "-c", "--noheadings", "-o", "name")
		for name := range strings.Lines(out) {
			if name = strings.TrimSpace(name); strings.HasPrefix(name, "domfs-") {
				_, _ = labneed.Try("dmsetup", "remove", name)
			}
		}
	}
}

// thick makes a linear LV and returns its device.
func (h *lvmHost) thick(vg, lv string, sizeMiB int64, more ...string) string {
	h.t.Helper()
	args := append([]string{"lvcreate", "-y", "-q", "-Wn", "-n", lv, "-L", fmt.Sprintf("%dm", sizeMiB)}, more...)
	labneed.Run(h.t, append(args, vg)...)
	return "/dev/" + vg + "/" + lv
}

// pool makes a thin pool.
func (h *lvmHost) pool(vg, pool string, sizeMiB, metadataMiB int64, more ...string) {
	h.t.Helper()
	args := []string{"lvcreate", "-y", "-q", "-T", "-L", fmt.Sprintf("%dm", sizeMiB), "--poolmetadatasize", fmt.Sprintf("%dm", metadataMiB)}
	labneed.Run(h.t, append(append(args, more...), vg+"/"+pool)...)
}

// thinPool makes a thin pool with a thin LV in it, and returns that one's device.
func (h *lvmHost) thinPool(vg, pool string, sizeMiB, metadataMiB int64, lv string, virtualMiB int64) string {
	h.t.Helper()
	h.pool(vg, pool, sizeMiB, metadataMiB, "-Wn", "-V", fmt.Sprintf("%dm", virtualMiB), "-n", lv)
	return "/dev/" + vg + "/" + lv
}

// thin makes a thin LV and returns its device.
func (h *lvmHost) thin(vg, pool, lv string, sizeMiB int64) string {
	h.t.Helper()
	labneed.Run(h.t, "lvcreate", "-y", "-q", "-Wn", "-V", fmt.Sprintf("%dm", sizeMiB), "-n", lv, "--thinpool", pool, vg)
	return "/dev/" + vg + "/" + lv
}

// ext4 puts a filesystem with a few files onto a device: etc/hostname says name, and there are
// files of some MiB altogether in data.
func (h *lvmHost) ext4(device, name string, dataMiB int) {
	h.t.Helper()
	h.guests++
	tree := filepath.Join(h.dir, "tree"+strconv.Itoa(h.guests))
	must(h.t, os.MkdirAll(tree+"/etc", 0o755))
	must(h.t, os.MkdirAll(tree+"/data", 0o755))
	must(h.t, os.WriteFile(tree+"/etc/hostname", []byte(name+"\n"), 0o644))
	block := make([]byte, mib)
	for i := range dataMiB {
		for k := range block {
			block[k] = byte(k>>8) ^ byte(i*7+1) ^ byte(k)
		}
		must(h.t, os.WriteFile(fmt.Sprintf("%s/data/%03d", tree, i), block, 0o644))
	}
	// Blocks as large as they can be: mke2fs copies the files one by one.
	labneed.Run(h.t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", name[:min(len(name), 16)], "-d", tree, device)
	must(h.t, os.RemoveAll(tree))
}

// lvs lists the host's logical volumes, hidden ones too, one a line: vg, lv and tags.
func (h *lvmHost) lvs() string {
	h.t.Helper()
	return labneed.Run(h.t, "lvs", "-a", "--noheadings", "--separator", " ", "-o", "vg_name,lv_name,lv_tags")
}

// ours are the LVs that domfs has made.
func (h *lvmHost) ours() []string {
	var out []string
	for line := range strings.Lines(h.lvs()) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "domfs-") {
			out = append(out, f[0]+"/"+f[1])
		}
	}
	return out
}

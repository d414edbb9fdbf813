package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// inUse makes the image of a filesystem as it is while it is mounted: what was changed
// last is in its journal only.
func (h *host) inUse(image string, mkfs ...string) {
	t := h.t
	t.Helper()
	path := filepath.Join(h.images, "live.img")
	command(t, "mke2fs", append(append([]string{"-q", "-F", "-t", "ext4"}, mkfs...), path, "48M")...)
	at := filepath.Join(h.dir, "live")
	must(t, os.Mkdir(at, 0o755))
	// Nothing but fsync(2) commits, so that nothing is written while the image is copied.
	must(t, h.loopMount(at, "live.img", 0, "rw,commit=300"))
	defer h.loopUnmount(t, at)
	fsync := func(path string) {
		f, err := os.Open(path)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
	must(t, os.MkdirAll(at+"/dir/deep", 0o755))
	for i := range 200 {
		must(t, os.WriteFile(fmt.Sprintf("%s/dir/%d", at, i), bytes.Repeat([]byte{byte(i)}, 50*i), 0o644))
	}
	open, err := os.Create(at + "/deleted while open")
	must(t, err)
	defer open.Close()
	_, err = open.Write(make([]byte, 100_000))
	must(t, err)
	must(t, open.Sync())
	unix.Sync()
	for i := range 100 {
		must(t, os.Remove(fmt.Sprintf("%s/dir/%d", at, i)))
		if i%10 == 0 {
			must(t, os.WriteFile(fmt.Sprintf("%s/dir/deep/new %d", at, i), []byte(strings.Repeat("new ", i)), 0o600))
			fsync(fmt.Sprintf("%s/dir/deep/new %d", at, i))
		}
	}
	must(t, unix.Setxattr(at+"/dir/150", "user.last", []byte("in the journal"), 0))
	must(t, os.Rename(at+"/dir/151", at+"/dir/deep/renamed"))
	must(t, os.Truncate(at+"/dir/199", 1234))
	must(t, os.Remove(at+"/deleted while open"))
	fsync(at + "/dir/150")
	fsync(at + "/dir/199")
	fsync(at + "/dir")
	command(t, "cp", "--sparse=always", path, filepath.Join(h.images, image))
}

// TestJournal_IsReplayedAndNothingIsWritten compares files/ with what the kernel makes of a
// copy that it mounts, and with itself after a restart.
func TestJournal_IsReplayedAndNothingIsWritten(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs")
	for name, mkfs := range map[string][]string{
		"journal":      nil,
		"fast commits": {"-O", "fast_commit"},
		"ext3's maps":  {"-O", "^extents,^metadata_csum,^64bit", "-b", "1024"},
	} {
		t.Run(name, func(t *testing.T) {
			h := emptyHost(t)
			h.inUse("vm.img", mkfs...)
			h.config("vm", "file:"+h.images+"/vm.img,xvda,w")
			image := sha256.Sum256([]byte(readFile(t, h.images+"/vm.img")))
			command(t, "cp", "--sparse=always", h.images+"/vm.img", h.images+"/recovered.img")

			m := h.mount()
			m.snapshot("vm", "s")
			got := readTree(t, m.at("snapshots/vm/s/disks/xvda/files"))
			if live := readTree(t, m.at("xenstore/vm/disks/xvda/files")); !maps.Equal(live, got) {
				t.Error("the snapshot and the disk of the domain, which is off, differ")
			}
			if said := m.read("xenstore/vm/last_error"); said != "" {
				t.Errorf("last_error: %s", said)
			}
			m.stop()

			kernel := filepath.Join(h.dir, "kernel")
			must(t, os.Mkdir(kernel, 0o755))
			must(t, h.loopMount(kernel, "recovered.img", 0, "rw,noatime"))
			want := readTree(t, kernel)
			h.loopUnmount(t, kernel)
			if _, ok := want["dir/deep/renamed"]; !ok || len(want) < 100 {
				t.Fatalf("the kernel recovers %d files, and not the last change", len(want))
			}
			for _, name := range slices.Sorted(maps.Keys(want)) {
				g, w := got[name], want[name]
				if strings.HasPrefix(w.stat, "mode 4") { // recovery itself may change a directory's times
					g.stat, _, _ = strings.Cut(g.stat, "mtime")
					w.stat, _, _ = strings.Cut(w.stat, "mtime")
				}
				if g != w {
					t.Errorf("%q\n   kernel %+v\n   domfs  %+v", name, w, g)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d files, the kernel recovers %d", len(got), len(want))
			}

			m = h.mount()
			if again := readTree(t, m.at("snapshots/vm/s/disks/xvda/files")); !maps.Equal(again, got) {
				t.Error("the snapshot looks different after a restart")
			}
			m.stop()
			if sha256.Sum256([]byte(readFile(t, h.images+"/vm.img"))) != image {
				t.Error("the image was written to")
			}
		})
	}
}

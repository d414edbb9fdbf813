package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

// qcow2Host is one domain "vm" that is off, with a partitioned qcow2 disk; below it is a chain of three files
// where chained is set.
func qcow2Host(t *testing.T, chained bool) *host {
	t.Helper()
	testneed.Tools(t, "mke2fs", "sfdisk", "qemu-img", "qemu-io")
	h := emptyHost(t)
	h.qcow2Disk(chained)
	return h
}

func (h *host) qcow2Disk(chained bool) {
	t := h.t
	t.Helper()
	tree := filepath.Join(h.dir, "tree")
	must(t, os.MkdirAll(tree+"/etc", 0o755))
	must(t, os.WriteFile(tree+"/etc/hostname", []byte("vm\n"), 0o644))
	must(t, os.WriteFile(tree+"/etc/large", bytes.Repeat([]byte("large file\n"), 200_000), 0o644))
	raw := filepath.Join(h.dir, "made.raw")
	must(t, os.WriteFile(raw, nil, 0o644))
	must(t, os.Truncate(raw, 64<<20))
	sfdisk := exec.Command("sfdisk", "-q", raw)
	sfdisk.Stdin = strings.NewReader("label: gpt\nstart=1MiB, size=40MiB, type=linux\n")
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", "offset=1048576", "-d", tree, raw, "40M")
	top := h.images + "/top.img"
	if !chained {
		command(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, top)
	} else {
		command(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, h.images+"/base.img")
		command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.img", h.images+"/mid.img")
		command(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 77 50M 100000", h.images+"/mid.img")
		command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", h.images+"/mid.img", top, "65M")
		command(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 88 52M 5000", "-c", "write -q -z 50M 64k", top)
	}
	must(t, os.Remove(raw))
	h.config("vm", "format=qcow2, vdev=xvda, access=rw, target="+top)
}

// converted is the disk as qemu-img makes a raw file of it.
func (h *host) converted() string {
	h.t.Helper()
	raw := filepath.Join(h.dir, "converted.raw")
	command(h.t, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", h.images+"/top.img", raw)
	defer os.Remove(raw)
	return readFile(h.t, raw)
}

// dataRanges are where a file has data, by lseek(2).
func dataRanges(t *testing.T, path string) (ranges []string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for off := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return ranges
		}
		must(t, err)
		off, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		must(t, err)
		ranges = append(ranges, fmt.Sprintf("%d-%d", data, off))
	}
}

// mappedRanges are the same by qemu-img's word.
func mappedRanges(t *testing.T, image string) (ranges []string) {
	t.Helper()
	var extents []struct {
		Start, Length int64
		Zero          bool
	}
	must(t, json.Unmarshal([]byte(command(t, "qemu-img", "map", "-U", "-f", "qcow2", "--output=json", image)), &extents))
	begin, end := int64(-1), int64(-1)
	for _, e := range append(extents, struct {
		Start, Length int64
		Zero          bool
	}{Zero: true}) {
		switch {
		case e.Zero && begin >= 0:
			ranges = append(ranges, fmt.Sprintf("%d-%d", begin, end))
			begin = -1
		case !e.Zero:
			if begin < 0 {
				begin = e.Start
			}
			end = e.Start + e.Length
		}
	}
	return ranges
}

func TestQcow2_IsShownAsTheGuestSeesIt(t *testing.T) {
	for _, chained := range []bool{false, true} {
		t.Run(fmt.Sprintf("chain %t", chained), func(t *testing.T) {
			h := qcow2Host(t, chained)
			m := h.mount("--image-dir=" + h.images)
			before := m.descriptors()
			want := h.converted()
			const disk = "xenstore/vm/disks/xvda"
			if got := m.read(disk + "/size"); got != fmt.Sprint(len(want)) {
				t.Errorf("size %s, and QEMU shows %d bytes", got, len(want))
			}
			if format, content := m.read(disk+"/format"), m.read(disk+"/p1/content"); format != "qcow2" || content != "ext4" {
				t.Errorf("format %q, content %q", format, content)
			}
			m.snapshot("vm", "s")
			for _, path := range []string{disk, "snapshots/vm/s/disks/xvda"} {
				// Holes first: what was read is in the page cache.
				if got, want := dataRanges(t, m.at(path, "raw")), mappedRanges(t, h.images+"/top.img"); !slices.Equal(got, want) {
					t.Errorf("%s/raw has data at %q, and QEMU says %q", path, got, want)
				}
				if readFile(t, m.at(path, "raw")) != want {
					t.Errorf("%s/raw has other bytes than QEMU", path)
				}
				if got := readFile(t, m.at(path, "p1/files/etc/hostname")); got != "vm\n" {
					t.Errorf("%s: hostname %q", path, got)
				}
				if got := readFile(t, m.at(path, "p1/files/etc/large")); got != strings.Repeat("large file\n", 200_000) {
					t.Errorf("%s: a large file has other bytes", path)
				}
				var st unix.Stat_t
				must(t, unix.Stat(m.at(path, "raw"), &st))
				if st.Size != int64(len(want)) || st.Blocks == 0 || st.Blocks*512 > st.Size/2 {
					t.Errorf("%s/raw: st_size %d, st_blocks %d", path, st.Size, st.Blocks)
				}
			}
			if got := m.read("snapshots/vm/s/disks/xvda/format"); got != "qcow2" {
				t.Errorf("the snapshot's format is %q", got)
			}
			// The guest writes; the snapshot stays as it was.
			command(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 99 55M 300000", h.images+"/top.img")
			if readFile(t, m.at("snapshots/vm/s/disks/xvda/raw")) != want {
				t.Error("the snapshot changed with its origin")
			}
			eventually(t, 2*seenLimit, "the live disk shows the change", func() bool {
				return readFile(t, m.at(disk, "raw")) == h.converted()
			})
			must(t, os.Remove(m.at("snapshots/vm/s")))
			if litter := h.litter(); len(litter) != 0 {
				t.Errorf("left: %q", litter)
			}
			m.leaves(before)
			if last := m.read("xenstore/vm/last_error"); last != "" {
				t.Errorf("last_error:\n%s", last)
			}
			m.stop()
		})
	}
}

func TestQcow2_Grows(t *testing.T) {
	h := qcow2Host(t, true)
	m := h.mount("--image-dir=" + h.images)
	before := h.converted()
	m.snapshot("vm", "s")
	must(t, m.set("xenstore/vm/disks/xvda/size", "+10M"))
	if got := m.read("xenstore/vm/disks/xvda/size"); got != fmt.Sprint(75<<20) {
		t.Errorf("size %s", got)
	}
	after := h.converted()
	if len(after) != 75<<20 || after[:len(before)] != before || strings.Trim(after[len(before):], "\x00") != "" {
		t.Errorf("%d bytes, or others than before", len(after))
	}
	if readFile(t, m.at("xenstore/vm/disks/xvda/raw")) != after {
		t.Error("raw has other bytes than QEMU")
	}
	if readFile(t, m.at("snapshots/vm/s/disks/xvda/raw")) != before {
		t.Error("the snapshot changed with its origin")
	}
	command(t, "qemu-img", "check", "-q", "-f", "qcow2", h.images+"/top.img")
	wantErrno(t, "shrink", m.set("xenstore/vm/disks/xvda/size", "10M"), unix.EPERM)
	m.stop()
}

func TestQcow2_BackingFilesAreFollowedInNamedFoldersOnly(t *testing.T) {
	h := qcow2Host(t, true)
	m := h.mount()
	_, err := os.ReadFile(m.at("xenstore/vm/disks/xvda/raw"))
	wantErrno(t, "raw", err, unix.EACCES)
	m.says("vm", unix.EACCES, "--image-dir="+h.images)
	wantErrno(t, "mkdir", os.Mkdir(m.at("snapshots/vm/s"), 0o755), unix.EACCES)
	wantErrno(t, "grow", m.set("xenstore/vm/disks/xvda/size", "+10M"), unix.EACCES)
	m.stop()
}

func TestQcow2_SnapshotSaysThatItsBackingFileIsGone(t *testing.T) {
	h := qcow2Host(t, true)
	m := h.mount("--image-dir=" + h.images)
	m.snapshot("vm", "s")
	want := readFile(t, m.at("snapshots/vm/s/disks/xvda/raw"))
	must(t, os.Rename(h.images+"/base.img", h.dir+"/base.img"))
	eventually(t, 2*seenLimit, "the snapshot is invalid", func() bool { return m.read("snapshots/vm/s/state") == "invalid" })
	_, err := os.ReadFile(m.at("snapshots/vm/s/disks/xvda/raw"))
	wantErrno(t, "raw", err, unix.EIO)
	m.says("vm", unix.EIO, h.images+"/base.img is gone")
	must(t, os.Rename(h.dir+"/base.img", h.images+"/base.img"))
	eventually(t, 2*seenLimit, "the snapshot is active again", func() bool { return m.read("snapshots/vm/s/state") == "active" })
	if readFile(t, m.at("snapshots/vm/s/disks/xvda/raw")) != want {
		t.Error("the snapshot has other bytes")
	}
	must(t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
}

func TestQcow2_OfARunningDomainShowsWhatQEMUHasWritten(t *testing.T) {
	h := loopHost(t, "mkfs.xfs", 320, "-q", "-f")
	testneed.Tools(t, "mke2fs", "sfdisk", "qemu-img", "qemu-io")
	h.qcow2Disk(true)
	m := h.mount("--image-dir=" + h.images)
	qemu := exec.Command("qemu-io", "-f", "qcow2", h.images+"/top.img")
	stdin, err := qemu.StdinPipe()
	must(t, err)
	must(t, qemu.Start())
	ended := false
	end := func() {
		if !ended {
			ended = true
			stdin.Close()
			_ = qemu.Wait()
		}
	}
	t.Cleanup(end)
	eventually(t, endLimit, "the domain runs", func() bool { return m.read("xenstore/vm/state") == "running" })
	if slices.Contains(m.names("xenstore/vm/disks/xvda/p1"), "files") {
		t.Error("a domain that runs shows files")
	}
	// Open before the clusters are allocated, read after.
	raw, err := os.Open(m.at("xenstore/vm/disks/xvda/raw"))
	must(t, err)
	defer raw.Close()
	written := func(p byte) func() bool {
		return func() bool {
			got := make([]byte, 200_000)
			if _, err := raw.ReadAt(got, 56<<20); err != nil && err != io.EOF {
				t.Log(err) // it may be caught half-way
				return false
			}
			return len(bytes.Trim(got, string([]byte{p}))) == 0
		}
	}
	fmt.Fprintln(stdin, "write -q -P 66 56M 200000\nflush")
	eventually(t, endLimit/6, "what QEMU wrote is seen through a file that was open", written(66))
	// XFS reflinks, so that it can be snapshotted while it runs.
	must(t, os.Mkdir(m.at("snapshots/vm/s"), 0o755))
	want := h.converted()
	fmt.Fprintln(stdin, "write -q -P 67 56M 200000\nflush")
	eventually(t, endLimit/6, "what QEMU wrote then is seen", written(67))
	if readFile(t, m.at("snapshots/vm/s/disks/xvda/raw")) != want {
		t.Error("the snapshot has other bytes")
	}
	wantErrno(t, "grow", m.set("xenstore/vm/disks/xvda/size", "+1M"), unix.EOPNOTSUPP)
	end()
	must(t, raw.Close())
	must(t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
}

func TestQcow2_MarkedCorruptIsToldOf(t *testing.T) {
	h := qcow2Host(t, false)
	f, err := os.OpenFile(h.images+"/top.img", os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{2}, 79) // the incompatible feature that says so
	must(t, err)
	must(t, f.Close())
	m := h.mount()
	if got := m.read("xenstore/vm/disks/xvda/p1/files/etc/hostname"); got != "vm" {
		t.Errorf("hostname %q", got)
	}
	if last := m.lastError("vm"); !strings.Contains(last, " WARNING ") || !strings.Contains(last, "corrupt") {
		t.Errorf("last_error says %q", last)
	}
	m.stop()
}

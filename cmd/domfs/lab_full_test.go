package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"domfs/backend/backendtest/labneed"

	"golang.org/x/sys/unix"
)

func number(t testing.TB, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	must(t, err)
	return n
}

// overwrite writes so many MiB over a device, from an offset.
func overwrite(t testing.TB, device string, fromMiB, sizeMiB int64) error {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	block := bytes.Repeat([]byte("scribble"), mib/8)
	for i := range sizeMiB {
		if _, err = f.WriteAt(block, (fromMiB+i)*mib); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// A snapshot that has no room left is invalid, and every read of it ends in an error.
func TestLab_OverflowDuringATarEndsItLoudly(t *testing.T) {
	h := newLVMHost(t)
	h.vg("vg", 1, 512)
	dev := h.thick("vg", "a", 96)
	h.ext4(dev, "a", 12) // more than what the kernel and tar read ahead
	h.config("vm", "phy:"+dev+",xvda,w")
	m := h.mount("--snapshot-size=8M", "--autoextend=none")
	m.snapshot("vm", "s")
	snap := "snapshots/vm/s/"
	files := m.at(snap, "disks/xvda/files")

	// Begun before: a file of which a part was read, one that was read whole and so is in the
	// kernel's cache, the raw bytes, and a tar that is stopped in its middle by who reads it.
	half, err := os.Open(files + "/data/000")
	must(t, err)
	defer half.Close()
	_, err = io.ReadFull(half, make([]byte, 4096))
	must(t, err)
	cached, err := os.Open(files + "/etc/hostname")
	must(t, err)
	defer cached.Close()
	_, err = io.ReadAll(cached)
	must(t, err)
	raw, err := os.Open(m.at(snap, "disks/xvda/raw"))
	must(t, err)
	defer raw.Close()
	_, err = io.ReadFull(raw, make([]byte, 4096))
	must(t, err)
	tar := exec.Command("tar", "-C", files, "-cf", "-", ".")
	var said bytes.Buffer
	tar.Stderr = &said
	out, err := tar.StdoutPipe()
	must(t, err)
	must(t, tar.Start())
	_, err = io.ReadFull(out, make([]byte, 2*mib))
	must(t, err)

	must(t, overwrite(t, dev, 40, 32))
	eventually(t, endLimit, "state says invalid", func() bool { return m.read(snap+"state") == "invalid" })

	_, err = io.Copy(io.Discard, out)
	must(t, err)
	if err := tar.Wait(); err == nil || !strings.Contains(said.String(), "Input/output error") {
		t.Errorf("tar ended with %v, saying %q", err, said.String())
	}
	for name, f := range map[string]*os.File{"a file read in part": half, "a file read before": cached, "raw": raw} {
		if n, err := f.ReadAt(make([]byte, 512), 0); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
	for _, name := range []string{"disks/xvda/raw", "disks/xvda/files/etc/hostname", "disks/xvda/files/data/011", "disks/xvda/content"} {
		if b, err := os.ReadFile(m.at(snap, name)); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if got := m.lastError("vm"); !strings.Contains(got, "invalid") {
		t.Errorf("last_error says %q", got)
	}
	if got := m.read(snap + "disks/xvda/fill"); !strings.HasPrefix(got, "100") {
		t.Errorf("fill is %q", got)
	}
	for _, f := range []*os.File{half, cached, raw} {
		f.Close()
	}
	// The domain itself is as it was, and another snapshot can be made.
	m.snapshot("vm", "t")
	must(t, os.Remove(m.at("snapshots/vm/s")))
	must(t, os.Remove(m.at("snapshots/vm/t")))
	m.stop()
}

// The guard extends the reserve of a thick snapshot that fills up, twice, in its own time. Meanwhile the pools of other domains are filled: what has no
// room in them is refused before anything is touched.
func TestLab_SpaceThatRunsOutIsExtendedOrRefused(t *testing.T) {
	h := newLVMHost(t)
	h.vg("vg", 1, 512, "--physicalextentsize", "1m") // so that a pool can have as little metadata as LVM takes
	dev := h.thick("vg", "a", 96)
	h.ext4(dev, "a", 1)
	h.config("vm", "phy:"+dev+",xvda,w")
	for _, full := range []string{"data", "metadata"} {
		thin := h.thinPool("vg", full, 64, 2, "of-"+full, 128)
		h.ext4(thin, full, 1)
		h.config(full, "phy:"+thin+",xvda,w")
	}
	m := h.mount("--snapshot-size=8M", "--autoextend=50:50")
	m.snapshot("vm", "s")
	disk := "snapshots/vm/s/disks/xvda/"
	before := number(t, m.read(disk+"reserve"))
	must(t, overwrite(t, dev, 16, 5))
	t.Run("a pool without room for data", func(t *testing.T) { h.within(t).refusedIn("data", m, (*lvmHost).fillData) })
	eventually(t, endLimit, "the reserve is extended", func() bool { return number(t, m.read(disk+"reserve")) > before })
	must(t, overwrite(t, dev, 40, 3))
	t.Run("a pool without room for metadata", func(t *testing.T) { h.within(t).refusedIn("metadata", m, (*lvmHost).fillMetadata) })
	eventually(t, endLimit, "the reserve is extended again", func() bool { return number(t, m.read(disk+"reserve")) >= before*2 })
	if got := m.read("snapshots/vm/s/state"); got != "active" {
		t.Errorf("the snapshot is %s", got)
	}
	if got := m.read(disk + "files/etc/hostname"); got != "a" {
		t.Errorf("hostname is %q", got)
	}
	must(t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
}

// refusedIn fills the pool of the domain of its name with what that is named after, and makes snapshots of it before and then.
func (h *lvmHost) refusedIn(full string, m *mount, fill func(h *lvmHost, pool string)) {
	t := h.t
	m.snapshot(full, "before")
	fill(h, full)
	lvs := h.lvs()
	err := os.Mkdir(m.at("snapshots", full, "s"), 0o755)
	// A warning of the guard's may have come after it.
	if said := m.read("xenstore/" + full + "/last_error"); !errors.Is(err, unix.ENOSPC) || !strings.Contains(said, "the "+full+" of thin pool vg/"+full+" is") {
		t.Errorf("a snapshot in a pool without room for %s: %v: %s", full, err, said)
	}
	if now := h.lvs(); now != lvs {
		t.Errorf("the LVs were\n%s\nand are\n%s", lvs, now)
	}
	if free := number(t, m.read("stores/vg:"+full+"/metadata_free")); full == "metadata" && free > 2*mib/10 {
		t.Errorf("metadata_free is %d", free)
	}
	// What was made before is whole.
	if got := m.read("snapshots/" + full + "/before/disks/xvda/files/etc/hostname"); got != full {
		t.Errorf("hostname is %q", got)
	}
	must(t, os.Remove(m.at("snapshots", full, "before")))
}

// percent is how much of a pool's metadata and of its data is in use.
func (h *lvmHost) percent(pool string) (metadata, data float64) {
	h.t.Helper()
	var begin, length, transaction int64
	var used, all [2]float64
	status := labneed.Run(h.t, "dmsetup", "status", "vg-"+pool+"-tpool")
	_, err := fmt.Sscanf(status, "%d %d thin-pool %d %f/%f %f/%f", &begin, &length, &transaction, &used[0], &all[0], &used[1], &all[1])
	if err != nil {
		h.t.Fatalf("dmsetup says %q: %v", status, err)
	}
	return used[0] / all[0] * 100, used[1] / all[1] * 100
}

// fillData writes to a thin volume until hardly any room is left for the pool's data, and some is.
func (h *lvmHost) fillData(pool string) {
	h.t.Helper()
	filler := h.thin("vg", pool, "filler", 128)
	step := int64(8)
	for at := int64(0); at < 128; at += step {
		_, used := h.percent(pool)
		if used >= 96 {
			return
		}
		if used > 80 {
			step = 1
		}
		must(h.t, overwrite(h.t, filler, at, step))
	}
	h.t.Fatal("the data do not fill up")
}

// fillMetadata makes volumes that LVM knows nothing of, each with a tree of its own, until hardly any room is left for the pool's
// metadata, and some is.
func (h *lvmHost) fillMetadata(pool string) {
	h.t.Helper()
	const firstID = 1 << 20 // LVM counts from 1
	step := 64
	for id := firstID; id < firstID+1<<10; {
		used, _ := h.percent(pool)
		if used >= 93 {
			return
		}
		if used > 70 {
			step = 8
		}
		for range step {
			message(h.t, "vg-"+pool+"-tpool", fmt.Sprintf("create_thin %d", id))
			id++
		}
	}
	h.t.Fatal("the metadata do not fill up")
}

// message does as dmsetup message does, in no process of its own.
func message(t testing.TB, device, text string) {
	t.Helper()
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	head := unix.DmIoctl{Version: [3]uint32{4, 0, 0}, Data_start: uint32(unsafe.Sizeof(unix.DmIoctl{}))}
	copy(head.Name[:len(head.Name)-1], device)
	body := append(make([]byte, unsafe.Sizeof(unix.DmTargetMsg{})), text+"\x00"...) // for the sector 0
	head.Data_size = head.Data_start + uint32(len(body))
	request := append(unsafe.Slice((*byte)(unsafe.Pointer(&head)), head.Data_start), body...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.DM_TARGET_MSG, uintptr(unsafe.Pointer(&request[0]))); errno != 0 {
		t.Fatalf("message %s %q: %v", device, text, errno)
	}
}

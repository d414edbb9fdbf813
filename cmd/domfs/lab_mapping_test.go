package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"domfs/backend/backendtest/labneed"
)

// differ says where the bytes of two files or devices do; "" if they are equal, and there are some.
func differ(t testing.TB, one, other string) string {
	t.Helper()
	a, err := os.Open(one)
	must(t, err)
	defer a.Close()
	b, err := os.Open(other)
	must(t, err)
	defer b.Close()
	p, q := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		n, errA := io.ReadFull(a, p)
		k, errB := io.ReadFull(b, q)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatal(err)
			}
		}
		switch {
		case !bytes.Equal(p[:n], q[:k]):
			return fmt.Sprintf("from %d on, where they have %d and %d bytes", off, n, k)
		case off == 0 && n == 0:
			return "they have no bytes"
		case errA != nil:
			return ""
		}
	}
}

// guestHost is a domain "vm" whose disk was installed on LVM.
func guestHost(t testing.TB) (h *lvmHost, template string) {
	t.Helper()
	h = newLVMHost(t)
	template = guestTemplate(t)
	h.vg("hostvg", 1, 512)
	dev := h.thick("hostvg", "vm", guestDiskMiB)
	fill(t, template, dev)
	h.config("vm", "phy:"+dev+",xvda,w")
	return h, template
}

// The tree, kpartx, device-mapper, lsblk and LVM itself say the same.
func TestLab_MappingsAreWhatTheToolsSay(t *testing.T) {
	h, template := guestHost(t)
	clean := h.machine()
	m := h.mount()
	m.snapshot("vm", "s")
	snap := "snapshots/vm/s/"
	if got := m.read(snap + "mapped"); got != "1" {
		t.Errorf("mapped is %q", got)
	}
	whole, err := filepath.EvalSymlinks(m.at(snap, "disks/xvda/device"))
	must(t, err)
	kpartx := labneed.Run(t, "kpartx", "-l", "-r", whole)
	if got := strings.Count(kpartx, "\n") + 1; got != 2 {
		t.Errorf("kpartx -l says\n%s", kpartx)
	}
	volumes := []string{"disks/xvda", "disks/xvda/p1", "disks/xvda/p2", "lvm/vg0/root", "lvm/vg0/home", "lvm/vg0/swap"}
	for _, v := range volumes {
		dir := m.at(snap, v)
		device, err := filepath.EvalSymlinks(dir + "/device")
		if err != nil {
			t.Errorf("%s: %v", v, err)
			continue
		}
		if got, want := labneed.Run(t, "blockdev", "--getro", "--getsize64", device), "1\n"+m.read(snap+v+"/size"); got != want {
			t.Errorf("%s: blockdev says %q, want %q", v, got, want)
		}
		if got := labneed.Run(t, "lsblk", "--nodeps", "--noheadings", "--bytes", "--output", "RO,SIZE", device); strings.Join(strings.Fields(got), " ") != "1 "+m.read(snap+v+"/size") {
			t.Errorf("%s: lsblk says %q", v, got)
		}
		if where := differ(t, device, dir+"/raw"); where != "" {
			t.Errorf("%s: the device and raw differ: %s", v, where)
		}
		// libblkid looks into no device that is hidden from LVM.
		if got := m.read(snap + v + "/content"); got != "LVM2_member" {
			key := "TYPE"
			if got == "dos" {
				key = "PTTYPE"
			}
			if want := labneed.Run(t, "blkid", "-p", "-o", "value", "-s", key, device); got != want {
				t.Errorf("%s: content is %q, blkid says %q", v, got, want)
			}
		}
	}
	// What LVM itself shows of a copy that it activates.
	copied := labneed.File(t, guestDiskMiB*mib)
	fill(t, template, copied)
	pv := labneed.Attach(t, copied, "--offset", fmt.Sprint(guestPV), "--sizelimit", fmt.Sprint(guestPVSize))
	labneed.Settle(t)
	labneed.Run(t, "vgchange", "-q", "-ay", guestVG)
	for _, lv := range []string{"root", "home", "swap"} {
		if where := differ(t, "/dev/"+guestVG+"/"+lv, m.at(snap, "lvm/vg0", lv, "raw")); where != "" {
			t.Errorf("%s: what LVM and domfs show differs: %s", lv, where)
		}
	}
	where := t.TempDir()
	labneed.Run(t, "mount", "-o", "ro,noload", "/dev/"+guestVG+"/root", where)
	out, err := exec.Command("diff", "-r", where, m.at(snap, "lvm/vg0/root/files")).CombinedOutput()
	labneed.Run(t, "umount", where)
	if err != nil {
		t.Errorf("the files differ from what the kernel shows: %s", out)
	}
	labneed.Deactivate(t, guestVG)
	labneed.Detach(t, pv)

	must(t, m.set(snap+"mapped", "0"))
	for _, v := range volumes {
		if _, err := os.Lstat(m.at(snap, v, "device")); !os.IsNotExist(err) {
			t.Errorf("%s has a device after all: %v", v, err)
		}
	}
	if got := m.read(snap + "lvm/vg0/root/files/etc/hostname"); got != "guest" {
		t.Errorf("without mappings hostname is %q", got)
	}
	must(t, m.set(snap+"mapped", "1"))
	must(t, os.Remove(m.at(snap)))
	m.stop()
	if now := h.machine(); now != clean {
		t.Errorf("the machine was\n%s\nand is\n%s", clean, now)
	}
}

func TestLab_TheHostsLVMNeverSeesAGuests(t *testing.T) {
	h, _ := guestHost(t)
	m := h.mount()
	ctx, stop := context.WithCancel(context.Background())
	var seen bytes.Buffer
	var rounds int
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for _, tool := range [][]string{{"pvs", "--noheadings", "-a", "-o", "vg_name"}, {"vgs", "--noheadings"}, {"lvs", "--noheadings"}} {
				out, err := exec.CommandContext(ctx, tool[0], tool[1:]...).CombinedOutput()
				if ctx.Err() != nil {
					return
				}
				time.Sleep(100 * time.Millisecond) // the machine has other work, too
				if err != nil || strings.Contains(string(out), guestVG) || strings.Contains(strings.ToLower(string(out)), "duplicate") {
					fmt.Fprintf(&seen, "%s: %v\n%s", tool[0], err, out)
				}
			}
			rounds++
		}
	})
	for round := range 2 {
		t.Logf("round %d", round)
		m.snapshot("vm", "s")
		if got := m.read("snapshots/vm/s/mapped"); got != "1" {
			t.Errorf("mapped is %q", got)
		}
		labneed.Run(t, "udevadm", "trigger", "--subsystem-match=block", "--sysname-match=dm-*", "--action=change")
		labneed.Settle(t)
		labneed.Run(t, "vgchange", "-q", "-aay") // as at boot
		must(t, os.Remove(m.at("snapshots/vm/s")))
	}
	stop()
	wg.Wait()
	if seen.Len() > 0 || rounds == 0 {
		t.Errorf("in %d rounds the host saw:\n%s", rounds, &seen)
	}
	m.stop()
}

func TestLab_MappingsOfADaemonThatDiedAreReaped(t *testing.T) {
	h, _ := guestHost(t)
	clean := h.machine()
	m := h.mount()
	m.snapshot("vm", "s")
	if got := m.read("snapshots/vm/s/mapped"); got != "1" {
		t.Errorf("mapped is %q", got)
	}
	must(t, m.cmd.Process.Kill())
	<-m.done
	m.clear()
	m = h.mount()
	if got := m.read("snapshots/vm/s/mapped"); got != "0" {
		t.Errorf("after a crash mapped is %q", got)
	}
	must(t, os.Remove(m.at("snapshots/vm/s")))
	m.stop()
	if now := h.machine(); now != clean {
		t.Errorf("the machine was\n%s\nand is\n%s", clean, now)
	}
}

// The numbers of partitions are those that the kernel gives them.
func TestLab_PartitionNumbersAreTheKernels(t *testing.T) {
	h := newLVMHost(t)
	devices := map[string]string{}
	for name, script := range map[string]string{
		"gpt":      `label: gpt\nsize=4MiB\nsize=4MiB\nname=x,size=4MiB\n`,
		"gptgaps":  `label: gpt\n2: size=4MiB\n7: size=4MiB\n128: size=4MiB\n`,
		"dos":      `label: dos\nsize=4MiB\nsize=4MiB\n`,
		"logical":  `label: dos\n1: size=4MiB\n2: size=40MiB,type=5\n5: size=4MiB\n6: size=4MiB\n7: size=4MiB\n4: size=4MiB\n`,
		"extended": `label: dos\n1: size=40MiB,type=f\n5: size=4MiB\n6: size=4MiB\n`,
	} {
		file := filepath.Join(h.images, name+".img")
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Truncate(file, 64*mib))
		labneed.Run(t, "sh", "-c", `printf "$2" | sfdisk -q "$1"`, "sh", file, script)
		h.config(name, "file:"+file+",xvda,w")
		devices[name] = file
	}
	m := h.mount()
	for name, file := range devices {
		loop := labneed.Attach(t, file, "--partscan", "--read-only")
		labneed.Settle(t)
		paths, err := filepath.Glob("/sys/block/" + filepath.Base(loop) + "/*/partition")
		must(t, err)
		if len(paths) < 2 {
			t.Fatalf("%s: the kernel sees %q", name, paths)
		}
		want := map[string]string{}
		for _, path := range paths {
			sectors := number(t, strings.TrimSpace(readFile(t, filepath.Join(filepath.Dir(path), "size"))))
			want["p"+strings.TrimSpace(readFile(t, path))] = fmt.Sprint(sectors * 512)
		}
		got := map[string]string{}
		for _, n := range m.names("xenstore/" + name + "/disks/xvda") {
			if len(n) > 1 && n[0] == 'p' {
				got[n] = m.read("xenstore/" + name + "/disks/xvda/" + n + "/size")
			}
		}
		// The kernel gives an extended partition two sectors, for its boot loader; domfs shows none.
		for n, size := range want {
			if size != "1024" && got[n] != size {
				t.Errorf("%s: the kernel's %s has %s bytes, domfs shows %q", name, n, size, got[n])
			}
		}
		for n := range got {
			if want[n] == "" {
				t.Errorf("%s: the kernel has no %s", name, n)
			}
		}
		labneed.Detach(t, loop)
	}
	m.stop()
}

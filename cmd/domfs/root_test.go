package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"domfs/backend/backendtest/testneed"

	"golang.org/x/sys/unix"
)

const (
	rootUUID = "7c5ea59f-65f2-4b15-8f52-0a11d1b0a101"
	homeUUID = "7c5ea59f-65f2-4b15-8f52-0a11d1b0a102"
	logUUID  = "7c5ea59f-65f2-4b15-8f52-0a11d1b0a103"
)

// guestFilesystem is a filesystem of the guest, made in a file of its own, which the kernel mounts.
type guestFilesystem struct {
	name, at, uuid string
	mibs           int64
}

var guestFilesystems = []guestFilesystem{{"root", "", rootUUID, 48}, {"home", "home", homeUUID, 24}, {"log", "var/log", logUUID, 16}}

// mountGuest mounts the filesystems as the guest would.
func (h *host) mountGuest(how string) (at string) {
	h.t.Helper()
	at = filepath.Join(h.dir, "kernel")
	must(h.t, os.MkdirAll(at, 0o755))
	for _, fs := range guestFilesystems {
		must(h.t, h.loopMount(filepath.Join(at, fs.at), fs.name+".ext4", 0, how))
	}
	return at
}

func (h *host) unmountGuest(t testing.TB, at string) {
	for _, fs := range slices.Backward(guestFilesystems) {
		eventually(t, endLimit, "the kernel's mount ends", func() bool { return exec.Command("umount", filepath.Join(at, fs.at)).Run() == nil })
	}
	for _, fs := range guestFilesystems {
		h.awaitNoLoop(t, filepath.Join(h.images, fs.name+".ext4"))
	}
}

// awaitNoLoop waits for the kernel to let go of a file.
func (h *host) awaitNoLoop(t testing.TB, file string) {
	eventually(t, endLimit, "the loop device of "+file+" ends", func() bool {
		out, err := exec.Command("losetup", "-j", file).Output()
		return err == nil && len(bytes.TrimSpace(out)) == 0
	})
}

// makeGuest fills the guest's filesystems, as mounted, with files of all kinds.
func (h *host) makeGuest(fstab string) {
	t := h.t
	for _, fs := range guestFilesystems {
		command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", fs.name, "-U", fs.uuid, h.images+"/"+fs.name+".ext4", fmt.Sprintf("%dM", fs.mibs))
	}
	at := filepath.Join(h.dir, "kernel")
	must(t, os.MkdirAll(at, 0o755))
	must(t, h.loopMount(at, "root.ext4", 0, "rw"))
	for name, text := range map[string]string{"etc/fstab": fstab, "etc/hostname": "vm\n", "home/below": "hidden by /home\n", "var/log/below": "hidden by /var/log\n"} {
		must(t, os.MkdirAll(filepath.Join(at, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(at, name), []byte(text), 0o644))
	}
	h.loopUnmount(t, at)
	h.awaitNoLoop(t, h.images+"/root.ext4")
	h.mountGuest("rw")
	defer h.unmountGuest(t, at)
	for i, dir := range []string{at + "/srv", at + "/home/alice", at + "/var/log"} {
		must(t, os.MkdirAll(dir, 0o2750))
		must(t, os.WriteFile(dir+"/one", bytes.Repeat([]byte{byte('a' + i)}, 100_000), 0o640))
		must(t, os.Link(dir+"/one", dir+"/two"))
		must(t, os.Symlink("../etc/hostname", dir+"/link"))
		must(t, os.Mkdir(dir+"/many", 0o755))
		for j := range 300 {
			must(t, os.WriteFile(fmt.Sprintf("%s/many/%d", dir, j), []byte(strconv.Itoa(j)), 0o600))
		}
		f, err := os.Create(dir + "/holes")
		must(t, err)
		_, err = f.WriteAt([]byte("after a hole"), 3<<20)
		must(t, err)
		must(t, f.Close())
		must(t, os.Chown(dir, 1000+i, 2000+i))
		must(t, unix.Mknod(dir+"/device", unix.S_IFCHR|0o660, int(unix.Mkdev(1, 3))))
		must(t, unix.Setxattr(dir, "user.of", []byte(dir), 0))
		command(t, "setfacl", "-m", "u:1234:rw", dir+"/one")
	}
	must(t, os.Chmod(at+"/home", 0o711))
	must(t, unix.Setxattr(at, "user.of", []byte("the root"), 0))
}

// place writes a filesystem's bytes from off on into a disk.
func (h *host) place(disk string, seek int64, fs string, skip, length int64) {
	h.t.Helper()
	const extent = 1 << 20
	command(h.t, "dd", "if="+h.images+"/"+fs+".ext4", "of="+h.images+"/"+disk, "bs=1M", "conv=notrunc,sparse", "status=none",
		fmt.Sprintf("seek=%d", seek/extent), fmt.Sprintf("skip=%d", skip/extent), fmt.Sprintf("count=%d", length/extent))
}

// partitionsGuest puts the filesystems on partitions.
func (h *host) partitionsGuest() {
	h.makeGuest("PARTUUID=5d0c9a5e-6b3e-4c55-8c51-2e1d6a6e0b11 / ext4 errors=remount-ro 0 1\n" +
		"/dev/sda3 /var/log ext4 defaults 0 2\nLABEL=home /home auto defaults 0 2\nproc /proc proc defaults 0 0\n")
	disk := filepath.Join(h.images, "a.img")
	must(h.t, os.WriteFile(disk, nil, 0o600))
	must(h.t, os.Truncate(disk, 96<<20))
	table := exec.Command("sfdisk", "-q", disk)
	table.Stdin = strings.NewReader("label: gpt\nstart=1MiB, size=48MiB, uuid=5D0C9A5E-6B3E-4C55-8C51-2E1D6A6E0B11\nsize=24MiB\nsize=16MiB\n")
	if out, err := table.CombinedOutput(); err != nil {
		h.t.Fatalf("sfdisk: %v: %s", err, out)
	}
	at := int64(1 << 20)
	for _, fs := range guestFilesystems {
		h.place("a.img", at, fs.name, 0, fs.mibs<<20)
		at += fs.mibs << 20
	}
	h.config("vm", "file:"+disk+",xvda,w")
}

// volumesGuest puts them on logical volumes over two disks, the root and home in two pieces each.
func (h *host) volumesGuest() {
	t := h.t
	h.makeGuest("/dev/mapper/vg--0-root / ext4 errors=remount-ro 0 1\nUUID=" + homeUUID + " /home ext4 defaults 0 2\n/dev/vg-0/log /var/log ext4 defaults 0 2\n")
	disks := map[string]int64{} // the physical volumes, by their loop devices, and where they begin
	names := map[string]string{}
	for _, name := range []string{"a.img", "b.img"} {
		disk := filepath.Join(h.images, name)
		must(t, os.WriteFile(disk, nil, 0o600))
		must(t, os.Truncate(disk, 104<<20))
		offset := int64(0)
		if name == "a.img" { // on a partition; the other is the whole disk
			offset = 8 << 20
			table := exec.Command("sfdisk", "-q", disk)
			table.Stdin = strings.NewReader("label: dos\nstart=8MiB, type=8e\n")
			if out, err := table.CombinedOutput(); err != nil {
				t.Fatalf("sfdisk: %v: %s", err, out)
			}
		}
		out, err := exec.Command("losetup", "--find", "--show", "--offset", strconv.FormatInt(offset, 10), disk).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		loop := strings.TrimSpace(string(out))
		defer func() {
			command(t, "losetup", "--detach", loop)
			h.awaitNoLoop(t, disk)
		}()
		disks[loop], names[loop] = offset, name
	}
	loops := slices.Sorted(maps.Keys(disks))
	lvm := func(args ...string) string {
		t.Helper()
		filter := `"a|^` + strings.Join(loops, `$|","a|^`) + `$|","r|.*|"`
		config := "devices { filter=[" + filter + "] global_filter=[" + filter + "] use_devicesfile=0 hints=\"none\" } backup { backup=0 archive=0 } activation { udev_sync=0 udev_rules=0 }"
		return command(t, args[0], append([]string{"--driverloaded", "n", "--config", config}, args[1:]...)...)
	}
	lvm(append([]string{"pvcreate", "-q", "-y", "-ff"}, loops...)...)
	lvm(append([]string{"vgcreate", "-q", "-y", "vg-0"}, loops...)...)
	for _, made := range [][2]string{{"root", "24M"}, {"home", "12M"}, {"log", "16M"}} {
		lvm("lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-L", made[1], "-n", made[0], "vg-0")
	}
	lvm("lvextend", "-q", "-y", "-L", "+24M", "vg-0/root", loops[0])
	lvm("lvextend", "-q", "-y", "-L", "+12M", "vg-0/home", loops[1])
	// LVM itself says where the volumes lie.
	for line := range strings.Lines(lvm("pvs", "--noheadings", "--segments", "--units", "b", "--nosuffix", "--separator", ",",
		"-o", "lv_name,pv_name,seg_start,pvseg_start,pvseg_size,pe_start,vg_extent_size")) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) != 7 || f[0] == "" {
			continue
		}
		n := func(i int) int64 {
			v, err := strconv.ParseInt(f[i], 10, 64)
			must(t, err)
			return v
		}
		extent := n(6)
		h.place(names[f[1]], disks[f[1]]+n(5)+n(3)*extent, f[0], n(2), n(4)*extent)
	}
	h.config("vm", "file:"+h.images+"/a.img,xvda,w", "file:"+h.images+"/b.img,xvdb,w")
}

func TestRoot_IsWhatTheKernelShowsOfTheSameMounts(t *testing.T) {
	testneed.Loop(t)
	testneed.Tools(t, "mke2fs", "sfdisk", "setfacl", "tar", "pvcreate", "losetup", "dd")
	for name, make := range map[string]func(h *host){"partitions": (*host).partitionsGuest, "volumes": (*host).volumesGuest} {
		t.Run(name, func(t *testing.T) {
			h := emptyHost(t)
			make(h)
			m := h.mount()
			m.snapshot("vm", "s")
			kernel := h.mountGuest("ro")
			defer h.unmountGuest(t, kernel)
			want := readTree(t, kernel)
			if len(want) < 900 || want["home/below"] != (file{}) {
				t.Fatalf("the kernel shows %d files", len(want))
			}
			for _, top := range []string{"snapshots/vm/s", "xenstore/vm"} {
				root := m.at(top, "root")
				got := readTree(t, root)
				differences := 0
				for _, name := range slices.Sorted(maps.Keys(want)) {
					if got[name] != want[name] && differences < 10 {
						differences++
						t.Errorf("%s: %q\n   kernel %+v\n   domfs  %+v", top, name, want[name], got[name])
					}
				}
				if len(got) != len(want) {
					t.Errorf("%s has %d files, the kernel shows %d", top, len(got), len(want))
				}
				sum := func(dir string) string {
					return command(t, "sh", "-c", `tar -C "$1" --sort=name --numeric-owner --xattrs --acls --pax-option=exthdr.name=%d/PaxHeaders/%f -cf - . | sha256sum`, "sh", dir)
				}
				if a, b := sum(root), sum(kernel); a != b {
					t.Errorf("%s: tar of it is %s, of the kernel's mount %s", top, a, b)
				}
				var a, b unix.Statfs_t
				for _, fs := range guestFilesystems {
					must(t, unix.Statfs(filepath.Join(root, fs.at), &a))
					must(t, unix.Statfs(filepath.Join(kernel, fs.at), &b))
					if a.Blocks != b.Blocks || a.Files != b.Files {
						t.Errorf("statfs of %s: %+v, of the kernel's mount %+v", fs.name, a, b)
					}
				}
			}
			if last := m.read("xenstore/vm/last_error"); last != "" {
				t.Errorf("last_error: %s", last)
			}
			if name == "volumes" {
				if got := m.names("snapshots/vm/s/lvm/vg-0"); !slices.Equal(got, []string{"home", "log", "root"}) {
					t.Errorf("the group has %q", got)
				}
				for _, fs := range guestFilesystems {
					raw := m.at("snapshots/vm/s/lvm/vg-0", fs.name, "raw")
					if out, err := exec.Command("cmp", raw, h.images+"/"+fs.name+".ext4").CombinedOutput(); err != nil {
						t.Errorf("raw of %s: %s", fs.name, out)
					}
				}
			}
			m.stop()
		})
	}
}

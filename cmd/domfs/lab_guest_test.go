package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"domfs/backend/backendtest/labneed"
)

// The disk of a guest that was installed on LVM: a partition for /boot, another one for the
// volume group guestVG with root and home.
const (
	guestVG       = "vg0"
	guestDiskMiB  = 64
	guestBoot     = 1 * mib // where it begins
	guestBootSize = 8 * mib
	guestPV       = guestBoot + guestBootSize
	guestPVSize   = guestDiskMiB*mib - guestPV - mib
	guestFstab    = `# <file system> <mount point> <type> <options> <dump> <pass>
/dev/mapper/vg0-root / ext4 errors=remount-ro 0 1
LABEL=boot /boot ext4 defaults 0 2
/dev/vg0/home /home ext4 defaults 0 2
/dev/vg0/swap none swap sw 0 0
`
)

// guestImage is what guestTemplate has made; empty before.
var guestImage string

// guestTemplate is the disk's image, made with LVM itself when it is first asked for. No VG called guestVG may exist
// then, and nobody may write to it.
func guestTemplate(t testing.TB) (file string) {
	t.Helper()
	if guestImage == "" {
		made := makeGuest(t)
		kept := filepath.Join(built, "guest.img")
		must(t, os.Rename(made, kept))
		guestImage = kept
	}
	return guestImage
}

func makeGuest(t testing.TB) (file string) {
	t.Helper()
	file = labneed.File(t, guestDiskMiB*mib)
	table := filepath.Join(t.TempDir(), "table")
	must(t, os.WriteFile(table, fmt.Appendf(nil, "label: dos\nstart=%d, size=%d, type=83\nstart=%d, size=%d, type=8e\n",
		guestBoot/512, guestBootSize/512, guestPV/512, guestPVSize/512), 0o644))
	labneed.Run(t, "sh", "-c", `exec sfdisk -q "$1" < "$2"`, "sfdisk", file, table)

	boot := labneed.Attach(t, file, "--offset", fmt.Sprint(guestBoot), "--sizelimit", fmt.Sprint(guestBootSize))
	mkfs(t, boot, "boot", map[string]string{"vmlinuz": "a kernel\n"})
	labneed.Detach(t, boot)

	pv := labneed.Attach(t, file, "--offset", fmt.Sprint(guestPV), "--sizelimit", fmt.Sprint(guestPVSize))
	labneed.Run(t, "pvcreate", "-q", "-y", pv)
	labneed.Run(t, "vgcreate", "-q", "-s", "1m", guestVG, pv)
	for _, lv := range [][2]string{{"root", "24m"}, {"home", "16m"}, {"swap", "4m"}} {
		labneed.Run(t, "lvcreate", "-q", "-y", "-n", lv[0], "-L", lv[1], guestVG)
	}
	mkfs(t, "/dev/"+guestVG+"/root", "root", map[string]string{"etc/hostname": "guest\n", "etc/fstab": guestFstab, "boot/under": "hidden\n", "home/.keep": "", "data/file": strings.Repeat("data ", 1<<18)})
	mkfs(t, "/dev/"+guestVG+"/home", "home", map[string]string{"alice/notes": "mine\n"})
	labneed.Run(t, "mkswap", "-q", "/dev/"+guestVG+"/swap")
	labneed.Deactivate(t, guestVG)
	labneed.Detach(t, pv)
	return file
}

// mkfs puts an ext4 with files onto a device.
func mkfs(t testing.TB, device, label string, files map[string]string) {
	t.Helper()
	tree, err := os.MkdirTemp(t.TempDir(), "tree")
	must(t, err)
	for name, text := range files {
		path := filepath.Join(tree, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	labneed.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", tree, device)
}

// fill copies a disk's image onto a device, or a file, that reads as zeroes.
func fill(t testing.TB, image, device string) {
	t.Helper()
	labneed.Run(t, "dd", "if="+image, "of="+device, "bs=64K", "conv=notrunc,sparse,fsync", "status=none")
}

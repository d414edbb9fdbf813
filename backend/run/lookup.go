package run

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// path is where programs are looked for, whatever our own PATH says.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// packages are the Debian packages of the tools that drivers use.
var packages = map[string]string{
	"blkid": "util-linux", "losetup": "mount", "blockdev": "util-linux", "fsfreeze": "util-linux",
	"lvm": "lvm2", "lvs": "lvm2", "vgs": "lvm2", "pvs": "lvm2", "lvcreate": "lvm2", "lvremove": "lvm2", "lvchange": "lvm2",
	"lvextend": "lvm2", "lvresize": "lvm2", "lvrename": "lvm2", "lvconvert": "lvm2", "dmsetup": "dmsetup",
	"kpartx": "kpartx", "thin_check": "thin-provisioning-tools", "thin_delta": "thin-provisioning-tools", "thin_dump": "thin-provisioning-tools",
	"xl": "xen-utils-common", "xenstore": "xenstore-utils", "xenstore-ls": "xenstore-utils", "xenstore-read": "xenstore-utils", "xenstore-write": "xenstore-utils",
	"virsh": "libvirt-clients", "qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils", "qemu-storage-daemon": "qemu-system-common",
	"cryptsetup": "cryptsetup-bin", "mdadm": "mdadm", "udevadm": "udev", "fusermount3": "fuse3",
	"gluster": "glusterfs-cli", "rbd": "ceph-common", "drbdadm": "drbd-utils", "iscsiadm": "open-iscsi",
}

// Installed says why a program cannot be run by its name, nil if it can.
func Installed(name string) error {
	_, err := lookup(name)
	return err
}

// lookup finds the file of a program.
func lookup(name string) (string, error) {
	switch {
	case name == "" || strings.ContainsRune(name, 0):
		return "", fmt.Errorf("%q is no program's name: %w", name, backend.ErrInvalid)
	case filepath.IsAbs(name):
		return name, executable(name)
	case strings.Contains(name, "/"):
		return "", fmt.Errorf("%s is relative; a program is a name or an absolute path: %w", name, backend.ErrInvalid)
	}
	var denied error
	for dir := range strings.SplitSeq(path, ":") {
		file := filepath.Join(dir, name)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, backend.ErrAccess) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	if pkg := packages[name]; pkg != "" {
		return "", fmt.Errorf("the program %s is not installed (Debian's package %s has it): %w", name, pkg, backend.ErrNotExist)
	}
	return "", fmt.Errorf("the program %s is not installed: %w", name, backend.ErrNotExist)
}

// executable tells whether file is a program that we may run.
func executable(file string) error {
	var st unix.Stat_t
	err := unix.Stat(file, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("the program %s is not there: %w", file, backend.ErrNotExist)
	case err != nil:
		return fmt.Errorf("the program %s: %w: %w", file, backend.ErrAccess, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Access(file, unix.X_OK) != nil:
		return fmt.Errorf("%s cannot be executed: %w", file, backend.ErrAccess)
	}
	return nil
}

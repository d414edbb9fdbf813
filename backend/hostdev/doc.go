// Package hostdev is what the drivers that make block devices of the host share: who uses one (package blockdev
// finds that out), loop devices over files, how long one in use is waited for, what the host's LVM would take for a
// physical volume, and the udev rule that keeps the host off what guests wrote.
//
// Sources: the kernel's Documentation/ABI/testing/sysfs-block and include/uapi/linux/loop.h; proc(5);
// udev(7), udev rules of LVM2 2.03 and of systemd 252; LVM2's doc on the label (lib/label/label.h: four
// sectors are looked at).
package hostdev

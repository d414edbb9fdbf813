// Package phy is the store of block devices that no other store knows: a partition, a
// whole disk, an iSCSI LUN. They can be read, and not snapshotted or grown.
//
// A device may hold an image in one of the formats that New is given, if the disk's
// configuration says so. One with a backing file is refused. Its header is read
// again whenever the device was written to.
//
// Reads go past the host's page cache, and Volume.Generation is made of the kernel's counts of writes, as package
// blockdev says.
//
// Volume.Holder names who has the device: device-mapper or md above it (holders in
// sysfs), a mount, swap, a process of QEMU by its image lock (as on image files), or
// whoever else has it open exclusively (O_EXCL). The latter can only be
// found out by claiming the device for an instant, in which another claim would fail;
// therefore each device is tried at most once in some seconds, and only if nothing else was found. Xen's block
// backend claims nothing: its domains are the hypervisor's to tell.
package phy

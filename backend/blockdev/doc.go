// Package blockdev is what the stores of block devices share: reading a device, what the kernel says of it in
// sysfs, and who uses it.
//
// A device that a guest may write to is read past the host's page cache (open(2), O_DIRECT): the guest's writes do
// not go through it, so that a page read once would stay stale. One that is frozen is read through it, and
// its bytes can be spliced.
//
// Devices are named by their number (stat(2), st_rdev), which their folder in sysfs has as its name.
package blockdev

// Command bench compares domfs with the kernel's own mount of the same image, and with
// qemu-storage-daemon's FUSE export of images in qcow2.
//
// Usage: bench [-rows REGEXP] [-runs N] [-dir DIR] [-binary PATH]
//
// It makes a disk image and two in qcow2, once, and keeps them in DIR; starts domfs on domains with those
// disks; makes a snapshot of the first; and then reads the snapshot's bytes in turn through a
// loop device with the kernel's ext4 and through domfs, run by run, so that a busy
// machine slows both; those in qcow2 through qemu-storage-daemon's export and through
// domfs' raw. fuse2fs, and that export of the raw image, are read once for comparison. A table of the medians ends it. It must
// be root.
//
// "First" is the first time after a fresh mount of either, with the image in the host's
// page cache; "again" is the same once more; "cold" is first without the image in the cache.
// A target that is missed is no failure: the exit status tells only whether the
// rows could be measured.
package main

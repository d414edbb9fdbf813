// Command bench compares domfs with the kernel's own mount of the same image.
//
// Usage: bench [-rows REGEXP] [-runs N] [-dir DIR] [-binary PATH]
//
// It makes a disk image, once, and keeps it in DIR; starts domfs on a domain with that
// disk; makes a snapshot of it; and then reads the snapshot's bytes in turn through a
// loop device with the kernel's ext4 and through domfs, run by run, so that a busy
// machine slows both. A table of the medians ends it. It must be root.
//
// "First" is the first time after a fresh mount of either, with the image in the host's
// page cache; "again" is the same once more; "cold" is first without the image in the cache.
// A target that is missed is no failure: the exit status tells only whether the
// rows could be measured.
package main

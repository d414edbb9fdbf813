// Package image is the store of raw image files: a disk whose source is a regular
// file outside of /dev. Images in other formats are recognised and refused.
//
// # Snapshots
//
// A snapshot is a copy beside the image:
//
//	FOLDER/.domfs/SET/VDEV.img    the copy, mode 0400
//	FOLDER/.domfs/SET/VDEV.json   its manifest: what the snapshot is (manifest.go)
//
// FOLDER is the folder that the image really lies in, symbolic links followed. .domfs
// and SET are 0700 and must belong to root or to the user of the daemon, or else
// they are not touched: image folders may be writable by others.
//
// Where the filesystem can share blocks between files (FICLONE, ioctl_ficlonerange(2):
// XFS, Btrfs), the copy is made at one instant, of an image in use as well. Elsewhere
// the image must be unused: the space of its data is reserved (fallocate(2)), and its
// data ranges are copied by Fill, so that the copy has the holes of the image. A copy
// has the mode 0600 until its last byte is durable.
//
// UsedBytes is st_blocks of the copy without the extents that other files share (FIEMAP,
// the kernel's Documentation/filesystems/fiemap): about nothing after FICLONE, and more as
// the image is overwritten. What only several copies share is held by none of them alone.
// Btrfs unshares an extent as a whole. Each copy is looked at every few seconds, and for a
// short time in one listing, which may be too little for a host with thousands: one that
// was not looked at yet counts with all its blocks, as it does where FIEMAP is not known.
//
// The order of steps: the image is made under a temporary name (".VDEV.img.tmp"),
// synchronised and renamed; then the manifest likewise. A crash leaves a snapshot in
// state pending, filling or removing, which Snapshots lists, or files that no manifest
// accounts for, which Repair removes. Copies that are being made are locked (flock(2)) until
// the guard is released, so that a second daemon takes none of them for such a leftover.
//
// # The guard
//
// What must be copied is kept unwritten by a read lease (fcntl(2), F_SETLEASE), which
// the kernel refuses while any process of the host has the image open for writing or
// mapped so. A process that opens it for writing, or truncates it, is kept waiting by the
// kernel until the lease is given up, at most /proc/sys/fs/lease-break-time seconds;
// the copy ends with an error well before. A lease sees nothing of other hosts
// that share the filesystem.
//
// Where leases are not to be had (the image belongs to another user and the daemon is
// not root; NFS), a watch takes their place. It begins only if no process in /proc
// has the image open for writing, as far as the daemon may look, and if QEMU's locks are free; and it holds while
// those locks stay free, and size, mtime and ctime do not change. A write(2) of this host
// that falls into the copy changes them before the last look. Not seen are stores
// through a mapping whose page was dirty before, and, for as long as the
// filesystem caches attributes, writes by other hosts.
//
// # Who uses an image
//
// Volume.Holder names a process that holds QEMU's image lock with a permission to write
// (QEMU's docs/system/qemu-block-drivers and block/file-posix.c: byte 100+n for permission
// n; 1 is write, 2 write-unchanged, 3 resize), or a writable loop device. A reader, such as
// qemu-img convert, does not count.
package image

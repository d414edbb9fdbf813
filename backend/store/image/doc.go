// Package image is the store of image files: a disk whose source is a regular
// file outside of /dev, raw or in one of the formats that New is given (qcow2).
//
// # Formats
//
// The format is what the disk's configuration says, and of a backing file what the image above it
// records: never what a file begins with, for a guest writes what its raw disk begins with. A name in a header is as
// untrusted (CVE-2010-3851): openBeneath walks it from the descriptor of a folder that the admin named,
// component by component, and follows links by hand; .domfs, with the snapshots of all guests, is none that it enters. Whatever is put in the way meanwhile, nothing
// outside of those folders is opened or looked at. Only regular files are followed, at most maxChain of them.
//
// Volume.Generation and ModTime are of all files of such a chain. While somebody writes to a backing
// file its writer is the volume's Holder: the bytes change, so the domain counts as running.
//
// An image grows by qemu-img resize, which knows how to write what only it and QEMU write. It opens whatever
// headers and paths name; so it is given the files of the chain, which have been
// opened by the rules above, as descriptors of this process (/proc/PID/fd/N), and told that
// there are no other backing files. But it reads the headers itself, and no option keeps it from opening, and resizing, an
// external data file that one of them names by then. So it is run only if nobody but root and the daemon's user
// can write to any file of the chain, by owner, mode and who has it open (tamper.go): else ErrPermission or ErrBusy.
//
// No error tells an admin to run what would read all that an image names (qemu-img convert, rebase without -u): that
// copies a file of the host into a disk of whoever has chosen its name.
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
// An image in a format is copied or cloned as a file, like a raw one. What else there is:
//
//   - An internal snapshot writes to the origin, QEMU must not have it open meanwhile, its clusters
//     stay in the image that the guest fills, and removing it writes to the origin again.
//   - An overlay on the origin would be the guest's new disk: the domain's configuration has to change,
//     and to remove the snapshot is to copy one into the other.
//
// A clone changes neither the origin nor the configuration, and works while the domain runs: of one instant it has
// what a power cut would have left, and qcow2's order of writing makes that an image that is whole.
// What lies behind the image is not copied: a template stays as it is as long as there are images on it. The
// manifest records each such file (path, inode, size, mtime; record.go), and one that differs later makes the
// snapshot invalid, for as long as it does. Names in a copy that are relative begin at the folder of its origin.
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

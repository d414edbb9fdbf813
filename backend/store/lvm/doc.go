// Package lvm is the store of LVM's logical volumes: linear, striped, mirrored and thin ones of all volume groups of the
// host, and their snapshots, classic (thick) and thin.
//
// # What is read
//
// Which volumes there are LVM says, in one report (lvm fullreport, --readonly: it takes no lock and reads metadata alone).
// How they are, device-mapper says: which devices there are and how many have them open through its control node (package devmapper), sizes in use
// and validity by dmsetup status --noflush.
// Neither waits for a device that is suspended. The two are joined by the UUIDs that LVM gives its devices. A disk is a
// volume's if its path leads to the volume's device, or names it where there is none: /dev/VG/LV,
// /dev/mapper/VG-LV, or a link to one of these.
//
// Where the kernel has no device-mapper, or LVM is not installed, the store has nothing, and costs two system calls.
//
// # Reading volumes
//
// A volume that can be written to is read past the host's page cache. One whose device is read-only, as our snapshots' are,
// is read through it, and can be spliced unless it is a thick snapshot. A thick snapshot is looked at after each read
// (validity.go): what was read while it became invalid is given to nobody, and every read from then on fails,
// of what is in the page cache, too. That costs a system call for each read and, after each event of device-mapper's, one question
// for each open thick snapshot that is read.
//
// Volume.Holder is decided by device-mapper's count of those who have the device open, less our own and those of our
// other daemons: Xen's block backend is in no table of the kernel's, but is counted. Udev, which opens each device that changes for an
// instant, does not count.
//
// UsedBytes of a thin snapshot is all that it maps, what it shares with its origin included: what is its own alone, only a
// walk through the pool's metadata could tell.
//
// # Snapshots
//
// The LV of a snapshot is named domfs-ORIGIN-HASH (names.go), and so is its device, VG-domfs--ORIGIN-HASH with hyphens doubled: by
// the prefix whoever maps what is in it, and the rules of udev, can tell it. The user's name and all else that it is stand in
// its tags (tags.go), which come with the commit that makes it and change in one commit. Which LV a change is meant for LVM
// itself looks up by those tags, with the VG's lock held (--select): nothing else that took the name is touched.
//
// A thick snapshot gets space for copies on write by a policy (sizepolicy.go); the origin's size and LVM's own records of it is
// what cannot overflow. A thin one needs none, but a pool with data and metadata to spare. Prepare counts all of a set together, by
// VG and by pool, before anything is done. Snapshots are read-only, and active from when they are made: a thick one is
// whenever its origin is, and is never activated or deactivated by itself; a thin one is made without the flag that has
// activation skip it, and Repair activates it where the host's start did not, or once its VG appears.
//
// A tool that is killed leaves what its last commit says, and perhaps an origin suspended: lvcreate's first commit is a plain LV,
// with the tags; the second makes it a snapshot. Repair resumes the one and removes the other, and nothing that has no record of ours.
//
// # New volumes
//
// Create makes a linear LV in a VG, or a thin one in a pool, with the tags of create.go. What the extents held before is another guest's:
// Clear overwrites all of a linear one with zeroes; a thin one reads as zeroes as long as its pool zeroes what it hands out, and
// is refused by a pool that does not. Keep takes the tags away: from then on it is an LV like any other. Until then Repair removes it if
// nobody has it open: who clears it has, and so has the block backend of a guest. One that was cleared and then written to is not removed, but
// kept: the guest that it was given to has used it.
//
// Delete removes an LV that nobody has open, is no part of others, and has no snapshots.
//
// # Growth
//
// LVM rounds what is added up to whole extents, the same number for each stripe; RoundSize says the same. It grows no volume that
// has thick snapshots, active as it is.
//
// New extents of a volume that is not thin are not wiped, as with lvextend: they hold what was there before, of another guest perhaps. To wipe
// them afterwards would race the guest, which sees the new size at once. Where that matters, volumes are wiped as they are removed, or
// are thin: a pool zeroes what it hands out.
//
// # Sources
//
// lvm(8), lvmreport(7), lvmthin(7), lvs(8) for the attributes; dmsetup(8); the kernel's
// Documentation/admin-guide/device-mapper/snapshot.rst and thin-provisioning.rst for what devices say, drivers/md/dm-snap.c, dm-thin.c
// and include/uapi/linux/dm-ioctl.h for events; the names and UUIDs of devices are those of LVM2's lib/activate/dev_manager.c.
package lvm

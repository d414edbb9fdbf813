// Package lvm2 reads the volume groups of guests: LVM2's physical volumes, their metadata, and
// the logical volumes that these describe. It is an Assembler: members go in, volumes come out, and
// nothing is activated, written or asked of the host's LVM.
//
// # From members to groups
//
// After LVM2's lib/format_text (layout.h, text_label.c, format-text.c). A label in one of the first four
// sectors names the physical volume and says where its metadata areas are. Each area holds a text in a
// circular buffer; those with a correct checksum count, and the one with the highest sequence number of
// all areas of all physical volumes describes the group. Areas that are marked as ignored, and text
// that was written but not committed, do not count.
//
// A physical volume is known by its UUID only. Where one is missing, the volumes that lie on it have an
// Err that names it, unless a mirror leg elsewhere has the same bytes. Where two members claim to be the
// same one (an old copy of a disk), the one with the newer metadata is used, and a warning names the
// other. Two groups of one name: the second is NAME@ and the first eight characters of its UUID.
//
// # From metadata to volumes
//
// Volumes are what the guest's LVM would show: hidden ones (legs, pools' data, pvmove's mirror) are resolved
// but not listed, pools neither. A volume that is being merged with its snapshot is shown as it will be
// when it is next activated.
//
// Read are segments of type linear and striped, mirror (with pvmove's), raid0, raid0_meta, raid1, raid10
// (near copies), raid4 and raid5_* (one leg may be missing if parity was made), raid6_* (with all legs), snapshot,
// thin, zero, error, and cache in the modes writethrough and passthrough, where the origin has all bytes. Other
// types (writeback caches, writecache, integrity, vdo) are ErrUnsupported, and so are raids that are being
// reshaped or still have space for it.
//
// Legs: a read goes to the first leg that is in sync, as in the kernel's drivers/md/raid1.c and raid10.c
// during a resync, so that it sees what the guest will see after one. Which are in sync is read from
// the superblocks of dm-raid (drivers/md/dm-raid.c) and the log of dm-mirror (drivers/md/dm-log.c).
// Where these are in doubt, a leg is not used. A mirror whose first leg is missing and that has no log on disk
// cannot be read.
//
// # Bounds
//
// Everything on a member is hostile. The constants in bounds.go limit members, areas, text, nodes, volumes,
// segments and nesting. Volumes are built level by level, from those that lie on physical volumes
// upwards, so that one which lies on itself is never reached.
package lvm2

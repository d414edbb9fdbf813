// Package blkid finds out what is on a device: which filesystem, container or
// partition table, with its label and UUID, in the words of util-linux's
// `blkid -p` (version 2.38, as in Debian 12).
//
// # Precedence
//
// As libblkid does, first the containers (md, LVM, LUKS …), then the filesystems,
// in a fixed order; the first container found ends the search. Two filesystems on
// one device are ambiguous, and then the content is unknown: nobody can tell which
// one is stale. Partition tables come last. A device with both a filesystem and a
// table (a hybrid ISO image) is the filesystem; a table written over an LVM label
// is the table.
//
// # Where it differs from blkid
//
//   - A GPT made for 4096-byte sectors is found whatever the sector size of the host's
//     device is, for an image file has none.
//   - A GPT whose usable area reaches past the end of the device (a truncated image) is
//     still gpt, because its first partitions can be read.
//   - The 1 KiB stub of an extended partition is unknown, not dos: the partitions in its table
//     are the disk's.
//   - The vendor formats of hardware RAID, and filesystems that no Linux guest boots or
//     mounts any more, are unknown.
//   - A NILFS2 found only by its backup superblock must be as large as the device, on any
//     device: else it belongs to the last partition.
//
// # Sources
//
// The on-disk formats are those of the kernel's uapi headers and documentation
// (ext4, xfs, btrfs, f2fs, erofs, squashfs, reiserfs, jfs, nilfs2, swap, md_p.h, bcache),
// the LUKS1 and LUKS2 on-disk specifications, LVM2's label format, Microsoft's FAT and exFAT
// specifications, the linux-ntfs documentation, ECMA-119 and Joliet, ECMA-167 and OSTA UDF
// 2.60, and UEFI for GPT. Which of them are checked is what blkid checks: the tests compare
// with it on intact and on damaged images.
//
// Everything read is hostile: each read is bounded, and there is a limit on their number.
package blkid

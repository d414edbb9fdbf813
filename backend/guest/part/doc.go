// Package part reads partition tables: GPT, and the MBR with its extended and logical
// partitions. Partitions have the numbers that a Linux guest gives them.
//
// # GPT
//
// After the UEFI specification 2.10, chapter 5.3. Header and entries are used only with
// correct checksums. Where the primary table is damaged, the backup is used: in the last
// sector, or where the primary header says that it is, which on a disk that has grown since is
// not the end (Linux does so only when booted with the option gpt). Sectors of 512 and of 4096 bytes are told apart by where an intact header is,
// because an image file does not say for which it was made. A partition's number is
// its place among the entries, counted from 1. A protective MBR (any partition of type 0xEE) makes
// the disk a GPT disk, also beside other entries (hybrid MBR).
//
// # MBR
//
// As Linux reads it (block/partitions/msdos.c). Sectors are always of 512 bytes here: tables made
// for others are as good as unknown, and nothing in them says so. Primary partitions
// are 1 to 4, an empty slot leaves its number out. Logical ones are numbered from 5 in the order of the
// chain of extended boot records; an empty record has no number. The extended partition
// itself is, as in Linux, a stub of two sectors, where a boot loader may be. The chain ends at a
// record that was seen before, that is not on the disk or that has no signature: what was found up to
// there counts. BSD, Solaris and Minix tables inside of partitions are not read.
//
// # Damage
//
// A partition that reaches past the end of the disk (a truncated image) has an Err; the
// others can be read. Overlapping partitions are shown, as Linux does.
//
// Everything on the disk is hostile: what is read and how many partitions there can be is
// bounded by the constants of this package.
package part

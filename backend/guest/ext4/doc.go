// Package ext4 reads ext4 filesystems, and those of ext2 and ext3 that need nothing
// more, by inode number. It never writes.
//
// A filesystem that was in use when its disk was copied has its latest changes in its
// journal only. They are replayed in memory, by the rules of the kernel: what the log holds of a block lies over the
// device's for every read. Only the places are kept, 16 bytes a block; the bytes stay where the journal has them. Where
// the kernel would refuse to mount, because the journal is damaged or its superblock is none, there is a warning, and what was
// committed before is seen. A journal on another device is not read, and a filesystem that needs it not opened.
//
// After the log, its fast commits are replayed and the orphans cleaned up, also in memory, as the kernel does before
// it mounts: what changes so is whole blocks, at most 64 MiB of them. Times that the kernel sets then
// are the latest moment at which the superblock, the last transaction or an inode of a fast commit was written, so that
// a snapshot looks the same whenever it is opened.
// What all filesystems that are open hold of this together is bounded by 256 MiB: an Open beyond is ErrBusy. Of a journal, 8 GiB
// are read while its filesystem is opened, which the caller can end early; one that takes more is not replayed.
// Beyond the bounds, or where the guest's bytes are wrong, there is a warning, and nothing of the fast commits or of the cleaning is
// seen. What the kernel's replay of fast commits leaves wrong, such as the link counts of new directories, is shown as it leaves it.
// Files without names that a fast commit holds are deleted, as by e2fsck, and an area for fast commits that is full is
// replayed: the kernel (6.18) mounts neither, which a warning says. Kernels make no fast commits of names in
// encrypted directories; an area that has such ones is not replayed. Quota files are not brought up to date.
//
// What a filesystem needs is decided by the feature bits of its superblock, never by
// the name that blkid gives it. An incompatible feature that is not read is refused by name
// when the filesystem is opened; read-only compatible ones do not change what is read, and like
// the kernel's read-only mount the driver accepts those that it does not know.
//
// Where the first superblock is damaged, one of its copies is read; where a group
// descriptor is, the place of its inode table is read from a copy. Both is said in a warning.
//
// The layers, from below:
//
//	source.go    the one way to the device, and overlay.go what recovery lays over it, overlaybudget.go its memory
//	cache.go     metadata blocks by number, least recently used, with a cap in bytes
//	super.go     superblock, backup.go its copies, feature.go its features
//	group.go     group descriptors
//	recover.go   what was in use is recovered: journal.go the journal's blocks and superblock,
//	             jbd2.go the blocks of its log, replay.go which of them are replayed,
//	             fastcommit.go its fast commits, orphan.go inodes to be deleted or truncated
//	edit.go      changes in memory, for these two: editgroup.go bitmaps and counters, editinode.go inodes,
//	             editextent.go extent trees, editnode.go their nodes, editgrow.go and editfree.go what makes them
//	             larger and smaller, editpointers.go the maps of ext2 and ext3, editdir.go directories,
//	             editleaf.go lists of names, editindex.go htrees, editinline.go directories in inodes,
//	             blockset.go sets of blocks that are not to be taken
//	inode.go     an inode as stat(2) shows it
//	blockmap.go  where a file's blocks lie: extent.go, indirect.go
//	file.go      content, dir.go and htree.go directories, symlink.go, xattr.go and acl.go
//	inline.go    content, directories and targets in the inode; eainode.go attributes out of it
//	names.go     what a lookup looks for; crypt.go encrypted names, fold.go case-folded ones
//
// What the guest has encrypted is shown as the kernel shows it without the key: names and
// targets of symbolic links in their no-key form, attributes and everything of stat(2) as they are, and content is
// ErrNoKey. That a file's and its directory's encryption agree is not checked: it protects who has a key.
// A case-folded directory has its names as they were given, and finds them in either case, of
// Unicode 12.1. A verity file is read without comparing it with its hashes.
//
// Sources: the kernel's Documentation/filesystems/ext4 for the structures, fs/jbd2/recovery.c, fs/ext4/fast_commit.c
// and fs/ext4/orphan.c for the rules of the replay; the behaviour of the kernel's own mount where these say nothing, which the tests compare with.
package ext4

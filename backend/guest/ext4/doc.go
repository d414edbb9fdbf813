// Package ext4 reads ext4 filesystems, and those of ext2 and ext3 that need nothing
// more, by inode number. It never writes.
//
// What a filesystem needs is decided by the feature bits of its superblock, never by
// the name that blkid gives it. An incompatible feature that is not read is refused by name
// when the filesystem is opened; read-only compatible ones do not change what is read.
//
// The layers, from below:
//
//	source.go    the one way to the device, and overlay.go what recovery lays over it
//	cache.go     metadata blocks by number, least recently used, with a cap in bytes
//	super.go     superblock, feature.go its features, group.go group descriptors
//	inode.go     an inode as stat(2) shows it
//	blockmap.go  where a file's blocks lie: extent.go, indirect.go
//	file.go      content, dir.go and htree.go directories, symlink.go, xattr.go and acl.go
//
// Sources: the kernel's Documentation/filesystems/ext4 for the structures; the behaviour
// of the kernel's own read-only mount where that says nothing, which the tests compare with.
package ext4

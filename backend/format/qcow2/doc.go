// Package qcow2 reads images in QEMU's qcow2 format, versions 2 and 3. It never writes.
//
// The image is untrusted: a guest's owner may have made it. Every number in it is bounded before
// it is used, and no name in it is opened: the header's backing file is only reported, and whoever
// opens the image decides what to give for it. An external data file is refused.
//
// The layers, from below:
//
//	cache.go     tables and decompressed clusters, least recently used, with a cap in bytes for all images together
//	header.go    the header, its extensions and feature.go its features
//	table.go     where a guest's bytes lie: the L1 and L2 tables, extended ones too
//	compress.go  compressed clusters; clusters.go several of them side by side
//	image.go     an open image as a Device; sparse.go its holes, locate.go where its bytes lie unaltered
//	snapshot.go  internal snapshots
//
// Internal snapshots are listed and read by this package (Snapshots, OpenSnapshot), but no store asks for them yet: the tree
// does not show them. Whether a snapshot of a domain is an internal one, an overlay or
// a copy that shares blocks is the choice of the store that makes it, and each of these is read here.
//
// # Where it differs from QEMU
//
// What QEMU reads from a sound image is read byte for byte. Of a damaged one, QEMU's decisions are followed
// where they give bytes: a cluster past the end of the file is zeros, reserved bits are ignored, the tail of
// a table that the end of the file cuts off is zeros. A table that begins past the end of the file is an error
// here, and unallocated to QEMU. The refcounts and bitmaps are not looked at: they matter to writers only,
// so that an image that was not closed cleanly (lazy refcounts) reads as any other. An image that is
// marked corrupt is read, as QEMU does, and says so in its Warnings.
//
// Tables are read when they are needed first, and kept: of an image that is written to meanwhile some bytes
// are old, some new, and some from clusters that are used otherwise by now. That is for the store to prevent.
//
// # Speed
//
// The compressed clusters of one read are decompressed side by side, by as many goroutines as there are processors.
// Nothing is decompressed before it is asked for: with all processors busy that gained nothing. Reads of 128 KiB and more
// do not fill the cache.
//
// # Limits
//
// Those of QEMU: clusters of 512 bytes to 2 MiB, L1 tables of 32 MiB, names of backing files of 1023 bytes,
// 65536 snapshots. All open images together hold 48 MiB of tables and 32 MiB of decompressed clusters. Encrypted images (AES, LUKS) and external data files are refused by name.
//
// Sources: QEMU's docs/interop/qcow2 for the structures; the behaviour of qemu-img where that says
// nothing, which the tests compare with.
package qcow2

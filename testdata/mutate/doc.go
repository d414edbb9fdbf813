// Command mutate changes bytes in the metadata of disk images, and reads what comes of it.
//
// Usage: mutate [-n N] [-seed S] [-only I] [-images REGEXP] [-seeds DIR] [-keep DIR] [-jobs J] [-list]
//
// It makes small images by the real tools, the seeds: filesystems of many features, written to by the
// kernel and copied while mounted, so that their journals are dirty; partition tables; qcow2 files and chains
// of them. Then, N times, it changes one of them a little where it holds metadata, and reads all of it in a
// process of its own, as domfs does: probe, partitions, filesystem, every directory, attribute and file. That
// process may take 256 MiB and 10 s.
//
// What it finds: a panic, no end, too much memory; an error that is neither "structure is corrupt" nor an
// input/output error (EUCLEAN and EIO), or that does not say where: inode, block or structure. A seed that is not read
// as it was made is a finding as well.
//
// Metadata is what the drivers read of a seed without reading its files. Most changes are of a field of a structure
// in it (a length, a count, a place, a flag), of each kind of structure as often as of another; the others are
// anywhere in it. Change I of seed S is always the
// same one for the same seed images; they differ from one making to the next, as the kernel's choices do:
// -seeds keeps them. An image that something was found in is kept in any case, and can be read again by itself:
//
//	mutate -read IMAGE[,BACKING...]
//
// Making seeds needs root. The exit status is 1 where something was found.
package main

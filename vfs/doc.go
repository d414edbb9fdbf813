// Package vfs shows a control.Host as a FUSE filesystem.
//
// It speaks go-fuse's raw protocol interface rather than its tree of Go objects, for
// two kinds of nodes:
//
//   - virtual nodes (node.go, virtual.go): the directories and value files of domfs
//     itself. tree.go holds all of them as one literal; a node that the kernel knows
//     is one small object.
//   - guest nodes (slot.go, guest.go): inodes of guests' filesystems. Their node IDs
//     are computed, (filesystem, inode number) in 64 bits, so that a walk over a million
//     files leaves nothing behind in the daemon's memory.
//
// # Caching
//
// What lies in a snapshot cannot change: the kernel may keep its names, attributes,
// directories, links and data without end. (It can be lost, on a store where a snapshot becomes invalid when its space is
// used up: then the kernel is told to drop what it has, see invalid.go.) Names of everything above are good for
// cachedFor, value files are read anew each time. A live disk's data is never kept.
// A snapshot's directory is looked up again after cachedFor, and when it is gone the kernel drops
// all that it knew below it: no change needs an invalidation message, and what sends the one for a lost
// snapshot answers no request and holds no lock, so that there is no deadlock with them.
//
// # Interrupts
//
// A caller that is killed or signalled cancels its reads. Changes are not cancelled: control
// carries them out to their end, and the caller gets the real result.
package vfs

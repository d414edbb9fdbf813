// Package backend holds the nouns of domfs: domains, the volumes behind their
// disks, snapshots of those, and what is on a volume.
//
// It is types, small interfaces and sentinel errors only, and imports nothing
// but the standard library. Drivers live in the folders below it, one each, and
// know nothing of each other:
//
//	hypervisor/X  where domains come from                        Hypervisor
//	store/X       where volumes live: open, snapshot, resize     Store
//	guest/X       what is on a volume: tables and filesystems    Layout, Filesystem
//
// A capability that a driver lacks is an optional interface that it does not
// implement. Wrapping a value hides its optional interfaces, so nothing in domfs
// wraps a Store or a Hypervisor.
package backend

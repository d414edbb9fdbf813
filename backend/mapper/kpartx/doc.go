// Package kpartx makes block devices of the host of what lies in a snapshot, by device-mapper: partitions by
// kpartx(8), nested partitions and guests' logical volumes by tables of its own.
//
//	/dev/mapper/domfs-SET:xvda            the front: the whole disk, linear over the snapshot's device
//	/dev/mapper/domfs-SET:xvda:p2         a partition: kpartx -a -r -s -p :p on the front
//	/dev/mapper/domfs-SET:xvda:p1:p5      a partition in a partition, linear over the front
//	/dev/mapper/domfs-SET:lvm:vg0:root    a guest's volume, linear and striped over the members' devices
//
// A name is the set's identity and the volume's path in the set, with ":" for "/": two clones with equal VG names do not
// collide, a set that is renamed keeps its devices, and Mappings needs no record but device-mapper's own
// list. Where a name would be longer than the 127 bytes that device-mapper has, its end is in the UUID (name.go).
//
// The front belongs to us whatever the disk is on: kpartx derives from it how partitions are named,
// and a disk that is an image file has one, too. It holds the snapshot's device open, so that nobody removes that
// underneath.
//
// # The host's LVM and udev
//
// Physical volumes on linear mappings are visible to the host's LVM, and udev activates what it finds: a guest's
// VG, perhaps of the same name or UUID as one of the host's own. What keeps them off:
//
//   - LVM never uses a dm device whose UUID begins with "LVM-" and is longer than the UUID of a logical
//     volume (lib/activate/dev_manager.c, since 2.02.99: reserved for LVM's own hidden layers), whatever its filters, scan_lvs or
//     devices file say. What LVM could take for a physical volume (by its label's magic, on the bytes, whatever else is
//     there) is given such a UUID when it comes into being, so there is no instant at which LVM could see it. libblkid takes
//     such devices for private ones and does not look into them (lib/sysfs.c of util-linux), so all others have a UUID of
//     another kind: mount(8) and blkid(8) are to work on them.
//   - kpartx gives its devices UUIDs of its own ("part2-" and its device's UUID), which LVM looks
//     into. So a partition with such a label is made by us, under the name and with the table that kpartx would give it. kpartx -a then says that it is in use
//     and goes on. What kpartx would map is asked before (kpartx -l); where that has anything that the tree does not
//     show, or where a physical volume is a logical partition (kpartx 0.9 never ends where such a one is in use), the
//     partitions that both agree on are made by us.
//   - An image file becomes two loop devices below the front: loop devices have no UUID, and LVM would find a physical volume that is on
//     the disk itself, or activate it. The first is smaller than any device that LVM looks at, the second begins where
//     no label can be found (loop.go). They vanish with the front (autoclear), also when the daemon is killed.
//   - A udev rule (package hostdev) keeps all others off: no links in /dev/disk, no md, no Btrfs.
//
// All mappings are read-only, as are loop devices; the kernel refuses to write to them.
//
// Sources: kpartx(8) and kpartx's source of multipath-tools 0.9; dmsetup(8); LVM2 2.03.16; the kernel's
// Documentation/admin-guide/device-mapper/{linear,striped}.rst.
package kpartx

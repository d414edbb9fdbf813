// Package loop makes block devices of the host of what lies in a snapshot where the host has no device-mapper: read-only
// loop devices over ranges of the disk, one for the disk, one for each partition at any depth, and one for each guest's volume that
// lies in one piece.
//
// A loop device is told by its lo_file_name (linux/loop.h), which this package sets to "domfs:SET:PATH": Mappings reads it
// of all loop devices in use, so there is no record beside the kernel's, and what a daemon that was killed
// has left is found. It has 63 bytes: a volume whose path does not fit is left out.
//
// Loop devices cannot be hidden from the host's LVM. Without device-mapper it activates nothing, but pvs and vgs
// would show a guest's volume group among the host's. So whatever LVM could take for a physical volume, by its
// label's magic on the bytes, gets no device.
//
// The kernel detaches a loop device that is open only when it is closed; so who uses one is looked for
// before it is detached. Someone who opens one in between keeps it until they close it.
//
// Sources: the kernel's include/uapi/linux/loop.h and drivers/block/loop.c (LOOP_CONFIGURE is in Linux 5.8).
package loop

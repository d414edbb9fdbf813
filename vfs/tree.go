package vfs

// tree is the whole tree, the public interface, as one literal. domfs(5) and the README say
// the same; a change here is a change there.
//
// A name in angle brackets stands for many: find resolves one, list names all. VOLUME's
// nodes are in volume, once, because a disk, a partition and a guest's logical volume look the same.
var tree = entry{kids: []entry{
	{name: "xenstore", doc: "one directory per domain the host knows, running or not", kids: []entry{
		{name: "<domain>", doc: "the gate to everything below it", mode: gateMode, list: domains, find: findDomain, kids: []entry{
			{name: "name", doc: "what the hypervisor calls it", show: domainName},
			{name: "uuid", doc: "its UUID; empty if the configuration has none", show: domainUUID},
			{name: "domid", doc: "the hypervisor's number for it; empty while it is off", show: domainID},
			{name: "state", doc: "off, running, paused, shutdown, crashed or dying", show: domainState},
			{name: "config", doc: "path of its configuration file", show: domainConfig},
			{name: "last_error", doc: "the last 16 failures, newest last", show: domainLastError},
			{name: "disks", doc: "its disks; mkdir VDEV begins a new one, rmdir detaches one (Xen)", mkdir: beginDisk, rmdir: detachDisk, kids: []entry{
				{name: "<vdev>", doc: "a live disk: a VOLUME, and", list: liveDisks, find: findLiveDisk, volume: true, kids: []entry{
					{name: "driver", doc: "where the disk lives: lvm, lvm-thin, file or phy", show: diskDriver},
					{name: "format", doc: "how its bytes are kept: raw, qcow2, …", show: diskFormat},
					{name: "source", doc: "the device, path or URL behind it; of a new disk, write a store's name", mode: 0o644, show: diskSource, set: writeSource, fixed: sourceFixed},
					{name: "mode", doc: "rw or ro: what the guest may do", show: diskMode},
					{name: "size", doc: "bytes; write 20G or +10G to grow it, or to attach a new one", mode: 0o644, show: volumeSize, set: resizeDisk, fixed: neverGrows},
				}},
			}},
			{name: "lvm", doc: "while it is off: as under a snapshot", when: isOff, kids: guestGroups("lvm")},
			{name: "root", doc: "while it is off: as under a snapshot", when: isOff, root: true},
			{name: "snapshots", doc: "its snapshots", link: domainSnapshotsLink, target: "../../snapshots/<domain>"},
		}},
	}},
	{name: "snapshots", doc: "one directory per domain that is known or has snapshots", kids: []entry{
		{name: "<domain>", doc: "mkdir NAME snapshots every disk at one instant; rmdir, mv", mode: gateMode, list: snapshotDirs, find: findSnapshotDir, mkdir: makeSnapshot, rmdir: removeSnapshot, rename: renameSnapshot, kids: []entry{
			{name: "<name>", doc: "one snapshot of all disks", list: sets, find: findSet, kids: []entry{
				{name: "created", doc: "when, RFC 3339 in UTC", show: setCreated},
				{name: "consistency", doc: "off, frozen, paused, crash or crash-per-disk", show: setConsistency},
				{name: "state", doc: "active, filling, invalid or removing", show: setState},
				{name: "expires", doc: "when the daemon removes it: empty, RFC 3339, or +7d when written", mode: 0o644, show: setExpires, set: writeExpires},
				{name: "hold", doc: "0, or 1 to keep it from being removed", mode: 0o644, show: setHold, set: writeHold},
				{name: "mapped", doc: "0, or 1 while the host has block devices of its volumes", mode: 0o644, show: setMapped, set: writeMapped},
				{name: "disks", doc: "its disks, frozen", kids: []entry{
					{name: "<vdev>", doc: "a disk at that instant: a VOLUME, and", list: setDisks, find: findSetDisk, volume: true, kids: []entry{
						{name: "driver", doc: "as above", show: diskDriver},
						{name: "format", doc: "as above", show: diskFormat},
						{name: "source", doc: "what it was a snapshot of", show: diskSource},
						{name: "mode", doc: "as above", show: diskMode},
						{name: "used", doc: "bytes that the snapshot holds", show: diskUsed},
						{name: "reserve", doc: "bytes that it can hold, of a thick one; write 5G or +100M to extend it", mode: 0o644, when: hasReserve, show: diskReserve, set: extendReserve},
						{name: "fill", doc: "whole percent of reserve that are used; invalid at 100", when: hasReserve, show: diskFill},
					}},
				}},
				{name: "lvm", doc: "guest LVs, over all of its disks", kids: guestGroups("lvm")},
				{name: "root", doc: "the guest's files as its /etc/fstab mounts them", root: true},
			}},
		}},
	}},
	{name: "stores", doc: "where volumes take their space from", kids: []entry{
		{name: "<name>", doc: "a volume group, a thin pool (vg:pool), or an image folder, its path with - for /", list: pools, find: findPool, kids: []entry{
			{name: "driver", doc: "lvm, lvm-thin or file", show: poolDriver},
			{name: "size", doc: "bytes", show: poolSize},
			{name: "free", doc: "bytes", show: poolFree},
			{name: "metadata_free", doc: "bytes of a thin pool's room for its own records", when: hasMetadata, show: poolMetadataFree},
		}},
	}},
	{name: ".domfs", doc: "the daemon itself", mode: gateMode, kids: []entry{
		{name: "version", doc: "what it is", show: daemonVersion},
		{name: "stats", doc: "counters, one a line: name value", show: daemonStats},
		{name: "events", doc: "blocks, and streams one JSON object a line", events: true},
	}},
}}

// guestGroups are what an Assembler found: groups of volumes.
func guestGroups(kind string) []entry {
	return []entry{
		{name: "<vg>", doc: "one of the guest's volume groups", list: groups(kind), find: findGroup(kind), kids: []entry{
			{name: "<lv>", doc: "a VOLUME", list: groupVolumes, find: findGroupVolume, volume: true},
		}},
	}
}

// volume is what every VOLUME holds: a disk, a partition in one, and a guest's logical volume.
var volume = []entry{
	{name: "size", doc: "bytes", show: volumeSize},
	{name: "raw", doc: "its bytes", raw: true},
	{name: "content", doc: "what is on it, in blkid's words; empty if unknown", show: volumeContent},
	{name: "label", doc: "of that content", show: volumeLabel},
	{name: "uuid", doc: "of that content", show: volumeUUID},
	{name: "device", doc: "a block device of these bytes, while mapped is 1", when: isMapped, link: volumeDevice, target: "/dev/...", fleeting: true},
	{name: "files", doc: "the guest's files, if content is a filesystem", when: hasFiles, files: true},
	{name: "p<n>", doc: "a VOLUME for each partition, if content is a partition table", list: parts, find: findPart, volume: true},
}

package backend

import "context"

// MapRequest says what of a snapshot set is to be mapped.
type MapRequest struct {
	SetID   string
	Disks   []MapDisk
	Volumes []MapVolume // the guest's logical volumes
}

// MapDisk is a disk with its partitions.
type MapDisk struct {
	VDev string // Name of the disk as a Member, and the beginning of its partitions'
	// Path is the block device (or the file) of the host that holds the disk's bytes, as Snapshot.Path has it. Nothing
	// writes to it.
	Path      string
	SizeBytes int64
	Parts     []MapPart
}

// MapPart is a partition, at any depth.
type MapPart struct {
	Name          string // "p2", "p1/p5": its path below the disk
	Start, Length int64  // bytes of the disk
	Content       string // Type of its Content
}

// MapVolume is a guest's volume that lies on disks and partitions of the same request.
type MapVolume struct {
	Name      string // its path in the tree: "lvm/vg0/root"
	SizeBytes int64
	Segments  []MapSegment // Members are "xvda", "xvda/p2"
}

// Mapping is one block device of the host that a Mapper made, or that was there already.
type Mapping struct {
	SetID string
	// Name is the volume's path in the set: "xvda" the disk, "xvda/p2", "lvm/vg0/root".
	Name   string
	Device string // absolute path below /dev
}

// Unmapped is a volume of a MapRequest that cannot be mapped by its nature.
type Unmapped struct {
	Name string // as in Mapping
	Err  error  // why: ErrUnsupported
}

// Mapper makes read-only block devices of the host of what lies in a snapshot. The host's own LVM and
// udev's probing are kept off them. Its methods are safe for concurrent use by one process; changes happen one at a time.
type Mapper interface {
	// Name is kpartx or loop.
	Name() string
	// Map maps all of a request, or nothing; what of it is mapped already stays. A volume that
	// cannot be mapped by its nature (one that the host's LVM would take for its own, a partition that the tool
	// does not take) is left out, and said why. The nodes are there when it returns.
	Map(ctx context.Context, r MapRequest) ([]Mapping, []Unmapped, error)
	// Unmap removes all mappings of a set, those of a crash included; it is no error that there are
	// none. ErrBusy names who has one open; the others of the set are then unchanged or removed, and Map
	// makes them again.
	Unmap(ctx context.Context, setID string) error
	// Mappings lists the mappings on the host, by set; also those of a daemon that died.
	Mappings(ctx context.Context) (map[string][]Mapping, error)
}

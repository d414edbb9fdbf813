package backend

// Member is one of the devices that an Assembler puts together: an LVM physical volume, a
// component of an md array.
type Member struct {
	Device Device // outlives what is assembled
	Name   string // where it is in the guest, for messages and MapTarget: "xvda", "xvda/p2"
	// Cost is that of the GroupVolume that it lies on; 0 on a disk.
	Cost int64
}

// Group is what an Assembler found: a guest's volume group.
type Group struct {
	Name string // as the guest calls it; a legal name of a directory
	UUID string
	// Volumes are those that the guest's user sees, sorted by name.
	Volumes []GroupVolume
	// Warnings are sentences, few of them: a physical volume that is missing, metadata that was
	// damaged on one of them.
	Warnings []string
}

// GroupVolume is one volume of a Group: a guest's logical volume.
type GroupVolume struct {
	Name   string // a legal name of a directory, unique in its group
	UUID   string
	Device Device // closing it does nothing; nil where Err says why it cannot be read
	Err    error
	// Segments say how it lies on the members, where it is linear or striped all through;
	// empty elsewhere (a mirror, a snapshot, a thin volume).
	Segments []MapSegment
	// Cost is how many reads of disks a small read may come to, where legs fail or have to be made up. An Assembler
	// bounds it: what lies on legs that lie on legs multiplies.
	Cost int64
}

// MapSegment is a run of a volume that lies on one member, or in stripes on several.
type MapSegment struct {
	Start, Length int64 // bytes of the volume
	StripeBytes   int64 // 0 where there is one target
	Targets       []MapTarget
}

// MapTarget is where a segment, or each of its stripes, begins.
type MapTarget struct {
	Member string // Name of a Member
	Offset int64  // bytes into it
}

// Assembler finds the volumes that lie over several devices of one guest.
type Assembler interface {
	// Name is its directory in the tree: lvm, md.
	Name() string
	// Types are the Content types of its members.
	Types() []string
	// Assemble puts members of one guest together. What is damaged or missing hides nothing
	// else: it is the Err of a volume, a warning of a group, or one of the warnings that
	// belong to no group. Members are only read.
	Assemble(members []Member) (groups []Group, warnings []string)
}

package backend

import (
	"context"
	"time"
)

// Volume is what a store keeps behind a disk, or as a snapshot of one.
type Volume struct {
	Store     string // Name of its Store
	ID        string // the store's own key: an image's absolute path, vg/lv
	Driver    string // file, lvm, lvm-thin, phy: what the tree's `driver` says
	Format    string // raw, qcow2, …
	Pool      string // name of the Pool it takes space from; "" if none
	SizeBytes int64
	// Generation changes whenever the bytes may have changed or the volume was
	// replaced; readers of anything cached compare it.
	Generation uint64
	// ModTime is when the bytes last changed; zero where the store cannot tell.
	ModTime time.Time
	// Holder names who has the volume open (a process, a loop device), "" if nobody
	// that counts: such a volume's domain is running.
	Holder string
	// Unfinished: a Creator made it, and Keep was not called since.
	Unfinished bool
	// Err says why the volume cannot be read (missing, a directory, …); the sizes are
	// then not valid.
	Err error
}

// Pool is a place that volumes take their space from: a VG, a thin pool, the
// folder of image files.
type Pool struct {
	Name      string // one path component, unique in its store
	Driver    string
	Path      string // folder or device, for messages
	SizeBytes int64
	FreeBytes int64
	// MetadataSizeBytes and MetadataFreeBytes are a thin pool's room for its own records; 0, 0 of
	// anything else.
	MetadataSizeBytes int64
	MetadataFreeBytes int64
}

// Store is where volumes live.
//
// Optional: Snapshotter, Filler, Reserver, Watcher, Resizer, Resumer, Creator, Excluder.
type Store interface {
	// Name is the store's name: image, lvm, phy.
	Name() string
	// Volumes finds the volumes behind disks. The answer has one element for each
	// disk; its Store is empty where the disk is not this store's. A volume that is
	// this store's but cannot be read has its Err set.
	Volumes(ctx context.Context, disks []Disk) ([]Volume, error)
	// Pools lists the pools that the store knows: those of the disks that Volumes was
	// last asked for, and those that it was configured with.
	Pools(ctx context.Context) ([]Pool, error)
	// Open opens a volume for reading.
	Open(ctx context.Context, v Volume) (Device, error)
}

// SnapshotState is what has become of a snapshot volume, or of a set of them.
type SnapshotState string

// The states of a snapshot. Pending is never seen by users: a set that is found
// pending at the daemon's start is what a crash left, and is removed, and so is
// one that is filling or removing.
const (
	SnapshotPending  SnapshotState = "pending"
	SnapshotFilling  SnapshotState = "filling"
	SnapshotActive   SnapshotState = "active"
	SnapshotInvalid  SnapshotState = "invalid"
	SnapshotRemoving SnapshotState = "removing"
)

// Consistency is what could be promised at the instant of a snapshot.
type Consistency string

// The consistencies, best first.
const (
	ConsistencyOff          Consistency = "off"
	ConsistencyFrozen       Consistency = "frozen"
	ConsistencyPaused       Consistency = "paused"
	ConsistencyCrash        Consistency = "crash"
	ConsistencyCrashPerDisk Consistency = "crash-per-disk"
)

// SnapshotMeta is what a store keeps with each volume of a snapshot set, so that
// no other record is needed: LVM tags, a manifest beside image files.
type SnapshotMeta struct {
	Set         string // identity of the set, equal on all of its volumes
	Name        string // the user's name for it
	DomainName  string
	DomainUUID  string // "" where the domain has none
	Disk        Disk   // the disk as it was configured at that instant
	DiskCount   int    // how many volumes the complete set has
	Created     time.Time
	Consistency Consistency
	State       SnapshotState
	Expires     time.Time // zero: never
	Hold        bool
}

// Snapshot is one volume of a snapshot set.
type Snapshot struct {
	SnapshotMeta
	Volume    Volume // its Err says why State is invalid, where the store knows
	Origin    string // ID of the volume that it is a snapshot of
	UsedBytes int64  // space held by the snapshot itself
	// ReserveBytes is the space for copies on write that it was given; once all of it is used
	// (FillPercent is 100) it becomes invalid. 0 for one that cannot overflow by itself.
	ReserveBytes int64
	FillPercent  float64 // of ReserveBytes
	// Foreign is one that was not made by domfs: its Set is the store's identity for it, its Name
	// the volume's, DomainName and DomainUUID are empty, and it has no record to annotate.
	Foreign bool
	// Path is the block device, or the file, of the host that holds its bytes as the guest sees
	// them, for a Mapper; "" where there is none (a format other than raw).
	Path string
}

// Annotation is a new meta for a snapshot.
type Annotation struct {
	Snapshot Snapshot // as it was listed, or made
	Meta     SnapshotMeta
}

// With is the snapshot with another meta.
func (s Snapshot) With(m SnapshotMeta) Annotation { return Annotation{Snapshot: s, Meta: m} }

// SnapshotRequest asks for a snapshot of one volume.
type SnapshotRequest struct {
	Origin Volume
	Meta   SnapshotMeta
}

// Snapshotter is a Store that can make snapshots.
//
// A set becomes lasting in two steps: Snapshot makes each volume in state pending,
// Annotate then marks each as active (or filling). Both are durable when they
// return.
type Snapshotter interface {
	// Prepare checks, before anything is paused or touched, that snapshots of all
	// these volumes together can be made: ErrUnsupported with the reason, ErrNoSpace
	// with the numbers. running tells whether their domain runs. The guard that it
	// returns, never nil without an error, keeps what was checked true (a volume that
	// must be copied stays unwritten) until it is released.
	Prepare(ctx context.Context, reqs []SnapshotRequest, running bool) (Guard, error)
	// Snapshot makes one snapshot. The result's State is pending, or filling if its
	// bytes are still to be copied by Fill; the space is reserved then.
	Snapshot(ctx context.Context, req SnapshotRequest, g Guard) (Snapshot, error)
	// Snapshots lists all snapshot volumes in the store's pools, half-made ones included.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// Annotate replaces the metas of snapshots, each at once and durably; those of one set together, where that is cheaper.
	// On error some may be replaced.
	Annotate(ctx context.Context, all ...Annotation) error
	// Remove removes a snapshot volume. One that is gone already is no error.
	Remove(ctx context.Context, s Snapshot) error
	// Repair removes what a crash may have left of any operation and what no snapshot
	// in Snapshots accounts for (temporary files). It is called at the daemon's start, and
	// when snapshots appear whose Volume.Err is ErrNoDevice, to activate them; with the host's lock held.
	Repair(ctx context.Context) error
}

// Guard keeps the preconditions of a snapshot true.
type Guard interface {
	// Broken says why what Prepare checked is no longer true, nil while it is.
	Broken() error
	// Exclusive tells whether the guard makes sure that nobody writes to the volumes.
	Exclusive() bool
	// Release ends the guard. Safe to call more than once.
	Release()
}

// Filler is a Snapshotter some of whose snapshots must be copied after they were
// reserved.
type Filler interface {
	// Fill copies the bytes of a snapshot whose State is filling; the guard of its
	// Prepare must still hold. progress is called now and then with bytes done of bytes in all: those that are
	// copied, not those that a guest sees.
	// On error the snapshot is to be removed.
	Fill(ctx context.Context, s Snapshot, g Guard, progress func(done, total int64)) error
}

// Resizer is a Store that can grow volumes.
type Resizer interface {
	// Resize grows v to at least sizeBytes, rounded up to what the store allots, and
	// returns the size that it has then. It never shrinks: ErrPermission.
	Resize(ctx context.Context, v Volume, sizeBytes int64) (int64, error)
	// RoundSize says what sizeBytes rounds up to for v.
	RoundSize(v Volume, sizeBytes int64) int64
}

// VolumeRequest asks for a new volume.
type VolumeRequest struct {
	Pool string // Name of the Pool that it takes its space from
	// Name is what it is to be called. The store makes of it a name that it can have and that nothing else has.
	Name      string
	SizeBytes int64 // at least; rounded up to what the store allots
}

// Creator is a Store that can make volumes, and remove them.
//
// A volume becomes lasting in three steps: Create makes it, NewVolume.Clear has it read as zeroes, Keep says that
// it is somebody's from now on. Each is durable when it returns. One that was not kept is removed by Repair, unless somebody
// has it open, or has written to it after it was cleared.
type Creator interface {
	// Create makes a volume: ErrNoDevice where there is no such pool, ErrNoSpace with the numbers, ErrUnsupported with
	// the reason; then nothing is left.
	Create(ctx context.Context, req VolumeRequest) (NewVolume, error)
	// Keep says that a volume is not to be removed by Repair any more. One that need not be kept is no error.
	Keep(ctx context.Context, v Volume) error
	// Delete removes a volume: ErrBusy, and nothing has changed, while somebody has it open or it has snapshots. One that is
	// gone already is no error.
	Delete(ctx context.Context, v Volume) error
}

// NewVolume is a volume that a Creator has made. Until it is closed, Repair, of other daemons too, leaves it alone.
type NewVolume interface {
	Volume() Volume
	// Source is what a Disk has as its Source to be on it.
	Source() string
	// Clear makes all of it read as zeroes: nobody is to read what other guests had there before. progress is called now and
	// then with bytes done of bytes in all. It may take long, and ends soon after ctx does.
	Clear(ctx context.Context, progress func(done, total int64)) error
	Close() error
}

// Reserver is a Snapshotter of snapshots whose space for copies on write is bounded.
type Reserver interface {
	// ExtendReserve grows ReserveBytes to at least sizeBytes, rounded up to what the store allots and
	// cut to what such a snapshot can ever use, and returns what it has then. It never shrinks
	// (ErrPermission); ErrNoSpace with the numbers; ErrUnsupported where there is no reserve.
	ExtendReserve(ctx context.Context, s Snapshot, sizeBytes int64) (int64, error)
	// MaxReserve is the most that s can ever use, in bytes.
	MaxReserve(s Snapshot) int64
}

// Resumer is a Store that suspends volumes for an instant while it changes them.
type Resumer interface {
	// Resume lets volumes go on that a change which was cut off left suspended. It is called, with the host's lock held, when a
	// daemon has died in the middle of a change, before anything else is done.
	Resume(ctx context.Context) error
}

// Excluder is a Store that can say why it leaves a disk of its kind to another one.
type Excluder interface {
	// Excluded says what d is and why it was left out (ErrUnsupported), nil if d is nothing of this store's kind.
	Excluded(ctx context.Context, d Disk) error
}

// Watcher is a Store that learns at once when the fill or the validity of its snapshots and
// pools passes a mark, or a Hypervisor that learns when a domain, its state or its disks change.
type Watcher interface {
	// Watch calls changed once when it has begun to watch, so that nothing is missed, and then whenever something
	// has happened, until ctx ends; it does not poll. changed must not block. An error says that watching is impossible: whoever wants to know has to ask then.
	Watch(ctx context.Context, changed func()) error
}

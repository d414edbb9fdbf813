package backend

import "context"

// DomainState is what the hypervisor says of a domain, in xl's words.
type DomainState string

// The states of a domain.
const (
	StateOff      DomainState = "off"
	StateRunning  DomainState = "running"
	StatePaused   DomainState = "paused"
	StateShutdown DomainState = "shutdown"
	StateCrashed  DomainState = "crashed"
	StateDying    DomainState = "dying"
)

// Domain is a virtual machine that the host knows, running or not.
type Domain struct {
	Name   string // as the hypervisor names it; never empty
	UUID   string // lower-case with hyphens; empty where the configuration has none
	ID     int    // the hypervisor's number; -1 while the domain is off
	State  DomainState
	Config string // absolute path of its configuration file; empty if it has none
	Disks  []Disk
	// Warnings are faults of the configuration that did not keep it from being
	// read, each a sentence with file and line.
	Warnings []string
	// Err says why the configuration could not be read. Disks then holds what
	// could be.
	Err error
}

// Disk is one virtual disk, as the configuration describes it.
type Disk struct {
	VDev string // the guest's name for it: xvda, sda1, hdc, vda
	// Backend is the configuration's word for what serves it (phy, tap, qdisk),
	// "" where it leaves the choice to the toolstack.
	Backend string
	Format  string // raw, qcow2, qed, vhd, …
	// Source is the absolute path or the URL behind it; empty for a CD-ROM drive
	// without a medium.
	Source string
	Mode   Mode
	CDROM  bool
	// Script is the block script of the configuration; a disk with one has a
	// Source that only the script can interpret.
	Script string
	// BackendDomain is the driver domain that serves it, "" for this host.
	BackendDomain string
}

// Mode tells whether the guest may write to a disk.
type Mode string

// The modes of a disk.
const (
	ReadWrite Mode = "rw"
	ReadOnly  Mode = "ro"
)

// Hypervisor is where domains come from.
//
// Optional: Pauser, PausePreparer, SizeNotifier, Attacher, Watcher.
type Hypervisor interface {
	// Name is the driver's name: xlcfg, xen, …
	Name() string
	// Domains lists every domain. One that is broken comes with its Err, and never
	// hides the others; the error is for a list that could not be made at all.
	Domains(ctx context.Context) ([]Domain, error)
}

// Pauser can stop a running domain for an instant.
type Pauser interface {
	// Pause stops the domain's CPUs. resume undoes exactly this pause; it is safe to call more than once, and from
	// an error on, until there is none. It is to be called after an error of Pause as well, if it is not nil.
	//
	// Whoever is killed before calling it leaves no domain paused: after a limit of its own, longer than any caller keeps a
	// domain, the driver resumes it. ErrStale of resume says that the domain is not paused by us, but was not until now either: the limit has passed, or somebody else
	// has resumed or ended it.
	Pause(ctx context.Context, d Domain) (resume func(context.Context) error, err error)
}

// PausePreparer is a Pauser that has something to do before a pause that need not be part of it.
type PausePreparer interface {
	Pauser
	// PreparePause gets ready to pause d: p pauses d alone, and once. release gives that up, or does nothing where p was used.
	PreparePause(ctx context.Context, d Domain) (p Pauser, release func(), err error)
}

// Freezer can have a guest bring its filesystems to rest: what is written is on the disks, and nothing is written until it
// is thawed.
type Freezer interface {
	// Freeze freezes the guest of d for a snapshot of that name. thaw undoes it, as resume does what Pauser.Pause did: it is
	// safe to call more than once, is to be called after an error of Freeze as well, if it is not nil, and says ErrStale where
	// the guest had been thawed before.
	Freeze(ctx context.Context, d Domain, snapshot string) (thaw func(context.Context) error, err error)
}

// SizeNotifier can tell a running domain that a disk has grown.
type SizeNotifier interface {
	// CanNotify says why the guest would not see a new size of that disk (ErrUnsupported), nil if it would. It is asked
	// before the disk grows.
	CanNotify(ctx context.Context, d Domain, vdev string) error
	NotifySize(ctx context.Context, d Domain, vdev string, sizeBytes int64) error
}

// Attacher can give a running domain a disk, and take one from it.
type Attacher interface {
	// Attach gives d the disk k and returns once it is connected, or has been taken back. ErrExist where d has
	// such a vdev; ErrUnsupported with the reason.
	Attach(ctx context.Context, d Domain, k Disk) error
	// Detach takes a disk from d. ErrBusy, and nothing has changed, where the guest does not let go of it.
	Detach(ctx context.Context, d Domain, vdev string) error
}

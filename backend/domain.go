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
// Optional: Pauser, SizeNotifier.
type Hypervisor interface {
	// Name is the driver's name: xlcfg, xen, …
	Name() string
	// Domains lists every domain. One that is broken comes with its Err, and never
	// hides the others; the error is for a list that could not be made at all.
	Domains(ctx context.Context) ([]Domain, error)
}

// Pauser can stop a running domain for an instant.
type Pauser interface {
	// Pause stops the domain's CPUs. resume undoes exactly this pause; it is safe to
	// call more than once.
	Pause(ctx context.Context, d Domain) (resume func(context.Context) error, err error)
}

// SizeNotifier can tell a running domain that a disk has grown.
type SizeNotifier interface {
	NotifySize(ctx context.Context, d Domain, vdev string, sizeBytes int64) error
}

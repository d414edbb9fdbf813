// Package control holds the use cases of domfs: what the host looks like now, and
// the changes to it. It knows no FUSE and no driver, only the interfaces of backend.
package control

import (
	"context"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// Options are what a Host is made of.
type Options struct {
	Hypervisors []backend.Hypervisor
	Stores      []backend.Store // asked in this order whose a disk is
	Prober      backend.Prober
	Layouts     []backend.Layout
	Filesystems []backend.Filesystem
	Log         *zap.Logger
	// LockFile is locked (flock) for each change, so that several daemons on one host take turns.
	LockFile string
	// LockTimeout is how long a change waits for another one: then ErrBusy. 0 means 30 s.
	LockTimeout time.Duration
	// ErrnoName names the errno that an error reaches the user as, for last_error.
	ErrnoName func(error) string
	// MaxAge is how old an Inventory may be that Host.Inventory returns. 0 means 400 ms.
	MaxAge time.Duration
}

// Host is one virtualisation host.
type Host struct{}

// New makes a Host; it reads nothing yet.
func New(o Options) *Host { panic("skeleton") }

// Start repairs what a crash left (half-made snapshot sets, temporary files), then
// begins to honour expiry.
func (h *Host) Start(ctx context.Context) error { panic("skeleton") }

// Close waits for changes under way, ends copies (their snapshots are removed) and
// closes every device.
func (h *Host) Close() error { panic("skeleton") }

// Inventory is one reading of the host. It is never changed once returned.
type Inventory struct {
	Domains   []*Domain      // sorted by name
	Snapshots []*SnapshotDir // sorted by name; one for each domain, and for each that is gone but has snapshots
	Pools     []backend.Pool // sorted by name
}

// Domain is one domain of the host with the volumes behind its disks.
type Domain struct {
	backend.Domain // State is running also where somebody holds a disk open
	Holder         string
	Volumes        []backend.Volume // one for each of Disks
	SnapshotDir    string           // name of its directory in snapshots/
}

// SnapshotDir is the directory of one domain's snapshots.
type SnapshotDir struct {
	Name   string
	Domain *Domain // nil if the domain is gone
	Sets   []*Set  // sorted by name
}

// Set is a snapshot of all disks of a domain.
type Set struct {
	ID          string
	Name        string
	DomainUUID  string
	DomainName  string // when it was made
	Created     time.Time
	Consistency backend.Consistency
	State       backend.SnapshotState
	Expires     time.Time // zero: never
	Hold        bool
	Disks       []backend.Snapshot // sorted by vdev as the configuration had them
}

// Inventory reads the host, or returns a reading not older than Options.MaxAge in which
// every change of this Host that has ended is seen.
func (h *Host) Inventory(ctx context.Context) (*Inventory, error) { panic("skeleton") }

// Domain finds a domain by name, nil if there is none.
func (inv *Inventory) Domain(name string) *Domain { panic("skeleton") }

// SnapshotDir finds a snapshot directory by name, nil if there is none.
func (inv *Inventory) SnapshotDir(name string) *SnapshotDir { panic("skeleton") }

// Set finds a set by name, nil if there is none.
func (d *SnapshotDir) Set(name string) *Set { panic("skeleton") }

// Disk finds a disk's index by vdev, -1 if there is none.
func (d *Domain) Disk(vdev string) int { panic("skeleton") }

// Disk finds a disk's snapshot by vdev, nil if there is none.
func (s *Set) Disk(vdev string) *backend.Snapshot { panic("skeleton") }

// The changes. Each takes the host's lock, acts on a fresh inventory, runs to its end
// whatever becomes of ctx's cancellation, and records a failure in LastErrors, the log and events.
// dir is a SnapshotDir's name; value is what the user wrote, less one newline at its end.

// Snapshot makes a snapshot of every disk of a domain.
func (h *Host) Snapshot(ctx context.Context, dir, name string) error { panic("skeleton") }

// Remove removes a snapshot set.
func (h *Host) Remove(ctx context.Context, dir, name string) error { panic("skeleton") }

// Rename renames a snapshot set within its domain.
func (h *Host) Rename(ctx context.Context, dir, oldName, newName string) error { panic("skeleton") }

// Resize grows a live disk: value is a size or +size, as ParseSize reads it.
func (h *Host) Resize(ctx context.Context, domain, vdev, value string) error { panic("skeleton") }

// SetExpires sets when the daemon removes a set: "" never, RFC 3339, or +7d.
func (h *Host) SetExpires(ctx context.Context, dir, name, value string) error { panic("skeleton") }

// SetHold sets or clears a set's hold: "0" or "1".
func (h *Host) SetHold(ctx context.Context, dir, name, value string) error { panic("skeleton") }

// Failed records a failure of op that happened outside of the verbs above (opening a
// disk, a refused gesture), and returns err. The same sentence again only renews its time.
func (h *Host) Failed(domain, op string, err error) error { panic("skeleton") }

// LastErrors is the text of a domain's last_error: up to 16 lines, newest last; each is
// number, RFC 3339 time, operation, errno name and a sentence, separated by one space.
func (h *Host) LastErrors(domain string) []byte { panic("skeleton") }

// Event is one thing that happened; it is marshalled as one JSON object.
type Event struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"` // snapshot, remove, rename, resize, fill, error, warning, expire, …
	Domain   string    `json:"domain,omitempty"`
	Snapshot string    `json:"snapshot,omitempty"`
	Disk     string    `json:"disk,omitempty"`
	Errno    string    `json:"errno,omitempty"`
	Message  string    `json:"message,omitempty"`
	Done     int64     `json:"done_bytes,omitempty"`
	Total    int64     `json:"total_bytes,omitempty"`
	Took     float64   `json:"took_seconds,omitempty"`
}

// Events calls f with each event from now on until cancel is called. f must not block.
func (h *Host) Events(f func(Event)) (cancel func()) { panic("skeleton") }

// OnDrain sets what Remove and expiry call first: it waits until no file of the set is
// open, or fails with ErrBusy naming who has one open. Set once, before Start.
func (h *Host) OnDrain(f func(ctx context.Context, setID string) error) { panic("skeleton") }

// OnChange sets what is called after each change that may make a cached name or
// attribute wrong, with no lock held. Set once, before Start.
func (h *Host) OnChange(f func(Change)) { panic("skeleton") }

// Change says what a change touched.
type Change struct {
	Domain string // a domain's name, if one of its live disks changed
	Dir    string // a SnapshotDir's name, if its sets changed
	SetID  string // the set that was made, renamed, removed or annotated
	Gone   bool   // the set was removed
}

// Stats are counters for .domfs/stats.
func (h *Host) Stats() map[string]int64 { panic("skeleton") }

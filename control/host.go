// Package control holds the use cases of domfs: what the host looks like now, and
// the changes to it. It knows no FUSE and no driver, only the interfaces of backend.
//
// Reading and changing are apart. Inventory is one reading of everything, cached for a
// moment; the verbs (Snapshot, Remove, Rename, Resize, Attach, Detach, SetExpires, SetHold) each take the
// host's lock, read afresh, and run to their end. The drivers' own records (tags,
// manifests) are the only state: what a crash leaves is found there by Start.
package control

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
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
	Assemblers  []backend.Assembler
	// Mapper makes block devices of the host of what is in snapshots; nil where there is none, and
	// NoMapper says why then.
	Mapper   backend.Mapper
	NoMapper error
	// MapNew names the stores whose snapshots are mapped as they are made.
	MapNew []string
	Log    *zap.Logger
	// LockFile is locked (flock) for each change, so that several daemons on one host take turns.
	// Empty: the daemon is alone. Files named LockFile + ".fill-" + a set's ID lie beside it
	// while that set is being copied, + ".map-" while it is mapped.
	LockFile string
	// LockTimeout is how long a change waits for another one: then ErrBusy. 0 means 30 s.
	LockTimeout time.Duration
	// ErrnoName names the errno that an error reaches the user as, for last_error.
	ErrnoName func(error) string
	// MaxAge is how old an Inventory may be that Host.Inventory returns. 0 means 400 ms.
	MaxAge time.Duration
	// AutoExtend says when the reserves of snapshots are extended; the zero value is never.
	AutoExtend AutoExtend
	// NoPause leaves domains running while they are snapshotted.
	NoPause bool
	// PauseLimit is how long a domain is kept paused, at most. 0 means 10 s. A guest is kept frozen for 20 s more.
	PauseLimit time.Duration
	// Freezer freezes the guests that run for their snapshots; nil: they are not frozen.
	Freezer backend.Freezer
	// Foreign lets Remove remove snapshots that others made.
	Foreign bool
	// RemoveVolumes has Detach remove the volume of a disk that it detached.
	RemoveVolumes bool
}

// Limits. A test may change those of its Host.
type limits struct {
	read    time.Duration // for one driver's answer while the host is read
	change  time.Duration // for a whole change, once it has the lock
	undo    time.Duration // for taking back what a failed change did
	pause   time.Duration // how long a domain is kept paused, at most
	frozen  time.Duration // how long a guest is kept frozen, at most
	open    time.Duration // for opening a volume
	recheck time.Duration // how long a live volume is trusted without looking again
	idle    time.Duration // how long a live disk that nobody uses stays open
	rest    time.Duration // the same for a snapshot's: a backup's pauses must not close it
	leave   time.Duration // how long a removal waits for reads under way
	tick    time.Duration // how often expiry looks, at least
	retry   time.Duration // how soon expiry tries again after a failure
	end     time.Duration // how long Close waits for what is under way
	disks   int           // how many disks stay open, in use or not
	fills   int           // how many sets are copied at once
	clears  int           // how many new volumes are cleared at once
	forget  time.Duration // how long a new disk waits for its size
	appear  time.Duration // how long a disk that was attached is waited for in the inventory
	observe time.Duration // how long, at least, a disk is not to be written to for it to be detached

	sampleFast time.Duration // how often fills are looked at where one grows fast
	sampleSlow time.Duration // where none grows
	sampleGap  time.Duration // between readings that a store's events cause, at least
	sampleOwn  time.Duration // how long such a reading is put off while a change is under way, at most
	sampleHeld time.Duration // the same where the event is most likely not the change's own; longer where the host is slow to read
}

func defaultLimits() limits {
	return limits{
		read:    20 * time.Second,
		change:  10 * time.Minute,
		undo:    2 * time.Minute,
		pause:   10 * time.Second,
		frozen:  30 * time.Second,
		open:    time.Minute,
		recheck: 500 * time.Millisecond,
		idle:    5 * time.Second,
		rest:    30 * time.Second,
		leave:   time.Second,
		tick:    time.Minute,
		retry:   time.Minute,
		end:     time.Minute,
		disks:   128,
		fills:   2,
		clears:  2,
		forget:  10 * time.Minute,
		appear:  5 * time.Second,
		observe: time.Second,

		sampleFast: time.Second,
		sampleSlow: 10 * time.Second,
		sampleGap:  200 * time.Millisecond,
		sampleOwn:  10 * time.Second,
		sampleHeld: time.Second,
	}
}

// Host is one virtualisation host.
type Host struct {
	o      Options
	log    *zap.Logger
	lim    limits
	now    func() time.Time
	errno  func(error) string
	stores map[string]backend.Store // by name; never changed after New

	lock      *hostLock
	keeping   atomic.Int32 // domains that are kept paused or frozen at present: nothing is done then that can wait
	inventory inventoryCache
	drivers   driverStates
	volumes   *volumeCache
	making    makingSets
	fills     fillTable
	mappings  mappings
	newDisks  newDisks
	errs      errorLog
	events    eventHub
	stats     counters
	guard     guard

	onDrain  func(ctx context.Context, setID string) error // set before Start
	onChange func(Change)                                  // set before Start

	expiryKick chan struct{} // one slot: look again
	done       context.Context
	stop       context.CancelFunc

	closeMu sync.RWMutex // held for reading by begin only
	closed  bool         // guarded by closeMu
	running sync.WaitGroup
}

// New makes a Host; it reads nothing yet.
func New(o Options) *Host {
	if o.LockTimeout == 0 {
		o.LockTimeout = 30 * time.Second
	}
	if o.MaxAge == 0 {
		o.MaxAge = 400 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	lim := defaultLimits()
	if o.PauseLimit > 0 {
		lim.frozen += o.PauseLimit - lim.pause
		lim.pause = o.PauseLimit
	}
	h := &Host{
		o:          o,
		log:        o.Log,
		lim:        lim,
		now:        time.Now,
		errno:      o.ErrnoName,
		stores:     map[string]backend.Store{},
		lock:       newHostLock(o.LockFile),
		expiryKick: make(chan struct{}, 1),
	}
	if h.errno == nil {
		h.errno = func(error) string { return "EIO" }
	}
	for _, s := range o.Stores {
		if _, ok := h.stores[s.Name()]; !ok {
			h.stores[s.Name()] = s
		}
	}
	h.done, h.stop = context.WithCancel(context.Background())
	h.drivers.init()
	h.errs.init()
	h.fills.init(h.lim.fills)
	h.mappings.init()
	h.newDisks.init(h)
	h.volumes = newVolumeCache(h)
	h.guard.init(h)
	return h
}

// Start repairs what a crash left (half-made snapshot sets, temporary files), then
// begins to honour expiry and to guard what can overflow. What cannot be repaired now is logged, and no error: the
// rest of the host is to be seen all the same. The error is that the lock could not be
// had, or the host not be read at all.
func (h *Host) Start(ctx context.Context) error {
	if err := h.repair(ctx); err != nil {
		return err
	}
	// First the guard: what it has to read anew as it begins, the expiry has then, too.
	if err := h.guard.start(); err != nil {
		return err
	}
	return h.spawn(h.expiryLoop)
}

// Close waits for changes under way, ends copies (their snapshots are removed), removes the block devices that
// were made of snapshots and closes every device. ErrBusy says that volumes are still acquired: those are closed
// when they are released. ErrTimeout says that something under way does not end: nothing was
// closed, the process is to end, and the next Start repairs what that leaves.
func (h *Host) Close() error {
	h.closeMu.Lock()
	h.closed = true
	h.closeMu.Unlock()
	h.stop()
	h.fills.cancelAll()
	ended := make(chan struct{})
	go func() {
		h.running.Wait()
		close(ended)
	}()
	limit := time.NewTimer(h.lim.end)
	defer limit.Stop()
	select {
	case <-ended:
		h.endMappings()
		return h.volumes.close()
	case <-limit.C:
	}
	stacks := make([]byte, maxStackBytes)
	stacks = stacks[:runtime.Stack(stacks, true)]
	h.log.Error("what is under way does not end: the daemon ends without it", zap.Duration("after", h.lim.end))
	for piece := range slices.Chunk(stacks, stackPieceBytes) {
		h.log.Error("where it is", zap.ByteString("stacks", piece))
	}
	return fmt.Errorf("what is under way did not end within %s, the log says where it is: %w", h.lim.end, backend.ErrTimeout)
}

const (
	maxStackBytes   = 1 << 20 // of what is logged of work that does not end
	stackPieceBytes = 7 << 10 // in one line: a system's log cuts longer ones off
)

var errClosing = fmt.Errorf("the daemon is ending: %w", backend.ErrBusy)

// begin counts something that Close has to wait for.
func (h *Host) begin() (end func(), err error) {
	h.closeMu.RLock()
	defer h.closeMu.RUnlock()
	if h.closed {
		return nil, errClosing
	}
	h.running.Add(1)
	return h.running.Done, nil
}

// spawn runs f in a goroutine that Close waits for; f ends when h.done does.
func (h *Host) spawn(f func()) error {
	end, err := h.begin()
	if err != nil {
		return err
	}
	go func() {
		defer end()
		f()
	}()
	return nil
}

// OnDrain sets what Remove and expiry call first: it waits until no file of the set is
// open, or fails with ErrBusy naming who has one open. Set once, before Start. It is called
// with the host's lock held, so its wait must be short.
func (h *Host) OnDrain(f func(ctx context.Context, setID string) error) { h.onDrain = f }

// OnChange sets what is called after each change that may make a cached name or
// attribute wrong, with no lock held. Set once, before Start. It is called, before the verb
// returns, by the goroutine that made the change or that noticed it while reading the
// host; f may be called by several at once. It must not wait for the kernel: the kernel
// may be waiting for that very goroutine.
func (h *Host) OnChange(f func(Change)) { h.onChange = f }

// Change says what a change touched.
type Change struct {
	Domain string // a domain's name, if one of its live disks changed
	Dir    string // a SnapshotDir's name, if its sets changed
	SetID  string // the set that was made, renamed, removed or annotated
	Gone   bool   // the set was removed
	// Invalid: a disk of the set has become invalid. What is cached of it is true no more, and who has a
	// file of it open must get an error from now on.
	Invalid bool
}

func (h *Host) notify(cs ...Change) {
	if h.onChange == nil {
		return
	}
	for _, c := range cs {
		h.onChange(c)
	}
}

// contextError says that ctx ended while waiting for what. The deadline is ErrTimeout;
// cancellation stays context.Canceled.
func contextError(ctx context.Context, what string) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", what, backend.ErrTimeout)
	}
	return fmt.Errorf("%s: %w", what, err)
}

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"domfs/backend"
	"domfs/backend/blockdev"
	"domfs/backend/devmapper"
	"domfs/backend/proc"
	"domfs/backend/run"

	"go.uber.org/zap"
)

var (
	_ backend.Store   = (*Store)(nil)
	_ backend.Watcher = (*Store)(nil)
)

const (
	storeName  = "lvm"
	driverLV   = "lvm"
	driverThin = "lvm-thin"
)

// readTimeout is how long one tool that only reads may take.
const readTimeout = 20 * time.Second

// Options are what the store is told at the start.
type Options struct {
	// VGs are the volume groups that it is restricted to, all if there is none.
	VGs []string
	// SnapshotSize is the policy for the space that a thick snapshot gets; "" is the default.
	SnapshotSize string
	Formats      []backend.Format
	Runner       *run.Runner // nil: the host's tools
	Log          *zap.Logger // may be nil
}

// Store is the logical volumes of a host. It is safe for concurrent use.
type Store struct {
	o       Options
	log     *zap.Logger
	run     *run.Runner
	formats []backend.Format
	sysfs   string
	procfs  string
	control string       // device-mapper's node
	mapper  deviceMapper // asked through it
	stat    func(path string) (rdev uint64, isBlock bool, err error)
	events  func(control string) (events, error)
	arm     func(control int) error // has its next event make it readable

	images blockdev.Images

	policy    SizePolicy
	policyErr error      // why the policy that was asked for is none
	changes   sync.Mutex // held by each change: one at a time

	mu           sync.Mutex
	last         *report             // what was read last; guarded by mu
	unknown      map[string]bool     // fields that this host's LVM does not know; guarded by mu
	missing      error               // a tool that is not installed; guarded by mu
	missingUntil time.Time           // guarded by mu
	saidAbsent   bool                // guarded by mu
	lacking      map[string]bool     // VGs that were asked for, and that there are not; guarded by mu
	listing      listing             // guarded by mu
	lastDM       *devices            // what device-mapper said last; guarded by mu
	opened       map[string]*handles // by the UUID of the device; guarded by mu
	opening      int                 // calls of Open that are at work; guarded by mu
	holders      map[string]holding  // likewise; guarded by mu
	formatsOf    map[string]string   // formats other than raw of the disks that Volumes was last asked for, by Volume.ID; guarded by mu
}

// New makes the store.
func New(o Options) *Store {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Runner == nil {
		o.Runner = run.New(o.Log)
	}
	s := &Store{
		o:         o,
		log:       o.Log,
		run:       o.Runner,
		formats:   o.Formats,
		sysfs:     blockdev.Sysfs,
		procfs:    proc.Root,
		control:   devmapper.Node,
		mapper:    devmapper.New(devmapper.Node),
		stat:      statDevice,
		events:    openEvents,
		arm:       armPoll,
		unknown:   map[string]bool{},
		lacking:   map[string]bool{},
		opened:    map[string]*handles{},
		holders:   map[string]holding{},
		formatsOf: map[string]string{},
	}
	s.policy, s.policyErr = ParsePolicy(o.SnapshotSize)
	return s
}

// Name is "lvm".
func (s *Store) Name() string { return storeName }

// host is what LVM and device-mapper say at one time.
type host struct {
	*report          // nil if err says so
	dm      *devices // likewise
	err     error
	// byDevice has the LVs by the UUIDs of their devices.
	byDevice map[string]*lv
}

func newHost(r *report, dm *devices) *host {
	h := &host{report: r, dm: dm, byDevice: map[string]*lv{}}
	if r != nil {
		for _, l := range r.lvs {
			h.byDevice[l.dmUUID()] = l
		}
	}
	return h
}

// maxAge is how long what was read for Volumes may answer for Snapshots and Pools; on a host that is slow to read, ageFactor times as
// long as that took, up to maxSlowAge.
const (
	maxAge     = time.Second
	ageFactor  = 3
	maxSlowAge = 10 * time.Second
)

// listing is what was last read, for those that may have it without asking again: Volumes, Snapshots and Pools are
// called in this order for one listing of the host.
type listing struct {
	host  *host
	began time.Time
	took  time.Duration
	// How many calls may have it still: readings of the host that are under way at once call each in turn, and what was read for
	// the last of them is news for the others.
	forPools, forSnapshots int
}

// isOld tells whether it is too old to answer for what is asked now.
func (l *listing) isOld() bool {
	return time.Since(l.began) >= max(maxAge, min(ageFactor*l.took, maxSlowAge))
}

// readHost asks LVM and device-mapper now. It returns nil where there is no LVM; the host's err says what of it could not be read.
func (s *Store) readHost(ctx context.Context) *host {
	if s.absent() != nil {
		return nil
	}
	began := time.Now()
	// LVM first: a volume that is made meanwhile is not listed then, and not listed as inactive.
	r, err := s.readReport(ctx)
	if err != nil && s.remember(err) {
		return nil
	}
	dm, dmErr := s.readDevices(ctx)
	if dmErr != nil && s.remember(dmErr) {
		return nil
	}
	h := newHost(r, dm)
	h.err = errors.Join(err, dmErr)
	if h.err == nil {
		s.keep(h, began)
	}
	return h
}

// read is readHost for those who need all of it.
func (s *Store) read(ctx context.Context) (*host, error) {
	h := s.readHost(ctx)
	switch {
	case h == nil:
		if err := s.absent(); err != nil {
			return nil, err
		}
		return nil, backend.Because(backend.ErrUnsupported, "this host had no LVM a moment ago: try again")
	case h.err != nil:
		return nil, h.err
	}
	return h, nil
}

func (s *Store) keep(h *host, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.listing
	if !began.After(last.began) {
		return
	}
	s.listing = listing{host: h, began: began, took: time.Since(began), forPools: 1, forSnapshots: 1}
	if last.host != nil && !last.isOld() {
		s.listing.forPools += last.forPools
		s.listing.forSnapshots += last.forSnapshots
	}
}

// changed forgets what was read: something was changed by us.
func (s *Store) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listing = listing{began: time.Now()}
}

// listed is what the last listing read, if not all who may have had it for this yet, and it is not old; else it reads. It
// is nil where there is no LVM.
func (s *Store) listed(ctx context.Context, left func(*listing) *int) (*host, error) {
	s.mu.Lock()
	var h *host
	if n := left(&s.listing); *n > 0 && s.listing.host != nil && !s.listing.isOld() {
		h = s.listing.host
		*n--
	}
	s.mu.Unlock()
	if h != nil {
		return h, nil
	}
	if h = s.readHost(ctx); h == nil {
		return nil, nil
	}
	s.mu.Lock()
	if s.listing.host == h {
		*left(&s.listing)--
	}
	s.mu.Unlock()
	return h, h.err
}

// recent is what was read within the last moment, as control has for each change that it begins, or else now.
func (s *Store) recent(ctx context.Context) (*host, error) {
	s.mu.Lock()
	h := s.listing.host
	old := s.listing.isOld()
	s.mu.Unlock()
	if h != nil && !old {
		return h, nil
	}
	return s.read(ctx)
}

// readReport asks LVM for all VGs, and leaves those out that the store is not for.
func (s *Store) readReport(ctx context.Context) (*report, error) {
	for {
		s.mu.Lock()
		args := reportArgs(s.unknown)
		s.mu.Unlock()
		out, err := s.runRead(ctx, "lvm", args...)
		if err == nil {
			r, err := parseReport(out)
			if err != nil {
				return nil, fmt.Errorf("list the volume groups: %w", err)
			}
			s.tellLacking(r)
			r = r.only(s.o.VGs)
			s.mu.Lock()
			s.last = r
			s.mu.Unlock()
			return r, nil
		}
		field := unknownField(err)
		s.mu.Lock()
		again := field != "" && !s.unknown[field] && !essential[field]
		if again {
			s.unknown[field] = true
		}
		s.mu.Unlock()
		if !again {
			return nil, toolFailed("list the volume groups", err)
		}
		s.log.Debug("this host's LVM does not know a field of its reports", zap.String("field", field))
	}
}

// tellLacking warns, once, of VGs that the store is restricted to and that there are not: a disk that is not attached,
// or another name. They are worked with once they appear.
func (s *Store) tellLacking(r *report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.o.VGs {
		lacks := r.vg(name) == nil
		if lacks && !s.lacking[name] {
			s.log.Warn("there is no such volume group on this host", zap.String("vg", name))
		}
		s.lacking[name] = lacks
	}
}

// lastReport is what was read last; nil if nothing was.
func (s *Store) lastReport() *report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// runRead runs a tool that changes nothing.
func (s *Store) runRead(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return s.run.Run(ctx, name, args...)
}

// essential are the fields without which nothing can be said.
var essential = map[string]bool{"vg_name": true, "vg_uuid": true, "lv_name": true, "lv_uuid": true, "lv_attr": true, "lv_size": true, "lv_tags": true,
	"origin": true, "origin_size": true, "pool_lv": true, "segtype": true, "pv_uuid": true, "seg_start": true}

// unknownField is the field that LVM refused, "" if it failed otherwise.
func unknownField(err error) string {
	var e *run.Error
	if !errors.As(err, &e) || e.Err != nil {
		return ""
	}
	for line := range strings.Lines(e.Stderr) {
		if _, field, ok := strings.Cut(line, "Unrecognised field: "); ok {
			return strings.TrimSpace(field)
		}
	}
	return ""
}

// only leaves the VGs that have these names, all if there are no names.
func (r *report) only(names []string) *report {
	if len(names) == 0 {
		return r
	}
	kept := &report{}
	for _, g := range r.vgs {
		for _, name := range names {
			if g.name == name {
				kept.vgs = append(kept.vgs, g)
				kept.lvs = append(kept.lvs, g.lvs...)
				break
			}
		}
	}
	return kept
}

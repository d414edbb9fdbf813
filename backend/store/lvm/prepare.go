package lvm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"domfs/backend"
)

// How full a thin pool may be, in percent, for a snapshot to be begun in it: what its guests write from then on takes
// new space, and a pool that is full stops all of them.
const (
	maxPoolDataPercent     = 95
	maxPoolMetadataPercent = 90
)

// lvRecordBytes is about what a VG's metadata says of an LV beside its tags.
const lvRecordBytes = 1 << 10

// snapshotTypes are the segment types that LVM's thick snapshots lie over (lvmreport(7), segtype).
var snapshotTypes = []string{"linear", "striped", "raid0", "raid0_meta", "raid1", "raid4", "raid5", "raid6", "raid10", "cache", "writecache"}

// segmentKind is a segment type without the layout of raid's parity: raid5_ls is raid5.
func segmentKind(segtype string) string {
	for _, kind := range []string{"raid5", "raid6", "raid10"} {
		if strings.HasPrefix(segtype, kind+"_") {
			return kind
		}
	}
	return segtype
}

// plan is what Prepare found for one origin.
type plan struct {
	origin *lv
	// cowBytes is the space that a thick snapshot gets, 0 for a thin one.
	cowBytes int64
}

// guard is what Prepare checked. LVM takes snapshots of volumes in use: nothing has to be kept from anybody.
type guard struct {
	s     *Store
	plans map[string]*plan // by the origin's ID

	mu       sync.Mutex
	released bool // guarded by mu
}

// Broken implements backend.Guard.
func (g *guard) Broken() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.released {
		return backend.Because(backend.ErrStale, "the guard of these snapshots was released")
	}
	return nil
}

// Exclusive implements backend.Guard: never.
func (g *guard) Exclusive() bool { return false }

// Release implements backend.Guard.
func (g *guard) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.released = true
}

// Prepare implements backend.Snapshotter. Volumes in use can be snapshotted: what is caught is what a power cut would
// have left. Thick snapshots need free extents in their VG, thin ones a pool that is not nearly full; all requests are
// counted together.
func (s *Store) Prepare(ctx context.Context, reqs []backend.SnapshotRequest, running bool) (backend.Guard, error) {
	if s.policyErr != nil {
		return nil, s.policyErr
	}
	for _, req := range reqs {
		if err := checkRequest(req); err != nil {
			return nil, err
		}
	}
	h, err := s.recent(ctx)
	if err != nil {
		return nil, err
	}
	g := &guard{s: s, plans: map[string]*plan{}}
	var needs needs
	for _, req := range reqs {
		l := h.byID(req.Origin.ID)
		if l == nil {
			return nil, backend.Because(backend.ErrNotExist, "snapshot %s: there is no such logical volume", req.Origin.ID)
		}
		p, err := s.planOf(h, l)
		if err == nil {
			err = s.checkNew(h, l, req.Meta)
		}
		if err != nil {
			return nil, err
		}
		g.plans[req.Origin.ID] = p
		needs.add(p, req)
	}
	if err := needs.check(h); err != nil {
		return nil, err
	}
	return g, nil
}

func checkRequest(req backend.SnapshotRequest) error {
	v := req.Origin
	switch {
	case v.Store != storeName:
		return backend.Because(backend.ErrInvalid, "snapshot %s: it belongs to the store %q", v.ID, v.Store)
	case v.Err != nil:
		return fmt.Errorf("snapshot %s: %w", v.ID, v.Err)
	case req.Meta.Set == "" || req.Meta.Disk.VDev == "":
		return backend.Because(backend.ErrInvalid, "snapshot %s: its set or its disk has no name", v.ID)
	}
	if _, err := formatTags(pending(req.Meta)); err != nil {
		return fmt.Errorf("snapshot %s: %w", v.ID, err)
	}
	return nil
}

// pending is m as a snapshot begins.
func pending(m backend.SnapshotMeta) backend.SnapshotMeta {
	m.State = backend.SnapshotPending
	return m
}

// checkNew says why a snapshot of l cannot get its name.
func (s *Store) checkNew(h *host, l *lv, m backend.SnapshotMeta) error {
	name, err := snapshotName(l, m.Set, m.Disk.VDev)
	if err != nil {
		return err
	}
	if l.vg.lv(name) != nil {
		return backend.Because(backend.ErrExist, "snapshot %s: %s/%s is there already", l.id(), l.vg.name, name)
	}
	return nil
}

// planOf says what a snapshot of l takes, or why there can be none.
func (s *Store) planOf(h *host, l *lv) (*plan, error) {
	if err := l.vg.changeable(); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", l.id(), err)
	}
	refuse := func(sentinel error, format string, args ...any) (*plan, error) {
		return nil, backend.Because(sentinel, "%s cannot be snapshotted: "+format, append([]any{l.id()}, args...)...)
	}
	merging := l.merging || slices.ContainsFunc(h.snapshotsOf(l), func(sn *lv) bool { return sn.merging })
	switch dev := h.dm.of(l); {
	case l.hidden:
		return refuse(backend.ErrUnsupported, "it is a part of another volume")
	case l.partial:
		return refuse(backend.ErrIO, "a physical volume that it lies on is missing")
	case merging:
		return refuse(backend.ErrBusy, "a snapshot is being merged into it: wait until that is done")
	case l.isThick():
		return refuse(backend.ErrUnsupported, "it is a thick snapshot of %s/%s itself, and LVM makes none of those", l.vg.name, l.origin)
	case l.isThin():
		return &plan{origin: l}, nil
	case !slices.Contains(snapshotTypes, segmentKind(l.segtype)):
		return refuse(backend.ErrUnsupported, "it is a volume of type %s, which LVM's thick snapshots are not made for", l.segtype)
	case dev == nil:
		return refuse(backend.ErrUnsupported, "it is not active, and neither would its snapshot be: activate it with lvchange -ay %s", l.id())
	case dev.Suspended:
		return refuse(backend.ErrBusy, "its device %s is suspended: resume it with lvchange --refresh %s if nobody else is at it", dev.Name, l.id())
	case l.vg.extentBytes <= 0 || l.sizeBytes <= 0:
		return refuse(backend.ErrIO, "LVM does not say how large it is")
	}
	return &plan{origin: l, cowBytes: s.policy.cowBytes(l.sizeBytes, defaultChunkBytes, l.vg.extentBytes)}, nil
}

// changeable says why nothing in a VG can be changed.
func (g *vg) changeable() error {
	switch {
	case g.twin:
		return backend.Because(backend.ErrUnsupported, "there are two VGs named %s, and LVM cannot tell which one is meant: rename one with vgrename UUID NAME", g.name)
	case g.exported:
		return backend.Because(backend.ErrAccess, "VG %s is exported: import it with vgimport", g.name)
	case g.shared:
		return backend.Because(backend.ErrUnsupported, "VG %s is shared with other hosts (lvmlockd), and domfs takes none of their locks: use LVM's own commands, or make it this host's alone with vgchange --lock-type none", g.name)
	case !g.writeable:
		return backend.Because(backend.ErrReadOnly, "VG %s is read-only, by its metadata: nothing in it is changed", g.name)
	case g.missingPVs > 0:
		return backend.Because(backend.ErrIO, "VG %s lacks %d of its physical volumes, and LVM makes and grows nothing in it until they are back, or are given up by vgreduce --removemissing", g.name, g.missingPVs)
	}
	return nil
}

// needs is what a number of snapshots takes, by where it is taken from.
type needs struct {
	vgs   []*vgNeed
	pools []*poolNeed
}

type vgNeed struct {
	vg          *vg
	cowBytes    int64 // whole extents
	recordBytes int64
	disks       []string // what each thick one takes
}

type poolNeed struct {
	vg   *vg
	pool string
}

func (n *needs) add(p *plan, req backend.SnapshotRequest) {
	g := p.origin.vg
	i := slices.IndexFunc(n.vgs, func(v *vgNeed) bool { return v.vg == g })
	if i < 0 {
		n.vgs = append(n.vgs, &vgNeed{vg: g})
		i = len(n.vgs) - 1
	}
	v := n.vgs[i]
	v.recordBytes += lvRecordBytes
	if tags, err := formatTags(pending(req.Meta)); err == nil { // checkRequest has looked
		v.recordBytes += int64(len(strings.Join(tags, `", "`)))
	}
	if p.cowBytes > 0 {
		v.cowBytes += p.cowBytes
		v.disks = append(v.disks, fmt.Sprintf("%s %s", req.Meta.Disk.VDev, sizeText(p.cowBytes)))
		return
	}
	if !slices.ContainsFunc(n.pools, func(q *poolNeed) bool { return q.vg == g && q.pool == p.origin.pool }) {
		n.pools = append(n.pools, &poolNeed{g, p.origin.pool})
	}
}

// check says what there is not enough of, with the numbers.
func (n *needs) check(h *host) error {
	for _, v := range n.vgs {
		if v.cowBytes > v.vg.freeBytes {
			return backend.Because(backend.ErrNoSpace, "VG %s has %s free, and the snapshots need %s (%s): %d extents of %d; remove snapshots, add a disk with vgextend, or lower --snapshot-size",
				v.vg.name, sizeText(v.vg.freeBytes), sizeText(v.cowBytes), strings.Join(v.disks, ", "), v.cowBytes/v.vg.extentBytes, v.vg.freeBytes/v.vg.extentBytes)
		}
		if v.vg.metadataBytes > 0 && v.recordBytes > v.vg.metadataFreeBytes {
			return backend.Because(backend.ErrNoSpace, "VG %s has %d bytes left in its metadata area of %d, and the snapshots need %d for what they are: remove snapshots",
				v.vg.name, v.vg.metadataFreeBytes, v.vg.metadataBytes, v.recordBytes)
		}
	}
	for _, p := range n.pools {
		if err := checkPool(h, p.vg, p.pool, "a snapshot"); err != nil {
			return err
		}
	}
	return nil
}

// sizeText is a number of bytes for a message: in the largest unit that it is a whole number of, else with a decimal.
func sizeText(n int64) string {
	const units = "KMGTP"
	unit, shift := "", uint(0)
	for i := range len(units) {
		if next := uint(10 * (i + 1)); n >= 1<<next {
			unit, shift = string(units[i])+"iB", next
		}
	}
	switch {
	case shift == 0:
		return fmt.Sprintf("%d bytes", n)
	case n&(1<<shift-1) == 0:
		return fmt.Sprintf("%d %s", n>>shift, unit)
	}
	return fmt.Sprintf("%.2f %s", float64(n)/float64(int64(1)<<shift), unit)
}

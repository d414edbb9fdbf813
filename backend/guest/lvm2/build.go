package lvm2

import (
	"fmt"
	"slices"
	"strings"

	"domfs/backend"
)

// made is what became of a logical volume or a segment.
type made struct {
	dev backend.Device
	err error // why there is no dev
	// segments say how it lies on members, where mapped.
	segments []backend.MapSegment
	mapped   bool
	// broken: nothing but error segments, what LVM puts in the place of a lost leg.
	broken bool
	// stale: on a physical volume that was missing when the metadata was last written.
	stale bool
	// cost is how many reads of members a small read may come to.
	cost int64
	// steps is how many devices a search for data or holes may ask.
	steps int64
}

// affordable is m, or an error if its reads could cost too much.
func affordable(m made) made {
	if m.err == nil && m.cost > maxCost {
		return made{err: fmt.Errorf("its legs lie on legs: one read could take more than %d: %w", maxCost, backend.ErrUnsupported)}
	}
	return m
}

// plan is how a segment is made, once the volumes that it refers to are.
type plan struct {
	refs []*logicalVolume
	make func() made
}

// thickSnapshot is a classic snapshot: what a volume of type snapshot stands for.
type thickSnapshot struct {
	origin, cow *logicalVolume
	chunk, size int64
	merging     bool
}

// builder makes the devices of a group's volumes.
type builder struct {
	vg       *volumeGroup
	present  map[*physicalVolume]backend.Member
	warnings *warnings

	raw       map[*logicalVolume]*made // as the volume's own segments have it
	pools     map[poolKey]openPool
	snapshots []thickSnapshot
	ofCOW     map[*logicalVolume]int            // index in snapshots
	merging   map[*logicalVolume]int            // by origin, likewise
	thinMerge map[*logicalVolume]*logicalVolume // origin to the thin snapshot that is merged into it
}

func newBuilder(vg *volumeGroup, w *warnings) *builder {
	return &builder{
		vg: vg, warnings: w,
		present:   make(map[*physicalVolume]backend.Member),
		raw:       make(map[*logicalVolume]*made),
		pools:     make(map[poolKey]openPool),
		ofCOW:     make(map[*logicalVolume]int),
		merging:   make(map[*logicalVolume]int),
		thinMerge: make(map[*logicalVolume]*logicalVolume),
	}
}

// kind is the type of its first segment.
func (lv *logicalVolume) kind() string {
	if len(lv.segments) == 0 {
		return ""
	}
	return lv.segments[0].kind
}

// volumes makes all volumes and lists those that the guest's user sees.
func (b *builder) volumes() []backend.GroupVolume {
	b.findMerges()
	b.build()
	var list []backend.GroupVolume
	lost := 0
	for _, lv := range b.vg.lvs {
		if !b.visible(lv) {
			continue
		}
		if !legalName(lv.name) {
			b.warnings.add("logical volume %s is not shown: LVM takes no such name", quoted(lv.name))
			continue
		}
		m := b.presented(lv)
		v := backend.GroupVolume{Name: lv.name, UUID: hyphenated(lv.uuid), Device: m.dev, Err: m.err, Cost: max(1, m.cost)}
		if m.err != nil {
			v.Device, v.Err = nil, fmt.Errorf("logical volume %s/%s: %w", b.vg.name, lv.name, m.err)
			lost++
		} else if m.mapped {
			v.Segments = m.segments
		}
		if w, ok := v.Device.(backend.Warner); ok {
			of := "volume " + lv.name
			if lv.kind() == "thin" { // its pool's, which others have, too
				of, _ = lv.segments[0].node.strOr("thin_pool", lv.name)
			}
			for _, s := range w.Warnings() {
				b.warnings.add("%s: %s", of, s)
			}
		}
		list = append(list, v)
	}
	b.tellMissing(lost)
	slices.SortFunc(list, func(a, c backend.GroupVolume) int { return strings.Compare(a.Name, c.Name) })
	return list
}

func (b *builder) tellMissing(lost int) {
	for _, pv := range b.vg.pvs {
		if _, ok := b.present[pv]; !ok {
			b.warnings.add("physical volume %s is missing; %d of the group's volumes cannot be read", pv, lost)
		}
	}
}

// visible follows LVM's lv_is_visible, and leaves out pools, which have no contents of their own.
func (b *builder) visible(lv *logicalVolume) bool {
	if lv.err != nil && lv.status == nil {
		return true // nothing is known of it but that it cannot be read
	}
	switch lv.kind() {
	case "snapshot", "thin-pool", "cache-pool", "vdo-pool":
		return false
	}
	if i, ok := b.ofCOW[lv]; ok {
		// The flag is that of the store. An origin that is hidden is one that a sparse volume has for its zeros.
		return !b.snapshots[i].merging
	}
	return lv.status["VISIBLE"]
}

// findMerges reads what is not in a volume's own section: which volumes are snapshots' stores, and which
// are being merged.
func (b *builder) findMerges() {
	for _, lv := range b.vg.lvs {
		if lv.err != nil {
			continue
		}
		switch lv.kind() {
		case "snapshot":
			s, err := b.vg.readSnapshot(lv)
			if err == nil {
				if _, twice := b.ofCOW[s.cow]; twice {
					err = fmt.Errorf("%s is the store of two snapshots: %w", s.cow.name, backend.ErrCorrupt)
				}
			}
			if err != nil {
				b.warnings.add("snapshot %s is not used: %v", quoted(lv.name), err)
				continue
			}
			b.snapshots = append(b.snapshots, s)
			b.ofCOW[s.cow] = len(b.snapshots) - 1
			if s.merging {
				b.merging[s.origin] = len(b.snapshots) - 1
				b.warnings.add("volume %s is being merged with its snapshot %s: it is shown as it will be", s.origin.name, s.cow.name)
			}
		case "thin":
			n := lv.segments[0].node
			if !n.has("merge") {
				continue
			}
			origin, err := b.vg.volume(n, "merge")
			if err != nil {
				b.warnings.add("thin snapshot %s: %v", quoted(lv.name), err)
				continue
			}
			b.thinMerge[origin] = lv
			b.warnings.add("volume %s is being merged with its snapshot %s: it is shown as it will be", origin.name, lv.name)
		}
	}
}

// readSnapshot reads a volume of type snapshot, which only ties an origin to its store.
func (vg *volumeGroup) readSnapshot(lv *logicalVolume) (thickSnapshot, error) {
	if len(lv.segments) != 1 {
		return thickSnapshot{}, fmt.Errorf("it has %d segments: %w", len(lv.segments), backend.ErrCorrupt)
	}
	n := lv.segments[0].node
	s := thickSnapshot{size: lv.size}
	var err error
	if s.chunk, err = n.number("chunk_size", 1<<31); err != nil {
		return s, err
	}
	s.chunk *= sectorBytes
	if s.origin, err = vg.volume(n, "origin"); err != nil {
		return s, err
	}
	key := "cow_store"
	if n.has("merging_store") {
		key, s.merging = "merging_store", true
	}
	if s.cow, err = vg.volume(n, key); err != nil {
		return s, err
	}
	if s.cow == s.origin {
		return s, fmt.Errorf("it is its own origin: %w", backend.ErrCorrupt)
	}
	return s, nil
}

// presented is what the guest's user sees of a volume: a snapshot's contents, not its store.
func (b *builder) presented(lv *logicalVolume) made {
	i, ok := b.ofCOW[lv]
	if !ok {
		i, ok = b.merging[lv]
	}
	if !ok {
		return *b.raw[lv]
	}
	s := b.snapshots[i]
	origin, cow := b.raw[s.origin], b.raw[s.cow]
	if origin.err != nil {
		return made{err: fmt.Errorf("its origin %s: %w", s.origin.name, origin.err)}
	}
	if cow.err != nil {
		return made{err: fmt.Errorf("its copy-on-write space %s: %w", s.cow.name, cow.err)}
	}
	dev, err := openCOWSized(origin.dev, cow.dev, s.chunk, s.size)
	if err != nil {
		return made{err: err}
	}
	return affordable(made{dev: dev, cost: origin.cost + 2*cow.cost})
}

// build makes all volumes, level by level: a volume's turn comes when those that it refers to are made.
func (b *builder) build() {
	type waiting struct {
		lv    *logicalVolume
		plans []plan
	}
	var next []waiting
	for _, lv := range b.vg.lvs {
		plans, err := b.plans(lv)
		if err != nil {
			b.raw[lv] = &made{err: err}
			continue
		}
		next = append(next, waiting{lv, plans})
	}
	for level := 0; level <= maxNesting && len(next) > 0; level++ {
		// Volumes of one level must not see each other's results: nesting would depend on their order.
		results := make(map[*logicalVolume]*made)
		var later []waiting
		for _, w := range next {
			if b.ready(w.plans) {
				m := b.makeVolume(w.plans)
				results[w.lv] = &m
			} else {
				later = append(later, w)
			}
		}
		for lv, m := range results {
			b.raw[lv] = m
		}
		next = later
	}
	for _, w := range next {
		b.raw[w.lv] = &made{err: fmt.Errorf("it lies on itself, or on volumes nested more than %d deep: %w", maxNesting, backend.ErrCorrupt)}
	}
}

func (b *builder) ready(plans []plan) bool {
	for _, p := range plans {
		for _, lv := range p.refs {
			if b.raw[lv] == nil {
				return false
			}
		}
	}
	return true
}

// plans reads the segments of a volume.
func (b *builder) plans(lv *logicalVolume) ([]plan, error) {
	if lv.err != nil {
		return nil, lv.err
	}
	plans := make([]plan, len(lv.segments))
	for i, s := range lv.segments {
		var err error
		if plans[i], err = b.plan(lv, s); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

// makeVolume puts a volume's segments together.
func (b *builder) makeVolume(plans []plan) made {
	all := made{mapped: true, broken: true}
	var parts []backend.Device
	for _, p := range plans {
		m := p.make()
		if m.err != nil {
			return made{err: m.err, stale: m.stale}
		}
		parts = append(parts, m.dev)
		all.segments = append(all.segments, m.segments...)
		all.mapped = all.mapped && m.mapped
		all.broken = all.broken && m.broken
		all.stale = all.stale || m.stale
		all.cost = max(all.cost, m.cost)
		all.steps += max(1, m.steps)
	}
	if all.dev = join(parts, all.steps); len(parts) > 1 && all.steps > maxHoleSteps {
		all.dev, all.steps = dense{all.dev}, 1
	}
	return affordable(all)
}

// part makes a run of length bytes that begins at a.
func (b *builder) part(a area, length int64) made {
	if a.lv != nil {
		on := b.raw[a.lv]
		if on.err != nil {
			return made{err: fmt.Errorf("on %s: %w", a.lv.name, on.err), stale: on.stale}
		}
		below, steps := on.dev, on.steps
		if steps > maxPartSteps {
			below, steps = dense{below}, 1
		}
		dev, err := backend.Section(below, a.offset, length)
		if err != nil {
			return made{err: fmt.Errorf("on %s: %w", a.lv.name, err)}
		}
		return made{dev: dev, stale: on.stale, broken: on.broken, cost: on.cost, steps: steps}
	}
	m, ok := b.present[a.pv]
	if !ok {
		return made{err: notThere(a.pv)}
	}
	below := m.Device
	if m.Cost > 0 { // what a search for holes in another group's volume would cost is not known
		below = dense{below}
	}
	dev, err := backend.Section(below, a.pv.start+a.offset, length)
	if err != nil {
		return made{err: fmt.Errorf("on physical volume %s: %w", a.pv, err)}
	}
	return made{dev: dev, stale: a.pv.missing, cost: max(1, m.Cost)}
}

func refs(areas []area) []*logicalVolume {
	var list []*logicalVolume
	for _, a := range areas {
		if a.lv != nil {
			list = append(list, a.lv)
		}
	}
	return list
}

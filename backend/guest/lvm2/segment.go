package lvm2

import (
	"fmt"
	"math"
	"strings"

	"domfs/backend"
)

const (
	maxStripeSectors = 1 << 31
	maxThinID        = 1<<24 - 1 // DM_THIN_MAX_DEVICE_ID
)

// plan reads how one segment of a volume is made.
func (b *builder) plan(lv *logicalVolume, s *segment) (plan, error) {
	if strings.Contains(s.flags, "RESHAPE") || s.node.has("reshape_count") {
		return plan{}, fmt.Errorf("segments of type %s with space for a reshape: %w", s.kind, backend.ErrUnsupported)
	}
	switch s.kind {
	case "striped", "linear":
		return b.planStriped(s)
	case "mirror":
		return b.planMirror(lv, s)
	case "raid0", "raid0_meta", "raid1", "raid10", "raid10_near":
		return b.planRaid(lv, s)
	case "thin":
		return b.planThin(lv, s)
	case "cache":
		return b.planCache(s)
	case "zero":
		return plan{make: func() made { return made{dev: zeros{s.length}} }}, nil
	case "error":
		return plan{make: func() made { return made{dev: failing{s.length}, broken: true} }}, nil
	}
	if _, ok := parityLayouts[s.kind]; ok {
		return b.planRaid(lv, s)
	}
	return plan{}, fmt.Errorf("segments of type %s: %w", quoted(s.kind), backend.ErrUnsupported)
}

// planStriped is lib/striped/striped.c; a linear segment is one with a single stripe.
func (b *builder) planStriped(s *segment) (plan, error) {
	areas, err := b.vg.pairs(s.node, "stripes", "stripe_count")
	if err != nil {
		return plan{}, err
	}
	var chunk int64
	if len(areas) > 1 {
		if chunk, err = s.node.number("stripe_size", maxStripeSectors); err != nil {
			return plan{}, err
		}
		chunk *= sectorBytes
	}
	n := int64(len(areas))
	if s.length/b.vg.extentBytes%n != 0 {
		return plan{}, fmt.Errorf("%d extents are not a multiple of %d stripes: %w", s.length/b.vg.extentBytes, n, backend.ErrCorrupt)
	}
	return plan{refs: refs(areas), make: func() made {
		all := made{mapped: true}
		run := backend.MapSegment{Start: s.start, Length: s.length, StripeBytes: chunk}
		legs := make([]backend.Device, n)
		for i, a := range areas {
			m := b.part(a, s.length/n)
			if m.err != nil {
				return m
			}
			legs[i] = m.dev
			all.stale = all.stale || m.stale
			all.broken = all.broken || m.broken
			all.cost = max(all.cost, m.cost)
			all.steps = m.steps // of stripes there are no holes
			if a.pv == nil {
				all.mapped = false
				continue
			}
			run.Targets = append(run.Targets, backend.MapTarget{Member: b.present[a.pv].Name, Offset: a.pv.start + a.offset})
		}
		if all.mapped {
			all.segments = []backend.MapSegment{run}
		}
		all.dev, all.err = newStriped(legs, chunk)
		return all
	}}, nil
}

// planMirror is lib/mirror/mirrored.c: a dm-mirror, or a run that pvmove moves. Leg 0 is always right: the
// others are copied from it, after a crash too.
func (b *builder) planMirror(lv *logicalVolume, s *segment) (plan, error) {
	areas, err := b.vg.pairs(s.node, "mirrors", "mirror_count")
	if err != nil {
		return plan{}, err
	}
	if s.node.has("extents_moved") {
		moved, err := b.vg.extents(s.node, "extents_moved")
		if err != nil {
			return plan{}, err
		}
		from := areas[0]
		if moved == s.length && len(areas) > 1 {
			from = areas[1]
		}
		return plan{refs: refs(areas), make: func() made {
			m := b.part(from, s.length)
			m.mapped = false
			return m
		}}, nil
	}
	var logLV *logicalVolume
	var region int64
	all := refs(areas)
	if s.node.has("mirror_log") && len(lv.segments) == 1 {
		if logLV, err = b.vg.volume(s.node, "mirror_log"); err != nil {
			return plan{}, err
		}
		if region, err = s.node.number("region_size", math.MaxUint32); err != nil {
			return plan{}, err
		}
		region *= sectorBytes
		all = append(all, logLV)
	}
	return plan{refs: all, make: func() made { return b.makeMirror(lv, s, areas, logLV, region) }}, nil
}

func (b *builder) makeMirror(lv *logicalVolume, s *segment, areas []area, logLV *logicalVolume, region int64) made {
	mir := &mirrored{name: "mirror " + lv.name, legs: make([]mirrorLeg, len(areas)), size: s.length}
	var first error
	var cost int64
	others := false
	for i, a := range areas {
		m := b.part(a, s.length)
		switch {
		case m.err == nil && m.broken:
			m.err = fmt.Errorf("it was replaced by an error segment: %w", backend.ErrIO)
		case m.err == nil && m.stale:
			m.err = fmt.Errorf("its physical volume was missing when the guest last changed the group: %w", backend.ErrIO)
		}
		if m.err != nil {
			b.warnings.add("volume %s: leg %d is not used: %v", lv.name, i, m.err)
			if first == nil {
				first = m.err
			}
			continue
		}
		mir.legs[i].dev = m.dev
		cost += m.cost
		others = others || i > 0
	}
	if mir.legs[0].dev != nil {
		mir.legs[0].synced = s.length
		mir.legs = mir.legs[:1]
		return made{dev: mir, cost: b.areaCost(areas[0])}
	}
	if !others {
		return made{err: first}
	}
	if logLV == nil {
		return made{err: fmt.Errorf("its first leg is not there, and it has no log that says what the others have: %w", first)}
	}
	logMade := b.raw[logLV]
	if logMade.err != nil {
		return made{err: fmt.Errorf("its first leg is not there, and its log neither: %w", logMade.err)}
	}
	if logMade.cost > 1 {
		return made{err: fmt.Errorf("its log %s lies on legs: %w", logLV.name, backend.ErrUnsupported)}
	}
	var err error
	if mir.log, err = readLog(logMade.dev, region, s.length); err != nil {
		return made{err: fmt.Errorf("its first leg is not there, and its log %s cannot be read: %w", logLV.name, err)}
	}
	return made{dev: mir, cost: 2 * cost} // each leg asks the log
}

// areaCost is the cost of what lies at a.
func (b *builder) areaCost(a area) int64 {
	if a.lv == nil {
		return max(1, b.present[a.pv].Cost)
	}
	return b.raw[a.lv].cost
}

// legVolumes are the volumes of a raid's leg.
type legVolumes struct{ meta, data *logicalVolume }

// planRaid is lib/raid/raid.c.
func (b *builder) planRaid(lv *logicalVolume, s *segment) (plan, error) {
	if len(lv.segments) != 1 {
		return plan{}, fmt.Errorf("a raid of %d segments: %w", len(lv.segments), backend.ErrUnsupported)
	}
	if off, err := s.node.numberOr("data_offset", math.MaxUint32, 0); err != nil || off != 0 {
		return plan{}, fmt.Errorf("a raid whose data were moved by a reshape: %w", backend.ErrUnsupported)
	}
	vols, err := b.vg.raidLegs(s)
	if err != nil {
		return plan{}, err
	}
	chunk, err := s.node.numberOr("stripe_size", maxStripeSectors, 0)
	if err != nil {
		return plan{}, err
	}
	chunk *= sectorBytes
	copies, err := s.node.numberOr("data_copies", maxAreasLV, 2)
	if err != nil {
		return plan{}, err
	}
	if strings.HasPrefix(s.kind, "raid10") && (copies < 2 || copies > int64(len(vols))) {
		return plan{}, fmt.Errorf("%d copies on %d legs: %w", copies, len(vols), backend.ErrCorrupt)
	}
	if s.kind != "raid1" && chunk == 0 && len(vols) > 1 {
		return plan{}, fmt.Errorf("a %s without a size of stripes: %w", s.kind, backend.ErrCorrupt)
	}
	if l, ok := parityLayouts[s.kind]; ok && int64(len(vols)) <= l.parity {
		return plan{}, fmt.Errorf("a %s of %d legs: %w", s.kind, len(vols), backend.ErrCorrupt)
	}
	p := plan{make: func() made { return b.makeRaid(lv, s, vols, chunk, copies) }}
	for _, v := range vols {
		p.refs = append(p.refs, v.data)
		if v.meta != nil {
			p.refs = append(p.refs, v.meta)
		}
	}
	return p, nil
}

// raidLegs reads the list of legs: the volume with the superblock, if there is one, before that with the data.
func (vg *volumeGroup) raidLegs(s *segment) ([]legVolumes, error) {
	count, key := "device_count", "raids"
	if s.node.has("stripe_count") {
		count = "stripe_count"
	}
	if s.kind == "raid0" {
		key = "raid0_lvs"
	}
	want, err := s.node.number(count, math.MaxUint32)
	if err != nil {
		return nil, err
	}
	if want > superMaxDevices {
		return nil, fmt.Errorf("a raid of %d legs, more than %d: %w", want, superMaxDevices, backend.ErrUnsupported)
	}
	list := s.node.child(key)
	if list == nil {
		return nil, fmt.Errorf("%s has no %s: %w", quoted(s.node.key), key, backend.ErrCorrupt)
	}
	var legs []legVolumes
	var leg legVolumes
	for _, v := range list.values {
		if v.isNumber || int64(len(legs)) == want {
			return nil, fmt.Errorf("%s of %s is not a list of %d legs: %w", key, quoted(s.node.key), want, backend.ErrCorrupt)
		}
		lv, err := vg.lookup(v.text)
		if err != nil {
			return nil, err
		}
		if leg.meta == nil && strings.Contains(lv.name, "_rmeta_") {
			leg.meta = lv
			continue
		}
		leg.data = lv
		legs = append(legs, leg)
		leg = legVolumes{}
	}
	if int64(len(legs)) != want || want == 0 || leg.meta != nil {
		return nil, fmt.Errorf("%s of %s is not a list of %d legs: %w", key, quoted(s.node.key), want, backend.ErrCorrupt)
	}
	return legs, nil
}

func (b *builder) makeRaid(lv *logicalVolume, s *segment, vols []legVolumes, chunk, copies int64) made {
	n := int64(len(vols))
	layout, isParity := parityLayouts[s.kind]
	var needed int64 // bytes of each leg
	shape := raidShape{stripeBytes: chunk}
	switch {
	case s.kind == "raid1":
		needed, shape.levels, shape.stripeBytes = s.length, []uint32{1}, 0
	case strings.HasPrefix(s.kind, "raid10"):
		chunks := (s.length-1)/chunk + 1
		needed = ((chunks*copies-1)/n + 1) * chunk
		shape.levels = []uint32{10}
		shape.layout = func(l uint32) bool { return int64(l) == 1<<8|copies }
	case isParity:
		needed = s.length / (n - layout.parity)
		shape.levels = layout.levels
		shape.layout = func(l uint32) bool { return l == layout.number }
	default:
		needed = s.length / n
	}
	legs := make([]raidLeg, n)
	var lost error
	var cost, dearest int64 // of all legs, of one
	for i, v := range vols {
		data := b.raw[v.data]
		l := raidLeg{name: v.data.name, hasMeta: v.meta != nil, rebuild: v.data.status["REBUILD"]}
		switch {
		case data.err != nil:
			l.why = data.err.Error()
			if lost == nil {
				lost = fmt.Errorf("on %s: %w", v.data.name, data.err)
			}
		case data.broken:
			l.why = "it was replaced by an error segment"
		case data.stale && s.kind != "raid0" && s.kind != "raid0_meta":
			l.why = "its physical volume was missing when the guest last changed the group"
		case data.dev.Size() < needed:
			return made{err: fmt.Errorf("leg %s has %d bytes, not %d: %w", v.data.name, data.dev.Size(), needed, backend.ErrCorrupt)}
		default:
			l.data = data.dev
			cost += data.cost
			dearest = max(dearest, data.cost)
		}
		if v.meta != nil && b.raw[v.meta].err == nil && !b.raw[v.meta].broken {
			if b.raw[v.meta].cost > 1 {
				return made{err: fmt.Errorf("superblocks on legs (%s): %w", v.meta.name, backend.ErrUnsupported)}
			}
			l.meta = b.raw[v.meta].dev
		}
		legs[i] = l
	}
	if lost == nil {
		lost = fmt.Errorf("none of its legs can be used: %w", backend.ErrIO)
	}
	if s.kind == "raid0" || s.kind == "raid0_meta" {
		m := b.makeRaid0(s, legs, chunk, lost)
		m.cost = dearest
		return m
	}
	resynced, err := assess(legs, shape)
	if err != nil {
		return made{err: err}
	}
	usable := int64(0)
	for _, l := range legs {
		if l.synced == 0 {
			b.warnings.add("volume %s: leg %s is not used: %s", lv.name, l.name, l.why)
		} else {
			usable++
		}
	}
	name := s.kind + " " + lv.name
	switch {
	case usable == 0:
		return made{err: lost}
	case s.kind == "raid1":
		m := &mirrored{name: name, size: s.length}
		for _, l := range legs {
			m.legs = append(m.legs, mirrorLeg{dev: l.data, synced: l.synced})
		}
		return made{dev: m, cost: cost}
	case isParity:
		repair := layout.parity == 1 && resynced
		if usable < n-1 || usable < n && !repair {
			return made{err: fmt.Errorf("%d of its %d legs can be used, which is too few: %w", usable, n, lost)}
		}
		return made{dev: &parity{name: name, legs: legs, chunk: chunk, data: n - layout.parity, place: layout.place, repair: repair, size: s.length}, cost: cost}
	}
	r := &raid10{name: name, legs: legs, chunk: chunk, copies: copies, size: s.length}
	if c, ok := r.lost(); ok {
		return made{err: fmt.Errorf("no copy of chunk %d is on a leg that can be used: %w", c, lost)}
	}
	return made{dev: r, cost: cost}
}

// lost is a chunk of which no leg has anything in sync, ok if there is one. The pattern of legs repeats
// after as many chunks as there are legs.
func (r *raid10) lost() (chunk int64, ok bool) {
	for c := range min(int64(len(r.legs)), (r.size-1)/r.chunk+1) {
		any := false
		for k := range r.copies {
			leg, _, _ := r.place(c*r.chunk, k)
			any = any || r.legs[leg].synced > 0
		}
		if !any {
			return c, true
		}
	}
	return 0, false
}

func (b *builder) makeRaid0(s *segment, legs []raidLeg, chunk int64, lost error) made {
	n := int64(len(legs))
	devs := make([]backend.Device, n)
	for i, l := range legs {
		if l.data == nil {
			return made{err: lost}
		}
		var err error
		if devs[i], err = backend.Section(l.data, 0, s.length/n); err != nil {
			return made{err: err}
		}
	}
	if s.length%n != 0 {
		return made{err: fmt.Errorf("%d bytes are not a multiple of %d legs: %w", s.length, n, backend.ErrCorrupt)}
	}
	dev, err := newStriped(devs, chunk)
	return made{dev: dev, err: err}
}

// planThin is lib/thin/thin.c: a volume of a pool, whose B-trees say where its blocks are.
func (b *builder) planThin(lv *logicalVolume, s *segment) (plan, error) {
	n := s.node
	pool, err := b.vg.volume(n, "thin_pool")
	if err != nil {
		return plan{}, err
	}
	if pool.err != nil {
		return plan{}, fmt.Errorf("its pool: %w", pool.err)
	}
	if len(pool.segments) != 1 || pool.kind() != "thin-pool" {
		return plan{}, fmt.Errorf("%s is no thin pool: %w", quoted(pool.name), backend.ErrCorrupt)
	}
	if len(lv.segments) != 1 {
		return plan{}, fmt.Errorf("a thin volume of %d segments: %w", len(lv.segments), backend.ErrUnsupported)
	}
	// A merge is nothing but an exchange of device numbers when the volume is next activated.
	id := n
	if snap := b.thinMerge[lv]; snap != nil {
		id = snap.segments[0].node
	}
	device, err := id.number("device_id", maxThinID)
	if err != nil {
		return plan{}, err
	}
	pn := pool.segments[0].node
	chunk, err := pn.number("chunk_size", maxStripeSectors)
	if err != nil {
		return plan{}, err
	}
	if chunk == 0 {
		return plan{}, fmt.Errorf("pool %s has chunks of no size: %w", pool.name, backend.ErrCorrupt)
	}
	data, err := b.vg.volume(pn, "pool")
	if err != nil {
		return plan{}, err
	}
	meta, err := b.vg.volume(pn, "metadata")
	if err != nil {
		return plan{}, err
	}
	key := poolKey{data, meta, chunk * sectorBytes}
	all := []*logicalVolume{data, meta}
	var external *logicalVolume
	if n.has("external_origin") {
		if external, err = b.vg.volume(n, "external_origin"); err != nil {
			return plan{}, err
		}
		all = append(all, external)
	}
	return plan{refs: all, make: func() made {
		for _, on := range all {
			if b.raw[on].err != nil {
				return made{err: fmt.Errorf("on %s: %w", on.name, b.raw[on].err)}
			}
		}
		cost := b.raw[data].cost + thinNodes*b.raw[meta].cost
		var ext backend.Device
		if external != nil {
			ext = b.raw[external].dev
			cost += b.raw[external].cost
		}
		if m := affordable(made{cost: cost}); m.err != nil {
			return m
		}
		p := b.pool(key)
		if p.err != nil {
			return made{err: p.err}
		}
		dev, err := p.pool.open(uint64(device), s.length, ext)
		if err != nil {
			return made{err: err}
		}
		return made{dev: dev, cost: cost, steps: maxHoleSteps}
	}}, nil
}

// poolKey is what a thin pool is opened with.
type poolKey struct {
	data, meta *logicalVolume
	chunk      int64
}

// openPool is what became of a pool; its volumes share what is cached of its B-trees.
type openPool struct {
	pool *thinPool
	err  error
}

func (b *builder) pool(key poolKey) openPool {
	p, ok := b.pools[key]
	if !ok {
		p.pool, p.err = openThinPool(b.raw[key.data].dev, b.raw[key.meta].dev, key.chunk)
		b.pools[key] = p
	}
	return p
}

// planCache is lib/cache_segtype/cache.c. The origin has all bytes unless the cache writes back.
func (b *builder) planCache(s *segment) (plan, error) {
	origin, err := b.vg.volume(s.node, "origin")
	if err != nil {
		return plan{}, err
	}
	pool, err := b.vg.volume(s.node, "cache_pool")
	if err != nil {
		return plan{}, err
	}
	settings := s.node
	if pool.err == nil && pool.kind() == "cache-pool" {
		settings = pool.segments[0].node
	}
	mode, err := settings.strOr("cache_mode", "writethrough") // LVM's meaning of no mode
	if err != nil {
		return plan{}, err
	}
	if mode != "writethrough" && mode != "passthrough" || s.node.has("cleaner") {
		return plan{}, fmt.Errorf("a cache in mode %s, whose newest data may be in its pool only: %w", quoted(mode), backend.ErrUnsupported)
	}
	return plan{refs: []*logicalVolume{origin}, make: func() made {
		return b.part(area{lv: origin}, s.length)
	}}, nil
}

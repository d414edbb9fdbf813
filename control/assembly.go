package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
)

// assembly is what lies over all disks of a snapshot set, or of a domain that is off: the volumes
// that Assemblers found, and the guest's root. It is kept in the volume cache as a disk without bytes of
// its own, which holds those that it reads from open.
type assembly struct {
	print   string                     // of the disks that it was made of
	members []*Volume                  // whole disks, acquired until the assembly is closed
	groups  map[string][]backend.Group // by Assembler's name; never changed
	seen    []seenVolume               // all volumes that were looked at, in the order of disks
	cut     bool                       // there are more
	unread  []error                    // why a disk or a volume could not be looked at
	passing bool                       // one of those, or of the root's filesystems, may pass; guarded by volumeCache.mu once it is in there
	opened  time.Time

	root *rootCell
}

// seenVolume is one volume of the guest, as a guest's configuration may name it.
type seenVolume struct {
	ref      VolumeRef
	content  backend.Content
	partUUID string // of a partition
	partName string // the name that a GPT gives it
	group    string // of an assembled volume, with name
	name     string
	lvmUUID  string // of an assembled volume: its group's and its own, without hyphens
	plain    bool   // it is nothing like a snapshot of another
}

const (
	// maxSeen is how many volumes of one guest are looked at.
	maxSeen = 1024
	// maxRounds is how often what was assembled is looked at for members in turn: a physical volume on an
	// array, or on a logical volume.
	maxRounds = 2
	// maxGroups is the most groups, and volumes in one, that are shown.
	maxGroups       = 256
	maxGroupVolumes = 4096
)

// volumePath is a VolumeRef's Path, taken apart.
type volumePath struct {
	kind, group, name string // of an assembled volume, else empty
	parts             []int
}

// parseRef reads a VolumeRef's Path.
func parseRef(ref VolumeRef) (p volumePath, err error) {
	rest := ref.Path
	if ref.VDev == "" {
		fields := strings.SplitN(ref.Path, "/", 4)
		if len(fields) < 3 {
			return p, unrecorded{fmt.Errorf("no volume is called %s: %w", oneLine(ref.Path), backend.ErrNotExist)}
		}
		p.kind, p.group, p.name = fields[0], fields[1], fields[2]
		rest = strings.Join(fields[3:], "/")
	}
	p.parts, err = parsePath(rest)
	return p, err
}

// assembledPath is the Path of an assembled volume.
func assembledPath(kind, group, name string) string { return kind + "/" + group + "/" + name }

// member is what a volume is called for Assemblers and in messages about the guest: "xvda/p2".
func (r VolumeRef) member() string {
	return strings.Trim(r.VDev+"/"+r.Path, "/")
}

// Groups lists what the Assembler called kind finds on all disks of ref's snapshot set, or of its domain,
// which must be off; of ref, Domain or SetID count. The volumes are opened by Volume, with Path
// "kind/group/name" and VDev empty: their Devices here are not to be used. A disk that cannot be read is
// recorded, and what is found without it is listed; where that is nothing, its error is returned.
func (h *Host) Groups(ctx context.Context, ref VolumeRef, kind string) ([]backend.Group, error) {
	v, err := h.assembled(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	all := v.disk.all
	if len(all.groups[kind]) == 0 {
		if err := all.lost(); err != nil {
			return nil, err
		}
	}
	return all.groups[kind], nil
}

// Group is the one of Groups that has that name: ErrNotExist. Where a disk could not be read and there is none, that
// is the error.
func (h *Host) Group(ctx context.Context, ref VolumeRef, kind, name string) (backend.Group, error) {
	v, err := h.assembled(ctx, ref)
	if err != nil {
		return backend.Group{}, err
	}
	defer v.Release()
	for _, g := range v.disk.all.groups[kind] {
		if g.Name == name {
			return g, nil
		}
	}
	return backend.Group{}, v.disk.noVolume(kind + "/" + name)
}

// noVolume says why no volume of that name is found.
func (d *disk) noVolume(path string) error {
	err := fmt.Errorf("%s have no volume %s: %w", d.from.disk, oneLine(path), backend.ErrNotExist)
	if lost := d.all.lost(); lost != nil {
		err = fmt.Errorf("%s was not found, and may lie where it cannot be read: %w", oneLine(path), lost)
	}
	return unrecorded{err}
}

// assembled opens the assembly of ref's set or domain, and acquires it.
func (h *Host) assembled(ctx context.Context, ref VolumeRef) (*Volume, error) {
	where := origin{domain: ref.Domain}
	v, err := h.acquire(ctx, VolumeRef{Domain: ref.Domain, SetID: ref.SetID}, &where)
	return v, h.openFailed(&where, err)
}

// fingerprint says what an assembly of ref's disks would be made of: as long as it is the same,
// so is the assembly. It fails where there is none to be made.
func (inv *Inventory) fingerprint(domain, setID string) (string, error) {
	var b strings.Builder
	if setID != "" {
		_, s := inv.set(setID)
		if s == nil || s.State == backend.SnapshotRemoving {
			return "", unrecorded{fmt.Errorf("the snapshot is gone: %w", backend.ErrNotExist)}
		}
		for i := range s.Disks {
			k := &s.Disks[i]
			fmt.Fprintf(&b, "%s %s %t %t\n", k.Disk.VDev, k.Volume.ID, k.State == backend.SnapshotInvalid, k.Volume.Err != nil)
		}
		return b.String(), nil
	}
	d := inv.Domain(domain)
	if d == nil {
		return "", unrecorded{fmt.Errorf("there is no domain %s: %w", domain, backend.ErrNotExist)}
	}
	if d.isRunning() {
		return "", unrecorded{fmt.Errorf("%s runs: what lies over its disks is in a snapshot of it: %w", domain, backend.ErrStale)}
	}
	for i := range d.Disks {
		v := &d.Volumes[i]
		fmt.Fprintf(&b, "%s %s %s %d %d %t\n", d.Disks[i].VDev, v.Store, v.ID, v.Generation, v.SizeBytes, v.Err != nil)
	}
	return b.String(), nil
}

// assemblyDisks are the disks that an assembly is made of, sorted: no CD-ROM is.
func (inv *Inventory) assemblyDisks(ref VolumeRef) (vdevs []string) {
	if ref.SetID != "" {
		if _, s := inv.set(ref.SetID); s != nil {
			for i := range s.Disks {
				if !s.Disks[i].Disk.CDROM {
					vdevs = append(vdevs, s.Disks[i].Disk.VDev)
				}
			}
		}
	} else if d := inv.Domain(ref.Domain); d != nil {
		for i := range d.Disks {
			if !d.Disks[i].CDROM {
				vdevs = append(vdevs, d.Disks[i].VDev)
			}
		}
	}
	slices.SortFunc(vdevs, func(a, b string) int { return cmp.Or(len(a)-len(b), compare(a, b)) }) // sdb before sdaa
	return slices.Compact(vdevs)
}

// openAssembly opens a set's disks and finds out what lies over them.
func (c *volumeCache) openAssembly(ctx context.Context, key diskKey, ref VolumeRef, where *origin) (*Volume, error) {
	inv, err := c.h.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	print, err := inv.fingerprint(ref.Domain, ref.SetID)
	if err != nil {
		return nil, err
	}
	*where = origin{domain: ref.Domain, disk: "the disks of " + ref.Domain, read: inv.began}
	if ref.SetID != "" {
		d, s := inv.set(ref.SetID)
		*where = origin{frozen: true, domain: d.domainName(), snapshot: s.Name, read: inv.began,
			disk: fmt.Sprintf("the disks in snapshot %s of %s", s.Name, d.Name)}
	}
	ref.Domain = key.domain
	where.volume = backend.Volume{ID: where.disk, Generation: hashOf(print)}
	d := newDisk(c.h, key, *where, noBytes{}, ref)
	d.all = &assembly{print: print, groups: map[string][]backend.Group{}, opened: time.Now(), root: newRootCell()}
	members, err := d.look(ctx, inv.assemblyDisks(ref))
	if err != nil {
		d.releaseMembers()
		return nil, err
	}
	d.from.overflow = slices.ContainsFunc(d.all.members, (*Volume).CanOverflow)
	d.assemble(members)
	if d.all.cut {
		d.whole.warn("open", []string{fmt.Sprintf("there are more than %d volumes: the others are not looked at for what lies over several", maxSeen)})
	}
	c.h.stats.add("assemblies", 1)
	return c.insert(d)
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// noBytes is the device of an assembly.
type noBytes struct{}

func (noBytes) Size() int64                       { return 0 }
func (noBytes) Close() error                      { return nil }
func (noBytes) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

// memberOf are the volumes that an Assembler is given, by its name.
type memberOf map[string][]backend.Member

// look looks at all volumes of the disks. Those that hold a member stay acquired.
func (d *disk) look(ctx context.Context, vdevs []string) (memberOf, error) {
	members := memberOf{}
	for _, vdev := range vdevs {
		v, err := d.h.Volume(ctx, VolumeRef{Domain: d.key.domain, SetID: d.key.setID, VDev: vdev})
		switch {
		case ctx.Err() != nil:
			return nil, contextError(ctx, "opening "+d.from.disk)
		case errors.Is(err, errClosing):
			return nil, err
		case err != nil:
			if errors.Is(err, backend.ErrNotExist) {
				// The disk, or all of the snapshot?
				inv, e := d.h.Inventory(ctx)
				if e == nil {
					_, e = inv.fingerprint(d.key.domain, d.key.setID)
				}
				if e != nil {
					return nil, e
				}
			}
			d.all.fail(err)
			continue
		case v.Running():
			v.Release()
			return nil, unrecorded{fmt.Errorf("%s runs: %w", d.key.domain, backend.ErrStale)}
		}
		if d.lookAt(v, seenVolume{ref: v.ref, plain: true}, members) {
			d.all.members = append(d.all.members, v)
		} else {
			v.Release()
		}
	}
	return members, nil
}

// fail notes that a volume could not be looked at. Few are recorded: a guest may have any number of them.
func (d *disk) fail(op string, err error) {
	if len(d.all.unread) < maxErrorsPerDomain/2 {
		err = d.h.Failed(d.from.domain, op, err)
	}
	d.all.fail(err)
}

// fail notes that a volume could not be looked at. It has been recorded.
func (a *assembly) fail(err error) {
	a.unread = append(a.unread, err)
	a.passing = a.passing || mayPass(err)
}

// full tells whether as many volumes were looked at as are.
func (a *assembly) full() bool { return len(a.seen)+len(a.unread) >= maxSeen }

// mayPass tells whether what failed may be readable another time, or elsewhere.
func mayPass(err error) bool {
	return !errors.Is(err, backend.ErrCorrupt) && !errors.Is(err, backend.ErrUnsupported)
}

// lost is the first failure of something that the guest itself may be able to read; nil if there was none.
func (a *assembly) lost() error {
	for _, err := range a.unread {
		if mayPass(err) {
			return err
		}
	}
	return nil
}

// lookAt probes a volume and those in it, and tells whether there are members among them.
func (d *disk) lookAt(v *Volume, s seenVolume, members memberOf) (holds bool) {
	if d.all.full() {
		d.all.cut = true
		return false
	}
	var err error
	if s.content, err = v.Content(); err != nil {
		d.fail("open", err)
		return false
	}
	d.all.seen = append(d.all.seen, s)
	for _, a := range d.h.o.Assemblers {
		if slices.Contains(a.Types(), s.content.Type) {
			members[a.Name()] = append(members[a.Name()], backend.Member{Device: v.dev, Name: v.ref.member(), Cost: v.cost})
			holds = true
		}
	}
	parts, err := v.Parts()
	if err != nil {
		d.fail("partitions", err)
		return holds
	}
	for _, p := range parts {
		if p.Err != nil {
			continue // whoever reads it is told
		}
		child, err := v.child(p.Number)
		if err != nil {
			d.fail("partitions", err)
			continue
		}
		in := seenVolume{ref: child.ref, partUUID: p.UUID, partName: p.Label, plain: s.plain}
		holds = d.lookAt(child, in, members) || holds
	}
	return holds
}

// assemble asks the Assemblers, and again with what they found, where that holds members.
func (d *disk) assemble(members memberOf) {
	byKind := map[string]backend.Assembler{}
	for _, a := range d.h.o.Assemblers {
		byKind[a.Name()] = a
	}
	warnings := map[string][]string{}
	looked := len(d.all.seen)
	fresh := members
	for round := 0; len(fresh) > 0 && round <= maxRounds; round++ {
		for _, kind := range slices.Sorted(maps.Keys(fresh)) {
			d.all.groups[kind], warnings[kind] = d.ask(byKind[kind], members[kind])
		}
		// What was seen of an earlier round's volumes is seen anew: they may be whole now.
		d.all.seen = d.all.seen[:min(looked, len(d.all.seen))]
		d.mu.Lock()
		d.volumes = map[string]*Volume{"": d.whole}
		d.mu.Unlock()
		found := memberOf{}
		d.lookAtGroups(found)
		fresh = memberOf{}
		for kind, ms := range found {
			for _, m := range ms {
				if !slices.ContainsFunc(members[kind], func(old backend.Member) bool { return old.Name == m.Name }) {
					members[kind] = append(members[kind], m)
					fresh[kind] = append(fresh[kind], m)
				}
			}
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(warnings)) {
		d.whole.warn(kind, warnings[kind])
	}
}

// ask lets an Assembler put members together.
func (d *disk) ask(a backend.Assembler, members []backend.Member) ([]backend.Group, []string) {
	type answer struct {
		groups   []backend.Group
		warnings []string
	}
	out, err := guarded(d.whole, a.Name(), func() (answer, error) {
		groups, warnings := a.Assemble(slices.Clone(members))
		return answer{groups, warnings}, nil
	})
	if err != nil {
		d.all.fail(d.h.Failed(d.from.domain, a.Name(), err))
		return nil, nil
	}
	groups, warnings := fitGroups(a.Name(), out.groups)
	for _, g := range groups {
		for _, w := range g.Warnings {
			warnings = append(warnings, g.Name+": "+w)
		}
	}
	return groups, append(warnings, out.warnings...)
}

// fitGroups keeps what can be directories: an Assembler should give nothing else.
func fitGroups(kind string, groups []backend.Group) (out []backend.Group, warnings []string) {
	names := map[string]bool{}
	for _, g := range groups {
		if !isFileName(g.Name) || names[g.Name] || len(out) == maxGroups {
			warnings = append(warnings, fmt.Sprintf("a group called %s (%s) is not shown: another has that name, or it is no name for a directory", strconv.Quote(g.Name), g.UUID))
			continue
		}
		names[g.Name] = true
		volumes := make([]backend.GroupVolume, 0, len(g.Volumes))
		seen, hidden := map[string]bool{}, 0
		for _, v := range g.Volumes {
			if !isFileName(v.Name) || seen[v.Name] || len(volumes) == maxGroupVolumes {
				hidden++
				continue
			}
			seen[v.Name] = true
			if v.Device == nil && v.Err == nil {
				v.Err = fmt.Errorf("%s has no bytes: %w", assembledPath(kind, g.Name, v.Name), backend.ErrCorrupt)
			}
			volumes = append(volumes, v)
		}
		g.Volumes = volumes
		if hidden > 0 {
			warnings = append(warnings, fmt.Sprintf("%d volumes of %s are not shown: there are more than %d, or what they are called is no name for a directory", hidden, g.Name, maxGroupVolumes))
		}
		out = append(out, g)
	}
	return out, warnings
}

// isFileName tells whether a name can be a directory's.
func isFileName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxNameBytes && !strings.ContainsAny(name, "/\x00")
}

// lookAtGroups looks at the assembled volumes.
func (d *disk) lookAtGroups(members memberOf) {
	for _, kind := range slices.Sorted(maps.Keys(d.all.groups)) {
		for _, g := range d.all.groups[kind] {
			for _, gv := range g.Volumes {
				if d.all.full() {
					d.all.cut = true
					return
				}
				v, err := d.groupVolume(kind, g.Name, gv.Name)
				if err != nil {
					continue // whoever reads it is told
				}
				s := seenVolume{ref: v.ref, group: g.Name, name: gv.Name, plain: len(gv.Segments) > 0}
				if g.UUID != "" && gv.UUID != "" {
					s.lvmUUID = strings.ReplaceAll(g.UUID+gv.UUID, "-", "")
				}
				d.lookAt(v, s, members)
			}
		}
	}
}

// groupVolume is the volume of an assembled one. It lives as long as the assembly.
func (d *disk) groupVolume(kind, group, name string) (*Volume, error) {
	path := assembledPath(kind, group, name)
	i := slices.IndexFunc(d.all.groups[kind], func(g backend.Group) bool { return g.Name == group })
	j := -1
	if i >= 0 {
		j = slices.IndexFunc(d.all.groups[kind][i].Volumes, func(v backend.GroupVolume) bool { return v.Name == name })
	}
	if j < 0 {
		return nil, d.noVolume(path)
	}
	gv := &d.all.groups[kind][i].Volumes[j]
	if gv.Err != nil {
		if lost := d.all.lost(); lost != nil {
			return nil, unrecorded{fmt.Errorf("%s on %s: %v; %w", path, d.from.disk, gv.Err, lost)}
		}
		return nil, fmt.Errorf("%s on %s: %w", path, d.from.disk, gv.Err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.volumes[path]
	if v == nil {
		if len(d.volumes) >= maxVolumes {
			return nil, fmt.Errorf("%s hold more volumes than the %d that can be open: %w", d.from.disk, maxVolumes, backend.ErrUnsupported)
		}
		ref := d.whole.ref
		ref.Path = path
		v = &Volume{disk: d, ref: ref, dev: gv.Device, cost: max(1, gv.Cost)}
		d.volumes[path] = v
	}
	return v, nil
}

// outlived tells whether an assembly is to be made anew because something could not be read then.
func (d *disk) outlived() bool {
	return d.all != nil && d.all.passing && time.Since(d.all.opened) > d.h.lim.idle
}

// hasMember tells whether d is an assembly that reads from m.
func (d *disk) hasMember(m *disk) bool {
	return d.all != nil && slices.ContainsFunc(d.all.members, func(v *Volume) bool { return v.disk == m })
}

// releaseMembers lets an assembly's disks be closed, as if they had been used last when it was.
func (d *disk) releaseMembers() {
	if d.all == nil {
		return
	}
	for _, m := range d.all.members {
		m.release(d.used)
	}
}

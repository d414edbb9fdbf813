package control

import (
	"cmp"
	"maps"
	"slices"
	"unicode/utf8"

	"domfs/backend"
)

const maxNameBytes = 255 // of one path component, as Linux has it

// arrange groups snapshots into sets, and those into directories.
//
// A set belongs to the domain with its UUID, whatever that is called now; one made of a
// domain whose configuration has no UUID belongs to its name. The directory of a domain has the domain's name.
// That of one that is gone has the name of its latest set, with "@" and the
// beginning of the UUID where that name is taken.
func (inv *Inventory) arrange(snapshots []backend.Snapshot, uncommitted func(setID string) bool) {
	byUUID := map[string][]*Domain{}
	for _, d := range inv.Domains {
		if d.UUID != "" {
			byUUID[d.UUID] = append(byUUID[d.UUID], d)
		}
	}
	for _, ds := range byUUID {
		for _, d := range ds {
			for _, other := range ds {
				if other != d {
					d.Warnings = append(d.Warnings, "its uuid is also that of "+other.Name+": snapshots cannot be told apart for sure; give one of them another uuid")
				}
			}
		}
	}
	inv.byDir = map[string]*SnapshotDir{}
	inv.byID = map[string]*SnapshotDir{}
	dirs := map[*Domain]*SnapshotDir{}
	for _, d := range inv.Domains {
		dir := &SnapshotDir{Name: d.Name, Domain: d}
		d.SnapshotDir = dir.Name
		dirs[d] = dir
		inv.byDir[dir.Name] = dir
	}
	snapshots, foreign := splitForeign(snapshots)
	inv.addForeign(foreign, dirs)
	gone := map[string]*SnapshotDir{} // by UUID, or by name with a NUL before
	for _, s := range groupSets(snapshots, inv.failed) {
		if s.isPending() || uncommitted(s.ID) {
			inv.hidden = append(inv.hidden, s)
			continue
		}
		if d := inv.owner(s, byUUID); d != nil {
			dirs[d].Sets = append(dirs[d].Sets, s)
			continue
		}
		key := s.DomainUUID
		if key == "" {
			key = "\x00" + s.DomainName
		}
		if gone[key] == nil {
			gone[key] = &SnapshotDir{}
		}
		gone[key].Sets = append(gone[key].Sets, s)
	}
	inv.nameGone(gone)
	for _, dir := range inv.byDir {
		inv.Snapshots = append(inv.Snapshots, dir)
		dir.nameSets()
		for _, s := range dir.Sets {
			inv.byID[s.ID] = dir
		}
	}
	slices.SortFunc(inv.Snapshots, func(a, b *SnapshotDir) int { return compare(a.Name, b.Name) })
}

// owner is the domain whose directory a set is in, nil if that is gone.
func (inv *Inventory) owner(s *Set, byUUID map[string][]*Domain) *Domain {
	if s.DomainUUID == "" {
		return inv.byName[s.DomainName]
	}
	ds := byUUID[s.DomainUUID]
	if len(ds) == 0 {
		return nil
	}
	for _, d := range ds {
		if d.Name == s.DomainName {
			return d
		}
	}
	return ds[0]
}

// nameGone finds names for the directories of domains that are gone; the one with the
// latest set has the first choice.
func (inv *Inventory) nameGone(gone map[string]*SnapshotDir) {
	type entry struct {
		dir    *SnapshotDir
		latest *Set
	}
	var list []entry
	for _, dir := range gone {
		list = append(list, entry{dir, slices.MaxFunc(dir.Sets, compareAge)})
	}
	slices.SortFunc(list, func(a, b entry) int { return -compareAge(a.latest, b.latest) })
	for _, e := range list {
		id := e.latest.DomainUUID
		if id == "" {
			id = e.latest.ID
		}
		name := e.latest.DomainName
		short := suffixed(name, id[:min(8, len(id))])
		for _, choice := range []string{name, short, suffixed(name, id)} {
			if inv.byDir[choice] == nil {
				e.dir.Name = choice
				inv.byDir[choice] = e.dir
				break
			}
		}
	}
}

// nameSets sorts the sets by name. Where two have one name, as after a domain's merging
// with another, the later has "@" and the end of its ID after it; a foreign one comes after all of ours.
func (d *SnapshotDir) nameSets() {
	slices.SortFunc(d.Sets, func(a, b *Set) int {
		if a.Foreign != b.Foreign {
			if a.Foreign {
				return 1
			}
			return -1
		}
		return compareAge(a, b)
	})
	taken := map[string]bool{}
	for _, s := range d.Sets {
		if taken[s.Name] {
			s.Name = suffixed(s.Name, pathComponent(s.ID[max(0, len(s.ID)-6):]))
		}
		if taken[s.Name] {
			s.Name = pathComponent(s.ID)
		}
		taken[s.Name] = true
	}
	slices.SortFunc(d.Sets, func(a, b *Set) int { return compare(a.Name, b.Name) })
}

func compareAge(a, b *Set) int {
	return cmp.Or(a.Created.Compare(b.Created), compare(a.ID, b.ID))
}

// suffixed is name@suffix, cut so that it can be a directory's name.
func suffixed(name, suffix string) string {
	room := maxNameBytes - len(suffix) - 1
	for len(name) > room {
		_, n := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-n]
	}
	return name + "@" + suffix
}

// groupSets makes sets of snapshots with equal Set. Where the members disagree, as in the
// middle of a change, the first by vdev counts: changes begin with it.
func groupSets(snapshots []backend.Snapshot, failed map[string]error) []*Set {
	byID := map[string]*Set{}
	var sets []*Set
	for _, sn := range snapshots {
		if sn.Set == "" {
			continue // not ours: a set without an identity cannot be acted on
		}
		s := byID[sn.Set]
		if s == nil {
			s = &Set{ID: sn.Set}
			byID[sn.Set] = s
			sets = append(sets, s)
		}
		s.Disks = append(s.Disks, sn)
	}
	for _, s := range sets {
		slices.SortStableFunc(s.Disks, func(a, b backend.Snapshot) int { return compare(a.Disk.VDev, b.Disk.VDev) })
		first := s.Disks[0].SnapshotMeta
		s.Name, s.DomainUUID, s.DomainName = first.Name, first.DomainUUID, first.DomainName
		s.Created, s.Consistency, s.Expires = first.Created, first.Consistency, first.Expires
		for _, m := range s.Disks {
			s.Hold = s.Hold || m.Hold
			s.diskCount = max(s.diskCount, m.DiskCount)
			if err := failed[m.Volume.Store]; err != nil && s.Stale == nil {
				s.Stale = err
			}
		}
		if s.Stale == nil && len(s.Disks) < s.diskCount {
			// The members that are missing may be in a store that cannot be read.
			for _, err := range failed {
				s.Stale = err
			}
		}
		s.State = s.derivedState()
	}
	return sets
}

func (s *Set) has(state backend.SnapshotState) bool {
	return slices.ContainsFunc(s.Disks, func(m backend.Snapshot) bool { return m.State == state })
}

// isPending tells whether the set was never committed whole: users do not see it.
func (s *Set) isPending() bool {
	return s.has(backend.SnapshotPending) && !s.has(backend.SnapshotRemoving)
}

// derivedState is the state of a set by those of its members.
func (s *Set) derivedState() backend.SnapshotState {
	switch {
	case s.has(backend.SnapshotRemoving):
		return backend.SnapshotRemoving
	case s.has(backend.SnapshotInvalid), len(s.Disks) < s.diskCount:
		return backend.SnapshotInvalid
	case s.has(backend.SnapshotPending):
		return backend.SnapshotPending
	case s.has(backend.SnapshotFilling):
		return backend.SnapshotFilling
	}
	return backend.SnapshotActive
}

// difference says what changed between two readings that a cache may not know of.
func difference(a, b *Inventory) []Change {
	var out []Change
	for _, d := range b.Domains {
		if old := a.byName[d.Name]; old == nil || liveChanged(old, d) {
			out = append(out, Change{Domain: d.Name})
		}
	}
	for _, d := range a.Domains {
		if b.byName[d.Name] == nil {
			out = append(out, Change{Domain: d.Name})
		}
	}
	for id, dir := range a.byID {
		_, old := a.set(id)
		now, s := b.set(id)
		switch {
		case s == nil:
			out = append(out, Change{Dir: dir.Name, SetID: id, Gone: true})
		case s.State != old.State || s.Name != old.Name || now.Name != dir.Name || s.Hold != old.Hold || !maps.Equal(s.devices, old.devices) || !s.Expires.Equal(old.Expires):
			out = append(out, Change{Dir: now.Name, SetID: id, Invalid: s.State == backend.SnapshotInvalid && old.State != s.State})
		}
	}
	for id, dir := range b.byID {
		if a.byID[id] == nil {
			out = append(out, Change{Dir: dir.Name, SetID: id})
		}
	}
	return out
}

// liveChanged tells whether what is shown of a domain and of its live disks changed. What a running
// domain writes does not count: nothing that depends on it is cached.
func liveChanged(a, b *Domain) bool {
	if a.State != b.State || a.ID != b.ID || a.isRunning() != b.isRunning() || a.UUID != b.UUID || a.Config != b.Config || len(a.Volumes) != len(b.Volumes) {
		return true
	}
	for i, v := range a.Volumes {
		w := b.Volumes[i]
		if a.Disks[i] != b.Disks[i] || v.ID != w.ID || v.SizeBytes != w.SizeBytes || (v.Err == nil) != (w.Err == nil) {
			return true
		}
		if v.Generation != w.Generation && !b.isRunning() {
			return true
		}
	}
	return false
}

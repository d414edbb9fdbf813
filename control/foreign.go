package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"domfs/backend"
)

// Snapshots of others' making (lvcreate -s by hand, other tools) are shown as sets of one disk, under the
// domain whose disk they are of. They have no record of ours: they do not expire, cannot be held or
// renamed, are never taken for half-made, and removed only where Options.Foreign says so.

// addForeign makes sets of the foreign snapshots and puts them into the directories of their origins'
// domains. One whose origin is no domain's disk is not shown; where several domains have the disk,
// the first by name shows it.
func (inv *Inventory) addForeign(foreign []backend.Snapshot, dirs map[*Domain]*SnapshotDir) {
	if len(foreign) == 0 {
		return
	}
	type origin struct{ store, id string }
	owners := map[origin]diskAt{}
	for _, d := range inv.Domains {
		for i, v := range d.Volumes {
			o := origin{v.Store, v.ID}
			if _, taken := owners[o]; v.Store != "" && !taken {
				owners[o] = diskAt{d, i}
			}
		}
	}
	seen := map[string]bool{}
	for _, sn := range foreign {
		at, ok := owners[origin{sn.Volume.Store, sn.Origin}]
		if !ok || sn.Set == "" || sn.Name == "" || seen[sn.Set] {
			continue
		}
		seen[sn.Set] = true
		sn.Disk = at.domain.Disks[at.disk]
		sn.DiskCount, sn.Expires, sn.Hold = 1, time.Time{}, false
		s := &Set{ID: sn.Set, Name: pathComponent(sn.Name), Created: sn.Created, State: sn.State, Foreign: true,
			Consistency: backend.ConsistencyCrash, Disks: []backend.Snapshot{sn}, diskCount: 1}
		if s.State != backend.SnapshotInvalid {
			s.State = backend.SnapshotActive
		}
		if err := inv.failed[sn.Volume.Store]; err != nil {
			s.Stale = err
		}
		dir := dirs[at.domain]
		dir.Sets = append(dir.Sets, s)
	}
}

// pathComponent is name as it can be a file's.
func pathComponent(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '-'
		}
		return r
	}, name)
	if name == "." || name == ".." {
		name = "_" + name
	}
	if len(name) > maxNameBytes {
		return suffixed(name[:maxNameBytes], "cut")
	}
	return name
}

// splitForeign takes the foreign ones out of a list of snapshots.
func splitForeign(all []backend.Snapshot) (own, foreign []backend.Snapshot) {
	isForeign := func(s backend.Snapshot) bool { return s.Foreign }
	if !slices.ContainsFunc(all, isForeign) {
		return all, nil
	}
	for _, s := range all {
		if s.Foreign {
			foreign = append(foreign, s)
		} else {
			own = append(own, s)
		}
	}
	return own, foreign
}

// foreignKept is why a foreign set is not removed.
func (s *Set) foreignKept(d *SnapshotDir) error {
	return backend.Because(backend.ErrPermission, "snapshot %s of %s was not made by domfs, which removes such a one (%s) only where it was started with --foreign",
		s.Name, d.Name, s.Disks[0].Volume.ID)
}

// foreignFixed is why nothing can be written down of a foreign set.
func (s *Set) foreignFixed(d *SnapshotDir) error {
	return fmt.Errorf("snapshot %s of %s was not made by domfs and has no record: it can be neither renamed nor held, and does not expire: %w", s.Name, d.Name, backend.ErrPermission)
}

package lvm2

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"domfs/backend"
)

// New makes the Assembler of guests' LVM2 volume groups.
func New() backend.Assembler { return assembler{} }

type assembler struct{}

// Name is lvm.
func (assembler) Name() string { return "lvm" }

// Types are LVM2_member.
func (assembler) Types() []string { return []string{"LVM2_member"} }

// candidate is a text that may describe a group.
type candidate struct {
	summary
	sum    [sha256.Size]byte
	member int
	area   location
}

// found is a member with a label.
type found struct {
	backend.Member
	label
	group  string // UUID of the group that its own newest text describes, "" if it has none
	seqno  int64  // of that text
	faults warnings
	taken  bool // it belongs to a group, or was named in a warning
}

// scan is what Assemble gathers from members.
type scan struct {
	members    []*found // of those with a label, in order
	candidates map[string][]candidate
	order      []string // UUIDs of groups, as they were first seen
	warnings   warnings
	budget     int64
}

// Assemble puts the volume groups of one guest together; see the package's documentation. Groups are sorted
// by name.
func (assembler) Assemble(members []backend.Member) ([]backend.Group, []string) {
	s := &scan{candidates: make(map[string][]candidate), budget: maxTextTotal}
	if len(members) > maxMembers {
		s.warnings.add("%d physical volumes were not looked at: there are more than %d", len(members)-maxMembers, maxMembers)
		members = members[:maxMembers]
	}
	for _, m := range members {
		s.member(m)
	}
	var groups []backend.Group
	names := make(map[string]bool)
	s.budget = maxTextTotal
	for _, uuid := range s.order {
		g, ok := s.group(uuid)
		if !ok {
			continue
		}
		if names[g.Name] {
			name := g.Name + "@" + uuid[:8]
			if names[name] {
				name = g.Name + "@" + uuid
			}
			s.warnings.add("there are several volume groups named %s: the one with the UUID %s is shown as %s", g.Name, hyphenated(uuid), name)
			g.Name = name
		}
		names[g.Name] = true
		groups = append(groups, g)
	}
	s.leftovers()
	slices.SortFunc(groups, func(a, b backend.Group) int { return strings.Compare(a.Name, b.Name) })
	return groups, s.warnings.sentences()
}

// member reads the label of a member and the head of its texts.
func (s *scan) member(m backend.Member) {
	l, err := readLabel(m.Device)
	if err != nil {
		s.warnings.add("%s is not used: %v", m.Name, err)
		return
	}
	f := &found{Member: m, label: l}
	number := len(s.members)
	s.members = append(s.members, f)
	if len(l.metadata) > maxAreas {
		f.faults.add("%s has %d metadata areas, only %d were read", m.Name, len(l.metadata), maxAreas)
		l.metadata = l.metadata[:maxAreas]
	}
	for i, at := range l.metadata {
		text, err := readArea(m.Device, at, &s.budget)
		if errors.Is(err, errNoText) {
			continue
		}
		var head summary
		if err == nil {
			head, err = readSummary(text)
		}
		if err != nil {
			f.faults.add("metadata area %d of %s is not used: %v", i+1, m.Name, err)
			continue
		}
		s.add(candidate{summary: head, sum: sha256.Sum256([]byte(text)), member: number, area: at}, f)
	}
}

func (s *scan) add(c candidate, f *found) {
	if f.group == "" || c.seqno > f.seqno {
		f.group, f.seqno = c.uuid, c.seqno
	}
	list, known := s.candidates[c.uuid]
	if !known {
		if len(s.order) == maxGroups {
			s.warnings.add("volume group %s is not shown: there are more than %d", c.name, maxGroups)
			return
		}
		s.order = append(s.order, c.uuid)
	}
	for _, old := range list {
		if old.seqno == c.seqno && old.sum == c.sum {
			return // the usual copy
		}
	}
	s.candidates[c.uuid] = append(list, c)
}

// group makes the group with this UUID of its newest text that is good throughout.
func (s *scan) group(uuid string) (backend.Group, bool) {
	list := s.candidates[uuid]
	slices.SortStableFunc(list, func(a, b candidate) int {
		switch {
		case a.seqno > b.seqno:
			return -1
		case a.seqno < b.seqno:
			return 1
		}
		return 0
	})
	var w warnings
	var vg *volumeGroup
	for i, c := range list {
		text, err := readArea(s.members[c.member].Device, c.area, &s.budget)
		if err == nil {
			vg, err = readGroup(text)
		}
		if err != nil {
			w.add("the metadata with sequence number %d on %s is not used: %v", c.seqno, s.members[c.member].Name, err)
			continue
		}
		if i+1 < len(list) && list[i+1].seqno == c.seqno {
			w.add("there are different metadata with the sequence number %d: those on %s are used, not those on %s",
				c.seqno, s.members[c.member].Name, s.members[list[i+1].member].Name)
		}
		break
	}
	if vg == nil {
		for _, fault := range w.sentences() {
			s.warnings.add("volume group %s: %s", list[0].name, fault)
		}
		return backend.Group{}, false
	}
	b := newBuilder(vg, &w)
	s.assign(vg, b)
	return backend.Group{Name: vg.name, UUID: hyphenated(uuid), Volumes: b.volumes(), Warnings: w.sentences()}, true
}

// assign finds the members that are the group's physical volumes.
func (s *scan) assign(vg *volumeGroup, b *builder) {
	byUUID := make(map[string][]*found)
	for _, f := range s.members {
		// One that has the text of another group is that one's, whatever this group believes.
		if f.group == "" || f.group == vg.uuid {
			byUUID[f.uuid] = append(byUUID[f.uuid], f)
		}
	}
	for _, pv := range vg.pvs {
		same := byUUID[pv.uuid]
		if len(same) == 0 {
			continue
		}
		best := same[0]
		for _, f := range same[1:] {
			if better(f, best, pv) {
				best = f
			}
		}
		for _, f := range same {
			f.taken = true
			b.warnings.copy(&f.faults)
			if f != best {
				b.warnings.add("%s and %s are both physical volume %s: %s is used, whose metadata are %s",
					best.Name, f.Name, pv, best.Name, compared(best, f))
			}
		}
		if pv.sizeBytes > best.Device.Size() {
			b.warnings.add("%s has %d bytes, but physical volume %s had %d: what lies past the end cannot be read", best.Name, best.Device.Size(), pv, pv.sizeBytes)
		}
		if pv.missing {
			b.warnings.add("physical volume %s is on %s, but was missing when the guest last changed the volume group: its contents may be old", pv, best.Name)
		}
		b.present[pv] = best.Member
	}
	for _, f := range s.members {
		if f.group == vg.uuid && !f.taken {
			f.taken = true
			b.warnings.copy(&f.faults)
			b.warnings.add("%s (physical volume %s) is no longer in the volume group: it is not used", f.Name, hyphenated(f.uuid))
		}
	}
}

// better tells whether a, rather than b, is the physical volume that both claim to be.
func better(a, b *found, pv *physicalVolume) bool {
	if a.seqno != b.seqno {
		return a.seqno > b.seqno
	}
	return a.Device.Size() >= pv.sizeBytes && b.Device.Size() < pv.sizeBytes
}

func compared(best, other *found) string {
	if best.seqno > other.seqno {
		return "newer"
	}
	return "as new"
}

// leftovers tells of members that nothing above spoke of.
func (s *scan) leftovers() {
	for _, f := range s.members {
		if f.taken {
			continue
		}
		s.warnings.copy(&f.faults)
		if f.used && f.group == "" {
			s.warnings.add("%s (physical volume %s) is in a volume group, but no metadata of one were found that have it", f.Name, hyphenated(f.uuid))
		}
	}
}

func (w *warnings) copy(from *warnings) {
	for _, s := range from.list {
		w.add("%s", s)
	}
	w.more += from.more
}

// notThere is the error of what lies on a missing physical volume.
func notThere(pv *physicalVolume) error {
	return fmt.Errorf("it lies on physical volume %s, which is missing: %w", pv, backend.ErrNoDevice)
}

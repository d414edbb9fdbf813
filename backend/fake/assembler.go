package fake

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"

	"domfs/backend"
)

// GuestPVType is the Content type of a device with a PVHeader on it.
const GuestPVType = "mempv"

// PVExtent is a run of a physical volume that belongs to a logical one.
type PVExtent struct {
	LV                  string
	Index, Count        int // which of the Count runs of the logical volume it is
	OffsetBytes, Length int64
}

// PVHeader is what the first bytes of a device are that is a physical volume of the group vg.
func PVHeader(vg, uuid string, extents ...PVExtent) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %q %q %q\n", GuestPVType, vg, "", uuid)
	for _, e := range extents {
		fmt.Fprintf(&b, "%q %d %d %d %d\n", e.LV, e.Index, e.Count, e.OffsetBytes, e.Length)
	}
	return b.Bytes()
}

// Assembler is the backend.Assembler for PVHeader. A logical volume with a run missing has an Err.
type Assembler struct {
	// Panic makes Assemble fail on what it reads.
	Panic bool
}

// Name of the directory.
func (*Assembler) Name() string { return "lvm" }

// Types of its members.
func (*Assembler) Types() []string { return []string{GuestPVType} }

type lvRun struct {
	PVExtent
	member backend.Member
}

// Assemble puts the runs of each volume together.
func (a *Assembler) Assemble(members []backend.Member) (groups []backend.Group, warnings []string) {
	if a.Panic {
		panic("hostile bytes")
	}
	byGroup := map[string]map[string][]lvRun{}
	for _, m := range members {
		lines, err := header(m.Device)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s cannot be read: %v", m.Name, err))
			continue
		}
		_, vg, _, _ := fields(lines[0])
		if byGroup[vg] == nil {
			byGroup[vg] = map[string][]lvRun{}
		}
		for _, line := range lines[1:] {
			r := lvRun{member: m}
			if line == "" {
				continue
			}
			if n, err := fmt.Sscanf(line, "%q %d %d %d %d", &r.LV, &r.Index, &r.Count, &r.OffsetBytes, &r.Length); n != 5 || err != nil {
				warnings = append(warnings, fmt.Sprintf("%s has a line %q", m.Name, line))
				continue
			}
			byGroup[vg][r.LV] = append(byGroup[vg][r.LV], r)
		}
	}
	for name, lvs := range byGroup {
		g := backend.Group{Name: name, UUID: "uuid of " + name}
		for lv, runs := range lvs {
			g.Volumes = append(g.Volumes, volumeOf(lv, runs))
		}
		slices.SortFunc(g.Volumes, func(a, b backend.GroupVolume) int { return cmp.Compare(a.Name, b.Name) })
		for _, v := range g.Volumes {
			if v.Err != nil {
				g.Warnings = append(g.Warnings, v.Err.Error())
			}
		}
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b backend.Group) int { return cmp.Compare(a.Name, b.Name) })
	return groups, warnings
}

func volumeOf(lv string, runs []lvRun) backend.GroupVolume {
	slices.SortFunc(runs, func(a, b lvRun) int { return cmp.Compare(a.Index, b.Index) })
	v := backend.GroupVolume{Name: lv, UUID: "uuid of " + lv}
	joined := &joined{}
	for i, r := range runs {
		if r.Index != i {
			break
		}
		s, err := backend.Section(r.member.Device, r.OffsetBytes, r.Length)
		if err != nil {
			v.Err = err
			return v
		}
		joined.runs = append(joined.runs, s)
		v.Segments = append(v.Segments, backend.MapSegment{Start: joined.Size() - r.Length, Length: r.Length,
			Targets: []backend.MapTarget{{Member: r.member.Name, Offset: r.OffsetBytes}}})
	}
	if len(joined.runs) != runs[0].Count {
		v.Segments, v.Err = nil, fmt.Errorf("%s lacks a physical volume: %w", lv, backend.ErrNoDevice)
		return v
	}
	v.Device = joined
	return v
}

// joined is devices one after the other.
type joined struct{ runs []backend.Device }

func (j *joined) Close() error { return nil }

func (j *joined) Size() (sum int64) {
	for _, r := range j.runs {
		sum += r.Size()
	}
	return sum
}

func (j *joined) ReadAt(p []byte, off int64) (n int, err error) {
	for _, r := range j.runs {
		if off >= r.Size() {
			off -= r.Size()
			continue
		}
		m, err := r.ReadAt(p[n:min(len(p), n+int(r.Size()-off))], off)
		n += m
		if n == len(p) {
			return n, nil
		}
		if err != nil && err != io.EOF {
			return n, err
		}
		off = 0
	}
	return n, io.EOF
}

package lvm2

import (
	"fmt"
	"math"
	"strings"

	"domfs/backend"
)

// volumeGroup is what a metadata text says (lib/format_text/import_vsn1.c).
type volumeGroup struct {
	name, uuid  string
	seqno       int64
	extentBytes int64
	pvs         []*physicalVolume
	lvs         []*logicalVolume
	pvByName    map[string]*physicalVolume
	lvByName    map[string]*logicalVolume
}

// physicalVolume is a physical volume as the group's metadata has it.
type physicalVolume struct {
	name, uuid string // "pv0"
	hint       string // where the guest saw it last: /dev/xvdb1
	start      int64  // byte of its first extent
	sizeBytes  int64  // 0 where the metadata does not say
	missing    bool   // it was missing when the metadata was last written
}

// String names it in messages.
func (p *physicalVolume) String() string {
	if p.hint == "" {
		return p.name + " (" + hyphenated(p.uuid) + ")"
	}
	return p.name + " (" + hyphenated(p.uuid) + ", " + p.hint + " in the guest)"
}

// logicalVolume is a logical volume, also an internal one.
type logicalVolume struct {
	name, uuid string
	status     map[string]bool
	segments   []*segment // sorted as they lie, without gaps
	size       int64
	err        error // why its metadata cannot be used
}

// segment is a run of a logical volume that is mapped in one way.
type segment struct {
	start, length int64 // bytes of the volume
	kind          string
	flags         string // what follows a + in the type
	node          *node
}

// area is where a stripe or leg begins: on a physical or on another logical volume.
type area struct {
	pv     *physicalVolume
	lv     *logicalVolume
	offset int64 // bytes of the logical volume, or of the physical volume's extents
}

// legalName tells whether LVM takes s as the name of a group or volume; such names are legal for directories.
func legalName(s string) bool {
	if s == "" || len(s) > 127 || s[0] == '-' || s == "." || s == ".." {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("+_.-", c) >= 0) {
			return false
		}
	}
	return true
}

// groupNode is the section of the group in a text.
func groupNode(root *node) (*node, error) {
	if s, err := root.str("contents"); err != nil || s != "Text Format Volume Group" {
		return nil, fmt.Errorf("metadata text: it is not that of a volume group: %w", backend.ErrCorrupt)
	}
	if v, err := root.number("version", math.MaxInt32); err != nil || v != 1 {
		return nil, fmt.Errorf("metadata text: its version is not 1: %w", backend.ErrUnsupported)
	}
	for _, n := range root.children {
		if n.section {
			return n, nil
		}
	}
	return nil, fmt.Errorf("metadata text: it has no volume group: %w", backend.ErrCorrupt)
}

// summary is what decides which text counts.
type summary struct {
	name, uuid string
	seqno      int64
}

// readSummary reads the head of a text.
func readSummary(text string) (summary, error) {
	root, err := parseText(text, 1)
	if err != nil {
		return summary{}, err
	}
	n, err := groupNode(root)
	if err != nil {
		return summary{}, err
	}
	return groupSummary(n)
}

func groupSummary(n *node) (summary, error) {
	s := summary{name: strings.Clone(n.key)}
	if !legalName(s.name) {
		return summary{}, fmt.Errorf("%s is no name of a volume group: %w", quoted(n.key), backend.ErrCorrupt)
	}
	var err error
	if s.uuid, err = n.uuid("id"); err != nil {
		return summary{}, err
	}
	s.seqno, err = n.number("seqno", math.MaxUint32)
	return s, err
}

// readGroup reads a whole text. What is wrong with one logical volume is that volume's err.
func readGroup(text string) (*volumeGroup, error) {
	root, err := parseText(text, maxTextDepth)
	if err != nil {
		return nil, err
	}
	n, err := groupNode(root)
	if err != nil {
		return nil, err
	}
	s, err := groupSummary(n)
	if err != nil {
		return nil, err
	}
	extentSectors, err := n.number("extent_size", maxExtentBytes/sectorBytes)
	if err != nil {
		return nil, err
	}
	if extentSectors == 0 {
		return nil, fmt.Errorf("extents of volume group %s have no size: %w", s.name, backend.ErrCorrupt)
	}
	vg := &volumeGroup{
		name: s.name, uuid: s.uuid, seqno: s.seqno, extentBytes: extentSectors * sectorBytes,
		pvByName: make(map[string]*physicalVolume), lvByName: make(map[string]*logicalVolume),
	}
	if err := vg.readPhysical(n.child("physical_volumes")); err != nil {
		return nil, err
	}
	return vg, vg.readLogical(n.child("logical_volumes"))
}

func (vg *volumeGroup) readPhysical(n *node) error {
	if n == nil {
		return nil
	}
	if len(n.children) > maxPVs {
		return fmt.Errorf("volume group %s has %d physical volumes, more than %d: %w", vg.name, len(n.children), maxPVs, backend.ErrUnsupported)
	}
	seen := make(map[string]bool)
	for _, c := range n.children {
		p := &physicalVolume{name: strings.Clone(c.key)}
		if !legalName(p.name) {
			return fmt.Errorf("%s is no name of a physical volume: %w", quoted(c.key), backend.ErrCorrupt)
		}
		var err error
		if p.uuid, err = c.uuid("id"); err != nil {
			return err
		}
		if seen[p.uuid] {
			return fmt.Errorf("physical volume %s is in volume group %s twice: %w", hyphenated(p.uuid), vg.name, backend.ErrCorrupt)
		}
		seen[p.uuid] = true
		if p.start, err = c.number("pe_start", maxVolumeBytes/sectorBytes); err != nil {
			return err
		}
		p.start *= sectorBytes
		if p.sizeBytes, err = c.numberOr("dev_size", maxVolumeBytes/sectorBytes, 0); err != nil {
			return err
		}
		p.sizeBytes *= sectorBytes
		if hint, err := c.strOr("device", ""); err == nil && hint != "" {
			p.hint = strings.Trim(quoted(hint), `"`)
		}
		for _, key := range []string{"status", "flags"} {
			flags, err := c.flags(key)
			if err != nil {
				return err
			}
			p.missing = p.missing || flags["MISSING"]
		}
		vg.pvs = append(vg.pvs, p)
		vg.pvByName[p.name] = p
	}
	return nil
}

func (vg *volumeGroup) readLogical(n *node) error {
	if n == nil {
		return nil
	}
	if len(n.children) > maxLVs {
		return fmt.Errorf("volume group %s has %d logical volumes, more than %d: %w", vg.name, len(n.children), maxLVs, backend.ErrUnsupported)
	}
	segments := 0
	for _, c := range n.children {
		lv := &logicalVolume{name: strings.Clone(c.key)}
		lv.err = vg.readVolume(lv, c)
		if segments += len(lv.segments); segments > maxSegments {
			return fmt.Errorf("volume group %s has more than %d segments: %w", vg.name, maxSegments, backend.ErrUnsupported)
		}
		vg.lvs = append(vg.lvs, lv)
		vg.lvByName[lv.name] = lv
	}
	return nil
}

// readVolume reads a logical volume's section. Its segments must cover it without gaps, as LVM demands.
func (vg *volumeGroup) readVolume(lv *logicalVolume, n *node) error {
	if !n.section {
		return fmt.Errorf("logical volume %s is not a section: %w", quoted(lv.name), backend.ErrCorrupt)
	}
	var err error
	if lv.status, err = n.flags("status"); err != nil {
		return err
	}
	if lv.uuid, err = n.uuid("id"); err != nil {
		return err
	}
	for _, c := range n.children {
		if !c.section {
			continue
		}
		s, err := vg.readSegment(c)
		if err != nil {
			return fmt.Errorf("logical volume %s: %w", quoted(lv.name), err)
		}
		lv.segments = append(lv.segments, s)
	}
	sortSegments(lv.segments)
	for _, s := range lv.segments {
		if s.start != lv.size {
			return fmt.Errorf("logical volume %s: its segments do not follow each other at byte %d: %w", quoted(lv.name), lv.size, backend.ErrCorrupt)
		}
		if s.length > maxVolumeBytes-lv.size {
			return fmt.Errorf("logical volume %s is larger than %d bytes: %w", quoted(lv.name), int64(maxVolumeBytes), backend.ErrCorrupt)
		}
		lv.size += s.length
	}
	if len(lv.segments) == 0 {
		return fmt.Errorf("logical volume %s has no segments: %w", quoted(lv.name), backend.ErrCorrupt)
	}
	return nil
}

func (vg *volumeGroup) readSegment(n *node) (*segment, error) {
	start, err := vg.extents(n, "start_extent")
	if err != nil {
		return nil, err
	}
	length, err := vg.extents(n, "extent_count")
	if err != nil {
		return nil, err
	}
	if length == 0 {
		return nil, fmt.Errorf("%s is empty: %w", quoted(n.key), backend.ErrCorrupt)
	}
	kind, err := n.strOr("type", "striped")
	if err != nil {
		return nil, err
	}
	kind, flags, _ := strings.Cut(kind, "+")
	return &segment{start: start, length: length, kind: kind, flags: flags, node: n}, nil
}

// extents is a number of extents, in bytes.
func (vg *volumeGroup) extents(n *node, key string) (int64, error) {
	v, err := n.number(key, maxExtents)
	if err != nil {
		return 0, err
	}
	return vg.extentsToBytes(v)
}

func (vg *volumeGroup) extentsToBytes(v int64) (int64, error) {
	if v < 0 || v > maxVolumeBytes/vg.extentBytes {
		return 0, fmt.Errorf("%d extents of %d bytes are more than %d bytes: %w", v, vg.extentBytes, int64(maxVolumeBytes), backend.ErrCorrupt)
	}
	return v * vg.extentBytes, nil
}

// pairs reads a list of NAME, EXTENT, whose length the metadata says in count.
func (vg *volumeGroup) pairs(n *node, key, count string) ([]area, error) {
	want, err := n.number(count, math.MaxUint32)
	if err != nil {
		return nil, err
	}
	c := n.child(key)
	if c == nil || int64(len(c.values)) != 2*want || want == 0 {
		return nil, fmt.Errorf("%s: %s does not list %d places: %w", quoted(n.key), key, want, backend.ErrCorrupt)
	}
	if want > maxAreasLV {
		return nil, fmt.Errorf("%s has %d %s, more than %d: %w", quoted(n.key), want, key, maxAreasLV, backend.ErrUnsupported)
	}
	areas := make([]area, want)
	for i := range areas {
		name, extent := c.values[2*i], c.values[2*i+1]
		if name.isNumber || !extent.isNumber || extent.number < 0 || extent.number > maxExtents {
			return nil, fmt.Errorf("%s: entry %d of %s is not a name and an extent: %w", quoted(n.key), i, key, backend.ErrCorrupt)
		}
		if areas[i].offset, err = vg.extentsToBytes(extent.number); err != nil {
			return nil, err
		}
		if areas[i].pv = vg.pvByName[name.text]; areas[i].pv != nil {
			continue
		}
		if areas[i].lv, err = vg.lookup(name.text); err != nil {
			return nil, err
		}
	}
	return areas, nil
}

// volume is the logical volume that key names.
func (vg *volumeGroup) volume(n *node, key string) (*logicalVolume, error) {
	name, err := n.str(key)
	if err != nil {
		return nil, err
	}
	return vg.lookup(name)
}

func (vg *volumeGroup) lookup(name string) (*logicalVolume, error) {
	if lv := vg.lvByName[name]; lv != nil {
		return lv, nil
	}
	return nil, fmt.Errorf("volume group %s has no volume %s: %w", vg.name, quoted(name), backend.ErrCorrupt)
}

package control

import (
	"slices"
	"strconv"
	"strings"
)

// named are the volumes that a guest's configuration means by spec: a device or a tag, as in fstab(5).
// One that is a snapshot of another, and so has its UUID, comes after it.
func (a *assembly) named(spec string) []seenVolume {
	if name, ok := strings.CutPrefix(spec, "/dev/"); ok && !strings.Contains(name, "/") {
		return a.namedDevice(name)
	}
	var plain, rest []seenVolume
	for _, s := range a.seen {
		switch {
		case !s.isNamed(spec):
		case s.plain:
			plain = append(plain, s)
		default:
			rest = append(rest, s)
		}
	}
	return append(plain, rest...)
}

// means tells whether spec is a name of just this volume.
func (a *assembly) means(spec string, ref VolumeRef) bool {
	return slices.ContainsFunc(a.named(spec), func(s seenVolume) bool { return s.ref == ref })
}

// diskFamilies are the names that one disk has under different drivers of the guest: a disk that is
// configured as hda is the guest's xvda or sda.
var diskFamilies = []string{"xvd", "sd", "hd", "vd"}

// namedDevice is the disk or partition with the kernel's name name, such as xvda1. A disk that is configured under
// just that name goes before one of another family.
func (a *assembly) namedDevice(name string) []seenVolume {
	names := []string{name}
	for _, f := range diskFamilies {
		if tail, ok := strings.CutPrefix(name, f); ok && tail != "" {
			for _, other := range diskFamilies {
				names = append(names, other+tail)
			}
			break
		}
	}
	for _, name := range names {
		for _, s := range a.seen {
			if name != "" && s.deviceName() == name {
				return []seenVolume{s}
			}
		}
	}
	return nil
}

// deviceName is the kernel's name of a disk or partition; "" for a partition in a partition, and what is none.
func (s *seenVolume) deviceName() string {
	vdev := s.ref.VDev
	number, ok := strings.CutPrefix(s.ref.Path, "p")
	switch {
	case vdev == "" || s.ref.Path == "":
		return vdev
	case !ok || !isDigits(number):
		return ""
	case isDigits(vdev[len(vdev)-1:]): // nvme0n1p1
		return vdev + "p" + number
	}
	return vdev + number
}

// isNamed tells whether spec, a tag or a path below a folder of /dev, means this volume.
func (s *seenVolume) isNamed(spec string) bool {
	if tag, value, ok := strings.Cut(spec, "="); ok && tag == strings.ToUpper(tag) && !strings.Contains(tag, "/") {
		return s.hasTag(strings.ToLower(tag), unquoted(value))
	}
	name, ok := strings.CutPrefix(spec, "/dev/")
	if !ok {
		return false
	}
	if link, ok := strings.CutPrefix(name, "disk/by-"); ok {
		kind, value, _ := strings.Cut(link, "/")
		if kind == "id" {
			return s.hasID(value)
		}
		return s.hasTag(kind, unescapeUdev(value))
	}
	if s.name == "" { // what is not assembled, or a partition of that
		return false
	}
	dm, isDM := strings.CutPrefix(name, "mapper/")
	return isDM && dm == s.mapperName() || name == s.group+"/"+s.name
}

// unquoted is the value of UUID="…" without its quotes.
func unquoted(value string) string {
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		return value[1 : n-1]
	}
	return value
}

func (s *seenVolume) hasTag(tag, value string) bool {
	switch {
	case value == "":
		return false
	case tag == "uuid":
		return strings.EqualFold(s.content.UUID, value)
	case tag == "label":
		return s.content.Label == value
	case tag == "partuuid":
		return strings.EqualFold(s.partUUID, value)
	case tag == "partlabel":
		return s.partName == value
	}
	return false
}

// hasID tells whether a name in /dev/disk/by-id is that of a logical volume.
func (s *seenVolume) hasID(id string) bool {
	if s.name == "" {
		return false
	}
	if dm, ok := strings.CutPrefix(id, "dm-name-"); ok {
		return unescapeUdev(dm) == s.mapperName()
	}
	uuid, ok := strings.CutPrefix(id, "dm-uuid-LVM-")
	return ok && s.lvmUUID != "" && uuid == s.lvmUUID
}

// mapperName is what device-mapper calls a logical volume: its hyphens are doubled.
func (s *seenVolume) mapperName() string {
	double := func(name string) string { return strings.ReplaceAll(name, "-", "--") }
	return double(s.group) + "-" + double(s.name)
}

// unescapeUdev undoes the escapes of udev's links: \x20 is a blank.
func unescapeUdev(s string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, `\x`)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		c, err := strconv.ParseUint(after[:min(2, len(after))], 16, 8)
		if err != nil || len(after) < 2 {
			b.WriteString(`\x`)
			s = after
			continue
		}
		b.WriteByte(byte(c))
		s = after[2:]
	}
}

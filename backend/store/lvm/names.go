package lvm

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"domfs/backend"
)

// namePrefix is what the names of our snapshots' LVs begin with.
const namePrefix = "domfs-"

// hashDigits is how much of the hash of set and disk a name holds: 48 bits, so that a VG full
// of snapshots has no two alike.
const hashDigits = 12

// maxDMName is the length of a device's name in device-mapper: DM_NAME_LEN with its NUL is 128
// (include/uapi/linux/dm-ioctl.h).
const maxDMName = 127

// The devices that LVM makes of a snapshot and of its origin beside their own, by their suffixes. A
// name that leaves no room for them fails in the middle of lvcreate.
const (
	cowLayer  = "-cow"
	realLayer = "-real"
)

// reservedNames are the parts of names that LVM keeps for itself (lvm(8), VALID NAMES; later versions
// have more of them).
var reservedNames = []string{
	"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage", "_rmeta", "_tdata", "_tmeta",
	"_vdata", "_vorigin", "_pmspare", "_imeta", "_iorig",
}

// dmName is the name of an LV's device in device-mapper: hyphens are doubled, as the one between
// VG and LV is single.
func dmName(vgName, name string) string {
	return strings.ReplaceAll(vgName, "-", "--") + "-" + strings.ReplaceAll(name, "-", "--")
}

// snapshotName is the LV's name of the snapshot of a disk in a set:
//
//	domfs-ORIGIN-HASH
//
// It is a function of the origin, the set and the disk alone: the user's name, which is in the tags, may be
// any and may change. The origin's name is cut to what is left.
func snapshotName(origin *lv, set, vdev string) (string, error) {
	if len(dmName(origin.vg.name, origin.name))+len(realLayer) > maxDMName {
		return "", backend.Because(backend.ErrUnsupported, "%s cannot be snapshotted by LVM: with its VG's, its name is too long for device-mapper (%d bytes, hyphens counted twice, and %d is the most): rename it with lvrename",
			origin.id(), len(dmName(origin.vg.name, origin.name)), maxDMName-len(realLayer))
	}
	sum := sha256.Sum256([]byte(set + "\x00" + vdev))
	tail := "-" + hex.EncodeToString(sum[:])[:hashDigits]
	room := maxDMName - len(cowLayer) - len(dmName(origin.vg.name, namePrefix+tail))
	if room < 0 {
		return "", backend.Because(backend.ErrUnsupported, "%s cannot be snapshotted: the name of VG %s leaves no room for a snapshot's, as device-mapper's names have %d bytes, hyphens counted twice: rename the VG with vgrename",
			origin.id(), origin.vg.name, maxDMName)
	}
	middle := origin.name
	for _, reserved := range reservedNames {
		if strings.Contains(middle, reserved) { // of an LVM that did not know it yet
			middle = strings.ReplaceAll(middle, "_", ".")
		}
	}
	for i := range len(middle) {
		if middle[i] == '-' {
			room--
		}
		if room--; room < 0 {
			middle = middle[:i]
			break
		}
	}
	return namePrefix + middle + tail, nil
}

// isOurName tells whether an LV's name has the form of snapshotName. Others may choose such a name, too: only
// tags tell what is ours.
func isOurName(name string) bool {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok || len(rest) < hashDigits+1 {
		return false
	}
	tail := rest[len(rest)-hashDigits-1:]
	return tail[0] == '-' && strings.Trim(tail[1:], "0123456789abcdef") == ""
}

// reservedStarts are how names may not begin: LVM's own, and ours of snapshots, by which rules of udev know those.
var reservedStarts = []string{"snapshot", "pvmove", namePrefix, "-", "."}

// maxSameName is how many volumes may have the same name but for a number.
const maxSameName = 99

// volumeName is a name for a new LV: what is wanted, with "_" for what no name may have, cut to a length that leaves room for
// snapshots' layers, and with a number after it if it is taken.
func volumeName(g *vg, want string) (string, error) {
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("+_.-", r):
			return r
		}
		return '_'
	}, want)
	for _, reserved := range reservedNames {
		if strings.Contains(name, reserved) {
			name = strings.ReplaceAll(name, "_", ".")
		}
	}
	for _, start := range reservedStarts {
		if strings.HasPrefix(name, start) {
			name = "vm-" + name
			break
		}
	}
	room := maxDMName - len(realLayer) - len(dmName(g.name, ""))
	for n := 1; n <= maxSameName; n++ {
		tail := ""
		if n > 1 {
			tail = "-" + strconv.Itoa(n)
		}
		cut := name
		for len(cut) > 0 && len(dmName("", cut+tail))-1 > room {
			cut = cut[:len(cut)-1]
		}
		if cut == "" {
			return "", backend.Because(backend.ErrUnsupported, "the name of VG %s leaves no room for a volume's, as device-mapper's names have %d bytes, hyphens counted twice", g.name, maxDMName)
		}
		if g.lv(cut+tail) == nil {
			return cut + tail, nil
		}
	}
	return "", backend.Because(backend.ErrExist, "VG %s has %d volumes named %s already", g.name, maxSameName, name)
}

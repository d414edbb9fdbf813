package kpartx

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"domfs/backend"
	"domfs/backend/hostdev"
)

const (
	prefix = "domfs-"
	// partDelimiter is what kpartx is told to put between the front's name and a partition's number.
	partDelimiter = ":p"
	folder        = "/dev/mapper/"

	maxName = 127 // bytes; DM_NAME_LEN of linux/dm-ioctl.h less its NUL
	maxUUID = 128 // DM_UUID_LEN, likewise

	shownPrefix = "DOMFS-" // of a UUID
	// hiddenPrefix is what makes LVM take a device for a layer of its own; see doc.go. With the hash and the
	// padding it is longer than "LVM-" and two identities of 32 bytes.
	hiddenPrefix = "LVM-domfs-"
	minUUID      = 80
	hashBytes    = 16
	// keptName is how much of a path stays in a name that is too long for all of it.
	keptName = 47
	maxSet   = 64 // bytes of a set's identity, escaped
)

// identity is what device-mapper knows a mapping by.
type identity struct{ name, uuid string }

func (d identity) path() string { return folder + d.name }

// newIdentity names the mapping of a volume; a hidden one is none that the host's LVM, or libblkid, looks
// into. The set's part ends at the first ":", for EscapeWord leaves none in it.
func newIdentity(setID, path string, hidden bool) (identity, error) {
	set := hostdev.EscapeWord(setID)
	if set == "" || len(set) > maxSet {
		return identity{}, fmt.Errorf("the identity %q of a snapshot cannot be part of a device's name: %w", setID, backend.ErrUnsupported)
	}
	head, whole := prefix+set+":", hostdev.Escape(path)
	sum := sha256.Sum256([]byte(setID + "\x00" + path))
	hash := hex.EncodeToString(sum[:hashBytes])
	d := identity{name: head + whole, uuid: shownPrefix + hash + "-"}
	if hidden {
		d.uuid = hiddenPrefix + hash + "-"
	}
	if len(d.name) > maxName {
		// "@" is in no name that is whole.
		d.name = head + whole[:keptName] + "@" + hash[:8]
		d.uuid += whole[keptName:]
	}
	if n := minUUID - len(d.uuid); n > 0 {
		d.uuid += strings.Repeat("@", n)
	}
	if len(d.name) > maxName || len(d.uuid) > maxUUID {
		return identity{}, fmt.Errorf("the name %s is too long for a device's: %w", path, backend.ErrUnsupported)
	}
	return d, nil
}

var kpartxUUID = regexp.MustCompile(`^part[0-9]+-`)

// parse finds what a device of the host is a mapping of; false if it is none of ours.
func (d identity) parse() (setID, path string, ok bool) {
	rest, ok := strings.CutPrefix(d.name, prefix)
	if !ok {
		return "", "", false
	}
	uuid := d.uuid[len(kpartxUUID.FindString(d.uuid)):]
	tail, ok := strings.CutPrefix(uuid, hiddenPrefix)
	if !ok {
		tail, ok = strings.CutPrefix(uuid, shownPrefix)
	}
	if !ok || len(tail) <= 2*hashBytes {
		return "", "", false
	}
	set, whole, ok := strings.Cut(rest, ":")
	if !ok {
		return "", "", false
	}
	if kept, _, cut := strings.Cut(whole, "@"); cut {
		whole = kept + strings.TrimRight(tail[2*hashBytes+1:], "@")
	}
	return hostdev.Unescape(set), hostdev.Unescape(whole), true
}

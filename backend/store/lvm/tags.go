package lvm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"domfs/backend"
)

// What a snapshot is stands in its LV's tags: one that says the version, and one for each field
// that is not empty.
//
//	domfs.v1
//	domfs.set=20260203T040506000-k3q7x2m9p4   domfs.disks=2        domfs.state=active
//	domfs.name=nightly                        domfs.domain=web-01  domfs.uuid=…
//	domfs.created=2026-02-03T04:05:06Z        domfs.consistency=crash
//	domfs.expires=…  domfs.hold=1
//	domfs.vdev=xvda  domfs.mode=rw  domfs.source=/dev/vg0/web-01  domfs.format=raw  domfs.backend=…
//	domfs.script=…   domfs.driverdomain=…  domfs.cdrom=1
//
// A tag may hold a-z A-Z 0-9 _ + . - / = ! : # & (lvm(8), TAGS). In a value, all bytes but letters, digits and
// _ + . - / : are written as # and two hexadecimal digits. A value that is too long for a tag goes on in
// further ones, whose keys have a number: domfs.source.2=…
//
// The set, the disk and the origin never change; all else does by adding and deleting tags in one commit of
// the VG's metadata. A record of another version (domfs.v2) is not understood and left alone.
const (
	tagPrefix   = "domfs."
	versionTag  = tagPrefix + "v1"
	maxTagValue = 900 // bytes of a value in one tag; a tag has 1024 at most
	maxParts    = 16  // tags for one value
	// maxRecord is how many bytes all tags of a snapshot may have: a VG's metadata, one copy of which is to be
	// less than half of an area of 1 MiB, holds those of all of its LVs.
	maxRecord = 16 << 10
)

// Keys of the fields.
const (
	keySet          = "set"
	keyName         = "name"
	keyDomain       = "domain"
	keyUUID         = "uuid"
	keyVDev         = "vdev"
	keyBackend      = "backend"
	keyFormat       = "format"
	keySource       = "source"
	keyMode         = "mode"
	keyCDROM        = "cdrom"
	keyScript       = "script"
	keyDriverDomain = "driverdomain"
	keyDisks        = "disks"
	keyCreated      = "created"
	keyConsistency  = "consistency"
	keyState        = "state"
	keyExpires      = "expires"
	keyHold         = "hold"
)

// field is one key with its value, a text.
type field struct{ key, value string }

// fieldsOf are the fields of m that are not empty.
func fieldsOf(m backend.SnapshotMeta) ([]field, error) {
	flag := func(b bool) string {
		if b {
			return "1"
		}
		return ""
	}
	number := ""
	if m.DiskCount != 0 {
		number = strconv.Itoa(m.DiskCount)
	}
	created, err1 := timeText(m.Created)
	expires, err2 := timeText(m.Expires)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	all := []field{
		{keySet, m.Set}, {keyName, m.Name}, {keyDomain, m.DomainName}, {keyUUID, m.DomainUUID},
		{keyVDev, m.Disk.VDev}, {keyBackend, m.Disk.Backend}, {keyFormat, m.Disk.Format}, {keySource, m.Disk.Source},
		{keyMode, string(m.Disk.Mode)}, {keyCDROM, flag(m.Disk.CDROM)}, {keyScript, m.Disk.Script}, {keyDriverDomain, m.Disk.BackendDomain},
		{keyDisks, number}, {keyCreated, created}, {keyConsistency, string(m.Consistency)},
		{keyState, string(m.State)}, {keyExpires, expires}, {keyHold, flag(m.Hold)},
	}
	return slices.DeleteFunc(all, func(f field) bool { return f.value == "" }), nil
}

// timeText is RFC 3339 in UTC; "" for none.
func timeText(t time.Time) (string, error) {
	if t.IsZero() {
		return "", nil
	}
	t = t.UTC()
	if t.Year() < 1 || t.Year() > 9999 {
		return "", backend.Because(backend.ErrInvalid, "the year %d cannot be written down", t.Year())
	}
	return t.Format(time.RFC3339Nano), nil
}

// formatTags are the tags that say m: ErrInvalid if that would be too long.
func formatTags(m backend.SnapshotMeta) ([]string, error) {
	fields, err := fieldsOf(m)
	if err != nil {
		return nil, err
	}
	tags := []string{versionTag}
	bytes := len(versionTag)
	for _, f := range fields {
		parts := split(escape(f.value))
		if len(parts) > maxParts {
			return nil, tooLong(f.key, len(f.value))
		}
		for i, part := range parts {
			tag := tagPrefix + f.key + "=" + part
			if i > 0 {
				tag = fmt.Sprintf("%s%s.%d=%s", tagPrefix, f.key, i+1, part)
			}
			tags = append(tags, tag)
			bytes += len(tag)
		}
		if bytes > maxRecord {
			return nil, tooLong(f.key, len(f.value))
		}
	}
	return tags, nil
}

func tooLong(key string, bytes int) error {
	return backend.Because(backend.ErrInvalid, "what a snapshot is has to fit into its LV's tags, %d bytes in all, and the %s of %d bytes does not", maxRecord, key, bytes)
}

const hexDigits = "0123456789abcdef"

// escape writes a value with bytes that tags may hold.
func escape(value string) string {
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; isPlain(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'#', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String()
}

// isPlain tells whether a byte stands for itself in a value. Of those that tags may hold, '=', '!', '&' and '#' do not:
// selections (lvmreport(7)) and shells give them a meaning.
func isPlain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_+.-/:", c) >= 0
}

// unescape reads what escape wrote, and nothing else.
func unescape(text string) (string, bool) {
	if !strings.Contains(text, "#") {
		return text, !strings.ContainsFunc(text, func(r rune) bool { return r > 127 || !isPlain(byte(r)) })
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '#' {
			if !isPlain(c) {
				return "", false
			}
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(text) {
			return "", false
		}
		high, low := strings.IndexByte(hexDigits, text[i+1]), strings.IndexByte(hexDigits, text[i+2])
		if high < 0 || low < 0 || isPlain(byte(high<<4|low)) {
			return "", false
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), true
}

// split cuts an escaped value into what tags have room for, never within an escape.
func split(text string) []string {
	var parts []string
	for len(text) > maxTagValue {
		n := maxTagValue
		for k := 1; k <= 2; k++ {
			if text[n-k] == '#' {
				n -= k
				break
			}
		}
		parts = append(parts, text[:n])
		text = text[n:]
	}
	return append(parts, text)
}

// isOursTag tells whether domfs has written a tag, of any version.
func isOursTag(tag string) bool { return strings.HasPrefix(tag, tagPrefix) }

// parseTags reads the tags of an LV. ok tells whether they are a record of ours; recordFault says what is wrong with one.
func parseTags(tags []string) (m backend.SnapshotMeta, ok bool) {
	m, _ = readRecord(tags)
	return m, m.Set != ""
}

// recordFault says why a record of ours cannot be acted on: it is a later version's, or damaged. The
// fields that could be read are valid.
func recordFault(tags []string) error {
	_, err := readRecord(tags)
	return err
}

// readRecord reads as much as can be read. Without a version, or without a set, m.Set is empty.
func readRecord(tags []string) (m backend.SnapshotMeta, err error) {
	var errs []error
	damaged := func(format string, args ...any) {
		errs = append(errs, backend.Because(backend.ErrCorrupt, "the tags of this snapshot are damaged: "+format, args...))
	}
	versions := 0
	values := map[string]string{}
	texts, faults := joinParts(tags)
	for _, f := range faults {
		damaged("%s", f)
	}
	for _, key := range slices.Sorted(maps.Keys(texts)) {
		value, ok := unescape(texts[key])
		if !ok {
			damaged("%s%s is not written as it should be", tagPrefix, key)
			continue
		}
		values[key] = value
	}
	for _, tag := range tags {
		version, ok := versionOf(tag)
		if !ok {
			continue
		}
		versions++
		if tag != versionTag {
			errs = append(errs, backend.Because(backend.ErrUnsupported, "this snapshot was made by another version of domfs, whose tags (version %s) this one cannot read: use that one", version))
		}
	}
	if versions == 0 {
		return backend.SnapshotMeta{}, errors.Join(errs...)
	}
	m = backend.SnapshotMeta{
		Set: values[keySet], Name: values[keyName], DomainName: values[keyDomain], DomainUUID: values[keyUUID],
		Disk: backend.Disk{
			VDev: values[keyVDev], Backend: values[keyBackend], Format: values[keyFormat], Source: values[keySource],
			Mode: backend.Mode(values[keyMode]), CDROM: values[keyCDROM] == "1", Script: values[keyScript], BackendDomain: values[keyDriverDomain],
		},
		Consistency: backend.Consistency(values[keyConsistency]),
		State:       backend.SnapshotState(values[keyState]),
		Hold:        values[keyHold] == "1",
	}
	if m.Set == "" || m.Disk.VDev == "" || m.State == "" {
		damaged("the set, the disk or the state is missing")
	}
	if text := values[keyDisks]; text != "" {
		if m.DiskCount, err = strconv.Atoi(text); err != nil || m.DiskCount < 0 {
			m.DiskCount = 0
			damaged("%q is no number of disks", text)
		}
	}
	for _, t := range []struct {
		key string
		to  *time.Time
	}{{keyCreated, &m.Created}, {keyExpires, &m.Expires}} {
		if text := values[t.key]; text != "" {
			at, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				damaged("%q is no time", text)
				continue
			}
			*t.to = at.UTC()
		}
	}
	return m, errors.Join(errs...)
}

// versionOf is the number of a tag that says the version.
func versionOf(tag string) (string, bool) {
	number, ok := strings.CutPrefix(tag, tagPrefix+"v")
	if !ok || number == "" || strings.Trim(number, "0123456789") != "" {
		return "", false
	}
	return number, true
}

// joinParts finds the texts of all keys, with those that go on over several tags put together. What is
// there twice is a fault, and its value the first in the alphabet, so that every reader has the same.
func joinParts(tags []string) (texts map[string]string, faults []string) {
	parts := map[string][]string{} // by key; the texts of its parts, "" for one that is missing
	seen := map[string]bool{}
	sorted := slices.Clone(tags)
	slices.Sort(sorted)
	for _, tag := range sorted {
		rest, ok := strings.CutPrefix(tag, tagPrefix)
		if !ok {
			continue
		}
		name, text, ok := strings.Cut(rest, "=")
		if !ok {
			continue
		}
		key, n := name, 1
		if before, number, ok := strings.Cut(name, "."); ok {
			var err error
			if n, err = strconv.Atoi(number); err != nil || n < 2 || n > maxParts || number != strconv.Itoa(n) {
				continue
			}
			key = before
		}
		if seen[name] {
			faults = append(faults, tagPrefix+name+" is there twice")
			continue
		}
		seen[name] = true
		for len(parts[key]) < n {
			parts[key] = append(parts[key], "")
		}
		parts[key][n-1] = text
	}
	texts = map[string]string{}
	for key, p := range parts {
		if slices.Contains(p, "") {
			faults = append(faults, tagPrefix+key+" is there in part only")
			continue
		}
		texts[key] = strings.Join(p, "")
	}
	slices.Sort(faults)
	return texts, faults
}

// changeOfTags says what is to be added and deleted to go from one list of tags to another.
func changeOfTags(from, to []string) (add, del []string) {
	for _, tag := range to {
		if !slices.Contains(from, tag) {
			add = append(add, tag)
		}
	}
	for _, tag := range from {
		if !slices.Contains(to, tag) {
			del = append(del, tag)
		}
	}
	return add, del
}

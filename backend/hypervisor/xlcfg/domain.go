package xlcfg

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"domfs/backend"
)

// Limits of a domain.
const (
	maxDisks    = 256
	maxWarnings = 64
)

// domainOf reads a configuration file. path is its absolute path, for messages and as
// what relative targets begin at.
func domainOf(path string, src []byte) backend.Domain {
	r := &reading{path: path}
	r.d = backend.Domain{ID: -1, State: backend.StateOff, Config: path}
	set, err := parse(src, r.warn)
	if err != nil {
		r.fail(err)
	}
	r.name(set)
	r.uuid(set)
	r.disks(set)
	return r.d
}

// broken is the domain of a file that could not be read.
func broken(path string, err error) backend.Domain {
	return backend.Domain{Name: fileName(path), ID: -1, State: backend.StateOff, Config: path, Err: err}
}

// fileName is the name of a domain that has no other: its file's.
func fileName(path string) string {
	base := filepath.Base(path)
	if name := strings.TrimSuffix(base, ".cfg"); name != "" {
		return name
	}
	return base
}

// reading is the domain of one file, while it is being read.
type reading struct {
	path string
	d    backend.Domain
}

func (r *reading) warn(f *fault) {
	switch n := len(r.d.Warnings); {
	case n < maxWarnings-1:
		r.d.Warnings = append(r.d.Warnings, r.sentence(f))
	case n == maxWarnings-1:
		r.d.Warnings = append(r.d.Warnings, shown(r.path)+": further warnings are left out")
	}
}

// fail keeps the first error, and makes a warning of each further one.
func (r *reading) fail(f *fault) {
	if r.d.Err != nil {
		r.warn(f)
		return
	}
	r.d.Err = fmt.Errorf("%s: %w", r.sentence(f), backend.ErrInvalid)
}

func (r *reading) sentence(f *fault) string {
	return fmt.Sprintf("%s:%d: %s", shown(r.path), f.line, f.text)
}

// shown is a path or name for messages, which are one line each.
func shown(path string) string {
	if strings.ContainsFunc(path, unicode.IsControl) {
		return strconv.Quote(path)
	}
	return path
}

func (r *reading) name(set settings) {
	v, ok := set["name"]
	r.d.Name = string(v.text)
	switch {
	case r.d.Name != "":
		return
	case !ok:
		r.fail(faultf(1, "the file has no name= for the domain"))
	case v.isList:
		r.fail(faultf(v.line, "name is a list; it must be a string"))
	default:
		r.fail(faultf(v.line, "name is empty"))
	}
	r.d.Name = fileName(r.path)
}

func (r *reading) uuid(set settings) {
	v, ok := set["uuid"]
	if !ok {
		return
	}
	if r.d.UUID = normalUUID(string(v.text)); r.d.UUID == "" {
		r.warn(faultf(v.line, "uuid is not of the form 12345678-1234-1234-1234-123456789abc, and ignored"))
	}
}

// normalUUID is a UUID in lower case with hyphens, which may all be missing in s; "" if s is none.
func normalUUID(s string) string {
	var digits []byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '-' && len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23):
			continue
		case c >= 'A' && c <= 'F':
			c += 'a' - 'A'
		case isDigit(c) || c >= 'a' && c <= 'f':
		default:
			return ""
		}
		digits = append(digits, c)
	}
	if len(digits) != 32 {
		return ""
	}
	return fmt.Sprintf("%s-%s-%s-%s-%s", digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
}

func (r *reading) disks(set settings) {
	v, ok := set["disk"]
	if !ok {
		return
	}
	if !v.isList {
		r.warn(faultf(v.line, "disk is a single value, and ignored, as xl does; it must be a list: disk = [ '…' ]"))
		return
	}
	seen := map[string]int{} // vdev to the line that it was first in
	for _, item := range v.list {
		if item.isList {
			r.fail(faultf(item.line, "a disk is a list; it must be a string"))
			continue
		}
		warn := func(format string, args ...any) {
			r.warn(faultf(item.line, "%s", fmt.Sprintf(format, args...)))
		}
		d, err := parseDisk(string(item.text), filepath.Dir(r.path), warn)
		if err != nil {
			err.line = item.line
			r.fail(err)
			continue
		}
		if d.VDev == "" {
			r.warn(faultf(item.line, "disk %q has no vdev, and is left out", item.text))
			continue
		}
		if line, ok := seen[d.VDev]; ok {
			r.warn(faultf(item.line, "disk %s is left out: line %d has one already", d.VDev, line))
			continue
		}
		if len(r.d.Disks) == maxDisks {
			r.fail(faultf(item.line, "the domain has more than %d disks; the rest is left out", maxDisks))
			return
		}
		seen[d.VDev] = item.line
		r.d.Disks = append(r.d.Disks, d)
	}
}

package xlcfg

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"domfs/backend"
)

// A disk specification, xl-disk-configuration(5):
//
//	[KEY=VALUE|FLAG,]* [TARGET,[FORMAT,[VDEV[:DEVTYPE],[ACCESS]]]] [,KEY=VALUE|FLAG]* [,target=TARGET]
//
// with prefixes ending in ':' allowed before each positional parameter; after one, there is no positional FORMAT.
type diskSpec struct {
	target, vdev, format, script                 optional
	backendDomain, backendType                   optional
	coloHost, coloExport, activeDisk, hiddenDisk optional // read for their syntax only

	phyPrefix, tapPrefix bool
	anyPrefix            bool
	readOnly, cdrom      bool
	accessGiven          bool // positionally

	warn func(format string, args ...any)
}

// optional is a parameter that may not have been given; one given as empty may be
// given again.
type optional struct {
	given bool
	text  string
}

// formats are those of xl; "empty" is a drive without a medium.
var formats = map[string]bool{"raw": true, "qcow": true, "qcow2": true, "vhd": true, "qed": true, "empty": true}

var backendTypes = map[string]bool{"phy": true, "tap": true, "qdisk": true, "standalone": true}

// scriptPrefixes stand for script=block-PREFIX.
var scriptPrefixes = map[string]bool{"iscsi": true, "nbd": true, "enbd": true, "drbd": true}

// formatPrefixes stand for format=PREFIX.
var formatPrefixes = map[string]bool{"raw": true, "qcow": true, "qcow2": true, "vhd": true}

// plainPrefixes are ignored by xl, which finds out what the target is.
var plainPrefixes = map[string]bool{"tapdisk": true, "tap": true, "tap2": true, "aio": true, "ioemu": true, "file": true, "phy": true}

var (
	prefixSyntax = regexp.MustCompile(`^([a-z][a-z0-9]*):`)
	optionSyntax = regexp.MustCompile(`^([a-z][-_a-z0-9]*)=`)
	vdevSyntax   = regexp.MustCompile(`^((xvd|hd|sd|vd)[a-z]{1,4}[0-9]{0,6}|d[0-9]{1,6}(p[0-9]{1,6})?|[0-9]{1,9}|0x[0-9a-fA-F]{1,8})$`)
)

// parseDisk reads a disk specification. dir is the folder of its file. A disk without
// vdev comes back with an empty VDev. The error is for a specification that makes no
// disk; warn takes what is wrong with one that does.
func parseDisk(spec, dir string, warn func(format string, args ...any)) (backend.Disk, *fault) {
	s := &diskSpec{warn: warn}
	if err := s.read(spec); err != nil {
		return backend.Disk{}, err
	}
	return s.disk(dir)
}

func (s *diskSpec) read(rest string) *fault {
	for {
		rest = strings.TrimLeft(rest, " \t\n")
		if rest == "" {
			return nil
		}
		if v, ok := strings.CutPrefix(rest, "target="); ok {
			s.setString("target", &s.target, strings.TrimSuffix(v, ","))
			return nil
		}
		if after, ok := s.prefix(rest); ok {
			rest = after
			continue
		}
		var param string
		param, rest, _ = strings.Cut(rest, ",")
		if s.flag(param) {
			continue
		}
		if m := optionSyntax.FindStringSubmatch(param); m != nil {
			s.option(m[1], param[len(m[0]):])
			continue
		}
		if strings.Contains(param, "=") {
			return faultf(0, "%q is neither an option nor a target (one with '=' or ',' in it is written last, as target=…)", param)
		}
		if err := s.positional(param); err != nil {
			return err
		}
	}
}

// prefix takes a deprecated prefix off the beginning of rest.
func (s *diskSpec) prefix(rest string) (after string, ok bool) {
	m := prefixSyntax.FindStringSubmatch(rest)
	if m == nil {
		return rest, false
	}
	name, after := m[1], rest[len(m[0]):]
	switch {
	case formatPrefixes[name]:
		s.setFormat(name)
	case scriptPrefixes[name]:
		s.setString("script", &s.script, "block-"+name)
	case plainPrefixes[name]:
		switch name {
		case "phy":
			s.phyPrefix = true
		case "tap", "tap2", "tapdisk", "aio":
			s.tapPrefix = true
		}
	case after != "" && (isLower(after[0]) || isDigit(after[0])):
		return rest, false // hdc:cdrom, or a colon in a target
	case strings.HasPrefix(after, "//"):
		s.warn("xl refuses a URL here: write it last, as target=%q", rest)
		return rest, false
	default:
		// Taken as a format that no store knows, so that the disk is seen, and never misread.
		s.warn("unknown prefix %q, which xl refuses", name+":")
		s.setFormatUnchecked(name)
	}
	s.anyPrefix = true
	return after, true
}

// flag reads an option without a value.
func (s *diskSpec) flag(param string) bool {
	switch param {
	case "cdrom":
		s.cdrom = true
	case "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted":
		// Advice for the toolstack.
	default:
		return false
	}
	return true
}

// option reads an option with a value.
func (s *diskSpec) option(key, v string) {
	switch key {
	case "format":
		s.setFormat(v)
	case "vdev":
		s.setString("vdev", &s.vdev, v)
	case "access":
		s.setAccess(v)
	case "devtype":
		switch v {
		case "cdrom", "disk":
			s.cdrom = v == "cdrom"
		default:
			s.warn("unknown value devtype=%q; it is cdrom or disk", v)
		}
	case "script":
		s.setString("script", &s.script, v)
	case "backend":
		s.setString("backend", &s.backendDomain, v)
	case "backendtype":
		if !backendTypes[v] {
			s.warn("unknown value backendtype=%q", v)
		}
		s.setChoice("backendtype", &s.backendType, v)
	case "specification":
		if v != "xen" && v != "virtio" {
			s.warn("unknown value specification=%q; it is xen or virtio", v)
		}
	case "colo-host":
		s.setString(key, &s.coloHost, v)
	case "colo-export":
		s.setString(key, &s.coloExport, v)
	case "active-disk":
		s.setString(key, &s.activeDisk, v)
	case "hidden-disk":
		s.setString(key, &s.hiddenDisk, v)
	case "colo-port":
		if n, err := strconv.ParseUint(v, 10, 16); err != nil || n == 0 {
			s.warn("colo-port=%q is not the number of a port", v)
		}
	case "grant_usage", "grant-usage":
		if v != "0" && v != "1" {
			s.warn("unknown value %s=%q; it is 0 or 1", key, v)
		}
	default:
		s.warn("unknown disk option %s=%q is ignored; known ones are in xl-disk-configuration(5)", key, v)
	}
}

// positional reads a parameter that goes by its place.
func (s *diskSpec) positional(param string) *fault {
	switch {
	case !s.target.given:
		s.setString("target", &s.target, param)
	case !s.anyPrefix && !s.format.given:
		if s.target.text == "" && s.setVdevAndType(param) {
			s.setFormatUnchecked("empty") // ",hdc:cdrom,r": no target, and no format either
		} else {
			s.setFormat(param)
		}
	case !s.vdev.given:
		if !s.setVdevAndType(param) {
			s.setString("vdev", &s.vdev, param)
		}
	case !s.accessGiven:
		s.accessGiven = true
		s.setAccess(param)
	default:
		return faultf(0, "%q is one parameter too many: they are target, format, vdev, access (after a prefix such as phy: there is no format)", param)
	}
	return nil
}

// setVdevAndType reads VDEV:DEVTYPE.
func (s *diskSpec) setVdevAndType(param string) bool {
	i := strings.LastIndexByte(param, ':')
	if i < 0 {
		return false
	}
	s.setString("vdev", &s.vdev, param[:i])
	switch devtype := param[i+1:]; devtype {
	case "cdrom", "disk":
		s.cdrom = devtype == "cdrom"
	default:
		s.warn("unknown device type %q; it is cdrom or disk", devtype)
	}
	return true
}

// setString sets a parameter that may be given once; xl refuses even the same again.
func (s *diskSpec) setString(name string, o *optional, v string) {
	if o.given && o.text != "" {
		s.warn("%s is given twice: %q is kept, %q ignored", name, o.text, v)
		return
	}
	*o = optional{given: true, text: v}
}

// setChoice sets one that may be given again as the same.
func (s *diskSpec) setChoice(name string, o *optional, v string) {
	if !o.given || o.text != v {
		s.setString(name, o, v)
	}
}

func (s *diskSpec) setFormat(v string) {
	if v == "" {
		v = "raw"
	}
	if !formats[v] {
		s.warn("unknown format %q, which xl refuses", v)
	}
	s.setFormatUnchecked(v)
}

func (s *diskSpec) setFormatUnchecked(v string) { s.setChoice("format", &s.format, v) }

func (s *diskSpec) setAccess(v string) {
	switch v {
	case "r", "ro":
		s.readOnly = true
	case "w", "rw", "":
		s.readOnly = false
	case "w!", "!w", "rw!":
		s.readOnly = false
		s.warn("access %q is xend's, and xl refuses it: write rw", v)
	default:
		s.warn("unknown access %q; it is r, ro, w or rw", v)
	}
}

// disk makes of the parameters what they mean together.
func (s *diskSpec) disk(dir string) (backend.Disk, *fault) {
	d := backend.Disk{
		VDev:          s.vdev.text,
		Backend:       s.backendType.text,
		Format:        s.format.text,
		Mode:          backend.ReadWrite,
		CDROM:         s.cdrom,
		Script:        s.script.text,
		BackendDomain: s.backendDomain.text,
	}
	switch d.BackendDomain {
	case "0", "Domain-0":
		d.BackendDomain = "" // this host
	}
	if d.Backend == "" {
		switch {
		case s.phyPrefix:
			d.Backend = "phy"
		case s.tapPrefix:
			d.Backend = "tap"
		}
	}
	if s.readOnly || s.cdrom {
		d.Mode = backend.ReadOnly
	}
	if d.VDev != "" && !vdevSyntax.MatchString(d.VDev) {
		return d, faultf(0, "%q is not a virtual device such as xvda, sda1 or hdc", d.VDev)
	}
	if s.target.text == "" || d.Format == "empty" {
		if !s.cdrom {
			return d, faultf(0, "disk %s has no target (only a CD-ROM drive can do without)", d.VDev)
		}
		d.Format = ""
		return d, nil
	}
	if d.Format == "" {
		d.Format = "raw"
	}
	d.Source = s.source(d, dir)
	return d, nil
}

// source is the target as an absolute path, where it is a path of this host.
func (s *diskSpec) source(d backend.Disk, dir string) string {
	target := s.target.text
	switch {
	case d.Script != "" || d.BackendDomain != "" || filepath.IsAbs(target):
		return target
	case hasProtocol(target):
		return target
	case d.Backend == "phy" || s.phyPrefix:
		return filepath.Join("/dev", target)
	}
	return filepath.Join(dir, target)
}

// hasProtocol tells whether QEMU would take target as PROTOCOL:REST: a colon before
// any slash.
func hasProtocol(target string) bool {
	i := strings.IndexAny(target, ":/")
	return i > 0 && target[i] == ':'
}

package control

import (
	"bytes"
	"slices"
	"strings"
)

// fstabEntry is one line of a guest's /etc/fstab, see fstab(5).
type fstabEntry struct {
	spec    string // what is mounted
	file    string // where: absolute, and tidy
	fstype  string
	options []string
}

const (
	// maxFstabBytes is how much of an fstab is read.
	maxFstabBytes = 64 << 10
	// maxFstabEntries is how many lines of it count.
	maxFstabEntries = 256
	// maxPathBytes is the kernel's PATH_MAX.
	maxPathBytes = 4096
)

// parseFstab reads an fstab. Lines that are none are passed over, as mount(8) does.
func parseFstab(text []byte) (entries []fstabEntry, cut bool) {
	if len(text) > maxFstabBytes {
		text = text[:maxFstabBytes]
		text, cut = text[:bytes.LastIndexByte(text, '\n')+1], true // half a line is none
	}
	for line := range bytes.Lines(text) {
		fields := strings.FieldsFunc(string(line), func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' })
		if len(fields) < 3 || fields[0][0] == '#' || bytes.IndexByte(line, 0) >= 0 {
			continue
		}
		e := fstabEntry{spec: unescapeOctal(fields[0]), file: unescapeOctal(fields[1]), fstype: fields[2]}
		if len(fields) > 3 {
			e.options = strings.Split(unescapeOctal(fields[3]), ",")
		}
		if !strings.HasPrefix(e.file, "/") || len(e.file) >= maxPathBytes || len(e.spec) >= maxPathBytes {
			continue
		}
		if len(entries) == maxFstabEntries {
			return entries, true
		}
		e.file = tidyPath(e.file)
		entries = append(entries, e)
	}
	return entries, cut
}

// tidyPath is an absolute path without what has no meaning in it. "..", after a symbolic link, has.
func tidyPath(path string) string {
	return "/" + strings.Join(slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." }), "/")
}

// unescapeOctal undoes the escapes of fstab(5): \040 is a blank.
func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	octal := func(c byte) bool { return c >= '0' && c <= '7' }
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] <= '3' && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return strings.ReplaceAll(b.String(), "\x00", `\000`)
}

func (e *fstabEntry) has(option string) bool { return slices.Contains(e.options, option) }

// option is the value of an option NAME=value.
func (e *fstabEntry) option(name string) (string, bool) {
	for _, o := range e.options {
		if n, v, ok := strings.Cut(o, "="); ok && n == name {
			return v, true
		}
	}
	return "", false
}

// isBind tells whether a directory is mounted at another place.
func (e *fstabEntry) isBind() bool { return e.has("bind") || e.has("rbind") }

// isDevice tells whether what is mounted is named as a block device.
func (e *fstabEntry) isDevice() bool {
	tag, _, ok := strings.Cut(e.spec, "=")
	return strings.HasPrefix(e.spec, "/dev/") || ok && slices.Contains([]string{"UUID", "LABEL", "PARTUUID", "PARTLABEL"}, tag)
}

// atBoot tells whether the guest mounts it by itself, or at the first access.
func (e *fstabEntry) atBoot() bool {
	return e.fstype != "swap" && e.fstype != "ignore" && (!e.has("noauto") || e.has("x-systemd.automount"))
}

// depth is how many directories are above the mount point.
func (e *fstabEntry) depth() int { return strings.Count(strings.TrimPrefix(e.file, "/"), "/") }

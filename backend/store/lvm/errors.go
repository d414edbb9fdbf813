package lvm

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"domfs/backend"
	"domfs/backend/run"
)

// Nearly every failure of LVM's tools is exit status 5, and a wrong argument 3: why, standard error alone says, in
// English (LC_ALL=C) and in words that hardly change between versions.
//
// The first that matches counts.
var reasons = []struct {
	pattern  *regexp.Regexp
	sentinel error
	hint     string // what to do, where LVM does not say it
}{
	// What LVM does not take.
	{regexp.MustCompile(`[Nn]ames (starting|including) .* are reserved|name ".*" is invalid|length \d+ is not supported|(?m)^\s*Name ".*" too long`), backend.ErrInvalid, ""},
	{regexp.MustCompile(`Invalid argument for|Error during parsing of command line|Failed to set overridden configuration`), backend.ErrInvalid, ""},
	// What is gone, and what is there already.
	{regexp.MustCompile(`(?m)^\s*Failed to find logical volume `), backend.ErrNotExist, ""},
	{regexp.MustCompile(`(?m)^\s*Snapshot origin LV .* not found in Volume group`), backend.ErrNotExist, ""},
	{regexp.MustCompile(`(?m)^\s*(Logical volume|One or more specified logical volume\(s\)) .*not found`), backend.ErrNotExist, ""},
	{regexp.MustCompile(`(?m)^\s*Volume group ".*" not found`), backend.ErrNotExist, ""},
	{regexp.MustCompile(`(?m)^\s*Logical [Vv]olume ".*" already exists in volume group`), backend.ErrExist, ""},
	// Room.
	{regexp.MustCompile(`[Ii]nsufficient (free space|suitable (contiguous )?allocatable extents)`), backend.ErrNoSpace, "add a disk with vgextend, or remove snapshots"},
	{regexp.MustCompile(`[Nn]ot enough free extents|No space for |Unable to allocate extents`), backend.ErrNoSpace, "add a disk with vgextend, or remove snapshots"},
	{regexp.MustCompile(`Maximum number of logical volumes .* reached`), backend.ErrNoSpace, "raise it with vgchange --logicalvolume"},
	{regexp.MustCompile(`too large for circular buffer`), backend.ErrNoSpace, "the VG's metadata area is full: remove snapshots"},
	{regexp.MustCompile(`[Ff]ree space in (thin )?pool .* (threshold|reached)`), backend.ErrNoSpace, "extend the pool with lvextend"},
	{regexp.MustCompile(`No space left on device`), backend.ErrNoSpace, ""},
	// Pools that need a hand.
	{regexp.MustCompile(`Check of (thin )?pool .* failed`), backend.ErrCorrupt, "repair the pool with lvconvert --repair"},
	{regexp.MustCompile(`transaction_id is \d+, while expected \d+`), backend.ErrCorrupt, "the pool and LVM disagree: see lvmthin(7)"},
	// Never, or not yet.
	{regexp.MustCompile(`Required device-mapper target\(s\) not detected in your kernel`), backend.ErrUnsupported, "load the kernel's modules: modprobe -a dm-snapshot dm-thin-pool"},
	{regexp.MustCompile(`Snapshots of .* (are|is) not supported`), backend.ErrUnsupported, ""},
	// In use.
	{regexp.MustCompile(`contains a filesystem in use|is used by another device|(?m)^\s*Logical volume \S+ (is )?in use\.`), backend.ErrBusy, ""},
	{regexp.MustCompile(`Snapshot origin volumes can be resized only while inactive`), backend.ErrBusy, ""},
	{regexp.MustCompile(`Can't remove merging snapshot`), backend.ErrBusy, "wait until it is merged"},
	{regexp.MustCompile(`Can't get lock for |[Ll]ock .* held by other host|is locked by `), backend.ErrBusy, "another LVM command holds its lock: try again when that has ended"},
	{regexp.MustCompile(`Device or resource busy|Can't open .* exclusively`), backend.ErrBusy, ""},
	// Not to be changed.
	{regexp.MustCompile(`Operation prohibited while global/metadata_read_only|Read-only locking|Volume group ".*" is read-only|Cannot change read-only VG`), backend.ErrReadOnly, ""},
	{regexp.MustCompile(`Cannot change VG .* while PVs are missing|Cannot (change|process) .* (partial|missing PVs)`), backend.ErrIO, "restore the missing physical volume, or give it up with vgreduce --removemissing"},
	{regexp.MustCompile(`Cannot access VG .* with (unknown )?(system ID|lock type|owner)|Volume group .* is exported`), backend.ErrAccess, ""},
	{regexp.MustCompile(`Permission denied|Operation not permitted`), backend.ErrAccess, "run domfs as root"},
}

// noise are lines of standard error that do not say why a tool failed.
var noise = regexp.MustCompile(`^\s*(WARNING: |File descriptor \d+ |Run .*--help. for more information|Rounding (up )?size |Using stripesize |Reducing COW size |Extending \d+ mirror images|Error during parsing of command line|Cannot process volume group |.*: mlock failed: )`)

// maxReason is how much of a tool's reason a message holds, in bytes.
const maxReason = 400

// toolError is a tool that failed: a sentence of what we wanted, and the tool's reason.
type toolError struct {
	sentence string
	sentinel error // nil if its reason is not known
	err      error
}

func (e *toolError) Error() string { return e.sentence }

func (e *toolError) Unwrap() []error {
	if e.sentinel == nil {
		return []error{e.err}
	}
	return []error{e.sentinel, e.err}
}

// toolFailed is the error of a tool that was run for what ("snapshot vg0/web-01").
func toolFailed(what string, err error) error {
	var e *run.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", what, err)
	}
	tool := e.Argv[0]
	if e.Err != nil { // it did not run to its end
		return &toolError{sentence: fmt.Sprintf("%s: %s: %v", what, tool, e.Err), err: err}
	}
	text := reasonOf(e.Stderr)
	for _, r := range reasons {
		if !r.pattern.MatchString(e.Stderr) {
			continue
		}
		sentence := fmt.Sprintf("%s: %s says: %s", what, tool, text)
		if r.hint != "" {
			sentence += ": " + r.hint
		}
		return &toolError{sentence: sentence, sentinel: r.sentinel, err: err}
	}
	ended := fmt.Sprintf("exit status %d", e.Exit)
	if e.Signal != 0 {
		ended = fmt.Sprintf("killed by signal %d (%v)", int(e.Signal), e.Signal)
	}
	return &toolError{sentence: strings.TrimSuffix(fmt.Sprintf("%s: %s failed (%s): %s", what, tool, ended, text), ": "), err: err}
}

// reasonOf is what standard error says, on one line and without what says nothing.
func reasonOf(stderr string) string {
	var kept []string
	for line := range strings.Lines(stderr) {
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, line)
		if noise.MatchString(line) {
			continue
		}
		if line = strings.TrimRight(strings.TrimSpace(line), "."); line != "" {
			kept = append(kept, line)
		}
	}
	text := strings.Join(kept, "; ")
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}

// also is err, with what went wrong when it was cleaned up after; in one line.
func also(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return fmt.Errorf("%w; and cleaning up failed: %w", err, cleanup)
}

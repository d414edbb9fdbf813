package kpartx

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"domfs/backend"
	"domfs/backend/devmapper"
)

// device is a mapping of ours that is on the host.
type device struct {
	identity
	setID, path string
	number      string // major:minor
}

// list asks device-mapper for all of our mappings.
func (m *Mapper) list(ctx context.Context) ([]device, error) {
	all, err := m.control.Devices(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the host's mappings: %w", err)
	}
	return oursOf(all), nil
}

// oursOf are those of device-mapper's devices that are mappings of ours.
func oursOf(all []devmapper.Device) []device {
	var devices []device
	for _, v := range all {
		d := device{identity: identity{name: v.Name, uuid: v.UUID}, number: fmt.Sprintf("%d:%d", v.Major, v.Minor)}
		var ok bool
		if d.setID, d.path, ok = d.parse(); ok {
			devices = append(devices, d)
		}
	}
	return devices
}

// tables asks for what our mappings are, by name: a line for each target.
func (m *Mapper) tables(ctx context.Context) (map[string][]string, error) {
	out, err := m.run.Run(ctx, "dmsetup", "table")
	if err != nil {
		return nil, fmt.Errorf("read the host's mappings: %w", failure(err))
	}
	tables := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		name, target, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if ok && strings.HasPrefix(name, prefix) {
			tables[name] = append(tables[name], target)
		}
	}
	return tables, nil
}

var isPart = regexp.MustCompile(`^[^/]+(/p[0-9]+)+$`)

// isAssembled is a guest's volume, KIND/GROUP/NAME: a guest may call both p1.
var isAssembled = regexp.MustCompile(`^(lvm|md)/`)

// height orders mappings: what is higher lies on what is lower.
func height(path string) int {
	switch {
	case !strings.Contains(path, "/"):
		return 0 // a front
	case isPart.MatchString(path) && !isAssembled.MatchString(path):
		return 1
	}
	return 2 // a guest's volume
}

// ofSet are the mappings of a set, in the order in which they can be removed.
func ofSet(all []device, setID string) []device {
	var out []device
	for _, d := range all {
		if d.setID == setID {
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b device) int { return height(b.path) - height(a.path) })
	return out
}

// slice is a partition that kpartx would map, in bytes of the disk.
type slice struct {
	start, length int64
	logical       bool
}

// maxSlices is more than kpartx finds (its MAXSLICES is 256).
const maxSlices = 1024

// parseList reads what kpartx -l says of the front:
//
//	domfs-SET:xvda:p1 : 0 204800 /dev/mapper/domfs-SET:xvda 2048
//
// in sectors. A logical partition names the dm device that its extended one would be, counted from 0, and its
// distance from it. A line that cannot be read is an error: nothing is known then.
func parseList(out string, front identity) (map[int]slice, error) {
	slices := map[int]slice{}
	var order []slice
	for line := range strings.Lines(out) {
		wrong := func(why string) (map[int]slice, error) {
			return nil, fmt.Errorf("kpartx says %q of %s: %s: %w", strings.TrimSpace(line), front.name, why, backend.ErrIO)
		}
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), front.name+partDelimiter)
		f := strings.Fields(rest)
		if !ok || len(f) != 6 || f[1] != ":" || f[2] != "0" {
			return wrong("not understood")
		}
		number, err1 := strconv.Atoi(f[0])
		length, err2 := strconv.ParseInt(f[3], 10, 64)
		start, err3 := strconv.ParseInt(f[5], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil || number < 1 || start < 0 || length < 0 || start > maxSectors || length > maxSectors || len(slices) == maxSlices {
			return wrong("no numbers of a partition")
		}
		s := slice{start: start * sectorBytes, length: length * sectorBytes}
		if f[4] != front.path() {
			container, err := strconv.Atoi(strings.TrimPrefix(f[4], "/dev/dm-"))
			if err != nil || container < 0 || container >= len(order) {
				return wrong("it lies on no partition")
			}
			s.logical = true
			s.start += order[container].start
		}
		order = append(order, s)
		slices[number] = s
	}
	return slices, nil
}

// sysDevice is a device's folder in sysfs.
func sysDevice(number string) string { return filepath.Join("/sys/dev/block", number) }

// blockSectors is the logical block of a device, in sectors.
func blockSectors(number string) int64 {
	text, err := os.ReadFile(filepath.Join(sysDevice(number), "queue/logical_block_size"))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n / sectorBytes
}

// isReadOnly tells whether the kernel refuses to write to a device.
func isReadOnly(number string) bool {
	ro, err := os.ReadFile(filepath.Join(sysDevice(number), "ro"))
	return err == nil && strings.TrimSpace(string(ro)) == "1"
}

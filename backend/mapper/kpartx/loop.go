package kpartx

import (
	"fmt"
	"os"

	"domfs/backend"
	"domfs/backend/hostdev"

	"golang.org/x/sys/unix"
)

// The first loop device of an image is smaller than what LVM looks at (devices/pv_min_size, 2 MiB; older
// ones had 512 KiB as the least that could be configured). The second begins behind it, at the first place from where no
// label can be found: what is there is not at an offset that anything but the front knows of.
const (
	firstSplit = 256 << 10
	lastSplit  = 512 << 10
	splitStep  = 4 << 10

	loopName = "domfs" // what our loop devices are told by; the front says whose they are
)

// split finds the length of the first loop device of a file.
func split(f *os.File, size int64) (int64, error) {
	if size <= firstSplit {
		return size, nil
	}
	for at := int64(firstSplit); at <= lastSplit; at += splitStep {
		label, err := hostdev.HasPVLabel(f, at, size-at)
		if err != nil {
			return 0, err
		}
		if !label {
			return min(at, size), nil
		}
	}
	return 0, fmt.Errorf("%s has labels of LVM all over its beginning, so the host's LVM cannot be kept off it: %w", f.Name(), backend.ErrUnsupported)
}

// attach makes the loop devices of an image, and the front's table over them. They are held open by what is returned, until
// the front is there.
func attach(path string, size int64) (held []*os.File, table []string, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, diskFailure(path, err)
	}
	defer f.Close()
	at, err := split(f, size)
	if err != nil {
		return nil, nil, err
	}
	for _, part := range [][2]int64{{0, at}, {at, size - at}} {
		if part[1] == 0 {
			continue
		}
		l, err := hostdev.Loop{Path: path, Offset: part[0], Bytes: part[1], Name: loopName, AutoClear: true}.Attach()
		if err != nil {
			closeAll(held)
			return nil, nil, err
		}
		held = append(held, l)
		rdev, err := hostdev.Rdev(l.Name())
		if err != nil {
			closeAll(held)
			return nil, nil, err
		}
		table = append(table, linear(part[0]/sectorBytes, part[1]/sectorBytes, place{device: number(rdev)}))
	}
	return held, table, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func number(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }

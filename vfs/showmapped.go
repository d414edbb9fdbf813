package vfs

import (
	"strings"

	"domfs/control"
)

// What the tree shows of block devices that the host makes of snapshots.

var setMapped = ofSet(func(s *control.Set) string {
	if s.Mapped {
		return "1"
	}
	return "0"
})

func writeMapped(c *call, at place, value string) error {
	s, err := c.set(at)
	if err != nil {
		return err
	}
	return c.fs.host.SetMapped(c.ctx, at.dir, s.Name, value)
}

// deviceAt is the block device of a place's volume; "" if there is none, as for every live disk.
func (c *call) deviceAt(at place) (string, error) {
	if at.setID == "" {
		return "", nil
	}
	s, err := c.set(at)
	if err != nil {
		return "", err
	}
	return s.Device(strings.Trim(at.vdev+"/"+at.path, "/")), nil
}

func isMapped(c *call, at place) (bool, error) {
	device, err := c.deviceAt(at)
	return device != "", err
}

func volumeDevice(c *call, at place) (string, error) {
	device, err := c.deviceAt(at)
	if err == nil && device == "" {
		err = gone("device of", at.path)
	}
	return device, err
}

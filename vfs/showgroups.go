package vfs

import (
	"strings"

	"domfs/backend"
)

// What the tree shows of volumes that lie over several disks of a guest.

// isOff tells whether the domain at a place is off.
func isOff(c *call, at place) (bool, error) {
	d, err := c.domain(at)
	if err != nil {
		return false, err
	}
	return d.IsOff(), nil
}

// groupAt is the group whose directory is at a place.
func (c *call) groupAt(at place) (backend.Group, error) {
	if err := c.mayOpen(at); err != nil {
		return backend.Group{}, err
	}
	kind, name, _ := strings.Cut(at.path, "/")
	return c.fs.host.Group(c.ctx, at.ref(), kind, name)
}

func groups(kind string) func(c *call, at place) ([]string, error) {
	return func(c *call, at place) ([]string, error) {
		if err := c.mayOpen(at); err != nil {
			return nil, err
		}
		gs, err := c.fs.host.Groups(c.ctx, at.ref(), kind)
		if err != nil {
			return nil, err
		}
		names := make([]string, 0, len(gs))
		for _, g := range gs {
			names = append(names, g.Name)
		}
		return names, nil
	}
}

func findGroup(kind string) func(c *call, at place, name string) (place, string, error) {
	return func(c *call, at place, name string) (place, string, error) {
		at.path = kind + "/" + name
		_, err := c.groupAt(at)
		return at, name, err
	}
}

func groupVolumes(c *call, at place) ([]string, error) {
	g, err := c.groupAt(at)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(g.Volumes))
	for _, v := range g.Volumes {
		names = append(names, v.Name)
	}
	return names, nil
}

func findGroupVolume(c *call, at place, name string) (place, string, error) {
	g, err := c.groupAt(at)
	if err != nil {
		return at, "", err
	}
	at.path += "/" + name
	for _, v := range g.Volumes {
		if v.Name == name {
			return at, name, nil
		}
	}
	v, err := c.volume(at) // it says why there is none
	if err == nil {
		v.Release()
	}
	return at, name, err
}

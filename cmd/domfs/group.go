package main

import (
	"fmt"
	"os/user"
	"strconv"
)

// groupID is the number of a group that is given by name or number.
func groupID(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("--group: there is no group %q", name)
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("--group %s: its number %q is not one: %w", name, g.Gid, err)
	}
	return uint32(n), nil
}

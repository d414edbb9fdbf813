package kpartx

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"domfs/backend"
	"domfs/backend/fault"
	"domfs/backend/hostdev"
	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

const (
	// loopWait is for a loop device to vanish after its front.
	loopWait = 3 * time.Second
	maxBelow = 16
)

// Unmap implements backend.Mapper.
func (m *Mapper) Unmap(ctx context.Context, setID string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remove(ctx, setID, nil)
}

// remove removes the mappings of a set but those that are to be kept.
func (m *Mapper) remove(ctx context.Context, setID string, keep map[string]bool) error {
	var last error
	var loops []string
	for try := range hostdev.RemoveTries {
		if try > 0 {
			if err := hostdev.AwaitRemoval(ctx); err != nil {
				return err
			}
		}
		all, err := m.list(ctx)
		if err != nil {
			return err
		}
		var names []string
		var rest []device
		for _, d := range ofSet(all, setID) {
			if !keep[d.name] {
				names = append(names, d.name)
				rest = append(rest, d)
				loops = append(loops, loopsBelow(d)...)
			}
		}
		if len(names) == 0 {
			awaitCleared(loops)
			return nil
		}
		fault.Point("kpartx.remove")
		_, err = m.tool(ctx, "dmsetup", append([]string{"remove", "--"}, names...)...)
		fault.Point("kpartx.removed")
		if err == nil {
			awaitCleared(loops)
			return nil
		}
		if last = failure(err); !errors.Is(last, backend.ErrBusy) && !errors.Is(last, backend.ErrNoDevice) {
			return last
		}
		if try == hostdev.RemoveTries-1 {
			return m.inUse(rest, last)
		}
	}
	return last
}

// inUse says who keeps the mappings.
func (m *Mapper) inUse(rest []device, err error) error {
	for _, d := range rest {
		rdev, rdevErr := hostdev.Rdev(d.identity.path())
		if rdevErr != nil {
			continue
		}
		if who := (hostdev.Host{}).Holder(rdev); who != "" {
			return hostdev.InUse(d.mapping(), who)
		}
	}
	return err
}

// loopsBelow are the loop devices of ours that a front lies on, as the kernel calls them.
func loopsBelow(d device) []string {
	if height(d.path) > 0 {
		return nil
	}
	var out []string
	for _, name := range proc.List(filepath.Join(sysDevice(d.number), "slaves"), maxBelow) {
		if rdev, err := hostdev.Rdev("/dev/" + name); err == nil && unix.Major(rdev) == loopMajor {
			out = append(out, name)
		}
	}
	return out
}

const loopMajor = 7 // the kernel's admin-guide/devices.txt

// awaitCleared waits for loop devices to vanish: they do so when the last who has them open closes them, which
// may be udev.
func awaitCleared(loops []string) {
	end := time.Now().Add(loopWait)
	for _, name := range loops {
		for (hostdev.Host{}).IsAttached(name) && time.Now().Before(end) {
			time.Sleep(nodePoll)
		}
	}
}

package lvm

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"domfs/backend/blockdev"
	"domfs/backend/proc"

	"golang.org/x/sys/unix"
)

// How a volume is looked at again that somebody has open who cannot be found: udev looks at each device that
// changes, for some milliseconds.
const (
	holderTries = 6
	holderPause = 20 * time.Millisecond
)

// searchEvery is how long a holder that no process is behind is not searched for again.
const searchEvery = 5 * time.Second

// kernelHolder stands for one that no process is behind.
const kernelHolder = "the kernel, such as Xen's block backend for a running domain"

// maxLoops bounds how many block devices are looked at for loop devices over a volume.
const maxLoops = 1 << 16

// maxHolders bounds how many holders are remembered.
const maxHolders = 1 << 16

// holding is who had a volume open.
type holding struct {
	name   string
	fdPath string // its descriptor in /proc; "" if no process is behind it
	open   int    // the volume's open count then, less our own
	found  time.Time
}

// suspect is a volume that others than us have open, as it seems.
type suspect struct {
	l       *lv
	dev     *device
	open    int    // its count now
	known   bool   // somebody had it open before
	mapped  int    // mappings of ours over it
	ignored int    // descriptors of those that do not count
	holder  string // "" while unknown
	fdPath  string
}

// foreign is how many have it open that are not ours, if nothing of ours is being opened or closed.
func (q *suspect) foreign(own int) int { return q.open - own - q.mapped - q.ignored }

// userOf names who has a volume open, "" if nobody has.
func (s *Store) userOf(h *host, l *lv) string {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	if dev := h.dm.of(l); dev != nil {
		if own, _ := s.ours(dev.UUID); own > 0 {
			return "domfs itself: a file in it is open"
		}
	}
	who := s.findHolders(ctx, h, []*lv{l})[l]
	if dev := h.dm.of(l); who == "" && dev != nil {
		for _, mapping := range s.mappingsOver(h, dev) {
			return "its mapping /dev/mapper/" + mapping.Name
		}
	}
	return who
}

// findHolders names who has volumes open other than this program. The count of device-mapper is what
// decides: the kernel's own users, a running domain's block backend among them, are in no table.
func (s *Store) findHolders(ctx context.Context, h *host, volumes []*lv) map[*lv]string {
	names := map[*lv]string{}
	if h.dm == nil {
		return names
	}
	var users blockdev.Users
	suspects := map[uint64]*suspect{}
	for _, l := range volumes {
		if l == nil || suspects[rdevOf(h, l)] != nil {
			continue
		}
		dev := h.dm.of(l)
		if dev == nil {
			continue
		}
		mapped := len(s.mappingsOver(h, dev))
		if own, _ := s.ours(dev.UUID); dev.Open <= own+mapped {
			s.forgetHolder(dev.UUID)
			continue
		}
		if users == nil {
			users = blockdev.ReadUsers(s.procfs)
		}
		if who := s.aboveOrMounted(h, users, dev); who != "" {
			names[l] = who
			continue
		}
		if who := s.stillHeld(dev); who != "" {
			names[l] = who
			continue
		}
		s.mu.Lock()
		_, known := s.holders[dev.UUID]
		s.mu.Unlock()
		suspects[dev.rdev()] = &suspect{l: l, dev: dev, open: dev.Open, mapped: mapped, known: known}
	}
	s.search(ctx, suspects)
	for _, q := range suspects {
		own, moving := s.ours(q.dev.UUID)
		if q.holder == "" && q.foreign(own) > moving {
			if q.holder = s.loopOver(q.dev.rdev()); q.holder == "" {
				q.holder = kernelHolder
			}
		}
		if q.holder == "" {
			s.forgetHolder(q.dev.UUID)
			continue
		}
		names[q.l] = q.holder
		s.mu.Lock()
		if len(s.holders) >= maxHolders {
			clear(s.holders)
		}
		s.holders[q.dev.UUID] = holding{name: q.holder, fdPath: q.fdPath, open: q.open - own, found: time.Now()}
		s.mu.Unlock()
	}
	// The same volume may be the disk of several domains.
	for _, l := range volumes {
		if l != nil && names[l] == "" {
			if q := suspects[rdevOf(h, l)]; q != nil {
				names[l] = q.holder
			}
		}
	}
	return names
}

// rdevOf is the number of an LV's device, 0 if it has none.
func rdevOf(h *host, l *lv) uint64 {
	if dev := h.dm.of(l); dev != nil {
		return dev.rdev()
	}
	return 0
}

func (s *Store) forgetHolder(uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holders, uuid)
}

// stillHeld is who had a volume open before, if that is so still.
func (s *Store) stillHeld(dev *device) string {
	s.mu.Lock()
	was, ok := s.holders[dev.UUID]
	s.mu.Unlock()
	if !ok {
		return ""
	}
	if was.fdPath != "" {
		if f, ok := proc.OpenFile(was.fdPath); ok && f.Rdev == dev.rdev() && f.Mode&unix.S_IFMT == unix.S_IFBLK {
			return was.name
		}
		return ""
	}
	if own, _ := s.ours(dev.UUID); dev.Open-own == was.open && time.Since(was.found) < searchEvery {
		return was.name
	}
	return ""
}

// aboveOrMounted names what of the host's own is over a volume.
func (s *Store) aboveOrMounted(h *host, users blockdev.Users, dev *device) string {
	who := blockdev.Holder(s.sysfs, users, dev.rdev(), func(name string) bool {
		above := h.kernelName(dev, name)
		return above != nil && isMapping(above)
	})
	if name, ok := strings.CutPrefix(who, "device /dev/"); ok {
		if above := h.kernelName(dev, name); above != nil {
			return "device /dev/mapper/" + above.Name
		}
	}
	return who
}

// kernelName is the device that the kernel calls dm-N; nil if it is none of device-mapper's. All of them have the
// major number of like.
func (h *host) kernelName(like *device, name string) *device {
	minor, err := strconv.ParseUint(strings.TrimPrefix(name, "dm-"), 10, 32)
	if err != nil || !strings.HasPrefix(name, "dm-") {
		return nil
	}
	return h.dm.byRdev[unix.Mkdev(like.Major, uint32(minor))]
}

// mappingsOver are our mappings that have a device open, once each.
func (s *Store) mappingsOver(h *host, dev *device) []*device {
	var mappings []*device
	for _, name := range proc.List(filepath.Join(blockdev.SysPath(s.sysfs, dev.rdev()), "holders"), maxMappings) {
		if above := h.kernelName(dev, name); above != nil && isMapping(above) {
			mappings = append(mappings, above)
		}
	}
	return mappings
}

// maxMappings bounds how many devices over a volume are looked at.
const maxMappings = 4096

// isMapping tells whether a device is one that we made to show what is in a snapshot: package mapper/kpartx says how they are named.
func isMapping(dev *device) bool {
	uuid := dev.UUID
	if rest, ok := strings.CutPrefix(uuid, "part"); ok {
		_, uuid, _ = strings.Cut(rest, "-")
	}
	return strings.HasPrefix(uuid, dmPrefix+"domfs-") || strings.HasPrefix(uuid, "DOMFS-")
}

// search looks through /proc for who has the suspects open; several times where it finds nobody, but for
// those whom somebody had open before.
func (s *Store) search(ctx context.Context, suspects map[uint64]*suspect) {
	for try := range holderTries {
		open := map[uint64]bool{}
		for rdev, q := range suspects {
			q.ignored = 0
			if own, _ := s.ours(q.dev.UUID); q.holder == "" && q.foreign(own) > 0 {
				open[rdev] = true
			}
		}
		if len(open) == 0 {
			return
		}
		if try > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(holderPause):
			}
			if !s.countAgain(ctx, suspects) {
				return
			}
		}
		blockdev.Processes(s.procfs, open, func(pid, fdPath string, rdev uint64) bool {
			q := suspects[rdev]
			if s.isIgnored(pid) {
				q.ignored++
			} else if q.holder == "" {
				q.holder, q.fdPath = proc.Name(s.procfs, pid), fdPath
			}
			return true
		})
		settled := true
		for rdev := range open {
			q := suspects[rdev]
			own, _ := s.ours(q.dev.UUID)
			settled = settled && (q.holder != "" || q.known || q.foreign(own) <= 0)
		}
		if settled {
			return
		}
	}
}

// countAgain reads the open counts; false if they cannot be read.
func (s *Store) countAgain(ctx context.Context, suspects map[uint64]*suspect) bool {
	found, err := s.mapper.Devices(ctx)
	if err != nil {
		return false
	}
	d := indexDevices(found)
	for _, q := range suspects {
		q.open = 0
		if dev := d.byUUID[q.dev.UUID]; dev != nil {
			q.open = dev.Open
		}
	}
	return true
}

// isIgnored tells whether a process does not count: another daemon of ours, and udev, which looks at what changes.
func (s *Store) isIgnored(pid string) bool {
	comm, err := os.ReadFile(filepath.Join(s.procfs, pid, "comm"))
	if err == nil {
		switch strings.TrimSpace(string(comm)) {
		case "systemd-udevd", "(udev-worker)", "udev-worker", "udevd":
			return true
		}
	}
	theirs, err1 := os.Readlink(filepath.Join(s.procfs, pid, "exe"))
	ours, err2 := os.Readlink(filepath.Join(s.procfs, "self/exe"))
	const deleted = " (deleted)" // an older one, after an upgrade
	return err1 == nil && err2 == nil && filepath.Base(strings.TrimSuffix(theirs, deleted)) == filepath.Base(strings.TrimSuffix(ours, deleted))
}

// loopOver names a loop device over a volume, "" if there is none.
func (s *Store) loopOver(rdev uint64) string {
	for _, name := range proc.List(filepath.Join(s.sysfs, "block"), maxLoops) {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		backing, err := os.ReadFile(filepath.Join(s.sysfs, "block", name, "loop/backing_file"))
		if err != nil {
			continue
		}
		if below, isBlock, err := s.stat(strings.TrimSuffix(string(backing), "\n")); err == nil && isBlock && below == rdev {
			return "loop device /dev/" + name
		}
	}
	return ""
}

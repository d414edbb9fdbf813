package lvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"

	"domfs/backend"
	"domfs/backend/blockdev"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links to a volume's node are followed by name, if the node is not there.
const maxLinks = 8

// statDevice looks what a path leads to.
func statDevice(path string) (rdev uint64, isBlock bool, err error) {
	var st unix.Stat_t
	for {
		err = unix.Stat(path, &st)
		if err != unix.EINTR {
			break
		}
	}
	return uint64(st.Rdev), st.Mode&unix.S_IFMT == unix.S_IFBLK, err
}

// Volumes finds the logical volumes among disks.
func (s *Store) Volumes(ctx context.Context, disks []backend.Disk) ([]backend.Volume, error) {
	volumes := make([]backend.Volume, len(disks))
	h := s.readHost(ctx)
	if h == nil {
		return volumes, nil
	}
	if h.report == nil && h.dm == nil {
		return nil, h.err
	}
	found := make([]*lv, len(disks))
	formats := map[string]string{}
	for i, d := range disks {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for logical volumes: %w", err)
		}
		volumes[i], found[i] = s.volume(h, d)
		if v := volumes[i]; found[i] != nil && v.Format != backend.FormatRaw {
			formats[v.ID] = v.Format
		}
	}
	holders := s.findHolders(ctx, h, found)
	for i, l := range found {
		if l != nil {
			volumes[i].Holder = holders[l]
		}
	}
	s.mu.Lock()
	s.formatsOf = formats
	s.mu.Unlock()
	return volumes, nil
}

// volume is the volume behind a disk; its Store is empty if that is no LV. l is nil if there is none that could be looked at.
func (s *Store) volume(h *host, d backend.Disk) (v backend.Volume, l *lv) {
	if d.Script != "" || d.BackendDomain != "" || !strings.HasPrefix(d.Source, "/") {
		return v, nil
	}
	path := filepath.Clean(d.Source)
	v = backend.Volume{Store: storeName, Driver: driverLV, Format: d.Format}
	if v.Format == "" {
		v.Format = backend.FormatRaw
	}
	where, ok := s.locate(h, path)
	if !ok {
		return backend.Volume{}, nil
	}
	v.ID = where.vg + "/" + where.name
	v.Pool = where.vg
	if h.report == nil || h.dm == nil {
		v.Err = fmt.Errorf("%s: %w", v.ID, h.err)
		return v, nil
	}
	g := h.vg(where.vg)
	switch {
	case g.twin:
		v.Err = backend.Because(backend.ErrUnsupported, "%s: this host has two volume groups %s: give one another name with vgrename and its UUID", path, g.name)
		return v, nil
	case g.lv(where.name) == nil:
		v.Err = backend.Because(backend.ErrNotExist, "%s: there is no logical volume %s in VG %s: check the path in the domain's configuration", path, where.name, g.name)
		return v, nil
	}
	l = g.lv(where.name)
	s.describe(h, l, &v)
	if l.isPart() { // whoever has it open is another part
		return v, nil
	}
	return v, l
}

// describe fills in what is known of an LV. The volume's ID and Format are there; its Err is set if it
// cannot be read.
func (s *Store) describe(h *host, l *lv, v *backend.Volume) {
	v.Store, v.ID, v.Driver, v.Pool = storeName, l.id(), l.driver(), l.poolName()
	v.SizeBytes = l.visibleBytes()
	v.Unfinished = volumeState(l.tags) != ""
	v.Generation = l.mix(uint64(l.vg.seqno))
	format, err := backend.FindFormat(s.formats, v.Format)
	if err != nil {
		v.Err = fmt.Errorf("%s: %w", l.id(), err)
		return
	}
	if v.Err = l.unreadable(); v.Err != nil {
		return
	}
	dev := h.dm.of(l)
	if dev == nil {
		v.Err = l.inactive()
		return
	}
	if v.SizeBytes, err = blockdev.Size(s.sysfs, dev.rdev()); err != nil {
		v.Err = words.Failed("find the size of", l.path(), err)
		return
	}
	v.Generation = l.mix(blockdev.Generation(s.sysfs, dev.rdev(), v.SizeBytes))
	if fault := h.fault(l); fault != "" {
		v.Err = backend.Because(backend.ErrIO, "%s: %s", l.id(), fault)
		return
	}
	if format == nil {
		return
	}
	if dev.Suspended {
		v.Err = errSuspended(l.id())
		return
	}
	v.SizeBytes, v.Err = s.images.SizeBytes(dev.path(), dev.rdev(), v.Generation, format, blockdev.Options{Direct: !l.isSnapshot(), Hints: hints})
}

// driver is what the tree's `driver` says.
func (l *lv) driver() string {
	if l.isThin() {
		return driverThin
	}
	return driverLV
}

// poolName is the name of the Pool that the LV takes space from.
func (l *lv) poolName() string {
	if l.isThin() {
		return l.vg.name + ":" + l.pool
	}
	return l.vg.name
}

// mix makes a generation of the LV's own identity and that of its bytes: the device stays while LVM puts
// another thin volume, or a merge, behind it.
func (l *lv) mix(generation uint64) uint64 {
	f := fnv.New64a()
	fmt.Fprintf(f, "%s %d %t %s ", l.uuid, l.thinID, l.merging, l.origin)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], generation)
	f.Write(b[:])
	return f.Sum64()
}

// isPart tells whether it is there for other LVs, and is no disk.
func (l *lv) isPart() bool { return l.hidden || l.isThinPool() || l.dataLV != "" }

// unreadable says why no device of the LV can be read, whatever is active; nil if it can.
func (l *lv) unreadable() error {
	switch {
	case l.isPart():
		return backend.Because(backend.ErrInvalid, "%s is a part of other logical volumes, and no disk: correct the domain's configuration", l.id())
	case !l.whole(maxDepth):
		return backend.Because(backend.ErrIO, "%s lies on a physical volume that is missing (VG %s misses %d): attach the disk that is missing", l.id(), l.vg.name, l.vg.missingPVs)
	}
	return nil
}

// maxDepth is how many pools may lie over one another.
const maxDepth = 4

// whole tells whether all of the LV's bytes are there: none of its PVs is missing, or it has copies of what was on that.
func (l *lv) whole(depth int) bool {
	switch {
	case !l.partial:
		return true
	case depth == 0:
		return false
	case l.isThin():
		p := l.vg.lv(l.pool)
		if p == nil {
			return false
		}
		for _, part := range []string{p.dataLV, p.metadataLV} {
			if below := l.vg.lv(part); below == nil || !below.whole(depth-1) {
				return false
			}
		}
		return true
	case l.segtype == "mirror":
		return true
	}
	return strings.HasPrefix(l.segtype, "raid") && !strings.HasPrefix(l.segtype, "raid0")
}

// inactive is the error of a volume that has no device.
func (l *lv) inactive() error {
	extra := ""
	if l.skip {
		extra = "-K "
	}
	return backend.Because(backend.ErrNoDevice, "%s is not active: activate it: lvchange -ay %s%s", l.id(), extra, l.id())
}

func errSuspended(id string) error {
	return backend.Because(backend.ErrBusy, "%s is suspended: an LVM command is at work on it, or was killed: dmsetup resume lets it go on", id)
}

// place is the names of an LV that may not exist.
type place struct{ vg, name string }

// locate says which LV of a known VG a path means; false if none.
func (s *Store) locate(h *host, path string) (place, bool) {
	rdev, isBlock, err := s.stat(path)
	if err == nil && !isBlock {
		return place{}, false
	}
	if err == nil && h.dm != nil {
		return h.placeOf(rdev)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) || h.report == nil {
		return place{}, false
	}
	for range maxLinks {
		if p, ok := h.placeNamed(path); ok {
			return p, true
		}
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = filepath.Clean(to)
	}
	return place{}, false
}

// placeOf is the LV whose device has a number.
func (h *host) placeOf(rdev uint64) (place, bool) {
	dev := h.dm.byRdev[rdev]
	if dev == nil {
		return place{}, false
	}
	if h.report != nil {
		if l := h.lvOf(dev); l != nil {
			return place{l.vg.name, l.name}, true
		}
		return place{}, false
	}
	// LVM does not answer: what is its, device-mapper knows, too.
	id, ok := strings.CutPrefix(dev.UUID, dmPrefix)
	if !ok || len(id) != 2*lvmUUIDLength {
		return place{}, false
	}
	vgName, name, ok := splitDMName(dev.Name)
	return place{vgName, name}, ok
}

// lvmUUIDLength is that of LVM's UUIDs without hyphens.
const lvmUUIDLength = 32

// lvOf is the LV whose own device this is; nil if none.
func (h *host) lvOf(dev *device) *lv {
	if l := h.byDevice[dev.UUID]; l != nil {
		return l
	}
	return h.byDevice[strings.TrimSuffix(dev.UUID, "-pool")] // what a thin pool shows of itself
}

// placeNamed reads a path that names an LV of a known VG, whether there is such an LV or not.
func (h *host) placeNamed(path string) (place, bool) {
	known := func(vgName, name string) (place, bool) {
		if name == "" || h.vg(vgName) == nil {
			return place{}, false
		}
		return place{vgName, name}, true
	}
	rest, ok := strings.CutPrefix(path, "/dev/")
	if !ok {
		return place{}, false
	}
	for _, folder := range []string{"mapper/", "disk/by-id/dm-name-"} {
		if name, ok := strings.CutPrefix(rest, folder); ok {
			vgName, name, ok := splitDMName(name)
			if !ok {
				return place{}, false
			}
			return known(vgName, name)
		}
	}
	if id, ok := strings.CutPrefix(rest, "disk/by-id/dm-uuid-"); ok {
		if l := h.byDevice[id]; l != nil {
			return place{l.vg.name, l.name}, true
		}
		return place{}, false
	}
	vgName, name, ok := strings.Cut(rest, "/")
	if !ok || strings.Contains(name, "/") {
		return place{}, false
	}
	return known(vgName, name)
}

// splitDMName finds the names of VG and LV in that of a device: they are joined by a single hyphen, and their own
// hyphens are doubled.
func splitDMName(dm string) (vgName, name string, ok bool) {
	for i := 0; i < len(dm); i++ {
		if dm[i] != '-' {
			continue
		}
		if i+1 < len(dm) && dm[i+1] == '-' {
			i++
			continue
		}
		vgName, name = undouble(dm[:i]), undouble(dm[i+1:])
		return vgName, name, vgName != "" && name != ""
	}
	return "", "", false
}

func undouble(name string) string { return strings.ReplaceAll(name, "--", "-") }

// rdev is the device's number.
func (v *device) rdev() uint64 { return unix.Mkdev(v.Major, v.Minor) }

// path is the device's node, which the kernel makes itself: it does not wait for udev.
func (v *device) path() string { return fmt.Sprintf("/dev/dm-%d", v.Minor) }

package control

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"domfs/backend"
)

// Root is a guest's files as the guest itself mounts them. It is never changed once returned, and refers to
// volumes by their names only: it keeps nothing open.
type Root struct {
	// Top is the mount of the root filesystem; nil where the guest has none that is found.
	Top *Mount
	// ID is equal for two Roots that show the same, and of a live disk's the same bytes.
	ID uint64
	// Passing tells that something could not be read now: the next Root may show more.
	Passing bool
}

// Mount is a filesystem, or a directory of one, at its place in the guest's tree.
type Mount struct {
	ID  string    // tells the mounts of a Root apart: the mount point
	Ref VolumeRef // the volume of the filesystem
	Ino uint64    // inode number of the directory that is shown
	// Err says why the filesystem cannot be shown, though the guest mounts it here.
	Err error

	over map[uint64]*Mount // what is mounted on directories of it, by their inode numbers
}

// At is what is mounted on a directory of m; nil if nothing is.
func (m *Mount) At(ino uint64) *Mount {
	if n := m.over[ino]; n != nil {
		return n.topmost()
	}
	return nil
}

// topmost is m, or what is mounted on the very directory that it shows. Mounts are a tree: it ends.
func (m *Mount) topmost() *Mount {
	for m.Err == nil && m.over[m.Ino] != nil {
		m = m.over[m.Ino]
	}
	return m
}

const (
	// maxMounts is how many filesystems of one guest are mounted.
	maxMounts = 256
	// maxCandidates is how many filesystems are opened to find the root.
	maxCandidates = 64
	// maxTold is how many volumes a sentence lists.
	maxTold = 12
)

// rootCell keeps a Root; one goroutine at a time finds it out.
type rootCell struct {
	turn   chan struct{} // full while somebody has it
	answer answer[*Root] // guarded by turn
}

func newRootCell() *rootCell { return &rootCell{turn: make(chan struct{}, 1)} }

// Root finds out how the guest whose disks are ref's snapshot set, or whose domain ref names and is off,
// mounts its filesystems: by the /etc/fstab of its root filesystem. That is
//
//  1. the first volume, in the order of disks, partitions, and logical volumes, whose own /etc/fstab names it for /;
//  2. else the only one with an /etc/fstab; of several, the only one of these that holds /etc/os-release or /bin;
//  3. else the only one that holds /etc/os-release, or /etc and /bin.
//
// Where none is found and all could be read, Top is nil and a warning says what was looked at; where something
// could not be read, that is the error. A filesystem that the guest mounts and domfs does not read, or that is not
// there, leaves its directory as it is, with a warning; one on a volume that cannot be read now has its Err.
func (h *Host) Root(ctx context.Context, ref VolumeRef) (*Root, error) {
	v, err := h.assembled(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer v.Release()
	d, cell := v.disk, v.disk.all.root
	select {
	case cell.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, contextError(ctx, "finding the root filesystem on "+d.from.disk)
	}
	defer func() { <-cell.turn }()
	return cell.answer.ask(func() (*Root, error) {
		root, err := d.findRoot(ctx)
		if ctx.Err() != nil {
			return nil, contextError(ctx, "finding the root filesystem on "+d.from.disk)
		}
		return root, err
	})
}

func (d *disk) findRoot(ctx context.Context) (*Root, error) {
	f := &rootFinder{d: d, tree: &guestTree{ctx: ctx, h: d.h, open: map[VolumeRef]openFS{}}}
	defer f.tree.close()
	top, entries, err := f.choose()
	if err != nil || top == nil {
		return &Root{Passing: d.all.passing}, err
	}
	f.tree.top = top
	f.mounts = 1
	f.mountAll(entries)
	if ctx.Err() == nil {
		d.whole.warn("root", f.warnings)
	}
	if f.passing {
		d.h.volumes.mu.Lock()
		d.all.passing = true
		d.h.volumes.mu.Unlock()
	}
	r := &Root{Top: top, Passing: d.all.passing}
	h := fnv.New64a()
	if !d.from.frozen {
		fmt.Fprintf(h, "%d\n", d.from.volume.Generation)
	}
	top.describe(h)
	r.ID = h.Sum64()
	return r, nil
}

// describe writes all that a mount shows.
func (m *Mount) describe(w interface{ Write([]byte) (int, error) }) {
	fmt.Fprintf(w, "%q %+v %d %t\n", m.ID, m.Ref, m.Ino, m.Err != nil)
	var inos []uint64
	for ino := range m.over {
		inos = append(inos, ino)
	}
	slices.Sort(inos)
	for _, ino := range inos {
		fmt.Fprintf(w, "%d ", ino)
		m.over[ino].describe(w)
	}
}

// rootFinder finds a guest's root filesystem, and mounts upon it what its fstab says.
type rootFinder struct {
	d        *disk
	tree     *guestTree
	mounts   int
	warnings []string
	passing  bool
}

// candidate is a filesystem that may be the guest's root.
type candidate struct {
	seen    seenVolume
	mount   *Mount
	fstab   bool // it has one
	entries []fstabEntry
	isRoot  bool // it looks like one, whatever its fstab says
}

// choose finds the root filesystem; nil if there is none.
func (f *rootFinder) choose() (*Mount, []fstabEntry, error) {
	var all []*candidate
	var failed error
	for _, s := range f.inOrder() {
		c, err := f.look(s)
		if f.tree.ctx.Err() != nil {
			return nil, nil, err
		}
		if err != nil {
			if failed == nil {
				failed = err
			}
			continue
		}
		for i := range c.entries {
			if e := &c.entries[i]; e.file == "/" && f.d.all.means(e.spec, s.ref) {
				return c.mount, c.entries, nil
			}
		}
		all = append(all, c)
	}
	// What cannot be read now may be the one.
	if failed != nil && mayPass(failed) {
		return nil, nil, failed
	}
	if err := f.d.all.lost(); err != nil {
		return nil, nil, unrecorded{fmt.Errorf("the root filesystem is not among what could be read: %w", err)}
	}
	if c := onlyOne(all); c != nil {
		return c.mount, c.entries, nil
	}
	if failed != nil {
		return nil, nil, failed
	}
	f.d.whole.warn("root", []string{f.notFound(all)})
	return nil, nil, nil
}

// inOrder are the volumes with a filesystem that is read, those first that are no snapshots of others.
func (f *rootFinder) inOrder() (out []seenVolume) {
	for _, plain := range []bool{true, false} {
		for _, s := range f.d.all.seen {
			if s.plain == plain && f.d.h.reads(s.content.Type) && len(out) < maxCandidates {
				out = append(out, s)
			}
		}
	}
	return out
}

// reads tells whether there is a driver for a filesystem.
func (h *Host) reads(contentType string) bool {
	return contentType != "" && slices.ContainsFunc(h.o.Filesystems, func(f backend.Filesystem) bool { return slices.Contains(f.Types(), contentType) })
}

// look looks for what makes a filesystem a guest's root.
func (f *rootFinder) look(s seenVolume) (*candidate, error) {
	fs, err := f.tree.fs(s.ref)
	if err != nil {
		return nil, err
	}
	c := &candidate{seen: s, mount: &Mount{ID: "/", Ref: s.ref, Ino: fs.Root(), over: map[uint64]*Mount{}}}
	f.tree.top = c.mount
	p, err := f.tree.walk("/etc/fstab")
	var text []byte
	if err == nil {
		text, err = f.tree.readFile(p, maxFstabBytes+1)
	}
	switch {
	case err == nil:
		var cut bool
		c.fstab = true
		if c.entries, cut = parseFstab(text); cut {
			f.warn("its /etc/fstab on %s is longer than %d lines or %d bytes: the rest is not read", s.ref.member(), maxFstabEntries, maxFstabBytes)
		}
	case !isAbsent(err):
		return nil, f.d.h.Failed(f.d.from.domain, "root", fmt.Errorf("%s on %s: /etc/fstab: %w", s.ref.member(), f.d.from.disk, err))
	}
	c.isRoot = f.exists("/etc/os-release") || f.exists("/bin") && (c.fstab || f.exists("/etc"))
	return c, nil
}

// isAbsent tells whether a file is not there, as opposed to that it cannot be read.
func isAbsent(err error) bool {
	return errors.Is(err, backend.ErrNotExist) || errors.Is(err, backend.ErrNotDir) || errors.Is(err, backend.ErrInvalid)
}

func (f *rootFinder) exists(path string) bool {
	_, err := f.tree.walk(path)
	return err == nil
}

// onlyOne chooses among filesystems of which none names itself.
func onlyOne(all []*candidate) *candidate {
	filter := func(in []*candidate, keep func(*candidate) bool) (out []*candidate) {
		for _, c := range in {
			if keep(c) {
				out = append(out, c)
			}
		}
		return out
	}
	isRoot := func(c *candidate) bool { return c.isRoot }
	with := filter(all, func(c *candidate) bool { return c.fstab })
	switch {
	case len(with) == 0:
		with = filter(all, isRoot)
	case len(with) > 1:
		with = filter(with, isRoot)
	}
	if len(with) != 1 {
		return nil
	}
	return with[0]
}

// notFound says what was looked at in vain.
func (f *rootFinder) notFound(all []*candidate) string {
	var looked, other []string
	for _, c := range all {
		what := c.seen.ref.member() + " (" + c.seen.content.Type
		if c.fstab {
			what += ", with an /etc/fstab that does not name it"
		}
		looked = append(looked, what+")")
	}
	for _, s := range f.d.all.seen {
		if s.content.Type != "" && !f.d.h.reads(s.content.Type) {
			other = append(other, s.ref.member()+" ("+s.content.Type+")")
		}
	}
	text := "no root filesystem was found: "
	switch {
	case len(looked) == 0:
		text += "there is no filesystem that is read here"
	default:
		text += "none of these is it, or more than one may be: " + listed(looked)
	}
	if len(other) > 0 {
		text += "; what is not read as a filesystem: " + listed(other)
	}
	return text
}

func listed(names []string) string {
	if len(names) > maxTold {
		names = append(slices.Clone(names[:maxTold]), fmt.Sprintf("and %d more", len(names)-maxTold))
	}
	return strings.Join(names, ", ")
}

func (f *rootFinder) warn(format string, args ...any) {
	f.warnings = append(f.warnings, fmt.Sprintf(format, args...))
}

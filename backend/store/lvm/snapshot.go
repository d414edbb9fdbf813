package lvm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

var (
	_ backend.Snapshotter = (*Store)(nil)
	_ backend.Reserver    = (*Store)(nil)
	_ backend.Resizer     = (*Store)(nil)
)

func isBusy(err error) bool { return errors.Is(err, backend.ErrBusy) }

// Snapshot implements backend.Snapshotter. The snapshot is active and read-only, and in state pending from the commit that
// makes it: its tags come with it. If it fails, nothing is left.
func (s *Store) Snapshot(ctx context.Context, req backend.SnapshotRequest, g backend.Guard) (backend.Snapshot, error) {
	if err := checkRequest(req); err != nil {
		return backend.Snapshot{}, err
	}
	own, ok := g.(*guard)
	if !ok || own == nil || own.s != s {
		return backend.Snapshot{}, backend.Because(backend.ErrInvalid, "snapshot %s: it was not prepared by this store", req.Origin.ID)
	}
	if err := own.Broken(); err != nil {
		return backend.Snapshot{}, fmt.Errorf("snapshot %s: %w", req.Origin.ID, err)
	}
	p := own.plans[req.Origin.ID]
	if p == nil {
		return backend.Snapshot{}, backend.Because(backend.ErrInvalid, "snapshot %s: it was not prepared", req.Origin.ID)
	}
	meta := pending(req.Meta)
	tags, err := formatTags(meta)
	if err != nil {
		return backend.Snapshot{}, fmt.Errorf("snapshot %s: %w", req.Origin.ID, err)
	}
	name, err := snapshotName(p.origin, meta.Set, meta.Disk.VDev)
	if err != nil {
		return backend.Snapshot{}, err
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	fault.Point("lvm.snapshot.begin")
	made := p.snapshot(name, tags)
	if _, err := s.change(ctx, "snapshot "+p.origin.id(), "lvcreate", createArgs(p, name, tags)...); err != nil {
		if errors.Is(err, backend.ErrExist) {
			return backend.Snapshot{}, err
		}
		return backend.Snapshot{}, also(err, s.removeRemains(ctx, made, meta))
	}
	fault.Point("lvm.snapshot.created")
	if err := awaitNode(made.path(), true); err != nil {
		err = fmt.Errorf("snapshot %s: %w", p.origin.id(), err)
		return backend.Snapshot{}, also(err, s.removeRemains(ctx, made, meta))
	}
	fault.Point("lvm.snapshot.node")
	sn := s.snapshotOf(nil, made)
	sn.Volume.SizeBytes = req.Origin.SizeBytes // as the guest sees it, whatever the format
	return sn, nil
}

// createArgs are lvcreate's arguments. -kn and -ay: a thin snapshot would be neither active nor activated later, and of
// a thick one -ay is implied, as it is active when its origin is.
func createArgs(p *plan, name string, tags []string) []string {
	args := []string{"--yes", "--snapshot", "--name", name, "--permission", "r"}
	if p.cowBytes > 0 {
		args = append(args, "--chunksize", fmt.Sprintf("%db", defaultChunkBytes), "--size", fmt.Sprintf("%db", p.cowBytes))
	} else {
		args = append(args, "--setactivationskip", "n", "--activate", "y")
	}
	for _, tag := range tags {
		args = append(args, "--addtag", tag)
	}
	return append(args, "--", p.origin.id())
}

// snapshot is the LV that lvcreate makes, as a report would have it.
func (p *plan) snapshot(name string, tags []string) *lv {
	o := p.origin
	l := &lv{vg: o.vg, name: name, tags: tags, origin: o.name, originUUID: o.uuid, originBytes: o.sizeBytes, sizeBytes: o.sizeBytes, stripes: 1, copies: 1, segments: 1, thinID: -1}
	if p.cowBytes > 0 {
		l.sizeBytes, l.chunkBytes, l.segtype = p.cowBytes, defaultChunkBytes, "linear"
	} else {
		l.originBytes, l.segtype, l.pool, l.poolUUID = 0, segThin, o.pool, o.poolUUID
	}
	return l
}

// removeRemains removes what a lvcreate that failed may have left: nothing in most cases.
func (s *Store) removeRemains(ctx context.Context, l *lv, m backend.SnapshotMeta) error {
	err := retry(context.WithoutCancel(ctx), func() error {
		_, err := s.change(context.WithoutCancel(ctx), "remove "+l.id(), "lvremove", removeArgs(l.id(), selectSnapshot(m))...)
		return err
	})
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return err
}

// selectSnapshot selects (lvmreport(7), SELECTION) the LV of a snapshot of ours by what never changes of it. LVM looks with the
// VG's lock held: nothing else can have taken its name when it acts.
func selectSnapshot(m backend.SnapshotMeta) string {
	return selectTags("{", "}", identityTags(m))
}

// selectExactly selects an LV that has these tags and no others.
func selectExactly(tags []string) string { return selectTags("[", "]", tags) }

func selectTags(open, end string, tags []string) string {
	return "lv_tags=" + open + `"` + strings.Join(tags, `" && "`) + `"` + end
}

// identityTags are those of a record that never change. m has a set and a disk.
func identityTags(m backend.SnapshotMeta) []string {
	tags, err := formatTags(backend.SnapshotMeta{Set: m.Set, Disk: backend.Disk{VDev: m.Disk.VDev}})
	if err != nil {
		return []string{versionTag, tagPrefix} // selects nothing: no tag is this
	}
	return tags
}

// Annotate implements backend.Snapshotter: the tags of each change in one commit of its VG's metadata. Where they change
// alike, as those of a set do, one tool changes those of all.
func (s *Store) Annotate(ctx context.Context, all ...backend.Annotation) error {
	rest := make([]retagging, 0, len(all))
	snaps := map[string]backend.Snapshot{} // by ID
	for _, a := range all {
		snaps[a.Snapshot.Volume.ID] = a.Snapshot
		r, err := retaggingOf(a)
		if err != nil {
			return err
		}
		rest = append(rest, r)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	fault.Point("lvm.annotate.begin")
	for len(rest) > 0 {
		n := alike(rest)
		// Most often the tags are those that the caller has read: then LVM needs to be asked but once.
		left, err := s.retag(ctx, rest[:n]...)
		if err != nil {
			return err
		}
		for _, r := range left {
			if err := s.retagAfterAll(ctx, snaps[r.id], r); err != nil {
				return err
			}
		}
		rest = rest[n:]
	}
	fault.Point("lvm.annotate.done")
	return nil
}

// retagging is a change of the tags of one LV.
type retagging struct {
	id       string
	ours     []string // what the record is to be
	from     []string // all tags that the LV has; it is left alone where it has others
	add, del []string
}

// What one tool is told to change: so many LVs, and so many bytes of their tags, as Linux takes 128 KiB as one argument.
const (
	maxRetagged      = 8
	maxRetaggedBytes = 64 << 10
)

func retaggingOf(a backend.Annotation) (r retagging, err error) {
	sn, m := a.Snapshot, a.Meta
	r.id = sn.Volume.ID
	// That it is invalid is what device-mapper says of it now; its tags say active.
	for _, state := range []*backend.SnapshotState{&sn.State, &m.State} {
		if *state == backend.SnapshotInvalid {
			*state = backend.SnapshotActive
		}
	}
	switch {
	case sn.Volume.Store != storeName:
		return r, backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", r.what(), sn.Volume.Store)
	case sn.Foreign:
		return r, backend.Because(backend.ErrPermission, "%s: domfs has not made it, and there is no record in them", r.what())
	case m.Set != sn.Set || m.Disk.VDev != sn.Disk.VDev:
		return r, backend.Because(backend.ErrInvalid, "%s: what set and disk it is of never changes", r.what())
	}
	if r.ours, err = formatTags(m); err != nil {
		return r, fmt.Errorf("%s: %w", r.what(), err)
	}
	tags, err := formatTags(sn.SnapshotMeta)
	if err != nil {
		return r, fmt.Errorf("%s: %w", r.what(), err)
	}
	return r.of(tags), nil
}

func (r retagging) what() string { return "change the tags of " + r.id }

// of is the change of an LV that has such tags.
func (r retagging) of(tags []string) retagging {
	r.from = tags
	r.add, r.del = changeOfTags(tags, append(othersTags(tags), r.ours...))
	return r
}

func (r retagging) isNone() bool { return len(r.add)+len(r.del) == 0 }

// alike counts the first of rs that one tool can change: the same tags are to come and to go.
func alike(rs []retagging) int {
	size := func(r retagging) int { return len(selectExactly(r.from)) }
	n, bytes := 1, size(rs[0])
	for n < min(len(rs), maxRetagged) && slices.Equal(rs[n].add, rs[0].add) && slices.Equal(rs[n].del, rs[0].del) {
		if bytes += size(rs[n]); bytes > maxRetaggedBytes {
			break
		}
		n++
	}
	return n
}

// retag changes the tags of LVs, those of all by the first one's change; left are those that have other tags than it says. Where one
// cannot be changed, others may be. (What LVM says of each it says before the commit, and one that fails is an error.)
func (s *Store) retag(ctx context.Context, rs ...retagging) (left []retagging, err error) {
	if rs[0].isNone() {
		return rs, nil
	}
	args := []string{"--yes"}
	for _, tag := range rs[0].add {
		args = append(args, "--addtag", tag)
	}
	for _, tag := range rs[0].del {
		args = append(args, "--deltag", tag)
	}
	var ids, selections []string
	for _, r := range rs {
		ids = append(ids, r.id)
		selections = append(selections, "("+selectExactly(r.from)+")")
	}
	args = append(args, "--select", strings.Join(selections, " || "), "--")
	what := rs[0].what()
	if len(rs) > 1 {
		what += fmt.Sprintf(" and %d more", len(rs)-1)
	}
	said, err := s.change(ctx, what, "lvchange", append(args, ids...)...)
	switch {
	case err != nil:
		return nil, err
	case len(rs) == 1 && said != "":
		return nil, nil
	}
	for _, r := range rs {
		if !strings.Contains(said, "Logical volume "+r.id+" changed.") {
			left = append(left, r)
		}
	}
	return left, nil
}

// retagAfterAll changes the tags of a snapshot that has others than the caller knew.
func (s *Store) retagAfterAll(ctx context.Context, sn backend.Snapshot, r retagging) error {
	const tries = 3
	for range tries {
		tags, err := s.readTags(ctx, sn, r.what())
		if err != nil {
			return err
		}
		if r = r.of(tags); r.isNone() {
			return nil
		}
		left, err := s.retag(ctx, r)
		if err != nil || len(left) == 0 {
			return err
		}
	}
	return backend.Because(backend.ErrStale, "%s: something else changes them all the time: try again", r.what())
}

// readTags reads the tags of a snapshot of ours, which must still be the one that the caller means.
func (s *Store) readTags(ctx context.Context, sn backend.Snapshot, what string) ([]string, error) {
	r, err := s.readReport(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	l := r.byID(sn.Volume.ID)
	if l == nil {
		return nil, backend.Because(backend.ErrNotExist, "%s: there is no such logical volume", what)
	}
	if err := isStill(l, sn); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return l.tags, nil
}

// isStill says why an LV is not the snapshot that the caller knows.
func isStill(l *lv, sn backend.Snapshot) error {
	if sn.Foreign {
		if foreignSet(l) != sn.Set {
			return backend.Because(backend.ErrStale, "%s is another volume by now", l.id())
		}
		return nil
	}
	m, ok := parseTags(l.tags)
	if !ok || m.Set != sn.Set || m.Disk.VDev != sn.Disk.VDev {
		return backend.Because(backend.ErrStale, "%s is another volume by now", l.id())
	}
	if err := recordFault(l.tags); errors.Is(err, backend.ErrUnsupported) {
		return err
	}
	return nil
}

// othersTags are those tags of an LV that domfs has not written.
func othersTags(tags []string) []string {
	var others []string
	for _, tag := range tags {
		if !isOursTag(tag) {
			others = append(others, tag)
		}
	}
	return others
}

// Remove implements backend.Snapshotter. A device that is open is tried again for some seconds, as udev looks at each that
// changes; then ErrBusy names who has it. One that is not the snapshot that the caller knows is ErrStale, and stays. That a
// foreign one is to be removed at all is for the caller to decide.
func (s *Store) Remove(ctx context.Context, sn backend.Snapshot) error {
	what := "remove " + sn.Volume.ID
	var selection string
	switch {
	case sn.Volume.Store != storeName:
		return backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", what, sn.Volume.Store)
	case sn.Foreign:
		uuid, ok := uuidOfForeign(sn.Set)
		if !ok || !isUUID.MatchString(uuid) {
			return backend.Because(backend.ErrInvalid, "%s: %q is no identity of a volume", what, sn.Set)
		}
		selection = `lv_uuid="` + uuid + `"`
	case sn.Set == "" || sn.Disk.VDev == "":
		return backend.Because(backend.ErrInvalid, "%s: domfs has not made it", what)
	default:
		selection = selectSnapshot(sn.SnapshotMeta)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	fault.Point("lvm.remove.begin")
	var said string
	err := retry(ctx, func() (err error) {
		said, err = s.change(ctx, what, "lvremove", removeArgs(sn.Volume.ID, selection)...)
		return err
	})
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return nil
	case isBusy(err):
		return s.busy(ctx, sn, err)
	case err != nil:
		return err
	case said == "":
		return s.notSelected(ctx, sn, what)
	}
	fault.Point("lvm.remove.done")
	if err := awaitNode("/dev/"+sn.Volume.ID, false); err != nil {
		s.log.Warn("the node of a volume that was removed stays", zap.String("op", "remove"), zap.String("volume", sn.Volume.ID), zap.Error(err))
	}
	return nil
}

// isUUID is the form of an LV's UUID.
var isUUID = regexp.MustCompile(`^[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}$`)

func removeArgs(id, selection string) []string {
	return []string{"--yes", "--force", "--select", selection, "--", id}
}

// notSelected says why LVM did nothing to a snapshot that is there.
func (s *Store) notSelected(ctx context.Context, sn backend.Snapshot, what string) error {
	r, err := s.readReport(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	l := r.byID(sn.Volume.ID)
	if l == nil {
		return nil // gone meanwhile
	}
	if err := isStill(l, sn); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return backend.Because(backend.ErrBusy, "%s: LVM left it as it is; its tags are %s", what, strings.Join(l.tags, " "))
}

// busy adds who has a snapshot open.
func (s *Store) busy(ctx context.Context, sn backend.Snapshot, err error) error {
	h, readErr := s.read(ctx)
	if readErr != nil {
		return err
	}
	l := h.byID(sn.Volume.ID)
	if l == nil {
		return err
	}
	holder := s.userOf(h, l)
	if holder == "" {
		return err
	}
	return backend.Because(backend.ErrBusy, "remove %s: it is in use by %s", sn.Volume.ID, holder)
}

package lvm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
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

// Annotate implements backend.Snapshotter: all tags change in one commit of the VG's metadata.
func (s *Store) Annotate(ctx context.Context, sn backend.Snapshot, m backend.SnapshotMeta) error {
	what := "change the tags of " + sn.Volume.ID
	switch {
	case sn.Volume.Store != storeName:
		return backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", what, sn.Volume.Store)
	case sn.Foreign:
		return backend.Because(backend.ErrPermission, "%s: domfs has not made it, and there is no record in them", what)
	case m.Set != sn.Set || m.Disk.VDev != sn.Disk.VDev:
		return backend.Because(backend.ErrInvalid, "%s: what set and disk it is of never changes", what)
	}
	to, err := formatTags(m)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	from, err := formatTags(sn.SnapshotMeta)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	fault.Point("lvm.annotate.begin")
	// Most often the tags are those that the caller has read: then LVM needs to be asked but once.
	done, err := s.retag(ctx, what, sn.Volume.ID, from, to)
	const tries = 3
	for i := 0; !done && err == nil; i++ {
		if i == tries {
			return backend.Because(backend.ErrStale, "%s: something else changes them all the time: try again", what)
		}
		var all []string
		if all, err = s.readTags(ctx, sn, what); err != nil {
			return err
		}
		target := append(othersTags(all), to...)
		if add, del := changeOfTags(all, target); len(add)+len(del) == 0 {
			return nil
		}
		done, err = s.retag(ctx, what, sn.Volume.ID, all, target)
	}
	if err == nil {
		fault.Point("lvm.annotate.done")
	}
	return err
}

// retag changes the tags of an LV if it has exactly those of from; else it does nothing, and done is false.
func (s *Store) retag(ctx context.Context, what, id string, from, to []string) (done bool, err error) {
	add, del := changeOfTags(from, to)
	if len(add)+len(del) == 0 {
		return false, nil
	}
	args := []string{"--yes"}
	for _, tag := range add {
		args = append(args, "--addtag", tag)
	}
	for _, tag := range del {
		args = append(args, "--deltag", tag)
	}
	return s.change(ctx, what, "lvchange", append(args, "--select", selectExactly(from), "--", id)...)
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
	var done bool
	err := retry(ctx, func() (err error) {
		done, err = s.change(ctx, what, "lvremove", removeArgs(sn.Volume.ID, selection)...)
		return err
	})
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return nil
	case isBusy(err):
		return s.busy(ctx, sn, err)
	case err != nil:
		return err
	case !done:
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

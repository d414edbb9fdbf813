package lvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"
)

var (
	_ backend.Creator   = (*Store)(nil)
	_ backend.NewVolume = (*newVolume)(nil)
)

// What a new volume is stands in tags of its LV, until it is kept: then it is one like any other.
//
//	domfs-volume.v1
//	domfs-volume.id=3k7q2xm9p4ab   never changes
//	domfs-volume.state=pending     it may hold what was there before; or cleared: it reads as zeroes, and may be somebody's
const (
	volumeTagPrefix  = "domfs-volume."
	volumeVersionTag = volumeTagPrefix + "v1"
	volumeIDTag      = volumeTagPrefix + "id="
	volumeStateTag   = volumeTagPrefix + "state="
	volumePending    = "pending"
	volumeCleared    = "cleared"
)

// volumeState is the state of an LV that was not kept; "" of any other. A record of another version is none.
func volumeState(tags []string) string {
	if !slices.Contains(tags, volumeVersionTag) {
		return ""
	}
	for _, tag := range tags {
		if state, ok := strings.CutPrefix(tag, volumeStateTag); ok {
			return state
		}
	}
	return ""
}

// isVolumeTag tells whether a tag is of such a record.
func isVolumeTag(tag string) bool { return strings.HasPrefix(tag, volumeTagPrefix) }

// newVolume is an LV that was just made.
type newVolume struct {
	s    *Store
	l    *lv // as a report would have it, but for its UUID
	thin bool
	f    *os.File // held open: LVM removes nothing that is
}

// volumePlan is what Create found.
type volumePlan struct {
	vg    *vg
	pool  string // of a thin one
	name  string
	bytes int64
}

// Create implements backend.Creator: a linear LV in a VG, or a thin one in a thin pool, "VG:POOL". A thin one reads as zeroes from the
// beginning, as its pool zeroes what it hands out: a pool that does not is ErrUnsupported.
func (s *Store) Create(ctx context.Context, req backend.VolumeRequest) (backend.NewVolume, error) {
	what := "make a volume in " + req.Pool
	s.changes.Lock()
	defer s.changes.Unlock()
	h, err := s.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	p, err := planVolume(h, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	l := &lv{vg: p.vg, name: p.name, pool: p.pool, sizeBytes: p.bytes, stripes: 1, copies: 1, segments: 1, thinID: -1, segtype: "linear",
		tags: []string{volumeVersionTag, volumeIDTag + strings.ToLower(rand.Text()), volumeStateTag + volumePending}}
	if p.pool != "" {
		l.segtype = segThin
	}
	fault.Point("lvm.create.begin")
	if _, err := s.change(ctx, "make "+l.id(), "lvcreate", p.args(l.tags)...); err != nil {
		if errors.Is(err, backend.ErrExist) {
			return nil, err
		}
		return nil, also(err, s.removeNew(ctx, l))
	}
	fault.Point("lvm.create.created")
	v := &newVolume{s: s, l: l, thin: p.pool != ""}
	if err = awaitNode(l.path(), true); err == nil {
		v.f, err = os.OpenFile(l.path(), os.O_RDWR, 0)
		if err != nil {
			err = words.Failed("open", l.path(), err)
		}
	}
	if err != nil {
		return nil, also(fmt.Errorf("make %s: %w", l.id(), err), s.removeNew(ctx, l))
	}
	fault.Point("lvm.create.open")
	return v, nil
}

// planVolume says what a request takes, or why it cannot be had.
func planVolume(h *host, req backend.VolumeRequest) (*volumePlan, error) {
	vgName, pool, _ := strings.Cut(req.Pool, ":")
	g := h.vg(vgName)
	if g == nil {
		return nil, backend.Because(backend.ErrNoDevice, "there is no volume group %s", vgName)
	}
	if err := g.changeable(); err != nil {
		return nil, err
	}
	if req.SizeBytes <= 0 || req.SizeBytes > math.MaxInt64-g.extentBytes || g.extentBytes <= 0 {
		return nil, backend.Because(backend.ErrInvalid, "no volume can have %d bytes", req.SizeBytes)
	}
	p := &volumePlan{vg: g, pool: pool, bytes: roundUp(req.SizeBytes, g.extentBytes)}
	var err error
	if p.name, err = volumeName(g, req.Name); err != nil {
		return nil, err
	}
	if g.metadataBytes > 0 && g.metadataFreeBytes < lvRecordBytes {
		return nil, backend.Because(backend.ErrNoSpace, "VG %s has %d bytes left in its metadata area of %d: remove snapshots", g.name, g.metadataFreeBytes, g.metadataBytes)
	}
	if pool == "" {
		if p.bytes > g.freeBytes {
			return nil, noExtents("", g, p.bytes)
		}
		return p, nil
	}
	l := g.lv(pool)
	switch {
	case l == nil || l.hidden || !l.isThinPool():
		return nil, backend.Because(backend.ErrNoDevice, "there is no thin pool %s in VG %s", pool, g.name)
	case !l.zeroes():
		return nil, backend.Because(backend.ErrUnsupported, "the thin pool %s does not zero what it hands out, and the new disk would show what other guests had there: lvchange --zero y %s", l.id(), l.id())
	}
	return p, checkPool(h, g, pool, "a new volume")
}

// zeroes tells whether a thin pool zeroes the chunks that it hands out (lvs(8), the eighth of lv_attr).
func (l *lv) zeroes() bool { return len(l.attr) > 7 && l.attr[7] == 'z' }

// args are lvcreate's. It wipes known signatures before udev sees the device.
func (p *volumePlan) args(tags []string) []string {
	args := []string{"--yes", "--name", p.name, "--activate", "y", "--setactivationskip", "n"}
	if p.pool != "" {
		args = append(args, "--type", segThin, "--virtualsize", fmt.Sprintf("%db", p.bytes), "--thinpool", p.pool)
	} else {
		args = append(args, "--type", "linear", "--size", fmt.Sprintf("%db", p.bytes), "--zero", "y", "--wipesignatures", "y")
	}
	for _, tag := range tags {
		args = append(args, "--addtag", tag)
	}
	return append(args, "--", p.vg.name)
}

// selection selects the LV by its tags, whatever its state.
func (l *lv) selection() string { return selectTags("{", "}", l.tags[:2]) }

// removeNew removes a volume whose making failed.
func (s *Store) removeNew(ctx context.Context, l *lv) error {
	ctx = context.WithoutCancel(ctx)
	err := retry(ctx, func() error {
		_, err := s.change(ctx, "remove "+l.id(), "lvremove", removeArgs(l.id(), l.selection())...)
		return err
	})
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return err
}

// Volume implements backend.NewVolume.
func (v *newVolume) Volume() backend.Volume {
	return backend.Volume{Store: storeName, ID: v.l.id(), Driver: v.l.driver(), Pool: v.l.poolName(), Format: backend.FormatRaw, SizeBytes: v.l.sizeBytes, Unfinished: true}
}

// Source implements backend.NewVolume.
func (v *newVolume) Source() string { return v.l.path() }

// Clear implements backend.NewVolume.
func (v *newVolume) Clear(ctx context.Context, progress func(done, total int64)) error {
	if !v.thin {
		if err := zero(ctx, v.f, v.l.sizeBytes, progress); err != nil {
			return fmt.Errorf("clear %s: %w", v.l.id(), err)
		}
		fault.Point("lvm.create.zeroed")
	}
	v.s.changes.Lock()
	defer v.s.changes.Unlock()
	to := append(slices.Clone(v.l.tags[:2]), volumeStateTag+volumeCleared)
	change := retagging{id: v.l.id(), from: v.l.tags}
	change.add, change.del = changeOfTags(v.l.tags, to)
	left, err := v.s.retag(ctx, change)
	switch {
	case err != nil:
		return err
	case len(left) > 0:
		return backend.Because(backend.ErrStale, "clear %s: something else has removed it, or changed its tags", v.l.id())
	}
	v.l.tags = to
	fault.Point("lvm.create.cleared")
	return nil
}

// Close implements backend.NewVolume.
func (v *newVolume) Close() error {
	if err := v.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return words.Failed("close", v.l.path(), err)
	}
	return nil
}

// Keep implements backend.Creator: the tags go.
func (s *Store) Keep(ctx context.Context, v backend.Volume) error {
	what := "keep " + v.ID
	if v.Store != storeName {
		return backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", what, v.Store)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	r, err := s.readReport(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	l := r.byID(v.ID)
	if l == nil {
		return backend.Because(backend.ErrNotExist, "%s: there is no such logical volume", what)
	}
	return s.keepLV(ctx, what, l)
}

func (s *Store) keepLV(ctx context.Context, what string, l *lv) error {
	args := []string{"--yes"}
	for _, tag := range l.tags {
		if isVolumeTag(tag) {
			args = append(args, "--deltag", tag)
		}
	}
	if len(args) == 1 {
		return nil
	}
	fault.Point("lvm.keep.begin")
	_, err := s.change(ctx, what, "lvchange", append(args, "--select", `lv_uuid="`+l.uuid+`"`, "--", l.id())...)
	if err == nil {
		fault.Point("lvm.keep.done")
	}
	return err
}

// Delete implements backend.Creator.
func (s *Store) Delete(ctx context.Context, v backend.Volume) error {
	what := "remove " + v.ID
	if v.Store != storeName {
		return backend.Because(backend.ErrInvalid, "%s: it belongs to the store %q", what, v.Store)
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	h, err := s.read(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	l := h.byID(v.ID)
	if l == nil {
		return nil
	}
	if err := deleteRefusal(h, l); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fault.Point("lvm.delete.begin")
	var said string
	err = retry(ctx, func() (err error) {
		said, err = s.change(ctx, what, "lvremove", deleteArgs(l)...)
		return err
	})
	switch {
	case errors.Is(err, backend.ErrNotExist):
		return nil
	case isBusy(err):
		if h, readErr := s.read(ctx); readErr == nil && h.byID(v.ID) != nil {
			if holder := s.userOf(h, h.byID(v.ID)); holder != "" {
				return backend.Because(backend.ErrBusy, "%s: it is in use by %s", what, holder)
			}
		}
		return err
	case err != nil:
		return err
	case said == "":
		return backend.Because(backend.ErrBusy, "%s: LVM left it as it is: something else has changed it: try again", what)
	}
	fault.Point("lvm.delete.done")
	return nil
}

// deleteArgs are lvremove's for an LV that is no origin of thick snapshots, which would be removed with it.
func deleteArgs(l *lv) []string {
	return []string{"--yes", "--select", `lv_uuid="` + l.uuid + `" && lv_attr!~"^[oO]"`, "--", l.id()}
}

// deleteRefusal says why an LV is not to be removed.
func deleteRefusal(h *host, l *lv) error {
	if err := l.vg.changeable(); err != nil {
		return err
	}
	switch {
	case l.isPart():
		return backend.Because(backend.ErrUnsupported, "it is a part of other volumes")
	case l.isSnapshot():
		return backend.Because(backend.ErrUnsupported, "it is a snapshot: remove it with lvremove if nobody needs it")
	}
	const most = 8
	var names []string
	for _, sn := range l.vg.lvs {
		if sn.origin != l.name || sn.hidden {
			continue
		}
		if len(names) == most {
			names = append(names, "others")
			break
		}
		names = append(names, sn.id())
	}
	if len(names) > 0 {
		return backend.Because(backend.ErrBusy, "it has snapshots, or is what they begin with: %s", strings.Join(names, ", "))
	}
	return nil
}

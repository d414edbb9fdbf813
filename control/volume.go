package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"domfs/backend"

	"go.uber.org/zap"
)

// VolumeRef says which volume of the tree is meant, stable over restarts: a disk of a
// domain (SetID empty) or of a snapshot set, and in it the partition numbers to descend by. A volume that
// lies over all of the disks, as an Assembler found it, has no VDev.
type VolumeRef struct {
	Domain string // the domain's name, for a live disk
	SetID  string
	VDev   string
	Path   string // "" the disk, "p1", "p1/p5"; without VDev "lvm/vg0/root", "lvm/vg0/root/p1"
}

// maxPartDepth is how deep partition tables are followed into partitions.
const maxPartDepth = 4

// parsePath reads a VolumeRef's Path.
func parsePath(path string) ([]int, error) {
	if path == "" {
		return nil, nil
	}
	var out []int
	for name := range strings.SplitSeq(path, "/") {
		digits, ok := strings.CutPrefix(name, "p")
		n, err := strconv.ParseInt(digits, 10, 32)
		if !ok || err != nil || !isDigits(digits) || digits[0] == '0' || len(out) == maxPartDepth {
			return nil, unrecorded{fmt.Errorf("no partition is called %s: %w", oneLine(path), backend.ErrNotExist)}
		}
		out = append(out, int(n))
	}
	return out, nil
}

// unrecorded is an error that is no failure to be recorded: a name looked up in vain, or
// what has been recorded where it happened.
type unrecorded struct{ error }

func (e unrecorded) Unwrap() error { return e.error }

// Volume opens a disk, or a partition in one, and acquires it: the caller must Release it.
// Volumes are cached: opening the same one again is cheap. A live volume whose Generation changed is
// opened anew. While a snapshot is filling it waits, until ctx ends; if its copy fails,
// ErrIO, and if it is removed meanwhile (or another daemon's copy of it failed), ErrNotExist. A failure to open is recorded (Failed), but for
// that of a drive without a medium.
func (h *Host) Volume(ctx context.Context, ref VolumeRef) (*Volume, error) {
	where := origin{domain: ref.Domain}
	v, err := h.volume(ctx, ref, &where)
	return v, h.openFailed(&where, err)
}

// openFailed records that what is at where cannot be opened, and returns err.
func (h *Host) openFailed(where *origin, err error) error {
	var quiet unrecorded
	switch {
	case err == nil:
		return nil
	case where.frozen && errors.Is(err, backend.ErrNotExist):
		return err // removed while it was opened
	case errors.As(err, &quiet), errors.Is(err, context.Canceled), errors.Is(err, errClosing):
		return err
	}
	return h.Failed(where.domain, "open", err)
}

func (h *Host) volume(ctx context.Context, ref VolumeRef, where *origin) (*Volume, error) {
	path, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	v, err := h.acquire(ctx, ref, where)
	if err != nil {
		return nil, err
	}
	below := v
	if ref.VDev == "" {
		below, err = v.disk.groupVolume(path.kind, path.group, path.name)
	}
	for _, n := range path.parts {
		if err != nil {
			break
		}
		below, err = below.child(n)
	}
	if err != nil {
		v.Release()
		return nil, err
	}
	return below, nil // the reference is the disk's, so it went along
}

// acquire opens the disk that ref is on, or what lies over all of them, and acquires it.
func (h *Host) acquire(ctx context.Context, ref VolumeRef, where *origin) (*Volume, error) {
	// Between finding and acquiring, the disk may be closed again.
	const tries = 5
	for range tries {
		v, err := h.volumes.acquire(ctx, ref, where)
		if err != nil {
			return nil, err
		}
		if v != nil {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%s changes faster than it can be opened: %w", ref.disk(), backend.ErrBusy)
}

// disk names the disk that ref is on.
func (r VolumeRef) disk() string {
	if r.VDev == "" {
		return "what lies over the disks"
	}
	return "disk " + r.VDev
}

// origin is where the bytes of a disk come from.
type origin struct {
	volume   backend.Volume
	frozen   bool
	overflow bool // a snapshot that becomes invalid when its reserve is used up
	running  bool
	domain   string // what failures are filed under
	snapshot string
	disk     string // for messages: "disk xvda of web01"
	read     time.Time
}

// resolve finds the volume that ref's disk is, and waits for it if it is being copied.
func (h *Host) resolve(ctx context.Context, ref VolumeRef, o *origin) error {
	if ref.SetID == "" {
		return h.resolveLive(ctx, ref, o)
	}
	for {
		inv, err := h.Inventory(ctx)
		if err != nil {
			return err
		}
		d, s := inv.set(ref.SetID)
		switch {
		case s == nil, s.State == backend.SnapshotRemoving:
			return unrecorded{fmt.Errorf("the snapshot is gone: %w", backend.ErrNotExist)}
		}
		k := s.Disk(ref.VDev)
		if k == nil {
			return unrecorded{fmt.Errorf("snapshot %s has no disk %s: %w", s.Name, ref.VDev, backend.ErrNotExist)}
		}
		*o = origin{volume: k.Volume, frozen: true, overflow: k.ReserveBytes > 0, domain: d.domainName(), snapshot: s.Name, read: inv.began,
			disk: fmt.Sprintf("disk %s in snapshot %s of %s", ref.VDev, s.Name, d.Name)}
		switch {
		case k.State == backend.SnapshotInvalid:
			return o.invalid(k)
		case k.State == backend.SnapshotFilling:
			if err := h.waitFilled(ctx, ref.SetID, o.disk); err != nil {
				return err
			}
			continue
		case k.Volume.Err != nil:
			return fmt.Errorf("%s: %w", o.disk, k.Volume.Err)
		}
		return nil
	}
}

// invalid says that a snapshot has become invalid.
func (o *origin) invalid(k *backend.Snapshot) error {
	return backend.Because(backend.ErrIO, "%s is invalid: %s", o.disk, invalidity(k))
}

// invalidity is why a snapshot has become invalid: what its store says, or else what happens to one that
// is kept by copying on write.
func invalidity(k *backend.Snapshot) string {
	if k.Volume.Err != nil {
		return k.Volume.Err.Error()
	}
	return "its copy-on-write space has filled up"
}

// fillPoll is how often it is looked whether a copy that another daemon makes has ended.
const fillPoll = 300 * time.Millisecond

func (h *Host) waitFilled(ctx context.Context, setID, disk string) error {
	f := h.fills.find(setID)
	if f == nil {
		t := time.NewTimer(fillPoll)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-h.done.Done():
			return errClosing
		case <-ctx.Done():
			return contextError(ctx, disk+" is still being copied")
		}
	}
	select {
	case <-f.done:
		if f.err != nil {
			return unrecorded{f.err}
		}
		return nil
	case <-ctx.Done():
		return contextError(ctx, disk+" is still being copied")
	}
}

func (h *Host) resolveLive(ctx context.Context, ref VolumeRef, o *origin) error {
	inv, err := h.Inventory(ctx)
	if err != nil {
		return err
	}
	d := inv.Domain(ref.Domain)
	if d == nil {
		return unrecorded{fmt.Errorf("there is no domain %s: %w", ref.Domain, backend.ErrNotExist)}
	}
	i := d.Disk(ref.VDev)
	if i < 0 {
		return unrecorded{fmt.Errorf("%s has no disk %s: %w", ref.Domain, ref.VDev, backend.ErrNotExist)}
	}
	*o = origin{volume: d.Volumes[i], running: d.isRunning(), domain: d.Name, read: inv.began,
		disk: fmt.Sprintf("disk %s of %s", ref.VDev, d.Name)}
	if err := o.volume.Err; err != nil {
		err = fmt.Errorf("%s: %w", o.disk, err)
		if NoMedium(d.Disks[i], o.volume) {
			h.log.Debug("no medium", zap.String("domain", d.Name), zap.String("disk", ref.VDev))
			return unrecorded{err}
		}
		return err
	}
	return nil
}

// NoMedium tells whether a disk is an empty CD-ROM drive: that its volume cannot be opened is no
// failure then.
func NoMedium(d backend.Disk, v backend.Volume) bool {
	return d.CDROM && d.Source == "" && errors.Is(v.Err, backend.ErrNoDevice)
}

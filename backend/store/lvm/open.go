package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"domfs/backend"
	"domfs/backend/blockdev"
	"domfs/backend/proc"

	"go.uber.org/zap"
)

// resumeWait is how long Open waits for a suspended device: making a snapshot suspends its origin for an instant.
const resumeWait = 3 * time.Second

// recheckEvery is how often, at most, device-mapper is asked about a snapshot whose reads fail.
const recheckEvery = time.Second

// handles are our own open devices of one volume.
type handles struct {
	open   int // guarded by Store.mu
	moving int // that are being opened or closed; guarded by Store.mu
	// fault is why reads must fail, nil while they need not: the page cache may still have what was read while the
	// snapshot was valid.
	fault   atomic.Pointer[string]
	checked atomic.Int64 // when a failed read last asked; Unix nanoseconds
}

// Open opens a volume or a snapshot. What nobody can write to, as its device is read-only, is read through the
// page cache and, but for a thick snapshot, can be spliced; all else is read past it. A thick snapshot is found out
// after each read if it has become invalid (see validity), and a spliced reply cannot be taken back.
func (s *Store) Open(ctx context.Context, v backend.Volume) (backend.Device, error) {
	if v.Store != storeName {
		return nil, backend.Because(backend.ErrInvalid, "open %s: it belongs to the store %q", v.ID, v.Store)
	}
	format, err := backend.FindFormat(s.formats, v.Format)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.ID, err)
	}
	vgName, name, ok := strings.Cut(v.ID, "/")
	if !ok {
		return nil, backend.Because(backend.ErrInvalid, "open %q: it is no VG and LV", v.ID)
	}
	if err := s.absent(); err != nil {
		return nil, fmt.Errorf("open %s: %w", v.ID, err)
	}
	s.beginOpen(1)
	defer s.beginOpen(-1)
	dm, err := s.readDevices(ctx)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.ID, err)
	}
	dev := dm.byName[dmName(vgName, name)]
	if dev == nil || !isLV(dev) {
		return nil, s.whyNot(ctx, v)
	}
	if c, ok := dev.cow(); ok && c.fault != "" {
		return nil, backend.Because(backend.ErrIO, "open snapshot %s: %s", v.ID, c.fault)
	}
	if err := s.awaitResumed(ctx, v.ID, dev.rdev()); err != nil {
		return nil, err
	}
	d, err := s.openDevice(v.ID, dev)
	if err != nil {
		return nil, err
	}
	return blockdev.OpenImage(d, v.ID, format)
}

// beginOpen counts those at work.
func (s *Store) beginOpen(n int) {
	s.mu.Lock()
	s.opening += n
	s.mu.Unlock()
}

// anyOpen tells whether a volume is open, or may be by what Open has asked device-mapper already.
func (s *Store) anyOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.opened) > 0 || s.opening > 0
}

// isLV tells whether a device is that of a logical volume, and not a layer of one or anything else.
func isLV(dev *device) bool {
	id, ok := strings.CutPrefix(dev.UUID, dmPrefix)
	return ok && len(id) == 2*lvmUUIDLength
}

// whyNot is why a volume has no device.
func (s *Store) whyNot(ctx context.Context, v backend.Volume) error {
	h, err := s.read(ctx)
	if err != nil {
		return fmt.Errorf("open %s: %w", v.ID, err)
	}
	l := h.byID(v.ID)
	if l == nil {
		return backend.Because(backend.ErrNotExist, "open %s: there is no such logical volume", v.ID)
	}
	if err := l.unreadable(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return fmt.Errorf("open: %w", l.inactive())
}

// openDevice opens a device and counts it.
func (s *Store) openDevice(id string, dev *device) (backend.Device, error) {
	s.mu.Lock()
	h := s.opened[dev.UUID]
	if h == nil {
		h = &handles{}
		s.opened[dev.UUID] = h
		s.noteInvalidLocked(s.lastDM) // of a read that began after Open's own
	}
	h.moving++
	s.mu.Unlock()

	frozen := s.sysfsText(dev.rdev(), "ro") == "1"
	d, err := blockdev.Open(dev.path(), blockdev.Options{Direct: !frozen, Hints: hints})
	if err == nil && s.sysfsText(dev.rdev(), "dm/uuid") != dev.UUID {
		// Its number was given to another one, which cannot happen any more once it is open.
		d.Close()
		err = backend.Because(backend.ErrStale, "open %s: it was removed just now", id)
	}
	s.settle(dev.UUID, h, err == nil)
	if err != nil {
		return nil, err
	}
	_, isCOW := dev.cow()
	o := &openVolume{Device: d, store: s, id: id, uuid: dev.UUID, handles: h, isCOW: isCOW}
	if dev.isThick() {
		o.validity = s.watchOver(id, dev.UUID)
		return o, nil
	}
	if l, ok := d.(backend.Locator); ok {
		return &openFrozen{openVolume: o, locator: l}, nil
	}
	return o, nil
}

// isThick tells whether a device is a thick snapshot.
func (v *device) isThick() bool { return len(v.Targets) == 1 && v.Targets[0].Type == segSnapshot }

// watchOver is the validity of a thick snapshot that is being opened. Its first read asks: Open did so before the events
// were armed.
func (s *Store) watchOver(id, uuid string) *validity {
	v := &validity{ask: func() (string, error) { return s.askCOW(uuid) }}
	var err error
	if v.events, err = s.events(s.control); err != nil {
		s.log.Warn("device-mapper's events cannot be had: a snapshot's state is asked for after each read, which is slow", zap.String("volume", id), zap.Error(err))
	}
	return v
}

// settle ends the opening of a device.
func (s *Store) settle(uuid string, h *handles, isOpen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.moving--
	if isOpen {
		h.open++
	}
	if h.open+h.moving == 0 {
		delete(s.opened, uuid)
	}
}

// ours counts our own open devices of a volume.
func (s *Store) ours(uuid string) (open, moving int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.opened[uuid]; h != nil {
		return h.open, h.moving
	}
	return 0, 0
}

// openVolume is an open volume or snapshot.
type openVolume struct {
	backend.Device
	store   *Store
	id      string
	uuid    string
	handles *handles
	isCOW   bool
	// validity is of a thick snapshot; nil of anything else.
	validity *validity
	closing  sync.Once
}

// ReadAt fails once the snapshot is known to be invalid, and so does a read that was under way as it became so.
func (o *openVolume) ReadAt(p []byte, off int64) (int, error) {
	if err := o.invalid(); err != nil {
		return 0, err
	}
	n, err := o.Device.ReadAt(p, off)
	if err != nil && o.isCOW && errors.Is(err, backend.ErrIO) {
		o.store.recheck(o.handles)
	}
	if o.validity != nil && o.invalid() == nil {
		fault, unknown := o.validity.check()
		switch {
		case errors.Is(unknown, backend.ErrStale):
			return 0, fmt.Errorf("read snapshot %s: %w", o.id, unknown)
		case unknown != nil: // the reason's own errno would not say what has failed: the read
			return 0, backend.Because(backend.ErrIO, "read snapshot %s: it is not known whether it is valid still: %v", o.id, unknown)
		case fault != "":
			o.handles.fault.Store(&fault)
		}
	}
	if err := o.invalid(); err != nil {
		return 0, err
	}
	return n, err
}

func (o *openVolume) invalid() error {
	if fault := o.handles.fault.Load(); fault != nil {
		return backend.Because(backend.ErrIO, "read snapshot %s: %s", o.id, *fault)
	}
	return nil
}

// Close closes the device once.
func (o *openVolume) Close() (err error) {
	o.closing.Do(func() {
		o.store.mu.Lock()
		o.handles.open--
		o.handles.moving++
		o.store.mu.Unlock()
		err = o.Device.Close()
		if o.validity != nil {
			o.validity.close()
		}
		o.store.settle(o.uuid, o.handles, false)
	})
	return err
}

// openFrozen is one that nobody can write to, and that stays true: no thick snapshot.
type openFrozen struct {
	*openVolume
	locator backend.Locator
}

// Locate implements backend.Locator. What must not be read lies nowhere, so that ReadAt is asked, and fails.
func (o *openFrozen) Locate(off, length int64) (backend.Location, bool) {
	if o.invalid() != nil {
		return backend.Location{}, false
	}
	return o.locator.Locate(off, length)
}

// noteInvalid makes reads of open snapshots fail that are invalid.
func (s *Store) noteInvalid(d *devices) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastDM == nil || d.began.After(s.lastDM.began) {
		s.lastDM = d
	}
	s.noteInvalidLocked(d)
}

// noteInvalidLocked is called with mu held. What was invalid once stays so.
func (s *Store) noteInvalidLocked(d *devices) {
	for uuid, h := range s.opened {
		dev := d.byUUID[uuid]
		if dev == nil {
			continue
		}
		if c, ok := dev.cow(); ok && c.fault != "" {
			h.fault.Store(&c.fault)
		}
	}
}

// recheck asks whether a snapshot whose read failed has become invalid, for the error to say it, and for
// what is in the page cache to be read no more.
func (s *Store) recheck(h *handles) {
	now := time.Now().UnixNano()
	last := h.checked.Load()
	if now-last < int64(recheckEvery) || !h.checked.CompareAndSwap(last, now) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	if _, err := s.readDevices(ctx); err != nil {
		s.log.Debug("a read of a snapshot failed, and it is not known whether it is valid")
	}
}

// awaitResumed waits until neither a device nor one below it is suspended: a read would wait, and nothing could
// interrupt it.
func (s *Store) awaitResumed(ctx context.Context, id string, rdev uint64) error {
	deadline := time.Now().Add(resumeWait)
	for s.isSuspended(blockdev.SysPath(s.sysfs, rdev), maxLayers) {
		if time.Now().After(deadline) {
			return fmt.Errorf("open: %w", errSuspended(id))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("open %s, which is suspended: %w", id, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Bounds of a search below a device: LVM's devices have few layers, of few devices each.
const (
	maxLayers = 8
	maxSlaves = 256
)

func (s *Store) isSuspended(folder string, layers int) bool {
	if text, err := os.ReadFile(filepath.Join(folder, "dm/suspended")); err == nil && strings.TrimSpace(string(text)) == "1" {
		return true
	}
	if layers == 0 {
		return false
	}
	for _, below := range proc.List(filepath.Join(folder, "slaves"), maxSlaves) {
		if s.isSuspended(filepath.Join(folder, "slaves", below), layers-1) {
			return true
		}
	}
	return false
}

// sysfsText is an attribute of a device, "" if it has none.
func (s *Store) sysfsText(rdev uint64, attribute string) string {
	text, err := os.ReadFile(filepath.Join(blockdev.SysPath(s.sysfs, rdev), attribute))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"

	"golang.org/x/sys/unix"
)

var (
	_ backend.Store       = (*Store)(nil)
	_ backend.Snapshotter = (*Store)(nil)
	_ backend.Filler      = (*Store)(nil)
	_ backend.Resizer     = (*Store)(nil)
)

// The modes of a copy: while it is being filled, and for good. Which of them it has
// tells, durably, whether all its bytes are there.
const (
	modeFilling  = 0o600
	modeComplete = 0o400
)

// Snapshot implements backend.Snapshotter: the state of what it returns is filling if Fill must
// copy the bytes. If it fails, nothing is left.
func (s *Store) Snapshot(ctx context.Context, req backend.SnapshotRequest, g backend.Guard) (backend.Snapshot, error) {
	if err := s.checkRequest(req); err != nil {
		return backend.Snapshot{}, err
	}
	own, origin, err := s.guardOf(g, req.Origin.ID)
	if err != nil {
		return backend.Snapshot{}, err
	}
	m := member{folder: filepath.Dir(req.Origin.ID), set: req.Meta.Set, vdev: req.Meta.Disk.VDev}
	s.changes.Lock()
	defer s.changes.Unlock()
	set, err := makeSet(m.folder, m.set)
	if err != nil {
		_ = pruneSet(m.folder, m.set) // it can fail only as makeSet did
		return backend.Snapshot{}, err
	}
	defer set.Close()
	fault.Point("image.snapshot.folder")
	snap, err := s.makeMember(set, m, req, own, origin)
	if err != nil {
		return backend.Snapshot{}, also(err, pruneSet(m.folder, m.set))
	}
	return snap, nil
}

// makeMember makes a copy and its manifest; on failure it removes both.
func (s *Store) makeMember(set *dir, m member, req backend.SnapshotRequest, g *guard, origin *guardedImage) (snap backend.Snapshot, err error) {
	for _, name := range []string{m.vdev + manifestSuffix, m.vdev + imageSuffix} {
		if _, err := set.stat(name); err == nil {
			return snap, backend.Because(backend.ErrExist, "snapshot %s: %s is there already", req.Origin.ID, filepath.Join(set.path, name))
		}
	}
	temp := tempName(m.vdev + imageSuffix)
	if err := set.unlink(temp); err != nil {
		return snap, err
	}
	f, err := set.open(temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, modeFilling)
	if err != nil {
		return snap, failed("make", m.path(), err)
	}
	defer f.Close()
	defer func() {
		if err == nil {
			return
		}
		// The manifest goes first: with it, the copy would be listed.
		for _, name := range []string{m.vdev + manifestSuffix, temp, m.vdev + imageSuffix} {
			err = also(err, set.unlink(name))
		}
		err = also(err, set.sync())
	}()
	if err := lockCopy(f, unix.LOCK_EX); err != nil {
		return snap, fmt.Errorf("make %s: %w", m.path(), err)
	}
	fault.Point("image.snapshot.created")
	filling, err := fillLater(f, req, g, origin)
	if err != nil {
		return snap, err
	}
	if !filling {
		if err := f.Chmod(modeComplete); err != nil {
			return snap, failed("protect", m.path(), err)
		}
	}
	fault.Point("image.snapshot.cloned")
	if err := f.Sync(); err != nil {
		return snap, failed("write", m.path(), err)
	}
	fault.Point("image.snapshot.synchronised")
	if err := set.rename(temp, m.vdev+imageSuffix); err != nil {
		return snap, err
	}
	if err := set.sync(); err != nil {
		return snap, err
	}
	fault.Point("image.snapshot.renamed")
	st, err := statFile(f, m.path())
	if err != nil {
		return snap, err
	}
	if err := g.hold(f, m.path(), idOf(st)); err != nil {
		return snap, err
	}
	man := newManifest(pending(req.Meta), req.Origin.ID, st.Size)
	if err := s.describeCopy(man, f, st, filling, origin); err != nil {
		return snap, err
	}
	if err := man.write(set, "snapshot"); err != nil {
		return snap, err
	}
	snap = snapshotOf(m, man, st)
	if filling {
		snap.State = backend.SnapshotFilling
	} else {
		snap.UsedBytes = 0 // all is shared yet
	}
	return snap, nil
}

// describeCopy records in the manifest what a copy that is not raw says of itself. One that is yet to be
// filled has no bytes: its origin, which is kept unwritten, has them.
func (s *Store) describeCopy(man *manifest, f *os.File, st *unix.Stat_t, filling bool, origin *guardedImage) error {
	if origin.format == nil {
		return nil
	}
	top := chainFile{f: f, st: st, path: f.Name(), folder: filepath.Dir(origin.path), format: origin.format}
	if filling {
		top.f, top.path = origin.f, origin.path
	}
	c, err := s.openChain(top)
	if err != nil {
		return err
	}
	defer c.closeBacking()
	man.GuestBytes, man.Backing = c.sizeBytes(), c.record()
	return nil
}

// fillLater clones origin into f if that can be done, else reserves the space of a copy: then it returns
// true.
func fillLater(f *os.File, req backend.SnapshotRequest, g *guard, origin *guardedImage) (bool, error) {
	if origin.reflink {
		err := cloneFile(f, origin.f)
		if err == nil {
			return false, origin.broken()
		}
		if !cannotClone(err) {
			return false, failed("clone", origin.path, err)
		}
	}
	if g.running || origin.kept == unkept {
		return false, origin.cannotCopy(g.s, req.Meta.DomainName, g.running, "")
	}
	return true, reserveSpace(f, origin.f, origin.path, origin.seen.size)
}

// snapshotOf describes a snapshot whose copy has the status st, nil if it is missing.
func snapshotOf(m member, man *manifest, st *unix.Stat_t) backend.Snapshot {
	snap := backend.Snapshot{
		SnapshotMeta: man.meta(),
		Origin:       string(man.Origin),
		Volume: backend.Volume{
			Store:     storeName,
			ID:        m.path(),
			Driver:    driverName,
			Format:    man.format(),
			Pool:      poolName(m.folder),
			SizeBytes: man.guestBytes(),
		},
	}
	switch {
	case st == nil:
		snap.Volume.Err = fmt.Errorf("%s: the copy of this snapshot %w: remove the snapshot", m.path(), backend.ErrNotExist)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != man.SizeBytes:
		snap.Volume.Err = backend.Because(backend.ErrCorrupt, "%s is no file of %d bytes, as this snapshot's copy was: remove the snapshot", m.path(), man.SizeBytes)
	default:
		snap.UsedBytes = st.Blocks * 512
		snap.Volume.Generation = versionOf(st).generation()
		if snap.Volume.Format == "raw" {
			snap.Path = m.path()
		}
		return snap
	}
	if snap.State != backend.SnapshotRemoving {
		snap.State = backend.SnapshotInvalid
	}
	return snap
}

// Snapshots implements backend.Snapshotter. A folder or manifest that cannot be used is
// logged, and hides no other.
func (s *Store) Snapshots(ctx context.Context) ([]backend.Snapshot, error) {
	var snaps []backend.Snapshot
	var looks []usageLook
	var records *recordCheck
	for _, folder := range s.knownFolders() {
		err := s.eachSet(folder, func(_ *dir, set *dir, setName string) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			names, err := set.names(maxSetFiles)
			if err != nil {
				if !errors.Is(err, backend.ErrNotExist) { // removed meanwhile
					s.warn(set.path, "snapshot set cannot be read", err)
				}
				return nil
			}
			for _, name := range names {
				vdev, ok := strings.CutSuffix(name, manifestSuffix)
				if !ok || !validName(vdev) {
					continue
				}
				man, err := s.readManifest(set, setName, vdev)
				if err != nil {
					s.warnUnread(set, name, err)
					continue
				}
				st, err := set.stat(vdev + imageSuffix)
				if err != nil {
					// It may have been removed since; then the manifest says so by now.
					st = nil
					if man, err = s.readManifest(set, setName, vdev); err != nil {
						s.warnUnread(set, name, err)
						continue
					}
				}
				m := member{folder, setName, vdev}
				snaps = append(snaps, snapshotOf(m, man, st))
				if snaps[len(snaps)-1].Volume.Err == nil && st.Mode&0o777 == modeComplete {
					looks = append(looks, usageLook{index: len(snaps) - 1, m: m, version: versionOf(st)})
				}
				if len(man.Backing) > 0 {
					if records == nil {
						records = s.newRecordCheck()
					}
					invalidate(&snaps[len(snaps)-1], records.check(man.Backing))
				}
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil, fmt.Errorf("list snapshots of images: %w", ctx.Err())
		}
		if err != nil {
			s.warn(filepath.Join(folder, hiddenName), "snapshots in this folder cannot be listed", err)
		}
	}
	s.subtractShared(snaps, looks)
	slices.SortFunc(snaps, func(a, b backend.Snapshot) int { return cmp.Compare(a.Volume.ID, b.Volume.ID) })
	return snaps, nil
}

// invalidate says of a snapshot that the files behind its copy are not there as they were. It may be that they
// are again later.
func invalidate(snap *backend.Snapshot, err error) {
	if err == nil || snap.Volume.Err != nil || snap.State != backend.SnapshotActive && snap.State != backend.SnapshotFilling {
		return
	}
	snap.State = backend.SnapshotInvalid
	snap.Volume.Err = fmt.Errorf("%s: %w: restore that file, or remove the snapshot", snap.Volume.ID, err)
}

// warnUnread logs why a manifest could not be read, unless that was done, or it has just gone.
func (s *Store) warnUnread(set *dir, name string, err error) {
	if !errors.Is(err, errDamaged) && !errors.Is(err, backend.ErrNotExist) {
		s.warn(filepath.Join(set.path, name), "snapshot's manifest cannot be read", err)
	}
}

// eachSet calls f for each set's folder in the hidden folder beside the images of folder.
// A set that cannot be opened is logged.
func (s *Store) eachSet(folder string, f func(hidden, set *dir, name string) error) error {
	return withHidden(folder, func(_, hidden *dir) error {
		names, err := hidden.names(maxSets)
		if errors.Is(err, backend.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if !validName(name) {
				continue
			}
			set, err := hidden.sub(name)
			if errors.Is(err, backend.ErrNotExist) {
				continue // removed meanwhile
			}
			if err != nil {
				s.warn(filepath.Join(hidden.path, name), "snapshot set cannot be read", err)
				continue
			}
			err = f(hidden, set, name)
			set.Close()
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// memberOf finds where a snapshot lies.
func memberOf(snap backend.Snapshot) (member, error) {
	m, ok := memberAt(snap.Volume.ID)
	if !ok || snap.Volume.Store != storeName {
		return m, backend.Because(backend.ErrInvalid, "%s is no snapshot of an image", snap.Volume.ID)
	}
	return m, nil
}

// Annotate implements backend.Snapshotter. A snapshot whose bytes are not all there cannot
// become active, and one whose set another daemon is making not removing: ErrBusy.
func (s *Store) Annotate(ctx context.Context, all ...backend.Annotation) error {
	for _, a := range all {
		if err := s.annotate(a.Snapshot, a.Meta); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) annotate(snap backend.Snapshot, meta backend.SnapshotMeta) error {
	m, err := memberOf(snap)
	if err != nil {
		return err
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	if meta.State == backend.SnapshotRemoving {
		if err := s.checkSetNotMade(m); err != nil {
			return err
		}
	}
	return s.annotateLocked(m, meta, "annotate")
}

// annotateLocked rewrites a manifest. changes is held.
func (s *Store) annotateLocked(m member, meta backend.SnapshotMeta, op string) error {
	set, err := openSet(m.folder, m.set)
	if err != nil {
		return err
	}
	defer set.Close()
	old, err := s.readManifest(set, m.set, m.vdev)
	if err != nil {
		return err
	}
	if meta.Set != m.set || meta.Disk.VDev != m.vdev {
		return backend.Because(backend.ErrInvalid, "annotate %s: a snapshot cannot move to the set %q or the disk %q", m.path(), meta.Set, meta.Disk.VDev)
	}
	if meta.State == backend.SnapshotActive {
		st, err := set.stat(m.vdev + imageSuffix)
		if err != nil {
			return failed("annotate", m.path(), err)
		}
		if st.Mode&0o200 != 0 {
			return backend.Because(backend.ErrInvalid, "annotate %s: its bytes have not all been copied", m.path())
		}
	}
	if meta.State == backend.SnapshotInvalid {
		meta.State = old.State // that is found out anew each time
	}
	man := newManifest(meta, string(old.Origin), old.SizeBytes)
	if man.format() != old.format() {
		return backend.Because(backend.ErrInvalid, "annotate %s: a %s snapshot cannot become %s", m.path(), old.format(), man.format())
	}
	man.GuestBytes, man.Backing = old.GuestBytes, old.Backing
	return man.write(set, op)
}

// Remove implements backend.Snapshotter. The manifest says removing before the first byte
// goes, and goes last. A set that another daemon is making is ErrBusy.
func (s *Store) Remove(ctx context.Context, snap backend.Snapshot) error {
	m, err := memberOf(snap)
	if err != nil {
		return err
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	set, err := openSet(m.folder, m.set)
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer set.Close()
	if err := s.checkSetNotMade(m); err != nil {
		return err
	}
	old, err := s.readManifest(set, m.set, m.vdev)
	switch {
	case err == nil && old.State != backend.SnapshotRemoving:
		meta := old.meta()
		meta.State = backend.SnapshotRemoving
		// On a full disk there is no room to say so. Then the manifest goes first: what
		// is left if that is interrupted, Repair removes.
		if err := s.annotateLocked(m, meta, "remove"); errors.Is(err, backend.ErrNoSpace) {
			if err := removeFile(set, m.vdev+manifestSuffix); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	case err != nil && !errors.Is(err, backend.ErrNotExist) && !errors.Is(err, errDamaged):
		return err
	}
	for _, name := range []string{m.vdev + imageSuffix, m.vdev + manifestSuffix} {
		if err := removeFile(set, name); err != nil {
			return err
		}
		fault.Point("image.remove.unlinked")
	}
	if err := pruneSet(m.folder, m.set); err != nil {
		return err
	}
	fault.Point("image.remove.folder")
	return nil
}

// removeFile removes a file durably.
func removeFile(set *dir, name string) error {
	if err := set.unlink(name); err != nil {
		return err
	}
	return set.sync()
}

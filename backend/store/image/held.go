package image

import (
	"errors"
	"os"
	"strings"

	"domfs/backend"

	"golang.org/x/sys/unix"
)

// heldCopy is a copy that this store is making, and that its guard keeps locked (flock(2))
// until it is released: by that another daemon, whose host's lock may be another file, knows
// it from what a crash left.
type heldCopy struct {
	f       *os.File
	id      fileID
	filling bool // guarded by Store.mu
}

// hold keeps the lock on a copy, which f has, until the guard is released.
func (g *guard) hold(f *os.File, path string, id fileID) error {
	fd := -1
	err := control(f, func(from int) (err error) {
		fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return failed("lock", path, err)
	}
	c := &heldCopy{f: os.NewFile(uintptr(fd), path), id: id}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.released {
		c.f.Close()
		return backend.Because(backend.ErrStale, "snapshot %s: its guard was released", path)
	}
	g.copies = append(g.copies, c)
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	g.s.held[id] = c
	return nil
}

func (c *heldCopy) release(s *Store) {
	s.mu.Lock()
	delete(s.held, c.id)
	s.mu.Unlock()
	// A child that was just forked may hold the descriptor a little longer than we do.
	_ = control(c.f, func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) })
	c.f.Close()
}

// beginFill makes sure that nobody else fills a copy, until end is called.
func (s *Store) beginFill(f *os.File, path string, id fileID) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.held[id]
	if c == nil {
		return nil, backend.Because(backend.ErrInvalid, "fill %s: it was not reserved under this guard", path)
	}
	if c.filling {
		return nil, backend.Because(backend.ErrBusy, "fill %s: it is being filled already", path)
	}
	c.filling = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.filling = false
	}, nil
}

// lockCopy takes the lock that says that a copy is being made, until f is closed.
func lockCopy(f *os.File, how int) error {
	err := control(f, func(fd int) error { return unix.Flock(fd, how|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return backend.ErrBusy
	}
	return nil // a filesystem without locks has no second host's daemon either
}

// checkNotMade is ErrBusy if another daemon is making a copy, or this one is filling it.
func (s *Store) checkNotMade(set *dir, name string) error {
	path := set.path + "/" + name
	f, err := set.open(name, unix.O_RDONLY, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return nil // nothing that can be made
	}
	if err != nil {
		return failed("open", path, err)
	}
	defer f.Close()
	st, err := statFile(f, path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	c := s.held[idOf(st)]
	filling := c != nil && c.filling
	s.mu.Unlock()
	if filling {
		return backend.Because(backend.ErrBusy, "%s is being filled: wait for it", path)
	}
	if c == nil && lockCopy(f, unix.LOCK_SH) != nil {
		return backend.Because(backend.ErrBusy, "%s is being made by another daemon: wait for it", path)
	}
	return nil
}

// checkSetNotMade is ErrBusy if any copy of m's set is being made elsewhere, whatever folder it is
// in. Folders that cannot be read are another matter.
func (s *Store) checkSetNotMade(m member) error {
	folders := map[string]bool{m.folder: true}
	for _, folder := range s.knownFolders() {
		folders[folder] = true
	}
	for _, folder := range sortedKeys(folders) {
		if err := s.checkFolderNotMade(folder, m.set); errors.Is(err, backend.ErrBusy) {
			return err
		}
	}
	return nil
}

func (s *Store) checkFolderNotMade(folder, setName string) error {
	set, err := openSet(folder, setName)
	if err != nil {
		return err
	}
	defer set.Close()
	names, err := set.names(maxSetFiles)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, imageSuffix) {
			continue
		}
		if err := s.checkNotMade(set, name); errors.Is(err, backend.ErrBusy) {
			return err
		}
	}
	return nil
}

package lvm

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"domfs/backend"
	"domfs/backend/run"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// lookAgain is how long a host that lacks LVM's tools is not asked for them again.
const lookAgain = time.Minute

// absent says why there is no LVM here to be asked, nil if there is. Most machines that domfs is tried on have none: that
// is no error, and costs two system calls.
func (s *Store) absent() error {
	why := s.lacks()
	s.mu.Lock()
	defer s.mu.Unlock()
	if why == nil && time.Now().Before(s.missingUntil) {
		why = s.missing
	}
	if why != nil && !s.saidAbsent {
		s.saidAbsent = true
		if len(s.o.VGs) > 0 {
			s.log.Warn("there is none of the volume groups that were asked for", zap.Strings("vg", s.o.VGs), zap.Error(why))
		} else {
			s.log.Debug("no logical volumes are looked for", zap.Error(why))
		}
	}
	if why == nil {
		s.saidAbsent = false
	}
	return why
}

// lacks looks for device-mapper. Its control node alone says little: it is there before the module is.
func (s *Store) lacks() error {
	if _, err := os.Stat(filepath.Join(s.sysfs, "class/misc/device-mapper")); err != nil {
		return backend.Because(backend.ErrUnsupported, "this host's kernel has no device-mapper")
	}
	if err := unix.Access(s.control, unix.R_OK|unix.W_OK); err != nil {
		return words.Failed("ask device-mapper through", s.control, err)
	}
	return nil
}

// remember notes that a tool is not installed, and tells whether that is what err says.
func (s *Store) remember(err error) bool {
	var e *run.Error
	if !errors.As(err, &e) || e.Err == nil || !errors.Is(e.Err, backend.ErrNotExist) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing = backend.Because(backend.ErrUnsupported, "%s is not installed: install the package lvm2", e.Argv[0])
	s.missingUntil = time.Now().Add(lookAgain)
	return true
}

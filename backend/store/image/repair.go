package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"domfs/backend"
	"domfs/backend/fault"

	"go.uber.org/zap"
)

// Repair implements backend.Snapshotter: it removes temporary files, copies without a manifest, and empty
// folders. What it does not know the name of stays, as does a copy whose manifest
// cannot be read: it may be another version's. Nothing outside of .domfs folders is touched.
func (s *Store) Repair(ctx context.Context) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	var errs []error
	for _, folder := range s.knownFolders() {
		if err := s.repairFolder(ctx, folder); err != nil {
			errs = append(errs, fmt.Errorf("repair %s: %w", filepath.Join(folder, hiddenName), err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) repairFolder(ctx context.Context, folder string) error {
	err := s.eachSet(folder, func(hidden, set *dir, name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.repairSet(set); err != nil {
			return err
		}
		return hidden.rmdirIfEmpty(name)
	})
	if err != nil {
		return err
	}
	return withHidden(folder, func(top, hidden *dir) error {
		if err := hidden.unlink(tempName("probe")); err != nil {
			return err
		}
		return top.rmdirIfEmpty(hiddenName)
	})
}

func (s *Store) repairSet(set *dir) error {
	names, err := set.names(maxSetFiles)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, name := range names {
		there[name] = true
	}
	changed := false
	for _, name := range names {
		if !isStray(name, there) || errors.Is(s.checkNotMade(set, name), backend.ErrBusy) {
			continue
		}
		if err := set.unlink(name); err != nil {
			return err
		}
		fault.Point("image.repair.unlinked")
		changed = true
		s.log.Info("removed what a crash left", zap.String("volume", filepath.Join(set.path, name)))
	}
	if !changed {
		return nil
	}
	return set.sync()
}

// isStray tells whether a file in a set's folder is one of ours that no snapshot accounts for.
func isStray(name string, there map[string]bool) bool {
	if inner, ok := strings.CutSuffix(name, tempSuffix); ok {
		inner, ok = strings.CutPrefix(inner, ".")
		if !ok {
			return false
		}
		vdev, isImage := strings.CutSuffix(inner, imageSuffix)
		if !isImage {
			if vdev, ok = strings.CutSuffix(inner, manifestSuffix); !ok {
				return false
			}
		}
		return validName(vdev)
	}
	vdev, ok := strings.CutSuffix(name, imageSuffix)
	return ok && validName(vdev) && !there[vdev+manifestSuffix]
}

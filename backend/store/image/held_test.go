package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"domfs/backend"
)

func TestRemove_LeavesASetThatAnotherDaemonMakes(t *testing.T) {
	base := t.TempDir()
	var paths []string
	for _, name := range []string{"a", "b"} {
		folder := filepath.Join(base, name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, "disk.img")
		sparseImage(t, path, 1<<20, 0)
		paths = append(paths, path)
	}
	folders := []string{filepath.Dir(paths[0]), filepath.Dir(paths[1])}
	s := New(folders, nil, nil)
	s.noReflink = true
	done := mustActive(t, s, paths[0], "set1")   // of one disk nothing is left to do
	g, queued := filling(t, s, paths[1], "set1") // of the other the copy has not begun
	orphan := filepath.Join(folders[1], hiddenName, "set1", "xvdz.img")
	if err := os.WriteFile(orphan, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	other := New(folders, nil, nil)
	removing := func(snap backend.Snapshot) backend.SnapshotMeta {
		meta := snap.SnapshotMeta
		meta.State = backend.SnapshotRemoving
		return meta
	}
	for _, snap := range []backend.Snapshot{done, queued} {
		if err := other.Annotate(t.Context(), snap.With(removing(snap))); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("another daemon's Annotate of %s as removing = %v, want ErrBusy", snap.Volume.ID, err)
		}
		if err := other.Remove(t.Context(), snap); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("another daemon's Remove of %s = %v, want ErrBusy", snap.Volume.ID, err)
		}
	}
	// As it would look to Repair before the manifest is written.
	manifest := filepath.Join(folders[1], hiddenName, "set1", "xvda.json")
	if err := os.Rename(manifest, manifest+".away"); err != nil {
		t.Fatal(err)
	}
	if err := other.Repair(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Rename(manifest+".away", manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Repair left %s (%v): this test shows nothing", orphan, err)
	}
	if err := s.Fill(t.Context(), queued, g, nil); err != nil {
		t.Errorf("Fill = %v", err)
	}
	meta := queued.SnapshotMeta
	meta.State = backend.SnapshotActive
	if err := s.Annotate(t.Context(), queued.With(meta)); err != nil {
		t.Error(err)
	}
	g.Release()
	for _, snap := range []backend.Snapshot{done, queued} {
		if err := other.Annotate(t.Context(), snap.With(removing(snap))); err != nil {
			t.Errorf("Annotate once it is made = %v", err)
		}
		if err := other.Remove(t.Context(), snap); err != nil {
			t.Errorf("Remove once it is made = %v", err)
		}
	}
	for _, folder := range folders {
		noStray(t, folder)
	}
	if len(s.held) != 0 {
		t.Errorf("%d copies are still locked", len(s.held))
	}
}

func TestRemove_TakesBackWhatTheSameDaemonMakes(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "web-01.img")
	sparseImage(t, path, 1<<20, 0)
	s := New(nil, nil, nil)
	g, snap := filling(t, s, path, "set1")
	meta := snap.SnapshotMeta
	meta.State = backend.SnapshotRemoving
	if err := s.Annotate(t.Context(), snap.With(meta)); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), snap); err != nil {
		t.Error(err)
	}
	noStray(t, folder)
	if err := s.Fill(t.Context(), snap, g, nil); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Fill of what was removed = %v, want ErrNotExist", err)
	}
}

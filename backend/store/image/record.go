package image

import (
	"errors"
	"fmt"
	"time"

	"domfs/backend"
)

// recordedFile is a file behind a snapshot's copy, as it was when that was made. The device
// that it lies on is no part of it: its number may be another one after a reboot.
type recordedFile struct {
	Path      text      `json:"path"` // without symbolic links
	Inode     uint64    `json:"inode"`
	SizeBytes int64     `json:"size_bytes"`
	ModTime   time.Time `json:"mtime"`
}

// record is what a manifest keeps of the files behind a copy.
func (c chain) record() []recordedFile {
	var files []recordedFile
	for i := range c[1:] {
		k := &c[1+i]
		files = append(files, recordedFile{text(k.path), k.st.Ino, k.st.Size, time.Unix(k.st.Mtim.Unix()).UTC()})
	}
	return files
}

// changed says why a file is not the one that was recorded.
func (r *recordedFile) changed(now *recordedFile) error {
	switch {
	case now.Path != r.Path:
		return backend.Because(backend.ErrIO, "its backing file is %s now, and was %s", now.Path, r.Path)
	case now.Inode != r.Inode:
		return backend.Because(backend.ErrIO, "its backing file %s was replaced by another file", r.Path)
	case now.SizeBytes != r.SizeBytes:
		return backend.Because(backend.ErrIO, "its backing file %s has %d bytes now, and had %d", r.Path, now.SizeBytes, r.SizeBytes)
	case !now.ModTime.Equal(r.ModTime):
		return backend.Because(backend.ErrIO, "its backing file %s was written to", r.Path)
	}
	return nil
}

// checkChain says why the files behind a copy are not those that were recorded.
func checkChain(c chain, recorded []recordedFile) error {
	now := c.record()
	if len(now) != len(recorded) {
		return backend.Because(backend.ErrIO, "it has %d backing files, and had %d", len(now), len(recorded))
	}
	for i := range recorded {
		if err := recorded[i].changed(&now[i]); err != nil {
			return err
		}
	}
	return nil
}

// recordCheck looks at recorded files, each once.
type recordCheck struct {
	folders []namedFolder
	found   map[text]foundFile
}

type foundFile struct {
	now recordedFile
	err error
}

func (s *Store) newRecordCheck() *recordCheck {
	return &recordCheck{folders: s.namedFolders(), found: map[text]foundFile{}}
}

// check says why a snapshot cannot be read any more with what is behind its copy.
func (k *recordCheck) check(files []recordedFile) error {
	for i := range files {
		r := &files[i]
		now, ok := k.found[r.Path]
		if !ok {
			now = k.look(string(r.Path))
			k.found[r.Path] = now
		}
		if now.err != nil {
			return now.err
		}
		if err := r.changed(&now.now); err != nil {
			return err
		}
	}
	return nil
}

func (k *recordCheck) look(path string) (f foundFile) {
	l, err := openBeneath(k.folders, path)
	if _, outside := asOutside(err); outside {
		return foundFile{err: outsideError("it", path, path, k.folders)}
	}
	if errors.Is(err, backend.ErrNotExist) {
		return foundFile{err: backend.Because(backend.ErrIO, "its backing file %s is gone", path)}
	}
	if err != nil {
		return foundFile{err: fmt.Errorf("its backing file %s: %w", path, err)}
	}
	defer l.at.Close()
	if err := l.checkRegular(); err != nil {
		return foundFile{err: fmt.Errorf("its backing file %s: %w", path, err)}
	}
	c := chain{{}, {path: l.path, st: l.st}}
	return foundFile{now: c.record()[0]}
}

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"domfs/backend"
	"domfs/backend/fault"

	"golang.org/x/sys/unix"
)

const (
	// chunkBytes is how much is copied between two looks at the guard: little
	// enough that a writer that waits for the lease waits for an instant.
	chunkBytes = 1 << 20
	// flushBytes is how much may be written before it is sent to the disk, so that the last
	// synchronisation does not take minutes.
	flushBytes = 128 << 20
	// progressEvery is how often progress is reported.
	progressEvery = 500 * time.Millisecond
)

// Fill implements backend.Filler: it copies the image's data ranges into the space that Snapshot
// reserved. It ends with ErrBusy as soon as the guard is broken.
func (s *Store) Fill(ctx context.Context, snap backend.Snapshot, g backend.Guard, progress func(done, total int64)) error {
	m, err := memberOf(snap)
	if err != nil {
		return err
	}
	_, origin, err := s.guardOf(g, snap.Origin)
	if err != nil {
		return err
	}
	to, st, err := s.openCopy(m, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer to.Close()
	end, err := s.beginFill(to, m.path(), idOf(st))
	if err != nil {
		return err
	}
	defer end()
	if origin.kept == unkept || st.Size != origin.seen.size {
		return backend.Because(backend.ErrInvalid, "fill %s: its space was not reserved for %s", m.path(), origin.path)
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var done, total, flushed int64
	err = dataRanges(origin.f, origin.path, st.Size, func(_, length int64) error { total += length; return nil })
	if err != nil {
		return err
	}
	progress(0, total)
	reported := time.Now()
	buf := make([]byte, chunkBytes)
	err = dataRanges(origin.f, origin.path, st.Size, func(off, length int64) error {
		for end := off + length; off < end; {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("fill %s: %w", m.path(), context.Cause(ctx))
			}
			b := buf[:min(chunkBytes, end-off)]
			if n, err := origin.f.ReadAt(b, off); n < len(b) {
				if errors.Is(err, io.EOF) {
					return backend.Because(backend.ErrStale, "read %s: it was truncated to %d bytes", origin.path, off+int64(n))
				}
				return failed("read", origin.path, err)
			}
			// These bytes count only if nobody could write to the image before they were read.
			if err := origin.broken(); err != nil {
				return err
			}
			if _, err := to.WriteAt(b, off); err != nil {
				return failed("write", m.path(), err)
			}
			off += int64(len(b))
			done += int64(len(b))
			fault.Point("image.fill.chunk")
			if done-flushed >= flushBytes {
				flushed = done
				if err := control(to, unix.Fdatasync); err != nil {
					return failed("write", m.path(), err)
				}
			}
			if time.Since(reported) >= progressEvery {
				reported = time.Now()
				progress(done, total)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if origin.kept == watched {
		if who := s.watchedWriter(origin); who != "" {
			return backend.Because(backend.ErrBusy, "%s is in use by %s, so that its snapshot cannot be completed", origin.path, who)
		}
	}
	if err := origin.broken(); err != nil {
		return err
	}
	// From here on the image may be written: every byte has been read.
	if err := to.Sync(); err != nil {
		return failed("write", m.path(), err)
	}
	fault.Point("image.fill.synchronised")
	if err := to.Chmod(modeComplete); err != nil {
		return failed("protect", m.path(), err)
	}
	if err := to.Sync(); err != nil {
		return failed("write", m.path(), err)
	}
	fault.Point("image.fill.complete")
	progress(total, total)
	return nil
}

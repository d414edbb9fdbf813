package ext4

import (
	"errors"
	"fmt"
	"time"

	"domfs/backend"
)

// adviceNotReplayed ends the warnings about changes that are not seen. It is for a snapshot as well as for
// the disk of a domain that is off.
const adviceNotReplayed = "files may be missing, old or half-changed. Start the guest so that it recovers the filesystem, or run e2fsck in it; " +
	"then look at its disk when it is shut down, or at a snapshot that is taken with it shut down or its filesystem frozen"

func (fs *FS) warn(format string, args ...any) {
	fs.warnings = append(fs.warnings, fmt.Sprintf(format, args...))
}

// recoverJournal makes of a filesystem that was in use what the kernel would make of it
// when it mounts it, in memory only. What the journal does not give is told in warnings.
func (fs *FS) recoverJournal() error {
	if fs.sb.compat&compatHasJournal == 0 {
		fs.warn("the filesystem asks for the replay of a journal, and has none: %s", adviceNotReplayed)
		return nil
	}
	if fs.sb.journalIno == 0 {
		return fmt.Errorf("ext4: the filesystem was in use, and its journal lies on another device, which is not read: "+
			"start the guest so that it recovers the filesystem and shut it down, or run e2fsck with the journal's device: %w", backend.ErrUnsupported)
	}
	before := fs.sb
	j, err := fs.openJournal()
	if err == nil {
		err = fs.replay(j)
		j.close()
	}
	switch {
	case err == nil:
		return nil
	case unreadable(err):
		fs.dropOverlay()
		fs.sb, fs.lastWrite = before, time.Time{}
		fs.cache.clear()
		fs.warn("the journal was not replayed: %v; changes that are only in it are not seen, and %s", err, adviceNotReplayed)
		return nil
	}
	return fmt.Errorf("ext4: journal: %w", err)
}

// maxInodeSeconds is the last moment that an inode's time stamps can be.
const maxInodeSeconds = 1<<34 - 1<<31 - 1

// wroteAt tells of a moment at which the guest has written. One that no time stamp can be is passed over.
func (fs *FS) wroteAt(sec, nsec uint64) {
	if sec > maxInodeSeconds || nsec > nsecMax {
		return
	}
	if t := time.Unix(int64(sec), int64(nsec)); t.After(fs.lastWrite) {
		fs.lastWrite = t
	}
}

// recoveryTime is what recovery sets times to: the latest moment at which the superblock, the
// journal or its fast commits were written. The clock of the host is no part of it, so that what is seen
// of a snapshot is the same whenever it is opened.
func (fs *FS) recoveryTime() time.Time {
	t := time.Unix(min(fs.sb.written, maxInodeSeconds), 0)
	if fs.lastWrite.After(t) {
		t = fs.lastWrite
	}
	return t
}

// unreadable tells an error that is about the filesystem from one of reading the device,
// after which another try may help.
func unreadable(err error) bool {
	return errors.Is(err, backend.ErrCorrupt) || errors.Is(err, backend.ErrUnsupported) || errors.Is(err, backend.ErrStale)
}

// replay lays what the journal holds over the device.
func (fs *FS) replay(j *journal) error {
	blocks, damage, err := j.replay()
	if err != nil {
		return err
	}
	fs.over.replayed = blocks
	fs.wroteAt(j.committed.sec, j.committed.nsec)
	fs.over.seal()
	if err := fs.reload(); err != nil {
		return err
	}
	if damage.rest != nil {
		fs.warn("the journal is damaged: %v; what was committed before is seen, later changes are not, and %s", damage.rest, adviceNotReplayed)
	}
	if damage.skipped > 0 {
		fs.warn("the journal is damaged, and %d of its blocks were not replayed: %v; %s", damage.skipped, damage.first, adviceNotReplayed)
	}
	if j.errno != 0 {
		fs.warn("the guest's kernel gave the journal up with error %d: the guest should run e2fsck", j.errno)
		fs.sb.state |= stateErrors // as the kernel does
	}
	if damage.rest != nil || j.start == 0 {
		return fs.cleanOrphans()
	}
	if err := fs.replayFastCommits(j); err != nil {
		return err
	}
	return fs.cleanOrphans()
}

// reload reads the superblock as it is under the overlay, and forgets what was read
// before.
func (fs *FS) reload() error {
	fs.cache.clear()
	fs.runs.forget()
	b := make([]byte, superBytes)
	if err := fs.readAt(b, superOffset); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	sb, err := parseSuper(b)
	switch {
	case isCorrupt(err) && fs.sb.copyOf != 0:
		return nil // a copy was read, and the journal has none that is better
	case err != nil:
		return fmt.Errorf("after the replay: %w", err)
	}
	if sb.blockBits != fs.sb.blockBits {
		return corrupt("the journal has a superblock with blocks of %d bytes, not %d", sb.blockBytes(), fs.sb.blockBytes())
	}
	fs.sb = sb
	return nil
}

package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"domfs/backend"
)

// Fast commits: Documentation/filesystems/ext4/journal.rst, "Fast commits". They follow
// the last transaction of the log in an area of their own, as tags that each tell of one change, and are
// replayed by doing what they tell of: what the kernel does, with what it leaves undone.
const (
	fcAddRange = 1
	fcDelRange = 2
	fcCreate   = 3
	fcLink     = 4
	fcUnlink   = 5
	fcInode    = 6
	fcPad      = 7
	fcTail     = 8
	fcHead     = 9

	fcTagBytes     = 4 // type and length
	fcRangeBytes   = 16
	fcDeleteBytes  = 12
	fcDirentBytes  = 8 // before the name
	fcInodeBytes   = 4 // before the inode
	fcTailBytes    = 8
	fcHeadBytes    = 8
	fcKinds        = fcHead + 1
	fcInodeCopied  = inodeBlockAt // of an inode, what is before its blocks is replayed
	fcMaxInodeTags = 1 << 17      // inodes that are remembered

	// fcMaxBytes and fcMaxTags bound the fast commits that are read. The kernel's own area has 256 blocks,
	// mke2fs gives the largest journal that it makes unasked 16 MiB, and a tag of a range takes 20 bytes.
	fcMaxBytes = 64 << 20
	fcMaxTags  = 1 << 20
)

var fcNames = [fcKinds]string{"none", "add range", "delete range", "create", "link", "unlink", "inode", "pad", "tail", "head"}

// fcLengthRight tells whether a tag may have so many bytes.
func (s *super) fcLengthRight(kind uint16, n int) bool {
	switch kind {
	case fcAddRange:
		return n == fcRangeBytes
	case fcDelRange:
		return n == fcDeleteBytes
	case fcCreate, fcLink, fcUnlink:
		return n > fcDirentBytes && n <= fcDirentBytes+nameMax
	case fcInode:
		return n >= fcInodeBytes+minInodeBytes && n <= fcInodeBytes+int(s.inodeBytes)
	case fcPad:
		return true
	case fcTail:
		return n >= fcTailBytes
	case fcHead:
		return n == fcHeadBytes
	}
	return false
}

// fcTags calls f with each tag of a block until it returns false; right is false where the
// tags end with one that is none.
func (s *super) fcTags(b []byte, f func(kind uint16, whole, value []byte) bool) (right bool) {
	le := binary.LittleEndian
	for len(b) >= fcTagBytes {
		kind, n := le.Uint16(b), int(le.Uint16(b[2:]))
		if n > len(b)-fcTagBytes || !s.fcLengthRight(kind, n) {
			return false
		}
		if !f(kind, b[:fcTagBytes+n], b[fcTagBytes:fcTagBytes+n]) {
			return true
		}
		b = b[fcTagBytes+n:]
	}
	return true
}

// fcArea is what a scan of the area found: how many of its tags are of fast commits that
// were written to their ends.
type fcArea struct {
	tags int
	full bool // they go on to the area's last block

	changed backend.Time // the latest ctime of the inodes that they hold
}

// fcChanged is the ctime of an inode of a tag, of which the end may be cut off.
func fcChanged(raw []byte) backend.Time {
	in := inode{}
	if len(raw) > minInodeBytes+2 {
		in.extra = min(int(binary.LittleEndian.Uint16(raw[inodeExtraAt:])), len(raw)-minInodeBytes)
	}
	return in.time(raw, inodeCtimeAt, inodeCtimeExtraAt)
}

// fcRun is the run that a tag adds to a file.
func fcRun(value []byte) run {
	var node [2 * extentBytes]byte
	copy(node[extentBytes:], value[4:])
	return extentNode(node[:]).run(0)
}

// scanFastCommits finds the fast commits after a transaction. read reads the n-th of the
// area's blocks, into the same slice if it likes. An error is one with which the kernel does not mount the filesystem.
func (s *super) scanFastCommits(blocks uint32, tid uint32, read func(n uint32) ([]byte, error)) (fcArea, error) {
	le := binary.LittleEndian
	var area fcArea
	var seen int
	var changed backend.Time
	var crc uint32
	for n := range blocks {
		if uint64(n)<<s.blockBits >= fcMaxBytes {
			return fcArea{}, fmt.Errorf("%w: there are more than %d MiB of fast commits", errTooMuch, fcMaxBytes>>20)
		}
		b, err := read(n)
		if err != nil {
			return fcArea{}, err
		}
		if n == 0 && le.Uint16(b) != fcHead {
			return area, nil
		}
		var wrong error
		stop := false
		right := s.fcTags(b, func(kind uint16, whole, value []byte) bool {
			if seen++; seen > fcMaxTags {
				wrong = fmt.Errorf("%w: the fast commits have more than %d tags", errTooMuch, fcMaxTags)
				return false
			}
			switch kind {
			case fcTail:
				crc = crc32c(crc, whole[:fcTagBytes+4])
				if t, sum := le.Uint32(value), le.Uint32(value[4:]); t != tid || sum != crc {
					wrong = corrupt("fast commits: block %d: the first one ends with transaction %d and checksum 0x%08x, not %d and 0x%08x", n, t, sum, tid, crc)
					return false
				}
				area.tags, area.changed = seen, changed
				crc = 0
				return true
			case fcHead:
				if features := le.Uint32(value); features != 0 {
					wrong = fmt.Errorf("fast commits: block %d: features 0x%x are not known: %w", n, features, backend.ErrUnsupported)
					return false
				}
				if le.Uint32(value[4:]) != tid {
					stop = true
					return false
				}
			case fcInode:
				if t := fcChanged(value[fcInodeBytes:]); t.Sec > changed.Sec || t.Sec == changed.Sec && t.Nsec > changed.Nsec {
					changed = t
				}
			}
			crc = crc32c(crc, whole)
			return true
		})
		if !right {
			wrong = corrupt("fast commits: block %d: a tag that is none, before the end of the first one", n)
		}
		switch {
		case stop, wrong != nil && area.tags > 0 && !errors.Is(wrong, backend.ErrUnsupported) && !errors.Is(wrong, errTooMuch):
			return area, nil
		case wrong != nil:
			return fcArea{}, wrong
		}
	}
	if area.tags == 0 && blocks > 0 {
		return fcArea{}, corrupt("fast commits: none of them ends in their %d blocks", blocks)
	}
	area.full = area.tags > 0
	return area, nil
}

// replayFastCommits does in memory what the fast commits after the last transaction tell
// of. What it cannot do is told in warnings.
func (fs *FS) replayFastCommits(j *journal) error {
	if j.fastCommitBlocks == 0 {
		return nil
	}
	b := make([]byte, fs.sb.blockBytes())
	read := func(n uint32) ([]byte, error) {
		return b, j.read(j.fastCommitFirst+n, b)
	}
	area, err := fs.sb.scanFastCommits(j.fastCommitBlocks, j.nextTID, read)
	if err == nil && area.tags == 0 {
		return nil
	}
	fs.wroteAt(uint64(area.changed.Sec), uint64(area.changed.Nsec))
	r := fcReplay{e: newEditor(fs)}
	if err == nil {
		err = r.replay(area, j.fastCommitBlocks, read)
	}
	switch {
	case err == nil:
		r.e.finish()
		fs.fastCommits, fs.fcDeleted = r.done, r.deleted
		if area.full {
			fs.warn("the guest's kernel does not mount the filesystem as it is, as its area for fast commits is full; they were all replayed here, and the guest should run e2fsck")
		}
		if r.stopped != nil {
			fs.warn("the guest's kernel would not mount the filesystem: %v; what later fast commits hold is not seen, and %s", r.stopped, adviceNotReplayed)
		}
		return nil
	case told(err):
		r.e.discard()
		fs.warn("the journal's fast commits were not replayed: %v; changes that are only in them are not seen, and %s", err, adviceNotReplayed)
		return nil
	}
	return err
}

// fcReplay is a replay.
type fcReplay struct {
	e        *editor
	done     [fcKinds]int // tags, by their kind
	modified []uint32     // inodes, in the order in which they were first met
	known    map[uint32]bool
	next     map[uint32]uint32 // of inodes that tags hold: the next orphan that each had before
	deleted  map[uint32]uint32 // the same of inodes that were deleted
	stopped  error             // of the tag that ended the replay
}

func (r *fcReplay) replay(area fcArea, blocks uint32, read func(n uint32) ([]byte, error)) error {
	r.known, r.next, r.deleted = map[uint32]bool{}, map[uint32]uint32{}, map[uint32]uint32{}
	if err := r.excludeAdded(area, blocks, read); err != nil {
		return err
	}
	var failed error
	err := r.each(area, blocks, read, func(kind uint16, value []byte) bool {
		if failed = r.tag(kind, value); failed != nil {
			failed = fmt.Errorf("fast commits: %s: %w", fcNames[kind], failed)
			return false
		}
		r.done[kind]++
		return true
	})
	if err != nil {
		return err
	}
	if failed != nil {
		if !errors.Is(failed, errFastCommit) {
			return failed
		}
		r.stopped = failed
	}
	return r.markUsed()
}

// each calls f with the tags of an area until it returns false.
func (r *fcReplay) each(area fcArea, blocks uint32, read func(n uint32) ([]byte, error), f func(kind uint16, value []byte) bool) error {
	left := area.tags
	for n := uint32(0); n < blocks && left > 0; n++ {
		b, err := read(n)
		if err != nil {
			return err
		}
		r.e.fs.sb.fcTags(b, func(kind uint16, _, value []byte) bool {
			if left--; !f(kind, value) {
				left = 0
			}
			return left > 0
		})
	}
	return nil
}

// excludeAdded keeps new blocks out of all that tags say files have.
func (r *fcReplay) excludeAdded(area fcArea, blocks uint32, read func(n uint32) ([]byte, error)) error {
	var runs []blockRange // one for each tag at most
	end := r.e.fs.sb.blocks
	err := r.each(area, blocks, read, func(kind uint16, value []byte) bool {
		if kind != fcAddRange {
			return true
		}
		x := fcRun(value)
		run := blockRange{x.phys, min(x.phys+x.blocks, end)}
		if run.first >= run.end {
			return true
		}
		if n := len(runs); n > 0 && run.first >= runs[n-1].first && run.first <= runs[n-1].end {
			runs[n-1].end = max(runs[n-1].end, run.end)
			return true
		}
		runs = append(runs, run)
		return true
	})
	r.e.exclude = newBlockSet(runs)
	return err
}

// errFastCommit is for a tag with which the kernel ends the replay.
var errFastCommit = errors.New("the fast commit cannot be replayed")

// tag replays one tag. What cannot be done for the guest's bytes' sake is left undone by
// the kernel, too, for most kinds.
func (r *fcReplay) tag(kind uint16, value []byte) error {
	if err := r.e.step(); err != nil {
		return err
	}
	var err error
	switch kind {
	case fcAddRange:
		err = passOver(r.addRange(value))
	case fcDelRange:
		err = passOver(r.delRange(value))
	case fcInode:
		err = passOver(r.inode(value))
	case fcCreate:
		err = stopAt(r.create(value))
	case fcLink:
		err = stopAt(r.link(value))
	case fcUnlink:
		err = stopAt(r.unlink(value))
	}
	return err
}

// passOver leaves errors that are not of the guest's bytes.
func passOver(err error) error {
	if errors.Is(err, errFastCommit) {
		return err
	}
	if errors.Is(err, backend.ErrCorrupt) || errors.Is(err, errNotThere) || errors.Is(err, errNoRoom) {
		return nil
	}
	return err
}

// stopAt makes errors of the guest's bytes those that end the replay.
func stopAt(err error) error {
	if err != nil && told(err) && !errors.Is(err, errTooMuch) && !errors.Is(err, backend.ErrUnsupported) {
		return fmt.Errorf("%w: %w", errFastCommit, err)
	}
	return err
}

func (r *fcReplay) modify(ino uint32) error {
	if r.known[ino] {
		return nil
	}
	if len(r.modified) == fcMaxInodeTags {
		return fmt.Errorf("%w: more than %d inodes", errTooMuch, fcMaxInodeTags)
	}
	r.known[ino] = true
	r.modified = append(r.modified, ino)
	return nil
}

// file returns an inode of a tag, nil if there is none: the kernel passes over such tags.
func (r *fcReplay) file(ino uint32) (*editedInode, error) {
	in, err := r.e.inode(ino, false)
	if err != nil && (errors.Is(err, backend.ErrCorrupt) || errors.Is(err, errNotThere)) {
		return nil, nil
	}
	return in, err
}

// addRange maps blocks of a file.
func (r *fcReplay) addRange(value []byte) error {
	in, err := r.file(binary.LittleEndian.Uint32(value))
	if in == nil {
		return err
	}
	if err := r.modify(in.ino); err != nil {
		return err
	}
	if in.flags()&inodeInlineData != 0 {
		return corrupt("inode %d has its content in the inode", in.ino)
	}
	sb := r.e.fs.sb
	x := fcRun(value)
	if x.blocks == 0 || x.end() > maxLogical || !sb.validRun(x.phys, x.blocks) {
		return corrupt("inode %d: the file's blocks %d+%d are blocks %d of %d", in.ino, x.logical, x.blocks, x.phys, sb.blocks)
	}
	for at := x.logical; at < x.end(); {
		if err := r.e.step(); err != nil {
			return err
		}
		old, err := in.lookup(at, x.end()-at)
		if err != nil {
			return err
		}
		if old.blocks == 0 {
			return corrupt("inode %d: the extents around the file's block %d", in.ino, at)
		}
		part := run{logical: at, blocks: old.blocks, phys: x.phys + at - x.logical, state: x.state}
		switch {
		case old.state == runHole:
			err = in.insertRun(part, true)
		case old.phys != part.phys:
			// The file had other blocks there. They are marked used again in the end
			// if the file has them elsewhere.
			if err = in.replaceRun(part); err == nil {
				err = r.e.mark(old.phys, old.blocks, false)
			}
		default:
			if err = in.replaceRun(part); err == nil {
				err = in.mergeBefore(x.end())
			}
		}
		if err != nil {
			return err
		}
		at += old.blocks
	}
	return in.mergeBefore(in.size() >> sb.blockBits)
}

// delRange frees blocks of a file.
func (r *fcReplay) delRange(value []byte) error {
	le := binary.LittleEndian
	in, err := r.file(le.Uint32(value))
	if in == nil {
		return err
	}
	if err := r.modify(in.ino); err != nil {
		return err
	}
	first, n := uint64(le.Uint32(value[4:])), uint64(le.Uint32(value[8:]))
	if n == 0 || first+n > maxLogical {
		return corrupt("inode %d: the file's blocks %d+%d are deleted", in.ino, first, n)
	}
	if !in.hasExtents() {
		return corrupt("inode %d has no extents", in.ino)
	}
	if err := in.removeRange(first, first+n); err != nil {
		return err
	}
	return in.mergeBefore(in.size() >> r.e.fs.sb.blockBits)
}

// inode sets all fields of an inode but the map of its blocks.
func (r *fcReplay) inode(value []byte) error {
	e, le := r.e, binary.LittleEndian
	ino, data := le.Uint32(value), value[fcInodeBytes:]
	old, err := r.file(ino)
	if err != nil {
		return err
	}
	if old != nil {
		if err := r.clearBitmap(old); err != nil {
			return err
		}
	}
	if err := r.modify(ino); err != nil {
		return err
	}
	in, err := e.rawInode(ino)
	if err != nil {
		return err
	}
	if _, known := r.next[ino]; !known {
		r.next[ino] = in.u32(inodeDtimeAt)
	}
	copy(in.raw[:inodeBlockAt], data)
	copy(in.raw[inodeGenerationAt:], data[inodeGenerationAt:])
	switch {
	case in.hasExtents():
		if root := extentNode(in.root()); le.Uint16(root) != extentMagic {
			root.init(extentRootRoom, 0)
		}
	case in.flags()&inodeInlineData != 0:
		copy(in.root(), data[inodeBlockAt:])
	}
	in.seal()
	if err := e.useInode(ino); err != nil {
		return err
	}
	if in.links() == 0 {
		// A deleted file that was still open. The kernel's replay ends here, and it does not mount the
		// filesystem; e2fsck goes on, and deletes the file.
		e.fs.noteUnmountable()
		return r.delete(in)
	}
	if _, err := e.inode(ino, false); err != nil {
		return fmt.Errorf("%w: %w", errFastCommit, err)
	}
	if in.flags()&inodeInlineData == 0 {
		if err := in.recount(); err != nil {
			return err
		}
	}
	in.seal()
	return nil
}

// clearBitmap marks a file's blocks free. They stay out of use until the replay's end.
func (r *fcReplay) clearBitmap(in *editedInode) error {
	if in.flags()&inodeInlineData != 0 || !in.hasExtents() {
		return nil
	}
	free := func(block, blocks uint64) error {
		if !r.e.fs.sb.validRun(block, blocks) {
			return corrupt("inode %d: blocks %d+%d of %d", in.ino, block, blocks, r.e.fs.sb.blocks)
		}
		if err := r.e.excludeRun(block, blocks); err != nil {
			return err
		}
		return r.e.mark(block, blocks, false)
	}
	return passOver(in.walkExtents(func(x run) error { return free(x.phys, x.blocks) }, func(block uint64) error { return free(block, 1) }))
}

// recount sets i_blocks to what the extents and their nodes have: the kernel leaves a
// block of attributes out.
func (in *editedInode) recount() error {
	blocks := uint64(0)
	if in.hasExtents() {
		err := in.walkExtents(func(x run) error { blocks += x.blocks; return nil }, func(uint64) error { blocks++; return nil })
		if err != nil {
			return err
		}
	}
	in.setSectors(blocks << (in.e.fs.sb.blockBits - 9))
	return nil
}

// fcDirent is the value of a tag about a name.
func fcDirent(value []byte) (parent, ino uint32, name string) {
	le := binary.LittleEndian
	return le.Uint32(value), le.Uint32(value[4:]), string(value[fcDirentBytes:])
}

// link gives an inode one more name.
func (r *fcReplay) link(value []byte) error {
	parent, ino, name := fcDirent(value)
	in, err := r.file(ino)
	if in == nil {
		return err
	}
	return r.linkTo(in, parent, name)
}

func (r *fcReplay) linkTo(in *editedInode, parent uint32, name string) error {
	dir, err := r.file(parent)
	if dir == nil {
		return err
	}
	if err := dir.addName(newName{name: name, ino: in.ino, kind: in.typ()}); err != nil {
		if errors.Is(err, errExists) {
			return nil
		}
		return err
	}
	links := in.links() + 1
	if in.typ() == backend.TypeDir && in.indexed() && (links > maxDirLinks || links == 2) {
		links = 1
	}
	in.setLinks(links)
	in.touchCtime()
	in.seal()
	return nil
}

// unlink takes an inode's name away, and deletes it if that was the last one.
func (r *fcReplay) unlink(value []byte) error {
	parent, ino, name := fcDirent(value)
	in, err := r.file(ino)
	if in == nil {
		return err
	}
	dir, err := r.file(parent)
	if dir == nil {
		return err
	}
	if err := dir.editableDir(); err != nil {
		return err
	}
	place, ok, err := dir.lookupName(name)
	if err != nil || !ok {
		return err
	}
	// The name may be another inode's by now.
	if place.ino == ino {
		if err := dir.removeName(place); err != nil {
			return err
		}
	}
	in.setLinks(in.links() - 1)
	in.touchCtime()
	in.seal()
	if in.links() == 0 {
		return r.delete(in)
	}
	return nil
}

// delete deletes an inode. What is wrong with the file stays.
func (r *fcReplay) delete(in *editedInode) error {
	next, known := r.next[in.ino]
	if !known {
		next = in.u32(inodeDtimeAt)
	}
	if len(r.deleted) == fcMaxInodeTags {
		return fmt.Errorf("%w: more than %d inodes are deleted", errTooMuch, fcMaxInodeTags)
	}
	if _, known := r.deleted[in.ino]; !known {
		r.deleted[in.ino] = next
	}
	return passOver(in.delete())
}

// create names an inode that a tag before made.
func (r *fcReplay) create(value []byte) error {
	parent, ino, name := fcDirent(value)
	if err := r.e.useInode(ino); err != nil {
		return err
	}
	in, err := r.e.inode(ino, false)
	if err != nil {
		return err
	}
	if in.typ() == backend.TypeDir {
		dir, err := r.file(parent)
		if dir == nil {
			return err
		}
		if err := in.initDir(parent); err != nil {
			return passOver(err)
		}
	}
	if err := r.linkTo(in, parent, name); err != nil {
		return err
	}
	in.setLinks(1)
	in.seal()
	return nil
}

// markUsed marks the blocks of all files that changed used: they may have been freed by
// others that had them before.
func (r *fcReplay) markUsed() error {
	use := func(block, blocks uint64) error { return r.e.mark(block, blocks, true) }
	for _, ino := range r.modified {
		in, err := r.file(ino)
		if err != nil {
			return err
		}
		if in == nil || in.flags()&inodeInlineData != 0 || !in.hasExtents() {
			continue
		}
		err = in.walkExtents(func(x run) error { return use(x.phys, x.blocks) }, func(block uint64) error { return use(block, 1) })
		if err := passOver(err); err != nil {
			return err
		}
	}
	return nil
}

// noteUnmountable warns once that the kernel does not mount the filesystem.
func (fs *FS) noteUnmountable() {
	const text = "the guest's kernel does not mount the filesystem as it is: a fast commit holds a deleted file that was still open; " +
		"the file was deleted, as e2fsck does, which the guest should run"
	if !slices.Contains(fs.warnings, text) {
		fs.warn(text)
	}
}

package ext4

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"domfs/backend"
)

// The log is replayed in three walks, as the kernel does it. The first finds its end, the
// second which blocks were revoked, the third what is to be replayed. The rules are those of the
// kernel's fs/jbd2/recovery.c:
//
//   - A transaction without a commit block, or one of another number than is due, ends the
//     log silently: the last one is half-written when a guest is stopped.
//   - A checksum that is wrong ends it silently where the commit block is older than the one
//     before: such blocks are left from an earlier use of the log.
//   - Any other is damage. The kernel refuses to mount then; here what was committed
//     before is replayed, and the rest is told.
//   - A block whose own checksum is wrong is damage, too, and is left out alone.

const (
	// maxReplayed bounds the memory of a replay: 16 bytes for each block in the log, and for each block that is
	// revoked, together.
	maxReplayed = 4 << 20
	// maxLaps bounds its time. The log is a circle: a right one is walked once, and ends at the latest
	// where it began.
	maxLaps = 2

	sparseWindowBytes = 64 << 10 // of one read where only the log's own blocks are needed
	denseWindowBytes  = 1 << 20  // where all are
)

// tidAfter tells whether a transaction is after another one. Their numbers go round.
func tidAfter(a, b uint32) bool { return int32(a-b) > 0 }

// damage is what is wrong with a log beyond its having an end.
type damage struct {
	rest    error  // why it was not replayed from transaction nextTID on; nil if it was
	skipped uint64 // blocks of what was replayed that were left out
	first   error  // why the first of them was
}

func (d *damage) skip(err error) {
	if d.skipped++; d.first == nil {
		d.first = err
	}
}

// replayer is one replay of a journal.
type replayer struct {
	*journal
	damage  damage
	tags    uint64    // how many the log has
	records uint64    // how many blocks its revoke blocks name
	revoked []revoked // ascending, each block once

	// What is to be replayed. Until all is found, replayedBlock.journal has the place in the log above orderShift,
	// and below the number of the journal's own block.
	found []replayedBlock
}

const orderShift = 32

// revoked says that no copy of a block is replayed that is of the transaction or of one
// before.
type revoked struct {
	block uint64
	tid   uint32
}

// replay reads the log. It returns each block once, ascending, and sets nextTID. An error is
// about the whole: nothing is replayed then.
func (j *journal) replay() ([]replayedBlock, damage, error) {
	j.nextTID = j.sequence
	if j.start == 0 {
		return nil, damage{}, nil
	}
	p := replayer{journal: j}
	for _, walk := range []func() error{p.scan, p.reserve, p.findRevoked, p.collect} {
		if err := walk(); err != nil {
			return nil, damage{}, err
		}
	}
	p.revoked = nil // so that its memory can be had again
	return p.result(), p.damage, nil
}

// reserve asks for the memory of the walks after the first.
func (p *replayer) reserve() error {
	return p.fs.reserve(replayedBytes * int64(p.tags+p.records))
}

// logWalk goes through the log from its first transaction on.
type logWalk struct {
	j    *journal
	next uint32 // block of the journal
	left uint64 // blocks until maxLaps are walked

	window []byte // what was read last
	at     uint32 // the journal's block that it begins with
	max    int    // bytes of it
}

func (j *journal) walk(windowBytes int) *logWalk {
	return &logWalk{j: j, next: j.start, left: maxLaps * uint64(j.last-j.first), max: max(windowBytes, j.fs.sb.blockBytes())}
}

// skip leaves blocks out, as many as the log has at most.
func (w *logWalk) skip(n uint32) error {
	circle := w.j.last - w.j.first
	if n > circle {
		return corrupt("a descriptor block at the journal's block %d describes %d blocks, more than the log's %d", w.next, n, circle)
	}
	if uint64(n) > w.left {
		return corrupt("the log has no end, as far as %d times its length", maxLaps)
	}
	w.left -= uint64(n)
	if w.next += n; w.next >= w.j.last {
		w.next -= circle
	}
	return nil
}

// read returns the next block. It stays as it is until the next call.
func (w *logWalk) read() (n uint32, b []byte, err error) {
	n = w.next
	if err := w.skip(1); err != nil {
		return 0, nil, err
	}
	bits := w.j.fs.sb.blockBits
	if n < w.at || uint64(n-w.at)<<bits >= uint64(len(w.window)) {
		size := min(uint64(w.max), uint64(w.j.last-n)<<bits)
		if uint64(cap(w.window)) < size {
			w.window = make([]byte, size)
		}
		w.window, w.at = w.window[:size], n
		err := w.j.read(n, w.window)
		if err != nil && unreadableBlock(err) && w.max > w.j.fs.sb.blockBytes() {
			// What cannot be read may be a block that is not asked for.
			w.max = w.j.fs.sb.blockBytes()
			w.window = w.window[:w.max]
			err = w.j.read(n, w.window)
		}
		if err != nil {
			w.window = w.window[:0]
			return 0, nil, err
		}
	}
	at := uint64(n-w.at) << bits
	return n, w.window[at : at+uint64(w.j.fs.sb.blockBytes())], nil
}

// logHeader is how each of the log's own blocks begins.
type logHeader struct{ kind, tid uint32 }

func parseLogHeader(b []byte) (h logHeader, ok bool) {
	be := binary.BigEndian
	return logHeader{be.Uint32(b[4:]), be.Uint32(b[8:])}, be.Uint32(b) == jbd2Magic
}

// windowBytes is how much is read at once where the contents of blocks are needed for
// their checksums, or are not.
func windowBytes(contents bool) int {
	if contents {
		return denseWindowBytes
	}
	return sparseWindowBytes
}

// scan finds the end of the log and sets nextTID to the transaction that is not replayed
// any more.
func (p *replayer) scan() error {
	s := scanner{replayer: p, walk: p.walk(windowBytes(p.checksumsTransactions())), tid: p.sequence, sum: ^uint32(0)}
	for more := true; more; {
		var err error
		if more, err = s.step(); isCorrupt(err) {
			more, p.damage.rest = false, err
		} else if err != nil {
			return err
		}
	}
	if !s.ended {
		p.nextTID = s.tid
	}
	return nil
}

// scanner is the first walk.
type scanner struct {
	*replayer
	walk     *logWalk
	tid      uint32 // the transaction that the walk is in
	sum      uint32 // of the transaction so far, version 1
	wrong    error  // a checksum in the transaction, about which its commit block decides
	lastTime uint64 // of the commit before
	ended    bool   // nextTID is set, and what follows tells only whether that is damage
}

// step looks at the log's next own block. It returns whether more follow; what is
// corrupt ends the log.
func (s *scanner) step() (more bool, err error) {
	_, b, err := s.walk.read()
	if err != nil {
		return false, err
	}
	if s.tags+s.records > maxReplayed {
		return false, fmt.Errorf("the log has and revokes more than %d blocks: %w", maxReplayed, backend.ErrUnsupported)
	} else if h, ok := parseLogHeader(b); !ok || h.tid != s.tid {
		return false, nil
	} else if h.kind == journalDescriptor {
		return true, s.descriptor(b)
	} else if h.kind == journalRevoke {
		return true, s.revoke(b)
	} else if h.kind == journalCommit {
		return s.commit(b)
	}
	return false, nil
}

func (s *scanner) descriptor(b []byte) error {
	if !s.tailRight(b) {
		s.wrong = corrupt("transaction %d: the checksum of a descriptor block is wrong", s.tid)
	}
	n := s.countTags(b)
	s.tags += uint64(n)
	if !s.checksumsTransactions() || s.ended {
		return s.walk.skip(n)
	}
	s.sum = crc32BE(s.sum, b)
	for range n {
		_, b, err := s.walk.read()
		if err != nil {
			return err
		}
		s.sum = crc32BE(s.sum, b)
	}
	return nil
}

func (s *scanner) revoke(b []byte) error {
	if !s.tailRight(b) {
		s.wrong = corrupt("transaction %d: the checksum of a revoke block is wrong", s.tid)
	}
	records, size, ok := s.revokes(b)
	if !ok {
		return corrupt("transaction %d: a revoke block has more records than room", s.tid)
	}
	s.records += uint64(len(records) / size)
	return nil
}

func (s *scanner) commit(b []byte) (more bool, err error) {
	moment := parseCommitMoment(b)
	if s.wrong != nil {
		if moment.sec < s.lastTime {
			return false, nil
		}
		return false, s.wrong
	}
	right := false
	if !s.checksumsTransactions() {
		right = s.commitRight(b)
	} else if !s.ended {
		right = commitSumRight(b, s.sum)
	}
	switch {
	case right && s.ended:
		// Written before the commit of the transaction that has ended the log, it would be
		// a half-written one; now that one is known to be damaged.
		s.damage.rest = corrupt("transaction %d: its checksum is wrong, and later ones were committed", s.nextTID)
	case !right && s.ended && s.checksumsTransactions():
		return false, corrupt("transaction %d: its checksum is wrong, and a later one was committed", s.nextTID)
	case !right && moment.sec < s.lastTime:
		return false, nil
	case !right:
		s.nextTID, s.ended = s.tid, true
		if s.incompat&journalIncompatAsyncCommit == 0 {
			return false, corrupt("transaction %d: the checksum of its commit block is wrong", s.tid)
		}
	}
	if !s.ended {
		s.committed = moment
	}
	s.lastTime, s.sum = moment.sec, ^uint32(0)
	s.tid++
	return true, nil
}

// each calls fn for each of the log's own blocks of what is replayed but the commit
// blocks. fn reads, or skips, what follows a descriptor block.
func (p *replayer) each(windowBytes int, fn func(w *logWalk, h logHeader, b []byte) error) error {
	w := p.walk(windowBytes)
	for tid := p.sequence; tidAfter(p.nextTID, tid); {
		n, b, err := w.read()
		if err != nil {
			return err
		}
		h, ok := parseLogHeader(b)
		if !ok || h.tid != tid {
			return corrupt("the journal's block %d has changed while it was read", n)
		}
		if h.kind == journalCommit {
			tid++
		} else if err := fn(w, h, b); err != nil {
			return err
		}
	}
	return nil
}

// findRevoked collects what the log revokes.
func (p *replayer) findRevoked() error {
	if p.records == 0 {
		return nil
	}
	p.revoked = make([]revoked, 0, p.records)
	err := p.each(sparseWindowBytes, func(w *logWalk, h logHeader, b []byte) error {
		if h.kind == journalDescriptor {
			return w.skip(p.countTags(b))
		}
		records, size, _ := p.revokes(b)
		for ; len(records) > 0 && len(p.revoked) < maxReplayed; records = records[size:] {
			block := uint64(binary.BigEndian.Uint32(records))
			if size == 8 {
				block = binary.BigEndian.Uint64(records)
			}
			p.revoked = append(p.revoked, revoked{block, h.tid})
		}
		return nil
	})
	slices.SortFunc(p.revoked, func(a, b revoked) int {
		return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(b.tid-p.sequence, a.tid-p.sequence))
	})
	p.revoked = slices.CompactFunc(p.revoked, func(a, b revoked) bool { return a.block == b.block })
	return err
}

// isRevoked tells whether a transaction's copy of a block must not be replayed.
func (p *replayer) isRevoked(block uint64, tid uint32) bool {
	i, ok := slices.BinarySearchFunc(p.revoked, block, func(r revoked, block uint64) int { return cmp.Compare(r.block, block) })
	return ok && !tidAfter(tid, p.revoked[i].tid)
}

// collect finds the blocks to replay.
func (p *replayer) collect() error {
	p.found = make([]replayedBlock, 0, p.tags)
	end := uint64(p.fs.dev.Size()) >> p.fs.sb.blockBits
	var tags []tag
	return p.each(windowBytes(p.checksumsBlocks()), func(w *logWalk, h logHeader, b []byte) error {
		if h.kind != journalDescriptor {
			return nil
		}
		tags = tags[:0]
		p.journalSuper.tags(b, func(t tag) bool {
			tags = append(tags, t)
			return true
		})
		for _, t := range tags {
			n := w.next
			var copied []byte
			var err error
			if p.checksumsBlocks() {
				_, copied, err = w.read()
			} else {
				err = w.skip(1)
			}
			switch {
			case err != nil:
				return err
			case p.isRevoked(t.block, h.tid):
			case p.checksumsBlocks() && !p.blockRight(t, h.tid, copied):
				p.damage.skip(corrupt("transaction %d: the checksum of block %d is wrong", h.tid, t.block))
			case t.block >= end:
				p.damage.skip(corrupt("transaction %d: block %d lies past the end of the device", h.tid, t.block))
			case p.owns(t.block):
				p.damage.skip(corrupt("transaction %d: block %d is one of the journal's own", h.tid, t.block))
			case len(p.found) < maxReplayed:
				r := replayedBlock{block: t.block, journal: uint64(len(p.found))<<orderShift | uint64(n)}
				if t.flags&tagEscaped != 0 {
					r.journal |= escapedBlock
				}
				p.found = append(p.found, r)
			}
		}
		return nil
	})
}

// result is the last copy of each block.
func (p *replayer) result() []replayedBlock {
	slices.SortFunc(p.found, func(a, b replayedBlock) int {
		return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(b.journal&^escapedBlock, a.journal&^escapedBlock))
	})
	p.found = slices.CompactFunc(p.found, func(a, b replayedBlock) bool { return a.block == b.block })
	for i := range p.found {
		r := &p.found[i]
		phys, _ := p.phys(uint32(r.journal))
		r.journal = phys | r.journal&escapedBlock
	}
	if len(p.found) < cap(p.found)/2 && p.fs.reserve(replayedBytes*int64(len(p.found))) == nil {
		return slices.Clone(p.found) // gives the memory of the other copies back
	}
	return p.found
}

// unreadableBlock tells an error of reading some blocks, after which fewer of them may be had.
func unreadableBlock(err error) bool {
	return !errors.Is(err, backend.ErrUnsupported) && !errors.Is(err, context.Canceled)
}

func isCorrupt(err error) bool { return errors.Is(err, backend.ErrCorrupt) }

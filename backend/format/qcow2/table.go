package qcow2

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// Bits of the entries of L1 and L2 tables (QEMU's docs/interop/qcow2, "Cluster mapping"). The rest
// are reserved, or for writers, and ignored.
const (
	entryOffset     = 0x00fffffffffffe00
	entryCompressed = 1 << 62
	entryZero       = 1
	compressedMask  = entryCompressed - 1
)

// Tables are read in pieces of at most this.
const (
	sliceBits = 16
	sliceMax  = 1 << sliceBits

	l1PageEntries = sliceMax / 8
)

const subclusters = 32 // of a cluster, with extended L2 entries

type kind uint8

const (
	unallocated kind = iota // in the backing file
	zero                    // reads as zeros, whatever the backing file has
	data                    // at an offset of the file
	compressed
	invalid
)

// content is a set of kinds.
type content uint8

func (k kind) bit() content { return 1 << k }

// run is a range of the guest's bytes that is all of one kind.
type run struct {
	kind  kind
	host  int64  // data: where it begins in the file
	entry uint64 // compressed: the L2 entry
	n     int64  // bytes
}

// joins tells whether next, which follows r, goes on like it.
func (r run) joins(next run) bool {
	if r.kind != next.kind {
		return false
	}
	switch r.kind {
	case data:
		return r.host+r.n == next.host
	case unallocated, zero:
		return true
	}
	return false
}

// mapping finds where the bytes of a guest lie, by an L1 table: the active one or a snapshot's.
type mapping struct {
	id          uint64 // of the image, in the caches
	version     uint32
	extended    bool
	clusterBits uint
	entryBits   uint // log2 of the bytes of an L2 entry
	l2Shift     uint // log2 of the bytes that an L2 table maps
	sliceShift  uint // log2 of the bytes that a slice of one maps
	sliceBytes  int  // of an L2 table that are read at once
	l1          table
	file        source
}

func newMapping(id uint64, h *header, l1 table, file source) mapping {
	slice := min(h.clusterBits, sliceBits)
	return mapping{
		id:          id,
		version:     h.version,
		extended:    h.extended(),
		clusterBits: h.clusterBits,
		entryBits:   h.l2EntryBits(),
		l2Shift:     h.clusterBits + h.l2Bits(),
		sliceShift:  h.clusterBits + slice - h.l2EntryBits(),
		sliceBytes:  1 << slice,
		l1:          l1,
		file:        file,
	}
}

func (m *mapping) clusterSize() int64 { return 1 << m.clusterBits }

// work is how much more one search may look at, in entries of tables; nil is a search without end.
type work struct{ left int64 }

func (w *work) take(n int64) {
	if w != nil {
		w.left -= n
	}
}

// lookup says what is at off, for a prefix of want bytes. With an error, the length is that of
// what cannot be found for it.
func (m *mapping) lookup(last *lastSlice, off, want int64, w *work) (run, error) {
	b, r, err := m.find(last, off, want, w)
	if b == nil {
		return r, err
	}
	r = m.runIn(b, off, want)
	w.take(1 + r.n>>m.clusterBits)
	if r.kind == invalid {
		return r, m.faulty(b, off)
	}
	return r, nil
}

// span is lookup for who does not ask where data lie: compressed and damaged clusters are data, too.
func (m *mapping) span(last *lastSlice, off, want int64, w *work) run {
	b, r, _ := m.find(last, off, want, w)
	if b == nil {
		if r.kind == invalid {
			r.kind = data
		}
		return r
	}
	const held = 1<<data | 1<<compressed | 1<<invalid
	end := min(off+want, int64(b.at+1)<<m.sliceShift)
	if b.holds&^held == 0 {
		w.take(1)
		return run{kind: data, n: end - off}
	}
	r = m.runIn(b, off, end-off)
	w.take(1 + r.n>>m.clusterBits)
	if r.kind.bit()&held == 0 {
		return r
	}
	r.kind = data
	for r.n < end-off {
		next := m.runIn(b, off+r.n, end-off-r.n)
		if next.kind.bit()&held == 0 {
			break
		}
		r.n += next.n
		w.take(1 + next.n>>m.clusterBits)
	}
	return r
}

// find returns the piece of an L2 table in which off is, or the run that it is where there is none.
func (m *mapping) find(last *lastSlice, off, want int64, w *work) (*tablePiece, run, error) {
	no := uint64(off) >> m.sliceShift
	if b := last.Load(); b != nil && b.at == no {
		return b, run{}, nil
	}
	b, free, err := m.slice(no, off, want, w)
	if err != nil {
		end := int64(no+1) << m.sliceShift
		return nil, run{kind: invalid, n: min(end-off, want)}, err
	}
	if b == nil {
		return nil, run{kind: unallocated, n: min(free, want)}, nil
	}
	last.Store(b)
	return b, run{}, nil
}

// slice returns the piece of an L2 table with the number no, in which off is. It is nil where no table is
// allocated, which goes on for free bytes at least.
func (m *mapping) slice(no uint64, off, want int64, w *work) (b *tablePiece, free int64, err error) {
	key := tableKey{image: m.id, kind: l2Slice, at: no}
	if b, ok := tables.Lookup(key); ok {
		return b, 0, nil
	}
	return m.loadSlice(key, off, want, w)
}

func (m *mapping) loadSlice(key tableKey, off, want int64, w *work) (*tablePiece, int64, error) {
	at, free, err := m.l2Table(off, want, w)
	if err != nil || at == 0 {
		return nil, free, err
	}
	inTable := int64(key.at) << m.sliceShift & (1<<m.l2Shift - 1) // guest bytes
	first := at + inTable>>m.clusterBits<<m.entryBits
	w.take(int64(m.sliceBytes >> m.entryBits))
	b, err := tables.Load(key, func() (*tablePiece, int, error) {
		entries, err := m.file.readTable(first, m.sliceBytes)
		if err != nil {
			return nil, 0, err
		}
		b := &tablePiece{at: key.at, entries: entries, holds: m.holds(entries)}
		return b, b.bytes(), nil
	})
	return b, 0, err
}

// l2Table is where the L2 table for off lies in the file, 0 if there is none for at least the next free bytes.
func (m *mapping) l2Table(off, want int64, w *work) (at, free int64, err error) {
	i := int(off >> m.l2Shift)
	if i >= m.l1.entries {
		return 0, want, nil
	}
	page, err := m.l1Page(i / l1PageEntries)
	if err != nil {
		return 0, 0, err
	}
	if at := int64(page[i%l1PageEntries] & entryOffset); at != 0 {
		if at&(m.clusterSize()-1) != 0 {
			return 0, 0, corrupt("has the L2 table for guest byte %d at byte %d, where no cluster begins: check it with qemu-img check", off, at)
		}
		if at >= m.file.size {
			return 0, 0, corrupt("has the L2 table for guest byte %d at byte %d, past its end at %d: it may have been copied incompletely", off, at, m.file.size)
		}
		return at, 0, nil
	}
	free = int64(i+1)<<m.l2Shift - off
	for j := i%l1PageEntries + 1; j < len(page) && free < want && page[j]&entryOffset == 0; j++ {
		free += 1 << m.l2Shift
		w.take(1)
	}
	return 0, free, nil
}

// l1Page is the n-th piece of the L1 table.
func (m *mapping) l1Page(n int) ([]uint64, error) {
	key := tableKey{image: m.id, kind: l1Page, at: uint64(n)}
	if b, ok := tables.Lookup(key); ok {
		return b.entries, nil
	}
	b, err := tables.Load(key, func() (*tablePiece, int, error) {
		first := int64(n) * sliceMax
		entries, err := m.file.readTable(m.l1.off+first, int(min(sliceMax, int64(m.l1.entries)*8-first)))
		if err != nil {
			return nil, 0, err
		}
		b := &tablePiece{at: key.at, entries: entries}
		return b, b.bytes(), nil
	})
	if err != nil {
		return nil, err
	}
	return b.entries, nil
}

// holds says which kinds there are in a slice of an L2 table.
func (m *mapping) holds(entries []uint64) (c content) {
	if m.extended {
		for i := 0; i < len(entries); i += 2 {
			c |= m.extendedHolds(entries[i], entries[i+1])
		}
		return c
	}
	for _, e := range entries {
		k, _ := m.decode(e)
		c |= k.bit()
	}
	return c
}

// runIn is lookup in a slice.
func (m *mapping) runIn(b *tablePiece, off, want int64) run {
	if c := b.holds; c == zero.bit() || c == unallocated.bit() {
		k := unallocated
		if c == zero.bit() {
			k = zero
		}
		end := int64(b.at+1) << m.sliceShift
		return run{kind: k, n: min(end-off, want)}
	}
	if m.extended {
		return m.runExtended(b.entries, off, want)
	}
	entries := b.entries
	i := int(off>>m.clusterBits) & (len(entries) - 1)
	in := off & (m.clusterSize() - 1)
	k, host := m.decode(entries[i])
	r := run{kind: k, n: m.clusterSize() - in}
	switch k {
	case compressed:
		r.entry = entries[i] & compressedMask
	case data:
		r.host = int64(host) + in
		for i++; r.n < want && i < len(entries); i++ {
			host += uint64(m.clusterSize())
			if entries[i]&(entryOffset|entryCompressed|entryZero) != host {
				break
			}
			r.n += m.clusterSize()
		}
	case unallocated, zero:
		for i++; r.n < want && i < len(entries); i++ {
			if next, _ := m.decode(entries[i]); next != k {
				break
			}
			r.n += m.clusterSize()
		}
	}
	r.n = min(r.n, want)
	return r
}

// decode reads an entry of an L2 table that is not extended.
func (m *mapping) decode(e uint64) (k kind, host uint64) {
	host = e & entryOffset
	switch {
	case e&entryCompressed != 0:
		return compressed, 0
	case e&entryZero != 0:
		if m.version < 3 || host&uint64(m.clusterSize()-1) != 0 {
			return invalid, 0
		}
		return zero, 0
	case host == 0:
		return unallocated, 0
	case host&uint64(m.clusterSize()-1) != 0:
		return invalid, 0
	}
	return data, host
}

// subclusterSets are the sets of subclusters of each kind, by an extended L2 entry (QEMU's docs/interop/qcow2,
// "Extended L2 Entries") of a cluster that is not compressed. ok is false for one that cannot be.
func (m *mapping) subclusterSets(e, bitmap uint64) (alloc, zeros uint32, ok bool) {
	host := e & entryOffset
	alloc, zeros = uint32(bitmap), uint32(bitmap>>32)
	if host == 0 {
		return alloc, zeros, alloc == 0
	}
	return alloc, zeros, alloc&zeros == 0 && host&uint64(m.clusterSize()-1) == 0
}

func (m *mapping) extendedHolds(e, bitmap uint64) (c content) {
	if e&entryCompressed != 0 {
		return compressed.bit()
	}
	alloc, zeros, ok := m.subclusterSets(e, bitmap)
	if !ok {
		return invalid.bit()
	}
	if alloc != 0 {
		c |= data.bit()
	}
	if zeros != 0 {
		c |= zero.bit()
	}
	if alloc|zeros != 1<<subclusters-1 {
		c |= unallocated.bit()
	}
	return c
}

// runExtended is runIn for extended entries.
func (m *mapping) runExtended(entries []uint64, off, want int64) run {
	i := int(off>>m.clusterBits) & (len(entries)/2 - 1)
	in := off & (m.clusterSize() - 1)
	subBits := m.clusterBits - 5 // 32 subclusters
	var r run
	for first := true; r.n < want && i < len(entries)/2; i++ {
		e, bitmap := entries[2*i], entries[2*i+1]
		next := run{kind: invalid, n: m.clusterSize() - in}
		if e&entryCompressed != 0 {
			next.kind, next.entry = compressed, e&compressedMask
		} else if alloc, zeros, ok := m.subclusterSets(e, bitmap); ok {
			sub := uint(in >> subBits)
			var n int
			switch {
			case zeros>>sub&1 != 0:
				next.kind, n = zero, bits.TrailingZeros32(^(zeros >> sub))
			case alloc>>sub&1 != 0:
				next.kind, n = data, bits.TrailingZeros32(^(alloc >> sub))
				next.host = int64(e&entryOffset) + in
			default:
				next.kind, n = unallocated, min(bits.TrailingZeros32((alloc|zeros)>>sub), subclusters-int(sub))
			}
			next.n = int64(sub+uint(n))<<subBits - in
		}
		if first {
			r, first = next, false
		} else if !r.joins(next) {
			break
		} else {
			r.n += next.n
		}
		if in+next.n < m.clusterSize() {
			break
		}
		in = 0
	}
	r.n = min(r.n, want)
	return r
}

func (m *mapping) faulty(b *tablePiece, off int64) error {
	i := int(off>>m.clusterBits) & (m.sliceBytes>>m.entryBits - 1)
	if m.extended {
		return corrupt("has the L2 entry %#x with the bitmap %#x for guest byte %d, which cannot be: check it with qemu-img check", b.entries[2*i], b.entries[2*i+1], off)
	}
	return corrupt("has the L2 entry %#x for guest byte %d, which cannot be: check it with qemu-img check", b.entries[i], off)
}

var tableBuffers = sync.Pool{New: func() any { return new([sliceMax]byte) }}

// readTable reads n bytes of a table, at most sliceMax. What lies past the end of the file is zeros.
func (s source) readTable(off int64, n int) ([]uint64, error) {
	buf := tableBuffers.Get().(*[sliceMax]byte)
	defer tableBuffers.Put(buf)
	if err := s.readPadded(buf[:n], off); err != nil {
		return nil, err
	}
	entries := make([]uint64, n/8)
	for i := range entries {
		entries[i] = binary.BigEndian.Uint64(buf[8*i:])
	}
	return entries, nil
}

package qcow2

import (
	"errors"
	"math"
	"math/bits"
	"sync"

	"domfs/backend"
)

const (
	// maxSearch is how many entries of tables one NextData or NextHole looks at: those of 4 TiB, in clusters of
	// 64 KiB, and more where whole L2 tables are missing. What lies beyond counts as data from then on.
	maxSearch = 1 << 26
	askCost   = 64 // of a question to a Device of another kind: a system call
	// Allocated reads this much of L2 tables; of larger images some tables, evenly spread, stand for all.
	maxCountBytes  = 16 << 20
	maxCountTables = 4096
)

// NextData returns the offset of the first byte at or after off that lies in a cluster, compressed
// or not, of the file or of the backing file. Clusters that read as zeros are holes, even where space is reserved for them.
func (im *image) NextData(off int64) (int64, error) { return im.search(off, (*image).nextData) }

// NextHole returns the offset of the first byte at or after off that is not data. What cannot be
// found for a damaged table counts as data, so that reading it says why.
func (im *image) NextHole(off int64) (int64, error) { return im.search(off, (*image).nextHole) }

func (im *image) search(off int64, next func(*image, int64, *work) (int64, error)) (int64, error) {
	if off < 0 || off >= im.size {
		return 0, backend.ErrRange
	}
	return next(im, off, &work{maxSearch})
}

// exhausted tells whether a search ends at off. It does so for all later ones, too: an answer that
// the next one contradicts would send who asks both in turn round and round.
func (im *image) exhausted(off int64, w *work) bool {
	for w.left <= 0 {
		from := im.opaqueFrom.Load()
		if off >= from || im.opaqueFrom.CompareAndSwap(from, off) {
			return true
		}
	}
	return off >= im.opaqueFrom.Load()
}

// extent is the run at off; where it lies in the file is only looked for if that has holes.
func (im *image) extent(off int64, holes bool, w *work) run {
	if !holes {
		return im.m.span(&im.last, off, im.size-off, w)
	}
	r, _ := im.m.lookup(&im.last, off, im.size-off, w) // else invalid
	return r
}

func (im *image) nextData(off int64, w *work) (int64, error) {
	behind := int64(-1) // where the backing file has its next data
	holes := im.fileHasHoles()
	for off < im.size {
		if im.exhausted(off, w) {
			return off, nil
		}
		r := im.extent(off, holes, w)
		end := off + r.n
		switch r.kind {
		case compressed, invalid:
			return off, nil
		case data:
			if !holes {
				return off, nil
			}
			at, err := nextData(im.m.file.Device, r.host, w)
			switch {
			case errors.Is(err, backend.ErrRange):
			case err != nil:
				return 0, err
			case at < r.host+r.n:
				return off + at - r.host, nil
			}
		case unallocated:
			if im.backing == nil || off >= im.backingSize {
				break
			}
			if behind < off {
				var err error
				behind, err = nextData(im.backing, off, w)
				if errors.Is(err, backend.ErrRange) {
					behind = math.MaxInt64
				} else if err != nil {
					return 0, err
				}
			}
			if behind < end {
				return behind, nil
			}
		}
		off = end
	}
	return 0, backend.ErrRange
}

func (im *image) nextHole(off int64, w *work) (int64, error) {
	holes := im.fileHasHoles()
	for off < im.size {
		if im.exhausted(off, w) {
			return im.size, nil
		}
		r := im.extent(off, holes, w)
		end := off + r.n
		switch r.kind {
		case zero:
			return off, nil
		case data:
			if !holes {
				break
			}
			at, err := nextHole(im.m.file.Device, r.host, w)
			if errors.Is(err, backend.ErrRange) {
				return off, nil // past the end
			}
			if err != nil {
				return 0, err
			}
			if at < r.host+r.n {
				return off + at - r.host, nil
			}
		case unallocated:
			if im.backing == nil || off >= im.backingSize {
				return off, nil
			}
			at, err := nextHole(im.backing, off, w)
			if err != nil {
				return 0, err
			}
			if at < end {
				return at, nil
			}
		}
		off = end
	}
	return im.size, nil
}

// nextData and nextHole ask another Device. What an image behind looks at counts for who asks.
func nextData(d backend.Device, off int64, w *work) (int64, error) {
	if im, ok := d.(*image); ok && off < im.size {
		return im.nextData(off, w)
	}
	w.take(askCost)
	return backend.NextData(d, off)
}

func nextHole(d backend.Device, off int64, w *work) (int64, error) {
	if im, ok := d.(*image); ok && off < im.size {
		return im.nextHole(off, w)
	}
	w.take(askCost)
	return backend.NextHole(d, off)
}

// count is how much of the guest's bytes the tables have, in bytes. Where not all tables were read
// it is an estimate.
type count struct {
	once         sync.Once
	data, zeros  int64
	preallocOnce sync.Once
	prealloc     bool
}

func (im *image) count() *count {
	im.counted.once.Do(im.countClusters)
	return &im.counted
}

// Allocated is the bytes of the guest's clusters that are data. What comes from the backing file counts as far as that
// has space for it. It is read once; of a large image it is an estimate.
func (im *image) Allocated() int64 {
	c := im.count()
	sum := c.data
	if im.fileHasHoles() {
		sum = min(sum, backend.Allocated(im.m.file.Device))
	}
	if im.backing != nil {
		sum += max(0, min(im.size-c.data-c.zeros, im.backingSize, backend.Allocated(im.backing)))
	}
	return sum
}

// fileHasHoles tells whether clusters were allocated and never written (preallocation=metadata): then the file's
// holes are the guest's. It is decided as QEMU does, by how much more the tables say than the file has, because
// the file of any image has some small holes, which are not worth the system calls.
func (im *image) fileHasHoles() bool {
	im.counted.preallocOnce.Do(func() {
		s, ok := im.m.file.Device.(backend.Sparse)
		if !ok {
			return
		}
		held := s.Allocated() / im.m.clusterSize()
		many := max(held*10/9, held+2)
		if im.m.file.size/im.m.clusterSize()+1 < many {
			return
		}
		im.counted.prealloc = im.count().data/im.m.clusterSize()+im.metadata >= many
	})
	return im.counted.prealloc
}

// metadataClusters is about how many clusters of a file of size bytes hold tables, but L2 tables.
func (h *header) metadataClusters(size int64) int64 {
	cs := h.clusterSize()
	clusters := size / cs
	refcounts := (clusters>>3)<<h.refcountOrder/cs + 1
	return 1 + int64(h.refcount.entries) + refcounts + (int64(h.l1.entries)*8+cs-1)/cs
}

// countClusters reads L2 tables past the cache, which holds what readers use.
func (im *image) countClusters() {
	all := 0
	im.eachTable(func(int) { all++ })
	step := 1
	if most := min(maxCountTables, maxCountBytes>>im.m.clusterBits); all > most {
		step = (all + most - 1) / most
	}
	var nth, read, data, zeros int64
	im.eachTable(func(i int) {
		if nth++; (nth-1)%int64(step) != 0 {
			return
		}
		// Reading where a table is damaged says why.
		if d, z, err := im.countTable(i); err == nil {
			read, data, zeros = read+1, data+d, zeros+z
		}
	})
	c := &im.counted
	if c.data, c.zeros = data, zeros; step > 1 && read > 0 {
		share := float64(all) / float64(read)
		c.data = int64(min(float64(data)*share, float64(im.size)))
		c.zeros = int64(min(float64(zeros)*share, float64(im.size-c.data)))
	}
}

// eachTable calls f with the number of each entry of the L1 table that has an L2 table.
func (im *image) eachTable(f func(int)) {
	for n := 0; n*l1PageEntries < im.m.l1.entries; n++ {
		page, err := im.m.l1Page(n)
		if err != nil {
			return
		}
		for i, e := range page {
			if e&entryOffset != 0 {
				f(n*l1PageEntries + i)
			}
		}
	}
}

// countTable returns how many bytes an L2 table has as data, and as zeros.
func (im *image) countTable(i int) (dataBytes, zeroBytes int64, err error) {
	m := &im.m
	off := int64(i) << m.l2Shift
	at, _, err := m.l2Table(off, 1, nil)
	if err != nil || at == 0 {
		return 0, 0, err
	}
	each := 1 << (m.entryBits - 3) // numbers an entry
	for end := at + m.clusterSize(); at < end; at += int64(m.sliceBytes) {
		entries, err := m.file.readTable(at, m.sliceBytes)
		if err != nil {
			return 0, 0, err
		}
		for j := 0; j < len(entries); j += each {
			left := im.size - off
			if left <= 0 {
				return dataBytes, zeroBytes, nil
			}
			d, z := m.held(entries[j : j+each])
			dataBytes += min(d, left)
			zeroBytes += min(z, left)
			off += m.clusterSize()
		}
	}
	return dataBytes, zeroBytes, nil
}

// held is how many bytes of its cluster an entry has as data, and as zeros.
func (m *mapping) held(entry []uint64) (dataBytes, zeroBytes int64) {
	if m.extended && entry[0]&entryCompressed == 0 {
		alloc, zeros, ok := m.subclusterSets(entry[0], entry[1])
		if !ok {
			return 0, 0
		}
		sub := m.clusterSize() / subclusters
		return int64(bits.OnesCount32(alloc)) * sub, int64(bits.OnesCount32(zeros)) * sub
	}
	switch k, _ := m.decode(entry[0]); k {
	case data, compressed:
		return m.clusterSize(), 0
	case zero:
		return 0, m.clusterSize()
	}
	return 0, 0
}

package lvm2

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"sync"
	"time"

	"domfs/backend"
)

const (
	// maxExceptionBytes is what the exceptions of one snapshot may take, and allExceptionBytes those of all snapshots
	// together: the ones that were used longest ago are read again when they are needed.
	maxExceptionBytes = 64 << 20
	allExceptionBytes = 192 << 20
	runBytes          = 16
	maxRuns           = maxExceptionBytes / runBytes
	runLengthBits     = 24
	longRuns          = 64 << 10 // from here on a list takes much memory
	maxRunLength      = 1<<runLengthBits - 1
	maxOriginChunk    = 1 << (64 - runLengthBits)
	readPieceBytes    = 64 << 10 // of an area, in one read
	// maxStrayExceptions are those of chunks that the snapshot does not have. A COW volume of a guest's making may
	// be the same bytes again and again.
	maxStrayExceptions = maxRuns
	// longWait is how long the reading of a long list waits for its turn. Snapshots can lie on snapshots' volumes, whose
	// lists are read meanwhile: to wait without end could be to wait for itself.
	longWait = 20 * time.Second
)

// exceptionRun is consecutive chunks of the origin that lie on consecutive chunks of the COW device.
type exceptionRun struct {
	at  uint64 // first chunk of the origin <<24 | length in chunks
	cow uint64 // first chunk of the COW device
}

func (r exceptionRun) origin() uint64 { return r.at >> runLengthBits }
func (r exceptionRun) length() uint64 { return r.at & maxRunLength }
func (r exceptionRun) end() uint64    { return r.origin() + r.length() }

// join adds next to r, if it goes on where r ends.
func (r *exceptionRun) join(next exceptionRun) bool {
	if next.origin() != r.end() || next.cow != r.cow+r.length() || r.length()+next.length() > maxRunLength {
		return false
	}
	r.at += next.length()
	return true
}

// findException is the index of the last run that does not begin behind chunk, -1 if all do. It looks at hint and
// the one behind it first.
func findException(runs []exceptionRun, chunk uint64, hint int) int {
	for i := hint; i < hint+2; i++ {
		if i >= 0 && i < len(runs) && runs[i].origin() <= chunk && (i+1 == len(runs) || runs[i+1].origin() > chunk) {
			return i
		}
	}
	return sort.Search(len(runs), func(i int) bool { return runs[i].origin() > chunk }) - 1
}

// exceptionList is where the exceptions of a snapshot are.
type exceptionList struct {
	cow          backend.Device
	chunk        int64  // bytes
	fresh        bool   // there are none
	originChunks uint64 // exceptions of later ones are left out
}

// exceptionStore has the exceptions of a snapshot: read when they are needed, and dropped when others need the
// space.
type exceptionStore struct {
	exceptionList
	held    *heldExceptions
	loading sync.Mutex // held while they are read; before exceptionBudget's
	damaged error      // guarded by loading; what reading them again would not change
}

func newExceptionStore(l exceptionList) *exceptionStore {
	x := &exceptionStore{exceptionList: l, held: &heldExceptions{}}
	// Nobody closes a guest's volumes.
	runtime.AddCleanup(x, (*heldExceptions).drop, x.held)
	return x
}

// heldExceptions are exceptions that are held, or nothing.
type heldExceptions struct {
	runs  []exceptionRun // guarded by exceptionBudget.mu, as place is
	place *list.Element  // nil where nothing is held
}

// exceptionBudget bounds what the exceptions of all snapshots take. Who reads by a list that is dropped keeps
// it until it has done so.
var exceptionBudget = struct {
	mu    sync.Mutex
	max   int        // bytes; guarded by mu
	bytes int        // guarded by mu
	order *list.List // guarded by mu; of *heldExceptions, the one used last first
}{max: allExceptionBytes, order: list.New()}

// runs returns the exceptions, sorted by chunk of the origin, each chunk once.
func (x *exceptionStore) runs() ([]exceptionRun, error) {
	if x.fresh {
		return nil, nil
	}
	if runs, ok := x.held.lookup(); ok {
		return runs, nil
	}
	x.loading.Lock()
	defer x.loading.Unlock()
	if runs, ok := x.held.lookup(); ok {
		return runs, nil
	}
	if x.damaged != nil {
		return nil, x.damaged
	}
	runs, err := x.read()
	if err != nil {
		if errors.Is(err, backend.ErrCorrupt) || errors.Is(err, backend.ErrUnsupported) {
			x.damaged = err
		}
		return nil, err
	}
	x.held.hold(runs)
	return runs, nil
}

func (h *heldExceptions) lookup() ([]exceptionRun, bool) {
	b := &exceptionBudget
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.place == nil {
		return nil, false
	}
	b.order.MoveToFront(h.place)
	return h.runs, true
}

func (h *heldExceptions) hold(runs []exceptionRun) {
	b := &exceptionBudget
	b.mu.Lock()
	defer b.mu.Unlock()
	h.runs, h.place = runs, b.order.PushFront(h)
	b.bytes += runBytes * cap(runs)
	for b.bytes > b.max && b.order.Len() > 1 {
		b.order.Back().Value.(*heldExceptions).dropLocked()
	}
}

func (h *heldExceptions) drop() {
	exceptionBudget.mu.Lock()
	defer exceptionBudget.mu.Unlock()
	if h.place != nil {
		h.dropLocked()
	}
}

func (h *heldExceptions) dropLocked() {
	exceptionBudget.order.Remove(h.place)
	exceptionBudget.bytes -= runBytes * cap(h.runs)
	h.runs, h.place = nil, nil
}

// readingLong bounds how many long lists are read at a time.
var readingLong = make(chan struct{}, 4)

// read reads the areas of the COW device, as far as there are exceptions and the device goes.
func (l *exceptionList) read() ([]exceptionRun, error) {
	// The snapshot may have overflowed since it was opened.
	if h, err := readCOWHeader(l.cow, l.chunk); err != nil {
		return nil, err
	} else if h.chunk != l.chunk || h.fresh {
		return nil, backend.Because(backend.ErrStale, "the snapshot's COW volume was made anew since it was opened")
	}
	c := exceptionCollector{originChunks: l.originChunks}
	defer c.end()
	chunks, perArea := l.cow.Size()/l.chunk, l.chunk/exceptionBytes
	piece := make([]byte, min(l.chunk, readPieceBytes))
	for area := int64(1); area < chunks; area += perArea + 1 {
		for off := int64(0); off < l.chunk; off += int64(len(piece)) {
			if err := readAll(l.cow, piece, area*l.chunk+off); err != nil {
				return nil, fmt.Errorf("exceptions of the snapshot in chunk %d of its COW volume: %w", area, err)
			}
			more, err := c.add(piece)
			if err != nil {
				return nil, err
			}
			if !more {
				return c.sorted()
			}
		}
	}
	return c.sorted()
}

// exceptionCollector makes runs of exceptions as they are read.
type exceptionCollector struct {
	originChunks uint64
	runs         []exceptionRun
	exceptions   uint64
	strays       int
	long         bool // it is one of readingLong
}

// awaitTurn waits until few others read long lists.
func (c *exceptionCollector) awaitTurn() error {
	limit := time.NewTimer(longWait)
	defer limit.Stop()
	select {
	case readingLong <- struct{}{}:
		c.long = true
		return nil
	case <-limit.C:
		return backend.Because(backend.ErrTimeout, "the snapshot has many exceptions, and so have others that are being read: try again")
	}
}

// end is to be called once all is read.
func (c *exceptionCollector) end() {
	if c.long {
		<-readingLong
	}
}

// add takes the exceptions of a piece of an area. more is false where the list ends in it.
func (c *exceptionCollector) add(piece []byte) (more bool, err error) {
	le := binary.LittleEndian
	for ; len(piece) > 0; piece = piece[exceptionBytes:] {
		origin, cow := le.Uint64(piece), le.Uint64(piece[8:])
		if cow == 0 {
			return false, nil
		}
		if origin >= c.originChunks {
			if c.strays++; c.strays > maxStrayExceptions {
				return false, backend.Because(backend.ErrCorrupt, "the snapshot has more than %d exceptions for chunks behind its end", maxStrayExceptions)
			}
			continue
		}
		c.exceptions++
		r := exceptionRun{at: origin<<runLengthBits | 1, cow: cow}
		if n := len(c.runs); n > 0 && c.runs[n-1].join(r) {
			continue
		}
		if len(c.runs) == maxRuns {
			return false, backend.Because(backend.ErrUnsupported, "the snapshot has more than %d exceptions, in more than %d runs, which would take more than the %d MiB of memory that one snapshot is given: have the guest's own LVM read it", c.exceptions-1, maxRuns, maxExceptionBytes>>20)
		}
		if len(c.runs) == cap(c.runs) {
			if len(c.runs) >= longRuns && !c.long {
				if err := c.awaitTurn(); err != nil {
					return false, err
				}
			}
			c.runs = slices.Grow(c.runs, min(max(len(c.runs), 64), maxRuns-len(c.runs)))
		}
		c.runs = append(c.runs, r)
	}
	return true, nil
}

// sorted returns the runs by chunk of the origin.
func (c *exceptionCollector) sorted() ([]exceptionRun, error) {
	slices.SortFunc(c.runs, func(a, b exceptionRun) int {
		if o := cmp.Compare(a.origin(), b.origin()); o != 0 {
			return o
		}
		return cmp.Compare(a.cow, b.cow)
	})
	n := 0
	for i, r := range c.runs {
		if i > 0 {
			last := &c.runs[n-1]
			if r.origin() < last.end() {
				return nil, fmt.Errorf("the snapshot's COW volume has two exceptions for chunk %d: %w", r.origin(), backend.ErrCorrupt)
			}
			if last.join(r) {
				continue
			}
		}
		c.runs[n] = r
		n++
	}
	if runs := c.runs[:n]; n > cap(runs)/2 {
		return runs, nil
	}
	return slices.Clone(c.runs[:n]), nil
}

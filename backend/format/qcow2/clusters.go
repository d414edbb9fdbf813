package qcow2

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// maxParts is how many compressed clusters of one read are put together at most.
	maxParts = 64
	// passBytes is a read of one who goes through the image and comes not back soon. It does not fill the cache: it
	// would push out what is read in pieces.
	passBytes = 128 << 10
)

// helping bounds the goroutines that decompress besides those that read, of all images: there is one less
// than there are processors, so that a read on an idle host has all of them.
var helping = make(chan struct{}, min(runtime.GOMAXPROCS(0), maxDecompressing)-1)

// startHelper runs f in a goroutine that w waits for, if there is room for one more.
func startHelper(w *sync.WaitGroup, f func()) bool {
	select {
	case helping <- struct{}{}:
	default:
		return false
	}
	w.Go(func() {
		defer func() { <-helping }() // for the next read, as soon as w has ended
		f()
	})
	return true
}

// part is what a read wants of one compressed cluster.
type part struct {
	p     []byte
	at    int    // where p begins in what is read
	in    int64  // where p begins in the cluster
	entry uint64 // the L2 entry
	keep  bool   // in the cache
}

func (im *image) readPart(t *part) error {
	if t.keep || int64(len(t.p)) < im.m.clusterSize() {
		c, err := im.cluster(t.entry)
		if err != nil {
			return err
		}
		copy(t.p, c[t.in:])
		return nil
	}
	if c, ok := clusters.Lookup(im.clusterKey(t.entry)); ok {
		copy(t.p, c)
		return nil
	}
	return im.decompress(t.p, t.entry)
}

// readParts reads clusters side by side, as far as there are helpers. An error is that of the first part that has
// one; at is where that begins.
func (im *image) readParts(parts []part) (at int, err error) {
	w := partReader{im: im, parts: parts, failed: len(parts)}
	// When it returns, for whatever reason, nobody writes to what is the caller's.
	func() {
		defer w.helpers.Wait()
		for range len(parts) - 1 {
			if !startHelper(&w.helpers, w.help) {
				break
			}
		}
		w.read()
	}()
	if w.panicked != nil {
		panic(w.panicked)
	}
	if w.err != nil {
		return parts[w.failed].at, w.err
	}
	return 0, nil
}

type partReader struct {
	im      *image
	parts   []part
	next    atomic.Int64 // the first that nobody has begun
	helpers sync.WaitGroup

	mu       sync.Mutex
	failed   int   // guarded by mu; the first part that failed
	err      error // guarded by mu; its error
	panicked any   // guarded by mu; what a helper panicked with
}

func (w *partReader) help() {
	defer func() {
		// In a goroutine of its own it would end the program; whoever reads has somebody to catch it.
		if p := recover(); p != nil {
			w.mu.Lock()
			w.panicked = p
			w.mu.Unlock()
			w.next.Store(int64(len(w.parts)))
		}
	}()
	w.read()
}

// read reads parts until none is left. They are begun in order, so that of those before a failed one none
// is left out.
func (w *partReader) read() {
	for {
		i := int(w.next.Add(1)) - 1
		if i >= len(w.parts) {
			return
		}
		if err := w.im.readPart(&w.parts[i]); err != nil {
			w.next.Store(int64(len(w.parts)))
			w.mu.Lock()
			if i < w.failed {
				w.failed, w.err = i, err
			}
			w.mu.Unlock()
			return
		}
	}
}

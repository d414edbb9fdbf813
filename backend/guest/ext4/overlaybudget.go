package ext4

import (
	"sync"

	"domfs/backend"
)

const (
	// maxOverlayBytes bounds what the recovery of all filesystems that are open holds together. One
	// of them can have half of it: maxReplayed and maxEditedBytes.
	maxOverlayBytes = 256 << 20

	replayedBytes   = 16 // of a replayedBlock, and of a revoked
	editedOverhead  = 64 // of an edited block in the maps, beyond its own bytes
	journalRunBytes = 48 // of a journalRun in both orders, with the room that slices grow by
	journalRunChunk = 4096
)

// overlays is the budget of all filesystems.
var overlays = overlayBudget{max: maxOverlayBytes}

// overlayBudget counts memory that is about to be allocated, and what is held.
type overlayBudget struct {
	max int64

	mu   sync.Mutex
	held int64 // guarded by mu; bytes
}

// take is asked before n bytes are allocated. ErrBusy says that others hold them.
func (t *overlayBudget) take(n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n > t.max-t.held {
		return backend.Because(backend.ErrBusy, "the journals of filesystems that are open take %d of the %d MiB of memory that they have together, and this one needs %d more: "+
			"try again when fewer filesystems whose guests were not shut down are in use", t.held>>20, t.max>>20, n>>20+1)
	}
	t.held += n
	return nil
}

func (t *overlayBudget) give(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held -= n
}

// reserve is asked before the overlay grows by n bytes.
func (fs *FS) reserve(n int64) error {
	if err := overlays.take(n); err != nil {
		return err
	}
	fs.over.held += n
	return nil
}

// reserveEdited is asked before a block is edited, which takes memory for it once more if undo holds
// it as it was.
func (fs *FS) reserveEdited() error {
	return fs.reserve(int64(fs.sb.blockBytes()) + editedOverhead)
}

// settle gives back what was reserved and is not held.
func (o *overlay) settle() {
	held := int64(cap(o.replayed)) * replayedBytes
	for _, b := range o.edited {
		held += int64(len(b)) + editedOverhead
	}
	if o.held > held {
		overlays.give(o.held - held)
		o.held = held
	}
}

// dropOverlay forgets what lies over the device.
func (fs *FS) dropOverlay() {
	overlays.give(fs.over.held)
	fs.over = overlay{}
}

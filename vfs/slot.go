package vfs

import (
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"

	"domfs/backend"
	"domfs/control"
)

// A guest node's ID is the top bit, the number of its filesystem's slot, and the inode
// number. Nothing is kept for a node: only its slot counts how many lookups the kernel has
// not forgotten.
const (
	guestBit  = 1 << 63
	slotShift = 40
	maxSlots  = 1 << (63 - slotShift)
	inoMask   = 1<<slotShift - 1
)

func isGuest(nodeID uint64) bool { return nodeID&guestBit != 0 }

// slot is a guest's filesystem that the kernel knows nodes of. It does not keep the volume
// open: a frozen one is opened again when it was closed meanwhile, a live one that changed is stale.
type slot struct {
	index   uint64
	ref     control.VolumeRef
	owner   string // domain to whose last_error failures go
	seed    uint64
	rootIno uint64
	blksize uint32 // st_blksize of its files
	vol     atomic.Pointer[control.Volume]
	gen     uint64       // the live disk's Generation; its inodes are those of these bytes
	lookups atomic.Int64 // by the kernel, not yet forgotten
	pushed  pushedFiles  // of a frozen one
	damages atomic.Int64 // how often something in it was found corrupt
}

func (s *slot) frozen() bool { return s.ref.SetID != "" }

// use gives the open filesystem; the caller releases the volume.
func (s *slot) use(c *call) (*control.Volume, backend.FS, error) {
	v := s.vol.Load()
	if v == nil || !v.Acquire() {
		if c.fs.draining(s.ref.SetID) {
			return nil, nil, fmt.Errorf("the snapshot is being removed: %w", backend.ErrNotExist)
		}
		opened, err := c.fs.host.Volume(c.ctx, s.ref)
		if err != nil {
			return nil, nil, err
		}
		if !s.sameBytes(opened) {
			opened.Release()
			return nil, nil, fmt.Errorf("disk %s of %s has changed, or its domain runs: %w", s.ref.VDev, s.owner, backend.ErrStale)
		}
		s.vol.Store(opened)
		v = opened
	}
	guest, err := v.FS(c.ctx)
	if err != nil {
		v.Release()
		return nil, nil, err
	}
	return v, guest, nil
}

// sameBytes tells whether v, opened later, holds what the slot's inodes are of: it may have been
// closed meanwhile only because nobody used it.
func (s *slot) sameBytes(v *control.Volume) bool {
	return s.frozen() || !v.Running() && v.Generation() == s.gen
}

// nodeID is the kernel's name for an inode.
func (s *slot) nodeID(ino uint64) (uint64, error) {
	if ino > inoMask {
		return 0, fmt.Errorf("inode number %d is over 40 bits: %w", ino, backend.ErrUnsupported)
	}
	return guestBit | s.index<<slotShift | ino, nil
}

// statIno is st_ino: a mix of the filesystem's identity and the guest's number, the same after
// a restart, and unique within the filesystem.
func (s *slot) statIno(ino uint64) uint64 { return mix(ino + s.seed) }

// seedOf is a number for a filesystem's identity.
func seedOf(ref control.VolumeRef) uint64 {
	h := fnv.New64a()
	for _, part := range []string{ref.SetID, ref.Domain, ref.VDev, ref.Path} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return mix(h.Sum64())
}

// slotTable holds the slots. A slot leaves it when the kernel has forgotten its last node.
type slotTable struct {
	mu    sync.RWMutex
	slots []*slot                     // by index; nil where free
	byRef map[control.VolumeRef]*slot // the one that new lookups use
}

func (t *slotTable) init() { t.byRef = map[control.VolumeRef]*slot{} }

func (t *slotTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := 0
	for _, s := range t.slots {
		if s != nil {
			n++
		}
	}
	return n
}

// of is the slot and the inode number of a guest node; nil if the kernel should not know it any more.
func (t *slotTable) of(nodeID uint64) (*slot, uint64) {
	i := nodeID &^ guestBit >> slotShift
	t.mu.RLock()
	defer t.mu.RUnlock()
	if i >= uint64(len(t.slots)) {
		return nil, 0
	}
	return t.slots[i], nodeID & inoMask
}

func (t *slotTable) forget(nodeID, n uint64) {
	s, ino := t.of(nodeID)
	if s == nil {
		return
	}
	s.pushed.remove(ino)
	if s.lookups.Add(-int64(n)) > 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.lookups.Load() > 0 || t.slots[s.index] != s {
		return
	}
	t.slots[s.index] = nil
	if t.byRef[s.ref] == s {
		delete(t.byRef, s.ref)
	}
}

// get finds the slot for a filesystem or makes it, and counts one lookup, of its root. v is
// acquired by the caller and stays so.
func (t *slotTable) get(ref control.VolumeRef, owner string, v *control.Volume, guest backend.FS) (*slot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byRef[ref]; s != nil && s.sameBytes(v) {
		s.lookups.Add(1)
		return s, nil
	}
	s := &slot{ref: ref, owner: owner, seed: seedOf(ref), rootIno: guest.Root(), blksize: blockSize(guest), gen: v.Generation()}
	s.lookups.Store(1)
	s.vol.Store(v)
	free := -1
	for i := range t.slots {
		if t.slots[i] == nil {
			free = i
			break
		}
	}
	if free < 0 {
		if len(t.slots) >= maxSlots {
			return nil, fmt.Errorf("more than %d filesystems are in use: %w", maxSlots, backend.ErrBusy)
		}
		free = len(t.slots)
		t.slots = append(t.slots, nil)
	}
	s.index = uint64(free)
	t.slots[free] = s
	t.byRef[ref] = s
	return s, nil
}

// blockSize is what a guest's stat says is good to read at a time.
func blockSize(guest backend.FS) uint32 {
	if st, err := guest.StatFS(); err == nil && st.BlockSize > 0 {
		return st.BlockSize
	}
	return 4096
}

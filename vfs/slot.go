package vfs

import (
	"fmt"
	"hash/fnv"
	"strings"
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
	index uint64
	slotKey
	owner   string // domain to whose last_error failures go
	seed    uint64
	rootIno uint64
	blksize uint32 // st_blksize of its files
	// overflow: of a snapshot that may become invalid at any time, so that nothing of it is kept without end.
	overflow bool
	vol      atomic.Pointer[control.Volume]
	gen      uint64       // the live disk's Generation; its inodes are those of these bytes
	lookups  atomic.Int64 // by the kernel, not yet forgotten
	pushed   pushedFiles  // of a frozen one
	damages  atomic.Int64 // how often something in it was found corrupt
	tree     *guestRoot   // whose mounts are crossed, and mount is its place there; nil of files
	mount    *control.Mount
}

// slotKey tells slots apart. Of a filesystem that is seen in root/ there is one for each of its mounts: what is
// mounted within shows in none but its own, and never in files/.
type slotKey struct {
	ref   control.VolumeRef
	mount string // ID of a Mount; "" for files
}

// guestRoot is a guest's root as slots know it.
type guestRoot struct {
	*control.Root
	at control.VolumeRef // domain or set
}

func (s *slot) frozen() bool { return s.ref.SetID != "" }

// use gives the open filesystem; the caller releases the volume.
func (s *slot) use(c *call) (*control.Volume, backend.FS, error) {
	if s.tree != nil && !s.frozen() {
		// The mounts are those of other disks' bytes, too.
		if now, err := c.fs.host.Root(c.ctx, s.tree.at); err != nil {
			return nil, nil, err
		} else if now.ID != s.tree.ID {
			return nil, nil, fmt.Errorf("the disks of %s have changed: %w", s.owner, backend.ErrStale)
		}
	}
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
			return nil, nil, fmt.Errorf("%s of %s has changed, or its domain runs: %w", strings.Trim(s.ref.VDev+"/"+s.ref.Path, "/"), s.owner, backend.ErrStale)
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

// rootSeedOf is the same for a filesystem in root/: its files are others than those in files/, and the same wherever
// in root/ it is mounted.
func rootSeedOf(ref control.VolumeRef) uint64 { return mix(seedOf(ref) + 1) }

// slotTable holds the slots. A slot leaves it when the kernel has forgotten its last node.
type slotTable struct {
	mu    sync.RWMutex
	slots []*slot           // by index; nil where free
	byKey map[slotKey]*slot // the one that new lookups use
}

func (t *slotTable) init() { t.byKey = map[slotKey]*slot{} }

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
	if t.byKey[s.slotKey] == s {
		delete(t.byKey, s.slotKey)
	}
}

// get finds the slot for a filesystem or makes it, and counts one lookup, of its root. v is
// acquired by the caller and stays so. tree and mount are nil for files.
func (t *slotTable) get(v *control.Volume, owner string, guest backend.FS, tree *guestRoot, mount *control.Mount) (*slot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := slotKey{ref: v.Ref()}
	if tree != nil {
		key.mount = mount.ID
	}
	if s := t.byKey[key]; s != nil && s.sameBytes(v) && (tree == nil || s.tree.ID == tree.ID) {
		s.lookups.Add(1)
		return s, nil
	}
	s := &slot{slotKey: key, owner: owner, seed: seedOf(key.ref), rootIno: guest.Root(), blksize: blockSize(guest), overflow: v.CanOverflow(), gen: v.Generation(), tree: tree, mount: mount}
	if tree != nil {
		s.seed, s.rootIno = rootSeedOf(key.ref), mount.Ino
	}
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
	t.byKey[key] = s
	return s, nil
}

// blockSize is what a guest's stat says is good to read at a time.
func blockSize(guest backend.FS) uint32 {
	if st, err := guest.StatFS(); err == nil && st.BlockSize > 0 {
		return st.BlockSize
	}
	return 4096
}

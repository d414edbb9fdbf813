package vfs

import (
	"slices"

	"domfs/control"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/zap"
)

// A snapshot whose space for copies on write is full shows no true bytes any more. From then on each read of it
// must end in EIO: also one that began before, and one of a file that the kernel knows already.
//
//   - control marks the open volumes (Volume.Usable) before anybody else learns of it. Whatever is read is
//     asked about before and after; so of such a snapshot nothing is spliced, nor passed through to the host's
//     file: what is sent cannot be taken back.
//   - Then what the kernel keeps is dropped: the pages of each file and directory that is open (pages
//     that are mapped, too: the next access is SIGBUS), and the names below `files`. Pages of files that nobody has
//     open can only be read after an OPEN, which fails. Attributes and names of such a snapshot are
//     good for overflowFor at most, for who is in a directory already.
//   - A file that is being opened meanwhile is in the table of handles before its volume is
//     asked about, or fails: so its pages are dropped, or never read.
//
// The kernel waits for pages that are being read, and for directories in which a name is being looked
// up, until those requests are answered: so it is told by a goroutine that holds nothing.

// changed is told of each change of the host.
func (f *fileSystem) changed(ch control.Change) {
	if ch.Invalid {
		go f.dropCaches(ch.SetID)
		return
	}
	f.forgetSet(ch)
}

// dropCaches makes the kernel forget what it knows of a set's bytes.
func (f *fileSystem) dropCaches(setID string) {
	for _, id := range f.openNodes(setID) {
		if st := f.server.InodeNotify(id, 0, 0); st != fuse.OK && st != fuse.ENOENT {
			f.log.Debug("an inode's pages cannot be dropped", zap.Uint64("node", id), zap.Stringer("status", st))
		}
	}
	for _, e := range f.nodes.guestRoots(setID) {
		f.server.EntryNotify(e.parent, e.name) // ENOENT where the kernel does not know it
	}
}

// openNodes are the nodes of a set that are open, each once.
func (f *fileSystem) openNodes(setID string) []uint64 {
	f.handleMu.RLock()
	defer f.handleMu.RUnlock()
	var out []uint64
	for _, h := range f.handles {
		if h.setID == setID && h.node != 0 {
			out = append(out, h.node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// rootName is where a guest's filesystem hangs in the tree.
type rootName struct {
	parent uint64
	name   string
}

// guestRoots are the places below the nodes of a set that the kernel may know as guests' roots.
func (t *nodeTable) guestRoots(setID string) []rootName {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []rootName
	for id, n := range t.byID {
		if n.at.setID != setID || !n.e.isDir() {
			continue
		}
		for _, k := range n.e.children() {
			if k.files {
				out = append(out, rootName{id, k.name})
			}
		}
	}
	return out
}

// stillUsable takes a handle back that was opened while its snapshot became invalid.
func (f *fileSystem) stillUsable(v *control.Volume, fh uint64) error {
	err := v.Usable()
	if err != nil {
		f.dropHandle(fh)
	}
	return err
}

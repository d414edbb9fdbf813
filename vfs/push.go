package vfs

import (
	"sync/atomic"

	"domfs/backend"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// pushMax is the size of the largest file, in bytes, whose content is pushed.
	pushMax = 64 << 10
	// maxPushes is how many may be under way at a time.
	maxPushes = 8
	// pushedBits is log2 of the bits of a pushedSet.
	pushedBits = 19
)

// pusher puts the content of small files into the kernel's page cache as they are opened
// (FUSE_NOTIFY_STORE), so that no READ follows: for a walk that reads many small files, the
// round trips are what it costs. Attributes stay valid, too: after a READ the kernel asks for
// the time of access anew.
//
// Only what cannot change is pushed; so there is nothing to be kept in order with. It is done
// before OPEN is answered, by its own goroutine. The kernel takes the locks of the pages
// meanwhile. Another process that reads the file may hold them until its READ is answered: that is
// done by another goroutine and waits for nothing here, so no lock may be held that it needs. The
// kernel holds no page's lock while it waits for the OPEN itself.
type pusher struct {
	buffers chan []byte // maxPushes of them, nil until used
	off     atomic.Bool // the kernel does not know it
}

func (p *pusher) init() {
	p.buffers = make(chan []byte, maxPushes)
	for range maxPushes {
		p.buffers <- nil
	}
}

// push gives the kernel the content of a file of a frozen slot, at most once while the kernel
// knows the file. A failure is none of the caller's: what is not pushed is read.
func (f *fileSystem) push(s *slot, in *fuse.OpenIn, ino uint64, file backend.File) {
	size := file.Size()
	if size == 0 || size > pushMax || in.Flags&unix.O_DIRECT != 0 || f.pusher.off.Load() {
		return
	}
	var buf []byte
	select {
	case buf = <-f.pusher.buffers:
	default:
		return // memory, and what waits for the kernel, are bounded
	}
	defer func() { f.pusher.buffers <- buf }()
	if !s.pushed.add(ino) {
		return
	}
	if buf == nil {
		buf = make([]byte, pushMax)
	}
	if n, _ := file.ReadAt(buf[:size], 0); int64(n) != size {
		return // READ says why
	}
	if f.server.InodeNotifyStoreCache(in.NodeId, 0, buf[:size]) == fuse.ENOSYS {
		f.pusher.off.Store(true)
	}
}

// pushedFiles is a pushedSet that takes memory only once something is pushed.
type pushedFiles struct{ set atomic.Pointer[pushedSet] }

func (p *pushedFiles) add(ino uint64) bool {
	if p.set.Load() == nil {
		p.set.CompareAndSwap(nil, &pushedSet{})
	}
	return p.set.Load().add(ino)
}

func (p *pushedFiles) remove(ino uint64) {
	if set := p.set.Load(); set != nil {
		set.remove(ino)
	}
}

func (p *pushedFiles) clear() {
	if set := p.set.Load(); set != nil {
		set.clear()
	}
}

// pushedSet remembers inodes by one bit each, the low bits of their numbers: one that shares
// its bit with another is taken for pushed, and is read. (Numbers are mostly dense: a hash would
// make more of them share.) It is emptied when it is half full, and an inode leaves it when the kernel
// forgets it, and its pages.
type pushedSet struct {
	bits  [1 << pushedBits / 32]atomic.Uint32
	count atomic.Int32
}

func (p *pushedSet) place(ino uint64) (word *atomic.Uint32, bit uint32) {
	i := ino % (1 << pushedBits)
	return &p.bits[i/32], 1 << (i % 32)
}

// add tells whether ino was not in the set.
func (p *pushedSet) add(ino uint64) bool {
	word, bit := p.place(ino)
	if word.Or(bit)&bit != 0 {
		return false
	}
	if p.count.Add(1) > 1<<(pushedBits-1) {
		p.clear()
	}
	return true
}

func (p *pushedSet) clear() {
	for i := range p.bits {
		p.bits[i].Store(0)
	}
	p.count.Store(0)
}

func (p *pushedSet) remove(ino uint64) {
	if word, bit := p.place(ino); word.And(^bit)&bit != 0 {
		p.count.Add(-1)
	}
}

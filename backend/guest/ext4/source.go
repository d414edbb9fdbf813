package ext4

import (
	"errors"
	"fmt"
	"io"

	"domfs/backend"
)

// corrupt makes an error of a structure that is wrong.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), backend.ErrCorrupt)
}

// readAt fills p with the filesystem's bytes at off: the device's, under what the journal
// holds. Metadata and content, everything but the superblock is read through here.
func (fs *FS) readAt(p []byte, off int64) error {
	if fs.closed.Load() {
		return fmt.Errorf("the filesystem is closed: %w", backend.ErrStale) // the device's bytes are not its own
	}
	if err := fs.readDevice(p, off); err != nil {
		return err
	}
	if fs.over.empty() {
		return nil
	}
	return fs.patch(p, off)
}

// readDevice fills p with the device's bytes at off.
func (fs *FS) readDevice(p []byte, off int64) error {
	if size := fs.dev.Size(); off < 0 || off > size || int64(len(p)) > size-off {
		return corrupt("block %d lies past the end of the device, which has %d bytes of the filesystem's %d: the image is cut short",
			off>>fs.sb.blockBits, size, int64(fs.sb.blocks)<<fs.sb.blockBits)
	}
	n, err := fs.dev.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("block %d: the device ended early: %w", off>>fs.sb.blockBits, backend.ErrIO)
	}
	return fmt.Errorf("block %d: %w", off>>fs.sb.blockBits, err)
}

// locate says where the bytes that readAt returns lie in the host.
func (fs *FS) locate(off, length int64) (backend.Location, bool) {
	l, ok := fs.dev.(backend.Locator)
	if !ok || fs.closed.Load() || off < 0 || off >= fs.dev.Size() {
		return backend.Location{}, false
	}
	length = min(length, fs.dev.Size()-off)
	if !fs.over.empty() && length > 0 {
		if off, length, ok = fs.unpatched(off, length); !ok {
			return backend.Location{}, false
		}
	}
	return l.Locate(off, length)
}

// blocks returns n blocks of metadata, from the cache where they are in it. What it
// returns must not be changed.
func (fs *FS) blocks(block uint64, n int) (*cached, error) {
	key := cacheKey{block, n}
	if c := fs.cache.lookup(key); c != nil {
		return c, nil
	}
	data := make([]byte, n<<fs.sb.blockBits)
	if err := fs.readAt(data, int64(block)<<fs.sb.blockBits); err != nil {
		return nil, err
	}
	return fs.cache.insert(key, data), nil
}

// readahead puts up to n blocks from block on into the cache, each on its own, in one
// read, unless the first one is there already. It is a hint: errors show when the blocks are read.
func (fs *FS) readahead(block uint64, n int) {
	n = min(n, readaheadBytes>>fs.sb.blockBits)
	if n < 2 || fs.cache.lookup(cacheKey{block, 1}) != nil {
		return
	}
	data := make([]byte, n<<fs.sb.blockBits)
	if fs.readAt(data, int64(block)<<fs.sb.blockBits) != nil {
		return
	}
	for i := range n {
		// A copy each, so that the eviction of one frees its memory.
		fs.cache.insert(cacheKey{block + uint64(i), 1}, append([]byte(nil), data[i<<fs.sb.blockBits:(i+1)<<fs.sb.blockBits]...))
	}
}

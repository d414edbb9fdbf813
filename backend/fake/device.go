package fake

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"domfs/backend"
)

// device reads a volume of a Store.
type device struct {
	store  *Store
	volume *volume
	size   int64
	closed atomic.Bool
}

func (d *device) Size() int64 { return d.size }

func (d *device) Close() error {
	if d.closed.Swap(true) {
		return os.ErrClosed
	}
	d.store.mu.Lock()
	d.store.open--
	d.store.mu.Unlock()
	return nil
}

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	if d.closed.Load() {
		return 0, os.ErrClosed
	}
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d: %w", off, backend.ErrInvalid)
	}
	d.store.mu.Lock()
	dev, data := d.volume.dev, d.volume.data
	if d.volume.dead {
		d.store.mu.Unlock()
		return 0, fmt.Errorf("read of %s: %w", d.volume.id, backend.ErrIO)
	}
	if dev == nil {
		defer d.store.mu.Unlock()
	} else {
		d.store.mu.Unlock()
		return dev.ReadAt(p, off)
	}
	if off >= int64(len(data)) {
		return 0, io.EOF
	}
	n := copy(p, data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

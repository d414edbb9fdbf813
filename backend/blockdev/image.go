package blockdev

import (
	"fmt"
	"sync"

	"domfs/backend"
)

// maxImages bounds how many headers are remembered.
const maxImages = 4096

// Images remembers what the images on devices say of themselves, so that a header is read anew only if its device
// was written to since. The zero Images is ready for use, by several at once.
type Images struct {
	mu      sync.Mutex
	headers map[uint64]header // by device number; guarded by mu
}

// header is what an image said, with the device's Generation when it did.
type header struct {
	format     string
	generation uint64
	sizeBytes  int64
	err        error
}

// SizeBytes is the size that a guest sees of the image in the given format on the device at path with the number rdev.
func (i *Images) SizeBytes(path string, rdev, generation uint64, format backend.Format, o Options) (int64, error) {
	i.mu.Lock()
	h, ok := i.headers[rdev]
	i.mu.Unlock()
	if ok && h.format == format.Name() && h.generation == generation {
		return h.sizeBytes, h.err
	}
	h = header{format: format.Name(), generation: generation}
	d, err := Open(path, o)
	if err == nil {
		var read backend.FormatHeader
		read, h.err = readHeader(d, path, format)
		h.sizeBytes = read.SizeBytes
		err = d.Close()
	}
	if err != nil {
		return 0, err // it may pass
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.headers == nil || len(i.headers) >= maxImages {
		i.headers = map[uint64]header{}
	}
	i.headers[rdev] = h
	return h.sizeBytes, h.err
}

// OpenImage opens the image in the given format on d, the device at path, or gives d itself where format is nil. After
// an error d is closed.
func OpenImage(d backend.Device, path string, format backend.Format) (backend.Device, error) {
	if format == nil {
		return d, nil
	}
	_, err := readHeader(d, path, format)
	if err == nil {
		var image backend.Device
		if image, err = format.Open(d, nil); err == nil {
			return image, nil
		}
		err = fmt.Errorf("open %s as %s: %w", path, format.Name(), err)
	}
	d.Close()
	return nil, err
}

// readHeader reads an image's header. One that goes on in another file is refused: on a
// device there is no folder that such a name could be relative to.
func readHeader(d backend.Device, path string, format backend.Format) (backend.FormatHeader, error) {
	h, err := format.Header(d)
	if err != nil {
		return h, fmt.Errorf("%s, a %s image by its disk's configuration: %w", path, format.Name(), err)
	}
	if h.Backing != "" {
		const most = 300
		name := h.Backing[:min(len(h.Backing), most)]
		return h, backend.Because(backend.ErrUnsupported, "%s has the backing file %q, a file of the host that whoever made the image has chosen, and backing files of images on devices are not followed: "+
			"qemu-img rebase -u -f %s -b \"\" drops it, and then only what is in the image itself remains of the disk", path, name, format.Name())
	}
	return h, nil
}

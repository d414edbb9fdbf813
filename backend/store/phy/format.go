package phy

import (
	"fmt"

	"domfs/backend"
)

// formatOf finds the format of a disk; nil is raw.
func (s *Store) formatOf(name string) (backend.Format, error) {
	if name == formatRaw || name == "" {
		return nil, nil
	}
	names := formatRaw
	for _, f := range s.formats {
		if f.Name() == name {
			return f, nil
		}
		names += ", " + f.Name()
	}
	return nil, backend.Because(backend.ErrUnsupported, "%s is not read on a device, only %s", name, names)
}

// header is what an image on a device says of itself, with the device's Generation when it did.
type header struct {
	format     string
	generation uint64
	sizeBytes  int64
	err        error
}

// guestBytes is the size that a guest sees of the image on a device. It is read anew only if the device was
// written to since.
func (s *Store) guestBytes(v backend.Volume, format backend.Format, rdev uint64) (int64, error) {
	s.mu.Lock()
	h, ok := s.headers[rdev]
	s.mu.Unlock()
	if ok && h.format == format.Name() && h.generation == v.Generation {
		return h.sizeBytes, h.err
	}
	h = header{format: format.Name(), generation: v.Generation}
	d, err := openDevice(v.ID)
	if err == nil {
		var read backend.FormatHeader
		read, h.err = readHeader(d, format)
		h.sizeBytes = read.SizeBytes
		err = d.Close()
	}
	if err != nil {
		return 0, err // it may pass
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.headers) >= maxClaims {
		clear(s.headers)
	}
	s.headers[rdev] = h
	return h.sizeBytes, h.err
}

// readHeader reads an image's header. One that goes on in another file is refused: on a
// device there is no folder that such a name could be relative to.
func readHeader(d *device, format backend.Format) (backend.FormatHeader, error) {
	h, err := format.Header(d)
	if err != nil {
		return h, fmt.Errorf("%s, a %s image by its disk's configuration: %w", d.path, format.Name(), err)
	}
	if h.Backing != "" {
		const most = 300
		name := h.Backing[:min(len(h.Backing), most)]
		return h, backend.Because(backend.ErrUnsupported, "%s has the backing file %q, a file of the host that whoever made the image has chosen, and backing files of images on devices are not followed: "+
			"qemu-img rebase -u -f %s -b \"\" drops it, and then only what is in the image itself remains of the disk", d.path, name, format.Name())
	}
	return h, nil
}

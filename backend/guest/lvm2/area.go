package lvm2

import (
	"errors"
	"fmt"

	"domfs/backend"
)

const (
	mdaHeaderSize = 512
	mdaMagic      = " LVM2 x[5A%r0N*>"
	mdaVersion    = 1
	mdaLocations  = 40 // offset of the first raw_locn
	locnIgnored   = 1  // RAW_LOCN_IGNORED
)

// errNoText is that of an area that holds no metadata: it is ignored, or the physical volume is in no group.
var errNoText = errors.New("no metadata in this area")

// readArea reads the committed text of the metadata area at (struct mda_header, struct raw_locn): errNoText
// where there is none. At most *budget bytes are read, which it reduces.
func readArea(d backend.Device, at location, budget *int64) (string, error) {
	h, err := readFull(d, at.offset, mdaHeaderSize)
	if err != nil {
		return "", fmt.Errorf("its header: %w", err)
	}
	if crc(h[4:]) != le.Uint32(h) {
		return "", fmt.Errorf("the checksum of its header is wrong: %w", backend.ErrCorrupt)
	}
	if string(h[4:20]) != mdaMagic || le.Uint64(h[24:]) != uint64(at.offset) {
		return "", fmt.Errorf("its header is not that of an area at byte %d: %w", at.offset, backend.ErrCorrupt)
	}
	if v := le.Uint32(h[20:]); v != mdaVersion {
		return "", fmt.Errorf("its version is %d: %w", v, backend.ErrUnsupported)
	}
	// Slot 0 is the committed text, slot 1 one that was about to be committed.
	locn := h[mdaLocations:]
	offset, size, sum, flags := le.Uint64(locn), le.Uint64(locn[8:]), le.Uint32(locn[16:]), le.Uint32(locn[20:])
	if offset == 0 || size == 0 || flags&locnIgnored != 0 {
		return "", errNoText
	}
	area := le.Uint64(h[32:])
	if area <= mdaHeaderSize || area > uint64(d.Size()) || at.offset > d.Size()-int64(area) {
		return "", fmt.Errorf("its %d bytes at byte %d are outside of a device of %d bytes: %w", area, at.offset, d.Size(), backend.ErrCorrupt)
	}
	if offset < mdaHeaderSize || offset >= area || size > area-mdaHeaderSize {
		return "", fmt.Errorf("its text (%d bytes at byte %d) does not fit in its %d bytes: %w", size, offset, area, backend.ErrCorrupt)
	}
	if size > maxTextBytes {
		return "", fmt.Errorf("its text has %d bytes, more than %d: %w", size, maxTextBytes, backend.ErrUnsupported)
	}
	if int64(size) > *budget {
		return "", fmt.Errorf("it was not read: more than %d bytes of metadata in all: %w", maxTextTotal, backend.ErrUnsupported)
	}
	*budget -= int64(size)
	text := make([]byte, size)
	first := min(size, area-offset) // the rest is past the header, where the buffer begins
	if err := readAll(d, text[:first], at.offset+int64(offset)); err != nil {
		return "", fmt.Errorf("its text: %w", err)
	}
	if err := readAll(d, text[first:], at.offset+mdaHeaderSize); err != nil {
		return "", fmt.Errorf("its text: %w", err)
	}
	if crc(text) != sum {
		return "", fmt.Errorf("the checksum of its text is wrong: %w", backend.ErrCorrupt)
	}
	return string(text), nil
}

package hostdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"domfs/backend"
)

// LVM looks for its label in the first four sectors of a device, whatever else is on it (LVM2's lib/label).
const (
	sectorBytes = 512
	// LabelBytes is what HasPVLabel reads.
	LabelBytes = 4 * sectorBytes
)

var labelMagic = []byte("LABELONE")

// HasPVLabel tells whether LVM could take a device that begins at off, of length bytes, for a physical
// volume: by the label's magic alone, so that no fault in the rest of it matters.
func HasPVLabel(r io.ReaderAt, off, length int64) (bool, error) {
	head := make([]byte, min(LabelBytes, max(length, 0)))
	n, err := r.ReadAt(head, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the %d bytes at %d: %w: %w", len(head), off, backend.ErrIO, err)
	}
	for sector := 0; sector < n; sector += sectorBytes {
		if bytes.HasPrefix(head[sector:n], labelMagic) {
			return true, nil
		}
	}
	return false, nil
}

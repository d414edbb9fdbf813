package part

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"domfs/backend"
)

const (
	// maxNumber is the highest partition number that Linux has.
	maxNumber = 255
	sector512 = 512
)

var le = binary.LittleEndian

// New makes the Layout of GPT and MBR tables.
func New() backend.Layout { return layout{} }

type layout struct{}

// Types are gpt and dos, and PMBR: blkid's word for the protective MBR of a GPT that is
// corrupt. Parts says what is wrong with it.
func (layout) Types() []string { return []string{"gpt", "dos", "PMBR"} }

// Parts lists the partitions of the table on d, in order of their numbers.
func (layout) Parts(d backend.Device) ([]backend.Part, error) {
	mbr, err := readFull(d, 0, sector512)
	if err != nil {
		return nil, fmt.Errorf("read the partition table in the first sector: %w", err)
	}
	if !signed(mbr) {
		return nil, fmt.Errorf("the first sector does not end in 55 AA, there is no partition table: %w", backend.ErrCorrupt)
	}
	if isProtective(mbr) {
		return gptParts(d)
	}
	return mbrParts(d, mbr)
}

// Warnings says that the backup of a GPT was read.
func (layout) Warnings(d backend.Device) []string {
	mbr, err := readFull(d, 0, sector512)
	if err != nil || !signed(mbr) || !isProtective(mbr) {
		return nil
	}
	return gptWarnings(d)
}

// newPart makes a Part of the length bytes at off, which need not be on the device.
func newPart(d backend.Device, number int, off, length int64) backend.Part {
	p := backend.Part{Number: number}
	s, err := backend.Section(d, off, length)
	switch {
	case err == nil:
		p.Device = s
	case off >= d.Size():
		p.Err = fmt.Errorf("partition %d begins at byte %d, but the disk ends at byte %d (is the image truncated?): %w",
			number, off, d.Size(), backend.ErrCorrupt)
	default:
		p.Err = fmt.Errorf("partition %d ends at byte %d, but the disk ends at byte %d (is the image truncated?): %w",
			number, off+length, d.Size(), backend.ErrCorrupt)
	}
	return p
}

// readFull reads n bytes at off. That the device has no such bytes is ErrCorrupt; other
// errors are the device's own.
func readFull(d backend.Device, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > d.Size() || n > d.Size()-off {
		return nil, fmt.Errorf("bytes %d to %d lie past the end of the disk at byte %d: %w", off, off+n, d.Size(), backend.ErrCorrupt)
	}
	b := make([]byte, n)
	got, err := d.ReadAt(b, off)
	switch {
	case got == len(b):
		return b, nil
	case err == nil || errors.Is(err, io.EOF):
		return nil, fmt.Errorf("the disk ends at byte %d instead of %d: %w", off+int64(got), d.Size(), backend.ErrCorrupt)
	}
	return nil, err
}

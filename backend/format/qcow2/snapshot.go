package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"domfs/backend"
)

const snapshotEntryBytes = 40 // without its extra data, id and name

// Snapshot is an internal snapshot: the disk as it was, in the same file.
type Snapshot struct {
	ID, Name     string // bytes as they are in the image; QEMU numbers by ID
	SizeBytes    int64  // of the disk then
	VMStateBytes int64  // of a running machine's state, 0 if it has none
	Created      time.Time
	VMClock      time.Duration // how long the machine had run
	l1           table
}

// Snapshots lists the internal snapshots of an image, in its own order.
func (Driver) Snapshots(file backend.Device) ([]Snapshot, error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	err = h.eachSnapshot(file, func(s Snapshot) bool {
		all = append(all, s)
		return true
	})
	return all, err
}

// OpenSnapshot opens an internal snapshot as Open does the active disk, by its ID, or by its name if
// none has that ID. It is ErrNotExist if there is none.
func (Driver) OpenSnapshot(file, backing backend.Device, id string) (backend.Device, error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	var found *Snapshot
	err = h.eachSnapshot(file, func(s Snapshot) bool {
		if s.ID == id || s.Name == id && found == nil {
			found = &s
		}
		return s.ID != id
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, backend.Because(backend.ErrNotExist, "the qcow2 image has no internal snapshot %q", id)
	}
	return h.open(file, backing, found.l1, found.SizeBytes)
}

// eachSnapshot calls f with each entry of the snapshot table (QEMU's docs/interop/qcow2, "Snapshots"), until
// it returns false.
func (h *header) eachSnapshot(file backend.Device, f func(Snapshot) bool) error {
	table := io.NewSectionReader(file, h.snapshots.off, min(maxSnapshotBytes, max(0, file.Size()-h.snapshots.off)))
	r := snapshotReader{r: bufio.NewReaderSize(table, 16<<10)}
	for i := range h.snapshots.entries {
		s, err := h.readSnapshot(&r, i)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return corrupt("ends within entry %d of its snapshot table", i)
		}
		if err != nil {
			return err
		}
		if !f(s) {
			break
		}
	}
	return nil
}

// snapshotReader counts what it reads, to align entries.
type snapshotReader struct {
	r *bufio.Reader
	n int64
}

func (r *snapshotReader) bytes(n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := io.ReadFull(r.r, b)
	r.n += int64(got)
	return b, err
}

// readSnapshot reads entry i.
func (h *header) readSnapshot(r *snapshotReader, i int) (s Snapshot, err error) {
	if _, err = r.bytes(int(-r.n & 7)); err != nil {
		return s, err
	}
	b, err := r.bytes(snapshotEntryBytes)
	if err != nil {
		return s, err
	}
	be := binary.BigEndian
	if s.l1, err = h.checkTable(fmt.Sprintf("L1 table of entry %d of its snapshot table", i), be.Uint64(b), be.Uint32(b[8:]), 8, maxL1Bytes); err != nil {
		return s, err
	}
	idBytes, nameBytes := int(be.Uint16(b[12:])), int(be.Uint16(b[14:]))
	s.Created = time.Unix(int64(be.Uint32(b[16:])), int64(be.Uint32(b[20:]))).UTC()
	s.VMClock = time.Duration(min(be.Uint64(b[24:]), math.MaxInt64))
	stateBytes, size := uint64(be.Uint32(b[32:])), uint64(h.sizeBytes)
	extraBytes := be.Uint32(b[36:])
	if extraBytes > maxSnapshotExtra {
		return s, corrupt("has %d bytes of extra data in entry %d of its snapshot table, more than can be", extraBytes, i)
	}
	extra, err := r.bytes(int(extraBytes))
	if err != nil {
		return s, err
	}
	if len(extra) >= 8 {
		stateBytes = be.Uint64(extra)
	}
	if len(extra) >= 16 {
		size = be.Uint64(extra[8:])
	}
	id, err := r.bytes(idBytes)
	if err != nil {
		return s, err
	}
	name, err := r.bytes(nameBytes)
	if err != nil {
		return s, err
	}
	s.ID, s.Name = cString(id), cString(name)
	// No table maps more. One that maps less leaves the rest unallocated.
	if size > math.MaxInt64 || h.l1Need(int64(size)) > maxL1Bytes/8 || stateBytes > math.MaxInt64 {
		return s, corrupt("has a snapshot of %d bytes with %d bytes of state in entry %d of its snapshot table, more than can be", size, stateBytes, i)
	}
	s.SizeBytes, s.VMStateBytes = int64(size)&^(sectorSize-1), int64(stateBytes)
	return s, nil
}

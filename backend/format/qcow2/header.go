package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"domfs/backend"
)

// Limits, the same as QEMU's.
const (
	minClusterBits       = 9
	maxClusterBits       = 21
	minExtendedBits      = 14       // of clusters with subclusters: those have 512 bytes at least
	maxL1Bytes           = 32 << 20 // of an L1 table
	maxRefcountBytes     = 8 << 20  // of the refcount table
	maxRefcountOrder     = 6
	maxBackingNameBytes  = 1023
	maxFormatNameBytes   = 15
	maxSnapshots         = 65536
	maxSnapshotBytes     = 1024 * maxSnapshots // of the snapshot table
	maxSnapshotExtra     = 1024                // bytes, of an entry of it
	maxExtensions        = 256                 // QEMU has no such limit, and writes five
	sectorSize           = 512
	headerBytes2         = 72  // of version 2
	headerBytes3         = 104 // of version 3, at least
	compressionTypeAt    = 104
	firstReadBytes       = 4096
	extensionEnd         = 0
	extensionFormat      = 0xe2792aca
	extensionFeatureName = 0x6803f857
)

const magic = "QFI\xfb"

// header is what the first cluster of an image says, checked.
type header struct {
	version       uint32
	clusterBits   uint
	sizeBytes     int64 // of whole sectors, as QEMU has it
	l1            table
	refcount      table // in clusters
	refcountOrder uint32
	snapshots     table // entries are of variable length
	incompatible  uint64
	compression   uint8
	backing       string
	backingFormat string
}

// table is an array in the file.
type table struct {
	off     int64
	entries int
}

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }
func (h *header) extended() bool     { return h.incompatible&incompatExtendedL2 != 0 }

// l2EntryBits is log2 of the bytes of an entry of an L2 table, l2Bits that of their number.
func (h *header) l2EntryBits() uint {
	if h.extended() {
		return 4
	}
	return 3
}
func (h *header) l2Bits() uint { return h.clusterBits - h.l2EntryBits() }

// l1Need is how many entries of an L1 table map size bytes.
func (h *header) l1Need(size int64) int64 {
	if size == 0 {
		return 0
	}
	return (size-1)>>(h.clusterBits+h.l2Bits()) + 1
}

// checkTable refuses an array that cannot be: at an offset that is no cluster's, or larger than maxBytes.
func (h *header) checkTable(what string, off uint64, entries uint32, entryBytes, maxBytes int64) (table, error) {
	if int64(entries) > maxBytes/entryBytes {
		return table{}, corrupt("has %d entries in its %s, more than can be", entries, what)
	}
	if off > uint64(math.MaxInt64-int64(entries)*entryBytes) || off&uint64(h.clusterSize()-1) != 0 {
		return table{}, corrupt("has its %s at byte %d, where no cluster begins", what, off)
	}
	return table{off: int64(off), entries: int(entries)}, nil
}

// readHeader reads and checks the header (QEMU's docs/interop/qcow2, "Header" and "Header extensions").
func readHeader(file backend.Device) (*header, error) {
	w := window{file: file}
	b, err := w.bytes(0, headerBytes2)
	if err != nil {
		return nil, err
	}
	if b == nil || string(b[:4]) != magic {
		return nil, corrupt("has no qcow2 header: correct the disk's format in its domain's configuration")
	}
	be := binary.BigEndian
	h := &header{version: be.Uint32(b[4:])}
	if h.version != 2 && h.version != 3 {
		return nil, unsupported("is of version %d, and 2 and 3 are read: "+remake, h.version)
	}
	bits := be.Uint32(b[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return nil, corrupt("has clusters of 2^%d bytes, and 2^%d to 2^%d can be", bits, minClusterBits, maxClusterBits)
	}
	h.clusterBits = uint(bits)
	length := int64(headerBytes2)
	h.refcountOrder = 4
	if h.version == 3 {
		if length, err = h.readVersion3(&w); err != nil {
			return nil, err
		}
	}
	backingOff, backingLen := be.Uint64(b[8:]), be.Uint32(b[16:])
	if backingOff > uint64(h.clusterSize()) {
		return nil, corrupt("has the name of its backing file at byte %d, outside of the first cluster", backingOff)
	}
	end := h.clusterSize()
	if backingOff != 0 {
		end = int64(backingOff)
	}
	names, extErr := h.readExtensions(&w, length, end)
	if err := h.checkFeatures(names); err != nil {
		return nil, err
	}
	if extErr != nil {
		return nil, extErr
	}
	if err := h.checkCompression(); err != nil {
		return nil, err
	}
	if err := h.checkEncryption(be.Uint32(b[32:])); err != nil {
		return nil, err
	}
	if h.extended() && h.clusterBits < minExtendedBits {
		return nil, corrupt("has extended L2 entries and clusters of %d bytes, and %d is the least", h.clusterSize(), 1<<minExtendedBits)
	}
	if err := h.readTables(b); err != nil {
		return nil, err
	}
	if backingOff != 0 {
		if int64(backingLen) > min(maxBackingNameBytes, h.clusterSize()-int64(backingOff)) {
			return nil, corrupt("has a name of %d bytes for its backing file, more than can be", backingLen)
		}
		name, err := w.bytes(int64(backingOff), int(backingLen))
		if err != nil {
			return nil, err
		}
		if name == nil {
			return nil, corrupt("ends before the name of its backing file")
		}
		h.backing = cString(name)
	}
	return h, nil
}

// readVersion3 reads the fields that version 2 lacks, and returns the length of the header.
func (h *header) readVersion3(w *window) (int64, error) {
	b, err := w.bytes(0, headerBytes3)
	if err != nil {
		return 0, err
	}
	if b == nil {
		return 0, corrupt("ends within its header")
	}
	be := binary.BigEndian
	h.incompatible = be.Uint64(b[72:])
	autoclear := be.Uint64(b[88:])
	h.refcountOrder = be.Uint32(b[96:])
	length := int64(be.Uint32(b[100:]))
	if length < headerBytes3 || length > h.clusterSize() {
		return 0, corrupt("says that its header has %d bytes, and %d to %d can be", length, headerBytes3, h.clusterSize())
	}
	if h.refcountOrder > maxRefcountOrder {
		return 0, corrupt("has refcounts of 2^%d bits, and 2^%d is the most", h.refcountOrder, maxRefcountOrder)
	}
	if autoclear&autoclearRawData != 0 && h.incompatible&incompatDataFile == 0 {
		return 0, corrupt("says that its external data file is raw, and has none")
	}
	if length > compressionTypeAt {
		c, err := w.bytes(compressionTypeAt, 1)
		if err != nil {
			return 0, err
		}
		if c != nil { // else zero, as all that lies past the end
			h.compression = c[0]
		}
	}
	return length, nil
}

func (h *header) readTables(b []byte) (err error) {
	be := binary.BigEndian
	size := be.Uint64(b[24:])
	if size > math.MaxInt64 {
		return corrupt("says that it has %d bytes, more than can be", size)
	}
	h.sizeBytes = int64(size) &^ (sectorSize - 1)
	if be.Uint32(b[56:]) == 0 {
		return corrupt("has no refcount table")
	}
	if h.refcount, err = h.checkTable("refcount table", be.Uint64(b[48:]), be.Uint32(b[56:]), h.clusterSize(), maxRefcountBytes); err != nil {
		return err
	}
	const leastEntry = snapshotEntryBytes
	if h.snapshots, err = h.checkTable("snapshot table", be.Uint64(b[64:]), be.Uint32(b[60:]), leastEntry, leastEntry*maxSnapshots); err != nil {
		return err
	}
	if h.l1, err = h.checkTable("L1 table", be.Uint64(b[40:]), be.Uint32(b[36:]), 8, maxL1Bytes); err != nil {
		return err
	}
	if need := h.l1Need(int64(size)); int64(h.l1.entries) < need {
		return corrupt("has %d entries in its L1 table, and needs %d for its %d bytes", h.l1.entries, need, size)
	}
	return nil
}

// readExtensions reads what lies between the header and end. The names of features are returned with an
// error, too: the reason for it may be a feature.
func (h *header) readExtensions(w *window, off, end int64) (names map[uint]string, err error) {
	for n := 0; off < end; n++ {
		if n == maxExtensions {
			return names, corrupt("has more than %d header extensions", maxExtensions)
		}
		head, err := w.bytes(off, 8)
		if err != nil {
			return names, err
		}
		if head == nil {
			return names, nil // zeros: the end
		}
		kind, length := binary.BigEndian.Uint32(head), int64(binary.BigEndian.Uint32(head[4:]))
		off += 8
		if off > end || length > end-off {
			return names, corrupt("has a header extension of %d bytes, which does not fit into the first cluster", length)
		}
		switch kind {
		case extensionEnd:
			return names, nil
		case extensionFormat:
			if length > maxFormatNameBytes {
				return names, corrupt("has a name of %d bytes for the format of its backing file", length)
			}
			b, err := w.bytes(off, int(length))
			if err != nil {
				return names, err
			}
			h.backingFormat = cString(b)
		case extensionFeatureName:
			b, err := w.bytes(off, int(min(length, maxFeatureTableBytes)))
			if err != nil {
				return names, err
			}
			names = incompatibleNames(b)
		}
		off += (length + 7) &^ 7
	}
	return names, nil
}

// window reads from the beginning of a file, the first few KiB at once.
type window struct {
	file  backend.Device
	first []byte
}

// bytes are the n bytes at off, nil where the file has fewer.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off < 0 || int64(n) > w.file.Size()-off {
		return nil, nil
	}
	if w.first == nil {
		b := make([]byte, min(firstReadBytes, w.file.Size()))
		if err := readFull(w.file, b, 0); err != nil {
			return nil, err
		}
		w.first = b
	}
	if off+int64(n) <= int64(len(w.first)) {
		return w.first[off : off+int64(n) : off+int64(n)], nil
	}
	b := make([]byte, n)
	return b, readFull(w.file, b, off)
}

// readFull reads all of b. It is an error if the file ends before.
func readFull(file backend.Device, b []byte, off int64) error {
	n, err := file.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the qcow2 image ends at byte %d, and had %d bytes when it was opened: %w (%w)", off+int64(n), file.Size(), backend.ErrIO, io.ErrUnexpectedEOF)
	}
	return err
}

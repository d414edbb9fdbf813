package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// logFormat is a way in which the kernel has written logs.
type logFormat struct {
	name             string
	version          uint32
	compat, incompat uint32
}

var logFormats = []logFormat{
	{"superblock of version 1", journalSuperV1, 0, 0},
	{"32-bit", journalSuperV2, 0, journalIncompatRevoke},
	{"64-bit", journalSuperV2, 0, journalIncompatRevoke | journalIncompat64Bit},
	{"checksums of version 1", journalSuperV2, journalCompatChecksum, journalIncompatRevoke},
	{"checksums of version 1, asynchronous", journalSuperV2, journalCompatChecksum, journalIncompatRevoke | journalIncompatAsyncCommit},
	{"checksums of version 2", journalSuperV2, 0, journalIncompatRevoke | journalIncompatChecksumV2},
	{"checksums of version 2, 64-bit", journalSuperV2, 0, journalIncompatRevoke | journalIncompatChecksumV2 | journalIncompat64Bit},
	{"checksums of version 3", journalSuperV2, 0, journalIncompatRevoke | journalIncompatChecksumV3},
	{"checksums of version 3, 64-bit, asynchronous", journalSuperV2, 0, journalIncompatRevoke | journalIncompatChecksumV3 | journalIncompat64Bit | journalIncompatAsyncCommit},
	{"checksums of version 3, 64-bit", journalSuperV2, 0, journalIncompatRevoke | journalIncompatChecksumV3 | journalIncompat64Bit},
}

const (
	targetBlocks = 64
	targetByte   = '.' // what the target's blocks are full of before the replay
)

// logImage is the bytes of a clean filesystem with blocks of 1 KiB, a journal of 1024 of them and a file
// "target".
func logImage(t testing.TB) []byte { return largeLogImage(t, 4, 1) }

// largeLogImage is logImage with other sizes, of the image and the journal.
func largeLogImage(t testing.TB, imageMiB, journalMiB int) []byte {
	t.Helper()
	source := imageDir(t)
	must(t, os.WriteFile(filepath.Join(source, "target"), bytes.Repeat([]byte{targetByte}, targetBlocks<<10), 0o644))
	path := mkfs(t, imageMiB, false, "-t", "ext4", "-b", "1024", "-J", fmt.Sprintf("size=%d", journalMiB), "-N", "64", "-O", "^metadata_csum,^64bit,^resize_inode", "-d", source)
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// logWriter writes a log into an image.
type logWriter struct {
	t      testing.TB
	image  []byte
	j      *journal
	format logFormat
	target []uint64 // the file's blocks

	start, first uint32 // block and transaction that the log begins with
	at           uint32 // the journal's block to write next
	tid          uint32
	time         uint64
	sum          uint32
}

func newLogWriter(t testing.TB, image []byte, f logFormat) *logWriter {
	t.Helper()
	w := &logWriter{t: t, image: bytes.Clone(image), format: f, time: 1_700_000_000, sum: ^uint32(0)}
	fs, err := New().Open(inMemory(image))
	must(t, err)
	defer fs.Close()
	x := fs.(*FS)
	w.j, err = x.openJournal()
	must(t, err)
	w.j.compat, w.j.incompat = f.compat, f.incompat
	w.j.seed = crc32c(^uint32(0), w.block(0)[0x30:0x40])
	var in inode
	must(t, x.inode(lookup(t, fs, "target").Ino, &in))
	for i := range uint64(targetBlocks) {
		r, err := x.mapRun(&in, i)
		must(t, err)
		w.target = append(w.target, r.phys+i-r.logical)
	}
	w.begin(w.j.first, 7)
	return w
}

// begin sets where the log begins, and with which transaction.
func (w *logWriter) begin(block, tid uint32) {
	w.start, w.first, w.at, w.tid = block, tid, block, tid
}

// block is a block of the journal.
func (w *logWriter) block(n uint32) []byte {
	w.t.Helper()
	phys, ok := w.j.phys(n)
	if !ok {
		w.t.Fatalf("the journal has no block %d", n)
	}
	return w.image[phys<<10:][:1<<10]
}

// add appends a block to the log, and returns its number.
func (w *logWriter) add(b []byte) uint32 {
	n := w.at
	copy(w.block(n), b)
	if w.at++; w.at == w.j.last {
		w.at = w.j.first
	}
	return n
}

func (w *logWriter) header(kind uint32) []byte {
	b := make([]byte, 1<<10)
	for i, v := range []uint32{jbd2Magic, kind, w.tid} {
		binary.BigEndian.PutUint32(b[4*i:], v)
	}
	return b
}

// seal sets the checksum at the end of a descriptor or revoke block.
func (w *logWriter) seal(b []byte) {
	if w.j.checksumsBlocks() {
		at := len(b) - tailBytes
		binary.BigEndian.PutUint32(b[at:], 0)
		binary.BigEndian.PutUint32(b[at:], crc32c(w.j.seed, b))
	}
}

// copied is a block that the log has a copy of.
type copied struct {
	block uint64
	data  []byte
	flags uint16 // tagSameUUID is set for all but the first, tagLast for the last one
}

// fill is a copy of one of the target's blocks that is full of one byte.
func (w *logWriter) fill(i int, value byte) copied {
	return copied{block: w.target[i], data: bytes.Repeat([]byte{value}, 1<<10)}
}

// descriptor adds a descriptor block and what it describes. It returns the journal's blocks of both.
func (w *logWriter) descriptor(list ...copied) (n uint32, data []uint32) {
	for i := range list {
		if i > 0 {
			list[i].flags |= tagSameUUID
		}
	}
	list[len(list)-1].flags |= tagLast
	return w.rawDescriptor(list...)
}

func (w *logWriter) rawDescriptor(list ...copied) (n uint32, data []uint32) {
	be := binary.BigEndian
	b := w.header(journalDescriptor)
	at := jbd2HeaderBytes
	for i := range list {
		c := &list[i]
		if binary.BigEndian.Uint32(c.data) == jbd2Magic {
			c.flags |= tagEscaped
			c.data = append(make([]byte, 4), c.data[4:]...)
		}
		var seq [4]byte
		be.PutUint32(seq[:], w.tid)
		sum := crc32c(crc32c(w.j.seed, seq[:]), c.data)
		be.PutUint32(b[at:], uint32(c.block))
		if w.j.has64Bit() {
			be.PutUint32(b[at+8:], uint32(c.block>>32))
		}
		be.PutUint16(b[at+6:], c.flags)
		if w.format.incompat&journalIncompatChecksumV3 != 0 {
			be.PutUint32(b[at+12:], sum)
		} else if w.format.incompat&journalIncompatChecksumV2 != 0 {
			be.PutUint16(b[at+4:], uint16(sum))
		}
		at += w.j.tagBytes()
		if c.flags&tagSameUUID == 0 {
			copy(b[at:], "an identity, 16.")
			at += tagUUIDBytes
		}
	}
	w.seal(b)
	w.sum = crc32BE(w.sum, b)
	n = w.add(b)
	for _, c := range list {
		w.sum = crc32BE(w.sum, c.data)
		data = append(data, w.add(c.data))
	}
	return n, data
}

// revoke adds a revoke block.
func (w *logWriter) revoke(blocks ...uint64) uint32 {
	be := binary.BigEndian
	b := w.header(journalRevoke)
	at := revokeHeaderBytes
	for _, block := range blocks {
		if w.j.has64Bit() {
			be.PutUint64(b[at:], block)
			at += 8
		} else {
			be.PutUint32(b[at:], uint32(block))
			at += 4
		}
	}
	be.PutUint32(b[jbd2HeaderBytes:], uint32(at))
	w.seal(b)
	return w.add(b)
}

// commit ends a transaction.
func (w *logWriter) commit() uint32 {
	be := binary.BigEndian
	b := w.header(journalCommit)
	be.PutUint64(b[commitTime:], w.time)
	if w.j.checksumsTransactions() {
		b[12], b[13] = checksumCRC32, checksumCRC32Len
		be.PutUint32(b[16:], w.sum)
	} else if w.j.checksumsBlocks() {
		be.PutUint32(b[16:], crc32c(w.j.seed, b))
	}
	w.sum = ^uint32(0)
	w.tid++
	w.time++
	return w.add(b)
}

// write adds a whole transaction.
func (w *logWriter) write(list ...copied) {
	w.descriptor(list...)
	w.commit()
}

// finish makes the image one that needs the log's replay, and returns it.
func (w *logWriter) finish() []byte {
	be := binary.BigEndian
	b := w.block(0)
	be.PutUint32(b[0x4:], w.format.version)
	be.PutUint32(b[0x18:], w.first)
	be.PutUint32(b[0x1c:], w.start)
	be.PutUint32(b[0x24:], w.format.compat)
	be.PutUint32(b[0x28:], w.format.incompat)
	b[0x50] = 0
	if w.j.checksumsBlocks() {
		b[0x50] = jbd2ChecksumCRC32C
	}
	sealJournalSuper(b)
	at := w.image[superOffset+0x60:]
	binary.LittleEndian.PutUint32(at, binary.LittleEndian.Uint32(at)|incompatRecover)
	return w.image
}

// targetIs tells what the target's blocks are full of: a byte each, '?' where it is not one.
func targetIs(t testing.TB, fs *FS) string {
	t.Helper()
	f, err := fs.OpenFile(lookup(t, fs, "target").Ino)
	must(t, err)
	defer f.Close()
	var is []byte
	b := make([]byte, 1<<10)
	for i := range int64(targetBlocks) {
		_, err := f.ReadAt(b, i<<10)
		must(t, err)
		value := b[len(b)-1]
		if slices.ContainsFunc(b[4:], func(c byte) bool { return c != value }) {
			value = '?'
		}
		is = append(is, value)
	}
	return string(is)
}

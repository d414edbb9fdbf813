package ext4

import "encoding/binary"

// The blocks of the log: Documentation/filesystems/ext4/journal.rst.

// Flags of a tag.
const (
	tagEscaped  = 0x1
	tagSameUUID = 0x2
	tagLast     = 0x8
)

const (
	jbd2HeaderBytes   = 12
	revokeHeaderBytes = 16
	commitBytes       = 64 // of the commit block that are fields, to the kernel's checksum
	commitTime        = 48 // offset in the commit block: seconds, and 8 bytes after them nanoseconds
	checksumCRC32     = 1  // type of the checksum in a commit block, version 1
	checksumCRC32Len  = 4  // bytes
	tagUUIDBytes      = 16
	tailBytes         = 4 // the checksum at the end of descriptor and revoke blocks
)

// commitMoment is when a transaction was committed.
type commitMoment struct{ sec, nsec uint64 }

func parseCommitMoment(b []byte) commitMoment {
	be := binary.BigEndian
	return commitMoment{be.Uint64(b[commitTime:]), uint64(be.Uint32(b[commitTime+8:]))}
}

// tag says which block follows a descriptor block.
type tag struct {
	block    uint64 // of the filesystem
	flags    uint16
	checksum uint32 // the lower 16 bits only with version 2
}

func (s *journalSuper) tagBytes() int {
	switch {
	case s.incompat&journalIncompatChecksumV3 != 0:
		return 16
	case s.incompat&journalIncompatChecksumV2 != 0 && s.has64Bit():
		return 14
	case s.incompat&journalIncompatChecksumV2 != 0:
		return 10
	case s.has64Bit():
		return 12
	}
	return 8
}

// tags calls fn for each tag of a descriptor block until it returns false.
func (s *journalSuper) tags(b []byte, fn func(tag) bool) {
	be := binary.BigEndian
	size, end := s.tagBytes(), len(b)
	if s.checksumsBlocks() {
		end -= tailBytes
	}
	for at := jbd2HeaderBytes; at+size <= end; {
		t := tag{block: uint64(be.Uint32(b[at:])), checksum: uint32(be.Uint16(b[at+4:])), flags: be.Uint16(b[at+6:])}
		if s.has64Bit() {
			t.block |= uint64(be.Uint32(b[at+8:])) << 32
		}
		if s.incompat&journalIncompatChecksumV3 != 0 {
			t.checksum = be.Uint32(b[at+12:])
		}
		if !fn(t) || t.flags&tagLast != 0 {
			return
		}
		at += size
		if t.flags&tagSameUUID == 0 {
			at += tagUUIDBytes
		}
	}
}

// countTags counts a descriptor block's tags.
func (s *journalSuper) countTags(b []byte) (n uint32) {
	s.tags(b, func(tag) bool { n++; return true })
	return n
}

// revokes returns a revoke block's records, and the length of one; ok is false where the block does
// not say how many it has.
func (s *journalSuper) revokes(b []byte) (records []byte, size int, ok bool) {
	end := len(b)
	if s.checksumsBlocks() {
		end -= tailBytes
	}
	size = 4
	if s.has64Bit() {
		size = 8
	}
	used := binary.BigEndian.Uint32(b[jbd2HeaderBytes:])
	if uint64(used) > uint64(end) {
		return nil, 0, false
	}
	records = b[revokeHeaderBytes:max(revokeHeaderBytes, int(used))]
	return records[:len(records)/size*size], size, true
}

// tailRight tells whether the checksum at the end of a descriptor or revoke block is right.
func (s *journalSuper) tailRight(b []byte) bool {
	if !s.checksumsBlocks() {
		return true
	}
	at := len(b) - tailBytes
	return binary.BigEndian.Uint32(b[at:]) == crc32c(crc32c(s.seed, b[:at]), zeros[:])
}

// commitRight tells whether the checksum of a commit block is right, versions 2 and 3. All but
// its first bytes may be those of another block: they are zeros, and did not reach the disk.
func (s *journalSuper) commitRight(b []byte) bool {
	if !s.checksumsBlocks() {
		return true
	}
	const at = 0x10
	stored := binary.BigEndian.Uint32(b[at:])
	head := crc32c(crc32c(s.seed, b[:at]), zeros[:])
	if stored == crc32c(head, b[at+4:]) {
		return true
	}
	return stored == crc32c(crc32c(head, b[at+4:commitBytes]), make([]byte, len(b)-commitBytes))
}

// blockRight tells whether the checksum that a tag has of its block is right.
func (s *journalSuper) blockRight(t tag, sequence uint32, b []byte) bool {
	if !s.checksumsBlocks() {
		return true
	}
	var seq [4]byte
	binary.BigEndian.PutUint32(seq[:], sequence)
	sum := crc32c(crc32c(s.seed, seq[:]), b)
	if s.incompat&journalIncompatChecksumV2 != 0 {
		sum &= 0xffff
	}
	return t.checksum == sum
}

// commitSumRight tells whether a commit block has the checksum of its transaction, version
// 1, or none.
func commitSumRight(b []byte, sum uint32) bool {
	kind, size, stored := b[12], b[13], binary.BigEndian.Uint32(b[16:])
	return kind == checksumCRC32 && size == checksumCRC32Len && stored == sum || kind == 0 && size == 0 && stored == 0
}

// crc32BETables are of the CRC-32 polynomial, most significant bit first. Table k is the sum of a byte
// that k zeros follow.
var crc32BETables = func() (t [8][256]uint32) {
	for i := range t[0] {
		crc := uint32(i) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04c11db7
			} else {
				crc <<= 1
			}
		}
		t[0][i] = crc
	}
	for k := 1; k < len(t); k++ {
		for i, crc := range t[k-1] {
			t[k][i] = crc<<8 ^ t[0][crc>>24]
		}
	}
	return t
}()

// crc32BE is the checksum of version 1, which hash/crc32 has in the other order of bits only. It
// goes by 8 bytes, as the whole of a log is summed up.
func crc32BE(crc uint32, p []byte) uint32 {
	t := &crc32BETables
	for ; len(p) >= 8; p = p[8:] {
		hi, lo := crc^binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])
		crc = t[7][hi>>24] ^ t[6][byte(hi>>16)] ^ t[5][byte(hi>>8)] ^ t[4][byte(hi)] ^
			t[3][lo>>24] ^ t[2][byte(lo>>16)] ^ t[1][byte(lo>>8)] ^ t[0][byte(lo)]
	}
	for _, b := range p {
		crc = crc<<8 ^ t[0][byte(crc>>24)^b]
	}
	return crc
}

package part

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"unicode/utf16"

	"domfs/backend"
)

// Sizes and offsets of UEFI 2.10, 5.3.2 and 5.3.3.
const (
	gptSignature  = "EFI PART"
	gptMinHeader  = 92
	gptMinEntry   = 128
	gptMaxEntry   = 4096
	gptMaxEntries = 1024
	gptNameOffset = 56
	gptNameSize   = 72
)

// gptTable is an intact GPT: header and entries have correct checksums.
type gptTable struct {
	sector    int64 // bytes
	entrySize int64
	entries   []byte
	primary   error // what is wrong with the primary table, where this is the backup
}

// errNoHeader is a sector without the signature of a GPT header.
var errNoHeader = fmt.Errorf("no GPT header: %w", backend.ErrCorrupt)

// gptParts lists the partitions of the first intact GPT on d.
func gptParts(d backend.Device) ([]backend.Part, error) {
	t, err := findGPT(d)
	if err != nil {
		return nil, err
	}
	var parts []backend.Part
	for i := int64(0); (i+1)*t.entrySize <= int64(len(t.entries)) && i < maxNumber; i++ {
		if p, ok := t.part(d, int(i)); ok {
			parts = append(parts, p)
		}
	}
	return parts, nil
}

// part makes the Part of entry i, if it is in use.
func (t gptTable) part(d backend.Device, i int) (backend.Part, bool) {
	e := t.entries[int64(i)*t.entrySize:][:gptMinEntry]
	kind := formatGUID(e[0:16])
	if kind == "00000000-0000-0000-0000-000000000000" {
		return backend.Part{}, false
	}
	first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
	number := i + 1
	var p backend.Part
	switch {
	case last < first:
		p = backend.Part{Number: number, Err: fmt.Errorf("partition %d begins at sector %d and ends before it, at %d: %w",
			number, first, last, backend.ErrCorrupt)}
	case last >= uint64(math.MaxInt64/t.sector):
		p = backend.Part{Number: number, Err: fmt.Errorf("partition %d ends at sector %d, which no disk has: %w",
			number, last, backend.ErrCorrupt)}
	default:
		p = newPart(d, number, int64(first)*t.sector, int64(last-first+1)*t.sector)
	}
	p.Type = kind
	p.UUID = formatGUID(e[16:32])
	p.Label = gptName(e[gptNameOffset:][:gptNameSize])
	return p, true
}

// gptWarnings tells of a table that was found at the end of the disk only.
func gptWarnings(d backend.Device) []string {
	t, err := findGPT(d)
	if err != nil || t.primary == nil {
		return nil
	}
	return []string{fmt.Sprintf("its primary GPT is damaged (%v); the backup of it was read", t.primary)}
}

// findGPT looks for an intact table: primary, then backup, for both sizes of sector.
func findGPT(d backend.Device) (gptTable, error) {
	var primary, backup [2]error
	for i, sector := range []int64{512, 4096} {
		t, err := readGPT(d, sector, 1)
		if err == nil {
			return t, nil
		}
		primary[i] = err
	}
	for i, sector := range []int64{512, 4096} {
		t, err := readBackup(d, sector)
		if err == nil {
			t.primary = primary[i]
			return t, nil
		}
		backup[i] = err
	}
	// What is said of 4096-byte sectors is of use only where there is something of theirs.
	i := 0
	if errors.Is(primary[0], errNoHeader) && errors.Is(backup[0], errNoHeader) &&
		!(errors.Is(primary[1], errNoHeader) && errors.Is(backup[1], errNoHeader)) {
		i = 1
	}
	return gptTable{}, fmt.Errorf("both GPT tables are unusable: the primary: %w; the backup: %w", primary[i], backup[i])
}

// readBackup reads the table whose header is in the last sector, or else where the primary
// header says, even if that is damaged: a header there must prove itself.
func readBackup(d backend.Device, sector int64) (gptTable, error) {
	last := d.Size()/sector - 1
	t, err := readGPT(d, sector, last)
	if err == nil {
		return t, nil
	}
	h, hErr := readFull(d, sector, gptMinHeader)
	if hErr != nil || string(h[:8]) != gptSignature {
		return t, err
	}
	lba := le.Uint64(h[32:])
	if lba <= 1 || lba >= uint64(max(last, 0)) {
		return t, err
	}
	t, altErr := readGPT(d, sector, int64(lba))
	if altErr != nil && errors.Is(err, errNoHeader) {
		err = altErr
	}
	if altErr != nil {
		return gptTable{}, err
	}
	return t, nil
}

// readGPT reads and verifies the table whose header is in sector lba.
func readGPT(d backend.Device, sector, lba int64) (gptTable, error) {
	bad := func(format string, args ...any) (gptTable, error) {
		return gptTable{}, fmt.Errorf("header at byte %d: %w", lba*sector, fmt.Errorf(format, args...))
	}
	if lba < 1 {
		return gptTable{}, fmt.Errorf("a disk of %d bytes is too small for one: %w", d.Size(), errNoHeader)
	}
	h, err := readFull(d, lba*sector, sector)
	if err != nil {
		return bad("%w", err)
	}
	if string(h[:8]) != gptSignature {
		return bad("%w", errNoHeader)
	}
	size := int64(le.Uint32(h[12:]))
	if size < gptMinHeader || size > sector {
		return bad("it says that it has %d bytes, it must have %d to %d: %w", size, gptMinHeader, sector, backend.ErrCorrupt)
	}
	sum := crc32.ChecksumIEEE(h[:16])
	sum = crc32.Update(sum, crc32.IEEETable, make([]byte, 4))
	sum = crc32.Update(sum, crc32.IEEETable, h[20:size])
	if want := le.Uint32(h[16:]); sum != want {
		return bad("its checksum is %08x, it says %08x: %w", sum, want, backend.ErrCorrupt)
	}
	if my := le.Uint64(h[24:]); my != uint64(lba) {
		return bad("it belongs in sector %d, but is in %d: %w", my, lba, backend.ErrCorrupt)
	}
	n, entrySize := int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if n < 1 || n > gptMaxEntries || entrySize < gptMinEntry || entrySize > gptMaxEntry || entrySize%8 != 0 {
		return bad("it says that there are %d entries of %d bytes, at most %d of %d to %d can be read: %w",
			n, entrySize, gptMaxEntries, gptMinEntry, gptMaxEntry, backend.ErrCorrupt)
	}
	first := le.Uint64(h[72:])
	if first > uint64(d.Size()/sector) {
		return bad("its entries are in sector %d, past the end of the disk: %w", first, backend.ErrCorrupt)
	}
	entries, err := readFull(d, int64(first)*sector, n*entrySize)
	if err != nil {
		return bad("read its entries: %w", err)
	}
	if sum, want := crc32.ChecksumIEEE(entries), le.Uint32(h[88:]); sum != want {
		return bad("the checksum of its entries at byte %d is %08x, it says %08x: %w",
			int64(first)*sector, sum, want, backend.ErrCorrupt)
	}
	return gptTable{sector: sector, entrySize: entrySize, entries: entries}, nil
}

// gptName decodes a partition's name, UTF-16LE cut at NUL.
func gptName(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := le.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// formatGUID formats an EFI GUID, whose first three fields are little-endian.
func formatGUID(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x",
		le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

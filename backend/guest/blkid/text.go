package blkid

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// label is a label of the guest: cut at NUL, less the white space at its end.
func label(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(bytes.TrimRight(b, " \t\n\v\f\r"))
}

// wideLabel is a label in UTF-16, as UTF-8. A lone surrogate, which is no character but
// may stand in a label, keeps its number (as in WTF-8), so that no two labels become equal.
func wideLabel(b []byte, order binary.ByteOrder) string {
	var out []byte
	for len(b) >= 2 {
		c := rune(order.Uint16(b))
		b = b[2:]
		if c == 0 {
			break
		}
		if c >= 0xD800 && c <= 0xDBFF && len(b) >= 2 {
			if low := rune(order.Uint16(b)); low >= 0xDC00 && low <= 0xDFFF {
				c = 0x10000 + (c-0xD800)<<10 + (low - 0xDC00)
				b = b[2:]
			}
		}
		if c >= 0xD800 && c <= 0xDFFF {
			out = append(out, 0xE0|byte(c>>12), 0x80|byte(c>>6)&0x3F, 0x80|byte(c)&0x3F)
			continue
		}
		out = utf8.AppendRune(out, c)
	}
	return label(out)
}

// latin1Label is a label in ISO 8859-1, as UTF-8.
func latin1Label(b []byte) string {
	var out []byte
	for _, c := range b {
		if c == 0 {
			break
		}
		out = utf8.AppendRune(out, rune(c))
	}
	return label(out)
}

// uuid formats 16 bytes as RFC 4122 has them; all zero is none.
func uuid(b []byte) string {
	if isZero(b) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// guid formats the 16 bytes of an EFI GUID, whose first three fields are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x",
		le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// serial formats the 4-byte volume serial number of FAT and exFAT.
func serial(b []byte) string {
	if isZero(b) {
		return ""
	}
	return fmt.Sprintf("%02X%02X-%02X%02X", b[3], b[2], b[1], b[0])
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func isPowerOf2(n uint32) bool { return n != 0 && n&(n-1) == 0 }

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

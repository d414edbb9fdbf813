package blkid

import (
	"bytes"
	"fmt"
	"strings"

	"domfs/backend"
)

// UDF's volume structures (ECMA-167 parts 2 and 3, OSTA UDF 2.60).
const (
	udfVRSOffset      = 32 << 10 // of the volume recognition sequence
	udfMaxVRS         = 64       // descriptors looked at in it
	udfMaxDescriptors = 64       // in the volume descriptor sequence
	udfAnchorTag      = 2
	udfPrimaryTag     = 1
	udfLogicalTag     = 6
	udfTerminatorTag  = 8
)

// probeUDF finds the anchor of a UDF volume, whose block size is any that the medium may
// have had, and reads its descriptors.
func probeUDF(r *reader) (backend.Content, bool) {
	if !r.has(udfVRSOffset+1, "BEA01") && !r.has(udfVRSOffset+1, "BOOT2") && !r.has(udfVRSOffset+1, "CD001") &&
		!r.has(udfVRSOffset+1, "CDW02") && !r.has(udfVRSOffset+1, "NSR02") && !r.has(udfVRSOffset+1, "NSR03") &&
		!r.has(udfVRSOffset+1, "TEA01") {
		return backend.Content{}, false
	}
	recognised := udfRecognised(r, 2048)
	for _, block := range []int64{512, 1024, 2048, 4096} {
		if block > 2048 {
			recognised = udfRecognised(r, block)
		}
		if !recognised {
			continue
		}
		for _, at := range []int64{256, 512} {
			b := r.at(at*block, 512)
			if b == nil {
				return backend.Content{}, false
			}
			if int64(le.Uint32(b[12:])) == at && le.Uint16(b) == udfAnchorTag {
				return udfDescriptors(r, block, le.Uint32(b[16:]), le.Uint32(b[20:]))
			}
		}
	}
	return backend.Content{}, false
}

// udfRecognised tells whether a sequence of volume structure descriptors, one each size
// bytes, names ECMA-167.
func udfRecognised(r *reader, size int64) bool {
	for i := int64(0); i < udfMaxVRS; i++ {
		b := r.at(udfVRSOffset+i*size, 7)
		if b == nil {
			return false
		}
		switch string(b[1:6]) {
		case "NSR02", "NSR03":
			return true
		case "BEA01", "BOOT2", "CD001", "CDW02", "TEA01":
		default:
			return false
		}
	}
	return false
}

// udfDescriptors reads the volume descriptor sequence that the anchor points at.
func udfDescriptors(r *reader, block int64, length, start uint32) (backend.Content, bool) {
	var c backend.Content
	count := min(int64(length)/block, udfMaxDescriptors)
	for i := int64(0); i < count; i++ {
		b := r.at((int64(start)+i)*block, 512)
		if b == nil {
			return backend.Content{}, false
		}
		tag := le.Uint16(b)
		if tag == 0 || tag == udfTerminatorTag || int64(le.Uint32(b[12:])) != int64(start)+i {
			break
		}
		switch tag {
		case udfPrimaryTag:
			// The volume set identifier begins with what should be unique.
			if c.UUID == "" && udfCharset(b[200:264]) {
				c.UUID = udfUUID(udfString(b[72:200]))
			}
		case udfLogicalTag:
			if c.Label == "" && udfCharset(b[20:84]) {
				c.Label = label([]byte(udfString(b[84:212])))
			}
		}
	}
	return c, true
}

// udfCharset tells whether a charspec is OSTA's, the only one that UDF has.
func udfCharset(b []byte) bool {
	return b[0] == 0 && bytes.HasPrefix(b[1:], []byte("OSTA Compressed Unicode\x00"))
}

// udfString decodes a dstring: a compression ID, characters, and their length in the
// last byte.
func udfString(b []byte) string {
	n := max(int(b[len(b)-1])-1, 0)
	chars := b[1:]
	chars = chars[:min(n, len(chars)-1)]
	switch b[0] {
	case 8:
		return latin1Label(chars)
	case 16:
		return wideLabel(chars, be)
	}
	return ""
}

// udfUUID makes the 16 digits that libblkid identifies a UDF by, of the volume set
// identifier: itself if it begins with as many, else digits for its bytes.
func udfUUID(s string) string {
	if len(s) < 8 {
		return ""
	}
	s = s[:min(len(s), 16)]
	digits := 0
	for digits < len(s) && isHexDigit(s[digits]) {
		digits++
	}
	switch {
	case digits < 8:
		return fmt.Sprintf("%x", s[:8])
	case digits < 16:
		var rest [4]byte
		copy(rest[:], s[8:])
		return strings.ToLower(s[:8]) + fmt.Sprintf("%x", rest)
	}
	return strings.ToLower(s)
}

func isHexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

package blkid

import (
	"fmt"

	"domfs/backend"
)

// ISO 9660's volume descriptors (ECMA-119, 8; Joliet for the supplementary one).
const (
	isoFirstSector    = 16
	isoSectorSize     = 2048
	isoMaxDescriptors = 16
	isoBoot           = 0
	isoPrimary        = 1
	isoSupplementary  = 2
	isoEnd            = 255
)

// probeISO9660 reads the primary volume descriptor, and Joliet's for the label. The UUID is
// the date of modification, or of creation.
func probeISO9660(r *reader) (backend.Content, bool) {
	if !r.has(isoFirstSector*isoSectorSize+1, "CD001") {
		return backend.Content{}, false
	}
	var primary, joliet []byte
	for i := int64(0); i < isoMaxDescriptors && (primary == nil || joliet == nil); i++ {
		b := r.at((isoFirstSector+i)*isoSectorSize, isoSectorSize)
		if b == nil || b[0] == isoEnd {
			break
		}
		switch {
		case b[0] == isoPrimary && primary == nil:
			primary = b
		case b[0] == isoSupplementary && joliet == nil && hasAny(b[88:], "%/@", "%/C", "%/E"):
			joliet = b
		}
	}
	if primary == nil {
		return backend.Content{}, false
	}
	c := backend.Content{UUID: isoDate(primary[830:847])}
	if c.UUID == "" {
		c.UUID = isoDate(primary[813:830])
	}
	name := primary[40:72]
	if joliet == nil {
		c.Label = label(name)
	} else if merged := mergeJoliet(joliet[40:72], name); len(merged) > 0 {
		c.Label = wideLabel(merged, be)
	} else {
		c.Label = wideLabel(joliet[40:72], be)
	}
	return c, true
}

// isoDate formats a date of 16 digits and an offset in time (8.4.26.1); all '0' and 0 is
// none.
func isoDate(b []byte) string {
	d := b[:16]
	if b[16] == 0 && string(d) == "0000000000000000" || isZero(d) {
		return ""
	}
	return label(fmt.Appendf(nil, "%s-%s-%s-%s-%s-%s-%s", d[0:4], d[4:6], d[6:8], d[8:10], d[10:12], d[12:14], d[14:16]))
}

// mergeJoliet makes one label, in UTF-16BE, of Joliet's, which has all characters but at
// most 16, and the primary one, which has up to 32 but '_' for those that it cannot hold. It is
// empty if they are not the same label.
func mergeJoliet(wide, plain []byte) []byte {
	var out []byte
	a := 0
	for u := 0; u+1 < len(wide) && a < len(plain); u, a = u+2, a+1 {
		if wide[u]&0xFC == 0xD8 && u+3 < len(wide) && wide[u+2]&0xFC == 0xDC {
			out = append(out, wide[u], wide[u+1])
			u += 2
		}
		hi, lo, p := wide[u], wide[u+1], plain[a]
		switch {
		case p == '_':
			out = append(out, hi, lo)
		case hi == 0 && lo == '_':
			out = append(out, 0, p)
		case hi == 0 && upper(lo) == upper(p):
			if p >= 'A' && p <= 'Z' {
				p = lo
			}
			out = append(out, 0, p)
		default:
			return nil
		}
	}
	for ; a < len(plain); a++ {
		out = append(out, 0, plain[a])
	}
	return out
}

func upper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

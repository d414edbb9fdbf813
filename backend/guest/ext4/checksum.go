package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeros stand in for a checksum's own field.
var zeros [4]byte

// crc32c is CRC-32C as ext4 uses it: without the inversion at its end, so that sums of
// consecutive parts chain.
func crc32c(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, castagnoli, p)
}

// crc32cUint32 goes on with a little-endian number. It does not allocate, as a slice of
// its bytes given to crc32 would.
func crc32cUint32(crc, v uint32) uint32 {
	crc ^= v
	for range 4 {
		crc = castagnoli[byte(crc)] ^ crc>>8
	}
	return crc
}

// crc16Table is of the polynomial x^16+x^15+x^2+1, reflected, which the feature uninit_bg
// uses.
var crc16Table = func() (t [256]uint16) {
	for i := range t {
		crc := uint16(i)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xa001
			} else {
				crc >>= 1
			}
		}
		t[i] = crc
	}
	return t
}()

func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc = crc>>8 ^ crc16Table[byte(crc)^b]
	}
	return crc
}

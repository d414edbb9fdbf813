package ext4

import "math/bits"

// The hashes of names in htree directories: Documentation/filesystems/ext4/directory.rst.
// The first three of them extend bytes by their sign.
const (
	hashLegacy = iota
	hashHalfMD4
	hashTEA
	hashLegacyUnsigned
	hashHalfMD4Unsigned
	hashTEAUnsigned
	hashSip // with a key that is derived from an encrypted directory's: in its entries, never computed

	hashUnsigned = hashLegacyUnsigned - hashLegacy
	// hashEnd is a hash that no name has: it stands for the end of a directory.
	hashEnd = 0x7fffffff << 1
)

// nameHash is the hash of a name, of a version from hashLegacy to hashTEAUnsigned; its
// lowest bit is 0. minor is what orders names of the same hash. Both are 0 for other versions.
func nameHash(name string, version int, seed [4]uint32) (hash, minor uint32) {
	signed := version < hashUnsigned
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		buf = seed
	}
	switch version {
	case hashLegacy, hashLegacyUnsigned:
		hash = legacyHash(name, signed)
	case hashHalfMD4, hashHalfMD4Unsigned:
		for rest := name; rest != ""; rest = rest[min(32, len(rest)):] {
			var in [8]uint32
			packName(in[:], rest, signed)
			halfMD4(&buf, &in)
		}
		hash, minor = buf[1], buf[2]
	case hashTEA, hashTEAUnsigned:
		for rest := name; rest != ""; rest = rest[min(16, len(rest)):] {
			var in [4]uint32
			packName(in[:], rest, signed)
			tea(&buf, &in)
		}
		hash, minor = buf[0], buf[1]
	}
	hash &^= 1
	if hash == hashEnd {
		hash = hashEnd - 2
	}
	return hash, minor
}

// nameByte extends a byte of a name to 32 bits.
func nameByte(c byte, signed bool) uint32 {
	if signed {
		return uint32(int32(int8(c)))
	}
	return uint32(c)
}

func legacyHash(name string, signed bool) uint32 {
	h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for i := range len(name) {
		h := h1 + (h0 ^ nameByte(name[i], signed)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7fffffff
		}
		h1, h0 = h0, h
	}
	return h0 << 1
}

// packName fills out with the bytes of a name, padded with its length.
func packName(out []uint32, name string, signed bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	for i := range out {
		v := pad
		for j := 4 * i; j < min(4*i+4, len(name)); j++ {
			v = nameByte(name[j], signed) + v<<8
		}
		out[i] = v
	}
}

// halfMD4 is the first three rounds of MD4 with half of the input.
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	const k2, k3 = 0x5a827999, 0x6ed9eba1
	f := func(x, y, z uint32) uint32 { return z ^ x&(y^z) }
	g := func(x, y, z uint32) uint32 { return x&y + (x^y)&z }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	for i := 0; i < 8; i += 4 {
		a = bits.RotateLeft32(a+f(b, c, d)+in[i], 3)
		d = bits.RotateLeft32(d+f(a, b, c)+in[i+1], 7)
		c = bits.RotateLeft32(c+f(d, a, b)+in[i+2], 11)
		b = bits.RotateLeft32(b+f(c, d, a)+in[i+3], 19)
	}
	for i := 1; i >= 0; i-- {
		a = bits.RotateLeft32(a+g(b, c, d)+in[i]+k2, 3)
		d = bits.RotateLeft32(d+g(a, b, c)+in[i+2]+k2, 5)
		c = bits.RotateLeft32(c+g(d, a, b)+in[i+4]+k2, 9)
		b = bits.RotateLeft32(b+g(c, d, a)+in[i+6]+k2, 13)
	}
	for i := 3; i >= 1; i -= 2 {
		a = bits.RotateLeft32(a+h(b, c, d)+in[i]+k3, 3)
		d = bits.RotateLeft32(d+h(a, b, c)+in[i+4]+k3, 9)
		c = bits.RotateLeft32(c+h(d, a, b)+in[i-1]+k3, 11)
		b = bits.RotateLeft32(b+h(c, d, a)+in[i+3]+k3, 15)
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}

// tea is the Tiny Encryption Algorithm in 16 rounds, the input being its key.
func tea(buf *[4]uint32, in *[4]uint32) {
	const delta = 0x9e3779b9
	b0, b1 := buf[0], buf[1]
	var sum uint32
	for range 16 {
		sum += delta
		b0 += (b1<<4 + in[0]) ^ (b1 + sum) ^ (b1>>5 + in[1])
		b1 += (b0<<4 + in[2]) ^ (b0 + sum) ^ (b0>>5 + in[3])
	}
	buf[0] += b0
	buf[1] += b1
}

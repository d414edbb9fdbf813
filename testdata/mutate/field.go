package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// structure is what a seed has of one kind of structure: where its fields lie.
type structure struct {
	name   string
	fields []field
}

// field is one field of a structure, wherever there is such a structure.
type field struct {
	name   string
	bytes  int
	big    bool // big-endian
	places []int64
}

// finder collects the fields of a seed's structures. Only what was read counts: a change of anything else would
// not be seen.
type finder struct {
	read  func(off int64) bool
	found map[string]map[string]*field
}

func newFinder(t *tracer) *finder {
	return &finder{
		read:  func(off int64) bool { return t.owners[off/t.unit].area != "" },
		found: map[string]map[string]*field{},
	}
}

// part is a field as a table has it.
type part struct {
	name  string
	at    int // bytes from the structure's beginning
	bytes int
}

// add adds one field at off.
func (f *finder) add(structure, name string, off int64, bytes int, big bool) {
	if !f.read(off) || !f.read(off+int64(bytes)-1) {
		return
	}
	s := f.found[structure]
	if s == nil {
		s = map[string]*field{}
		f.found[structure] = s
	}
	if s[name] == nil {
		s[name] = &field{name: name, bytes: bytes, big: big}
	}
	s[name].places = append(s[name].places, off)
}

// parts adds the fields of a structure at off that are within its first length bytes.
func (f *finder) parts(structure string, parts []part, off int64, length int, big bool) {
	for _, p := range parts {
		if p.at+p.bytes <= length {
			f.add(structure, p.name, off+int64(p.at), p.bytes, big)
		}
	}
}

// structures are what was found, in an order that is always the same.
func (f *finder) structures() []structure {
	var out []structure
	for name, fields := range f.found {
		s := structure{name: name}
		for _, field := range fields {
			s.fields = append(s.fields, *field)
		}
		slices.SortFunc(s.fields, func(a, b field) int { return cmp.Compare(a.name, b.name) })
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b structure) int { return strings.Compare(a.name, b.name) })
	return out
}

// changeField changes one field of a kind of structure: each of its fields as often as another.
func (s *seed) changeField(r *rand.Rand, c *changed, in *structure) (string, error) {
	f := &in.fields[r.IntN(len(in.fields))]
	at := f.places[r.IntN(len(f.places))]
	old, err := c.get(at, f.bytes)
	if err != nil {
		return "", err
	}
	value := number(old, f.big)
	b := numeral(f.value(r, value, c.size, s.unit), f.bytes, f.big)
	return fmt.Sprintf("%s of %s: %x at %d becomes %x", f.name, in.name, old, at, b), c.put(at, b)
}

// value is another value of a field: a bit is turned, a little is added, it is one of those at which code breaks, or
// of any magnitude.
func (f *field) value(r *rand.Rand, old uint64, size, unit int64) uint64 {
	bits := uint(8 * min(f.bytes, 8))
	switch r.IntN(4) {
	case 0:
		return old ^ 1<<r.UintN(bits)
	case 1:
		if step := 1 + r.Uint64N(16); r.IntN(2) == 0 {
			return old + step
		} else {
			return old - step
		}
	case 2:
		return r.Uint64() >> (64 - 1 - r.UintN(bits))
	}
	values := edges(old, bits, size, unit)
	return values[r.IntN(len(values))]
}

// edges are values at which code breaks.
func edges(old uint64, bits uint, size, unit int64) []uint64 {
	top := uint64(1) << (bits - 1)
	return []uint64{0, 1, 2, 2*top - 1, 2*top - 2, top, top - 1, uint64(unit), uint64(unit) - 1, uint64(unit) - 8,
		uint64(size / unit), uint64(size/unit) - 1, uint64(size), uint64(size) - 1, 0x10000, 0x8000, old << 1, old >> 1, old << 8, ^old}
}

// numeral is a number as it is written.
func numeral(value uint64, bytes int, big bool) []byte {
	b := make([]byte, bytes)
	for i := range min(bytes, 8) {
		if big {
			b[bytes-1-i] = byte(value >> (8 * i))
		} else {
			b[i] = byte(value >> (8 * i))
		}
	}
	return b
}

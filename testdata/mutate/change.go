package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// random is the source of change number of a run.
func random(seed, number uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, number)) }

// How often what.
const (
	manyOften   = 8 // one image in so many has up to maxChanges changes, the others up to 4
	maxChanges  = 40
	anyOften    = 4 // one change in so many is anywhere in metadata, not of a field of a structure
	blocksOften = 3 // and one of those is of a whole block
	emptyOften  = 5 // and one of a byte anywhere in an area, not of one with something in it
	fixOften    = 4 // of so many images, the checksums of all but one are made to fit
)

// pick chooses a seed: half of the time any, else one that has a structure of a kind, whose name is returned, each kind as often as
// another. Few seeds have some of them.
func pick(r *rand.Rand, seeds []*seed) (*seed, string) {
	if r.IntN(2) == 0 {
		return seeds[r.IntN(len(seeds))], ""
	}
	having := map[string][]*seed{}
	for _, s := range seeds {
		for _, st := range s.structures {
			having[st.name] = append(having[st.name], s)
		}
	}
	names := slices.Sorted(maps.Keys(having))
	name := names[r.IntN(len(names))]
	return having[name][r.IntN(len(having[name]))], name
}

// change changes a seed's metadata in up to a few places, and says what it did. The first is in a structure of the
// kind that aim names, if any.
func (s *seed) change(r *rand.Rand, aim string) (*changed, string, error) {
	c, err := openChanged(s.open[s.target], nil)
	if err != nil {
		return nil, "", err
	}
	var did []string
	n := 1 + min(r.IntN(4), r.IntN(4))
	if r.IntN(manyOften) == 0 {
		n = 1 + r.IntN(maxChanges)
	}
	for ; n > 0; n-- {
		a := &s.areas[r.IntN(len(s.areas))]
		var err error
		var what string
		switch {
		case aim != "":
			i := slices.IndexFunc(s.structures, func(st structure) bool { return st.name == aim })
			what, err = s.changeField(r, c, &s.structures[i])
			aim = ""
		case r.IntN(anyOften) > 0:
			what, err = s.changeField(r, c, &s.structures[r.IntN(len(s.structures))])
		case r.IntN(blocksOften) == 0:
			what, err = s.changeBlock(r, c, a)
			what = a.name + ": " + what
		default:
			what, err = s.changeBytes(r, c, a)
			what = a.name + ": " + what
		}
		if err != nil {
			return nil, "", err
		}
		did = append(did, what)
	}
	if s.sums != nil && r.IntN(fixOften) > 0 {
		if err := s.sums.fix(c, s); err != nil {
			return nil, "", err
		}
		did = append(did, "checksums made to fit")
	}
	return c, strings.Join(did, "; "), nil
}

// changeBlock copies another block over one, swaps both, or clears it.
func (s *seed) changeBlock(r *rand.Rand, c *changed, a *area) (string, error) {
	from := a
	if r.IntN(3) == 0 {
		from = &s.areas[r.IntN(len(s.areas))]
	}
	at, other := a.units[r.IntN(len(a.units))], from.units[r.IntN(len(from.units))]
	old, err := c.get(at, int(s.unit))
	if err != nil {
		return "", err
	}
	b, err := c.get(other, int(s.unit))
	if err != nil {
		return "", err
	}
	switch r.IntN(3) {
	case 0:
		return fmt.Sprintf("the block at %d cleared", at), c.put(at, make([]byte, s.unit))
	case 1:
		return fmt.Sprintf("the block at %d is that at %d", at, other), c.put(at, b)
	}
	if err := c.put(other, old); err != nil {
		return "", err
	}
	return fmt.Sprintf("the blocks at %d and %d swapped", at, other), c.put(at, b)
}

// changeBytes changes a bit, a byte or a number.
func (s *seed) changeBytes(r *rand.Rand, c *changed, a *area) (string, error) {
	at := a.filled[r.IntN(len(a.filled))]
	if r.IntN(emptyOften) == 0 {
		at = a.units[r.IntN(len(a.units))] + r.Int64N(s.unit)
	}
	size := []int{1, 1, 2, 4, 4, 8}[r.IntN(6)]
	at -= at % int64(size)
	old, err := c.get(at, size)
	if err != nil {
		return "", err
	}
	big := s.bigEnd || strings.HasPrefix(a.name, "journal")
	value := number(old, big)
	switch {
	case size == 1 && r.IntN(2) == 0:
		value ^= 1 << r.IntN(8)
	case r.IntN(3) == 0:
		value += uint64(r.IntN(9)) - 4
	case r.IntN(4) == 0:
		value = r.Uint64()
	default:
		values := edges(value, uint(8*size), c.size, s.unit)
		value = values[r.IntN(len(values))]
	}
	b := numeral(value, size, big)
	return fmt.Sprintf("%x at %d becomes %x", old, at, b), c.put(at, b)
}

func number(b []byte, big bool) (v uint64) {
	for i := range b {
		if big {
			v = v<<8 | uint64(b[i])
		} else {
			v |= uint64(b[i]) << (8 * i)
		}
	}
	return v
}

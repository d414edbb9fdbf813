package ext4

import (
	"cmp"
	"slices"
	"sort"
)

// blockSet is a set of runs of blocks. Each of its lists is sorted, has runs that do not
// touch, and more of them than the next list, so that there are few lists, and adding a run moves few others.
type blockSet struct{ lists [][]blockRange }

type blockRange struct{ first, end uint64 }

// newBlockSet makes a set of runs in any order. It takes the slice over.
func newBlockSet(runs []blockRange) blockSet {
	if len(runs) == 0 {
		return blockSet{}
	}
	slices.SortFunc(runs, func(a, b blockRange) int { return cmp.Compare(a.first, b.first) })
	n := 0
	for _, r := range runs {
		if n > 0 && r.first <= runs[n-1].end {
			runs[n-1].end = max(runs[n-1].end, r.end)
			continue
		}
		runs[n] = r
		n++
	}
	return blockSet{[][]blockRange{runs[:n]}}
}

func (s *blockSet) add(block, blocks uint64) {
	r := blockRange{block, block + blocks}
	for _, list := range s.lists {
		if i := after(list, block) - 1; i >= 0 && r.end <= list[i].end {
			return
		}
	}
	list := []blockRange{r}
	for n := len(s.lists); n > 0 && len(s.lists[n-1]) <= len(list); n-- {
		list = union(s.lists[n-1], list)
		s.lists = s.lists[:n-1]
	}
	s.lists = append(s.lists, list)
}

// runs is how many runs the set holds in its memory.
func (s *blockSet) runs() (n int) {
	for _, list := range s.lists {
		n += len(list)
	}
	return n
}

// end is the end of a run that a block is in, or the block if it is in none.
func (s *blockSet) end(block uint64) uint64 {
	end := block
	for _, list := range s.lists {
		if i := after(list, block) - 1; i >= 0 {
			end = max(end, list[i].end)
		}
	}
	return end
}

// after is the index of the first run that begins after a block.
func after(list []blockRange, block uint64) int {
	return sort.Search(len(list), func(i int) bool { return list[i].first > block })
}

// union makes one list of two.
func union(a, b []blockRange) []blockRange {
	list := make([]blockRange, 0, len(a)+len(b))
	for len(a)+len(b) > 0 {
		from := &a
		if len(a) == 0 || len(b) > 0 && b[0].first < a[0].first {
			from = &b
		}
		r := (*from)[0]
		*from = (*from)[1:]
		if n := len(list); n > 0 && r.first <= list[n-1].end {
			list[n-1].end = max(list[n-1].end, r.end)
			continue
		}
		list = append(list, r)
	}
	return list
}

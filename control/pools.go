package control

import (
	"cmp"
	"slices"
	"strconv"

	"domfs/backend"
)

// Pool is a store's pool. Its Name is what it is called in the tree.
type Pool struct {
	backend.Pool
	Store string
	Key   string // its store's name for it, as Volume.Pool has it
}

// namePools sorts the pools by name. Where two stores have one of the same name, the first of the stores by
// name keeps it, and the other's has "@" and its store's name after it: that depends on nothing else.
func (inv *Inventory) namePools() {
	slices.SortStableFunc(inv.Pools, func(a, b Pool) int { return cmp.Or(compare(a.Store, b.Store), compare(a.Key, b.Key)) })
	taken := map[string]bool{}
	for i := range inv.Pools {
		p := &inv.Pools[i]
		name := p.Key
		for n := 1; taken[name]; n++ {
			suffix := p.Store
			if n > 1 {
				suffix += "-" + strconv.Itoa(n)
			}
			name = suffixed(p.Key, suffix)
		}
		p.Name = name
		taken[name] = true
	}
	slices.SortFunc(inv.Pools, func(a, b Pool) int { return compare(a.Name, b.Name) })
}

// pool is the pool that a volume takes its space from, nil if it is not known.
func (inv *Inventory) pool(v backend.Volume) *Pool {
	if v.Pool == "" {
		return nil
	}
	for i := range inv.Pools {
		if p := &inv.Pools[i]; p.Store == v.Store && p.Key == v.Pool {
			return p
		}
	}
	return nil
}
